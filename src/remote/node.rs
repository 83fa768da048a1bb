//! One request as this node: with the node key, judged, and once more after a re-enrollment when the server
//! rejects the key.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::api::{self, KeyPlace, Payload};
use super::enroll::Enrollment;
use super::host::Host;
use super::stats::Measured;
use super::transport::{Encoding, Method, Outgoing, Transport};
use super::url::Url;
use super::{Endpoint, RemoteError};
use crate::backoff::Backoff;
use crate::flags::Flags;
use crate::logging::DUMP;
use serde_json::Value;

use crate::secret::{MASK, Secret};
use crate::settings::{SettingError, Settings};
use crate::shutdown::Shutdown;

/// How long a request waits for an enrollment. osqueryd's threads wait for some requests, so this is bounded; the
/// enrollment goes on without them.
const ENROLLMENT_LIMIT: Duration = Duration::from_secs(30);

/// This host as the server's node.
pub struct Node {
    /// Who keeps the node key.
    pub enrollment: Arc<Enrollment>,
    /// Who knows osqueryd's version.
    pub host: Arc<Host>,
    /// What is configured.
    pub flags: Arc<Flags>,
    /// What carries requests.
    pub transport: Arc<Transport>,
    /// Ends waits between attempts.
    pub shutdown: Shutdown,
    /// Which endpoints fail, so that a change is said and each failure isn't.
    pub outages: Outages,
    /// Whether the server takes no compressed log requests, whatever `logger_tls_compress` says.
    pub gzip_refused: AtomicBool,
}

/// Failures in a row by endpoint, and until when the server asked to be left alone.
#[derive(Default)]
pub struct Outages(Mutex<HashMap<Endpoint, Outage>>);

#[derive(Default)]
struct Outage {
    failures: u32,
    not_before: Option<Instant>,
}

impl Outages {
    fn note<T>(&self, endpoint: Endpoint, outcome: &Result<T, RemoteError>) {
        let mut outages = self.lock();
        match outcome {
            Ok(_) => {
                if let Some(outage) = outages.remove(&endpoint) {
                    log::info!("{endpoint}: works again, after {} failures", outage.failures);
                }
            }
            Err(error) => {
                let outage = outages.entry(endpoint).or_default();
                outage.failures = outage.failures.saturating_add(1);
                outage.not_before = error.retry_after().map(|wait| Instant::now() + wait);
                if outage.failures == 1 {
                    log::warn!("requests fail: {error}");
                } else {
                    log::debug!("requests still fail: {error}");
                }
            }
        }
    }

    /// How long the server still asked to be left alone.
    fn patience(&self, endpoint: Endpoint) -> Option<RemoteError> {
        let not_before = self.lock().get(&endpoint)?.not_before?;
        let left = not_before.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(RemoteError::Patience { endpoint, left })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Endpoint, Outage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Makes a request: the JSON object that a success answers.
    ///
    /// A rejected node key costs one re-enrollment and one more sending.
    pub fn send(&self, endpoint: Endpoint, payload: Payload<'_>) -> Result<String, RemoteError> {
        let settings = self.flags.fresh();
        let key = self.node_key(endpoint)?;
        match self.send_with(&settings, endpoint, payload, &key) {
            Err(error) if error.is_node_invalid() && self.enrollment.reject(&key) => {
                let key = self.node_key(endpoint)?;
                let again = self.send_with(&settings, endpoint, payload, &key);
                if again.as_ref().is_err_and(RemoteError::is_node_invalid) {
                    self.enrollment.reject(&key);
                }
                again
            }
            outcome => outcome,
        }
    }

    /// Makes a request up to `attempts` times, with n² seconds after the n-th.
    pub fn send_with_attempts(
        &self,
        endpoint: Endpoint,
        payload: Payload<'_>,
        attempts: u32,
    ) -> Result<String, RemoteError> {
        if let Some(patience) = self.outages.patience(endpoint) {
            return Err(patience);
        }
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        loop {
            let outcome = self.send(endpoint, payload);
            self.outages.note(endpoint, &outcome);
            if let Some(wait) = outcome.as_ref().err().and_then(RemoteError::retry_after) {
                self.transport.stats.back_off(endpoint, wait);
            }
            let error = match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let wait = backoff.failed();
            let patient = error.retry_after().is_none_or(|asked| asked <= wait);
            let again = backoff.failures() < attempts && error.is_worth_another_attempt() && patient;
            if !again || self.shutdown.wait(wait) {
                return Err(error);
            }
        }
    }

    fn node_key(&self, endpoint: Endpoint) -> Result<Secret, RemoteError> {
        let not_enrolled = |reason| RemoteError::NotEnrolled { endpoint, reason };
        self.enrollment.node_key(ENROLLMENT_LIMIT).map_err(not_enrolled)
    }

    /// Sends with this key; a compressed body that may be what the server doesn't like is sent once more as it is.
    fn send_with(
        &self,
        settings: &Settings,
        endpoint: Endpoint,
        payload: Payload<'_>,
        key: &Secret,
    ) -> Result<String, RemoteError> {
        match self.encoding(settings, endpoint) {
            Encoding::Plain => self.exchange(settings, endpoint, payload, key, Encoding::Plain),
            Encoding::Gzip => match self.exchange(settings, endpoint, payload, key, Encoding::Gzip) {
                Err(error) if error.may_be_the_compression() => {
                    let answer = self.exchange(settings, endpoint, payload, key, Encoding::Plain)?;
                    log::warn!("the server takes no compressed requests ({error}): logger_tls_compress has no effect");
                    self.gzip_refused.store(true, Ordering::Relaxed);
                    Ok(answer)
                }
                outcome => outcome,
            },
        }
    }

    fn encoding(&self, settings: &Settings, endpoint: Endpoint) -> Encoding {
        let wanted = endpoint == Endpoint::Logger && settings.logger.compress;
        if wanted && !self.gzip_refused.load(Ordering::Relaxed) { Encoding::Gzip } else { Encoding::Plain }
    }

    fn exchange(
        &self,
        settings: &Settings,
        endpoint: Endpoint,
        payload: Payload<'_>,
        key: &Secret,
        encoding: Encoding,
    ) -> Result<String, RemoteError> {
        let mut measured = Measured::default();
        let outcome = self.exchange_measured(settings, endpoint, payload, key, encoding, &mut measured);
        self.transport.stats.note(endpoint, &measured, &outcome);
        if outcome.is_ok() {
            self.host.learn_identifier(&settings.identity);
        }
        outcome
    }

    fn exchange_measured(
        &self,
        settings: &Settings,
        endpoint: Endpoint,
        payload: Payload<'_>,
        key: &Secret,
        encoding: Encoding,
        measured: &mut Measured,
    ) -> Result<String, RemoteError> {
        let url = self.url(settings, endpoint, key)?;
        let place = key_place(settings);
        let body = api::body(payload, key, place);
        dump(settings, "request", endpoint, &body);
        let request = Outgoing {
            method: method(endpoint, place),
            url: &url,
            body: &body,
            encoding,
            user_agent: &self.host.user_agent(),
            node_key: Some(key),
        };
        let answer = measured.send(&self.transport, settings, &request).map_err(|source| RemoteError::Transport {
            endpoint,
            url: url.to_string(),
            source,
        })?;
        dump(settings, "answer", endpoint, &String::from_utf8_lossy(&answer.body));
        let judged = api::judge(endpoint, answer.status, answer.retry_after, &answer.body)
            .map_err(|source| RemoteError::Answer { endpoint, url: url.to_string(), source })?;
        self.enrollment.confirm(key);
        Ok(judged)
    }

    fn url(&self, settings: &Settings, endpoint: Endpoint, key: &Secret) -> Result<Url, RemoteError> {
        let server = settings.server.as_ref().map_err(Clone::clone)?;
        let path = endpoint.path(&settings.endpoints)?;
        let secret = self
            .enrollment
            .secret_for_url(settings)
            .map_err(|error| RemoteError::NotEnrolled { endpoint, reason: error.to_string() })?;
        let secret = secret.as_ref().map(|secret| (settings.api.secret_name.as_str(), secret));
        Ok(match key_place(settings) {
            KeyPlace::Body => Url::new(server, path, secret),
            KeyPlace::Url => Url::for_node(server, path, key, secret),
        })
    }
}

/// An endpoint's URL as it may be shown: without the node key and the secret, whose places are named.
pub fn shown_url(settings: &Settings, endpoint: Endpoint) -> Result<String, SettingError> {
    let server = settings.server.as_ref().map_err(Clone::clone)?;
    let path = endpoint.path(&settings.endpoints)?;
    let none = Secret::default();
    let secret = settings.api.secret_always.then_some((settings.api.secret_name.as_str(), &none));
    let url = match (endpoint, key_place(settings)) {
        (Endpoint::Enroll, _) | (_, KeyPlace::Body) => Url::new(server, path, secret),
        (_, KeyPlace::Url) => Url::for_node(server, path, &none, secret),
    };
    Ok(url.to_string())
}

/// Where `tls_node_api` puts the node key.
#[must_use]
pub fn key_place(settings: &Settings) -> KeyPlace {
    if settings.api.node_api { KeyPlace::Url } else { KeyPlace::Body }
}

fn method(endpoint: Endpoint, place: KeyPlace) -> Method {
    match (endpoint, place) {
        (Endpoint::Config, KeyPlace::Url) => Method::Get,
        _ => Method::Post,
    }
}

/// `tls_dump` with `verbose`: the body, before compression and after decompression, goes to stderr, masked like
/// everything there. Keys and secrets are masked by their members' names too, however the server escapes them; in what
/// is no JSON, everything from such a name on.
pub(super) fn dump(settings: &Settings, what: &str, endpoint: Endpoint, body: &str) {
    if !(settings.api.dump && settings.verbose) {
        return;
    }
    let shown = dumped(body, &["node_key", "id", settings.api.secret_name.as_str()]);
    log::debug!(target: DUMP, "tls_dump: {endpoint} {what}: {shown}");
}

/// A body with the values of these members masked. Deeper in an answer `id` is many another thing, a node key and a
/// secret are themselves.
fn dumped(body: &str, names: &[&str]) -> String {
    if let Ok(mut json) = serde_json::from_str::<Value>(body) {
        mask_members(&mut json, names);
        return json.to_string();
    }
    let first = names.iter().filter_map(|name| body.find(&format!("\"{name}\"")));
    match first.min().and_then(|at| body.get(..at)) {
        Some(beginning) => format!("{beginning}{MASK}"),
        None => body.to_owned(),
    }
}

fn mask_members(json: &mut Value, names: &[&str]) {
    match json {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(_) if names.contains(&name.as_str()) => *value = MASK.into(),
                    _ => mask_members(value, &names.iter().copied().filter(|&name| name != "id").collect::<Vec<_>>()),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mask_members(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_shows_no_key_wherever_it_stands() {
        let shown = |body: &str| dumped(body, &["node_key", "id", "enroll_secret"]);
        assert_eq!(shown(r#"{"id":"k","a":[{"id":"row"}]}"#), r#"{"id":"<hidden>","a":[{"id":"row"}]}"#);
        assert_eq!(shown(r#"{"data":[{"node_key":"k"}]}"#), r#"{"data":[{"node_key":"<hidden>"}]}"#);
        assert_eq!(shown(r#"{"node_key":7,"node_invalid":true}"#), r#"{"node_key":7,"node_invalid":true}"#);
        assert_eq!(shown(r#"{"a":1,"enroll_secret":"s","node_key":"k""#), r#"{"a":1,<hidden>"#);
        assert_eq!(shown("<p>gone</p>"), "<p>gone</p>");
    }
}
