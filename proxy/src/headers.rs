//! What an intermediary does to header fields (RFC 9110 §7.6).

use http::header::{self, Entry};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::fly_replay;
use crate::token::{self, Stripped};

/// Marks a request that one litefs proxy sends to another (it is never sent on), and the answer that refuses one.
pub(crate) const HOP: HeaderName = HeaderName::from_static("litefs-hop");
/// The token, both ways.
pub(crate) const TXID: HeaderName = HeaderName::from_static(token::HEADER);
/// What became of a write that is not answered by the application: `unconfirmed` = it may or may not be kept.
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static("litefs-outcome");
pub(crate) const FLY_REPLAY: HeaderName = HeaderName::from_static(fly_replay::HEADER);
/// Value of [`HOP`] in the answer of a node that is not the primary.
pub(crate) const REFUSED: HeaderValue = HeaderValue::from_static("not-primary");

/// Which of the fields that matter to an intermediary a message has. Found out in one look at all names: most messages have
/// hardly any, and every look-up in a header map costs a hash.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Present {
    pub host: bool,
    /// One of [`HOP_BY_HOP`], or `Connection`, which names others.
    pub hop_by_hop: bool,
    pub transfer_encoding: bool,
    pub upgrade: bool,
    pub te: bool,
    pub expect: bool,
    pub via: bool,
    pub cookie: bool,
    /// `Forwarded`, `X-Forwarded-*` or `Fly-Forwarded-Port`.
    pub forwarded: bool,
    /// [`TXID`], [`HOP`] or [`OUTCOME`].
    pub ours: bool,
}

impl Present {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut present = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "host" => present.host = true,
                "transfer-encoding" => (present.hop_by_hop, present.transfer_encoding) = (true, true),
                "upgrade" => (present.hop_by_hop, present.upgrade) = (true, true),
                "te" => (present.hop_by_hop, present.te) = (true, true),
                "connection" | "keep-alive" | "proxy-connection" | "http2-settings" | "proxy-authorization" => {
                    present.hop_by_hop = true;
                }
                "expect" => present.expect = true,
                "via" => present.via = true,
                "cookie" => present.cookie = true,
                "forwarded" | "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" | "fly-forwarded-port" => {
                    present.forwarded = true;
                }
                token::HEADER | "litefs-hop" | "litefs-outcome" => present.ours = true,
                _ => {}
            }
        }
        present
    }
}

/// Fields that concern one connection only, beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
];

/// Removes what concerns the connection the message came on.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = list(headers, header::CONNECTION)
            .filter(|name| !is_end_to_end(name))
            .filter_map(|name| name.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether a field of this name always concerns one connection only.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Fields without which a message means something else: naming them in `Connection` is an attack, not a wish.
fn is_end_to_end(name: &str) -> bool {
    ["host", "content-length", "content-type", "authorization", "cookie", "forwarded", "via"]
        .iter()
        .any(|kept| name.eq_ignore_ascii_case(kept))
        || name.len() >= 12 && name.get(..12).is_some_and(|prefix| prefix.eq_ignore_ascii_case("x-forwarded-"))
}

/// Whether a field must not come as a trailer: it frames the message, routes it, or decides who may see it
/// (RFC 9110 §6.5.1).
pub(crate) fn belongs_in_front(name: &HeaderName) -> bool {
    let others = [
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
        header::EXPECT,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TRAILER,
        HOP,
        TXID,
        OUTCOME,
    ];
    is_hop_by_hop(name) || is_end_to_end(name.as_str()) || others.contains(name)
}

/// The elements of a comma-separated field.
pub(crate) fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

/// Whether a comma-separated field has this element.
pub(crate) fn lists(headers: &HeaderMap, name: HeaderName, element: &str) -> bool {
    list(headers, name).any(|e| e.eq_ignore_ascii_case(element))
}

/// Adds an element to a comma-separated field.
pub(crate) fn append(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(vacant) => {
            vacant.insert(element.clone());
        }
        Entry::Occupied(mut occupied) => {
            let joined: Vec<&[u8]> = occupied.iter().chain([element]).map(HeaderValue::as_bytes).collect();
            if let Ok(joined) = HeaderValue::from_bytes(&joined.join(&b", "[..])) {
                occupied.insert(joined);
            }
        }
    }
}

/// Joins the `Cookie` fields into one (HTTP/2 may split them, RFC 9113 §8.2.3), without the tracker's cookies if so wished.
pub(crate) fn tidy_cookies(headers: &mut HeaderMap, strip: bool) {
    let mut values = headers.get_all(header::COOKIE).into_iter();
    let Some(first) = values.next() else { return };
    let several = values.next().is_some();
    let stripped = match (several, strip) {
        (false, false) => return,
        (false, true) => token::strip_cookies(first.as_bytes()),
        (true, _) => {
            let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
            let joined = all.join(&b"; "[..]);
            match if strip { token::strip_cookies(&joined) } else { Stripped::Unchanged } {
                Stripped::Unchanged => Stripped::Rest(joined),
                other => other,
            }
        }
    };
    match stripped {
        Stripped::Unchanged => {}
        Stripped::Empty => {
            headers.remove(header::COOKIE);
        }
        Stripped::Rest(rest) => {
            if let Ok(rest) = HeaderValue::from_bytes(&rest) {
                headers.insert(header::COOKIE, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn one_look_finds_what_the_rules_name() {
        for name in HOP_BY_HOP {
            let map = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]);
            assert!(Present::of(&map).hop_by_hop, "{name}");
        }
        for name in [TXID, HOP, OUTCOME] {
            let map = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]);
            assert!(Present::of(&map).ours, "{name}");
        }
        let none = Present::of(&headers(&[("host", "a"), ("accept", "*/*"), ("x-connection", "close")]));
        assert!(!none.hop_by_hop && !none.ours && !none.forwarded);
    }

    #[test]
    fn hop_by_hop_fields_and_those_named_by_connection_go() {
        let mut map = headers(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("x-kept", "1"),
        ]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("x-kept", "1")]));
    }

    #[test]
    fn connection_cannot_remove_what_gives_the_message_its_meaning() {
        let mut map = headers(&[
            ("connection", "host, content-length, X-Forwarded-For, cookie"),
            ("host", "a"),
            ("content-length", "3"),
            ("x-forwarded-for", "1.2.3.4"),
            ("cookie", "a=b"),
        ]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map.len(), 4);
    }

    #[test]
    fn split_cookies_are_joined_and_stripped() {
        let mut map = HeaderMap::new();
        for part in ["a=b", "__txid=000000000000000a", "c=d"] {
            map.append(header::COOKIE, HeaderValue::from_static(part));
        }
        let mut kept = map.clone();
        tidy_cookies(&mut map, true);
        assert_eq!(map, headers(&[("cookie", "a=b; c=d")]));
        tidy_cookies(&mut kept, false);
        assert_eq!(kept, headers(&[("cookie", "a=b; __txid=000000000000000a; c=d")]));
    }
}
