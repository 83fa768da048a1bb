//! What a host does of its own: the part that differs between the extension and the built-in plugins.

use std::time::{Duration, Instant};

use osquery_remote_tls::policy::Chance;

/// The flush's period, as Fleet's default options have it.
pub(crate) const LOG_PERIOD: Duration = Duration::from_secs(10);

/// How often osqueryd asks for distributed queries.
pub(crate) const READ_INTERVAL: Duration = Duration::from_secs(10);

/// How often osqueryd asks for the configuration.
pub(crate) const CONFIG_INTERVAL: Duration = Duration::from_secs(60);

/// The same after a failure (osquery's `config_accelerated_refresh`, whose default is longer than our interval).
pub(crate) const CONFIG_AFTER_FAILURE: Duration = Duration::from_secs(300);

/// `logger_tls_max_lines`.
pub(crate) const MOST_LINES: u32 = 1024;

/// What osqueryd asks for at its intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read,
    Config,
}

/// What came of a request, or of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done {
        took: Duration,
    },
    Failed {
        asked: Option<Duration>,
    },
    /// No request was made.
    Local,
}

/// What follows a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    /// When the next attempt or call comes.
    pub(crate) wait: Duration,
    /// Whether it works again after having failed.
    pub(crate) works_again: bool,
}

/// Which connections a host keeps open between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// One, for all requests.
    Shared,
    /// One each for reads and configurations; log requests make a new one each.
    Apart,
}

/// How a host goes about its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    /// New lines first, the backlog by credit behind them.
    LiveFirst,
    /// The oldest first: while there is a backlog, as many as come, and by credit more.
    InOrder,
    /// The oldest first, one request a flush.
    OneRequest,
}

/// A host's policies.
pub(crate) trait Behaviour: Clone {
    /// How long a client waits for an answer.
    const CLIENT_TIMEOUT: Duration;
    const CONNECTIONS: Connections;
    /// Lines kept; the oldest go first. `None` is as many as come.
    const MOST_KEPT: Option<u32>;

    fn sending(&self) -> Sending;

    /// osqueryd asks: whether the server is asked, or the answer is made here.
    fn asks_server(&self, call: Call, now: Instant) -> bool;

    fn after_call(&mut self, call: Call, outcome: Outcome, now: Instant, chance: &mut Chance) -> Next;

    /// Bytes of the backlog that may go with this flush, of `backlog` bytes that came within `came_in`.
    fn credit(&mut self, backlog: u64, came_in: Duration, now: Instant) -> f64;

    /// How long until the next flush. `backlog_sent` are bytes of the credit, `has_backlog` is whether there is more of it.
    fn after_flush(
        &mut self,
        outcome: Outcome,
        backlog_sent: u64,
        has_backlog: bool,
        now: Instant,
        chance: &mut Chance,
    ) -> Duration;

    /// Another endpoint works again: how long until the next flush, which would have come after `left`.
    fn wake_up(&mut self, left: Duration, chance: &mut Chance) -> Duration;

    /// The node key is rejected: how long until another one is asked for.
    fn before_enrollment(&mut self, chance: &mut Chance) -> Duration;

    /// An enrollment has failed: how long until the next one.
    fn after_failed_enrollment(&mut self, asked: Option<Duration>, chance: &mut Chance) -> Duration;
}
