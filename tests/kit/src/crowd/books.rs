//! What was logged and what arrived: each line by host and number.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::measure::Second;
use crate::lock;
use crate::server::{Recorded, Taken};
use crate::soak::lines;
use crate::soak::numbers::Numbers;

/// Bytes of a line.
const LINE_BYTES: usize = 600;

/// A line that came longer ago than this and waits is a backlog; a host that has no unseen line that old is fresh.
const RECENT: Duration = Duration::from_secs(60);

/// What a line of host 7 has for its host.
const HOST: &str = "crowd-";

/// The books of a run.
pub(super) struct Books {
    hosts: Vec<Mutex<Lines>>,
    began: Instant,
    seconds: Mutex<Vec<Second>>,
    /// When the outage was over, in milliseconds since the beginning; 0 until then.
    over_at: AtomicU64,
    fresh: Mutex<Vec<Duration>>,
    /// Lines that came again.
    again: AtomicU64,
    /// Lines from nowhere.
    foreign: AtomicU64,
    /// What the extensions say of lines that they dropped.
    losses: Mutex<Vec<String>>,
}

/// The lines of a host.
#[derive(Default)]
struct Lines {
    /// When each was logged.
    logged: Vec<Instant>,
    /// Those that the extension took.
    taken: Numbers,
    received: Numbers,
    newest: Option<u64>,
    /// It is fresh, or doesn't count.
    is_fresh: bool,
}

/// What has become of all lines.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) logged: u64,
    pub(super) taken: u64,
    /// Of those taken.
    pub(super) received: u64,
    /// Taken and not received.
    pub(super) owed: u64,
    /// Those of them that came more than a minute ago.
    pub(super) backlog: u64,
}

impl Books {
    pub(super) fn new(hosts: usize) -> Books {
        let lines = || Mutex::new(Lines { is_fresh: true, ..Lines::default() });
        Books {
            hosts: std::iter::repeat_with(lines).take(hosts).collect(),
            began: Instant::now(),
            seconds: Mutex::default(),
            over_at: AtomicU64::new(0),
            fresh: Mutex::default(),
            again: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            losses: Mutex::default(),
        }
    }

    /// A new line of this host's: its number and text.
    pub(super) fn log(&self, host: usize) -> (u64, String) {
        let mut lines = lock(&self.hosts[host]);
        lines.logged.push(Instant::now());
        let n = lines.logged.len() as u64 - 1;
        let mut line =
            format!("{{\"n\":{n},\"name\":\"crowd\",\"hostIdentifier\":\"{HOST}{host}\",\"columns\":{{\"x\":\"");
        while line.len() < LINE_BYTES - 3 {
            line.push(char::from(b'a' + (line.len() as u64 * 7 + n) as u8 % 26));
        }
        line.push_str("\"}}");
        (n, line)
    }

    /// The extension has answered 0.
    pub(super) fn take(&self, host: usize, n: u64) {
        lock(&self.hosts[host]).taken.insert(n);
    }

    /// The server has accepted this.
    pub(super) fn receive(&self, taken: Taken<'_>) {
        let lines = match taken {
            Taken::Results(lines) => lines,
            Taken::Statuses(lines) => {
                return lock(&self.losses).extend(lines.iter().filter_map(lines::loss).map(str::to_owned));
            }
            Taken::Written(_) => return,
        };
        for line in lines {
            let host = line["hostIdentifier"].as_str().and_then(|name| name.strip_prefix(HOST)?.parse::<usize>().ok());
            match host.and_then(|host| self.hosts.get(host)).zip(line["n"].as_u64()) {
                Some((lines, n)) => self.receive_line(&mut lock(lines), n),
                None => drop(self.foreign.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    fn receive_line(&self, lines: &mut Lines, n: u64) {
        if n >= lines.logged.len() as u64 {
            self.foreign.fetch_add(1, Ordering::Relaxed);
        } else if !lines.received.insert(n) {
            self.again.fetch_add(1, Ordering::Relaxed);
        }
        let newest = lines.newest.map_or(n, |newest| newest.max(n));
        lines.newest = Some(newest);
        let over_at = self.over_at.load(Ordering::Relaxed);
        if over_at == 0 || lines.is_fresh {
            return;
        }
        let now = Instant::now();
        let unseen_since = lines.logged.get(newest as usize + 1);
        if unseen_since.is_none_or(|since| now - *since <= RECENT) {
            lines.is_fresh = true;
            lock(&self.fresh).push((now - self.began).saturating_sub(Duration::from_millis(over_at)));
        }
    }

    /// A request has arrived.
    pub(super) fn count(&self, request: &Recorded) {
        let heads: usize = request.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let head = request.method.len() + request.target.len() + request.version.len() + 6 + heads;
        self.in_this_second(|second| {
            second.requests += 1;
            second.bytes += (head + request.wire_bytes) as u64;
        });
    }

    pub(super) fn count_handshakes(&self, handshakes: u32) {
        self.in_this_second(|second| second.handshakes += handshakes);
    }

    fn in_this_second(&self, change: impl FnOnce(&mut Second)) {
        let mut seconds = lock(&self.seconds);
        let now = self.second();
        if seconds.len() <= now {
            seconds.resize(now + 1, Second::default());
        }
        change(&mut seconds[now]);
    }

    /// Seconds since the beginning.
    pub(super) fn second(&self) -> usize {
        self.began.elapsed().as_secs() as usize
    }

    pub(super) fn seconds(&self) -> Vec<Second> {
        lock(&self.seconds).clone()
    }

    /// The outage is over; the hosts of these rates are to be fresh again, if they log at least so often.
    pub(super) fn outage_is_over(&self, rates: &[f64], often: f64) {
        for (lines, rate) in self.hosts.iter().zip(rates) {
            lock(lines).is_fresh = *rate < often;
        }
        self.over_at.store((self.began.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
    }

    pub(super) fn fresh(&self) -> Vec<Duration> {
        lock(&self.fresh).clone()
    }

    /// Lines that came again, and such that were never logged.
    pub(super) fn again_and_foreign(&self) -> (u64, u64) {
        (self.again.load(Ordering::Relaxed), self.foreign.load(Ordering::Relaxed))
    }

    pub(super) fn losses(&self) -> Vec<String> {
        lock(&self.losses).clone()
    }

    pub(super) fn sums(&self) -> Sums {
        let now = Instant::now();
        let mut sums = Sums::default();
        for lines in &self.hosts {
            let lines = lock(lines);
            let owed = lines.taken.without(&[&lines.received]);
            let old = lines.logged.partition_point(|logged| now - *logged > RECENT) as u64;
            sums.logged += lines.logged.len() as u64;
            sums.taken += lines.taken.count();
            sums.received += lines.taken.count() - owed.count();
            sums.owed += owed.count();
            sums.backlog += (0..old).filter(|n| owed.contains(*n)).count() as u64;
        }
        sums
    }

    /// How many of a host's lines wait on disk, of which these numbers are there, and how many are lost.
    pub(super) fn waiting_and_lost(&self, host: usize, on_disk: &[u64]) -> (u64, u64) {
        let lines = lock(&self.hosts[host]);
        let mut waiting = Numbers::default();
        on_disk.iter().filter(|&&n| n < lines.logged.len() as u64).for_each(|&n| {
            waiting.insert(n);
        });
        let owed = lines.taken.without(&[&lines.received]).count();
        let lost = lines.taken.without(&[&lines.received, &waiting]).count();
        (owed - lost, lost)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn value(line: &str) -> Value {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn each_line_is_known_by_host_and_number_and_counted_once() {
        let books = Books::new(2);
        let lines: Vec<(u64, String)> = (0..3).map(|_| books.log(1)).collect();
        assert_eq!(lines.iter().map(|(n, line)| (*n, line.len())).collect::<Vec<_>>(), [(0, 600), (1, 600), (2, 600)]);
        lines.iter().for_each(|(n, _)| books.take(1, *n));
        books.receive(Taken::Results(&[value(&lines[0].1), value(&lines[0].1), value("{\"n\":1}")]));
        let sums = books.sums();
        assert_eq!((sums.logged, sums.taken, sums.received, sums.owed, sums.backlog), (3, 3, 1, 2, 0));
        assert_eq!(books.again_and_foreign(), (1, 1));
        assert_eq!(books.waiting_and_lost(1, &[2, 0, 77]), (1, 1));
        assert_eq!(books.waiting_and_lost(0, &[]), (0, 0));
    }

    #[test]
    fn a_host_is_fresh_when_nothing_unseen_is_old() {
        let books = Books::new(2);
        let (_, line) = books.log(0);
        books.log(0);
        lock(&books.hosts[0]).logged[1] -= 2 * RECENT;
        books.outage_is_over(&[1.0, 1.0], 0.1);
        books.receive(Taken::Results(&[value(&line)]));
        assert!(books.fresh().is_empty());
        books.receive(Taken::Results(&[value(&line.replace("\"n\":0", "\"n\":1"))]));
        assert_eq!(books.fresh().len(), 1);
        // Order is no matter: what is seen is what is newest.
        let books = Books::new(1);
        let [old, new] = [books.log(0).1, books.log(0).1];
        lock(&books.hosts[0]).logged.iter_mut().for_each(|logged| *logged -= 2 * RECENT);
        books.outage_is_over(&[1.0], 0.1);
        books.receive(Taken::Results(&[value(&new), value(&old)]));
        assert_eq!(books.fresh().len(), 1);
        let books = Books::new(1);
        books.log(0);
        books.outage_is_over(&[0.01], 0.1);
        // One that logs seldom doesn't count.
        books.receive(Taken::Results(&[value(&books.log(0).1)]));
        assert!(books.fresh().is_empty());
    }
}
