//! The life of the two mounts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, BackingId, Config, Filesystem, Session, SessionACL};
use litefs::Store;

use crate::control::{ControlFs, LockTable};
use crate::engine_threads::EngineThreads;
use crate::error::MountError;
use crate::info::{HaltLocks, NodeInfo};
use crate::kernel::{MountKernel, run_notifier};
use crate::main_fs::MainFs;
use crate::mountpoint::{mount_fuse, prepare, unmount_or_abort};
use crate::notifications::Notifications;
use crate::opener::Openers;
use crate::tree::{Layout, Tree};
use crate::workers::FUSE_THREADS;

/// Threads that read requests of the control mount; what waits there has a thread of its own.
const CONTROL_THREADS: usize = 2;

/// How long the connections may take to end after the unmount.
const END_AT_MOST: Duration = Duration::from_secs(1);
/// Between two looks whether they have.
const END_POLL: Duration = Duration::from_millis(5);

/// `fuse.passthrough`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passthrough {
    /// Use it where it is available.
    #[default]
    Auto,
    /// Relay every file, so that every commit passes through this process.
    Off,
}

/// How the mount does the I/O of `-wal` and `-shm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoMode {
    /// In the kernel.
    Passthrough,
    /// Relayed, slower and equally correct; why.
    Relayed(String),
}

/// Called once when a FUSE connection ends without [`Mount::unmount`]; the text says which.
pub type OnDead = Arc<dyn Fn(String) + Send + Sync>;

/// For metrics; may outlive the mount.
#[derive(Debug, Clone)]
pub struct MountCounts {
    queue: Arc<Notifications>,
    opens_waiting: Arc<AtomicUsize>,
}

impl MountCounts {
    /// Messages to the kernel that wait now, and how many were merged because too many did, since the start.
    #[must_use]
    pub fn notifications(&self) -> (usize, u64) {
        self.queue.counts()
    }

    /// The engine's opens of files of the mount that wait for others of them to end.
    #[must_use]
    pub fn opens_waiting(&self) -> usize {
        self.opens_waiting.load(Ordering::Relaxed)
    }
}

/// How to mount.
#[derive(Clone)]
pub struct MountOptions {
    /// `fuse.dir`.
    pub dir: PathBuf,
    /// Where the control mount goes; [`default_control_dir`].
    pub control_dir: PathBuf,
    /// `fuse.allow-other`.
    pub allow_other: bool,
    /// `fuse.passthrough`.
    pub passthrough: Passthrough,
    /// See [`OnDead`].
    pub on_dead: OnDead,
}

/// A directory for the control mount that belongs to this mount directory alone.
#[must_use]
pub fn default_control_dir(dir: &Path) -> PathBuf {
    let name = dir.to_string_lossy().trim_start_matches('/').replace('/', "-");
    Path::new("/run/litefs").join(if name.is_empty() { "root".to_owned() } else { name })
}

/// The mounted file systems.
pub struct Mount {
    dir: PathBuf,
    control_dir: PathBuf,
    io_mode: IoMode,
    store: Arc<Store>,
    tree: Arc<Tree>,
    kernel: Arc<MountKernel>,
    stopping: Arc<AtomicBool>,
    queue: Arc<Notifications>,
    threads: Vec<JoinHandle<()>>,
    is_mounted: bool,
}

impl Mount {
    /// Mounts both file systems and attaches the engine. Clients that are faster wait in their first open.
    ///
    /// # Errors
    /// Says what is missing. Nothing stays mounted then.
    pub fn start(
        options: MountOptions,
        store: Arc<Store>,
        node_info: Arc<dyn NodeInfo>,
        halt_locks: Arc<dyn HaltLocks>,
    ) -> Result<Self, MountError> {
        let dir = prepare(&options.dir)?;
        let control_dir = prepare(&options.control_dir)?;
        let data_dir = store.config().data_dir.clone();
        let queue = Arc::new(Notifications::default());
        // Before the first `/dev/fuse` is opened.
        let openers = Openers::start().map_err(MountError::Start)?;
        let io_mode = choose_io(&dir, &data_dir, &options)?;
        let passthrough = io_mode == IoMode::Passthrough;
        let engine_threads = EngineThreads::new(openers.threads());
        let layout = Layout { data_dir, control_dir: control_dir.clone(), passthrough, engine_threads };
        let tree = Tree::new(layout, Arc::clone(&store), node_info, Arc::clone(&queue)).map_err(MountError::Start)?;
        let tree = Arc::new(tree);
        let stopping = Arc::new(AtomicBool::new(false));
        let watch = |what| Watch { what, stopping: Arc::clone(&stopping), on_dead: Arc::clone(&options.on_dead) };

        let mut undo = Undo::default();
        let main = mount_session(
            &dir,
            options.allow_other,
            FUSE_THREADS,
            MainFs::new(Arc::clone(&tree), passthrough),
            &mut undo,
        )?;
        let notifier = main.notifier();
        let mut threads = vec![watch("main").run(main)?];
        let locks = Arc::new(LockTable::new(halt_locks));
        let control = ControlFs::new(Arc::clone(&store), locks);
        threads.push(watch("control").run(mount_session(
            &control_dir,
            options.allow_other,
            CONTROL_THREADS,
            control,
            &mut undo,
        )?)?);
        threads.push(run_notifier(notifier.clone(), Arc::clone(&queue)).map_err(MountError::Start)?);
        let kernel = MountKernel::new(&dir, Arc::clone(&tree), notifier, Arc::clone(&queue), openers);
        let kernel = Arc::new(kernel.map_err(MountError::Start)?);
        undo.disarm();
        store.attach_kernel(Arc::clone(&kernel) as Arc<dyn litefs::Kernel>);
        tree.attached.open();
        Ok(Self { dir, control_dir, io_mode, store, tree, kernel, stopping, queue, threads, is_mounted: true })
    }

    /// How `-wal` and `-shm` are served.
    #[must_use]
    pub fn io_mode(&self) -> &IoMode {
        &self.io_mode
    }

    /// The mount directory, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What waits for the kernel.
    #[must_use]
    pub fn counts(&self) -> MountCounts {
        MountCounts { queue: Arc::clone(&self.queue), opens_waiting: self.kernel.opens_waiting() }
    }

    /// The seam the engine uses.
    #[must_use]
    pub fn kernel(&self) -> Arc<dyn litefs::Kernel> {
        Arc::clone(&self.kernel) as Arc<dyn litefs::Kernel>
    }

    /// Takes the engine off the mount and unmounts both. Clients that still hold files get errors from then on; those in another
    /// mount namespace, where an unmount here does not reach, when this process ends.
    ///
    /// # Errors
    /// When the kernel refuses; what could be unmounted is.
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.stop()?;
        let deadline = Instant::now() + END_AT_MOST;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(END_POLL);
            }
            if !thread.is_finished() {
                let dir = self.dir.display();
                tracing::warn!(%dir, "another mount namespace still has this mount; it is dead there from now on");
                return Ok(());
            }
            if thread.join().is_err() {
                tracing::error!("a thread of the mount panicked; this is a defect of litefs");
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), MountError> {
        if !std::mem::take(&mut self.is_mounted) {
            return Ok(());
        }
        self.stopping.store(true, Ordering::Release);
        self.tree.attached.open();
        self.store.detach_kernel();
        self.kernel.close();
        let unmounted = [&self.control_dir, &self.dir]
            .map(|dir| unmount_or_abort(dir).map_err(|source| MountError::Unmount { dir: dir.clone(), source }));
        self.queue.stop();
        let _ = std::fs::remove_dir(&self.control_dir);
        unmounted.into_iter().collect()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "unmount");
        }
    }
}

/// Unmounts what was mounted when a later step of the start fails.
#[derive(Default)]
struct Undo(Vec<PathBuf>);

impl Undo {
    fn disarm(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for dir in self.0.drain(..).rev() {
            if let Err(error) = unmount_or_abort(&dir) {
                tracing::error!(dir = %dir.display(), %error, "unmount after a failed start");
            }
        }
    }
}

fn session_config(allow_other: bool, threads: usize) -> Config {
    let mut config = Config::default();
    config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(threads);
    config
}

fn mount_session<F: Filesystem>(
    dir: &Path,
    allow_other: bool,
    threads: usize,
    filesystem: F,
    undo: &mut Undo,
) -> Result<BackgroundSession, MountError> {
    let device = mount_fuse(dir, allow_other)?;
    undo.0.push(dir.to_owned());
    let config = session_config(allow_other, threads);
    let session = Session::from_fd(filesystem, device, config.acl, config).map_err(MountError::Start)?;
    session.spawn().map_err(MountError::Start)
}

/// Waits for the end of a FUSE connection.
struct Watch {
    what: &'static str,
    stopping: Arc<AtomicBool>,
    on_dead: OnDead,
}

impl Watch {
    fn run(self, session: BackgroundSession) -> Result<JoinHandle<()>, MountError> {
        let watch = move || {
            let ended = session.join();
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            let why = ended.err().map_or_else(|| "unmounted or aborted".to_owned(), |error| error.to_string());
            tracing::error!(mount = self.what, why, "the FUSE connection ended");
            (self.on_dead)(format!("{} mount: {why}", self.what));
        };
        thread::Builder::new().name("fuse-watch".into()).spawn(watch).map_err(MountError::Start)
    }
}

/// A file system that only finds out whether the kernel and the data directory can do passthrough.
struct Probe;

impl Filesystem for Probe {
    fn init(&mut self, _req: &fuser::Request, config: &mut fuser::KernelConfig) -> io::Result<()> {
        config
            .add_capabilities(fuser::InitFlags::FUSE_PASSTHROUGH)
            .map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        let _ = config.set_max_stack_depth(2);
        Ok(())
    }
}

/// Decides between passthrough and relaying, by trying it on the data directory.
fn choose_io(dir: &Path, data_dir: &Path, options: &MountOptions) -> Result<IoMode, MountError> {
    if options.passthrough == Passthrough::Off {
        return Ok(IoMode::Relayed("fuse.passthrough is off".into()));
    }
    let device = mount_fuse(dir, false)?;
    let tried = try_passthrough(device, data_dir);
    unmount_or_abort(dir).map_err(|source| MountError::Unmount { dir: dir.to_owned(), source })?;
    match tried {
        Ok(()) => Ok(IoMode::Passthrough),
        Err(error) => {
            let why = passthrough_missing(&error, data_dir);
            tracing::warn!("{why}; -wal and -shm are relayed: slower, equally correct");
            Ok(IoMode::Relayed(why))
        }
    }
}

fn try_passthrough(device: OwnedFd, data_dir: &Path) -> io::Result<()> {
    let session = Session::from_fd(Probe, device, SessionACL::Owner, session_config(false, 1))?;
    let path = data_dir.join(".passthrough-probe");
    let probe = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    // The connection ends right after this, and the ID with it.
    let tried = BackingId::create_raw(session.as_fd(), probe.as_fd());
    let _ = std::fs::remove_file(&path);
    tried.map(|_id| ())
}

fn passthrough_missing(error: &io::Error, data_dir: &Path) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "FUSE passthrough needs CAP_SYS_ADMIN in the initial user namespace".to_owned()
        }
        Some(libc::ELOOP) => {
            format!("{} is on a stacked file system too deep for FUSE passthrough", data_dir.display())
        }
        Some(code) => format!(
            "FUSE passthrough is not possible on the file system of {}: {}",
            data_dir.display(),
            io::Error::from_raw_os_error(code)
        ),
        None => "this kernel has no FUSE passthrough (it came with Linux 6.9)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_directory_has_its_own_control_directory() {
        assert_eq!(default_control_dir(Path::new("/litefs")), Path::new("/run/litefs/litefs"));
        assert_eq!(default_control_dir(Path::new("/a/b")), Path::new("/run/litefs/a-b"));
        assert_eq!(default_control_dir(Path::new("/")), Path::new("/run/litefs/root"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = |code| passthrough_missing(&io::Error::from_raw_os_error(code), Path::new("/data"));
        assert!(text(libc::EPERM).contains("CAP_SYS_ADMIN"));
        assert!(text(libc::ELOOP).contains("/data"));
        let unsupported = io::Error::from(io::ErrorKind::Unsupported);
        assert!(passthrough_missing(&unsupported, Path::new("/data")).contains("6.9"));
    }
}
