//! The server: it does a bounded amount of work and of bytes a second; further requests wait in line.
//!
//! A request that would wait for more than 30 s is answered 503 after that time, which costs little. One whose client has
//! given up is worked on all the same: the server can't tell. Both together are what lets a server collapse.

use crate::time::{SECOND, Tick};

/// Requests that have waited longer than this are answered 503.
const LONGEST_WAIT: f64 = (30 * SECOND) as f64;

/// What a request costs: milliseconds of one core, and bytes received and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) work: f64,
    pub(crate) bytes: f64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { work: self.work + other.work, bytes: self.bytes + other.bytes }
    }
}

/// A TLS handshake and the connection's beginning.
pub(crate) const HANDSHAKE: Cost = Cost { work: 2.0, bytes: 1500.0 };

/// A read for distributed queries.
pub(crate) const READ: Cost = Cost { work: 1.0, bytes: 350.0 };

/// A configuration: put together for each host.
pub(crate) const CONFIG: Cost = Cost { work: 3.0, bytes: 350.0 };

/// An enrollment: the host is looked for and written down.
pub(crate) const ENROLLMENT: Cost = Cost { work: 20.0, bytes: 3000.0 };

/// A log request without its lines.
const LOG: Cost = Cost { work: 1.0, bytes: 350.0 };

/// A log line.
const LINE: Cost = Cost { work: 0.02, bytes: crate::lines::LINE_BYTES as f64 };

/// To turn a request away.
const REFUSAL: Cost = Cost { work: 0.1, bytes: 0.0 };

/// A log request of `lines` lines.
pub(crate) fn log(lines: u32) -> Cost {
    let lines = f64::from(lines);
    Cost { work: LOG.work + LINE.work * lines, bytes: LOG.bytes + LINE.bytes * lines }
}

/// What becomes of a request, and after how many ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fate {
    pub(crate) after: Tick,
    pub(crate) reply: Reply,
}

/// How a request ends for its client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// The server doesn't know the node key.
    KeyRejected,
    /// No connection, or 503.
    Failed {
        /// `Retry-After`, in ticks.
        asked: Option<Tick>,
    },
    /// The client has given up; the server does the work all the same.
    GivenUp,
}

/// How the server is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Condition {
    /// At this speed; 1 is its own.
    Works(f64),
    /// Every connection is refused.
    Down,
    /// It answers everything with 503 and this `Retry-After`, in ticks.
    TurnsAway(Tick),
}

/// The server.
pub(crate) struct Server {
    /// What it does in a tick.
    capacity: Cost,
    pub(crate) condition: Condition,
    /// What waits, in ticks of its full speed.
    waiting: Cost,
}

impl Server {
    pub(crate) fn new(capacity: Cost) -> Self {
        Self { capacity, condition: Condition::Works(1.0), waiting: Cost::default() }
    }

    /// A tick has passed.
    pub(crate) fn pass(&mut self) {
        let done = match self.condition {
            Condition::Works(speed) => speed,
            Condition::Down | Condition::TurnsAway(_) => 1.0,
        };
        self.waiting.work = (self.waiting.work - done).max(0.0);
        self.waiting.bytes = (self.waiting.bytes - done).max(0.0);
    }

    /// It goes down: what waited is lost.
    pub(crate) fn stop(&mut self) {
        self.condition = Condition::Down;
        self.waiting = Cost::default();
    }

    /// How long a request would wait now, in ticks.
    pub(crate) fn wait(&self) -> f64 {
        let speed = match self.condition {
            Condition::Works(speed) => speed,
            Condition::Down | Condition::TurnsAway(_) => 1.0,
        };
        self.waiting.work.max(self.waiting.bytes) / speed
    }

    /// A request arrives, whose client waits for `timeout` ticks.
    pub(crate) fn ask(&mut self, cost: Cost, knows_key: bool, timeout: Tick) -> Fate {
        let wait = self.wait();
        let given_up = Fate { after: timeout, reply: Reply::GivenUp };
        let is_in_time = |after: f64| after <= f64::from(timeout);
        match self.condition {
            Condition::Down => return Fate { after: 0, reply: Reply::Failed { asked: None } },
            Condition::TurnsAway(asked) => {
                self.take(REFUSAL);
                return Fate { after: 0, reply: Reply::Failed { asked: Some(asked) } };
            }
            Condition::Works(_) if wait > LONGEST_WAIT => {
                self.take(REFUSAL);
                let turned_away = Fate { after: LONGEST_WAIT as Tick, reply: Reply::Failed { asked: None } };
                return if is_in_time(LONGEST_WAIT) { turned_away } else { given_up };
            }
            Condition::Works(_) => {}
        }
        self.take(if knows_key { cost } else { REFUSAL });
        let reply = if knows_key { Reply::Done } else { Reply::KeyRejected };
        if is_in_time(wait) { Fate { after: wait as Tick, reply } } else { given_up }
    }

    /// Work that comes whatever waits: a handshake.
    pub(crate) fn take(&mut self, cost: Cost) {
        self.waiting.work += cost.work / self.capacity.work;
        self.waiting.bytes += cost.bytes / self.capacity.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server::new(Cost { work: 10.0, bytes: 10_000.0 })
    }

    #[test]
    fn what_is_more_than_it_can_do_waits_and_after_thirty_seconds_is_turned_away() {
        let mut server = server();
        let cost = Cost { work: 10.0, bytes: 1.0 };
        let fates: Vec<Fate> = (0..303).map(|_| server.ask(cost, true, 600)).collect();
        assert_eq!(fates[0], Fate { after: 0, reply: Reply::Done });
        assert_eq!(fates[20], Fate { after: 20, reply: Reply::Done });
        assert_eq!(fates[302], Fate { after: 300, reply: Reply::Failed { asked: None } });
        for _ in 0..400 {
            server.pass();
        }
        assert_eq!(server.ask(cost, true, 600).after, 0);
    }

    #[test]
    fn it_works_for_clients_that_have_given_up() {
        let mut server = server();
        server.ask(Cost { work: 2000.0, bytes: 0.0 }, true, 160);
        let before = server.wait();
        assert_eq!(server.ask(Cost { work: 10.0, bytes: 0.0 }, true, 160), Fate { after: 160, reply: Reply::GivenUp });
        assert!(server.wait() > before);
    }

    #[test]
    fn bytes_are_as_scarce_as_work_and_half_the_speed_is_twice_the_wait() {
        let mut server = server();
        server.ask(Cost { work: 0.0, bytes: 100_000.0 }, true, 600);
        assert_eq!(server.wait() as Tick, 10);
        server.condition = Condition::Works(0.5);
        assert_eq!(server.wait() as Tick, 20);
    }
}
