//! The supervisor process: one loop over signals, the worker's messages, ended children and the fence.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use litefs_lease::{BootInstant, FenceCell};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::Instant;

use super::application;
use super::fence::Fence;
use crate::channel::{Channel, FromWorker, ToWorker, WorkerMessages};
use crate::cli::MountArgs;
use crate::config::{Config, ExecStep};

/// How often the fence is looked at; leases last seconds.
const FENCE_CHECK: Duration = Duration::from_millis(100);
/// How long the worker may take to give the lease up before the application is told to stop.
const DRAIN_AT_MOST: Duration = Duration::from_millis(1500);
/// How long the worker may take to capture the rest, unmount and close.
const STOP_AT_MOST: Duration = Duration::from_secs(30);
/// How long the application may take after the worker died under it.
const ORPHAN_AT_MOST: Duration = Duration::from_secs(10);

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Starting, or the application runs.
    Running,
    /// The worker gives the lease up; then the application gets the signal.
    Draining(Signal),
    /// The application was told to stop.
    EndingApplication,
    /// The worker was told to stop.
    EndingWorker,
    /// The worker could not start and `exit-on-error` is false: stay for whoever wants to look.
    Parked,
    /// All is over.
    Done,
}

/// Runs a node; returns the exit code of the process.
pub fn run(config: &Config, args: &MountArgs) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let mut supervisor = Supervisor::start(config, args)?;
            Ok(supervisor.run().await)
        })
    });
    result.unwrap_or_else(|error: anyhow::Error| {
        tracing::error!("start the node: {error:#}");
        1
    })
}

struct Supervisor {
    steps: VecDeque<ExecStep>,
    exit_on_error: bool,
    channel: Channel,
    messages: WorkerMessages,
    /// Whether the worker still holds its end of the channel.
    messages_open: bool,
    cell: FenceCell,
    fence: Fence,
    mounts: Vec<String>,
    worker: Option<Pid>,
    application: Option<Pid>,
    phase: Phase,
    /// When waiting in this phase ends.
    deadline: Option<Instant>,
    /// Of this process, once something has decided it.
    exit_code: Option<u8>,
    child_ended: SignalStream,
    signals: Signals,
}

impl Supervisor {
    fn start(config: &Config, args: &MountArgs) -> anyhow::Result<Self> {
        let signals = Signals::new()?;
        let child_ended = signal(SignalKind::child())?;
        let cell = FenceCell::create()?;
        let (channel, worker_end) = Channel::pair()?;
        let messages = WorkerMessages::new(&channel)?;
        let worker = start_worker(&worker_end, &cell, args)?;
        let candidate = config.lease.candidate;
        Ok(Self {
            steps: config.exec.iter().filter(|step| candidate || !step.if_candidate).cloned().collect(),
            exit_on_error: config.exit_on_error,
            channel,
            messages,
            messages_open: true,
            cell,
            fence: Fence::default(),
            mounts: Vec::new(),
            worker: Some(worker),
            application: None,
            phase: Phase::Running,
            deadline: None,
            exit_code: None,
            child_ended,
            signals,
        })
    }

    async fn run(&mut self) -> u8 {
        let mut fence_check = tokio::time::interval(FENCE_CHECK);
        fence_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.phase != Phase::Done {
            let deadline = self.deadline;
            tokio::select! {
                message = self.messages.next(), if self.messages_open => match message {
                    Ok(Some((message, fd))) => self.on_message(message, fd),
                    // Its end is closed: it is ending, and SIGCHLD says how.
                    Ok(None) => self.messages_open = false,
                    Err(error) => {
                        tracing::warn!(%error, "read the worker's messages");
                        self.messages_open = false;
                    }
                },
                _ = self.child_ended.recv() => {
                    for (pid, code) in application::reap() {
                        self.on_exit(pid, code).await;
                    }
                }
                signal = self.signals.next() => self.on_signal(signal),
                _ = fence_check.tick() => self.check_fence(),
                () = async { tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)).await }, if deadline.is_some() => self.on_deadline(),
            }
        }
        self.exit_code.unwrap_or(0)
    }

    fn enter(&mut self, phase: Phase, at_most: Option<Duration>) {
        tracing::debug!(?phase, "supervisor");
        self.phase = phase;
        self.deadline = at_most.map(|at_most| Instant::now() + at_most);
    }

    fn on_message(&mut self, message: FromWorker, fd: Option<std::os::fd::OwnedFd>) {
        match message {
            FromWorker::Mounted(path) => self.mounts.push(path),
            FromWorker::Unmounted(path) => self.mounts.retain(|mounted| *mounted != path),
            FromWorker::Attached(kind, db) => {
                if let Some(fd) = fd {
                    self.fence.attach(db, kind, fd);
                }
            }
            FromWorker::Detached(kind, db) => self.fence.detach(&db, kind),
            FromWorker::Ready if self.phase == Phase::Running && self.application.is_none() => self.next_step(),
            FromWorker::Ready => {}
            FromWorker::Drained => {
                if let Phase::Draining(signal) = self.phase {
                    self.end_application(signal);
                }
            }
            FromWorker::Failed => {
                tracing::error!("the node cannot go on: stopping");
                self.exit_code.get_or_insert(1);
                self.end_application(Signal::TERM);
            }
        }
    }

    /// Starts the next command of the list, if there is one.
    fn next_step(&mut self) {
        let Some(step) = self.steps.pop_front() else { return };
        match application::start(&step.cmd) {
            Ok(pid) => {
                tracing::info!(cmd = step.cmd, pid = pid.as_raw_nonzero().get(), "started");
                self.application = Some(pid);
            }
            Err(error) => {
                tracing::error!(cmd = step.cmd, %error, "start the command");
                self.application_ended(1);
            }
        }
    }

    fn on_signal(&mut self, signal: Signal) {
        let stops = matches!(signal, Signal::TERM | Signal::INT)
            || (self.application.is_none() && matches!(signal, Signal::HUP | Signal::QUIT));
        match self.phase {
            Phase::Running if stops => {
                tracing::info!(?signal, "stopping");
                if self.worker.is_some() && self.channel.tell_worker(&ToWorker::Drain).is_ok() {
                    self.enter(Phase::Draining(signal), Some(DRAIN_AT_MOST));
                } else {
                    self.end_application(signal);
                }
            }
            Phase::Parked => self.enter(Phase::Done, None),
            _ => {
                if let Some(pid) = self.application {
                    application::signal(pid, signal);
                }
            }
        }
    }

    fn end_application(&mut self, signal: Signal) {
        self.steps.clear();
        match self.application {
            Some(pid) => {
                application::signal(pid, signal);
                self.enter(Phase::EndingApplication, None);
            }
            None => self.end_worker(),
        }
    }

    fn end_worker(&mut self) {
        match self.worker {
            Some(pid) => {
                if self.channel.tell_worker(&ToWorker::Stop).is_err() {
                    application::signal(pid, Signal::TERM);
                }
                self.enter(Phase::EndingWorker, Some(STOP_AT_MOST));
            }
            None => self.enter(Phase::Done, None),
        }
    }

    /// The messages sent before a child's end are handled before it.
    async fn on_exit(&mut self, pid: Pid, code: u8) {
        if self.application == Some(pid) {
            self.application = None;
            self.application_ended(code);
        } else if self.worker == Some(pid) {
            while self.messages_open {
                match self.messages.next().await {
                    Ok(Some((message, fd))) => self.on_message(message, fd),
                    Ok(None) | Err(_) => self.messages_open = false,
                }
            }
            self.worker = None;
            self.worker_ended(code);
        }
    }

    fn application_ended(&mut self, code: u8) {
        match self.phase {
            Phase::Running if code == 0 && !self.steps.is_empty() => self.next_step(),
            Phase::Done | Phase::EndingWorker => {}
            _ => {
                tracing::info!(code, "the application ended");
                self.exit_code.get_or_insert(code);
                self.steps.clear();
                self.end_worker();
            }
        }
    }

    fn worker_ended(&mut self, code: u8) {
        if self.phase == Phase::EndingWorker {
            if code != 0 {
                tracing::error!(code, "the worker ended badly");
                self.exit_code = self.exit_code.filter(|code| *code != 0).or(Some(1));
            }
            self.fence.clear();
            self.force_unmount();
            self.enter(Phase::Done, None);
            return;
        }
        // Nobody captures any more: nobody may commit. Then let the clients see errors rather than hang.
        if self.fence.close_for_good() > 0 {
            tracing::warn!(
                "a client is in a write transaction while its node is dead; it is recovered at the next start"
            );
        }
        self.force_unmount();
        if self.phase == Phase::Running && self.application.is_none() && !self.exit_on_error {
            tracing::error!(code, "the worker ended; staying up because exit-on-error is false");
            self.enter(Phase::Parked, None);
            return;
        }
        if code != 2 {
            tracing::error!(code, "the worker ended unexpectedly");
        }
        self.exit_code.get_or_insert(if code == 2 { 2 } else { 1 });
        match self.application {
            Some(pid) => {
                application::signal(pid, Signal::TERM);
                self.enter(Phase::EndingApplication, Some(ORPHAN_AT_MOST));
            }
            None => self.enter(Phase::Done, None),
        }
    }

    fn on_deadline(&mut self) {
        self.deadline = None;
        match self.phase {
            Phase::Draining(signal) => {
                tracing::info!("requests are still in flight: telling the application to stop");
                self.end_application(signal);
            }
            Phase::EndingApplication => {
                tracing::warn!("the application did not end in time: killed");
                if let Some(pid) = self.application {
                    application::signal(pid, Signal::KILL);
                }
            }
            Phase::EndingWorker => {
                tracing::error!("the worker did not stop in time: killed");
                if let Some(pid) = self.worker {
                    application::signal(pid, Signal::KILL);
                }
            }
            _ => {}
        }
    }

    /// DESIGN §9a: closes the fence when the worker should have and did not.
    fn check_fence(&mut self) {
        if self.worker.is_none() {
            if self.fence.is_closed() {
                self.fence.close_for_good();
            }
            return;
        }
        let is_dying = |pid: Pid| crate::dying::is_dying(pid.as_raw_nonzero().get().unsigned_abs());
        if self.worker.is_some_and(is_dying) {
            // It may wait for its own mount: then only this lets it end, and `worker_ended` does the rest.
            self.fence.close();
            self.force_unmount();
            return;
        }
        if Fence::is_overdue(&self.cell) {
            if !self.fence.is_closed() {
                tracing::warn!("the lease ran out and the worker did not react: closing the fence in its place");
            }
            self.fence.close();
        } else if self.fence.is_closed() && self.cell.deadline() == BootInstant::PAST {
            tracing::info!("the worker runs again and has closed the fence by itself");
            self.fence.leave_to_worker();
        } else if self.fence.is_closed() {
            tracing::info!("the worker runs again and its lease is proved: giving the fence back to it");
            self.fence.open();
            if !self.cell.is_open() {
                // It has closed it in that very moment, and the lock was one.
                self.fence.close();
            }
        }
    }

    /// Takes the mounts of a dead worker away, so that nothing hangs on them.
    fn force_unmount(&mut self) {
        for path in std::mem::take(&mut self.mounts) {
            if let Err(error) = rustix::mount::unmount(path.as_str(), UnmountFlags::FORCE | UnmountFlags::DETACH) {
                tracing::warn!(path, %error, "unmount what the worker left; `umount -f -l` does it by hand");
            }
        }
    }
}

fn start_worker(channel: &Channel, cell: &FenceCell, args: &MountArgs) -> io::Result<Pid> {
    // Only this process has threads that could fork meanwhile, and it has none.
    for fd in [channel.fd(), cell.fd()] {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    let child = Command::new(std::env::current_exe()?)
        .arg0("litefs-worker")
        .arg("worker")
        .arg(format!("--channel-fd={}", channel.raw()))
        .arg(format!("--fence-fd={}", std::os::fd::AsRawFd::as_raw_fd(&cell.fd())))
        .args(args.to_words())
        // Its own group: a terminal's Ctrl-C is for the application and this process.
        .process_group(0)
        .stdin(std::process::Stdio::null())
        .spawn();
    for fd in [channel.fd(), cell.fd()] {
        fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    }
    application::pid_of(&child?)
}

/// Every signal the supervisor handles but the end of a child. A signal ignored from the start (`nohup`) stays ignored, except the two that stop.
struct Signals {
    streams: Vec<(Signal, SignalStream)>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let mut streams = Vec::new();
        for (name, kind) in [
            (Signal::TERM, SignalKind::terminate()),
            (Signal::INT, SignalKind::interrupt()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
            (Signal::WINCH, SignalKind::window_change()),
        ] {
            if name == Signal::HUP && is_ignored(libc::SIGHUP) {
                continue;
            }
            streams.push((name, signal(kind)?));
        }
        Ok(Self { streams })
    }

    /// The next signal. Cancel-safe.
    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (name, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*name);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Whether this process was started with the signal ignored.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: asks for the current action only; `action` is a valid place for it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}
