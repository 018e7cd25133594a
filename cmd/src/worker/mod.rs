//! The worker process: store, mounts, node, proxy; started and watched by the supervisor.

mod fly;
mod keeper;
mod memory;
mod mount_metrics;
mod proxy;
mod seams;
mod start;

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use litefs_lease::FenceCell;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::channel::{Channel, FromWorker, ToWorker};
use crate::cli::WorkerArgs;
use crate::{config, logging};
use start::Running;

/// Runs the worker until the supervisor says stop, or is gone.
pub fn run(args: &WorkerArgs) -> ExitCode {
    let config = match config::load(&args.mount.overrides()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("litefs: {error}");
            return ExitCode::from(2);
        }
    };
    memory::set_up_allocator();
    logging::init(&config.log, Some(&config.tracing), args.mount.tracing, config.fuse.debug);
    let result = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from);
    let result = result.and_then(|runtime| {
        let (channel, cell) = inherited(args)?;
        raise_descriptor_limit();
        let result = runtime.block_on(work(config, Arc::new(channel), Arc::new(cell)));
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The descriptors that the supervisor left open for this process.
fn inherited(args: &WorkerArgs) -> anyhow::Result<(Channel, FenceCell)> {
    for fd in [args.channel_fd, args.fence_fd] {
        anyhow::ensure!(fd > 2, "the worker is started by `litefs mount` only");
        // SAFETY: the number is only looked at; a wrong one is an error.
        let flags = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        anyhow::ensure!(flags == 0, "the worker is started by `litefs mount` only");
    }
    // SAFETY: the supervisor opened both for this process, and nothing else in it owns them.
    let (channel, cell) = unsafe { (OwnedFd::from_raw_fd(args.channel_fd), OwnedFd::from_raw_fd(args.fence_fd)) };
    Ok((Channel::from_fd(channel), FenceCell::from_fd(cell)?))
}

/// A database takes several descriptors; the usual soft limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "raise the limit of open files");
    }
}

/// What makes the worker act after its start.
enum Order {
    Drain,
    Stop,
}

async fn work(config: config::Config, channel: Arc<Channel>, cell: Arc<FenceCell>) -> anyhow::Result<()> {
    tokio::spawn(memory::return_free_memory_when_idle());
    let mut orders = orders(channel.clone())?;
    let mut running = tokio::select! {
        running = Running::start(&config, channel.clone(), cell) => running?,
        // The application was not started yet; whatever the start left is cleaned up by the supervisor.
        _ = orders.recv() => return Ok(()),
    };
    let mut drained = false;
    loop {
        tokio::select! {
            () = running.ready(), if !running.is_ready() && !drained => {
                tracing::info!("node is ready");
                running.set_ready();
                channel.tell_supervisor(&FromWorker::Ready, None)?;
            }
            order = orders.recv() => {
                if !drained {
                    running.drain().await;
                    drained = true;
                }
                match order {
                    Some(Order::Drain) => drop(channel.tell_supervisor(&FromWorker::Drained, None)),
                    Some(Order::Stop) | None => break,
                }
            }
        }
    }
    running.stop().await?;
    Ok(())
}

/// Orders of the supervisor; its death and a direct SIGTERM are orders to stop.
fn orders(channel: Arc<Channel>) -> std::io::Result<mpsc::Receiver<Order>> {
    let (sender, receiver) = mpsc::channel(4);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let by_signal = sender.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = by_signal.send(Order::Stop).await;
    });
    std::thread::Builder::new().name("supervisor".into()).spawn(move || {
        loop {
            let order = match channel.wait_for_supervisor() {
                Ok(Some(ToWorker::Drain)) => Order::Drain,
                Ok(Some(ToWorker::Stop)) => Order::Stop,
                Ok(None) | Err(_) => {
                    let _ = sender.blocking_send(Order::Stop);
                    return;
                }
            };
            if sender.blocking_send(order).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
