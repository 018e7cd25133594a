//! From errors of the engine and the backing files to the errno a client sees.

use std::io;

use fuser::Errno;

use crate::names::BadName;

/// The errno of an I/O error: the operating system's own where there is one, else the nearest for its kind.
#[must_use]
pub fn errno(error: &io::Error) -> Errno {
    if let Some(code) = error.raw_os_error() {
        return Errno::from_i32(code);
    }
    match error.kind() {
        io::ErrorKind::NotFound => Errno::ENOENT,
        io::ErrorKind::PermissionDenied => Errno::EACCES,
        io::ErrorKind::AlreadyExists => Errno::EEXIST,
        io::ErrorKind::WouldBlock => Errno::EAGAIN,
        io::ErrorKind::InvalidInput => Errno::EINVAL,
        io::ErrorKind::StorageFull => Errno::ENOSPC,
        io::ErrorKind::ReadOnlyFilesystem => Errno::EROFS,
        io::ErrorKind::ResourceBusy => Errno::EBUSY,
        io::ErrorKind::Interrupted => Errno::EINTR,
        _ => Errno::EIO,
    }
}

impl BadName {
    /// The errno for creating such a name.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::TooLong => Errno::ENAMETOOLONG,
            Self::Invalid => Errno::EINVAL,
        }
    }
}

/// An I/O error with this errno.
#[must_use]
pub fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_survives_and_a_kind_finds_its_errno() {
        assert_eq!(i32::from(errno(&os(libc::ENOSPC))), libc::ENOSPC);
        assert_eq!(i32::from(errno(&io::ErrorKind::StorageFull.into())), libc::ENOSPC);
        assert_eq!(i32::from(errno(&io::Error::other("odd"))), libc::EIO);
    }
}
