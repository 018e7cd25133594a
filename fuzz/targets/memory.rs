//! A file in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// A new file that holds these bytes.
pub fn file(data: &[u8]) -> File {
    let descriptor = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
    let file = File::from(descriptor);
    file.write_all_at(data, 0).expect("room in memory");
    file
}
