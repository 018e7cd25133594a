//! A record that is too large for memory, or not known to be whole yet: written to a file of its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::append::entry_of;
use super::segment::{self, FRAME_BYTES, SEGMENT_HEADER_BYTES};
use super::{Entry, Log};
use crate::ltx::{Digest, HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
use crate::{Checksum, os};

/// Ends the name of a spool's file; opening the log removes such files.
pub(super) const SUFFIX: &str = ".spool";
/// Where the image starts in the file: room is left for what makes it a segment.
const START: u64 = SEGMENT_HEADER_BYTES + FRAME_BYTES as u64;
/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 128 << 10;
/// What is in the file is written to the disk in steps of this size, while more is being made.
const WRITE_BACK_BYTES: u64 = 4 << 20;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Takes one LTX file through [`Write`] and lets it be read again, until [`Log::adopt`] makes it the next record.
/// Dropped without that, the file is removed.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    file: Arc<File>,
    buffer: Vec<u8>,
    /// Bytes of the image already in the file.
    written: u64,
    /// Of these, how many are on their way to the disk.
    written_back: u64,
    digest: Digest,
    adopted: bool,
}

impl Log {
    /// A new empty spool beside the segments. Any number may exist.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn spool(&self) -> io::Result<Spool> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Self::segments_dir(&self.dir).join(format!("{}-{number}{SUFFIX}", std::process::id()));
        let file = Arc::new(os::open_or_create("log.spool", &path)?);
        Ok(Spool { path, file, buffer: Vec::new(), written: 0, written_back: 0, digest: Digest::new(), adopted: false })
    }
}

impl Spool {
    /// Bytes of the image so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write_back(&mut self) {
        let waiting = self.written - self.written_back;
        if waiting >= WRITE_BACK_BYTES {
            os::start_writing_back(&self.file, START + self.written_back, waiting);
            self.written_back = self.written;
        }
    }

    /// The file, and where the image starts in it; flush before reading.
    #[must_use]
    pub fn file(&self) -> (Arc<File>, u64) {
        (self.file.clone(), START)
    }

    /// Header and post-apply checksum as written. That the file is whole and valid is the writer's business.
    pub(super) fn ends(&self) -> io::Result<(Header, Checksum)> {
        let problem = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
        if !self.buffer.is_empty() || self.written < (HEADER_BYTES + TRAILER_BYTES) as u64 {
            return Err(problem("the spool does not hold a whole, flushed LTX file"));
        }
        let (mut header, mut trailer) = ([0; HEADER_BYTES], [0; TRAILER_BYTES]);
        os::read_or_zero_at(&self.file, &mut header, START)?;
        os::read_or_zero_at(&self.file, &mut trailer, START + self.written - TRAILER_BYTES as u64)?;
        let header = Header::parse(&header).map_err(|error| problem(&error.to_string()))?;
        Ok((header, Trailer::parse(&trailer).post_apply))
    }

    /// Completes the file and gives it the name of a segment.
    pub(super) fn into_segment(
        mut self,
        sequence: u64,
        header: &Header,
        post: Checksum,
        path: &Path,
    ) -> io::Result<(Arc<File>, Entry)> {
        let entry = entry_of(header, post, self.written, self.digest.value());
        let mut start = segment::segment_header(sequence).to_vec();
        let mut ltx_header = [0; HEADER_BYTES];
        os::read_or_zero_at(&self.file, &mut ltx_header, START)?;
        start.extend_from_slice(&segment::frame(self.written, post, self.digest.value(), &ltx_header));
        os::write_all_at("log.append", &self.file, &start, 0)?;
        os::rename("log.adopt", &self.path, path)?;
        self.adopted = true;
        Ok((self.file.clone(), entry))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            os::write_all_at("log.append", &self.file, bytes, START + self.written)?;
            self.digest.update(bytes);
            self.written += bytes.len() as u64;
            self.write_back();
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        os::write_all_at("log.append", &self.file, &self.buffer, START + self.written)?;
        self.digest.update(&self.buffer);
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.write_back();
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.adopted {
            // Opening the log removes what is left over.
            let _ = fs::remove_file(&self.path);
        }
    }
}
