//! A request's header as bytes, and how its body is delimited.

use std::io::Write as _;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::merge_content_length;
use crate::headers;

/// A request without its body.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The request target, in origin form (or `*`).
    pub target: PathAndQuery,
    /// End-to-end fields, and `Connection` and `Upgrade` where they are wanted on this hop.
    pub headers: HeaderMap,
    /// Further fields, often the same ones for many requests. None of them frames the message.
    pub added: Option<Arc<[(HeaderName, HeaderValue)]>>,
}

impl RequestHead {
    /// The fields in `added`.
    pub(crate) fn added(&self) -> &[(HeaderName, HeaderValue)] {
        self.added.as_deref().unwrap_or_default()
    }
}

/// How the end of a request's body is found (RFC 9112 §6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is no body.
    Nothing,
    /// So many bytes are left.
    Length(u64),
    /// Chunks, then those trailers that the header has announced.
    Chunked(Vec<HeaderName>),
}

/// Appends the request's header to `out`. `has_body`: a body follows; without a valid `Content-Length` it goes in chunks.
pub fn encode_request(out: &mut Vec<u8>, head: &RequestHead, has_body: bool) -> BodyFraming {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.target.as_str().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let mut length = None;
    let mut is_valid = true;
    for (name, value) in &head.headers {
        // The framing is said once, here, and by us.
        if *name == header::CONTENT_LENGTH {
            length = merge_content_length(length, value);
            is_valid &= length.is_some();
        } else if *name != header::TRANSFER_ENCODING {
            push_field(out, name.as_str(), value.as_bytes());
        }
    }
    for (name, value) in head.added() {
        push_field(out, name.as_str(), value.as_bytes());
    }
    let framing = match length.filter(|_| is_valid) {
        Some(length) => {
            // Writing to memory does not fail, here and below.
            let _ = write!(out, "content-length: {length}\r\n");
            BodyFraming::Length(length)
        }
        None if !has_body => BodyFraming::Nothing,
        None => {
            push_field(out, "transfer-encoding", b"chunked");
            BodyFraming::Chunked(announced_trailers(&head.headers))
        }
    };
    out.extend_from_slice(b"\r\n");
    framing
}

fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// RFC 9110 §6.5.1: only a field that may come late is passed on as a trailer.
fn announced_trailers(headers: &HeaderMap) -> Vec<HeaderName> {
    let names = headers::list(headers, header::TRAILER).filter_map(|name| name.parse().ok());
    names.filter(|name| !headers::belongs_in_front(name)).collect()
}

/// Appends what stands before a chunk's bytes.
pub(crate) fn begin_chunk(out: &mut Vec<u8>, bytes: usize) {
    let _ = write!(out, "{bytes:x}\r\n");
}

/// Appends the last chunk and the announced ones of these trailers.
pub(crate) fn end_chunks(out: &mut Vec<u8>, announced: &[HeaderName], trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| announced.contains(name)) {
        push_field(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(fields: &[(&'static str, &'static str)], has_body: bool) -> (String, BodyFraming) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let head = RequestHead { method: Method::PUT, target: PathAndQuery::from_static("/a?b"), headers, added: None };
        let mut out = Vec::new();
        let framing = encode_request(&mut out, &head, has_body);
        (String::from_utf8(out).expect("text"), framing)
    }

    #[test]
    fn the_framing_is_said_once() {
        let (text, framing) = encode(&[("host", "a"), ("content-length", "5"), ("content-length", "5")], true);
        assert_eq!(text, "PUT /a?b HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(framing, BodyFraming::Length(5));
        let chunked = "PUT /a?b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        for fields in [&[("host", "a")][..], &[("host", "a"), ("content-length", "5"), ("content-length", "x")]] {
            let (text, framing) = encode(fields, true);
            assert_eq!((text.as_str(), framing), (chunked, BodyFraming::Chunked(vec![])));
        }
        let (text, framing) = encode(&[("host", "a"), ("transfer-encoding", "gzip")], false);
        assert_eq!((text.as_str(), framing), ("PUT /a?b HTTP/1.1\r\nhost: a\r\n\r\n", BodyFraming::Nothing));
    }

    #[test]
    fn trailers_are_those_that_were_announced_and_may_come_late() {
        let (_, framing) = encode(&[("trailer", "X-Sum, Content-Length"), ("trailer", "x-more, host")], true);
        let BodyFraming::Chunked(announced) = framing else { panic!("{framing:?}") };
        let names: Vec<_> = announced.iter().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-sum", "x-more"]);
        let trailers = [("x-sum", "1"), ("x-other", "2")]
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut out = Vec::new();
        begin_chunk(&mut out, 26);
        end_chunks(&mut out, &announced, Some(&HeaderMap::from_iter(trailers)));
        assert_eq!(out, b"1a\r\n0\r\nx-sum: 1\r\n\r\n");
    }
}
