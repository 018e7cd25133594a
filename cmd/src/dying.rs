//! Processes that were killed and cannot end.
//!
//! A thread that waits for its own mount (in the relayed mode: for what clients wrote into the mapped wal-index to be written back)
//! keeps `/dev/fuse` open, and waits until somebody takes the mount away.

/// Whether a process was killed and has not ended yet (proc(5): a zombie leader with threads left, or SIGKILL pending).
pub fn is_dying(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    status.lines().any(|line| match line.split_once(':') {
        Some(("State", state)) => state.trim().starts_with(['Z', 'X']),
        Some(("SigPnd", pending)) => {
            u64::from_str_radix(pending.trim(), 16).is_ok_and(|bits| bits >> (libc::SIGKILL - 1) & 1 == 1)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::is_dying;

    #[test]
    fn a_killed_process_that_nobody_waited_for_is_dying_and_a_living_one_is_not() {
        assert!(!is_dying(std::process::id()));
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        assert!(!is_dying(child.id()));
        child.kill().expect("kill");
        while !is_dying(child.id()) {
            std::thread::yield_now();
        }
        child.wait().expect("wait");
        assert!(!is_dying(child.id()));
    }
}
