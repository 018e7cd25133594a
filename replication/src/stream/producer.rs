//! Turns what a replica needs of one database into stream bytes, on a blocking thread.

use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};
use litefs::database::{Next, Record, RecordBody};
use litefs::{Database, DbName, Pos};
use tokio::sync::mpsc;

use crate::wire::{Frame, end_ltx, put_chunks};

/// Bytes collected before they are handed on.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces between the producer and the stream's task.
pub(crate) const PIECES_MAX: usize = 4;

/// Bytes of a stream.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// The LTX frame goes on after these bytes: no other frame may come between.
    pub(crate) mid_frame: bool,
    /// LTX frames that begin in these bytes.
    pub(crate) frames: u64,
}

/// Writes LTX frames of one database into a channel of [`Piece`]s.
struct LtxFrames<'a> {
    name: &'a DbName,
    buffer: BytesMut,
    inside: bool,
    frames: u64,
    out: &'a mpsc::Sender<Piece>,
}

impl<'a> LtxFrames<'a> {
    fn new(name: &'a DbName, out: &'a mpsc::Sender<Piece>) -> Self {
        Self { name, buffer: BytesMut::new(), inside: false, frames: 0, out }
    }

    fn begin(&mut self) {
        Frame::Ltx { name: self.name.clone() }.encode(&mut self.buffer);
        self.inside = true;
        self.frames += 1;
    }

    fn end(&mut self) -> io::Result<()> {
        end_ltx(&mut self.buffer);
        self.inside = false;
        if self.buffer.len() >= PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    fn record(&mut self, record: &Record) -> io::Result<()> {
        self.begin();
        match &record.body {
            RecordBody::Memory(bytes) => self.write_all(bytes)?,
            RecordBody::File { file, offset, len } => {
                let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(*len).unwrap_or(PIECE_BYTES))];
                let (mut at, end) = (*offset, offset.saturating_add(*len));
                while at < end {
                    let size = piece.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                    file.read_exact_at(&mut piece[..size], at)?;
                    self.write_all(&piece[..size])?;
                    at += size as u64;
                }
            }
        }
        self.end()
    }
}

impl Write for LtxFrames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE_BYTES);
        put_chunks(&mut self.buffer, &bytes[..taken]);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Piece { bytes: self.buffer.split().freeze(), mid_frame: self.inside, frames: self.frames };
        self.frames = 0;
        self.out.blocking_send(piece).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the stream has ended"))
    }
}

/// Sends what brings a replica from `from` to our position: records, or a snapshot. Returns the position it then has.
/// One pass: what is committed meanwhile is left to the next.
pub(crate) fn produce(db: &Database, from: Pos, out: &mpsc::Sender<Piece>) -> io::Result<Pos> {
    let mut frames = LtxFrames::new(db.name(), out);
    let mut reached = from;
    match db.next_after(from)? {
        Next::UpToDate => return Ok(from),
        Next::Records(records) => {
            for record in records {
                let record = record?;
                frames.record(&record)?;
                reached = record.post;
            }
        }
        Next::SnapshotNeeded => {
            frames.begin();
            // Buffered, so that the page headers do not become chunks of their own.
            let mut buffered = io::BufWriter::with_capacity(crate::wire::CHUNK_BYTES, &mut frames);
            reached = db.snapshot(&mut buffered)?;
            buffered.flush()?;
            drop(buffered);
            frames.end()?;
        }
    }
    frames.flush()?;
    Ok(reached)
}
