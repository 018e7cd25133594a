//! Addresses to listen on, as Go writes them: `:20202` is every interface.

use std::fmt;
use std::str::FromStr;

/// Where to listen: `host:port` or `:port`. Port 0: any free one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddr {
    /// Empty: every interface, IPv4 and IPv6.
    host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not an address such as :20202 or 127.0.0.1:20202");
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse().map_err(|_| error())?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(error)?,
            None if host.contains(':') => return Err(error()),
            None => host,
        };
        if host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(error());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_go_writes_them() {
        for text in [":20202", "127.0.0.1:0", "[::1]:80", "localhost:8080"] {
            assert_eq!(text.parse::<ListenAddr>().map(|addr| addr.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "20202", "host", ":x", ":70000", "::1:80", "http://a:1", "[::1:80"] {
            assert!(text.parse::<ListenAddr>().is_err(), "{text:?}");
        }
    }
}
