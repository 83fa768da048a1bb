//! What is seen of a run, and what it comes to: the figures of tests/fleet, which has the same for simulated hosts.

use std::ops::Range;
use std::time::Duration;

/// What arrived at the server in a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Second {
    pub(super) requests: u32,
    /// Of requests, heads and bodies, within TLS.
    pub(super) bytes: u64,
    pub(super) handshakes: u32,
}

/// A minute after the outage, as the hosts have seen it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Minute {
    pub(super) requests: u64,
    pub(super) failures: u64,
    /// The longest that one of the requests looked at has taken.
    pub(super) longest: Duration,
}

/// A run's record.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) seconds: Vec<Second>,
    /// The seconds that say what is usual.
    pub(super) usual: Range<usize>,
    /// The first second after the outage.
    pub(super) over_at: usize,
    pub(super) minutes: Vec<Minute>,
    /// Looks at lines that wait and came more than a minute ago: when after the outage, and how many.
    pub(super) backlog: Vec<(Duration, u64)>,
    /// How many there were at the end of the outage.
    pub(super) most: u64,
    /// How long after the outage hosts were fresh again, and how many hosts could be.
    pub(super) fresh: Vec<Duration>,
    pub(super) often: usize,
}

/// What a run comes to.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// Requests and bytes a second before the outage.
    pub(super) usual: [f64; 2],
    /// Means over ten seconds after it, as multiples of the usual, and handshakes a second.
    pub(super) peak_requests: f64,
    pub(super) peak_bytes: f64,
    pub(super) handshakes: f64,
    pub(super) overloaded: usize,
    pub(super) watched: usize,
    /// `None` when some of the hosts that count were not fresh again.
    pub(super) fresh_median: Option<Duration>,
    pub(super) fresh_most: Option<Duration>,
    /// When no more than a thousandth of the backlog was left.
    pub(super) gone: Option<Duration>,
}

/// Peaks are means over this time, in seconds.
const WINDOW: usize = 10;

/// A server is overloaded in a minute in which a request took this time, or more than one in a hundred failed.
const LONG: Duration = Duration::from_secs(10);

impl Record {
    pub(super) fn figures(&self) -> Figures {
        let part = |range: Range<usize>| {
            let end = range.end.min(self.seconds.len());
            &self.seconds[range.start.min(end)..end]
        };
        let mean = |seconds: &[Second], value: fn(&Second) -> f64| {
            seconds.iter().map(value).sum::<f64>() / seconds.len().max(1) as f64
        };
        let after = part(self.over_at..self.seconds.len());
        let peak =
            |value: fn(&Second) -> f64| after.windows(WINDOW).map(|window| mean(window, value)).fold(0.0, f64::max);
        let of_requests = |second: &Second| f64::from(second.requests);
        let of_bytes = |second: &Second| second.bytes as f64;
        let usual = [mean(part(self.usual.clone()), of_requests), mean(part(self.usual.clone()), of_bytes)];
        Figures {
            usual,
            peak_requests: peak(of_requests) / usual[0],
            peak_bytes: peak(of_bytes) / usual[1],
            handshakes: peak(|second| f64::from(second.handshakes)),
            overloaded: self.minutes.iter().filter(|minute| minute.is_overloaded()).count(),
            watched: self.minutes.len(),
            fresh_median: self.fresh_quantile(0.5),
            fresh_most: self.fresh_quantile(0.99),
            gone: self.gone(),
        }
    }

    /// Hosts that are not fresh yet are later than all others.
    fn fresh_quantile(&self, part: f64) -> Option<Duration> {
        let mut fresh = self.fresh.clone();
        fresh.sort_unstable();
        fresh.get(((self.often as f64 * part) as usize).min(self.often.checked_sub(1)?)).copied()
    }

    /// The look from which on no more than a rest of the backlog was ever left.
    fn gone(&self) -> Option<Duration> {
        let last = self.backlog.iter().rposition(|(_, left)| !self.is_rest(*left));
        let first = last.map_or(0, |last| last + 1);
        self.backlog.get(first).map(|(after, _)| *after)
    }

    /// Whether the backlog is gone, and was so at the last looks.
    pub(super) fn is_calm(&self, looks: usize) -> bool {
        let last = &self.backlog[self.backlog.len().saturating_sub(looks)..];
        last.len() == looks && last.iter().all(|(_, left)| self.is_rest(*left))
    }

    fn is_rest(&self, left: u64) -> bool {
        left * 1000 <= self.most
    }
}

impl Minute {
    fn is_overloaded(&self) -> bool {
        self.longest > LONG || self.failures * 100 > self.requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn record() -> Record {
        let second = |requests| Second { requests, bytes: u64::from(requests) * 100, handshakes: requests / 10 };
        let mut seconds = vec![second(50); 20];
        seconds.extend([second(0); 10]);
        seconds.extend([second(100); 10]);
        seconds.extend([second(60); 10]);
        Record { seconds, usual: 0..20, over_at: 30, most: 2000, ..Record::default() }
    }

    #[test]
    fn peaks_are_multiples_of_what_is_usual() {
        let figures = record().figures();
        assert_eq!((figures.usual, figures.peak_requests, figures.peak_bytes), ([50.0, 5000.0], 2.0, 2.0));
        assert_eq!((figures.handshakes, figures.gone), (10.0, None));
    }

    #[test]
    fn a_backlog_is_gone_when_it_does_not_come_back() {
        let with = |looks: &[u64]| {
            let backlog = looks.iter().enumerate().map(|(n, left)| (SECOND * n as u32, *left)).collect();
            Record { backlog, ..record() }
        };
        assert_eq!(with(&[2000, 1, 900, 2, 0]).figures().gone, Some(3 * SECOND));
        assert_eq!(with(&[2000, 900, 3]).figures().gone, None);
        assert!(with(&[3, 2, 0]).is_calm(2));
        assert!(!with(&[3, 2, 3]).is_calm(1) && !with(&[0]).is_calm(2));
    }

    #[test]
    fn a_host_that_is_not_fresh_again_is_later_than_all_others() {
        let fresh: Vec<Duration> = (1..=9).map(|n| n * SECOND).collect();
        let figures = Record { fresh, often: 10, ..record() }.figures();
        assert_eq!((figures.fresh_median, figures.fresh_most), (Some(6 * SECOND), None));
    }

    #[test]
    fn minutes_of_long_waits_or_failures_are_overloaded() {
        let minute = |requests, failures, seconds| Minute { requests, failures, longest: seconds * SECOND };
        let minutes = vec![minute(200, 2, 10), minute(200, 3, 0), minute(200, 0, 11), minute(0, 0, 0)];
        let figures = Record { minutes, ..record() }.figures();
        assert_eq!((figures.overloaded, figures.watched), (2, 4));
    }
}
