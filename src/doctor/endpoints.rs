//! What the server answers at each endpoint, and what its clock says.
//!
//! # What is asked
//!
//! | endpoint | request | why it is harmless |
//! | --- | --- | --- |
//! | enroll | a GET, which no server enrolls for; with `--enroll` an enrollment | nothing is sent |
//! | config | the stored node key's own request, else one with an invalid key | it reads |
//! | distributed read | with an invalid key, always | a valid one would take this host's queries away from osqueryd |
//! | distributed write | with an invalid key, always | a valid one would be the results of something |
//! | logger | with an invalid key, always, and one status line that says what it is | no line under this host's name |
//!
//! A server of the remote API rejects the invalid key by `node_invalid`, which shows that it is one. The log request
//! has a line since servers have been seen to crash on one without.

use std::time::{Duration, SystemTime};

use serde_json::{Map, json};

use super::{Check, Report, Subject};
use crate::chain::chain;
use crate::remote::api::{self, AnswerError, ClientCertificate, ConfigLimits, Enrolled, LogType, Payload};
use crate::remote::{
    Answer, Applicant, Encoding, Endpoint, Host, Request, RequestError, Transport, TransportError, key_place,
    shown_url, stored_key,
};
use crate::secret::Secret;
use crate::settings::Settings;
use crate::shutdown::Shutdown;

/// A node key that no server gives out.
const INVALID_KEY: &str = "osquery-remote-tls-doctor-invalid-node-key";

/// Clocks that differ by more are worth a warning: lines have wrong times.
const CLOCK_WARNING: Duration = Duration::from_secs(60);

/// Clocks that differ by more make certificates look expired, or not yet valid.
const CLOCK_FAILURE: Duration = Duration::from_secs(3600);

const ENDPOINTS: [(Endpoint, Check); 5] = [
    (Endpoint::Enroll, Check::EnrollEndpoint),
    (Endpoint::Config, Check::ConfigEndpoint),
    (Endpoint::Logger, Check::LoggerEndpoint),
    (Endpoint::DistributedRead, Check::DistributedReadEndpoint),
    (Endpoint::DistributedWrite, Check::DistributedWriteEndpoint),
];

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    let (Ok(_), true) = (&subject.settings.server, report.is_well(Check::TlsHandshake)) else {
        report.skip(Check::Clock, "there is no connection to the server");
        for (_, check) in ENDPOINTS {
            report.skip(check, "there is no connection to the server");
        }
        return;
    };
    let asker = Asker::new(subject);
    let mut clock_read = false;
    let asked: Vec<_> = ENDPOINTS
        .into_iter()
        .map(|(endpoint, check)| {
            let asked = asker.ask(endpoint);
            if let (false, Some(Ok((answer, at)))) = (clock_read, &asked)
                && let Some(date) = answer.date
            {
                clock(date, *at, report);
                clock_read = true;
            }
            (endpoint, check, asked)
        })
        .collect();
    if !clock_read {
        report.skip(Check::Clock, "no answer of the server has its time");
    }
    for (endpoint, check, asked) in asked {
        match asked {
            None => report.skip(check, "its flag is not set"),
            Some(Err(error)) => report.fail(
                check,
                format!("{}: {error}", asker.shown(endpoint)),
                "look at the server's log, and at what is between it and this host",
            ),
            Some(Ok((answer, _))) => asker.judge(endpoint, check, &answer, report),
        }
    }
}

fn clock(theirs: SystemTime, ours: SystemTime, report: &mut Report<'_>) {
    let (skew, direction) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let message = format!("this host's clock is {} s {direction} the server's", skew.as_secs());
    let remedy = "set the clock, and have it kept by NTP (chrony, systemd-timesyncd)";
    match skew {
        _ if skew > CLOCK_FAILURE => report.fail(Check::Clock, message, remedy),
        _ if skew > CLOCK_WARNING => report.warn(Check::Clock, message, remedy),
        _ => report.ok(Check::Clock, message),
    }
}

/// Asks the server.
struct Asker<'a> {
    subject: &'a Subject,
    settings: &'a Settings,
    transport: Transport,
    user_agent: String,
    version: Option<String>,
    /// The key in osqueryd's store.
    stored: Option<Secret>,
    invalid: Secret,
}

/// An answer and when it came, or why there is none; `None` where there is nobody to ask.
type Asked = Option<Result<(Answer, SystemTime), String>>;

impl<'a> Asker<'a> {
    fn new(subject: &'a Subject) -> Self {
        let host = subject.running.as_ref().ok().map(|running| Host::new(running.manager.clone()));
        let stored = subject.running.as_ref().ok().and_then(|running| stored_key(&running.manager).ok().flatten());
        let disabled = subject.settings.enroll.disabled;
        Self {
            subject,
            settings: &subject.settings,
            transport: Transport::new(Shutdown::default()),
            user_agent: host.as_ref().map_or_else(|| "osquery/0.0.0".to_owned(), Host::user_agent),
            version: host.and_then(|host| host.version()),
            // A server that knows its hosts otherwise wants the blank key.
            stored: if disabled { Some(Secret::default()) } else { stored },
            invalid: Secret::new(INVALID_KEY),
        }
    }

    fn ask(&self, endpoint: Endpoint) -> Asked {
        endpoint.path(&self.settings.endpoints).ok()?;
        let answer = self
            .request(endpoint)
            .map_err(|error| chain(&error).to_string())
            .and_then(|request| self.send(&request).map_err(|error| chain(&error).to_string()));
        Some(answer.map(|answer| (answer, SystemTime::now())))
    }

    fn request(&self, endpoint: Endpoint) -> Result<Request, RequestError> {
        let line = json!({
            "severity": "0", "filename": "doctor", "line": "0", "hostIdentifier": "", "calendarTime": "",
            "unixTime": "0", "message": "osquery-remote-tls doctor asks whether this endpoint answers",
        })
        .to_string();
        let payload = match endpoint {
            Endpoint::Enroll if self.subject.enroll => return Request::enrollment(self.settings, self.applicant()),
            Endpoint::Enroll => return Request::presence(self.settings),
            Endpoint::Config | Endpoint::DistributedRead => Payload::None,
            Endpoint::Logger => Payload::Lines(LogType::Status, &line),
            Endpoint::DistributedWrite => Payload::Object("{\"queries\":{},\"statuses\":{}}"),
        };
        Request::new(self.settings, endpoint, payload, self.key(endpoint))
    }

    fn send(&self, request: &Request) -> Result<Answer, TransportError> {
        self.transport.send(self.settings, &request.outgoing(Encoding::Plain, &self.user_agent))
    }

    /// The key that an endpoint is asked with.
    fn key(&self, endpoint: Endpoint) -> &Secret {
        match (endpoint, &self.stored) {
            (Endpoint::Config, Some(stored)) => stored,
            _ => &self.invalid,
        }
    }

    /// Under a name of its own: under this host's, some servers would give up the key that it has.
    fn applicant(&self) -> Applicant {
        let platform = self.subject.running.as_ref().ok();
        let platform = platform.and_then(|running| Host::new(running.manager.clone()).platform_type().ok());
        Applicant { identifier: doctor_s_name(), platform_type: platform.unwrap_or_default(), details: Map::new() }
    }

    /// The endpoint's URL without secrets.
    fn shown(&self, endpoint: Endpoint) -> String {
        shown_url(self.settings, endpoint).unwrap_or_default()
    }

    fn judge(&self, endpoint: Endpoint, check: Check, answer: &Answer, report: &mut Report<'_>) {
        let url = self.shown(endpoint);
        match endpoint {
            Endpoint::Enroll if self.subject.enroll => self.judge_enrollment(&url, answer, report),
            Endpoint::Enroll => judge_presence(&url, answer, report),
            Endpoint::Config if self.stored.is_some() => self.judge_config(&url, answer, report),
            _ => self.judge_rejection(&url, endpoint, check, answer, report),
        }
    }

    fn judge_enrollment(&self, url: &str, answer: &Answer, report: &mut Report<'_>) {
        const CHECK: Check = Check::EnrollEndpoint;
        let certificate = match &self.settings.tls.client {
            Ok(Some(_)) => ClientCertificate::Configured,
            _ => ClientCertificate::Absent,
        };
        match api::judge_enrollment(answer.status, answer.retry_after, &answer.body, certificate) {
            Ok(Enrolled::Key(_)) => report.ok(
                CHECK,
                format!(
                    "{url}: enrolled; the key is not kept, and the server knows a host \"{}\" now, which you may \
                     delete there",
                    doctor_s_name()
                ),
            ),
            Ok(Enrolled::Blank) => report.ok(CHECK, format!("{url}: enrolled, without a node key")),
            Err(AnswerError::NodeInvalid { message, .. }) => report.fail(
                CHECK,
                format!(
                    "{url}: the server refuses the enrollment ({})",
                    message.as_deref().unwrap_or("no reason given")
                ),
                "see that the enroll secret is the server's",
            ),
            Err(error) => report.fail(CHECK, format!("{url}: {error}"), remedy(&error)),
        }
    }

    /// With the stored key, or the blank one where that is the host's.
    fn judge_config(&self, url: &str, answer: &Answer, report: &mut Report<'_>) {
        const CHECK: Check = Check::ConfigEndpoint;
        let limits = ConfigLimits::of_version(self.version.as_deref());
        let judged = api::judge(Endpoint::Config, answer.status, answer.retry_after, &answer.body)
            .and_then(|answer| api::configuration(answer, key_place(self.settings), limits));
        match judged {
            Ok(document) => report.ok(CHECK, format!("{url}: a configuration of {} bytes", document.len())),
            Err(error @ AnswerError::NodeInvalid { .. }) if self.settings.enroll.reenrollment_disabled => report.fail(
                CHECK,
                format!("{url}: {error} that this host has"),
                "enroll it anew: --disable_reenrollment keeps osqueryd from it",
            ),
            Err(error @ AnswerError::NodeInvalid { .. }) => report.warn(
                CHECK,
                format!("{url}: {error} that this host has"),
                "nothing, if osqueryd enrolls anew at its next request; else see the enroll endpoint (--enroll)",
            ),
            Err(error) => report.fail(CHECK, format!("{url}: {error}"), remedy(&error)),
        }
    }

    /// With the invalid key, which must be rejected.
    fn judge_rejection(&self, url: &str, endpoint: Endpoint, check: Check, answer: &Answer, report: &mut Report<'_>) {
        match api::judge(endpoint, answer.status, answer.retry_after, &answer.body) {
            Err(AnswerError::NodeInvalid { .. }) => {
                report.ok(check, format!("{url}: a server of the remote API: it rejects a node key that is invalid"));
            }
            Ok(_) if matches!(self.settings.tls.client, Ok(Some(_))) => {
                report.ok(check, format!("{url}: takes any node key (the client certificate counts)"));
            }
            Ok(_) => report.warn(
                check,
                format!("{url}: takes a node key that is invalid"),
                "see that the path is the server's for this: no server should take requests from anybody",
            ),
            Err(error) if matches!(error.status(), Some(400 | 401 | 403)) => report.warn(
                check,
                format!(
                    "{url}: refuses an invalid node key without \"node_invalid\": {error}; a host whose key is not \
                     accepted any more would not enroll again"
                ),
                "see that the path is the server's for this, and what the server's log says",
            ),
            Err(error) => report.fail(check, format!("{url}: {error}"), remedy(&error)),
        }
    }
}

/// The answer to a GET of the enroll endpoint: only whether something is there.
fn judge_presence(url: &str, answer: &Answer, report: &mut Report<'_>) {
    const CHECK: Check = Check::EnrollEndpoint;
    match answer.status {
        404 => report.warn(
            CHECK,
            format!("{url}: the server answers a GET by HTTP 404, as it does where there is nothing"),
            "see that --enroll_tls_endpoint is right, or try an enrollment by --enroll",
        ),
        status @ 500.. => {
            report.fail(CHECK, format!("{url}: the server answered HTTP {status}"), "look at the server's log")
        }
        status => report.ok(CHECK, format!("{url}: answers (HTTP {status} to a GET); --enroll tries an enrollment")),
    }
}

fn remedy(error: &AnswerError) -> &'static str {
    match error {
        AnswerError::Status { status: 404 | 405, .. } | AnswerError::Error { status: 404 | 405, .. } => {
            "see that the endpoint's flag is the server's path for it"
        }
        AnswerError::NotAnObject { .. } => {
            "something else answers here, such as a web page or a proxy: see --tls_hostname and the endpoint's flag"
        }
        AnswerError::NotAConfiguration(_) => "correct this host's configuration on the server",
        _ => "look at the server's log",
    }
}

/// Whom the doctor enrolls.
fn doctor_s_name() -> String {
    format!("{}-doctor", rustix::system::uname().nodename().to_string_lossy())
}
