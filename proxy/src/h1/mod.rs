//! HTTP/1.1 towards the application and the primary's proxy: messages to bytes and bytes to messages (RFC 9112), without
//! any I/O.
//!
//! Clients are served by hyper. Towards upstreams the proxy has to know what hyper's client keeps to itself: whether any
//! byte of a request has left, whether its body has been touched, whether anything of an answer has come. That decides what
//! may be sent a second time. Also, hyper's client half was more than a third of what a request cost.

mod answer;
mod body;
mod request;

pub use answer::{AnswerHead, may_hold_answer, parse_answer};
pub use body::{BodyDecoder, Part};
pub use request::{BodyFraming, RequestHead, encode_request};
pub(crate) use request::{begin_chunk, end_chunks};

use http::HeaderValue;
use thiserror::Error;

/// An answer that does not follow RFC 9112, or is larger than anything this proxy passes on. The connection it came on
/// cannot be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not an answer: {0}")]
pub struct BadAnswer(pub(crate) &'static str);

/// Reads a `Content-Length`: digits only; repeated, alone or in a list, it must always say the same (RFC 9110 §8.6).
/// `known` is what earlier fields of the message said. `None`: not valid.
fn merge_content_length(known: Option<u64>, value: &HeaderValue) -> Option<u64> {
    let mut known = known;
    for element in value.as_bytes().split(|&b| b == b',') {
        let element = element.trim_ascii();
        if element.is_empty() || !element.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let length: u64 = std::str::from_utf8(element).ok()?.parse().ok()?;
        if known.is_some_and(|known| known != length) {
            return None;
        }
        known = Some(length);
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_length_is_one_number() {
        let read = |values: &[&'static str]| {
            values
                .iter()
                .try_fold(None, |known, value| merge_content_length(known, &HeaderValue::from_static(value)).map(Some))
        };
        assert_eq!(read(&["5"]), Some(Some(5)));
        assert_eq!(read(&["5", "5, 5"]), Some(Some(5)));
        assert_eq!(read(&["18446744073709551615"]), Some(Some(u64::MAX)));
        for bad in [&["5", "6"][..], &["5,6"], &["+5"], &["-1"], &[""], &["5,"], &["0x5"], &["18446744073709551616"]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
