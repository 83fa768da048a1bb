//! The server in use, of those that `tls_hostname` and `failover_hostnames` name: what becomes of requests decides
//! ([`Failover`]), and the log tells of each change.

use std::time::Instant;

use super::enroll::error::EnrollError;
use super::error::RemoteError;
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;
    use crate::remote::api::AnswerError;
    use crate::remote::{Endpoint, HostNotFound, TlsError};
    use crate::settings::SettingError;

    fn of_transport(source: TransportError) -> Verdict {
        of_error(&RequestError::Transport { endpoint: Endpoint::Config, url: String::new(), source })
    }

    fn of_answer(source: AnswerError) -> Verdict {
        of_error(&RequestError::Answer { endpoint: Endpoint::Config, url: String::new(), source })
    }

    fn of_status(status: u16, retry_after: Option<Duration>) -> Verdict {
        of_answer(AnswerError::Status { status, beginning: String::new(), retry_after })
    }

    fn setting() -> SettingError {
        SettingError { flag: "tls_hostname".to_owned(), value: String::new(), allowed: "a name".into() }
    }

    #[test]
    fn a_server_that_can_t_be_reached_or_is_not_the_right_one_fails() {
        for source in [
            HostNotFound { host: "a".to_owned(), source: "no address".into() }.into(),
            TransportError::Connect(io::ErrorKind::ConnectionRefused.into()),
            TransportError::from(ureq::Error::Timeout(ureq::Timeout::RecvResponse)),
            TransportError::Broken(String::new()),
            TlsError::Handshake(rustls::Error::DecryptError).into(),
        ] {
            let text = source.to_string();
            assert_eq!(of_transport(source), Verdict::Fails, "{text}");
        }
    }

    #[test]
    fn what_is_the_host_s_or_the_answer_s_fault_says_nothing_of_the_server() {
        assert_eq!(of_error(&setting().into()), Verdict::Open);
        let (redirect, large) = (TransportError::Redirect("elsewhere".to_owned()), TransportError::TooLarge(1));
        for source in [setting().into(), redirect, large, TransportError::NotGzip, TransportError::Ending] {
            let text = source.to_string();
            assert_eq!(of_transport(source), Verdict::Open, "{text}");
        }
        assert_eq!(of_answer(AnswerError::NotAnObject { beginning: String::new() }), Verdict::Open);
    }

    #[test]
    fn a_server_s_own_error_fails_unless_it_says_when_it_will_be_back() {
        assert_eq!([500, 503, 599].map(|status| of_status(status, None)), [Verdict::Fails; 3]);
        assert_eq!(of_status(503, Some(Duration::from_secs(60))), Verdict::Open);
        assert_eq!([400, 401, 404, 429, 499].map(|status| of_status(status, None)), [Verdict::Open; 5]);
    }

    #[test]
    fn a_server_that_knows_the_api_works_whatever_it_thinks_of_this_host() {
        assert_eq!(of_answer(AnswerError::NodeInvalid { status: 401, message: None }), Verdict::Works);
        assert_eq!(of_answer(AnswerError::NotAConfiguration("empty".to_owned())), Verdict::Works);
        assert_eq!(of_answer(AnswerError::NodeInvalid { status: 500, message: None }), Verdict::Fails);
    }

    #[test]
    fn what_was_not_asked_of_a_server_says_nothing_of_it() {
        let left_alone = RemoteError::BackingOff { endpoint: Endpoint::Config, left: Duration::from_secs(1) };
        assert_eq!(verdict::<()>(&Err(left_alone)), Verdict::Open);
        assert_eq!(verdict_of_enrollment::<()>(&Err(EnrollError::NoAnswerYet)), Verdict::Open);
        assert_eq!((verdict(&Ok(())), verdict_of_enrollment(&Ok(()))), (Verdict::Works, Verdict::Works));
        let broken = || RequestError::Transport {
            endpoint: Endpoint::Config,
            url: String::new(),
            source: TransportError::Broken(String::new()),
        };
        assert_eq!(verdict::<()>(&Err(broken().into())), Verdict::Fails);
        assert_eq!(verdict_of_enrollment::<()>(&Err(broken().into())), Verdict::Fails);
    }
}
