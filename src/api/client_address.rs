//! The client address of a request: the peer's, or the one that a trusted proxy reports.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::Config;
use crate::config::network::Network;
use crate::files;
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
    notice_unused_proxy(peer, request, config);
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

/// A proxy whose header is not used is easily overlooked: all its clients then have one address, and share its limits. So the
/// log and `ankipi status` name it, once.
fn notice_unused_proxy(peer: IpAddr, request: &Request, config: &Config) {
    static IS_NOTICED: AtomicBool = AtomicBool::new(false);
    if IS_NOTICED.load(Ordering::Relaxed) {
        return;
    }
    let Some(notice) = unused_proxy(
        peer,
        |name| request.header(name).is_some(),
        config.ip_header.as_deref(),
        &config.trusted_proxies,
    ) else {
        return;
    };
    if !IS_NOTICED.swap(true, Ordering::Relaxed) {
        log::warn!("{notice}");
        if let Err(err) = files::leave_notice(&config.base, &notice) {
            log::warn!("`ankipi status` cannot show this: {err}");
        }
    }
}

/// What to tell the owner of this peer, if it seems to be a proxy that the settings do not know.
fn unused_proxy(
    peer: IpAddr,
    has: impl Fn(&str) -> bool,
    setting: Option<&str>,
    proxies: &[Network],
) -> Option<String> {
    match setting.map(header_name).filter(|name| !name.is_empty()) {
        Some(header) if !is_trusted(peer, proxies) && has(header) => Some(format!(
            "{peer} sends the header of SYNC_IP_HEADER and is not trusted; if it is your proxy, add it to \
             SYNC_TRUSTED_PROXIES"
        )),
        // Anybody may send such a header, so this is for peers on this machine or in its network only.
        None if setting.is_none() && is_private_address(peer) => {
            let header = FORWARDING.into_iter().find(|header| has(header))?;
            let trust = if is_trusted(peer, proxies) {
                String::new()
            } else {
                format!(" and SYNC_TRUSTED_PROXIES={peer}")
            };
            Some(format!(
                "{peer} sends {header}, so it seems to be a proxy, and all its clients count as one; \
                 set SYNC_IP_HEADER={header}{trust}"
            ))
        }
        _ => None,
    }
}

/// The headers by which an unknown proxy is noticed.
const FORWARDING: [&str; 4] = ["X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "Forwarded"];

/// Whether an address is of this machine or of a private network.
fn is_private_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
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

    #[test]
    fn a_proxy_that_the_settings_do_not_know_is_named() {
        let told = |peer: &str, header: &str, (setting, proxies): (Option<&str>, &str)| {
            let has = |name: &str| name.eq_ignore_ascii_case(header);
            unused_proxy(peer.parse().unwrap(), has, setting, &[proxies.parse().unwrap()])
        };
        let none = (None, "127.0.0.0/8");
        let said = told("127.0.0.1", "x-forwarded-for", none).unwrap();
        assert!(said.ends_with("set SYNC_IP_HEADER=X-Forwarded-For"), "{said}");
        let said = told("172.17.0.1", "x-real-ip", none).unwrap();
        assert!(said.ends_with("set SYNC_IP_HEADER=X-Real-IP and SYNC_TRUSTED_PROXIES=172.17.0.1"), "{said}");
        assert_eq!(told("192.0.2.1", "x-forwarded-for", none), None);
        assert_eq!(told("127.0.0.1", "user-agent", none), None);
        let set = (Some("X-Real-IP"), "127.0.0.0/8");
        assert_eq!(told("127.0.0.1", "x-real-ip", set), None);
        assert!(told("172.17.0.1", "x-real-ip", set).unwrap().contains("SYNC_TRUSTED_PROXIES"));
        assert_eq!(told("127.0.0.1", "x-forwarded-for", (Some("ConnectInfo"), "127.0.0.0/8")), None);
    }
}
