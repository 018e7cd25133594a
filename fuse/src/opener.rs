//! Opens files of our own mount on threads that have a table of descriptors of their own.
//!
//! A system call that waits for the answer to a FUSE request which was read already cannot be ended, not even by SIGKILL: only the
//! answer ends it, or the end of the connection. The connection ends when the last descriptor of `/dev/fuse` is closed, and the
//! table of descriptors that the threads of a process share is closed when its last thread ends. So a process that is killed while
//! one of these threads waits for its own mount would wait for itself for ever, and keep whatever it has locked.
//!
//! The threads here do not share that table. All others end when the process is killed; the device is closed with their table, the
//! connection is aborted, and then these threads get their errors and end, too.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Files that can be in the course of being opened at the same time. An open by the engine never needs another one for its answer.
const OPENERS: usize = 4;
/// How long an open waits for a thread. Opens take microseconds; those of a mount that is being taken away end with it.
const IDLE_WAIT_MAX: Duration = Duration::from_secs(30);
/// The flags of the open, little-endian, before the path of a request; the errno (0: none) of an answer.
const HEAD_BYTES: usize = 4;
/// Most bytes of a request.
const REQUEST_BYTES_MAX: usize = HEAD_BYTES + libc::PATH_MAX as usize;
/// The first descriptor that is not a standard stream.
const FIRST_FD: RawFd = 3;

/// A few threads that open files, see the module. They end when this is dropped.
///
/// Public for tests with a file system that does not answer.
#[derive(Debug)]
pub struct Openers {
    /// A leaf lock; not held while a file is opened.
    idle: Mutex<Idle>,
    returned: Condvar,
    threads: Vec<u32>,
    /// Opens that wait for an idle thread.
    waiting: Arc<AtomicUsize>,
}

/// The sockets to the threads that wait for a request.
#[derive(Debug)]
struct Idle {
    sockets: Vec<OwnedFd>,
    /// How many threads there are, the busy ones, too.
    living: usize,
}

impl Openers {
    /// Starts the threads. Call it before `/dev/fuse` is opened.
    ///
    /// # Errors
    /// When threads or descriptors are short, or the system does not let a thread have a table of its own.
    pub fn start() -> io::Result<Self> {
        let (mut sockets, mut threads) = (Vec::new(), Vec::new());
        for _ in 0..OPENERS {
            let (socket, thread) = start_opener()?;
            sockets.push(socket);
            threads.push(thread);
        }
        Ok(Self {
            idle: Mutex::new(Idle { sockets, living: OPENERS }),
            returned: Condvar::new(),
            threads,
            waiting: Arc::default(),
        })
    }

    /// The threads' numbers, as the kernel puts them into requests.
    #[must_use]
    pub fn threads(&self) -> &[u32] {
        &self.threads
    }

    /// How many opens wait for an idle thread, for metrics.
    #[must_use]
    pub fn waiting(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.waiting)
    }

    /// Opens `path` below `dir`, or where it says when it is absolute. Waits as long as the open takes.
    ///
    /// # Errors
    /// What the open gives; `BrokenPipe` when the threads that open files have ended; `TimedOut` when all of them are busy for long.
    pub fn open(&self, dir: Option<BorrowedFd<'_>>, path: &Path, flags: OFlags) -> io::Result<File> {
        let socket = self.take(IDLE_WAIT_MAX)?;
        let opened = ask(&socket, dir, path, flags);
        let mut idle = self.idle.lock();
        match &opened {
            // Not an errno of the open.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe && error.raw_os_error().is_none() => {
                idle.living -= 1
            }
            _ => idle.sockets.push(socket),
        }
        drop(idle);
        self.returned.notify_all();
        opened
    }

    fn take(&self, patience: Duration) -> io::Result<OwnedFd> {
        let deadline = Instant::now() + patience;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut idle = self.idle.lock();
        let taken = loop {
            if let Some(socket) = idle.sockets.pop() {
                break Ok(socket);
            }
            if idle.living == 0 {
                break Err(ended());
            }
            if self.returned.wait_until(&mut idle, deadline).timed_out() {
                break idle.sockets.pop().ok_or_else(|| busy(patience));
            }
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        taken
    }
}

/// A thread that opens files has ended.
fn ended() -> io::Error {
    let problem =
        "the thread that opens files of the mount has ended; this is a defect of litefs: start the node again";
    io::Error::new(io::ErrorKind::BrokenPipe, problem)
}

/// No thread was idle for as long as `patience`.
fn busy(patience: Duration) -> io::Error {
    let problem = format!(
        "the threads that open files of the mount have all waited for it for {} s: is its connection stuck? See litefs_fuse_opens_waiting",
        patience.as_secs()
    );
    io::Error::new(io::ErrorKind::TimedOut, problem)
}

/// Starts a thread; gives the socket to it, and its number.
fn start_opener() -> io::Result<(OwnedFd, u32)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (sender, receiver) = mpsc::channel();
    let fd = theirs.as_raw_fd();
    thread::Builder::new().name("fuse-opener".into()).spawn(move || {
        // From here on this thread has nothing to do with the descriptors of the others: it may not log, nor start a thread.
        match leave_table(fd) {
            Ok(socket) => {
                let _ = sender.send(Ok(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()));
                serve(&socket);
            }
            Err(error) => drop(sender.send(Err(error))),
        }
    })?;
    let started = receiver.recv().map_err(|_| ended())?;
    // The thread has its own copy, or has failed: with this one it would not see that we are gone.
    drop(theirs);
    Ok((ours, started?))
}

/// Gives the calling thread a table of descriptors of its own, with the standard streams and `keep`.
fn leave_table(keep: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: this thread owns no descriptor and keeps none but `keep`, so that it does not matter which table it had them from.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }?;
    if keep > FIRST_FD {
        close_range(FIRST_FD, keep - 1)?;
    }
    close_range(keep + 1, RawFd::MAX)?;
    // SAFETY: open in this thread's table, where nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(keep) })
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: closes descriptors of this thread's own table, which nothing owns there; takes integers only.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens what is asked for until the other end is gone.
fn serve(socket: &OwnedFd) {
    let mut request = [0; REQUEST_BYTES_MAX];
    loop {
        let Ok((len, dir)) = receive(socket, &mut request) else { return };
        let Some((flags, path)) = request[..len].split_first_chunk() else { return };
        let flags = OFlags::from_bits_retain(u32::from_le_bytes(*flags));
        let opened = match &dir {
            Some(dir) => openat(dir, path, flags, Mode::empty()),
            None => openat(CWD, path, flags, Mode::empty()),
        };
        let errno = opened.as_ref().err().map_or(0, |errno| errno.raw_os_error());
        let file = opened.as_ref().ok().map(AsFd::as_fd);
        if send(socket, &[&errno.to_le_bytes()], file).is_err() {
            return;
        }
    }
}

fn ask(socket: &OwnedFd, dir: Option<BorrowedFd<'_>>, path: &Path, flags: OFlags) -> io::Result<File> {
    let path = path.as_os_str().as_bytes();
    if path.len() + HEAD_BYTES > REQUEST_BYTES_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    let mut answer = [0; HEAD_BYTES];
    let answered = send(socket, &[&flags.bits().to_le_bytes(), path], dir).and_then(|()| receive(socket, &mut answer));
    let (len, file) = answered.map_err(|_| ended())?;
    if len != HEAD_BYTES {
        return Err(ended());
    }
    match i32::from_le_bytes(answer) {
        // Without the file: it was opened, and there was no number free for it here.
        0 => file.map(File::from).ok_or_else(|| Errno::MFILE.into()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn send(socket: &OwnedFd, parts: &[&[u8]], fd: Option<BorrowedFd<'_>>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    rustix::io::retry_on_intr(|| sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)).map(|_| ())
}

/// Waits for a message; 0 bytes when the other end is gone.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((message.bytes, fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

    #[test]
    fn files_and_errors_come_through() {
        let openers = Openers::start().expect("start");
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("file"), "content").expect("write");
        let open = |dir: Option<BorrowedFd<'_>>, path: &Path| openers.open(dir, path, READ);
        let by_path = open(None, &dir.path().join("file")).expect("open");
        assert_eq!(io::read_to_string(by_path).expect("read"), "content");
        // More often than there are threads: they come back.
        for _ in 0..3 * OPENERS {
            let handle = openers.open(None, dir.path(), OFlags::PATH | OFlags::CLOEXEC).expect("directory");
            let below = open(Some(handle.as_fd()), Path::new("file")).expect("open");
            assert_eq!(io::read_to_string(below).expect("read"), "content");
            let missing = open(Some(handle.as_fd()), Path::new("missing")).expect_err("missing");
            assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        }
        let long = "x".repeat(REQUEST_BYTES_MAX);
        assert_eq!(open(None, Path::new(&long)).expect_err("long").raw_os_error(), Some(libc::ENAMETOOLONG));
    }

    #[test]
    fn a_thread_that_ended_is_named_and_the_others_go_on() {
        let openers = Openers::start().expect("start");
        for left in (0..OPENERS).rev() {
            let socket = openers.take(IDLE_WAIT_MAX).expect("a thread");
            // Less than a request: it ends.
            send(&socket, &[b"x"], None).expect("send");
            openers.idle.lock().sockets.push(socket);
            let error = openers.open(None, Path::new("/"), READ).expect_err("ended");
            assert!(error.to_string().contains("thread that opens files"), "{error}");
            assert_eq!(openers.idle.lock().living, left);
            assert_eq!(openers.open(None, Path::new("/"), READ).is_ok(), left > 0);
        }
    }

    #[test]
    fn an_open_does_not_wait_for_ever() {
        let openers = Openers::start().expect("start");
        let taken: Vec<_> = (0..OPENERS).map(|_| openers.take(IDLE_WAIT_MAX).expect("a thread")).collect();
        let error = openers.take(Duration::from_millis(1)).expect_err("all are busy");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(openers.waiting().load(Ordering::Relaxed), 0);
        // One that comes back is given to whoever waits.
        thread::scope(|scope| {
            let waits = scope.spawn(|| openers.open(None, Path::new("/"), READ).map(drop));
            while openers.waiting().load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            openers.idle.lock().sockets.extend(taken);
            openers.returned.notify_all();
            waits.join().expect("no panic").expect("opened");
        });
    }

    #[test]
    fn the_threads_keep_no_descriptor_of_the_process() {
        let file = tempfile::tempfile().expect("file");
        let openers = Openers::start().expect("start");
        for thread in openers.threads() {
            let table = std::fs::read_dir(format!("/proc/self/task/{thread}/fd")).expect("table");
            let names = table.map(|entry| entry.expect("entry").file_name().into_string().expect("number"));
            let fds: Vec<RawFd> = names.map(|name| name.parse().expect("number")).collect();
            assert!(!fds.contains(&file.as_raw_fd()), "{fds:?}");
            assert_eq!(fds.iter().filter(|fd| **fd >= FIRST_FD).count(), 1, "{fds:?}");
        }
    }
}
