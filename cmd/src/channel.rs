//! What worker and supervisor tell each other: one datagram per message over a socket pair, some with a descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use litefs::FileKind;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Longest message, in bytes: a path, or a database name and a few words.
const MESSAGE_BYTES_MAX: usize = 8192;

/// From the worker.
#[derive(Debug, PartialEq, Eq)]
pub enum FromWorker {
    /// A mount is up at this path: to be forced off when the worker dies.
    Mounted(String),
    /// The worker unmounted it.
    Unmounted(String),
    /// A lock inode the engine uses; comes with its descriptor.
    Attached(FileKind, String),
    /// That inode is gone.
    Detached(FileKind, String),
    /// The node works: the application may start.
    Ready,
    /// The proxy accepts nothing any more and the lease is given up.
    Drained,
    /// The node cannot go on (the mount is dead, ...): stop everything, exit 1.
    Failed,
}

/// To the worker.
#[derive(Debug, PartialEq, Eq)]
pub enum ToWorker {
    /// A stop has begun: stop accepting, give the lease up, answer [`FromWorker::Drained`].
    Drain,
    /// The application is gone: capture, unmount, close, exit.
    Stop,
}

fn kind_name(kind: FileKind) -> &'static str {
    kind.data_name()
}

fn kind_from(name: &str) -> Option<FileKind> {
    FileKind::ALL.into_iter().find(|kind| kind.data_name() == name)
}

impl FromWorker {
    fn encode(&self) -> String {
        match self {
            Self::Mounted(path) => format!("mounted {path}"),
            Self::Unmounted(path) => format!("unmounted {path}"),
            Self::Attached(kind, db) => format!("attached {} {db}", kind_name(*kind)),
            Self::Detached(kind, db) => format!("detached {} {db}", kind_name(*kind)),
            Self::Ready => "ready".into(),
            Self::Drained => "drained".into(),
            Self::Failed => "failed".into(),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let of_file = || rest.split_once(' ').and_then(|(kind, db)| Some((kind_from(kind)?, db.to_owned())));
        Some(match word {
            "mounted" => Self::Mounted(rest.to_owned()),
            "unmounted" => Self::Unmounted(rest.to_owned()),
            "attached" => of_file().map(|(kind, db)| Self::Attached(kind, db))?,
            "detached" => of_file().map(|(kind, db)| Self::Detached(kind, db))?,
            "ready" => Self::Ready,
            "drained" => Self::Drained,
            "failed" => Self::Failed,
            _ => return None,
        })
    }
}

impl ToWorker {
    fn encode(&self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Stop => "stop",
        }
    }

    fn decode(text: &str) -> Option<Self> {
        match text {
            "drain" => Some(Self::Drain),
            "stop" => Some(Self::Stop),
            _ => None,
        }
    }
}

/// One end of the pair.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Both ends, closed on exec.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// The end inherited from the supervisor.
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// The descriptor's number, for the command line of the child that inherits it.
    pub fn raw(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Tells the supervisor; waits while its queue is full (it always reads).
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn tell_supervisor(&self, message: &FromWorker, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(&self.socket, message.encode().as_bytes(), fd)
    }

    /// Tells the worker.
    ///
    /// # Errors
    /// When the worker is gone.
    pub fn tell_worker(&self, message: &ToWorker) -> io::Result<()> {
        send(&self.socket, message.encode().as_bytes(), None)
    }

    /// Waits (blocking) for what the supervisor says; `None` when it is gone.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait_for_supervisor(&self) -> io::Result<Option<ToWorker>> {
        loop {
            let Some((text, _)) = receive(&self.socket, RecvFlags::CMSG_CLOEXEC)? else { return Ok(None) };
            if let Some(message) = ToWorker::decode(&text) {
                return Ok(Some(message));
            }
        }
    }
}

/// The supervisor's end, read without blocking.
#[derive(Debug)]
pub struct WorkerMessages {
    socket: AsyncFd<OwnedFd>,
}

impl WorkerMessages {
    /// Reads from this end of the pair.
    ///
    /// # Errors
    /// When the descriptor cannot be watched.
    pub fn new(channel: &Channel) -> io::Result<Self> {
        let socket = channel.socket.try_clone()?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// The next message and the descriptor that came with it; `None` when the worker closed its end. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&self) -> io::Result<Option<(FromWorker, Option<OwnedFd>)>> {
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, |socket| receive(socket, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT))
                .await?;
            let Some((text, fd)) = received else { return Ok(None) };
            match FromWorker::decode(&text) {
                Some(message) => return Ok(Some((message, fd))),
                None => tracing::warn!(text, "the worker sent a message that is not known"),
            }
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive(socket: &OwnedFd, flags: RecvFlags) -> io::Result<Option<(String, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    bytes.truncate(received.bytes);
    Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), fd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_encoding() {
        for message in [
            FromWorker::Mounted("/a b".into()),
            FromWorker::Unmounted("/a b".into()),
            FromWorker::Attached(FileKind::Shm, "my app.db".into()),
            FromWorker::Detached(FileKind::Database, "x".into()),
            FromWorker::Ready,
            FromWorker::Drained,
            FromWorker::Failed,
        ] {
            assert_eq!(FromWorker::decode(&message.encode()), Some(message));
        }
        assert_eq!(FromWorker::decode("attached nothing x"), None);
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_message_and_the_end_is_seen() {
        let (supervisor, worker) = Channel::pair().expect("pair");
        let messages = WorkerMessages::new(&supervisor).expect("messages");
        let file = tempfile::tempfile().expect("file");
        let attached = FromWorker::Attached(FileKind::Database, "a".into());
        worker.tell_supervisor(&attached, Some(file.as_fd())).expect("send");
        worker.tell_supervisor(&FromWorker::Ready, None).expect("send");
        let (message, fd) = messages.next().await.expect("receive").expect("open");
        assert_eq!(message, attached);
        let same = rustix::fs::fstat(fd.expect("descriptor")).expect("stat");
        assert_eq!(same.st_ino, rustix::fs::fstat(&file).expect("stat").st_ino);
        supervisor.tell_worker(&ToWorker::Drain).expect("send");
        assert_eq!(worker.wait_for_supervisor().expect("receive"), Some(ToWorker::Drain));
        drop(worker);
        assert_eq!(messages.next().await.expect("receive").map(|(message, _)| message), Some(FromWorker::Ready));
        assert!(messages.next().await.expect("receive").is_none());
    }
}
