//! A fair queue of requests.
//!
//! Requests of one client are served in order of arrival, and clients take turns. A new client waits for at most one
//! request of each other waiting client, however many those have queued. (Start-time fair queueing: each request gets
//! the number of the turn in which it is due.)

use std::collections::HashMap;

use crate::limits_and_timeouts::Weight;

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
}

impl Queue {
    /// The place of a new request of this client.
    pub fn place(&mut self, weight: Weight, client: u64) -> Place {
        self.arrivals += 1;
        let Turns { now, last } = self.turns.entry(weight).or_default();
        let turn = last.get(&client).map_or(*now, |last| (*last).max(*now)) + 1;
        last.insert(client, turn);
        (turn, self.arrivals)
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
            waiting.push((queue.place(Weight::Light, 1), "crowd"));
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
        waiting.push((queue.place(Weight::Light, 2), "newcomer"));
        waiting.push((queue.place(Weight::Light, 2), "newcomer"));
        let next: Vec<_> = (0..4).map(|_| start(&mut waiting, &mut queue)).collect();
        assert_eq!(next, ["crowd", "newcomer", "crowd", "newcomer"]);
        // Who had nothing queued for a while has no credit.
        assert_eq!(queue.place(Weight::Light, 3).0, 13);
        assert_eq!(queue.place(Weight::Login, 3).0, 1);
    }

    #[test]
    fn nothing_is_kept_of_clients_that_wait_no_more() {
        let mut queue = Queue::default();
        for client in 0..1000 {
            let place = queue.place(Weight::Light, client);
            queue.started(Weight::Light, place);
        }
        assert!(queue.turns[&Weight::Light].last.len() <= 1);
        queue.place(Weight::Light, 1);
        queue.clear();
        assert!(queue.turns[&Weight::Light].last.is_empty());
    }
}
