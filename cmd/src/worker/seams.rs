//! What the mount asks of the node. The mount is up before the node, so the node comes later.

use std::io;
use std::sync::{Arc, OnceLock};

use litefs::DbName;
use litefs_fuse::{HaltLocks, NodeInfo};
use litefs_replication::{HaltError, LAG_NEVER_MS, Node};
use tokio::runtime::Handle;

/// The node, once it is there.
#[derive(Debug, Clone)]
pub struct LateNode {
    node: Arc<OnceLock<Arc<Node>>>,
    runtime: Handle,
}

impl LateNode {
    /// Without a node yet; blocking callers wait on this runtime.
    pub fn new(runtime: Handle) -> Self {
        Self { node: Arc::default(), runtime }
    }

    /// The node is there. Only the first counts.
    pub fn set(&self, node: Arc<Node>) {
        let _ = self.node.set(node);
    }
}

impl NodeInfo for LateNode {
    fn primary_hostname(&self) -> Option<String> {
        Some(self.node.get()?.connected()?.hostname)
    }

    fn lag_ms(&self) -> i64 {
        self.node.get().map_or(LAG_NEVER_MS, |node| node.lag_ms())
    }
}

/// The errno a client's `fcntl` gets.
fn errno(db: &DbName, error: &HaltError) -> io::Error {
    let code = match error {
        HaltError::Busy | HaltError::BusyHere => libc::EAGAIN,
        HaltError::UnknownDatabase => libc::ENOENT,
        _ => libc::EIO,
    };
    if code == libc::EIO {
        tracing::warn!(%db, %error, "HALT lock");
    }
    io::Error::from_raw_os_error(code)
}

impl HaltLocks for LateNode {
    fn acquire(&self, db: &DbName, owner: u64, wait: bool) -> io::Result<()> {
        let Some(node) = self.node.get() else { return Err(io::Error::from_raw_os_error(libc::EAGAIN)) };
        self.runtime.block_on(node.halts().acquire(db, owner, wait)).map_err(|error| errno(db, &error))
    }

    fn release(&self, db: &DbName, owner: u64) -> io::Result<()> {
        let Some(node) = self.node.get() else { return Ok(()) };
        self.runtime.block_on(node.halts().release(db, owner)).map_err(|error| errno(db, &error))
    }
}
