//! Delays password guessing, in a fixed amount of memory.
//!
//! Failed logins are counted for each pair of user and address, for each address, and for each user. Each count allows
//! a few failures without a delay; then the delay doubles with each failure. The delay of a user is short and applies
//! only to addresses that have failed themselves, so that somebody who guesses from elsewhere cannot lock the owner
//! out. A count is dropped an hour after its last failure.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::network::network_of;

/// Maximum counts of 32 bytes each. More than a board sees in an hour.
const MAX_COUNTS: usize = 512;

/// How long a count is kept after its last failure.
const MEMORY: Duration = Duration::from_secs(3600);

/// Failures without a delay, and the maximum delay after that.
struct Rule {
    free: u32,
    longest: Duration,
}

const PAIR: Rule = Rule { free: 3, longest: Duration::from_secs(300) };
const ADDRESS: Rule = Rule { free: 10, longest: Duration::from_secs(60) };
const USER: Rule = Rule { free: 10, longest: Duration::from_secs(30) };

struct Count {
    /// A hash of user and address, because clients choose the length of names.
    key: u64,
    failures: u32,
    last: Instant,
    blocked_until: Instant,
}

/// All counts.
#[derive(Default)]
pub struct Throttle {
    counts: Vec<Count>,
    /// Seeded at random in each process, so that a client cannot choose names that collide.
    hasher: RandomState,
}

impl Throttle {
    /// The delay until this user may log in from this address; None if it may log in now.
    pub fn delay(&self, user: &str, address: IpAddr, now: Instant) -> Option<Duration> {
        let [pair, of_address, of_user] = self.keys(user, address).map(|(key, _)| self.count(key, now));
        let of_user = of_user.filter(|_| of_address.is_some());
        let counts = [pair, of_address, of_user].into_iter().flatten();
        counts
            .filter_map(|count| count.blocked_until.checked_duration_since(now))
            .filter(|wait| !wait.is_zero())
            .max()
    }

    /// Counts a failed login.
    pub fn failed(&mut self, user: &str, address: IpAddr, now: Instant) {
        for (key, rule) in self.keys(user, address) {
            let failures = self.count(key, now).map_or(0, |count| count.failures).saturating_add(1);
            let doublings = failures.saturating_sub(rule.free);
            let delay = match doublings {
                0 => Duration::ZERO,
                n => Duration::from_secs(1 << (n - 1).min(20)).min(rule.longest),
            };
            self.forget(key);
            if self.counts.len() >= MAX_COUNTS {
                self.make_room(now);
            }
            self.counts.push(Count { key, failures, last: now, blocked_until: now + delay });
        }
    }

    /// Drops the failures of this user at this address. Those of the address stay: otherwise somebody with an account
    /// could reset them and go on guessing for other users.
    pub fn succeeded(&mut self, user: &str, address: IpAddr) {
        let [(pair, _), ..] = self.keys(user, address);
        self.forget(pair);
    }

    fn keys(&self, user: &str, address: IpAddr) -> [(u64, &'static Rule); 3] {
        let address = network_of(address);
        let hash = |what: (Option<&str>, Option<IpAddr>)| self.hasher.hash_one(Hashed(what));
        [
            (hash((Some(user), Some(address))), &PAIR),
            (hash((None, Some(address))), &ADDRESS),
            (hash((Some(user), None)), &USER),
        ]
    }

    fn count(&self, key: u64, now: Instant) -> Option<&Count> {
        self.counts
            .iter()
            .find(|count| count.key == key && now.saturating_duration_since(count.last) < MEMORY)
    }

    fn forget(&mut self, key: u64) {
        self.counts.retain(|count| count.key != key);
    }

    /// Drops expired counts. If none is expired, drops the count whose delay ends first.
    fn make_room(&mut self, now: Instant) {
        self.counts.retain(|count| now.saturating_duration_since(count.last) < MEMORY);
        if self.counts.len() >= MAX_COUNTS {
            let least =
                self.counts.iter().enumerate().min_by_key(|(_, count)| (count.blocked_until, count.last));
            least.map(|(at, _)| at).map(|at| self.counts.swap_remove(at));
        }
    }
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
            throttle.failed("anna", home, start);
            delays.push(throttle.delay("anna", home, start).map_or(0, |delay| delay.as_secs()));
        }
        assert_eq!(delays, [0, 0, 0, 1, 2, 4, 8, 16, 32]);
        assert_eq!(throttle.delay("anna", home, start + secs(32)), None);
        throttle.failed("anna", home, start + secs(3));
        throttle.succeeded("anna", home);
        assert_eq!(throttle.delay("anna", home, start + secs(3)), None);
    }

    #[test]
    fn who_guesses_elsewhere_does_not_lock_the_owner_out() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..2000u32 {
            throttle.failed("anna", IpAddr::V4((0x0a00_0000 + n % 700).into()), now);
        }
        assert_eq!(throttle.delay("anna", ip("192.0.2.1"), now), None);
        throttle.failed("anna", ip("192.0.2.1"), now);
        assert!(throttle.delay("anna", ip("192.0.2.1"), now).unwrap() <= USER.longest);
        assert!(throttle.counts.len() <= MAX_COUNTS);
    }

    #[test]
    fn an_address_that_tries_many_names_is_slowed_down() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..20 {
            throttle.failed(&format!("name{n}"), ip(&format!("2001:db8::{n}")), now);
        }
        assert_eq!(throttle.delay("other", ip("2001:db8::ffff"), now), Some(ADDRESS.longest));
        assert_eq!(throttle.delay("other", ip("2001:db8:0:1::1"), now), None);
        assert_eq!(throttle.delay("other", ip("2001:db8::ffff"), now + MEMORY), None);
    }
}
