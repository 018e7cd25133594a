//! `X-Forwarded-For/-Proto/-Host` and `Forwarded` (RFC 7239): who the original client is.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::client::ClientState;
use crate::headers::{self, Present};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FLY_PORT: HeaderName = HeaderName::from_static("fly-forwarded-port");

/// Whether the original client came over TLS, as far as somebody trusted says so.
pub(crate) fn client_uses_tls(headers: &HeaderMap, client: &ClientState) -> bool {
    if !client.trusted {
        return false;
    }
    let proto = headers.get(PROTO).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let proto = proto.split(',').next().unwrap_or_default().trim();
    proto.eq_ignore_ascii_case("https")
        || proto.eq_ignore_ascii_case("wss")
        || headers.get(FLY_PORT).is_some_and(|port| port.as_bytes() == b"443")
}

/// Adds this hop's knowledge; what a client nobody trusts says about itself is replaced.
pub(crate) fn add(headers: &mut HeaderMap, client: &ClientState, present: Present) {
    if !client.trusted && present.forwarded {
        for name in [FOR, PROTO, HOST, header::FORWARDED] {
            headers.remove(name);
        }
    }
    let host = headers.get(header::HOST).cloned();
    headers::append(headers, FOR, &client.peer_value);
    headers.entry(PROTO).or_insert(HeaderValue::from_static("http"));
    let element = element(client, host.as_ref());
    headers::append(headers, header::FORWARDED, &element);
    if let Some(host) = host {
        headers.entry(HOST).or_insert(host);
    }
}

/// This hop's element of `Forwarded`; the same for all requests of a client that names one host.
fn element(client: &ClientState, host: Option<&HeaderValue>) -> HeaderValue {
    let host = host.cloned().unwrap_or(HeaderValue::from_static(""));
    let mut cached = client.forwarded.lock();
    if let Some((_, element)) = cached.as_ref().filter(|(known, _)| *known == host) {
        return element.clone();
    }
    let ip = client.peer.ip().to_canonical();
    let mut text = if ip.is_ipv6() { format!("for=\"[{ip}]\"") } else { format!("for={ip}") };
    if let Some(host) = host.to_str().ok().filter(|host| !host.is_empty() && !host.contains(['"', '\\'])) {
        text = format!("{text};host=\"{host}\"");
    }
    text.push_str(";proto=http");
    let element = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("for=unknown"));
    *cached = Some((host, element.clone()));
    element
}
