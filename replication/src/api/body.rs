//! Response bodies written by a blocking thread.

use std::io::{self, Write};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Bytes collected before they are handed on.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces between the writer and the connection.
const PIECES_MAX: usize = 4;
/// How long a client may take nothing.
const STALL_MAX: Duration = Duration::from_secs(60);

/// The writing end.
struct BodyWriter {
    runtime: Handle,
    buffer: BytesMut,
    out: mpsc::Sender<io::Result<Bytes>>,
}

impl BodyWriter {
    fn send(&self, piece: io::Result<Bytes>) -> io::Result<()> {
        let sent = self.runtime.block_on(async { tokio::time::timeout(STALL_MAX, self.out.send(piece)).await });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client went away")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")),
        }
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE_BYTES);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.send(Ok(piece))
    }
}

/// Runs `write` on a blocking thread; its output is the body. Returns when there is something, so that a failure before
/// the first byte can still be an error status; a later one breaks the body off.
pub(crate) async fn written_by<T: Send + 'static>(
    write: impl FnOnce(&mut dyn Write) -> io::Result<T> + Send + 'static,
) -> io::Result<Body> {
    let (out, mut pieces) = mpsc::channel(PIECES_MAX);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut writer = BodyWriter { runtime, buffer: BytesMut::new(), out };
        let written = write(&mut writer).and_then(|_| writer.flush());
        if let Err(error) = written {
            let _ = writer.send(Err(error));
        }
    });
    let first = match pieces.recv().await {
        Some(Err(error)) => return Err(error),
        first => first,
    };
    let pieces = futures_util::stream::unfold((first, pieces), |(first, mut pieces)| async move {
        let piece = match first {
            Some(piece) => Some(piece),
            None => pieces.recv().await,
        };
        piece.map(|piece| (piece, (None, pieces)))
    });
    Ok(Body::from_stream(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_the_body() {
        let body = written_by(|out| (0..1000).try_for_each(|n| writeln!(out, "{n:0400}"))).await.expect("a body");
        let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("complete");
        assert_eq!(bytes.len(), 401_000);
        assert!(bytes.ends_with(b"999\n"));
    }

    #[tokio::test]
    async fn a_failure_is_an_error_before_the_first_byte_and_breaks_the_body_after() {
        let error = written_by::<()>(|_| Err(io::Error::other("no"))).await.expect_err("nothing written");
        assert_eq!(error.to_string(), "no");
        let body = written_by::<()>(|out| {
            out.write_all(&[7; 200 << 10])?;
            Err(io::Error::other("no"))
        });
        let body = body.await.expect("a body");
        assert!(axum::body::to_bytes(body, usize::MAX).await.is_err());
    }
}
