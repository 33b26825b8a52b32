//! The client address of a request: the peer's, or the one that a trusted proxy reports.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::Config;
use crate::config::network::Network;
use crate::http::{PEER_HEADER, Request};

/// The names of the official server (those of the axum-client-ip crate), and the header that each means.
const SOURCES: [(&str, &str); 9] = [
    ("CfConnectingIp", "cf-connecting-ip"),
    ("CloudFrontViewerAddress", "cloudfront-viewer-address"),
    ("FlyClientIp", "fly-client-ip"),
    ("RightmostForwarded", "forwarded"),
    ("RightmostXForwardedFor", "x-forwarded-for"),
    ("TrueClientIp", "true-client-ip"),
    ("XEnvoyExternalAddress", "x-envoy-external-address"),
    ("XRealIp", "x-real-ip"),
    ("ConnectInfo", ""),
];

/// The address for the log, for SYNC_ALLOW and for throttling.
pub fn of(request: &Request, config: &Config) -> IpAddr {
    let peer = request.header(PEER_HEADER).and_then(|text| text.parse().ok());
    let peer: IpAddr = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer: IpAddr| peer.to_canonical());
    if let Some(header) = header_of(config)
        && !is_trusted(peer, &config.trusted_proxies)
        && request.header(header).is_some()
    {
        warn_once(peer);
    }
    resolve(peer, |name| request.headers(name), config)
}

/// The same from the parts of a head: `values` gives the values of a header.
pub fn resolve<'v, V: DoubleEndedIterator<Item = &'v str>>(
    peer: IpAddr,
    values: impl FnOnce(&'v str) -> V,
    config: &'v Config,
) -> IpAddr {
    let peer = peer.to_canonical();
    let Some(header) = header_of(config).filter(|_| is_trusted(peer, &config.trusted_proxies)) else {
        return peer;
    };
    // The last proxy appended its entry at the end. Earlier entries may come from the client.
    let told = values(header).rev().flat_map(|value| value.rsplit(','));
    forwarded(told, &config.trusted_proxies).unwrap_or(peer)
}

/// Whether this peer is a proxy that tells the addresses of its clients.
pub fn is_trusted_proxy(peer: IpAddr, config: &Config) -> bool {
    header_of(config).is_some() && is_trusted(peer.to_canonical(), &config.trusted_proxies)
}

/// The header in which proxies tell the address, if one is set.
fn header_of(config: &Config) -> Option<&str> {
    config.ip_header.as_deref().map(header_name).filter(|name| !name.is_empty())
}

/// The last address that is not a trusted proxy.
fn forwarded<'v>(told: impl Iterator<Item = &'v str>, proxies: &[Network]) -> Option<IpAddr> {
    let mut nearest = None;
    for text in told {
        let Some(address) = parse(text) else { break };
        nearest = Some(address);
        if !is_trusted(address, proxies) {
            break;
        }
    }
    nearest
}

fn is_trusted(address: IpAddr, proxies: &[Network]) -> bool {
    proxies.iter().any(|network| network.contains(address))
}

fn header_name(setting: &str) -> &str {
    SOURCES
        .iter()
        .find(|(source, _)| source.eq_ignore_ascii_case(setting))
        .map_or(setting, |(_, header)| header)
}

/// Parses `192.0.2.1`, `192.0.2.1:80`, `[2001:db8::1]:80`, or the same in an element of `Forwarded`.
fn parse(text: &str) -> Option<IpAddr> {
    let named = text.split(';').map(str::trim).find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    });
    let text = named.unwrap_or(text).trim().trim_matches('"');
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// An owner easily forgets to trust a proxy on another machine. Then all clients share its address.
fn warn_once(peer: IpAddr) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        log::warn!(
            "{peer} sends the header of SYNC_IP_HEADER and is not trusted; if it is your proxy, add it to \
             SYNC_TRUSTED_PROXIES"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_that_is_no_proxy_of_ours_counts() {
        let proxies: Vec<Network> = ["127.0.0.0/8", "10.0.0.0/8"].map(|text| text.parse().unwrap()).into();
        let cases = [
            ("192.0.2.1", Some("192.0.2.1")),
            ("6.6.6.6, 192.0.2.1", Some("192.0.2.1")),
            ("6.6.6.6, 192.0.2.1, 10.0.0.1", Some("192.0.2.1")),
            ("10.0.0.2,10.0.0.1", Some("10.0.0.2")),
            ("192.0.2.1:4711", Some("192.0.2.1")),
            ("[2001:db8::1]:80", Some("2001:db8::1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("for=6.6.6.6, for=\"[2001:db8::1]:80\";proto=https", Some("2001:db8::1")),
            ("For=192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1, unknown", None),
            ("6.6.6.6, nonsense, 10.0.0.1", Some("10.0.0.1")),
            ("", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(forwarded(text.rsplit(','), &proxies), expected, "{text}");
        }
        assert_eq!(header_name("XRealIp"), "x-real-ip");
        assert_eq!(header_name("X-Real-IP"), "X-Real-IP");
    }
}
