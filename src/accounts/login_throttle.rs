//! Delays password guessing, in a fixed amount of memory.
//!
//! Failed logins are counted for each pair of user and address, for each address, and for each user. Each count allows
//! a few failures without a delay; then the delay doubles with each failure. The delay of a user is short and applies
//! only to addresses that have failed themselves, so that somebody who guesses from elsewhere cannot lock the owner
//! out. A count is dropped an hour after its last failure.
//!
//! Many people may share one address: behind a proxy whose header is not configured, or in a container network. So the
//! delay of an address does not hold for an account that has not been guessed there: its first tries are compared at
//! once. A name without an account would cost a hash for nothing, so only a few of these are hashed while their address
//! is delayed. A guesser could tell them from accounts only by trying names faster than that.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::network::network_of;
use crate::limits_and_timeouts::{
    LOGIN_ADDRESS, LOGIN_COUNTS, LOGIN_MEMORY, LOGIN_PAIR, LOGIN_UNKNOWN_BURST, LOGIN_UNKNOWN_EVERY,
    LOGIN_USER, LoginRule,
};

struct Count {
    /// A hash of user and address, because clients choose the length of names.
    key: u64,
    failures: u32,
    last: Instant,
    blocked_until: Instant,
}

/// Counts of one kind. Those of accounts are apart, so that made-up names and addresses cannot push them out.
#[derive(Default)]
struct Counts(Vec<Count>);

impl Counts {
    fn get(&self, key: u64, now: Instant) -> Option<&Count> {
        self.0
            .iter()
            .find(|count| count.key == key && now.saturating_duration_since(count.last) < LOGIN_MEMORY)
    }

    fn failed(&mut self, key: u64, rule: &LoginRule, now: Instant) {
        let failures = self.get(key, now).map_or(0, |count| count.failures).saturating_add(1);
        let doublings = failures.saturating_sub(rule.free);
        let delay = match doublings {
            0 => Duration::ZERO,
            n => Duration::from_secs(1 << (n - 1).min(20)).min(rule.longest),
        };
        self.remove(key);
        if self.0.len() >= LOGIN_COUNTS {
            self.make_room(now);
        }
        self.0.push(Count { key, failures, last: now, blocked_until: now + delay });
    }

    fn remove(&mut self, key: u64) {
        self.0.retain(|count| count.key != key);
    }

    /// Drops expired counts. If there are none, drops the count with the shortest delay.
    fn make_room(&mut self, now: Instant) {
        self.0.retain(|count| now.saturating_duration_since(count.last) < LOGIN_MEMORY);
        if self.0.len() >= LOGIN_COUNTS {
            let least = self.0.iter().enumerate().min_by_key(|(_, count)| (count.blocked_until, count.last));
            least.map(|(at, _)| at).map(|at| self.0.swap_remove(at));
        }
    }
}

/// All counts.
#[derive(Default)]
pub struct Throttle {
    addresses: Counts,
    accounts: Counts,
    unknown_names: Counts,
    /// How many hashes of unknown names at delayed addresses were allowed of late, and when this was brought up to date.
    unknown_hashes: u32,
    unknown_since: Option<Instant>,
    /// Seeded at random in each process, so that a client cannot choose names that collide.
    hasher: RandomState,
}

impl Throttle {
    /// The delay until this user may log in from this address; None if it may log in now. `is_account`: whether there is
    /// an account of that name.
    pub fn delay(&mut self, user: &str, is_account: bool, address: IpAddr, now: Instant) -> Option<Duration> {
        let [pair_key, address_key, user_key] = self.keys(user, address);
        let of_name = if is_account { &self.accounts } else { &self.unknown_names };
        let (pair, of_address) = (of_name.get(pair_key, now), self.addresses.get(address_key, now));
        let of_user = of_name.get(user_key, now).filter(|_| of_address.is_some());
        let is_unguessed = pair.is_none_or(|pair| pair.failures < LOGIN_PAIR.free);
        let own = [pair, of_user].into_iter().flatten().filter_map(|count| remaining(count, now)).max();
        match of_address.and_then(|count| remaining(count, now)) {
            Some(_) if is_unguessed && own.is_none() && (is_account || self.may_hash_unknown(now)) => None,
            of_address => own.max(of_address),
        }
    }

    /// Counts a failed login.
    pub fn failed(&mut self, user: &str, is_account: bool, address: IpAddr, now: Instant) {
        let [pair, of_address, of_user] = self.keys(user, address);
        self.addresses.failed(of_address, &LOGIN_ADDRESS, now);
        let of_name = if is_account { &mut self.accounts } else { &mut self.unknown_names };
        of_name.failed(pair, &LOGIN_PAIR, now);
        of_name.failed(of_user, &LOGIN_USER, now);
    }

    /// Drops the count of this pair. The count of the address stays: its next login may be for another user.
    pub fn succeeded(&mut self, user: &str, address: IpAddr) {
        let [pair, ..] = self.keys(user, address);
        self.accounts.remove(pair);
    }

    fn may_hash_unknown(&mut self, now: Instant) -> bool {
        let since = *self.unknown_since.get_or_insert(now);
        let forgotten = now.saturating_duration_since(since).as_secs() / LOGIN_UNKNOWN_EVERY.as_secs().max(1);
        if forgotten > 0 {
            self.unknown_hashes =
                self.unknown_hashes.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
            self.unknown_since = Some(now);
        }
        let may = self.unknown_hashes < LOGIN_UNKNOWN_BURST;
        self.unknown_hashes += u32::from(may);
        may
    }

    fn keys(&self, user: &str, address: IpAddr) -> [u64; 3] {
        let address = network_of(address);
        let hash = |what: (Option<&str>, Option<IpAddr>)| self.hasher.hash_one(Hashed(what));
        [hash((Some(user), Some(address))), hash((None, Some(address))), hash((Some(user), None))]
    }
}

fn remaining(count: &Count, now: Instant) -> Option<Duration> {
    count.blocked_until.checked_duration_since(now).filter(|wait| !wait.is_zero())
}

#[derive(Hash)]
struct Hashed<'n>((Option<&'n str>, Option<IpAddr>));

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn delays_double_after_the_free_failures_and_end() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let home = ip("192.0.2.1");
        let mut delays = Vec::new();
        for _ in 0..9 {
            throttle.failed("anna", true, home, start);
            delays.push(throttle.delay("anna", true, home, start).map_or(0, |delay| delay.as_secs()));
        }
        assert_eq!(delays, [0, 0, 0, 1, 2, 4, 8, 16, 32]);
        assert_eq!(throttle.delay("anna", true, home, start + secs(32)), None);
        throttle.failed("anna", true, home, start + secs(3));
        throttle.succeeded("anna", home);
        assert_eq!(throttle.delay("anna", true, home, start + secs(3)), None);
    }

    #[test]
    fn who_guesses_elsewhere_does_not_lock_the_owner_out() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..2000u32 {
            throttle.failed("anna", true, IpAddr::V4((0x0a00_0000 + n % 700).into()), now);
        }
        assert_eq!(throttle.delay("anna", true, ip("192.0.2.1"), now), None);
        throttle.failed("anna", true, ip("192.0.2.1"), now);
        assert!(throttle.delay("anna", true, ip("192.0.2.1"), now).unwrap() <= LOGIN_USER.longest);
        assert!(throttle.accounts.0.len() <= LOGIN_COUNTS && throttle.addresses.0.len() <= LOGIN_COUNTS);
    }

    #[test]
    fn an_address_that_tries_many_names_is_slowed_down() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..20 {
            throttle.failed(&format!("name{n}"), false, ip(&format!("2001:db8::{n}")), now);
        }
        let other =
            |throttle: &mut Throttle, address: &str, now| throttle.delay("other", false, ip(address), now);
        // A few more are hashed as those of accounts are, and then no more.
        for _ in 0..LOGIN_UNKNOWN_BURST {
            assert_eq!(other(&mut throttle, "2001:db8::ffff", now), None);
        }
        assert_eq!(other(&mut throttle, "2001:db8::ffff", now), Some(LOGIN_ADDRESS.longest));
        assert_eq!(other(&mut throttle, "2001:db8::ffff", now + LOGIN_UNKNOWN_EVERY), None);
        assert_eq!(
            other(&mut throttle, "2001:db8::ffff", now + LOGIN_UNKNOWN_EVERY),
            Some(LOGIN_ADDRESS.longest - LOGIN_UNKNOWN_EVERY)
        );
        assert_eq!(other(&mut throttle, "2001:db8:0:1::1", now), None);
        assert_eq!(other(&mut throttle, "2001:db8::ffff", now + LOGIN_MEMORY), None);
    }

    #[test]
    fn an_account_that_nobody_guesses_is_not_delayed_by_its_address() {
        let (mut throttle, now, shared) = (Throttle::default(), Instant::now(), ip("172.17.0.1"));
        for n in 0..500 {
            throttle.failed(&format!("name{n}"), false, shared, now);
        }
        assert_eq!(throttle.delay("owner", true, shared, now), None);
        // Neither do some mistakes, and then it is like anybody else there.
        throttle.failed("owner", true, shared, now);
        throttle.failed("owner", true, shared, now);
        assert_eq!(throttle.delay("owner", true, shared, now), None);
        throttle.failed("owner", true, shared, now);
        assert_eq!(throttle.delay("owner", true, shared, now), Some(LOGIN_ADDRESS.longest));
    }

    #[test]
    fn made_up_names_do_not_push_out_the_count_of_an_account() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..5 {
            throttle.failed("owner", true, ip("192.0.2.1"), now);
        }
        for n in 0..2000u32 {
            throttle.failed(&format!("name{n}"), false, IpAddr::V4((0x0a00_0000 + n).into()), now);
        }
        assert_eq!(throttle.delay("owner", true, ip("192.0.2.1"), now), Some(secs(2)));
    }
}
