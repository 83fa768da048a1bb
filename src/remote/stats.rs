//! What became of requests, by endpoint, since this worker began: the numbers behind the table `remote_tls_endpoints`.
//!
//! A request is one exchange with the server: what is sent once more (without compression, with another node key)
//! counts anew, what follows a redirect doesn't. One that fails before anything is sent, since a flag or a file is
//! unusable, is a request that failed, too.

use std::collections::HashMap;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::tls::Traffic;
use crate::clock::unix_time;
use crate::lock::{Mutex, MutexGuard};

/// The requests to each endpoint; shared by all threads, each of which notes its own.
#[derive(Default)]
pub struct Stats(Mutex<HashMap<Endpoint, EndpointStats>>);

/// The requests to one endpoint. Times are Unix seconds, 0 for never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Requests made, whatever became of them.
    pub requests: u64,
    /// Those that had no success.
    pub failures: u64,
    /// Failures since the last success.
    pub consecutive_failures: u64,
    /// When a request last succeeded.
    pub last_success: i64,
    /// When one last failed.
    pub last_failure: i64,
    /// The last request's HTTP status; `None` when it got no answer.
    pub last_status: Option<u16>,
    /// Why one last failed. It may hold secrets: mask it where it is shown.
    pub last_error: String,
    /// How long the last request took, from connecting to the last byte.
    pub latency: Duration,
    /// Bytes of HTTP within TLS: heads, and bodies as they were sent (compressed, where they were).
    pub traffic: Traffic,
    /// Until when no request is made, after failures.
    pub backoff_until: i64,
}

/// What a request took; nothing, when it fails before anything is sent.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) status: Option<u16>,
    pub(super) latency: Duration,
    pub(super) traffic: Traffic,
}

impl Stats {
    /// What became of the requests to this endpoint.
    #[must_use]
    pub fn of(&self, endpoint: Endpoint) -> EndpointStats {
        self.lock().get(&endpoint).cloned().unwrap_or_default()
    }

    /// A request is over and its answer judged: why it had no success, when it had none.
    pub(super) fn note(&self, endpoint: Endpoint, request: &Measured, error: Option<String>) {
        let mut all = self.lock();
        let stats = all.entry(endpoint).or_default();
        stats.requests += 1;
        stats.last_status = request.status;
        stats.latency = request.latency;
        stats.traffic.sent += request.traffic.sent;
        stats.traffic.received += request.traffic.received;
        match error {
            None => {
                stats.consecutive_failures = 0;
                stats.last_success = unix_time();
            }
            Some(error) => {
                stats.failures += 1;
                stats.consecutive_failures += 1;
                stats.last_failure = unix_time();
                stats.last_error = error;
            }
        }
    }

    /// No request is made to this endpoint within `wait`. Of several waits (results and statuses fail apart) the one
    /// that is over last counts.
    pub fn back_off(&self, endpoint: Endpoint, wait: Duration) {
        let seconds = i64::try_from(wait.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX);
        let until = unix_time().saturating_add(seconds);
        let mut all = self.lock();
        let stats = all.entry(endpoint).or_default();
        stats.backoff_until = stats.backoff_until.max(until);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Endpoint, EndpointStats>> {
        self.0.lock()
    }
}

impl EndpointStats {
    /// [`Self::backoff_until`] while that is still to come, else 0.
    #[must_use]
    pub fn backing_off_until(&self) -> i64 {
        if self.backoff_until > unix_time() { self.backoff_until } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Option<String> {
        Some("no".to_owned())
    }

    #[test]
    fn failures_in_a_row_end_with_a_success_and_the_last_error_stays() {
        let stats = Stats::default();
        for _ in 0..2 {
            stats.note(Endpoint::Logger, &Measured::default(), failure());
        }
        let failed = stats.of(Endpoint::Logger);
        assert_eq!((failed.requests, failed.failures, failed.consecutive_failures), (2, 2, 2));
        assert!(failed.last_failure > 0 && failed.last_success == 0);
        stats.note(Endpoint::Logger, &Measured { status: Some(200), ..Measured::default() }, None);
        let succeeded = stats.of(Endpoint::Logger);
        assert_eq!((succeeded.requests, succeeded.failures, succeeded.consecutive_failures), (3, 2, 0));
        assert_eq!((succeeded.last_status, succeeded.last_error.as_str()), (Some(200), "no"));
        assert_eq!(stats.of(Endpoint::Config), EndpointStats::default());
    }

    #[test]
    fn the_longest_back_off_counts_and_is_none_when_it_is_over() {
        let stats = Stats::default();
        stats.back_off(Endpoint::Logger, Duration::from_secs(60));
        stats.back_off(Endpoint::Logger, Duration::from_secs(1));
        assert!(stats.of(Endpoint::Logger).backing_off_until() > unix_time() + 50);
        let over = EndpointStats { backoff_until: unix_time() - 1, ..EndpointStats::default() };
        assert_eq!(over.backing_off_until(), 0);
    }
}
