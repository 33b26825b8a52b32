//! Shares out what is scarce: workers, connections and memory. A client that uses much is the first to lose.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::connection::{Conn, EvictionCost};
use super::forwarding::Exchange;
use super::poll_loop::PollLoop;
use crate::limits_and_timeouts::{Limits, Weight};

/// An address with this many connections is crowded: its connections are evicted first. A household with several
/// devices has fewer.
const CROWD: usize = 16;

impl PollLoop {
    pub(super) fn exchanges(&self) -> impl Iterator<Item = (usize, &Exchange)> {
        self.conns.iter().enumerate().filter_map(|(at, conn)| Some((at, conn.exchange()?)))
    }

    /// Ends the slowest transfer that an overdue request waits for. Transfers of the client that holds most come first; a
    /// client that may have no more of them can only end one of its own.
    pub(super) fn make_way(&mut self) {
        // A transfer was ended already, and its slot is not free yet.
        if !self.shared.partial_chunks.is_empty() {
            return;
        }
        let limits = &self.shared.limits;
        let overdue =
            |exchange: &Exchange| exchange.overdue_from(limits).is_some_and(|from| from <= self.shared.now);
        let held = ActiveRequests::by(self.exchanges().map(|(_, exchange)| exchange));
        let waiting = self.exchanges().filter(|(_, exchange)| overdue(exchange));
        let waiting =
            waiting.map(|(_, exchange)| (exchange.weight(), exchange.place(), exchange.client().id));
        // A client with active small requests waits for those, and not for transfers.
        let waits_for_transfer = |(weight, _, client): &(Weight, _, u64)| {
            *weight == Weight::Bulk || !held.has_small_active(*client)
        };
        let Some((weight, _, client)) = waiting.filter(waits_for_transfer).min() else {
            return;
        };
        let only_own = held.is_at_limit(weight, client, limits);
        let candidates: Vec<(usize, u64)> = self
            .exchanges()
            .filter(|(_, exchange)| exchange.is_active() && (!only_own || exchange.client().id == client))
            .map(|(at, exchange)| (at, exchange.client().id))
            .collect();
        let shared = &mut self.shared;
        let slow = candidates
            .into_iter()
            .filter_map(|(at, id)| Some((self.conns[at].rate_if_slow(shared)?, id, at)));
        let slowest = slow.min_by_key(|(rate, id, _)| (Reverse(held.count(*id)), *rate));
        if let Some((_, _, at)) = slowest {
            self.conns[at].make_way(shared);
        }
    }

    /// Closes connections of an address that has too many, and, while memory is short, of the address that holds most
    /// of it.
    pub(super) fn enforce_shares(&mut self) {
        let mut excess_connections: Vec<usize> = self
            .excess_connections()
            .filter(|(_, from)| *from <= self.shared.now)
            .map(|(at, _)| at)
            .collect();
        excess_connections.sort_unstable_by_key(|at| Reverse(*at));
        // In descending order, so that the remaining indexes stay valid.
        excess_connections.into_iter().for_each(|at| drop(self.conns.swap_remove(at)));
        let mut held: usize = self.conns.iter().map(Conn::buffered_bytes).sum();
        while held > self.shared.limits.max_buffered_bytes {
            let Some(at) = self.largest_holder() else { break };
            let bytes = self.conns[at].buffered_bytes();
            self.conns[at].close_for_memory(&mut self.shared);
            held = held.saturating_sub(bytes);
        }
        self.sweep();
    }

    /// The connections of addresses that have too many, and when each may be ended.
    pub(super) fn excess_connections(&self) -> impl Iterator<Item = (usize, Instant)> {
        let Limits { max_conns_per_address: most, min_wait_in_crowd: wait, .. } = self.shared.limits;
        let mut counts = if self.conns.len() > most { self.counts(|_| 1) } else { HashMap::new() };
        counts.retain(|_, count| *count > most);
        let of_crowd =
            |at: &usize| self.conns[*at].address().is_some_and(|address| counts.contains_key(&address));
        let mut crowd: Vec<_> = (0..self.conns.len())
            .filter(|_| !counts.is_empty())
            .filter(of_crowd)
            .filter_map(|at| Some((self.conns[at].evictable()?, at)))
            .collect();
        crowd.sort_unstable();
        let mut excess_connections = Vec::new();
        for ((_, since), at) in crowd {
            let count = self.conns[at].address().and_then(|address| counts.get_mut(&address));
            if let (Some(count), Some(from)) = (count, since.checked_add(wait))
                && *count > most
            {
                *count -= 1;
                excess_connections.push((at, from));
            }
        }
        excess_connections.into_iter()
    }

    /// The connection that holds most memory, of the address that does.
    fn largest_holder(&self) -> Option<usize> {
        let held = self.counts(Conn::buffered_bytes);
        let of_address = |conn: &Conn| conn.address().and_then(|address| held.get(&address).copied());
        let largest = self.conns.iter().enumerate().filter(|(_, conn)| conn.buffered_bytes() > 0);
        largest.max_by_key(|(_, conn)| (of_address(conn), conn.buffered_bytes())).map(|(at, _)| at)
    }

    /// How much of something each address has.
    pub(super) fn counts(&self, of: impl Fn(&Conn) -> usize) -> HashMap<IpAddr, usize> {
        let mut counts = HashMap::new();
        for conn in &self.conns {
            if let Some(address) = conn.address() {
                *counts.entry(address).or_default() += of(conn);
            }
        }
        counts
    }

    /// The request that is started next, if one may be: the lightest, then by its place in the queue.
    pub(super) fn next_waiting(&self) -> Option<usize> {
        let limits = &self.shared.limits;
        let held = ActiveRequests::by(self.exchanges().map(|(_, exchange)| exchange));
        let free = limits.max_active.saturating_sub(self.shared.partial_chunks.len() + held.active.len());
        if free == 0 {
            return None;
        }
        self.exchanges()
            .filter(|(_, exchange)| held.may_start(exchange.weight(), exchange.client().id, free, limits))
            .filter_map(|(at, exchange)| Some((exchange.weight(), exchange.place()?, at)))
            .min()
            .map(|(_, _, at)| at)
    }

    /// The connection to evict next, among those of these addresses, and since when it has been waiting. Connections of
    /// crowded addresses come first, then those of the lowest cost, then the oldest.
    pub(super) fn evictable(
        &self,
        counts: &HashMap<IpAddr, usize>,
        of: impl Fn(Option<IpAddr>) -> bool,
    ) -> Option<(usize, Instant)> {
        let candidates = self.conns.iter().enumerate().filter_map(|(at, conn)| {
            let address = conn.address();
            let count = address.and_then(|address| counts.get(&address).copied()).unwrap_or(0);
            let (worth, since) = conn.evictable()?;
            // A queued request is not evicted, unless its address is crowded.
            let is_fair = worth < EvictionCost::Queued || count >= CROWD;
            (is_fair && of(address)).then_some(((Reverse(count / CROWD), worth, since), at))
        });
        candidates.min().map(|((_, _, since), at)| (at, since))
    }

    /// Evicts a connection that has waited for `min_wait`. Returns whether it did.
    pub(super) fn evict(&mut self, min_wait: Duration) -> bool {
        match self.evictable(&self.counts(|_| 1), |_| true) {
            Some((at, since)) if self.shared.now.saturating_duration_since(since) >= min_wait => {
                drop(self.conns.swap_remove(at));
                true
            }
            _ => false,
        }
    }
}

/// The active requests, counted by client.
struct ActiveRequests {
    active: Vec<(Weight, u64)>,
}

impl ActiveRequests {
    fn by<'e>(exchanges: impl Iterator<Item = &'e Exchange>) -> ActiveRequests {
        let active = exchanges.filter(|exchange| exchange.is_active());
        ActiveRequests { active: active.map(|exchange| (exchange.weight(), exchange.client().id)).collect() }
    }

    /// How many requests of this client are active.
    fn count(&self, client: u64) -> usize {
        self.active.iter().filter(|(_, id)| *id == client).count()
    }

    /// How many of them are bulk transfers.
    fn bulk(&self, client: u64) -> usize {
        self.active.iter().filter(|active| **active == (Weight::Bulk, client)).count()
    }

    /// Whether this client may have no more requests of this weight, whatever the others do.
    fn is_at_limit(&self, weight: Weight, client: u64, limits: &Limits) -> bool {
        let bulk = self.bulk(client);
        match weight {
            Weight::Bulk => bulk >= limits.max_bulk_per_client,
            Weight::Light | Weight::Login => self.count(client) - bulk >= limits.max_active_per_client,
        }
    }

    /// Whether small requests of this client are active.
    fn has_small_active(&self, client: u64) -> bool {
        self.count(client) > self.bulk(client)
    }

    fn may_start(&self, weight: Weight, client: u64, free: usize, limits: &Limits) -> bool {
        let alike = self.active.iter().filter(|(active, _)| *active == weight).count();
        alike < limits.max_of(weight)
            && !self.is_at_limit(weight, client, limits)
            && (free > 1 || !self.has_small_active(client))
    }
}
