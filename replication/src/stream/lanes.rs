//! The threads that apply: records of one database always go through the same lane, in order; different databases do
//! not wait for each other (up to the number of lanes).

use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use litefs::database::ApplyError;
use litefs::ltx::Header;
use litefs::{DbName, Pos, Store};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

use super::now_ms;
use crate::metrics::Metrics;
use crate::problems::Problems;

/// Threads.
const LANES: usize = 4;
/// Jobs waiting per lane.
const JOBS_MAX: usize = 64;

/// What is known of one connection to the primary, while its records are applied.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// Databases that failed on this connection, and when to try again: the rest of their records is skipped.
    failed: Mutex<BTreeMap<DbName, Duration>>,
    /// Everything up to its `ready` has been applied, in all lanes.
    caught_up: AtomicBool,
    /// Told when one is added.
    pub(crate) failure: Notify,
}

impl Connection {
    pub(crate) fn has_failed(&self, db: &DbName) -> bool {
        self.failed.lock().contains_key(db)
    }

    /// The shortest pause before trying again, if any database failed.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.failed.lock().values().min().copied()
    }

    pub(crate) fn has_caught_up(&self) -> bool {
        self.caught_up.load(Ordering::Acquire)
    }

    pub(crate) fn caught_up(&self) {
        self.caught_up.store(true, Ordering::Release);
    }

    fn fail(&self, db: &DbName, retry: Duration) {
        self.failed.lock().insert(db.clone(), retry);
        self.failure.notify_one();
    }
}

/// The bytes of an LTX file.
pub(crate) enum Input {
    /// Complete.
    Memory { chunks: Vec<Bytes>, _budget: OwnedSemaphorePermit },
    /// Still arriving: chunks, then [`Pipe::End`]. When the sender goes away before that, reading fails.
    Piped { first: Vec<Bytes>, rest: mpsc::Receiver<Pipe> },
}

/// What goes through the pipe of a large file.
pub(crate) enum Pipe {
    Chunk(Bytes),
    End,
}

impl Input {
    pub(super) fn reader(self) -> InputReader {
        match self {
            Self::Memory { chunks, _budget } => InputReader {
                chunks: chunks.into_iter(),
                now: Bytes::new(),
                rest: None,
                cut: false,
                _budget: Some(_budget),
            },
            Self::Piped { first, rest } => InputReader {
                chunks: first.into_iter(),
                now: Bytes::new(),
                rest: Some(rest),
                cut: false,
                _budget: None,
            },
        }
    }
}

pub(super) struct InputReader {
    chunks: std::vec::IntoIter<Bytes>,
    now: Bytes,
    rest: Option<mpsc::Receiver<Pipe>>,
    /// The stream ended inside the file: nobody's fault here.
    cut: bool,
    _budget: Option<OwnedSemaphorePermit>,
}

impl Read for InputReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            if let Some(chunk) = self.chunks.next() {
                self.now = chunk;
                continue;
            }
            let Some(rest) = &mut self.rest else { return Ok(0) };
            match rest.blocking_recv() {
                Some(Pipe::Chunk(chunk)) => self.now = chunk,
                Some(Pipe::End) => self.rest = None,
                None => {
                    self.cut = true;
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended inside a file"));
                }
            }
        }
        let taken = self.now.len().min(out.len());
        self.now.copy_to_slice(&mut out[..taken]);
        Ok(taken)
    }
}

/// Something whose end tells.
pub(crate) type Mark = Arc<dyn Any + Send + Sync>;

/// One thing to do, in order.
pub(crate) enum Job {
    Apply {
        connection: Arc<Connection>,
        db: DbName,
        header: Header,
        input: Input,
        /// Dropped when it has been applied, or has failed and the connection knows.
        mark: Option<Mark>,
    },
    Drop {
        connection: Arc<Connection>,
        db: DbName,
    },
    /// Dropped when everything before it is done; put the same into all lanes to learn of all.
    Mark {
        _mark: Mark,
    },
}

/// What a lane works with.
pub(crate) struct LaneParts {
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) problems: Arc<Problems>,
    pub(crate) retry_first: Duration,
}

/// The lanes; the threads end when this is dropped.
pub(crate) struct Lanes {
    lanes: Vec<mpsc::Sender<Job>>,
}

impl Lanes {
    pub(crate) fn start(parts: LaneParts) -> io::Result<Self> {
        let parts = Arc::new(parts);
        let mut lanes = Vec::with_capacity(LANES);
        for number in 0..LANES {
            let (sender, mut jobs) = mpsc::channel(JOBS_MAX);
            let parts = parts.clone();
            std::thread::Builder::new().name(format!("litefs-apply-{number}")).spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    parts.run(job);
                }
            })?;
            lanes.push(sender);
        }
        Ok(Self { lanes })
    }

    fn lane(&self, db: &DbName) -> &mpsc::Sender<Job> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        db.hash(&mut hasher);
        let index = hasher.finish() % self.lanes.len() as u64;
        &self.lanes[index as usize]
    }

    /// Queues a job of one database; waits while its lane is full.
    pub(crate) async fn queue(&self, db: &DbName, job: Job) {
        // The threads live as long as this; a lane can only be gone when the process ends.
        let _ = self.lane(db).send(job).await;
    }

    /// Drops `mark` when everything queued so far is done.
    pub(crate) async fn mark(&self, mark: Mark) {
        for lane in &self.lanes {
            let _ = lane.send(Job::Mark { _mark: mark.clone() }).await;
        }
    }

    /// Waits until everything queued so far is done.
    pub(crate) async fn settle(&self) {
        let (done, settled) = oneshot::channel::<()>();
        self.mark(Arc::new(Mutex::new(done))).await;
        // Nothing is ever sent: it is the dropping that tells.
        let _ = settled.await;
    }
}

impl LaneParts {
    fn run(&self, job: Job) {
        let (connection, db, result, _mark) = match job {
            Job::Mark { .. } => return,
            Job::Apply { connection, db, header, input, mark } => {
                if connection.has_failed(&db) {
                    return;
                }
                let result = guarded(|| self.apply(&db, &header, input));
                (connection, db, result, mark)
            }
            Job::Drop { connection, db } => {
                let result = guarded(|| self.drop_database(&db));
                (connection, db, result, None)
            }
        };
        match result {
            Ok(()) => self.problems.works(&db),
            Err(cause) => {
                let retry = self.problems.failed(&db, cause, self.retry_first);
                connection.fail(&db, retry);
            }
        }
    }

    fn apply(&self, name: &DbName, header: &Header, input: Input) -> Result<(), String> {
        let db = match self.store.database(name.as_str()) {
            Some(db) => db,
            None => self.store.create(name).map_err(|error| format!("create the database: {error}"))?,
        };
        // Made here under the HALT lock, and here already.
        if header.node_id == self.store.node_id() && header.max_txid <= db.pos().txid {
            return Ok(());
        }
        let mut reader = input.reader();
        let pos = match db.apply(&mut reader) {
            Ok(pos) => pos,
            Err(_) if reader.cut => return Ok(()),
            Err(error) => return Err(explain(&error)),
        };
        let lag_ms = now_ms().saturating_sub(i64::try_from(header.timestamp_ms).unwrap_or(i64::MAX)).max(0);
        if !header.is_snapshot() {
            self.metrics.applied(lag_ms as f64 / 1e3);
        }
        tracing::debug!(db = %name, %pos, "applied");
        Ok(())
    }

    /// The primary has never heard of this database: what is here is nobody else's, and is kept aside.
    fn drop_database(&self, name: &DbName) -> Result<(), String> {
        let Some(db) = self.store.database(name.as_str()) else { return Ok(()) };
        if !db.pos().is_zero() {
            let folder = db
                .set_aside_after(Pos::ZERO)
                .map_err(|error| format!("set aside a database the primary does not know: {error}"))?;
            tracing::warn!(db = %name, folder = %folder.display(), "the primary does not know this database: set aside");
        }
        db.drop_local().map_err(|error| format!("drop the database: {error}"))
    }
}

fn explain(error: &ApplyError) -> String {
    match error {
        ApplyError::SetAside(_) => format!("{error}; make room, or raise the bound of lost+found"),
        ApplyError::Io(cause) if cause.kind() == io::ErrorKind::StorageFull => {
            format!("apply: {error}; make room in the data directory")
        }
        _ => format!("apply: {error}"),
    }
}

/// A panic in the engine costs this database a retry, not the node its lane.
fn guarded(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("apply failed unexpectedly (please report): {}", text.unwrap_or_default()))
    })
}
