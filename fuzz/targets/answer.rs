//! Answers of upstreams: how the bytes arrive makes no difference, nothing panics, nothing is made up.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use litefs_proxy::h1::{AnswerHead, BadAnswer, Part, may_hold_answer, parse_answer};

/// Everything an exchange sees of a connection: headers with their bodies, and what is left at its end.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    head: String,
    body: Vec<u8>,
    trailers: String,
}

fn read(data: &[u8], piece: usize, method: &http::Method) -> (Vec<Answer>, Option<BadAnswer>) {
    let mut pieces = data.chunks(piece);
    let (mut input, mut answers) = (BytesMut::new(), Vec::new());
    let mut fill = |input: &mut BytesMut| pieces.next().map(|piece| input.extend_from_slice(piece)).is_some();
    loop {
        let mut seen = 0;
        let mut answer = loop {
            if may_hold_answer(&input, seen) {
                match parse_answer(&mut input, method) {
                    Ok(Some(answer)) => break answer,
                    Ok(None) => seen = input.len(),
                    Err(bad) => return (answers, Some(bad)),
                }
            }
            if !fill(&mut input) {
                return (answers, None);
            }
        };
        let AnswerHead { status, reason, headers, keep_alive, .. } = &answer;
        let chunked = headers.get_all("transfer-encoding").iter().any(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        assert!(headers.get_all("content-length").iter().count() <= usize::from(!chunked));
        let head = format!("{status:?} {reason:?} {headers:?} {keep_alive}");
        let (mut body, mut trailers) = (Vec::new(), String::new());
        let announced = answer.body.bytes_left();
        loop {
            match answer.body.next(&mut input) {
                Ok(Part::Data(bytes)) => body.extend_from_slice(&bytes),
                Ok(Part::Trailers(fields)) => trailers = format!("{fields:?}"),
                Ok(Part::End) => break,
                Ok(Part::More) if fill(&mut input) => {}
                Ok(Part::More) => match answer.body.close() {
                    Ok(()) => assert!(answer.body.has_ended()),
                    Err(bad) => return (answers, Some(bad)),
                },
                Err(bad) => return (answers, Some(bad)),
            }
        }
        assert!(announced.is_none_or(|bytes| bytes == body.len() as u64));
        answers.push(Answer { head, body, trailers });
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, data)) = data.split_first() else { return };
    let method = if how & 1 == 0 { http::Method::GET } else { http::Method::HEAD };
    let (whole, bad) = read(data, data.len().max(1), &method);
    let (pieces, bad_in_pieces) = read(data, usize::from(how >> 1) + 1, &method);
    assert_eq!(whole, pieces);
    // What comes in pieces and has no end is not looked at again until it has one.
    assert!(bad.is_some() || bad_in_pieces.is_none());
});
