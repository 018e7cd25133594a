//! The HTTP proxy of a litefs node: writes to the primary, reads never stale.
