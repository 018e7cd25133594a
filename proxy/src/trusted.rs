//! `proxy.trusted-proxies`: whose word about the original client is believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::ConfigError;

const KEY: &str = "proxy.trusted-proxies";

/// A set of networks.
#[derive(Debug, Clone)]
pub(crate) struct TrustedProxies {
    networks: Vec<Network>,
}

#[derive(Debug, Clone, Copy)]
struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

const LOOPBACK: [Network; 2] = [v4(127, 0, 0, 0, 8), v6(0, 1, 128)];
/// RFC 1918, carrier-grade NAT, link-local, unique local (also Fly.io's `fdaa::/16`).
const PRIVATE: [Network; 7] = [
    v4(10, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
    v4(100, 64, 0, 0, 10),
    v4(169, 254, 0, 0, 16),
    v6(0xfe80, 0, 10),
    v6(0xfc00, 0, 7),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_bits: u8) -> Network {
    Network { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix_bits }
}

const fn v6(first: u16, last: u16, prefix_bits: u8) -> Network {
    Network { address: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last)), prefix_bits }
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = bits.unwrap_or(bits_max);
        (prefix_bits <= bits_max).then_some(Self { address, prefix_bits })
    }

    fn contains(self, peer: IpAddr) -> bool {
        match (self.address, peer) {
            (IpAddr::V4(own), IpAddr::V4(peer)) => {
                let shift = 32 - u32::from(self.prefix_bits);
                u32::from(own).checked_shr(shift) == u32::from(peer).checked_shr(shift)
            }
            (IpAddr::V6(own), IpAddr::V6(peer)) => {
                let shift = 128 - u32::from(self.prefix_bits);
                u128::from(own).checked_shr(shift) == u128::from(peer).checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl TrustedProxies {
    /// Parses the list; the empty one trusts nobody.
    pub fn new(list: &[String]) -> Result<Self, ConfigError> {
        let mut networks = Vec::new();
        for entry in list {
            match entry.as_str() {
                "all" => networks.extend([v4(0, 0, 0, 0, 0), v6(0, 0, 0)]),
                "loopback" => networks.extend(LOOPBACK),
                "private" => networks.extend(LOOPBACK.into_iter().chain(PRIVATE)),
                text => networks.push(Network::parse(text).ok_or_else(|| {
                    let choice = "an address, a network like 10.0.0.0/8, loopback, private or all";
                    ConfigError::new(KEY, format!("{text:?} is not {choice}"))
                })?),
            }
        }
        Ok(Self { networks })
    }

    /// Whether what this peer says about its client is believed.
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusts(list: &[&str], peer: &str) -> bool {
        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
        TrustedProxies::new(&list).expect("a list").contains(peer.parse().expect("an address"))
    }

    #[test]
    fn networks_contain_what_they_should() {
        assert!(trusts(&["private"], "10.1.2.3"));
        assert!(trusts(&["private"], "::1"));
        assert!(trusts(&["private"], "fdaa:0:1::2"));
        assert!(trusts(&["private"], "::ffff:192.168.0.1"));
        assert!(!trusts(&["private"], "8.8.8.8"));
        assert!(!trusts(&["loopback"], "10.0.0.1"));
        assert!(trusts(&["203.0.113.0/24"], "203.0.113.200"));
        assert!(!trusts(&["203.0.113.0/25"], "203.0.113.200"));
        assert!(trusts(&["2001:db8::1"], "2001:db8::1"));
        assert!(!trusts(&["2001:db8::1"], "2001:db8::2"));
        assert!(trusts(&["all"], "8.8.8.8"));
        assert!(!trusts(&[], "127.0.0.1"));
    }
}
