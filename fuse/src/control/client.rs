//! Whether a client that waits for a lock still wants it: a signal must end `F_SETLKW`, and FUSE interrupts do not reach us.

use std::fs;

/// Whether the thread has a signal that it does not block or ignore (or is gone), so that its system call must end.
/// A thread we cannot see (another PID namespace reports 0) is never interrupted.
#[must_use]
pub fn is_interrupted(thread: u32) -> bool {
    if thread == 0 {
        return false;
    }
    match fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => has_deliverable_signal(&status),
        Err(_) => false,
    }
}

fn has_deliverable_signal(status: &str) -> bool {
    let mask = |field: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
            .unwrap_or(0)
    };
    let pending = mask("SigPnd") | mask("ShdPnd");
    pending & !(mask("SigBlk") | mask("SigIgn")) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_interrupts_and_a_blocked_signal_does_not() {
        let status = |pending: &str, blocked: &str| {
            format!(
                "Name:\tx\nSigPnd:\t{pending}\nShdPnd:\t0000000000000000\nSigBlk:\t{blocked}\nSigIgn:\t0000000000000000\n"
            )
        };
        assert!(has_deliverable_signal(&status("0000000000000100", "0000000000000000")));
        assert!(!has_deliverable_signal(&status("0000000000000002", "0000000000000002")));
        assert!(!has_deliverable_signal(&status("0000000000000000", "0000000000000000")));
        assert!(!is_interrupted(std::process::id()));
    }
}
