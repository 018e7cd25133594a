//! The FUSE mounts of a litefs node.
