//! Checking a whole LTX file.

use std::io::Read;

use super::{Decoder, Header, LtxError, Trailer};
use crate::Pos;

/// What a verified file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Its header.
    pub header: Header,
    /// Its trailer.
    pub trailer: Trailer,
    /// How many pages it holds.
    pub pages: u32,
}

impl Summary {
    /// The position after it.
    #[must_use]
    pub fn post(&self) -> Pos {
        Pos::new(self.header.max_txid, self.trailer.post_apply)
    }
}

/// Reads one LTX file from its header to the end of its trailer and checks every rule. What follows stays unread.
///
/// # Errors
/// The first rule broken, or the reader's error.
pub fn verify(reader: impl Read) -> Result<Summary, LtxError> {
    let mut decoder = Decoder::new(reader)?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size as usize];
    let mut pages = 0;
    while decoder.next_page(&mut page)?.is_some() {
        pages += 1;
    }
    let (trailer, _) = decoder.finish()?;
    Ok(Summary { header, trailer, pages })
}
