//! The extension's policies: the very types that it is made of.

use std::time::{Duration, Instant};

use osquery_remote_tls::policy::{
    Backoff, Breaker, Chance, Drain, IntakeRate, LONGEST_BACKOFF, Reenrollment, RetryAfter, WakeUp,
};

use crate::behaviour::{
    Behaviour, CONFIG_INTERVAL, Call, Connections, LOG_PERIOD, Next, Outcome, READ_INTERVAL, Sending,
};
use crate::lines::LINE_BYTES;

/// A host with the extension.
#[derive(Clone)]
pub(crate) struct Ours {
    sending: Sending,
    reads: Breaker,
    configurations: Breaker,
    backoff: Backoff,
    drain: Option<Drain>,
    reenrollment: Reenrollment,
    enrollment: Backoff,
}

impl Ours {
    /// Which sends its lines in this order.
    pub(crate) fn new(sending: Sending) -> Self {
        Self {
            sending,
            reads: Breaker::for_reads(),
            configurations: Breaker::for_configurations(),
            backoff: Backoff::new(LOG_PERIOD, LONGEST_BACKOFF),
            drain: None,
            reenrollment: Reenrollment::default(),
            enrollment: Backoff::new(Duration::from_secs(1), Duration::from_secs(600)),
        }
    }

    fn breaker(&mut self, call: Call) -> &mut Breaker {
        match call {
            Call::Read => &mut self.reads,
            Call::Config => &mut self.configurations,
        }
    }
}

impl Behaviour for Ours {
    const CLIENT_TIMEOUT: Duration = Duration::from_secs(16);
    const CONNECTIONS: Connections = Connections::Shared;
    const MOST_KEPT: Option<u32> = None;

    fn sending(&self) -> Sending {
        self.sending
    }

    fn asks_server(&self, call: Call, now: Instant) -> bool {
        let breaker = match call {
            Call::Read => &self.reads,
            Call::Config => &self.configurations,
        };
        breaker.left(now).is_none()
    }

    fn after_call(&mut self, call: Call, outcome: Outcome, now: Instant, chance: &mut Chance) -> Next {
        let interval = match call {
            Call::Read => READ_INTERVAL,
            Call::Config => CONFIG_INTERVAL,
        };
        let works_again = match outcome {
            Outcome::Done { .. } => self.breaker(call).succeeded(),
            Outcome::Failed { asked } => {
                let asked = RetryAfter::spread(asked, chance);
                let wait = self.breaker(call).failed(now, asked, chance);
                // The extension goes on asking for the configuration by itself.
                let wait = if call == Call::Config { wait } else { interval };
                return Next { wait, works_again: false };
            }
            Outcome::Local => false,
        };
        Next { wait: interval, works_again }
    }

    fn credit(&mut self, backlog: u64, came_in: Duration, now: Instant) -> f64 {
        let drain = self.drain.get_or_insert_with(|| Drain::new(now));
        let rate = IntakeRate::of(backlog, came_in).at_least_a_quiet_host_s(LINE_BYTES);
        drain.credit(rate, LOG_PERIOD, now)
    }

    fn after_flush(
        &mut self,
        outcome: Outcome,
        backlog_sent: u64,
        has_backlog: bool,
        now: Instant,
        chance: &mut Chance,
    ) -> Duration {
        if let Some(drain) = &mut self.drain {
            drain.spent(backlog_sent);
        }
        match outcome {
            Outcome::Done { took } => {
                self.backoff.succeeded();
                match &mut self.drain {
                    Some(drain) if has_backlog => {
                        drain.answered(took, now);
                        Drain::period(LOG_PERIOD, chance)
                    }
                    _ => {
                        self.drain = None;
                        LOG_PERIOD
                    }
                }
            }
            Outcome::Failed { asked } => {
                if let Some(drain) = &mut self.drain {
                    drain.failed(now);
                }
                self.backoff.failed(chance).max(RetryAfter::spread(asked, chance).unwrap_or_default())
            }
            Outcome::Local => self.backoff.failed(chance),
        }
    }

    fn wake_up(&mut self, left: Duration, chance: &mut Chance) -> Duration {
        if self.backoff.failures() == 0 { left } else { WakeUp.wait(left, chance) }
    }

    fn before_enrollment(&mut self, chance: &mut Chance) -> Duration {
        self.reenrollment.wait(chance)
    }

    fn after_failed_enrollment(&mut self, asked: Option<Duration>, chance: &mut Chance) -> Duration {
        self.enrollment.failed(chance).max(RetryAfter::spread(asked, chance).unwrap_or_default())
    }
}
