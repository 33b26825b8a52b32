//! A fair queue of requests.
//!
//! Requests of one client are served in order of arrival, and clients take turns. A new client waits for at most one
//! request of each other waiting client, however many those have queued. (Start-time fair queueing: each request gets
//! the number of the turn in which it is due.)
//!
//! The later steps of a small sync take the place of its first step. So where many syncs come at once, they are finished in the
//! order in which they came, and few are open at a time: each open one takes memory.

use std::collections::HashMap;

use crate::limits_and_timeouts::{SYNC_PLACE_TURNS, SYNC_STEPS_IN_PLACE, SyncStep, Weight};

/// A place in the queue; the lowest of a weight is next. Places of one turn are in order of arrival.
pub type Place = (u64, u64);

/// Gives out places.
#[derive(Debug, Default)]
pub struct Queue {
    arrivals: u64,
    turns: HashMap<Weight, Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    /// The turn of the request that was started last.
    now: u64,
    /// The turn of each client's last request, if it is not over.
    last: HashMap<u64, u64>,
    /// The place of each client's sync, and how many more steps may take it.
    syncs: HashMap<u64, (Place, u32)>,
}

impl Queue {
    /// The place of a new request of this client, which may be a step of a sync.
    pub fn place(&mut self, weight: Weight, client: u64, step: Option<SyncStep>) -> Place {
        let Turns { now, last, syncs } = self.turns.entry(weight).or_default();
        if step == Some(SyncStep::Later)
            && let Some((place, left)) = syncs.get_mut(&client)
            && *left > 0
        {
            *left -= 1;
            return *place;
        }
        self.arrivals += 1;
        let turn = last.get(&client).map_or(*now, |last| (*last).max(*now)) + 1;
        last.insert(client, turn);
        let place = (turn, self.arrivals);
        if step == Some(SyncStep::First) {
            syncs.retain(|_, ((turn, _), _)| *turn + SYNC_PLACE_TURNS > *now);
            syncs.insert(client, (place, SYNC_STEPS_IN_PLACE));
        }
        place
    }

    /// Notes that the request at this place was started.
    pub fn started(&mut self, weight: Weight, (turn, _): Place) {
        let turns = self.turns.entry(weight).or_default();
        turns.now = turns.now.max(turn);
        turns.last.retain(|_, last| *last > turn);
    }

    /// Forgets the turns of requests that have left without being started. Call when nothing waits.
    pub fn clear(&mut self) {
        self.turns.values_mut().for_each(|turns| turns.last.clear());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns_however_much_one_of_them_asks_for() {
        let mut queue = Queue::default();
        let mut waiting: Vec<(Place, &str)> = Vec::new();
        for _ in 0..100 {
            waiting.push((queue.place(Weight::Light, 1, None), "crowd"));
        }
        let start = |waiting: &mut Vec<(Place, &'static str)>, queue: &mut Queue| {
            waiting.sort_unstable();
            let (place, who) = waiting.remove(0);
            queue.started(Weight::Light, place);
            who
        };
        for _ in 0..10 {
            assert_eq!(start(&mut waiting, &mut queue), "crowd");
        }
        waiting.push((queue.place(Weight::Light, 2, None), "newcomer"));
        waiting.push((queue.place(Weight::Light, 2, None), "newcomer"));
        let next: Vec<_> = (0..4).map(|_| start(&mut waiting, &mut queue)).collect();
        assert_eq!(next, ["crowd", "newcomer", "crowd", "newcomer"]);
        // Who had nothing queued for a while has no credit.
        assert_eq!(queue.place(Weight::Light, 3, None).0, 13);
        assert_eq!(queue.place(Weight::Login, 3, None).0, 1);
    }

    /// Starts the next of these waiting requests, and returns whose it is.
    fn start_next(waiting: &mut Vec<(Place, u64)>, queue: &mut Queue) -> u64 {
        waiting.sort_unstable();
        let (place, client) = waiting.remove(0);
        queue.started(Weight::Light, place);
        client
    }

    #[test]
    fn a_sync_is_finished_before_the_next_one_begins() {
        let mut queue = Queue::default();
        let place =
            |queue: &mut Queue, client, step| (queue.place(Weight::Light, client, Some(step)), client);
        let mut waiting: Vec<_> = (0..50).map(|client| place(&mut queue, client, SyncStep::First)).collect();
        let mut order = Vec::new();
        while !waiting.is_empty() {
            let client = start_next(&mut waiting, &mut queue);
            order.push(client);
            // Each has five more steps, and asks for the next one when it has the reply.
            if order.iter().filter(|of| **of == client).count() < 6 {
                waiting.push((queue.place(Weight::Light, client, Some(SyncStep::Later)), client));
            }
        }
        assert!(order.is_sorted(), "{order:?}");
    }

    /// Client 1 has sent 200 steps of many syncs before others send one.
    #[test]
    fn a_sync_counts_as_one_request_and_no_more() {
        let mut queue = Queue::default();
        let mut waiting = Vec::new();
        for n in 0..200 {
            let step = if n % 20 == 0 { SyncStep::First } else { SyncStep::Later };
            waiting.push((queue.place(Weight::Light, 1, Some(step)), 1));
        }
        assert_eq!(start_next(&mut waiting, &mut queue), 1);
        for client in 2..=4 {
            waiting.push((queue.place(Weight::Light, client, Some(SyncStep::First)), client));
        }
        // The rest of its sync, and its next request.
        let started: Vec<u64> =
            (0..SYNC_STEPS_IN_PLACE + 4).map(|_| start_next(&mut waiting, &mut queue)).collect();
        assert!([2, 3, 4].iter().all(|client| started.contains(client)), "{started:?}");
        // Steps without a first one are requests like others.
        let later = queue.place(Weight::Light, 5, Some(SyncStep::Later));
        assert_eq!(later.0, queue.place(Weight::Light, 6, None).0);
    }

    #[test]
    fn nothing_is_kept_of_clients_that_wait_no_more() {
        let mut queue = Queue::default();
        for client in 0..1000 {
            let place = queue.place(Weight::Light, client, Some(SyncStep::First));
            queue.started(Weight::Light, place);
        }
        let turns = &queue.turns[&Weight::Light];
        assert!(turns.last.len() <= 1 && turns.syncs.len() as u64 <= SYNC_PLACE_TURNS + 1);
        queue.place(Weight::Light, 1, None);
        queue.clear();
        assert!(queue.turns[&Weight::Light].last.is_empty());
    }
}
