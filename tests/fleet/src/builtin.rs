//! The policies of osquery's built-in TLS plugins, as its documentation and source have them.

use std::time::{Duration, Instant};

use osquery_remote_tls::policy::Chance;

use crate::behaviour::{
    Behaviour, CONFIG_AFTER_FAILURE, CONFIG_INTERVAL, Call, Connections, LOG_PERIOD, Next, Outcome, READ_INTERVAL,
    Sending,
};

/// `config_tls_max_attempts` and `distributed_tls_max_attempts`.
const ATTEMPTS: u32 = 3;

/// `logger_tls_backoff_max`.
const LONGEST_BACKOFF: Duration = Duration::from_secs(3600);

/// `tls_enroll_max_interval`.
const LONGEST_ENROLLMENT_WAIT: Duration = Duration::from_secs(600);

/// A host with the built-in plugins.
#[derive(Clone, Default)]
pub(crate) struct BuiltIn {
    /// Failed attempts of the call at hand.
    attempts: [u32; 2],
    flushes: u32,
    enrollments: u32,
}

/// n² seconds, or as many times `step`, at most `most`.
fn square(step: Duration, failures: u32, most: Duration) -> Duration {
    step.saturating_mul(failures.saturating_mul(failures)).min(most)
}

impl Behaviour for BuiltIn {
    const CLIENT_TIMEOUT: Duration = Duration::from_secs(16);
    const CONNECTIONS: Connections = Connections::Apart;
    /// `buffered_log_max`.
    const MOST_KEPT: Option<u32> = Some(1_000_000);

    fn sending(&self) -> Sending {
        Sending::OneRequest
    }

    fn asks_server(&self, _: Call, _: Instant) -> bool {
        true
    }

    fn after_call(&mut self, call: Call, outcome: Outcome, _: Instant, _: &mut Chance) -> Next {
        let failed = matches!(outcome, Outcome::Failed { .. });
        let attempts = &mut self.attempts[call as usize];
        *attempts = if failed { *attempts + 1 } else { 0 };
        if failed && *attempts < ATTEMPTS {
            let wait = square(Duration::from_secs(1), *attempts, Duration::MAX);
            return Next { wait, works_again: false };
        }
        *attempts = 0;
        let wait = match call {
            Call::Read => READ_INTERVAL,
            Call::Config if failed => CONFIG_AFTER_FAILURE,
            Call::Config => CONFIG_INTERVAL,
        };
        Next { wait, works_again: false }
    }

    fn credit(&mut self, _: u64, _: Duration, _: Instant) -> f64 {
        f64::INFINITY
    }

    fn after_flush(&mut self, outcome: Outcome, _: u64, _: bool, _: Instant, _: &mut Chance) -> Duration {
        if let Outcome::Done { .. } = outcome {
            self.flushes = 0;
            return LOG_PERIOD;
        }
        self.flushes = self.flushes.saturating_add(1);
        square(LOG_PERIOD, self.flushes, LONGEST_BACKOFF)
    }

    fn wake_up(&mut self, left: Duration, _: &mut Chance) -> Duration {
        left
    }

    fn before_enrollment(&mut self, _: &mut Chance) -> Duration {
        Duration::ZERO
    }

    fn after_failed_enrollment(&mut self, _: Option<Duration>, _: &mut Chance) -> Duration {
        self.enrollments = self.enrollments.saturating_add(1);
        square(Duration::from_secs(1), self.enrollments, LONGEST_ENROLLMENT_WAIT)
    }
}
