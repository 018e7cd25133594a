//! Log lines on standard error, and the rolling trace log.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::{Log, LogFormat, Tracing};
use crate::trace_file::TraceFile;

type BoxLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Sends log lines to standard error as `log.*` says, and everything at debug level to the trace file and, with
/// `trace_to_stdout`, to standard output. `fuse_debug`: every request of the file system as well. Called once.
pub fn init(log: &Log, trace: Option<&Tracing>, trace_to_stdout: bool, fuse_debug: bool) {
    let mut lines = ours(if log.debug { LevelFilter::DEBUG } else { LevelFilter::INFO });
    if fuse_debug {
        // The library has a line for each.
        lines = lines.with_target("fuser", LevelFilter::DEBUG);
    }
    let mut layers: Vec<BoxLayer> = vec![log_layer(log).with_filter(lines).boxed()];
    if trace_to_stdout {
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stdout);
        layers.push(layer.with_filter(ours(LevelFilter::DEBUG)).boxed());
    }
    let mut refused = None;
    if let Some((trace, path)) =
        trace.filter(|trace| trace.enabled).and_then(|trace| Some((trace, trace.path.as_ref()?)))
    {
        match TraceFile::open(path, trace) {
            Ok(file) => {
                let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || file.clone());
                layers.push(layer.with_filter(ours(LevelFilter::DEBUG)).boxed());
            }
            Err(error) => refused = Some((path, error)),
        }
    }
    // An error means that a logger is set already, which only tests do.
    let _ = tracing_subscriber::registry().with(layers).try_init();
    if let Some((path, error)) = refused {
        tracing::warn!(path = %path.display(), %error, "open the trace log: going on without it");
    }
}

/// Our own lines at `level`; the libraries' only when something is wrong.
fn ours(level: LevelFilter) -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_target("litefs", level)
}

fn log_layer(log: &Log) -> BoxLayer {
    let ansi = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    match (log.format, log.timestamp) {
        (LogFormat::Text, true) => layer.with_target(false).boxed(),
        (LogFormat::Text, false) => layer.with_target(false).without_time().boxed(),
        (LogFormat::Json, true) => layer.json().flatten_event(true).boxed(),
        (LogFormat::Json, false) => layer.json().flatten_event(true).without_time().boxed(),
    }
}
