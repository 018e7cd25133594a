//! Receive: one look at a request's header, which everything later relies on.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;

use crate::answer::Answer;
use crate::client::ClientState;
use crate::connection::{HEADERS_MAX, HEADERS_READ_MAX};
use crate::forwarded;
use crate::headers::{self, HOP, Present, TXID};
use crate::token::{self, Token};

/// Longest request target, in bytes.
const URI_BYTES_MAX: usize = 16 << 10;

/// A request that may be served.
pub(crate) struct Received {
    pub method: Method,
    pub target: PathAndQuery,
    pub headers: HeaderMap,
    /// What there is in `headers`.
    pub present: Present,
    pub body: Incoming,
    /// Cancelled when the body has been read to its end; only for a body that comes on an HTTP/2 stream.
    pub body_complete: Option<CancellationToken>,
    /// What the client has seen.
    pub token: Token,
    /// The protocol the client wants to change to, and the client's side of that.
    pub upgrade: Option<(HeaderValue, OnUpgrade)>,
    /// Another litefs proxy sent this.
    pub from_peer: bool,
    /// The client understands trailers.
    pub trailers: bool,
    /// gRPC: must be HTTP/2 all the way.
    pub grpc: bool,
    /// Interim answers can be passed on: the client speaks HTTP/1.1.
    pub interim: bool,
    /// The client came over TLS.
    pub secure: bool,
}

impl Received {
    /// Whether the method promises to change nothing.
    pub fn is_read(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
}

/// Checks a request and notes what matters of it; malformed and dangerous ones end here.
pub(crate) fn receive(
    mut request: Request<Incoming>,
    client: &ClientState,
    own_name: &str,
) -> Result<Box<Received>, Box<Answer>> {
    let bad = |status, why| Box::new(Answer::bad_request(status, why));
    let present = Present::of(request.headers());
    check_framing(&request, present, client).map_err(|why| bad(StatusCode::BAD_REQUEST, why))?;
    if request.method() == Method::CONNECT {
        return Err(bad(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported"));
    }
    if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > URI_BYTES_MAX) {
        return Err(bad(StatusCode::URI_TOO_LONG, "the request target is too long"));
    }
    let from_peer = present.ours && request.headers().contains_key(HOP);
    // HTTP/2 is limited by its parser in bytes only.
    if request.headers().len() > if from_peer { HEADERS_READ_MAX } else { HEADERS_MAX } {
        return Err(bad(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields"));
    }
    if present.via && headers::list(request.headers(), header::VIA).any(|hop| hop.ends_with(own_name)) {
        return Err(bad(StatusCode::LOOP_DETECTED, "this request has been here before"));
    }
    let upgrade = wanted_upgrade(&request, present).map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    set_host(&parts.uri, &mut headers, parts.version).map_err(|why| bad(StatusCode::BAD_REQUEST, why))?;
    let is_h2 = parts.version == Version::HTTP_2;
    let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    Ok(Box::new(Received {
        method: parts.method,
        target: origin_form(parts.uri.into_parts().path_and_query),
        token: read_token(&headers, present),
        upgrade,
        interim: parts.version == Version::HTTP_11,
        from_peer,
        trailers: present.te && headers::lists(&headers, header::TE, "trailers"),
        grpc: is_h2 && headers.get(header::CONTENT_TYPE).is_some_and(is_grpc),
        secure: present.forwarded && forwarded::client_uses_tls(&headers, client),
        body_complete: (is_h2 && !body.is_end_stream()).then(CancellationToken::new),
        headers,
        present,
        body,
    }))
}

/// RFC 9112 §6.3: a message with both framings is an attempt at smuggling or a broken client.
fn check_framing(request: &Request<Incoming>, present: Present, client: &ClientState) -> Result<(), &'static str> {
    if !present.transfer_encoding {
        return Ok(());
    }
    if request.headers().contains_key(header::CONTENT_LENGTH) || client.raw_header_has_content_length() {
        return Err("both Content-Length and Transfer-Encoding");
    }
    let mut codings = headers::list(request.headers(), header::TRANSFER_ENCODING);
    let only = codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) && codings.next().is_none();
    if only { Ok(()) } else { Err("a Transfer-Encoding other than chunked") }
}

/// Makes `Host` say what the request is for, whatever form the target has (RFC 9112 §3.2).
fn set_host(uri: &Uri, headers: &mut HeaderMap, version: Version) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(header::HOST).into_iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err("more than one Host"),
        (None, None) if version == Version::HTTP_11 => return Err("no Host"),
        _ => {}
    }
    if let Some(authority) = uri.authority() {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host = HeaderValue::try_from(host).map_err(|_| "a target that is no host")?;
        headers.insert(header::HOST, host);
    }
    Ok(())
}

/// A target without a path (`http://host?query`) means the root (RFC 9112 §3.2.1).
fn origin_form(target: Option<PathAndQuery>) -> PathAndQuery {
    let root = PathAndQuery::from_static("/");
    match target {
        Some(target) if target.as_str().starts_with('?') => format!("/{}", target.as_str()).parse().unwrap_or(root),
        Some(target) => target,
        None => root,
    }
}

/// The protocol that the client wants to change to. `h2c` is not offered here: clients fall back or use prior knowledge.
fn wanted_upgrade(request: &Request<Incoming>, present: Present) -> Option<HeaderValue> {
    if !present.upgrade {
        return None;
    }
    let protocol = request.headers().get(header::UPGRADE)?;
    let asked = request.version() == Version::HTTP_11
        && headers::lists(request.headers(), header::CONNECTION, "upgrade")
        && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c");
    asked.then(|| protocol.clone())
}

fn read_token(headers: &HeaderMap, present: Present) -> Token {
    let mut token = Token::default();
    if present.cookie {
        for value in headers.get_all(header::COOKIE) {
            token.merge(token::parse_cookies(value.as_bytes()));
        }
    }
    if present.ours {
        for value in headers.get_all(TXID) {
            token.merge(token::parse_header(value.as_bytes()));
        }
    }
    token
}
