//! Cuts the bytes of a stream, however they arrive, into frames and chunks.

use bytes::{Buf, Bytes, BytesMut};

use super::{Frame, WireError};

/// What a stream consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A frame; after [`Frame::Ltx`] come its chunks.
    Frame(Frame),
    /// The next piece of the current LTX file, never empty.
    Chunk(Bytes),
    /// The current LTX file is complete.
    LtxEnd,
}

/// An incremental decoder: [`push`](Self::push) what arrived, take items until there is none.
/// After an error the stream is of no more use.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    buffer: BytesMut,
    in_ltx: bool,
}

impl StreamDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the stream may end here without having lost something.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        !self.in_ltx && self.buffer.is_empty()
    }

    /// The next item, `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are not a stream.
    pub fn next_item(&mut self) -> Result<Option<Item>, WireError> {
        if self.in_ltx { Ok(self.next_chunk()) } else { self.next_frame() }
    }

    fn next_frame(&mut self) -> Result<Option<Item>, WireError> {
        let mut rest = &self.buffer[..];
        let Some(frame) = Frame::take(&mut rest)? else { return Ok(None) };
        let taken = self.buffer.len() - rest.len();
        self.buffer.advance(taken);
        self.in_ltx = matches!(frame, Frame::Ltx { .. });
        Ok(Some(Item::Frame(frame)))
    }

    fn next_chunk(&mut self) -> Option<Item> {
        let len = u16::from_be_bytes(*self.buffer.first_chunk::<2>()?) as usize;
        if self.buffer.len() < 2 + len {
            return None;
        }
        self.buffer.advance(2);
        if len == 0 {
            self.in_ltx = false;
            return Some(Item::LtxEnd);
        }
        Some(Item::Chunk(self.buffer.split_to(len).freeze()))
    }
}
