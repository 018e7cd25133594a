//! Labelled faults: with the feature `fault-injection`, any OS call of the engine can be made to fail by its label.
//!
//! For a whole process: `LITEFS_FAULTS=label:errno[:count],…` (`log.append:28:1` fails one append with `ENOSPC`; without
//! a count it fails for ever). For a test inside a process: `on_this_thread`.

#[cfg(not(any(test, feature = "fault-injection")))]
#[allow(clippy::unnecessary_wraps)] // the other build fails here
#[inline]
pub(crate) fn check(_label: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(any(test, feature = "fault-injection"))]
pub(crate) use injection::check;
#[cfg(any(test, feature = "fault-injection"))]
pub use injection::{Injected, on_this_thread};

#[cfg(any(test, feature = "fault-injection"))]
mod injection {
    use std::cell::RefCell;
    use std::io;
    use std::sync::OnceLock;

    use parking_lot::Mutex;

    #[derive(Debug, Clone)]
    struct Fault {
        label: String,
        errno: i32,
        /// How often it still strikes.
        left: u64,
    }

    impl Fault {
        fn parse(text: &str) -> Option<Self> {
            let mut parts = text.split(':');
            let label = parts.next()?.to_owned();
            let errno = parts.next()?.parse().ok()?;
            let left = match parts.next() {
                Some(count) => count.parse().ok()?,
                None => u64::MAX,
            };
            Some(Self { label, errno, left })
        }

        fn strikes(&mut self, label: &str) -> bool {
            let strikes = self.left > 0 && self.label == label;
            self.left -= u64::from(strikes);
            strikes
        }
    }

    static PROCESS: OnceLock<Mutex<Vec<Fault>>> = OnceLock::new();
    thread_local! {
        static THREAD: RefCell<Vec<Fault>> = const { RefCell::new(Vec::new()) };
    }

    fn process() -> &'static Mutex<Vec<Fault>> {
        PROCESS.get_or_init(|| {
            let faults = std::env::var("LITEFS_FAULTS").unwrap_or_default();
            Mutex::new(faults.split(',').filter_map(Fault::parse).collect())
        })
    }

    /// Fails when a fault with this label is due.
    pub(crate) fn check(label: &'static str) -> io::Result<()> {
        let strike = |faults: &mut Vec<Fault>| {
            faults.iter_mut().find(|f| f.left > 0 && f.label == label).map(|f| (f.strikes(label), f.errno))
        };
        let due = THREAD.with(|faults| strike(&mut faults.borrow_mut())).or_else(|| strike(&mut process().lock()));
        match due {
            Some((true, errno)) => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
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
        THREAD.with(|faults| faults.borrow_mut().push(Fault { label: label.to_owned(), errno, left: count }));
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
        fn the_variable_names_label_errno_and_count() {
            let fault = Fault::parse("log.append:28:3").expect("valid");
            assert_eq!((fault.label.as_str(), fault.errno, fault.left), ("log.append", 28, 3));
            assert_eq!(Fault::parse("log.sync:5").expect("valid").left, u64::MAX);
            assert!(Fault::parse("log.sync").is_none() && Fault::parse("a:b").is_none());
        }
    }
}
