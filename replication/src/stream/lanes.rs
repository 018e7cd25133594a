//! The threads that apply: records of one database always go through the same lane, in order; different databases do
//! not wait for each other (up to the number of lanes). Records that wait together are applied together.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use litefs::database::{ApplyError, Incoming};
use litefs::ltx::{Header, Unpacker};
use litefs::{Database, DbName, Pos, Store};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

use super::now_ms;
use crate::metrics::Metrics;
use crate::problems::{Failure, Problems};

/// Threads.
const LANES: usize = 4;
/// Batches of jobs waiting per lane; what the records in them take is bounded by the receiver's budget.
const BATCHES_MAX: usize = 16;
/// A lane with this many jobs at hand looks for no more before it has done them.
const JOBS_MAX: usize = 512;
/// Verified records that wait for being applied take up to this many bytes of pages.
const VERIFIED_BYTES_MAX: usize = 4 << 20;

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
    Memory { image: Bytes, budget: OwnedSemaphorePermit },
    /// Still arriving: chunks, then [`Pipe::End`]. When the sender goes away before that, reading fails.
    Piped { first: Vec<Bytes>, rest: mpsc::Receiver<Pipe> },
}

/// What goes through the pipe of a large file.
pub(crate) enum Pipe {
    Chunk(Bytes),
    End,
}

/// A file that is still arriving.
pub(super) struct PipeReader {
    chunks: std::vec::IntoIter<Bytes>,
    now: Bytes,
    rest: Option<mpsc::Receiver<Pipe>>,
    /// The stream ended inside the file: nobody's fault here.
    cut: bool,
}

impl PipeReader {
    pub(super) fn new(first: Vec<Bytes>, rest: mpsc::Receiver<Pipe>) -> Self {
        Self { chunks: first.into_iter(), now: Bytes::new(), rest: Some(rest), cut: false }
    }
}

impl Read for PipeReader {
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

impl Job {
    /// Whether it is a record in memory of this database, from this connection.
    fn joins(&self, connection: &Arc<Connection>, db: &DbName) -> bool {
        match self {
            Self::Apply { connection: its, db: name, input: Input::Memory { .. }, .. } => {
                Arc::ptr_eq(its, connection) && name == db
            }
            _ => false,
        }
    }

    fn waiting(self) -> Option<Waiting> {
        match self {
            Self::Apply { header, input: Input::Memory { image, budget }, mark, .. } => {
                Some(Waiting { header, image, _budget: budget, _mark: mark })
            }
            _ => None,
        }
    }
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
    lanes: Vec<mpsc::Sender<Vec<Job>>>,
}

/// Jobs that arrived together, for each lane in order: handed over at once, so that a lane is woken once for all of them.
#[derive(Default)]
pub(crate) struct Batch {
    by_lane: [Vec<Job>; LANES],
}

impl Batch {
    pub(crate) fn push(&mut self, db: &DbName, job: Job) {
        self.by_lane[lane_of(db)].push(job);
    }
}

fn lane_of(db: &DbName) -> usize {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    db.hash(&mut hasher);
    (hasher.finish() % LANES as u64) as usize
}

impl Lanes {
    pub(crate) fn start(parts: LaneParts) -> io::Result<Self> {
        let parts = Arc::new(parts);
        let mut lanes = Vec::with_capacity(LANES);
        for number in 0..LANES {
            let (sender, mut batches) = mpsc::channel::<Vec<Job>>(BATCHES_MAX);
            let parts = parts.clone();
            std::thread::Builder::new().name(format!("litefs-apply-{number}")).spawn(move || {
                let mut unpacker = Unpacker::new();
                while let Some(mut jobs) = batches.blocking_recv() {
                    while jobs.len() < JOBS_MAX
                        && let Ok(more) = batches.try_recv()
                    {
                        jobs.extend(more);
                    }
                    parts.run(jobs, &mut unpacker);
                }
            })?;
            lanes.push(sender);
        }
        Ok(Self { lanes })
    }

    /// Queues what a batch holds and empties it; waits while a lane is full.
    pub(crate) async fn queue(&self, batch: &mut Batch) {
        for (lane, jobs) in self.lanes.iter().zip(&mut batch.by_lane) {
            if !jobs.is_empty() {
                // The threads live as long as this; a lane can only be gone when the process ends.
                let _ = lane.send(std::mem::take(jobs)).await;
            }
        }
    }

    /// Drops `mark` when everything queued so far is done.
    pub(crate) async fn mark(&self, mark: Mark) {
        for lane in &self.lanes {
            let _ = lane.send(vec![Job::Mark { _mark: mark.clone() }]).await;
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

/// A record in memory, on its way into its database.
struct Waiting {
    header: Header,
    image: Bytes,
    /// Both dropped when it has been applied, or has failed and the connection knows.
    _budget: OwnedSemaphorePermit,
    _mark: Option<Mark>,
}

impl LaneParts {
    fn run(&self, jobs: Vec<Job>, unpacker: &mut Unpacker) {
        let mut jobs = jobs.into_iter().peekable();
        while let Some(job) = jobs.next() {
            match job {
                Job::Mark { .. } => {}
                Job::Drop { connection, db } => {
                    self.note(&connection, &db, guarded(|| self.drop_database(&db)));
                }
                Job::Apply { connection, db, header, input: Input::Piped { first, rest }, mark: _mark } => {
                    if !connection.has_failed(&db) {
                        self.note(&connection, &db, guarded(|| self.apply_piped(&db, &header, first, rest)));
                    }
                }
                Job::Apply { connection, db, header, input: Input::Memory { image, budget }, mark } => {
                    let mut waiting = vec![Waiting { header, image, _budget: budget, _mark: mark }];
                    waiting.extend(std::iter::from_fn(|| jobs.next_if(|job| job.joins(&connection, &db))?.waiting()));
                    if !connection.has_failed(&db) {
                        self.note(&connection, &db, guarded(|| self.apply_waiting(&db, &waiting, unpacker)));
                    }
                }
            }
        }
    }

    /// Remembers how it went.
    fn note(&self, connection: &Connection, db: &DbName, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.problems.works(db),
            Err(failure) => {
                let retry = self.problems.failed(db, failure, self.retry_first);
                connection.fail(db, retry);
            }
        }
    }

    fn database(&self, name: &DbName) -> Result<Arc<Database>, String> {
        match self.store.database(name.as_str()) {
            Some(db) => Ok(db),
            None => self.store.create(name).map_err(|error| format!("create the database: {error}")),
        }
    }

    /// Made here under the HALT lock, and here already.
    fn is_here(&self, db: &Database, header: &Header) -> bool {
        header.node_id == self.store.node_id() && header.max_txid <= db.pos().txid
    }

    /// Applies records that wait for the same database: verified first, then many at once.
    fn apply_waiting(&self, name: &DbName, waiting: &[Waiting], unpacker: &mut Unpacker) -> Result<(), Failure> {
        let db = self.database(name)?;
        let mut verified = Vec::with_capacity(waiting.len());
        let mut bytes = 0;
        for record in waiting {
            if self.is_here(&db, &record.header) {
                continue;
            }
            match Incoming::in_memory(&record.image, unpacker) {
                Ok(record) => {
                    bytes += record.contents_len().unwrap_or_default();
                    verified.push(record);
                }
                Err(error) => {
                    self.apply_verified(&db, &mut verified)?;
                    return Err(explain(&error));
                }
            }
            if bytes >= VERIFIED_BYTES_MAX {
                self.apply_verified(&db, &mut verified)?;
                bytes = 0;
            }
        }
        self.apply_verified(&db, &mut verified)
    }

    fn apply_verified(&self, db: &Arc<Database>, records: &mut Vec<Incoming>) -> Result<(), Failure> {
        let (applied, result) = db.apply_all(records);
        for record in records.drain(..).take(applied) {
            self.applied(record.header());
        }
        tracing::debug!(db = %db.name(), pos = %db.pos(), records = applied, "applied");
        result.map_err(|error| explain(&error))
    }

    /// Applies a file that is still arriving.
    fn apply_piped(
        &self,
        name: &DbName,
        header: &Header,
        first: Vec<Bytes>,
        rest: mpsc::Receiver<Pipe>,
    ) -> Result<(), Failure> {
        let db = self.database(name)?;
        if self.is_here(&db, header) {
            return Ok(());
        }
        let mut reader = PipeReader::new(first, rest);
        let pos = match db.apply(&mut reader) {
            Ok(pos) => pos,
            Err(_) if reader.cut => return Ok(()),
            Err(error) => return Err(explain(&error)),
        };
        self.applied(header);
        tracing::debug!(db = %name, %pos, "applied");
        Ok(())
    }

    fn applied(&self, header: &Header) {
        if !header.is_snapshot() {
            let timestamp_ms = i64::try_from(header.timestamp_ms).unwrap_or(i64::MAX);
            self.metrics.applied(now_ms().saturating_sub(timestamp_ms).max(0) as f64 / 1e3);
        }
    }

    /// The primary has never heard of this database: what is here is nobody else's, and is kept aside.
    fn drop_database(&self, name: &DbName) -> Result<(), Failure> {
        let Some(db) = self.store.database(name.as_str()) else { return Ok(()) };
        if !db.pos().is_zero() {
            let folder = db
                .set_aside_after(Pos::ZERO)
                .map_err(|error| format!("set aside a database the primary does not know: {error}"))?;
            tracing::warn!(db = %name, folder = %folder.display(), "the primary does not know this database: set aside");
        }
        db.drop_local().map_err(|error| format!("drop the database: {error}").into())
    }
}

fn explain(error: &ApplyError) -> Failure {
    match error {
        ApplyError::Damaged(_) => return Failure::damaged(format!("apply: {error}")),
        ApplyError::SetAside(_) => format!("{error}; make room, or raise the bound of lost+found"),
        ApplyError::Io(cause) if cause.kind() == io::ErrorKind::StorageFull => {
            format!("apply: {error}; make room in the data directory")
        }
        _ => format!("apply: {error}"),
    }
    .into()
}

/// A panic in the engine costs this database a retry, not the node its lane.
fn guarded(work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("apply failed unexpectedly (please report): {}", text.unwrap_or_default()).into())
    })
}
