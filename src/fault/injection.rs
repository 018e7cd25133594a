//! Which fault is due at a step.

use std::cell::RefCell;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::STEPS;

/// What happens instead of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// It fails with this errno.
    Errno(i32),
    /// Half of the bytes are written, then it fails with `ENOSPC`.
    Short,
    /// The process is killed.
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    label: String,
    what: What,
    /// How often it still strikes.
    left: u64,
    /// Calls that go through before.
    after: u64,
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split(':');
        let label = parts.next()?.to_owned();
        let what = match parts.next()? {
            "short" => What::Short,
            "kill" => What::Kill,
            errno => What::Errno(errno.parse().ok()?),
        };
        let left = parts.next().map_or(Some(u64::MAX), |count| count.parse().ok())?;
        let after = parts.next().map_or(Some(0), |count| count.parse().ok())?;
        Some(Self { label, what, left, after })
    }

    fn parse_all(text: &str) -> Vec<Self> {
        text.split(',').filter_map(Self::parse).collect()
    }
}

fn strike(faults: &mut [Fault], label: &str) -> Option<What> {
    let fault = faults.iter_mut().find(|fault| fault.left > 0 && fault.label == label)?;
    if fault.after > 0 {
        fault.after -= 1;
        return None;
    }
    fault.left -= 1;
    Some(fault.what)
}

/// The faults of the process.
#[derive(Debug, Default)]
struct Process {
    faults: Vec<Fault>,
    file: Option<PathBuf>,
    /// The file as it was when it was read: changed, it is read again.
    version: Option<(u64, i64, i64, u64)>,
}

impl Process {
    /// `None`: the environment asks for none.
    fn from_environment() -> Option<Mutex<Self>> {
        let faults = std::env::var("LITEFS_FAULTS").map(|text| Fault::parse_all(&text)).unwrap_or_default();
        let file = std::env::var_os("LITEFS_FAULTS_FILE").map(PathBuf::from);
        (file.is_some() || !faults.is_empty()).then(|| Mutex::new(Self { faults, file, version: None }))
    }

    fn strike(&mut self, label: &str) -> Option<What> {
        if let Some(file) = &self.file {
            let version = fs::metadata(file)
                .ok()
                .map(|metadata: Metadata| (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()));
            if version != self.version {
                self.version = version;
                self.faults = fs::read_to_string(file).map(|text| Fault::parse_all(&text)).unwrap_or_default();
            }
        }
        let what = strike(&mut self.faults, label)?;
        if let Some(file) = &self.file {
            let mut told = file.clone().into_os_string();
            told.push(".struck");
            // A test that waits for it fails without.
            let _ = File::options()
                .create(true)
                .append(true)
                .open(told)
                .and_then(|mut told| told.write_all(format!("{label}\n").as_bytes()));
        }
        Some(what)
    }
}

static PROCESS: OnceLock<Option<Mutex<Process>>> = OnceLock::new();
thread_local! {
    static THREAD: RefCell<Vec<Fault>> = const { RefCell::new(Vec::new()) };
}

fn due(label: &'static str) -> Option<What> {
    debug_assert!(
        label.starts_with("test.") || STEPS.iter().any(|step| step.label == label),
        "{label} is missing in fault::STEPS"
    );
    let of_thread = THREAD.with(|faults| strike(&mut faults.borrow_mut(), label));
    let process = PROCESS.get_or_init(Process::from_environment).as_ref();
    let what = of_thread.or_else(|| process.and_then(|process| process.lock().strike(label)))?;
    if what == What::Kill {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    Some(what)
}

/// Fails when a fault with this label is due.
pub(crate) fn check(label: &'static str) -> io::Result<()> {
    check_write(label, 0).map(drop)
}

/// How many of `len` bytes to write before failing with `ENOSPC`; all of them is no failure.
pub(crate) fn check_write(label: &'static str, len: usize) -> io::Result<usize> {
    match due(label) {
        None => Ok(len),
        Some(What::Short) if len > 1 => Ok(len / 2),
        Some(What::Short | What::Kill) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        Some(What::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Ends the faults of this thread when dropped.
#[derive(Debug)]
pub struct Injected(());

impl Drop for Injected {
    fn drop(&mut self) {
        THREAD.with(|faults| faults.borrow_mut().clear());
    }
}

/// Makes the next `count` calls labelled `label` on this thread fail with `errno`.
#[must_use]
pub fn on_this_thread(label: &str, errno: i32, count: u64) -> Injected {
    inject(Fault { label: label.to_owned(), what: What::Errno(errno), left: count, after: 0 })
}

/// Makes one call labelled `label` on this thread fail with `errno`, after so many that go through.
#[cfg(test)]
#[must_use]
pub(crate) fn on_this_thread_after(label: &str, errno: i32, after: u64) -> Injected {
    inject(Fault { label: label.to_owned(), what: What::Errno(errno), left: 1, after })
}

fn inject(fault: Fault) -> Injected {
    THREAD.with(|faults| faults.borrow_mut().push(fault));
    Injected(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_its_label_as_often_as_told() {
        let injected = on_this_thread("test.write", 28, 2);
        for _ in 0..2 {
            assert_eq!(check("test.write").expect_err("strikes").raw_os_error(), Some(28));
        }
        check("test.write").expect("used up");
        drop(injected);
        check("test.other").expect("another label");
    }

    #[test]
    fn a_fault_is_label_what_and_count() {
        let fault = |label: &str, what, left| Some(Fault { label: label.to_owned(), what, left, after: 0 });
        assert_eq!(Fault::parse("log.append:28:3"), fault("log.append", What::Errno(28), 3));
        assert_eq!(Fault::parse(" log.sync:kill\n"), fault("log.sync", What::Kill, u64::MAX));
        assert_eq!(Fault::parse("log.append:short:1"), fault("log.append", What::Short, 1));
        assert!(Fault::parse("log.sync").is_none() && Fault::parse("a:b").is_none());
        let mut faults = Fault::parse_all("a.b:5,c.d:6:1:1");
        assert_eq!([1, 2, 3].map(|_| strike(&mut faults, "c.d")), [None, Some(What::Errno(6)), None]);
    }

    #[test]
    fn a_file_may_change_at_any_time_and_strikes_are_told() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let file = dir.path().join("faults");
        let mut process = Process { file: Some(file.clone()), ..Process::default() };
        assert_eq!(process.strike("test.write"), None);
        fs::write(&file, "test.write:short").expect("write");
        assert_eq!(process.strike("test.write"), Some(What::Short));
        fs::remove_file(&file).expect("remove");
        assert_eq!(process.strike("test.write"), None);
        assert_eq!(fs::read_to_string(dir.path().join("faults.struck")).expect("read"), "test.write\n");
    }

    /// In the source, a call is `os::…("label"`, or names its label nearby: what the debug assertion would find at run time.
    #[test]
    fn labels_are_listed_once_and_in_order() {
        assert!(STEPS.is_sorted_by(|a, b| a.label < b.label));
    }
}
