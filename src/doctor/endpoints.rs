//! The server's answers: to the doctor's own requests, and to the extension's, as it tells them.
//!
//! Where the extension has already had an answer, that counts: it sends what the doctor must not. `server` says what is asked.

use std::time::{Duration, SystemTime};

use super::delivery::waiting;
use super::fault::{self, Fault, Flags, WAITS_FOR_ANOTHER_KEY, words_of};
use super::flags::is_needed;
use super::handshake;
use super::server::{Asked, Asker, Unanswered, doctor_s_name};
use super::subject::Subject;
use super::told::{Exchange, Told};
use super::{Check, Report};
use crate::chain::chain;
use crate::clock::{day_and_time, unix_time};
use crate::remote::api::{self, AnswerError, ClientCertificate, Enrolled};
use crate::remote::configuration::ConfigLimits;
use crate::remote::{Answer, Endpoint, Look, TlsError, TransportError, key_place};
use crate::words::counted;

/// Clocks that differ by more are worth a warning: lines have wrong times.
const CLOCK_WARNING: Duration = Duration::from_secs(60);

/// Clocks that differ by more make certificates look expired, or not yet valid.
const CLOCK_FAILURE: Duration = Duration::from_secs(3600);

/// What an enrollment says that waits for its moment within `reenroll_within`.
const SPREAD: &str = "another one is asked for in ";

/// This many failures in a row are no chance, and a failure of the check.
const FAILS: u64 = 2;

const ENDPOINTS: [(Endpoint, Check); 5] = [
    (Endpoint::Enroll, Check::EnrollEndpoint),
    (Endpoint::Config, Check::ConfigEndpoint),
    (Endpoint::Logger, Check::LoggerEndpoint),
    (Endpoint::DistributedRead, Check::DistributedReadEndpoint),
    (Endpoint::DistributedWrite, Check::DistributedWriteEndpoint),
];

pub(super) fn check(subject: &Subject, look: Option<&Look>, report: &mut Report<'_>) {
    let has_headers = !report.has_failed(Check::RequestHeaders);
    let (Some(look), true, true) = (look, report.is_well(Check::TlsHandshake), has_headers) else {
        let reason = match has_headers {
            true => "there is no connection to the server",
            false => "no request can be made: see request headers",
        };
        for check in [Check::ServerAnswer, Check::Clock].into_iter().chain(ENDPOINTS.map(|(_, check)| check)) {
            report.skip(check, reason);
        }
        return;
    };
    let asker = Asker::new(subject);
    let judge = Judge { asker: &asker, subject, flags: Flags::of(subject) };
    let (opened, first) = asker.open();
    let answer = judge.first(opened, first, look, report);
    let Some(answer) = answer else {
        for (_, check) in ENDPOINTS {
            report.skip(check, "the server does not answer");
        }
        return;
    };
    for (endpoint, check) in ENDPOINTS {
        let first = (endpoint == opened).then_some(&answer);
        judge.endpoint(endpoint, check, first, report);
    }
}

/// Makes findings of the answers of a server.
struct Judge<'a> {
    asker: &'a Asker<'a>,
    subject: &'a Subject,
    flags: Flags,
}

impl Judge<'_> {
    /// The answer to the first request of all; none where nothing else need be asked.
    fn first(&self, endpoint: Endpoint, asked: Asked, look: &Look, report: &mut Report<'_>) -> Option<Answer> {
        const CHECK: Check = Check::ServerAnswer;
        let url = self.asker.shown(endpoint);
        let (answer, took) = match asked {
            Ok(answered) => answered,
            Err(unanswered) => {
                let (message, remedy) = self.no_answer(endpoint, &unanswered, Some(look));
                report.fail(CHECK, format!("{url}: {message}"), remedy);
                report.skip(Check::Clock, "the server does not answer");
                return None;
            }
        };
        let words = words_of(&answer.body).unwrap_or_default();
        if fault::wants_client_certificate(answer.status, &words) {
            let message = format!("{url}: the server wants a client certificate (HTTP {}: {words})", answer.status);
            report.fail(CHECK, message, fault::CLIENT_CERTIFICATE);
            report.skip(Check::Clock, "the server does not answer");
            return None;
        }
        report.ok(CHECK, format!("HTTP {} after {} ms", answer.status, took.as_millis()));
        match answer.date {
            Some(theirs) => clock(theirs, SystemTime::now(), report),
            None => report.skip(Check::Clock, "no answer of the server has its time"),
        }
        Some(answer)
    }

    /// Why there is no answer, and what to do.
    fn no_answer(&self, endpoint: Endpoint, unanswered: &Unanswered, look: Option<&Look>) -> (String, String) {
        let has_certificate = matches!(self.subject.settings.tls.client, Ok(Some(_)));
        let wants = look.is_some_and(|look| look.asked_for_certificate);
        let (error, took) = match unanswered {
            Unanswered::Unbuilt(error) => {
                let words = chain(error).to_string();
                let remedy = self.remedy(endpoint, 0, &words);
                return (words, remedy);
            }
            Unanswered::NoTime => {
                return ("no time is left to ask it".to_owned(), "run the doctor once more".to_owned());
            }
            Unanswered::Silent(error, took) => (error, took),
        };
        match error {
            TransportError::Tls(TlsError::Handshake(rustls::Error::AlertReceived(alert))) => {
                if let Some(diagnosis) = handshake::client_certificate(*alert, wants, has_certificate) {
                    return (diagnosis.message, diagnosis.remedy);
                }
            }
            // In TLS 1.3 a server may hang up in place of an alert.
            TransportError::Broken(_) if wants && !has_certificate => {
                let diagnosis = handshake::certificate_wanted();
                return (diagnosis.message, diagnosis.remedy);
            }
            TransportError::Timeout(_) => {
                let words = format!("no answer within {} s", took.as_secs());
                let remedy = self.remedy(endpoint, 0, &words);
                return (words, remedy);
            }
            _ => {}
        }
        let words = chain(error).to_string();
        let remedy = self.remedy(endpoint, 0, &words);
        (words, remedy)
    }

    fn remedy(&self, endpoint: Endpoint, status: u16, words: &str) -> String {
        Fault { endpoint, status, words, flags: &self.flags }.remedy()
    }

    fn endpoint(&self, endpoint: Endpoint, check: Check, first: Option<&Answer>, report: &mut Report<'_>) {
        let subject = self.subject;
        if endpoint.path(&subject.settings.endpoints).is_err() {
            return report.skip(check, "its flag is not set");
        }
        if !is_needed(subject, endpoint) {
            return report.skip(check, "no plugin in use needs it");
        }
        if endpoint != Endpoint::Enroll && report.has_failed(Check::EnrollEndpoint) && subject.told.is_ok() {
            return report.skip(check, "the host is not enrolled");
        }
        let told = subject.told.as_ref().ok();
        match (endpoint, told) {
            (Endpoint::Enroll, _) if subject.enroll => self.try_enrollment(report),
            (Endpoint::Enroll, Some(told)) => self.enrollment(told, report),
            (Endpoint::Config, _) if self.asker.stored.is_some() && first.is_some() => {
                if let Some(answer) = first {
                    self.config(answer, report);
                }
            }
            (_, Some(told)) if !told.enrollment.enrolled && !subject.settings.enroll.disabled => {
                report.skip(check, "the host is not enrolled");
            }
            (_, Some(told)) if told.of(endpoint).is_some_and(|row| row.requests > 0) => {
                if let Some(row) = told.of(endpoint) {
                    self.exchange(endpoint, check, row, told, report);
                }
            }
            _ if subject.deep => self.deep(endpoint, check, report),
            (Endpoint::Config, None) => self.present(check, first, report),
            (_, Some(_)) => report.skip(check, "nothing was asked yet since the worker began; --deep asks"),
            (_, None) => report.skip(check, "not asked while the extension can't tell; --deep asks"),
        }
    }

    /// What came to a GET without a key shows only that a server answers: many do so by 404.
    fn present(&self, check: Check, first: Option<&Answer>, report: &mut Report<'_>) {
        let Some(answer) = first else { return report.skip(check, "not asked without a node key; --deep asks") };
        let url = self.asker.shown(Endpoint::Config);
        match answer.status {
            status @ 500.. => {
                let words = said(status, &answer.body);
                let remedy = self.remedy(Endpoint::Config, status, &words);
                report.fail(check, format!("{url}: {words}"), remedy);
            }
            _ => report.skip(check, "there is no node key to ask with; --deep asks with an invalid one"),
        }
    }

    /// How the extension's requests fare.
    fn exchange(&self, endpoint: Endpoint, check: Check, row: &Exchange, told: &Told, report: &mut Report<'_>) {
        let (url, ago) = (&row.url, |time: i64| unix_time().saturating_sub(time));
        if row.consecutive_failures == 0 {
            return report.ok(check, format!("{url}: works, last {} s ago", ago(row.last_success)));
        }
        let since = match row.last_success {
            0 => "never a success since the worker began".to_owned(),
            time => format!("the last success {} s ago", ago(time)),
        };
        let (lines, oldest) = told.waiting();
        let waiting = match endpoint {
            Endpoint::Logger if lines > 0 => format!("; {}", waiting(lines, oldest)),
            _ => String::new(),
        };
        let (failures, words) = (row.consecutive_failures, row.words());
        let counted = counted(failures, "failure");
        let message = format!("{url}: {counted} in a row, {since}: {words}{waiting}");
        let remedy = self.remedy(endpoint, row.last_status, words);
        if failures >= FAILS || row.last_success == 0 {
            report.fail(check, message, remedy);
        } else {
            report.warn(check, message, remedy);
        }
    }

    fn enrollment(&self, told: &Told, report: &mut Report<'_>) {
        const CHECK: Check = Check::EnrollEndpoint;
        let enrollment = &told.enrollment;
        let row = told.of(Endpoint::Enroll).cloned().unwrap_or_default();
        let url = self.asker.shown(Endpoint::Enroll);
        let error = enrollment.last_error.as_str();
        if error.is_empty() && enrollment.enrolled {
            let who = match enrollment.host_identifier.as_str() {
                "" => String::new(),
                name => format!(" as {name}"),
            };
            return report.ok(CHECK, format!("enrolled{who} since {}", day_and_time(enrollment.since)));
        }
        if error.is_empty() && enrollment.attempts == 0 {
            return report.skip(CHECK, "not enrolled: no request has needed a node key yet; --enroll asks for one");
        }
        let words = error.split_once("): ").map_or(error, |(_, words)| words);
        if words.contains(SPREAD) {
            let remedy = "nothing: it waits on purpose, and asks by itself; `osquery-remote-tls refresh` asks at once";
            return report.warn(CHECK, format!("{url}: {words}"), remedy);
        }
        let most = self.subject.settings.enroll.max_attempts.map(u64::from);
        let over = match most.filter(|most| !enrollment.enrolled && enrollment.attempts >= *most) {
            Some(most) => format!(
                "; as many as --tls_enroll_max_attempts={most} allows: it goes on when a node key is needed again, at the latest \
                 when osqueryd is restarted"
            ),
            None => String::new(),
        };
        let attempts = enrollment.attempts;
        let message = format!("{url}: not enrolled after {}: {words}{over}", counted(attempts, "attempt"));
        report.fail(CHECK, message, self.remedy(Endpoint::Enroll, row.last_status, words));
    }

    /// Enrolls with a request of the doctor's own, which `--enroll` asks for.
    fn try_enrollment(&self, report: &mut Report<'_>) {
        const CHECK: Check = Check::EnrollEndpoint;
        let url = self.asker.shown(Endpoint::Enroll);
        let answer = match self.asker.enroll() {
            Ok((answer, _)) => answer,
            Err(unanswered) => {
                let (message, remedy) = self.no_answer(Endpoint::Enroll, &unanswered, None);
                return report.fail(CHECK, format!("{url}: {message}"), remedy);
            }
        };
        let certificate = match &self.subject.settings.tls.client {
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
            Err(error) => self.failed(Endpoint::Enroll, CHECK, &answer, &error, report),
        }
    }

    /// With the stored key, or the blank one where that is the host's.
    fn config(&self, answer: &Answer, report: &mut Report<'_>) {
        const CHECK: Check = Check::ConfigEndpoint;
        let (url, settings) = (self.asker.shown(Endpoint::Config), &self.subject.settings);
        let limits = ConfigLimits::of_version(self.asker.version.as_deref());
        let judged = api::judge(Endpoint::Config, answer.status, answer.retry_after, answer.body.as_slice())
            .and_then(|answer| api::configuration(answer, key_place(settings), limits));
        match judged {
            Ok(document) => report.ok(CHECK, format!("{url}: a configuration of {} bytes", document.len())),
            Err(error @ AnswerError::NodeInvalid { .. }) if settings.enroll.reenrollment_disabled => report.fail(
                CHECK,
                format!("{url}: {error} that this host has"),
                "enroll it anew: --disable_reenrollment keeps osqueryd from it",
            ),
            Err(error @ AnswerError::NodeInvalid { .. }) => {
                report.warn(CHECK, format!("{url}: {error} that this host has"), WAITS_FOR_ANOTHER_KEY)
            }
            Err(error) => self.failed(Endpoint::Config, CHECK, answer, &error, report),
        }
    }

    fn failed(&self, endpoint: Endpoint, check: Check, answer: &Answer, error: &AnswerError, report: &mut Report<'_>) {
        let words = match error {
            AnswerError::Status { status, .. } => said(*status, &answer.body),
            error => error.to_string(),
        };
        let remedy = self.remedy(endpoint, answer.status, &words);
        report.fail(check, format!("{}: {words}", self.asker.shown(endpoint)), remedy);
    }

    /// With the invalid key, which must be rejected.
    fn deep(&self, endpoint: Endpoint, check: Check, report: &mut Report<'_>) {
        let url = self.asker.shown(endpoint);
        let asked = match endpoint {
            Endpoint::Enroll => self.asker.presence(endpoint),
            _ => self.asker.deep(endpoint),
        };
        let answer = match asked {
            Ok((answer, _)) => answer,
            Err(unanswered) => {
                let (message, remedy) = self.no_answer(endpoint, &unanswered, None);
                return report.fail(check, format!("{url}: {message}"), remedy);
            }
        };
        if endpoint == Endpoint::Enroll {
            return match answer.status {
                status @ 500.. => {
                    let words = said(status, &answer.body);
                    report.fail(check, format!("{url}: {words}"), self.remedy(endpoint, status, &words));
                }
                status => {
                    report.ok(check, format!("{url}: answers (HTTP {status} to a GET); --enroll tries an enrollment"))
                }
            };
        }
        self.rejection(endpoint, check, &url, &answer, report);
    }

    fn rejection(&self, endpoint: Endpoint, check: Check, url: &str, answer: &Answer, report: &mut Report<'_>) {
        // By the rules of log requests, for which "status": "error" is a refusal: for a distributed read the extension itself
        // takes it for "no queries".
        match api::judge(Endpoint::Logger, answer.status, answer.retry_after, answer.body.as_slice()) {
            Err(AnswerError::NodeInvalid { .. }) => {
                report.ok(check, format!("{url}: a server of the remote API: it rejects a node key that is invalid"));
            }
            Err(AnswerError::Error { status: 200..=299, message, .. }) => {
                report.ok(check, format!("{url}: refuses a node key that is invalid ({message})"));
            }
            Ok(_) if matches!(self.subject.settings.tls.client, Ok(Some(_))) => {
                report.ok(check, format!("{url}: takes any node key (the client certificate counts)"));
            }
            Ok(text) if text == "{}" => report.ok(check, format!("{url}: answers an invalid node key by nothing")),
            Ok(_) => report.warn(
                check,
                format!("{url}: takes a node key that is invalid"),
                format!(
                    "see that --{} is the server's path for this: no server should take requests without a valid node key",
                    endpoint.flag()
                ),
            ),
            Err(error) if matches!(error.status(), Some(400 | 401 | 403)) => report.warn(
                check,
                format!(
                    "{url}: refuses an invalid node key without \"node_invalid\": {error}; a host whose key is not \
                     accepted any more would not enroll again"
                ),
                format!("see that --{} is the server's path for this, and what the server's log says", endpoint.flag()),
            ),
            Err(error) => self.failed(endpoint, check, answer, &error, report),
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

/// A status with the server's own words.
fn said(status: u16, body: &[u8]) -> String {
    match words_of(body) {
        Some(words) => format!("the server answered HTTP {status}: {words}"),
        None => format!("the server answered HTTP {status}"),
    }
}
