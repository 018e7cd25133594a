//! Merging a contiguous range of LTX files into one.

use std::io::{self, Read, Write};

use super::{Decoder, Encoder, Header, LtxError, Trailer};
use crate::{Checksum, Pos};

/// Files merged in one pass; each holds ~200 KiB of buffers.
pub const COMPACT_INPUTS_MAX: usize = 64;

/// One input with the page it is at.
struct Cursor<R: Read> {
    decoder: Decoder<R>,
    page: Vec<u8>,
    pgno: Option<u32>,
}

impl<R: Read> Cursor<R> {
    fn new(decoder: Decoder<R>) -> Result<Self, LtxError> {
        let page = vec![0; decoder.header().page_size as usize];
        let mut cursor = Self { decoder, page, pgno: None };
        cursor.advance()?;
        Ok(cursor)
    }

    fn advance(&mut self) -> Result<(), LtxError> {
        self.pgno = self.decoder.next_page(&mut self.page)?;
        Ok(())
    }
}

/// The header of the merged file; inputs must follow each other without a gap and have one page size.
fn merged_header<R: Read>(inputs: &[Decoder<R>], compressed: bool) -> Result<Header, LtxError> {
    let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
        return Err(LtxError::NotContiguous("there are none".into()));
    };
    for pair in inputs.windows(2) {
        let (before, after) = (pair[0].header(), pair[1].header());
        if after.min_txid != before.max_txid.next() {
            return Err(LtxError::NotContiguous(format!("{} follows {}", after.file_name(), before.file_name())));
        }
        if after.page_size != before.page_size {
            return Err(LtxError::NotContiguous(format!("the page size changes with {}", after.file_name())));
        }
    }
    let (first, last) = (first.header(), last.header());
    Ok(Header {
        compressed,
        page_size: first.page_size,
        commit: last.commit,
        min_txid: first.min_txid,
        max_txid: last.max_txid,
        timestamp_ms: last.timestamp_ms,
        pre_apply: first.pre_apply,
        ..Header::default()
    })
}

/// Merges up to [`COMPACT_INPUTS_MAX`] contiguous files (oldest first) into one: of every page the last version, without those
/// beyond the end of the database. Every input is verified; memory does not depend on the number of pages.
///
/// # Errors
/// [`LtxError::NotContiguous`], [`LtxError::TooManyInputs`], damage of an input, or an error of reading or writing.
pub fn compact<R: Read, W: Write>(
    inputs: Vec<Decoder<R>>,
    compressed: bool,
    output: W,
) -> Result<(Header, Trailer, W), LtxError> {
    if inputs.len() > COMPACT_INPUTS_MAX {
        return Err(LtxError::TooManyInputs(inputs.len()));
    }
    let header = merged_header(&inputs, compressed)?;
    let mut encoder = Encoder::new(output, &header)?;
    let mut cursors = inputs.into_iter().map(Cursor::new).collect::<Result<Vec<_>, _>>()?;
    while let Some(pgno) = cursors.iter().filter_map(|cursor| cursor.pgno).min() {
        if let Some(newest) = cursors.iter().rev().find(|cursor| cursor.pgno == Some(pgno))
            && pgno <= header.commit
        {
            encoder.write_page(pgno, &newest.page)?;
        }
        for cursor in cursors.iter_mut().filter(|cursor| cursor.pgno == Some(pgno)) {
            cursor.advance()?;
        }
    }
    let post = finish_inputs(cursors)?;
    let (trailer, output) = encoder.finish(post)?;
    Ok((header, trailer, output))
}

/// Verifies every input to its trailer and that each starts where the one before ended.
fn finish_inputs<R: Read>(cursors: Vec<Cursor<R>>) -> Result<Checksum, LtxError> {
    let mut at: Option<Pos> = None;
    for cursor in cursors {
        let header = *cursor.decoder.header();
        let (trailer, _) = cursor.decoder.finish()?;
        if at.is_some_and(|pos| pos != header.pre()) {
            return Err(LtxError::NotContiguous(format!("{} does not continue the file before", header.file_name())));
        }
        at = Some(Pos::new(header.max_txid, trailer.post_apply));
    }
    at.map(|pos| pos.checksum).ok_or_else(|| LtxError::NotContiguous("there are none".into()))
}

/// As [`compact`] for any number of files: groups are merged into temporary files first. `open` opens the input of an
/// index below `count`; `spool` makes an empty temporary file, and `rewind` turns a written one into a reader.
///
/// # Errors
/// As [`compact`], and what the closures return.
pub fn compact_spooled<R: Read, T: Read + Write, W: Write>(
    count: usize,
    open: impl Fn(usize) -> io::Result<R>,
    spool: impl Fn() -> io::Result<T>,
    rewind: impl Fn(&mut T) -> io::Result<()>,
    compressed: bool,
    output: W,
) -> Result<(Header, Trailer, W), LtxError> {
    if count <= COMPACT_INPUTS_MAX {
        let inputs = (0..count).map(|i| Decoder::new(open(i)?)).collect::<Result<Vec<_>, _>>()?;
        return compact(inputs, compressed, output);
    }
    let group = |files: std::ops::Range<usize>| -> Result<T, LtxError> {
        let inputs = files.map(|i| Decoder::new(open(i)?)).collect::<Result<Vec<_>, _>>()?;
        let (_, _, mut file) = compact(inputs, false, spool()?)?;
        rewind(&mut file)?;
        Ok(file)
    };
    let mut merged = Vec::new();
    for start in (0..count).step_by(COMPACT_INPUTS_MAX) {
        merged.push(group(start..count.min(start + COMPACT_INPUTS_MAX))?);
        if merged.len() == COMPACT_INPUTS_MAX {
            let inputs = merged.drain(..).map(Decoder::new).collect::<Result<Vec<_>, _>>()?;
            let (_, _, mut file) = compact(inputs, false, spool()?)?;
            rewind(&mut file)?;
            merged.push(file);
        }
    }
    let inputs = merged.into_iter().map(Decoder::new).collect::<Result<Vec<_>, _>>()?;
    compact(inputs, compressed, output)
}
