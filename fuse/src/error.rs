//! Why a mount cannot be had, with the remedy.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why mounting or unmounting failed.
#[derive(Debug, Error)]
pub enum MountError {
    /// `/dev/fuse` does not exist.
    #[error("/dev/fuse does not exist: load the kernel's fuse module, or give the container --device /dev/fuse")]
    NoFuseDevice,
    /// `/dev/fuse` may not be opened.
    #[error("/dev/fuse cannot be opened: {0}; give the container --device /dev/fuse, or run as a user who may")]
    FuseDevice(#[source] io::Error),
    /// Mounting needs CAP_SYS_ADMIN.
    #[error(
        "mounting needs CAP_SYS_ADMIN: run as root, or give the container --cap-add SYS_ADMIN (and no AppArmor profile that denies mount)"
    )]
    NoPrivilege,
    /// The mount point is a file, or cannot be made.
    #[error("mount directory {dir}: {source}")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// There are files in the mount directory; the mount would hide them.
    #[error(
        "mount directory {0} is not empty: move its files away (litefs import brings databases in), or mount elsewhere"
    )]
    NotEmpty(PathBuf),
    /// Something is mounted there and alive.
    #[error("{0} already is a mount point in use: is another litefs running? else unmount it: umount {0}")]
    InUse(PathBuf),
    /// A mount of a process that neither answers nor is gone.
    #[error("{0} is the mount of a litefs that does not answer: end that process, then: umount -f {0}")]
    Hung(PathBuf),
    /// The mount call failed.
    #[error("mount {dir}: {source}")]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Anything else on the way (threads, the data directory).
    #[error("start the mount: {0}")]
    Start(#[source] io::Error),
    /// Could not be unmounted.
    #[error("unmount {dir}: {source}")]
    Unmount {
        /// The directory.
        dir: PathBuf,
        /// The error.
        source: io::Error,
    },
}
