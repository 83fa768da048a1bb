//! The server in use, of those that `tls_hostname` and `failover_hostnames` name: what becomes of requests decides
//! ([`Failover`]), and the log tells of each change.

use std::time::Instant;

use super::enroll::EnrollError;
use super::node::RemoteError;
use super::request::RequestError;
use super::transport_error::TransportError;
use crate::lock::Mutex;
use crate::policy::{Chance, Consequence, Failover, Verdict};
use crate::settings::Settings;
use crate::words::Span;

/// Which server is in use.
#[derive(Default)]
pub struct Servers(Mutex<Failover>);

impl Servers {
    /// The number of the server in use: 0 is `tls_hostname`.
    #[must_use]
    pub fn number(&self) -> usize {
        self.0.lock().in_use()
    }

    /// The server that a request is made to. It may be an earlier one than that in use where the request `may_try`.
    pub(super) fn choose(&self, may_try: bool) -> usize {
        self.0.lock().choose(may_try, Instant::now(), &mut Chance::new())
    }

    /// A request to a server was made: what follows from that.
    pub(super) fn note(&self, settings: &Settings, server: usize, verdict: Verdict) -> Consequence {
        let (count, after) = (1 + settings.failover.servers.len(), settings.failover.after);
        let consequence = self.0.lock().note(server, verdict, count, after, Instant::now(), &mut Chance::new());
        match consequence {
            Consequence::Leave(next, failed_for) => log::warn!(
                "the server {} has failed for {}: {} is asked from now on (failover_hostnames)",
                settings.server_name(server),
                Span(failed_for),
                settings.server_name(next)
            ),
            Consequence::Return => {
                log::info!("the server {} works again, and is asked from now on", settings.server_name(server))
            }
            Consequence::None | Consequence::Repeat(_) => {}
        }
        consequence
    }
}

/// What a request as this node says of its server.
pub(super) fn verdict<T>(outcome: &Result<T, RemoteError>) -> Verdict {
    match outcome {
        Ok(_) => Verdict::Works,
        Err(RemoteError::Request(error)) => of_error(error),
        // What an enrollment says, its own attempts have told.
        Err(RemoteError::NotEnrolled { .. } | RemoteError::BackingOff { .. }) => Verdict::Open,
    }
}

/// What an enrollment says of its server.
pub(super) fn verdict_of_enrollment<T>(outcome: &Result<T, EnrollError>) -> Verdict {
    match outcome {
        Ok(_) => Verdict::Works,
        Err(EnrollError::Request(error)) => of_error(error),
        Err(_) => Verdict::Open,
    }
}

fn of_error(error: &RequestError) -> Verdict {
    let is_answer_of_the_api = error.is_node_invalid() || error.is_unusable_configuration();
    match error {
        RequestError::Transport { source: TransportError::Tls(_), .. } => Verdict::Fails,
        RequestError::Transport { source, .. } if source.is_of_the_connection() => Verdict::Fails,
        // One that says how long it wants to be left alone will be back, and the others are not to get its load at once.
        RequestError::Answer { .. } if error.retry_after().is_none() && error.status().is_some_and(|it| it >= 500) => {
            Verdict::Fails
        }
        RequestError::Answer { .. } if is_answer_of_the_api => Verdict::Works,
        _ => Verdict::Open,
    }
}
