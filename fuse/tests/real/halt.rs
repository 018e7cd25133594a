//! The HALT lock as clients take it: `fcntl` on byte 72 of `<db>-lock`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use crate::harness::{Node, PATIENCE, eventually, python, read_line};

const HALT_BYTE: i64 = 72;

fn lock(file: &File, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `flock`.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = kind as libc::c_short;
    request.l_whence = libc::SEEK_SET as libc::c_short;
    request.l_start = HALT_BYTE;
    request.l_len = 1;
    // SAFETY: the descriptor is open and the request lives through the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &request) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn open(node: &Node) -> File {
    File::options().read(true).write(true).open(node.path("a.db-lock")).expect("open the lock file")
}

fn node() -> Node {
    let node = Node::start();
    node.open("a.db").execute("CREATE TABLE t(x)").expect("create");
    node
}

#[test]
fn ofd_locks_exclude_each_other_and_wait() {
    let node = node();
    let (first, second) = (open(&node), open(&node));
    lock(&first, libc::F_OFD_SETLKW, libc::F_WRLCK).expect("free");
    let busy = lock(&second, libc::F_OFD_SETLK, libc::F_WRLCK).expect_err("held");
    assert_eq!(busy.raw_os_error(), Some(libc::EAGAIN));
    let (sender, receiver) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        lock(&second, libc::F_OFD_SETLKW, libc::F_WRLCK).expect("granted");
        sender.send(()).expect("send");
        second
    });
    lock(&first, libc::F_OFD_SETLK, libc::F_UNLCK).expect("unlock");
    receiver.recv_timeout(PATIENCE).expect("the waiter got the lock");
    drop(waiter.join().expect("join"));
    eventually("closing an OFD owner releases", || node.halts.calls.lock().len() == 4);
    assert_eq!(*node.halts.calls.lock(), ["acquire a.db", "release a.db", "acquire a.db", "release a.db"]);
}

#[test]
fn closing_the_holder_grants_the_waiter() {
    let node = node();
    let (first, second) = (open(&node), open(&node));
    lock(&first, libc::F_OFD_SETLKW, libc::F_WRLCK).expect("free");
    let (sender, receiver) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        sender.send(lock(&second, libc::F_OFD_SETLKW, libc::F_WRLCK).is_ok()).expect("send");
    });
    drop(first);
    assert!(receiver.recv_timeout(PATIENCE).expect("the waiter is answered"));
    waiter.join().expect("join");
}

const POSIX_HOLDER: &str = "import fcntl,os,struct,sys\n\
     f=os.open(sys.argv[1],os.O_RDWR)\n\
     fcntl.lockf(f,fcntl.LOCK_EX,1,72)\n\
     print('locked',flush=True)\nsys.stdin.readline()\n\
     os.close(f)\nprint('closed',flush=True)\nsys.stdin.readline()";

#[test]
fn posix_locks_of_processes_exclude_each_other() {
    let node = node();
    let path = node.path("a.db-lock");
    let mut first = python(POSIX_HOLDER, &[&path]);
    assert_eq!(read_line(&mut first), "locked");
    let mut second = python(POSIX_HOLDER, &[&path]);
    let probe = open(&node);
    assert_eq!(lock(&probe, libc::F_SETLK, libc::F_WRLCK).expect_err("held").raw_os_error(), Some(libc::EAGAIN));
    use std::io::Write;
    first.stdin.as_mut().expect("piped").write_all(b"\n").expect("tell");
    assert_eq!(read_line(&mut first), "closed");
    assert_eq!(read_line(&mut second), "locked", "the waiting process got it");
    for mut child in [first, second] {
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
    eventually("kill -9 of the holder releases", || lock(&probe, libc::F_SETLK, libc::F_WRLCK).is_ok());
}

#[test]
fn a_killed_waiter_goes_away_without_the_lock() {
    let node = node();
    let holder = open(&node);
    lock(&holder, libc::F_OFD_SETLKW, libc::F_WRLCK).expect("free");
    let script = "import fcntl,os,sys\nf=os.open(sys.argv[1],os.O_RDWR)\nprint('waiting',flush=True)\n\
                  fcntl.lockf(f,fcntl.LOCK_EX,1,72)";
    let mut waiter = python(script, &[&node.path("a.db-lock")]);
    assert_eq!(read_line(&mut waiter), "waiting");
    waiter.kill().expect("kill");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(waiter.wait().is_ok()));
    assert!(receiver.recv_timeout(PATIENCE).expect("the killed waiter ends"));
    assert_eq!(*node.halts.calls.lock(), ["acquire a.db"]);
}

#[test]
fn a_refused_release_is_an_error_of_unlock_and_of_close() {
    let node = node();
    node.halts.fail_release.store(true, Ordering::Relaxed);
    let file = open(&node);
    lock(&file, libc::F_OFD_SETLKW, libc::F_WRLCK).expect("free");
    let error = lock(&file, libc::F_OFD_SETLK, libc::F_UNLCK).expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let script = "import fcntl,os,sys\nf=os.open(sys.argv[1],os.O_RDWR)\nfcntl.lockf(f,fcntl.LOCK_EX,1,72)\n\
                  try: os.close(f)\nexcept OSError as e: print(e.errno)";
    let printed = crate::harness::succeeds(python(script, &[&node.path("a.db-lock")]));
    assert_eq!(printed.trim(), libc::EIO.to_string());
}

#[test]
fn only_the_halt_byte_of_a_live_database_can_be_locked() {
    let node = node();
    assert!(File::open(node.path("other.db-lock")).is_err());
    let file = open(&node);
    assert_eq!(lock(&file, libc::F_OFD_SETLK, libc::F_RDLCK).expect_err("shared").raw_os_error(), Some(libc::EINVAL));
    lock(&file, libc::F_OFD_SETLK, libc::F_UNLCK).expect("nothing to unlock");
    assert!(node.halts.calls.lock().is_empty());
}
