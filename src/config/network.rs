//! Networks of client addresses, as in the settings.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// A network such as 192.168.0.0/16, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// IPv4 is stored as IPv4-mapped IPv6, so that both compare alike.
    bits: u128,
    mask: u128,
}

impl Network {
    /// Whether all IPv4 addresses are in this network.
    pub fn is_everything(&self) -> bool {
        self.contains(Ipv4Addr::UNSPECIFIED.into()) && self.contains(Ipv4Addr::BROADCAST.into())
    }

    /// Whether the address is in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        to_bits(address) & self.mask == self.bits
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Network, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u32>().map_err(drop)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(drop)?;
        let whole: u32 = if address.is_ipv4() { 32 } else { 128 };
        let host_bits = whole.checked_sub(prefix.unwrap_or(whole)).ok_or(())?;
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        Ok(Network { bits: to_bits(address) & mask, mask })
    }
}

/// The address that stands for one client: an IPv4 address as it is; of an IPv6 address its /64 network, because one
/// client usually has all of that.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses_and_no_others() {
        let cases = [
            ("192.168.1.0/24", "192.168.1.77", true),
            ("192.168.1.9/24", "192.168.1.77", true),
            ("192.168.1.0/24", "192.168.2.1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "::ffff:127.0.0.1", true),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe80::1", false),
            ("::1", "::1", true),
        ];
        for (network, address, holds) in cases {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), holds, "{network:?} {address}");
        }
        for text in ["", "home", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/-1", "10.0.0.0/", "/8"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
