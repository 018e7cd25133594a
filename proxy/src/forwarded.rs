//! `X-Forwarded-For/-Proto/-Host` and `Forwarded` (RFC 7239): who the original client is.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;

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

/// This hop's knowledge as fields to add to a request; the same for all requests of a client that names one host.
pub(crate) type Fields = Arc<[(HeaderName, HeaderValue)]>;

/// What a client's last request was given: the host it named, and the fields.
pub(crate) type LastFields = Mutex<Option<(Option<HeaderValue>, Fields)>>;

/// What this hop adds to a request: who the client is, and that we have seen it (`Via`). Where the request has such fields
/// already, they are extended; what a client nobody trusts says about itself is replaced.
pub(crate) fn add(headers: &mut HeaderMap, client: &ClientState, present: Present) -> Option<Fields> {
    if !present.forwarded && !present.via {
        return Some(fields_for(client, headers.get(header::HOST)));
    }
    if !client.trusted && present.forwarded {
        for name in [FOR, PROTO, HOST, header::FORWARDED] {
            headers.remove(name);
        }
    }
    extend(headers, client);
    None
}

fn fields_for(client: &ClientState, host: Option<&HeaderValue>) -> Fields {
    let mut last = client.forwarded.lock();
    if let Some((_, fields)) = last.as_ref().filter(|(known, _)| known.as_ref() == host) {
        return Arc::clone(fields);
    }
    let mut headers = HeaderMap::from_iter(host.map(|host| (header::HOST, host.clone())));
    extend(&mut headers, client);
    headers.remove(header::HOST);
    let fields: Fields = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    *last = Some((host.cloned(), Arc::clone(&fields)));
    fields
}

fn extend(headers: &mut HeaderMap, client: &ClientState) {
    let host = headers.get(header::HOST).cloned();
    headers::append(headers, FOR, &client.peer_value);
    headers.entry(PROTO).or_insert(HeaderValue::from_static("http"));
    headers::append(headers, header::FORWARDED, &element(client, host.as_ref()));
    if let Some(host) = host {
        headers.entry(HOST).or_insert(host);
    }
    headers::append(headers, header::VIA, &client.worker.shared.via);
}

/// This hop's element of `Forwarded`.
fn element(client: &ClientState, host: Option<&HeaderValue>) -> HeaderValue {
    let ip = client.peer.ip().to_canonical();
    let mut text = if ip.is_ipv6() { format!("for=\"[{ip}]\"") } else { format!("for={ip}") };
    let host = host.and_then(|host| host.to_str().ok());
    if let Some(host) = host.filter(|host| !host.is_empty() && !host.contains(['"', '\\'])) {
        text = format!("{text};host=\"{host}\"");
    }
    text.push_str(";proto=http");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("for=unknown"))
}
