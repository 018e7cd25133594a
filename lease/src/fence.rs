//! Until when this node may write, in memory that the worker and its supervisor share (DESIGN §9).
//!
//! The worker writes the deadline; everybody else only compares it with the clock. So the fence closes by the mere passing of
//! time, whether or not the worker still runs: the supervisor, which maps the same page, sees it as well.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::clock::BootInstant;

/// Size of the shared memory, in bytes. Layout: the deadline as one native-endian `u64` at offset 0 (nanoseconds on
/// `CLOCK_BOOTTIME`; 0 = closed), the rest zero.
const CELL_BYTES: usize = 4096;

/// The shared deadline. One owner (the role machine) sets it; any process that has the descriptor reads it.
#[derive(Debug)]
pub struct FenceCell {
    memory: std::ptr::NonNull<AtomicU64>,
    fd: OwnedFd,
}

// SAFETY: the mapping lives as long as the cell and is only used as an atomic.
unsafe impl Send for FenceCell {}
// SAFETY: as above; atomics may be shared.
unsafe impl Sync for FenceCell {}

impl FenceCell {
    /// A new cell in a memfd (close-on-exec: whoever hands it to a child clears that), with the fence closed.
    ///
    /// # Errors
    /// When the kernel gives no memory or descriptor.
    pub fn create() -> io::Result<Self> {
        let fd = memfd_create("litefs-fence", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, CELL_BYTES as u64)?;
        Self::from_fd(fd)
    }

    /// The cell behind a descriptor received from the process that created it.
    ///
    /// # Errors
    /// `InvalidData` when it is not a file of a cell's size; whatever the mapping gives.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let size = fstat(&fd)?.st_size;
        if size != CELL_BYTES as i64 {
            let text = format!("a fence cell has {CELL_BYTES} bytes, this file has {size}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        // SAFETY: a new shared mapping at an address the kernel chooses; the file is as long as the mapping, and nobody shrinks it.
        let address = unsafe {
            mmap(std::ptr::null_mut(), CELL_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
        }?;
        let memory = std::ptr::NonNull::new(address.cast::<AtomicU64>())
            .ok_or_else(|| io::Error::other("the fence cell was mapped at address 0"))?;
        Ok(Self { memory, fd })
    }

    /// The descriptor to hand to another process.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A duplicate of the descriptor as a file (for passing it over a socket or to a child).
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn duplicate(&self) -> io::Result<File> {
        Ok(File::from(self.fd.try_clone()?))
    }

    fn deadline_cell(&self) -> &AtomicU64 {
        // SAFETY: the mapping is page-aligned, at least 8 bytes and mapped until drop.
        unsafe { self.memory.as_ref() }
    }

    /// Until when this node may write.
    #[must_use]
    pub fn deadline(&self) -> BootInstant {
        BootInstant::from_nanos(self.deadline_cell().load(Ordering::SeqCst))
    }

    /// Lets this node write until `deadline`. Only the owner of the lease calls this.
    pub fn set_deadline(&self, deadline: BootInstant) {
        self.deadline_cell().store(deadline.as_nanos(), Ordering::SeqCst);
    }

    /// Closes the fence now.
    pub fn close(&self) {
        self.set_deadline(BootInstant::PAST);
    }

    /// Whether this node may write at this instant.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open_at(BootInstant::now())
    }

    /// Whether this node may write at `now`. The deadline itself is too late.
    #[must_use]
    pub fn is_open_at(&self, now: BootInstant) -> bool {
        now < self.deadline()
    }

    /// How long the fence stays open if nothing is renewed; zero when it is closed.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline().since(BootInstant::now())
    }
}

impl Drop for FenceCell {
    fn drop(&mut self) {
        // SAFETY: the address and length of our own mapping, which nobody uses any more.
        let unmapped = unsafe { munmap(self.memory.as_ptr().cast(), CELL_BYTES) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "unmap the fence cell");
        }
    }
}

/// The engine's view of the fence: consulted at every commit that must be strict.
#[derive(Debug, Clone)]
pub struct FenceGate(pub Arc<FenceCell>);

impl litefs::WriteGate for FenceGate {
    fn is_open(&self) -> bool {
        self.0.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cell_is_closed_and_opens_until_its_deadline() {
        let cell = FenceCell::create().unwrap();
        assert!(!cell.is_open());
        let deadline = BootInstant::now().after(Duration::from_secs(3600));
        cell.set_deadline(deadline);
        assert!(cell.is_open());
        assert!(cell.remaining() > Duration::from_secs(3000));
        assert!(cell.is_open_at(deadline.before(Duration::from_nanos(1))));
        assert!(!cell.is_open_at(deadline), "the deadline itself is too late");
        cell.close();
        assert!(!cell.is_open());
    }

    #[test]
    fn another_mapping_of_the_descriptor_sees_the_same_deadline() {
        let cell = FenceCell::create().unwrap();
        let other = FenceCell::from_fd(cell.duplicate().unwrap().into()).unwrap();
        cell.set_deadline(BootInstant::NEVER);
        assert!(other.is_open());
        other.close();
        assert!(!cell.is_open());
    }

    #[test]
    fn a_file_of_another_size_is_refused_before_it_is_mapped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let error = FenceCell::from_fd(file.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
