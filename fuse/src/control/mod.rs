//! The control mount: `<db>-lock` files whose POSIX and OFD locks reach us (the main mount's stay in the kernel).

mod client;
mod fs;
mod locks;

pub use fs::ControlFs;
pub use locks::LockTable;
