//! Tokens: what a client has seen, as it carries it between requests.
//!
//! Text form: the TXID of the first tracked database as 16 hex digits; with several databases followed by
//! `&<name>=<16 hex>` for each other one, names percent-encoded. Where a client finds it:
//!
//! | place | content |
//! |---|---|
//! | cookie `__txid` | the first database's TXID alone, as LiteFS writes it |
//! | cookie `__txids` | `<name>=<16 hex>` joined by `&`; only when several databases are tracked |
//! | header `Litefs-Txid`, both ways | the whole text form |

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use cookie::Cookie;
use http::HeaderValue;
use litefs::Txid;

/// The cookie of the first database (COMPAT §8).
pub const COOKIE: &str = "__txid";
/// The cookie of the other databases, when several are tracked.
pub const COOKIE_OTHERS: &str = "__txids";
/// The header with the same content for clients without a cookie jar; also in answers.
pub const HEADER: &str = "litefs-txid";
/// How long a client keeps the cookie (COMPAT §8).
pub const COOKIE_LIFETIME: Duration = Duration::from_mins(5);
/// More databases than this in one token are ignored: nobody sends them but an attacker.
pub const NAMED_MAX: usize = 64;

/// What a client says it has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Token {
    /// The first tracked database; zero when the client said nothing.
    pub first: Txid,
    /// Other databases by name.
    pub named: Vec<(String, Txid)>,
}

impl Token {
    /// Whether the client has seen nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_zero() && self.named.is_empty()
    }

    /// Takes the larger position of each database.
    pub fn merge(&mut self, other: Self) {
        self.first = self.first.max(other.first);
        for (name, txid) in other.named {
            self.raise(name, txid);
        }
    }

    fn raise(&mut self, name: String, txid: Txid) {
        if let Some((_, seen)) = self.named.iter_mut().find(|(known, _)| *known == name) {
            *seen = (*seen).max(txid);
        } else if self.named.len() < NAMED_MAX {
            self.named.push((name, txid));
        }
    }

    /// The text form.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = self.first.to_string();
        if !self.named.is_empty() {
            text.push('&');
            text.push_str(&self.others_to_text());
        }
        text
    }

    fn others_to_text(&self) -> String {
        let mut text = String::new();
        for (name, txid) in &self.named {
            if !text.is_empty() {
                text.push('&');
            }
            encode_name(name, &mut text);
            let _ = write!(text, "={txid}");
        }
        text
    }

    /// The values of the `Set-Cookie` headers that give this token to a client. Attributes in LiteFS's order.
    pub fn set_cookies(&self, now: SystemTime, secure: bool) -> impl Iterator<Item = HeaderValue> {
        let expires = httpdate::fmt_http_date(now + COOKIE_LIFETIME);
        let secure = if secure { "; Secure" } else { "" };
        let cookie = |name: &str, value: &str| {
            [name, "=", value, "; Path=/; Expires=", &expires, "; HttpOnly", secure, "; SameSite=Lax"].concat()
        };
        let first = cookie(COOKIE, &self.first.to_string());
        let others = (!self.named.is_empty()).then(|| cookie(COOKIE_OTHERS, &self.others_to_text()));
        std::iter::once(first).chain(others).filter_map(|text| HeaderValue::try_from(text).ok())
    }
}

/// Reads a token from a `Litefs-Txid` header. Parts that are not understood say nothing; never fails.
#[must_use]
pub fn parse_header(value: &[u8]) -> Token {
    let mut token = Token::default();
    let Ok(text) = std::str::from_utf8(value) else { return token };
    let (first, others) = text.trim().split_once('&').unwrap_or((text.trim(), ""));
    token.first = first.parse().unwrap_or(Txid::ZERO);
    parse_others(others, &mut token);
    token
}

/// Reads the token from one `Cookie` header. Several cookies of one name: the larger wins. Never fails.
#[must_use]
pub fn parse_cookies(value: &[u8]) -> Token {
    let mut token = Token::default();
    let Ok(text) = std::str::from_utf8(value) else { return token };
    if !text.contains(COOKIE) {
        return token;
    }
    let ours = text.split(';').filter(|part| is_ours(part.as_bytes()));
    for cookie in ours.filter_map(|part| Cookie::parse(part).ok()) {
        match cookie.name() {
            COOKIE => token.first = token.first.max(cookie.value_trimmed().parse().unwrap_or(Txid::ZERO)),
            COOKIE_OTHERS => parse_others(cookie.value_trimmed(), &mut token),
            _ => {}
        }
    }
    token
}

/// Whether one part of a `Cookie` header is a cookie of the tracker. Any white space around the name, as the parser sees it:
/// what counts as a token must not reach the application.
fn is_ours(part: &[u8]) -> bool {
    let name = part.split(|&b| b == b'=').next().unwrap_or(part);
    std::str::from_utf8(name).is_ok_and(|name| matches!(name.trim(), COOKIE | COOKIE_OTHERS))
}

fn parse_others(text: &str, token: &mut Token) {
    for part in text.split('&').take(NAMED_MAX) {
        let Some((name, txid)) = part.rsplit_once('=') else { continue };
        if let (Some(name), Ok(txid)) = (decode_name(name), txid.parse()) {
            token.raise(name, txid);
        }
    }
}

/// The `Cookie` header without the tracker's cookies, which are not the application's business. The other cookies stay
/// byte for byte.
#[must_use]
pub fn strip_cookies(value: &[u8]) -> Stripped {
    let mut rest = Vec::with_capacity(value.len());
    let mut found = false;
    for part in value.split(|&b| b == b';') {
        if is_ours(part) {
            found = true;
            continue;
        }
        let part = part.trim_ascii();
        if !part.is_empty() {
            if !rest.is_empty() {
                rest.extend_from_slice(b"; ");
            }
            rest.extend_from_slice(part);
        }
    }
    if !found {
        return Stripped::Unchanged;
    }
    if rest.is_empty() { Stripped::Empty } else { Stripped::Rest(rest) }
}

/// What is left of a `Cookie` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stripped {
    /// It held nothing of ours.
    Unchanged,
    /// It held nothing else.
    Empty,
    /// The other cookies.
    Rest(Vec<u8>),
}

fn encode_name(name: &str, out: &mut String) {
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

fn decode_name(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let digit = |b: Option<&u8>| char::from(*b?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        };
        bytes.push(byte);
    }
    let name = String::from_utf8(bytes).ok()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_larger_of_cookie_and_header_wins() {
        let mut token = parse_cookies(b"a=b; __txid=000000000000000a; c=d");
        token.merge(parse_header(b"000000000000000b"));
        assert_eq!(token.first, Txid(11));
        token.merge(parse_header(b"0000000000000001"));
        assert_eq!(token.first, Txid(11));
    }

    #[test]
    fn what_is_not_a_txid_says_nothing() {
        for value in
            ["__txid=", "__txid=1a", "__txid=000000000000000g", "x__txid=000000000000000a", "__txid", ";;;", ""]
        {
            assert!(parse_cookies(value.as_bytes()).is_empty(), "{value:?}");
        }
        assert!(parse_header(b"\xff\xfe").is_empty());
    }

    #[test]
    fn the_trackers_cookies_are_removed_and_the_others_kept_as_they_are() {
        assert_eq!(strip_cookies(b"a=b; c=\"d e\""), Stripped::Unchanged);
        assert_eq!(strip_cookies(b"__txid=000000000000000a"), Stripped::Empty);
        assert_eq!(strip_cookies(b"a=b;__txid=0; c=d; __txids=x"), Stripped::Rest(b"a=b; c=d".to_vec()));
        assert_eq!(strip_cookies(b"a=__txid; __txidx=1"), Stripped::Unchanged);
        assert_eq!(strip_cookies("\u{a0}__txid\u{b}=000000000000000a".as_bytes()), Stripped::Empty);
    }

    #[test]
    fn set_cookie_has_litefs_form_and_the_new_attributes() {
        let token = Token { first: Txid(26), named: vec![] };
        let values: Vec<_> = token.set_cookies(SystemTime::UNIX_EPOCH, true).collect();
        assert_eq!(
            values,
            ["__txid=000000000000001a; Path=/; Expires=Thu, 01 Jan 1970 00:05:00 GMT; HttpOnly; Secure; SameSite=Lax"]
        );
    }

    #[test]
    fn several_databases_survive_the_round_trip() {
        let token = Token { first: Txid(1), named: vec![("ä b.db".into(), Txid(2)), ("c".into(), Txid(3))] };
        assert_eq!(parse_header(token.to_text().as_bytes()), token);
        let mut read = Token::default();
        for value in token.set_cookies(SystemTime::now(), false) {
            let pair = value.to_str().expect("ascii").split(';').next().expect("a pair").to_owned();
            read.merge(parse_cookies(pair.as_bytes()));
        }
        assert_eq!(read, token);
    }

    proptest! {
        #[test]
        fn any_token_survives_its_text_form(first: u64, named in proptest::collection::btree_map(".{1,20}", any::<u64>(), 0..5)) {
            let token = Token { first: Txid(first), named: named.into_iter().map(|(name, txid)| (name, Txid(txid))).collect() };
            let text = token.to_text();
            prop_assert!(HeaderValue::from_str(&text).is_ok());
            prop_assert_eq!(parse_header(text.as_bytes()), token);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_header(&bytes);
            let _ = parse_cookies(&bytes);
            if let Stripped::Rest(rest) = strip_cookies(&bytes) {
                prop_assert_eq!(strip_cookies(&rest), Stripped::Unchanged);
                prop_assert!(rest.len() <= bytes.len() + 2 * bytes.iter().filter(|&&b| b == b';').count());
            }
        }

        #[test]
        fn stripping_leaves_no_token(others in "[a-z=; ]{0,40}", txid: u64) {
            let cookie = format!("{others}; __txid={}", Txid(txid));
            if let Stripped::Rest(rest) = strip_cookies(cookie.as_bytes()) {
                prop_assert!(parse_cookies(&rest).is_empty());
            }
        }
    }
}
