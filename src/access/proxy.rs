//! Who is behind a proxy: `X-Forwarded-For` and `Forwarded` (RFC 7239) are believed only from
//! networks that were named as trusted.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::http::Head;

/// A network in CIDR notation, like `10.0.0.0/8`, `::1` or `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address belongs to it; `::ffff:10.0.0.1` is `10.0.0.1`.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.bits);
                let prefix = |address: u32| address.checked_shr(shift).unwrap_or(0);
                prefix(network.to_bits()) == prefix(address.to_bits())
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.bits);
                let prefix = |address: u128| address.checked_shr(shift).unwrap_or(0);
                prefix(network.to_bits()) == prefix(address.to_bits())
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no network; write one like 10.0.0.0/8, 192.0.2.7 or fd00::/8");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(wrong)?,
            None => most,
        };
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The client behind trusted proxies; `None` when `socket` is the client itself, or its proxy
/// says nothing that can be believed.
///
/// Proxies append: the list is read from its end, over those that are trusted, to the first
/// that is not. When both headers are there `X-Forwarded-For` counts: common proxies write that
/// one, and pass a `Forwarded` on as the client wrote it.
pub(super) fn forwarded(head: &Head, socket: SocketAddr, trusted: &[Network]) -> Option<IpAddr> {
    let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
    if !is_trusted(socket.ip()) {
        return None;
    }
    let hops: Vec<Option<IpAddr>> = match head.joined("x-forwarded-for") {
        Some(list) => list.split(',').map(node).collect(),
        None => head
            .joined("forwarded")?
            .split(',')
            .map(forwarded_for)
            .collect(),
    };
    let mut client = None;
    for hop in hops.into_iter().rev() {
        // Whoever wrote what is no address is the last that is known.
        let Some(address) = hop else { break };
        client = Some(address);
        if !is_trusted(address) {
            break;
        }
    }
    client
}

/// Whether a proxy, trusted or not, says that it is between the client and this server.
pub(super) fn is_between(head: &Head) -> bool {
    let says = ["x-forwarded-for", "forwarded", "via", "x-real-ip"];
    says.iter().any(|name| head.joined(name).is_some())
}

/// The `for` of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let value = element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })?;
    node(value.trim_matches('"'))
}

/// An address with or without port (RFC 7239, section 6).
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    address
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_of_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
            ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            let network: Network = network.parse().expect(network);
            assert!(
                network.contains(inside.parse().expect("an address")),
                "{inside}"
            );
            assert!(
                !network.contains(outside.parse().expect("an address")),
                "{outside}"
            );
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "a/8",
            "::/129",
            "10.0.0.0/-1",
            "10.0.0.0/",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_trusted_proxies_have_written_is_believed() {
        let trusted = ["127.0.0.1", "10.0.0.0/8"].map(|text| text.parse().expect("a network"));
        for (socket, lines, client) in [
            ("192.0.2.1:1", "X-Forwarded-For: 203.0.113.9", None),
            (
                "127.0.0.1:1",
                "X-Forwarded-For: 203.0.113.9",
                Some("203.0.113.9"),
            ),
            (
                "127.0.0.1:1",
                "X-Forwarded-For: 1.2.3.4, 203.0.113.9, 10.1.1.1",
                Some("203.0.113.9"),
            ),
            (
                "127.0.0.1:1",
                "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 203.0.113.9:80",
                Some("203.0.113.9"),
            ),
            ("127.0.0.1:1", "X-Forwarded-For: 1.2.3.4, garbage", None),
            (
                "127.0.0.1:1",
                "X-Forwarded-For: unknown, 10.1.1.1",
                Some("10.1.1.1"),
            ),
            (
                "127.0.0.1:1",
                "Forwarded: for=203.0.113.9;proto=https",
                Some("203.0.113.9"),
            ),
            (
                "127.0.0.1:1",
                "Forwarded: for=_x, For=\"[2001:db8::7]:99\"",
                Some("2001:db8::7"),
            ),
            (
                "127.0.0.1:1",
                "Forwarded: for=1.2.3.4\r\nX-Forwarded-For: 203.0.113.9",
                Some("203.0.113.9"),
            ),
            ("127.0.0.1:1", "Accept: */*", None),
        ] {
            let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
            let head = Head::parse(bytes.as_bytes()).expect(lines);
            let found = forwarded(&head, socket.parse().expect("an address"), &trusted);
            assert_eq!(
                found,
                client.map(|text| text.parse().expect("an address")),
                "{lines}"
            );
        }
    }
}
