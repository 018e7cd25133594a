//! An answer's header from bytes.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::{BadAnswer, BodyDecoder, merge_content_length};
use crate::connection::HEADERS_READ_MAX;

/// Most bytes of an answer's header.
const HEAD_BYTES_MAX: usize = 256 << 10;

/// An answer without its body.
#[derive(Debug)]
pub struct AnswerHead {
    /// The status.
    pub status: StatusCode,
    /// What the upstream calls that status, if it is not the usual phrase.
    pub reason: Option<ReasonPhrase>,
    /// All fields; `Content-Length` at most once, and not beside chunks.
    pub headers: HeaderMap,
    /// Finds the body's end.
    pub body: BodyDecoder,
    /// Whether the upstream takes another request on this connection, once the body has ended.
    pub keep_alive: bool,
}

/// Whether it is worth while to look for an answer's header in `input`, of which the first `seen` bytes were looked at
/// before, in vain: a header that comes byte by byte is not parsed as often.
#[must_use]
pub fn may_hold_answer(input: &[u8], seen: usize) -> bool {
    if seen == 0 || input.len() > HEAD_BYTES_MAX {
        return !input.is_empty();
    }
    let news = input.get(seen.saturating_sub(3)..).unwrap_or_default();
    news.windows(2).any(|end| end == b"\n\n") || news.windows(3).any(|end| end == b"\n\r\n")
}

/// Takes an answer's header from the front of `input`, also an interim one (1xx). `None`: it is not all there yet;
/// nothing has been taken. `method` is the request's.
///
/// # Errors
/// When what is there can never become an answer.
pub fn parse_answer(input: &mut BytesMut, method: &Method) -> Result<Option<AnswerHead>, BadAnswer> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_READ_MAX];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut answer, input, &mut fields);
    let length = match parsed.map_err(describe)? {
        Status::Complete(length) if length <= HEAD_BYTES_MAX => length,
        Status::Partial if input.len() <= HEAD_BYTES_MAX => return Ok(None),
        Status::Complete(_) | Status::Partial => return Err(BadAnswer("its header is too large")),
    };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(BadAnswer("a bad status"))?;
    let is_http_11 = answer.version == Some(1);
    // (The parser gives an empty phrase in place of one that is not ASCII.)
    let reason = answer.reason.filter(|&reason| status.canonical_reason() != Some(reason));
    let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
    let within = |part: &[u8]| {
        let start = part.as_ptr().addr().wrapping_sub(input.as_ptr().addr());
        // What is empty need not lie in the input.
        if part.is_empty() { 0..0 } else { start..start + part.len() }
    };
    let places = answer.headers.iter().map(|field| (within(field.name.as_bytes()), within(field.value)));
    let places: Vec<_> = places.collect();
    let head = input.split_to(length).freeze();
    read_fields(&head, &places, status, is_http_11, method).map(|answer| Some(AnswerHead { reason, ..answer }))
}

/// What the fields say, of themselves and of the message.
fn read_fields(
    head: &Bytes,
    places: &[(Range<usize>, Range<usize>)],
    status: StatusCode,
    is_http_11: bool,
    method: &Method,
) -> Result<AnswerHead, BadAnswer> {
    let mut headers = HeaderMap::with_capacity(places.len() + 4);
    let (mut length, mut is_chunked, mut is_coded) = (None, false, false);
    let (mut close, mut keep_alive) = (false, is_http_11);
    for (name, value) in places {
        let name = head.get(name.clone()).and_then(|name| HeaderName::from_bytes(name).ok());
        let name = name.ok_or(BadAnswer("a bad field name"))?;
        let value = head.slice(value.clone());
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| BadAnswer("a bad field value"))?;
        if name == header::CONTENT_LENGTH {
            let merged = merge_content_length(length, &value).ok_or(BadAnswer("a bad Content-Length"))?;
            if length.replace(merged).is_none() {
                headers.append(name, if value.as_bytes().contains(&b',') { merged.into() } else { value });
            }
            continue;
        } else if name == header::TRANSFER_ENCODING {
            let coding = value.as_bytes().trim_ascii();
            is_chunked |= coding.eq_ignore_ascii_case(b"chunked");
            is_coded |= ![&b"chunked"[..], b"identity"].iter().any(|known| coding.eq_ignore_ascii_case(known));
        } else if name == header::CONNECTION {
            let mut options = value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii);
            close |= options.clone().any(|option| option.eq_ignore_ascii_case(b"close"));
            keep_alive |= options.any(|option| option.eq_ignore_ascii_case(b"keep-alive"));
        }
        headers.append(name, value);
    }
    if is_chunked && length.is_some() {
        // RFC 9112 §6.3: the chunks count; something between us may have seen it otherwise.
        headers.remove(header::CONTENT_LENGTH);
        close = true;
    }
    let has_body = !(*method == Method::HEAD || status.is_informational() || matches!(status.as_u16(), 204 | 304));
    if has_body && (is_coded || is_chunked && !is_http_11) {
        // We offer no other coding, and could not pass it on.
        return Err(BadAnswer("a Transfer-Encoding other than chunked"));
    }
    let body = match (has_body, is_chunked, length) {
        (false, ..) => BodyDecoder::length(0),
        (true, true, _) => BodyDecoder::chunked(),
        (true, false, Some(length)) => BodyDecoder::length(length),
        (true, false, None) => BodyDecoder::until_close(),
    };
    Ok(AnswerHead { status, reason: None, headers, body, keep_alive: keep_alive && !close })
}

fn describe(error: httparse::Error) -> BadAnswer {
    BadAnswer(match error {
        httparse::Error::HeaderName => "a bad field name",
        httparse::Error::HeaderValue => "a bad field value",
        httparse::Error::NewLine => "a bad end of line",
        httparse::Error::Status => "a bad status",
        httparse::Error::Token => "no status line",
        httparse::Error::TooManyHeaders => "too many header fields",
        httparse::Error::Version => "a version other than HTTP/1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<AnswerHead>, BadAnswer> {
        parse_answer(&mut BytesMut::from(text), &Method::GET)
    }

    fn parsed(text: &str) -> AnswerHead {
        parse(text).expect("valid").expect("complete")
    }

    #[test]
    fn a_header_is_taken_whole_or_not_at_all() {
        let text = "HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nX-A: 1\r\nx-a:  2 \r\n\r\n";
        let mut input = BytesMut::new();
        for byte in text.bytes() {
            assert!(parse_answer(&mut input, &Method::GET).expect("valid so far").is_none());
            assert!(input.len() < 2 || !may_hold_answer(&input, input.len() - 1));
            input.extend_from_slice(&[byte]);
        }
        assert!((0..input.len()).all(|seen| may_hold_answer(&input, seen)));
        input.extend_from_slice(b"abc");
        let head = parse_answer(&mut input, &Method::GET).expect("valid").expect("complete");
        assert_eq!((&input[..], head.status, head.keep_alive), (&b"abc"[..], StatusCode::OK, true));
        assert_eq!(head.reason.expect("a reason").as_bytes(), b"Fine");
        assert_eq!(head.body, BodyDecoder::length(3));
        let values: Vec<_> = head.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(parsed("HTTP/1.1 200 OK\r\n\r\n").reason, None);
        for text in
            ["HTTP/1.1 200 \u{e4}\r\nX-Empty:\r\nX-Blank: \r\n\r\n", "HTTP/1.1 200\r\nX-Empty:\r\nX-Blank: \r\n\r\n"]
        {
            let head = parsed(text);
            assert_eq!(head.reason.expect("not the usual one").as_bytes(), b"");
            assert_eq!((head.headers["x-empty"].as_bytes(), head.headers["x-blank"].as_bytes()), (&b""[..], &b""[..]));
        }
    }

    #[test]
    fn the_body_ends_where_rfc_9112_says() {
        let body = |fields: &str| parsed(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).body;
        assert_eq!(body(""), BodyDecoder::until_close());
        assert_eq!(body("content-length: 0\r\n"), BodyDecoder::length(0));
        assert_eq!(body("transfer-encoding: Chunked\r\n"), BodyDecoder::chunked());
        for (status, method) in [(204, Method::GET), (304, Method::GET), (103, Method::GET), (200, Method::HEAD)] {
            let text = format!("HTTP/1.1 {status} x\r\nContent-Length: 7\r\n\r\n");
            let head = parse_answer(&mut BytesMut::from(text.as_str()), &method).expect("valid").expect("complete");
            assert_eq!(head.body, BodyDecoder::length(0), "{status} {method}");
            assert_eq!(head.headers["content-length"], "7");
        }
        let both = parsed("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!((both.body, both.keep_alive), (BodyDecoder::chunked(), false));
        assert!(!both.headers.contains_key("content-length"));
        for twice in ["Content-Length: 7\r\nContent-Length: 7\r\n", "Content-Length: 7, 7\r\n"] {
            let twice = parsed(&format!("HTTP/1.1 200 OK\r\n{twice}\r\n"));
            assert_eq!(twice.body, BodyDecoder::length(7));
            assert_eq!(twice.headers.get_all("content-length").iter().collect::<Vec<_>>(), ["7"]);
        }
        // Not right, and seen in the wild; no doubt where the body ends.
        assert_eq!(body("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"), BodyDecoder::chunked());
        assert_eq!(body("transfer-encoding: identity\r\ncontent-length: 7\r\n"), BodyDecoder::length(7));
        let head =
            parse_answer(&mut BytesMut::from("HTTP/1.0 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"), &Method::HEAD);
        assert_eq!(head.expect("valid").expect("complete").body, BodyDecoder::length(0));
    }

    #[test]
    fn connections_are_kept_as_both_sides_know_it() {
        let kept = |version: &str, fields: &str| {
            parsed(&format!("HTTP/{version} 200 OK\r\nContent-Length: 0\r\n{fields}\r\n")).keep_alive
        };
        assert!(kept("1.1", "") && kept("1.1", "Connection: x, keep-alive\r\n"));
        assert!(!kept("1.1", "Connection: x, Close\r\n") && !kept("1.0", ""));
        assert!(kept("1.0", "Connection: Keep-Alive\r\n"));
        assert!(!kept("1.0", "Connection: keep-alive\r\nConnection: close\r\n"));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let many = "X-A: 1\r\n".repeat(HEADERS_READ_MAX + 1);
        for bad in [
            "this is not HTTP\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 099 Low\r\n\r\n",
            "HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \u{1}\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            &format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
            &format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX)),
            &format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX)),
        ] {
            assert!(parse(bad).is_err(), "{:?}", bad.get(..80).unwrap_or(bad));
            assert!(may_hold_answer(bad.as_bytes(), bad.len() - 1));
        }
    }
}
