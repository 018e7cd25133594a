//! An answer's body from bytes: where it ends, and what is in between.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Status;

use super::BadAnswer;

/// Most bytes of a line that begins a chunk; its extensions are not used by anybody.
const CHUNK_LINE_BYTES_MAX: usize = 4 << 10;
/// Most bytes of all trailers.
const TRAILER_BYTES_MAX: usize = 16 << 10;
const TRAILERS_MAX: usize = 64;

/// Finds the end of a body (RFC 9112 §6 and §7.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyDecoder(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes are to come.
    Length(u64),
    /// A line with a chunk's size is to come.
    ChunkSize,
    /// So many bytes of a chunk are to come.
    Chunk(u64),
    /// The end of line behind a chunk is to come.
    ChunkEnd,
    Trailers,
    /// The body ends with the connection.
    UntilClose,
    End,
}

/// What comes next in a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of it, at least one.
    Data(Bytes),
    /// Its trailers, at least one; it has ended.
    Trailers(HeaderMap),
    /// Its end, also if asked again.
    End,
    /// More must be read first.
    More,
}

impl BodyDecoder {
    /// Of a body of so many bytes.
    #[must_use]
    pub fn length(bytes: u64) -> Self {
        Self(if bytes == 0 { State::End } else { State::Length(bytes) })
    }

    /// Of a body in chunks.
    #[must_use]
    pub fn chunked() -> Self {
        Self(State::ChunkSize)
    }

    /// Of a body that ends with its connection.
    #[must_use]
    pub fn until_close() -> Self {
        Self(State::UntilClose)
    }

    /// Whether there is nothing more to come.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0 == State::End
    }

    /// How many bytes are to come, if that is known.
    #[must_use]
    pub fn bytes_left(&self) -> Option<u64> {
        match self.0 {
            State::End => Some(0),
            State::Length(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Takes the next part of the body from the front of `input`.
    ///
    /// # Errors
    /// When the chunks are not chunks, or the trailers too large.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Part, BadAnswer> {
        loop {
            match self.0 {
                State::End => return Ok(Part::End),
                _ if input.is_empty() => return Ok(Part::More),
                State::UntilClose => return Ok(Part::Data(input.split().freeze())),
                State::Length(left) => return Ok(self.take(input, left, State::Length, State::End)),
                State::Chunk(left) => return Ok(self.take(input, left, State::Chunk, State::ChunkEnd)),
                State::ChunkSize => match chunk_size(input)? {
                    Some(size) => self.0 = if size == 0 { State::Trailers } else { State::Chunk(size) },
                    None => return Ok(Part::More),
                },
                State::ChunkEnd => match input.get(..2) {
                    Some(b"\r\n") => {
                        input.advance(2);
                        self.0 = State::ChunkSize;
                    }
                    Some(_) => return Err(BadAnswer("a chunk longer than it says")),
                    None => return Ok(Part::More),
                },
                State::Trailers => {
                    let Some(trailers) = trailers(input)? else { return Ok(Part::More) };
                    self.0 = State::End;
                    return Ok(if trailers.is_empty() { Part::End } else { Part::Trailers(trailers) });
                }
            }
        }
    }

    fn take(&mut self, input: &mut BytesMut, left: u64, rest: fn(u64) -> State, end: State) -> Part {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let left = left - count as u64;
        self.0 = if left == 0 { end } else { rest(left) };
        Part::Data(input.split_to(count).freeze())
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// When the body should have gone on.
    pub fn close(&mut self) -> Result<(), BadAnswer> {
        match self.0 {
            State::End => Ok(()),
            State::UntilClose => {
                self.0 = State::End;
                Ok(())
            }
            _ => Err(BadAnswer("its body ended too early")),
        }
    }
}

/// Takes the line that begins a chunk.
fn chunk_size(input: &mut BytesMut) -> Result<Option<u64>, BadAnswer> {
    // The parser takes an empty line for a size of zero.
    if !input.first().is_some_and(u8::is_ascii_hexdigit) {
        return Err(BadAnswer("a bad chunk size"));
    }
    match httparse::parse_chunk_size(input).map_err(|_| BadAnswer("a bad chunk size"))? {
        Status::Complete((length, size)) if length <= CHUNK_LINE_BYTES_MAX => {
            input.advance(length);
            Ok(Some(size))
        }
        Status::Partial if input.len() <= CHUNK_LINE_BYTES_MAX => Ok(None),
        Status::Complete(_) | Status::Partial => Err(BadAnswer("chunk extensions that are too long")),
    }
}

/// Takes the trailers and the empty line behind them.
fn trailers(input: &mut BytesMut) -> Result<Option<HeaderMap>, BadAnswer> {
    if input.starts_with(b"\r\n") {
        input.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let (length, fields) = match httparse::parse_headers(input, &mut fields).map_err(|_| BadAnswer("bad trailers"))? {
        Status::Complete(complete) if complete.0 <= TRAILER_BYTES_MAX => complete,
        Status::Partial if input.len() <= TRAILER_BYTES_MAX => return Ok(None),
        Status::Complete(_) | Status::Partial => return Err(BadAnswer("trailers that are too long")),
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else { return Err(BadAnswer("bad trailers")) };
        trailers.append(name, value);
    }
    input.advance(length);
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a decoder makes of bytes that arrive in pieces: data, trailers, what is left; or what is wrong.
    type Decoded = Result<(Vec<u8>, HeaderMap, Vec<u8>, bool), BadAnswer>;

    fn decode(mut decoder: BodyDecoder, pieces: &[&[u8]]) -> Decoded {
        let (mut input, mut data, mut trailers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
        let mut pieces = pieces.iter();
        loop {
            match decoder.next(&mut input)? {
                Part::Data(bytes) => {
                    assert!(!bytes.is_empty());
                    data.extend_from_slice(&bytes);
                }
                Part::Trailers(fields) => trailers = fields,
                Part::End => break,
                Part::More => match pieces.next() {
                    Some(piece) => input.extend_from_slice(piece),
                    None => {
                        decoder.close()?;
                    }
                },
            }
        }
        let rest = [&input[..], &pieces.copied().collect::<Vec<_>>().concat()].concat();
        Ok((data, trailers, rest, decoder.has_ended()))
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_left() {
        let text = b"4;ext=\"x\"\r\nWiki\r\n0005 \r\npedia\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\nX-sum: 2\r\n\r\nNEXT";
        let (data, trailers, rest, ended) = decode(BodyDecoder::chunked(), &[text]).expect("valid");
        assert_eq!((&data[..], &rest[..], ended), (&b"Wikipedia0123456789"[..], &b"NEXT"[..], true));
        assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["1", "2"]);
        let (data, trailers, rest, _) = decode(BodyDecoder::chunked(), &[b"0\r\n\r\nNEXT"]).expect("valid");
        assert!(data.is_empty() && trailers.is_empty() && rest == b"NEXT");
    }

    #[test]
    fn other_bodies_end_by_length_or_with_the_connection() {
        let (data, _, rest, _) = decode(BodyDecoder::length(3), &[b"ab", b"cNEXT"]).expect("valid");
        assert_eq!((&data[..], &rest[..]), (&b"abc"[..], &b"NEXT"[..]));
        let (data, ..) = decode(BodyDecoder::until_close(), &[b"ab", b"c"]).expect("valid");
        assert_eq!(data, b"abc");
        assert!(decode(BodyDecoder::length(0), &[]).is_ok() && decode(BodyDecoder::length(4), &[b"abc"]).is_err());
    }

    #[test]
    fn what_are_no_chunks_is_refused() {
        let long = format!("1;{}", "x".repeat(CHUNK_LINE_BYTES_MAX));
        let trailer = format!("0\r\nX: {}", "x".repeat(TRAILER_BYTES_MAX));
        let many = format!("0\r\n{}\r\n", "X: 1\r\n".repeat(TRAILERS_MAX + 1));
        for bad in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "1\nx\r\n",
            "1\rx",
            "1 2\r\n",
            "10000000000000000\r\n",
            "1\r\nxy\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n",
            "3\r\nab",
            &long,
            &format!("{long}\r\nx\r\n"),
            &trailer,
            &format!("{trailer}\r\n\r\n"),
            &many,
        ] {
            assert!(decode(BodyDecoder::chunked(), &[bad.as_bytes()]).is_err(), "{:?}", bad.get(..40).unwrap_or(bad));
        }
    }

    proptest! {
        #[test]
        fn how_bytes_arrive_does_not_matter(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            trailers in 0..3_usize,
            cuts in proptest::collection::vec(1..20_usize, 1..40),
            garbage in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n");
            text.extend_from_slice("X-T: 1\r\n".repeat(trailers).as_bytes());
            text.extend_from_slice(b"\r\nNEXT");
            if let Some((at, byte)) = garbage {
                let at = at.index(text.len());
                text[at] = byte;
            }
            let mut pieces = Vec::new();
            let mut left = &text[..];
            for cut in cuts.iter().cycle() {
                if left.is_empty() {
                    break;
                }
                let (piece, rest) = left.split_at((*cut).min(left.len()));
                pieces.push(piece);
                left = rest;
            }
            let whole = decode(BodyDecoder::chunked(), &[&text]);
            prop_assert_eq!(decode(BodyDecoder::chunked(), &pieces).is_ok(), whole.is_ok());
            if let Ok(whole) = whole {
                prop_assert_eq!(decode(BodyDecoder::chunked(), &pieces), Ok(whole.clone()));
                if garbage.is_none() {
                    prop_assert_eq!((whole.0, whole.2), (chunks.concat(), b"NEXT".to_vec()));
                }
            }
        }
    }
}
