//! What is seen of a run.

use crate::time::{MINUTE, SECOND, Tick};

/// What arrived at the server in a second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Second {
    pub(crate) requests: u32,
    pub(crate) bytes: f64,
    pub(crate) work: f64,
    pub(crate) handshakes: u32,
    /// Requests that had no success.
    pub(crate) failed: u32,
    /// The longest that a request would have waited, in seconds.
    pub(crate) wait: f32,
}

/// What the hosts' lines are like at the end of a minute.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Minute {
    /// Lines that wait and came more than a minute ago.
    pub(crate) backlog: u64,
    /// For how many seconds the server has not seen a host's newest lines: of half of the hosts no longer than that.
    pub(crate) unseen_median: f32,
    /// The same of all but one in a hundred.
    pub(crate) unseen_most: f32,
}

/// A run's record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) seconds: Vec<Second>,
    pub(crate) minutes: Vec<Minute>,
    /// When the trouble was over, and how long until each host's new lines were seen again, in ticks.
    pub(crate) fresh: Vec<Tick>,
    /// Lines that were lost.
    pub(crate) dropped: u64,
    pub(crate) over_at: Tick,
    /// Requests and bytes a second before anything happened.
    pub(crate) mean_requests: f64,
    pub(crate) mean_bytes: f64,
}

/// What a run comes to.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) peak_bytes: f64,
    pub(crate) peak_requests: f64,
    pub(crate) handshakes: f64,
    /// Minutes after the trouble in which the server was overloaded, and how many were watched.
    pub(crate) overloaded: usize,
    pub(crate) watched: usize,
    pub(crate) fresh_median: Option<f64>,
    pub(crate) fresh_most: Option<f64>,
    /// Seconds until the backlog was gone; `None` when it was not.
    pub(crate) gone: Option<f64>,
    pub(crate) dropped: u64,
}

/// The seconds over which a peak is averaged.
const WINDOW: usize = 10;

/// A server is overloaded in a minute in which requests waited for this many seconds, or more than one in a hundred failed.
const LONG_WAIT: f32 = 10.0;

/// A server that is overloaded for this many minutes after the trouble has collapsed.
const COLLAPSE: usize = 30;

/// The backlog counts as gone when so little of it is left: a host that logs a line an hour has its own pace.
const REST: f64 = 0.001;

impl Record {
    pub(crate) fn figures(&self) -> Figures {
        let from = (self.over_at / SECOND) as usize;
        let after = &self.seconds[from.min(self.seconds.len())..];
        let peak = |value: &dyn Fn(&Second) -> f64| {
            let mean = |window: &[Second]| window.iter().map(value).sum::<f64>() / WINDOW as f64;
            after.windows(WINDOW).map(mean).fold(0.0, f64::max)
        };
        let overloaded = after.chunks(60).filter(|minute| is_overloaded(minute)).count();
        let mut fresh = self.fresh.clone();
        Figures {
            peak_bytes: peak(&|second| second.bytes) / self.mean_bytes,
            peak_requests: peak(&|second| f64::from(second.requests)) / self.mean_requests,
            handshakes: peak(&|second| f64::from(second.handshakes)),
            overloaded,
            watched: after.len().div_ceil(60),
            fresh_median: quantile(&mut fresh, 0.5).map(seconds),
            fresh_most: quantile(&mut fresh, 0.99).map(seconds),
            gone: self.gone(),
            dropped: self.dropped,
        }
    }

    /// The minute after which no more than a rest of the backlog was ever left.
    fn gone(&self) -> Option<f64> {
        let from = (self.over_at / MINUTE) as usize;
        let most = self.minutes.iter().map(|minute| minute.backlog).max().unwrap_or(0);
        let left = |minute: &Minute| minute.backlog as f64 > most as f64 * REST;
        let last = self.minutes.iter().rposition(left);
        match last {
            _ if most == 0 => Some(0.0),
            Some(last) if last + 1 == self.minutes.len() => None,
            Some(last) => Some((last + 1).saturating_sub(from) as f64 * 60.0),
            None => Some(0.0),
        }
    }

    /// Whether all has been as before for the last `minutes` minutes.
    pub(crate) fn is_calm(&self, minutes: usize) -> bool {
        let enough = self.minutes.len() >= (self.over_at / MINUTE) as usize + minutes;
        let most = self.minutes.iter().map(|minute| minute.backlog).max().unwrap_or(0);
        let quiet = |minute: &Minute| minute.backlog as f64 <= most as f64 * REST;
        let last = &self.minutes[self.minutes.len().saturating_sub(minutes)..];
        let seconds = &self.seconds[self.seconds.len().saturating_sub(minutes * 60)..];
        enough && last.iter().all(quiet) && !seconds.chunks(60).any(is_overloaded)
    }
}

impl Figures {
    /// Whether the server did not get up again of its own, or never got what was kept for it.
    pub(crate) fn is_collapse(&self) -> bool {
        self.overloaded > COLLAPSE || self.gone.is_none()
    }
}

fn is_overloaded(minute: &[Second]) -> bool {
    let (requests, failed) =
        minute.iter().fold((0, 0), |(requests, failed), second| (requests + second.requests, failed + second.failed));
    minute.iter().any(|second| second.wait > LONG_WAIT) || failed * 100 > requests
}

fn seconds(ticks: Tick) -> f64 {
    f64::from(ticks) / f64::from(SECOND)
}

/// The value that this part of all doesn't exceed.
pub(crate) fn quantile(values: &mut [Tick], part: f64) -> Option<Tick> {
    let rank = ((values.len() as f64 * part) as usize).min(values.len().checked_sub(1)?);
    Some(*values.select_nth_unstable(rank).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(waits: &[f32], backlog: &[u64]) -> Record {
        let seconds =
            waits.iter().flat_map(|&wait| [Second { requests: 100, wait, ..Second::default() }; 60]).collect();
        let minutes = backlog.iter().map(|&backlog| Minute { backlog, ..Minute::default() }).collect();
        Record { seconds, minutes, mean_requests: 50.0, mean_bytes: 1.0, ..Record::default() }
    }

    #[test]
    fn minutes_with_long_waits_are_overloaded_and_many_of_them_are_a_collapse() {
        let figures = record(&[1.0, 11.0, 12.0, 3.0], &[0; 4]).figures();
        assert_eq!((figures.overloaded, figures.watched, figures.is_collapse()), (2, 4, false));
        assert!((figures.peak_requests - 2.0).abs() < 1e-9);
        assert!(record(&[11.0; 31], &[0; 31]).figures().is_collapse());
    }

    #[test]
    fn a_backlog_is_gone_when_it_does_not_come_back() {
        assert_eq!(record(&[0.0; 5], &[2000, 1, 900, 2, 0]).figures().gone, Some(180.0));
        assert_eq!(record(&[0.0; 3], &[2000, 1000, 900]).figures().gone, None);
        assert!(record(&[0.0; 3], &[2000, 1, 0]).is_calm(2) && !record(&[0.0; 3], &[2000, 3, 0]).is_calm(2));
    }

    #[test]
    fn quantiles_are_values_that_were_seen() {
        assert_eq!(quantile(&mut [5, 1, 9, 3], 0.5), Some(5));
        assert_eq!(quantile(&mut [5, 1, 9, 3], 0.99), Some(9));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}
