//! What clients send as tokens: the `Litefs-Txid` header and cookies.
#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use litefs_proxy::token::{NAMED_MAX, Stripped, Token, parse_cookies, parse_header, strip_cookies};

fuzz_target!(|data: &[u8]| {
    let header = parse_header(data);
    let mut token = parse_cookies(data);
    for read in [&header, &token] {
        assert!(read.named.len() <= NAMED_MAX);
        round_trip(read);
    }
    // What counts as a token is not passed on to the application, and stripping twice changes nothing.
    match strip_cookies(data) {
        Stripped::Unchanged => assert!(token.is_empty()),
        Stripped::Empty => {}
        Stripped::Rest(rest) => {
            assert!(parse_cookies(&rest).is_empty());
            assert_eq!(strip_cookies(&rest), Stripped::Unchanged);
        }
    }
    let before = token.clone();
    token.merge(header);
    assert!(token.first >= before.first);
    token.merge(before);
    round_trip(&token);
});

/// What we say is what we hear.
fn round_trip(token: &Token) {
    assert_eq!(&parse_header(token.to_text().as_bytes()), token);
    let mut heard = Token::default();
    for value in token.set_cookies(SystemTime::UNIX_EPOCH, true) {
        let text = value.to_str().expect("visible ASCII");
        heard.merge(parse_cookies(text.split(';').next().unwrap_or_default().as_bytes()));
    }
    assert_eq!(&heard, token);
}
