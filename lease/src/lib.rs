//! Which litefs node may write: static and Consul leases, and the fencing clock.
