//! Requests to the server by hand.
//!
//! # What is asked
//!
//! | endpoint | request | why it is harmless |
//! | --- | --- | --- |
//! | config | the stored node key's own request; without a key a GET with nothing in it | it reads |
//! | enroll | nothing; with `--deep` a GET, with `--enroll` an enrollment | no server enrolls for a GET |
//! | distributed read | nothing; with `--deep` with an invalid key | a valid one would take this host's queries away from osqueryd |
//! | distributed write | nothing; with `--deep` with an invalid key | a valid one would be the results of something |
//! | logger | nothing; with `--deep` with an invalid key, and one status line that says what it is | no line under this host's name |
//!
//! Servers log a request with an invalid key as an alarm, and one crashed at it: so those are only made when they
//! are asked for. A server of the remote API rejects such a key, which shows that it is one. The log request has a line
//! since servers have been seen to crash on one without.

use std::time::{Duration, Instant};

use serde_json::{Map, json};

use super::subject::Subject;
use crate::clock::unix_time;
use crate::remote::api::{LogType, Payload};
use crate::remote::{
    Answer, Applicant, Encoding, Endpoint, Host, Request, RequestError, Transport, TransportError, shown_url,
    stored_key,
};
use crate::secret::Secret;
use crate::settings::Settings;
use crate::shutdown::Shutdown;

/// A node key that no server gives out.
const INVALID_KEY: &str = "osquery-remote-tls-doctor-invalid-node-key";

/// Makes the doctor's own requests to the server.
pub(super) struct Asker<'a> {
    pub(super) subject: &'a Subject,
    transport: Transport,
    user_agent: String,
    /// The version of osqueryd, for the `User-Agent`; `None` when it doesn't run.
    pub(super) version: Option<String>,
    /// The key in osqueryd's store, or the blank one where that is the host's.
    pub(super) stored: Option<Secret>,
    invalid: Secret,
}

/// What became of a request: an answer, after this time, or none.
pub(super) type Asked = Result<(Answer, Duration), Unanswered>;

/// Why there is no answer.
pub(super) enum Unanswered {
    /// The request could not be built.
    Unbuilt(RequestError),
    /// None came within this time.
    Silent(TransportError, Duration),
    /// There was no time left to ask.
    NoTime,
}

impl<'a> Asker<'a> {
    pub(super) fn new(subject: &'a Subject) -> Self {
        let running = subject.running.as_ref().ok();
        let stored = running.and_then(|running| stored_key(&running.manager).ok().flatten());
        let version = running.and_then(|running| running.version.clone());
        Self {
            subject,
            transport: Transport::new(Shutdown::default()),
            user_agent: format!("osquery/{}", version.as_deref().unwrap_or("0.0.0")),
            version,
            // A server that knows its hosts otherwise wants the blank key.
            stored: if subject.settings.enroll.disabled { Some(Secret::default()) } else { stored },
            invalid: Secret::new(INVALID_KEY),
        }
    }

    /// The endpoint's URL without secrets.
    pub(super) fn shown(&self, endpoint: Endpoint) -> String {
        shown_url(&self.subject.settings, endpoint).unwrap_or_default()
    }

    /// The first request of all: the configuration with the host's own key, else a GET without anything.
    pub(super) fn open(&self) -> (Endpoint, Asked) {
        let settings = &self.subject.settings;
        let has_path = |endpoint: &Endpoint| endpoint.path(&settings.endpoints).is_ok();
        match &self.stored {
            Some(key) if has_path(&Endpoint::Config) => {
                (Endpoint::Config, self.send(Request::new(settings, Endpoint::Config, Payload::None, key)))
            }
            _ => {
                let order = [Endpoint::Config, Endpoint::Enroll, Endpoint::Logger, Endpoint::DistributedRead];
                let endpoint = order.into_iter().find(has_path).unwrap_or(Endpoint::Config);
                (endpoint, self.send(Request::presence(settings, endpoint)))
            }
        }
    }

    /// Whether a server answers there, by a GET.
    pub(super) fn presence(&self, endpoint: Endpoint) -> Asked {
        self.send(Request::presence(&self.subject.settings, endpoint))
    }

    /// With the invalid key.
    pub(super) fn deep(&self, endpoint: Endpoint) -> Asked {
        // As osqueryd's are: numbers as numbers.
        let line = json!({
            "hostIdentifier": "", "calendarTime": "", "unixTime": unix_time(), "severity": 0, "filename": "doctor",
            "line": 0, "message": "osquery-remote-tls doctor asks whether this endpoint answers",
            "version": self.version.as_deref().unwrap_or_default(),
        })
        .to_string();
        let payload = match endpoint {
            Endpoint::Logger => Payload::Lines(LogType::Status, &line),
            Endpoint::DistributedWrite => Payload::Object("{\"queries\":{},\"statuses\":{}}"),
            _ => Payload::None,
        };
        self.send(Request::new(&self.subject.settings, endpoint, payload, &self.invalid))
    }

    /// An enrollment, under a name of its own: under this host's, some servers would give up the key that it has.
    pub(super) fn enroll(&self) -> Asked {
        let platform = self.subject.running.as_ref().ok();
        let platform = platform.and_then(|running| Host::new(running.manager.clone()).platform_type().ok());
        let applicant =
            Applicant { identifier: doctor_s_name(), platform_type: platform.unwrap_or_default(), details: Map::new() };
        self.send(Request::enrollment(&self.subject.settings, applicant))
    }

    fn send(&self, request: Result<Request, RequestError>) -> Asked {
        let request = request.map_err(Unanswered::Unbuilt)?;
        let mut settings: Settings = self.subject.settings.clone();
        settings.request_timeout = self.subject.left(settings.request_timeout);
        // A moment is no time for an answer.
        if settings.request_timeout < Duration::from_millis(500) {
            return Err(Unanswered::NoTime);
        }
        let began = Instant::now();
        let outgoing = request.outgoing(Encoding::Plain, &self.user_agent);
        match self.transport.send(&settings, &outgoing) {
            Ok(answer) => Ok((answer, began.elapsed())),
            Err(error) => Err(Unanswered::Silent(error, began.elapsed())),
        }
    }
}

/// Whom the doctor enrolls.
pub(super) fn doctor_s_name() -> String {
    format!("{}-doctor", rustix::system::uname().nodename().to_string_lossy())
}
