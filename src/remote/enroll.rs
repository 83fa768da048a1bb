//! Enrollment: trades the secret for a node key, keeps it in osqueryd's backing store, and gives it up when the
//! server rejects it.
//!
//! One thread enrolls, whoever needs a key first; the others wait for it. The key lives where the built-in plugins
//! keep theirs, so a host that changes plugins keeps its identity. Either side may replace it at any time: it is
//! read before each use, and only the very key that was rejected is removed.
//!
//! A key that a server gives is provisional until a request with it succeeds. When the next request rejects it,
//! that counts as a failed attempt, and its wait applies: no tight loop of enrollments against a server that gives
//! out keys it doesn't know.

use std::fs;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::api::{self, ClientCertificate, Enrolled};
use super::host::Host;
use super::stats::Measured;
use super::transport::{Encoding, Method, Outgoing, Transport};
use super::url::{SecretVariable, Url};
use super::{Endpoint, RemoteError};
use crate::backoff::{Allowance, Backoff};
use crate::extension::manager::{Manager, ManagerError};
use crate::flags::Flags;
use crate::secret::Secret;
use crate::settings::{EnrollSettings, SecretSource, Settings};
use crate::shutdown::{Doorbell, Shutdown};

/// The built-in plugins' names for the node key and the time it was asked for.
const KEY: &str = "nodeKey";
const KEY_TIME: &str = "nodeKeyTime";

/// Why there is no node key.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The secret can't be had.
    #[error("--enroll_secret_path={path} can't be read: {reason}")]
    SecretFile {
        /// The file.
        path: String,
        /// The operating system's words.
        reason: String,
    },
    /// The secret's environment variable isn't there.
    #[error("--enroll_secret_env={0}: there is no such environment variable")]
    SecretVariable(String),
    /// osqueryd could not be asked about this host.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The request failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

impl EnrollError {
    /// How long the server asks to be left alone.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Remote(error) => error.retry_after(),
            _ => None,
        }
    }
}

/// How the enrollment stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether there is a node key, or the server wants none.
    pub enrolled: bool,
    /// When the node key was asked for, in Unix seconds; 0 without one, and when that is not known.
    pub since: i64,
    /// Attempts since this worker began.
    pub attempts: u64,
    /// Why the last attempt failed, or its key was refused. It may hold secrets: whoever shows it masks it.
    pub last_error: Option<String>,
}

/// This node's enrollment.
pub struct Enrollment {
    manager: Arc<Manager>,
    host: Arc<Host>,
    flags: Arc<Flags>,
    transport: Arc<Transport>,
    shutdown: Shutdown,
    state: Mutex<State>,
    /// Held over reading and changing the stored key.
    store: Mutex<()>,
    changed: Condvar,
    needed: Doorbell,
}

struct State {
    /// The key last seen, for the time when osqueryd's store can't be read.
    last_seen: Option<Secret>,
    /// When that was asked for, in Unix seconds; 0 when it is not known.
    since: i64,
    /// Attempts made so far.
    made: u64,
    /// A key that osqueryd's store did not take.
    unstored: Option<Secret>,
    /// A key that was rejected and that osqueryd's store did not give up.
    rejected: Option<Secret>,
    /// The server wants no keys: it knows its nodes by their client certificates.
    blank: bool,
    /// `enroll_always` asks for an enrollment by whoever needs a key first.
    force_at_start: bool,
    /// That enrollment is under way: a stored key doesn't count.
    forced: bool,
    /// A key that no request has succeeded with yet.
    provisional: Option<Secret>,
    /// Whether somebody waits for a key.
    wanted: bool,
    /// Attempts of the round in progress; a round ends after `tls_enroll_max_attempts`.
    attempts: u32,
    backoff: Backoff,
    not_before: Instant,
    /// Bounds enrollments that succeed: each may be a new entry in the server's list of nodes.
    allowance: Allowance,
    /// What is to be said when another enrollment is wanted before it is due.
    throttled: Option<String>,
    last_error: Option<String>,
}

impl Enrollment {
    /// Nothing is asked for before somebody needs a key; [`Self::run`] must be running by then.
    #[must_use]
    pub fn new(
        manager: Arc<Manager>,
        host: Arc<Host>,
        flags: Arc<Flags>,
        transport: Arc<Transport>,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let enroll = flags.current().enroll.clone();
        let enrollment = Arc::new(Self {
            manager,
            host,
            flags,
            transport,
            shutdown: shutdown.clone(),
            state: Mutex::new(State {
                last_seen: None,
                since: 0,
                made: 0,
                unstored: None,
                rejected: None,
                blank: false,
                force_at_start: enroll.always && !enroll.disabled,
                forced: false,
                provisional: None,
                wanted: false,
                attempts: 0,
                backoff: Backoff::new(Duration::from_secs(1), enroll.max_interval),
                not_before: Instant::now(),
                allowance: Allowance::new(Instant::now()),
                throttled: None,
                last_error: None,
            }),
            store: Mutex::default(),
            changed: Condvar::new(),
            needed: Doorbell::default(),
        });
        let ended = Arc::downgrade(&enrollment);
        shutdown.on_request(move || {
            if let Some(enrollment) = ended.upgrade() {
                enrollment.needed.ring();
                // Under the lock: whoever is about to wait has either seen the request or is waiting.
                let _state = enrollment.state();
                enrollment.changed.notify_all();
            }
        });
        enrollment
    }

    /// The node key; enrolls first when there is none, and waits for that, at most `limit`.
    ///
    /// A blank key where enrollment is disabled, and where the server knows its nodes by their certificates. The
    /// error is the last attempt's.
    pub fn node_key(&self, limit: Duration) -> Result<Secret, String> {
        if self.flags.current().enroll.disabled {
            return Ok(Secret::default());
        }
        // Whoever comes first at the start waits for the enrollment that `enroll_always` asks for.
        let forced = std::mem::take(&mut self.state().force_at_start);
        if !forced && let Some(key) = self.usable_key() {
            return Ok(key);
        }
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        state.wanted = true;
        state.forced |= forced;
        self.needed.ring();
        while state.wanted && !self.shutdown.requested() {
            let left = deadline.saturating_duration_since(Instant::now());
            // Nor when the next attempt is not due in time: osqueryd's thread would wait for nothing.
            if left.is_zero() || state.not_before > deadline {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let error = state.last_error.clone().unwrap_or_else(|| "no answer yet".to_owned());
        drop(state);
        // A forced enrollment that failed leaves the key that there was.
        self.usable_key().ok_or(error)
    }

    /// How the enrollment stands, as of the last time that the key was looked at. Doesn't ask osqueryd.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let state = self.state();
        let enrolled = state.blank || state.last_seen.is_some();
        Standing {
            enrolled,
            since: if enrolled { state.since } else { 0 },
            attempts: state.made,
            last_error: state.last_error.clone(),
        }
    }

    /// A request with this key succeeded.
    pub fn confirm(&self, key: &Secret) {
        let mut state = self.state();
        if state.provisional.as_ref() == Some(key) {
            state.provisional = None;
            state.attempts = 0;
            state.backoff.succeeded();
        }
    }

    /// The server rejected this key: removes it if it is still the current one. Answers whether another key can
    /// be had (not with `disable_reenrollment`).
    pub fn reject(&self, key: &Secret) -> bool {
        let enroll = self.flags.current().enroll.clone();
        if enroll.disabled || enroll.reenrollment_disabled {
            return false;
        }
        let mut state = self.state();
        if key.is_empty() {
            state.blank = false;
        }
        if state.last_seen.as_ref() == Some(key) {
            state.last_seen = None;
        }
        if state.unstored.as_ref() == Some(key) {
            state.unstored = None;
        }
        if state.provisional.as_ref() == Some(key) {
            state.provisional = None;
            state.failed(&enroll, "the server does not accept the node key that it gave".to_owned(), None);
            self.back_off(&state);
        }
        drop(state);
        self.remove_if_current(key);
        true
    }

    /// The enrolling thread's work, until the end is asked for.
    pub fn run(&self) {
        // Known from the start on: what `standing` tells, and which key is to be masked.
        self.usable_key();
        while !self.shutdown.requested() {
            let (wanted, not_before) = {
                let mut state = self.state();
                if state.wanted
                    && let Some(reason) = state.throttled.take()
                {
                    log::error!("enrollment waits: {reason}");
                }
                (state.wanted, state.not_before)
            };
            if !wanted {
                self.needed.wait(None);
            } else if self.shutdown.wait(not_before.saturating_duration_since(Instant::now())) {
                return;
            } else {
                self.attempt();
            }
        }
    }

    /// One attempt, and what follows from it.
    fn attempt(&self) {
        // One that has come meanwhile (another caller's, the built-in plugins') will do.
        if !self.state().forced && self.usable_key().is_some() {
            self.state().wanted = false;
            self.changed.notify_all();
            return;
        }
        let settings = self.flags.fresh();
        let asked_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut measured = Measured::default();
        let outcome = self.ask(&settings, &mut measured);
        self.transport.stats.note(Endpoint::Enroll, &measured, &outcome);
        if let Ok(Enrolled::Key(key)) = &outcome {
            self.store(key, asked_at);
        }
        let mut state = self.state();
        state.made += 1;
        match outcome {
            Ok(enrolled) => {
                state.since = i64::try_from(asked_at).unwrap_or_default();
                log::info!("enrolled after {} failed attempts", state.backoff.failures());
                state.use_allowance(settings.enroll.max_per_hour);
                state.forced = false;
                state.wanted = false;
                match enrolled {
                    Enrolled::Key(key) => {
                        state.last_seen = Some(key.clone());
                        state.provisional = Some(key);
                    }
                    Enrolled::Blank => {
                        state.blank = true;
                        state.provisional = Some(Secret::default());
                    }
                }
            }
            Err(error) => {
                if state.backoff.failures() == 0 {
                    log::error!("enrollment failed, trying again: {error}");
                } else {
                    log::debug!("enrollment failed again: {error}");
                }
                state.failed(&settings.enroll, error.to_string(), error.retry_after());
                self.back_off(&state);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn ask(&self, settings: &Settings, measured: &mut Measured) -> Result<Enrolled, EnrollError> {
        let endpoint = Endpoint::Enroll;
        let secret = secret(&settings.enroll.secret)?;
        let server = settings.server.as_ref().map_err(|error| RemoteError::from(error.clone()))?;
        let path = endpoint.path(&settings.endpoints).map_err(RemoteError::from)?;
        let url = Url::new(server, path, self.secret_variable(settings, &secret));
        let body = api::enroll_body(
            &settings.api.secret_name,
            &secret,
            &self.host.identifier(&settings.identity)?,
            &self.host.platform_type()?,
            self.host.details()?,
        );
        let request = Outgoing {
            method: Method::Post,
            url: &url,
            body: &body,
            encoding: Encoding::Plain,
            user_agent: &self.host.user_agent(),
            node_key: None,
        };
        super::node::dump(settings, "request", endpoint, &body);
        let answer = measured.send(&self.transport, settings, &request).map_err(|source| RemoteError::Transport {
            endpoint,
            url: url.to_string(),
            source,
        })?;
        let certificate = match &settings.tls.client {
            Ok(Some(_)) => ClientCertificate::Configured,
            _ => ClientCertificate::Absent,
        };
        let judged = api::judge_enrollment(answer.status, answer.retry_after, &answer.body, certificate);
        // Judged first: from then on the new key is known to be masked.
        super::node::dump(settings, "answer", endpoint, &String::from_utf8_lossy(&answer.body));
        Ok(judged.map_err(|source| RemoteError::Answer { endpoint, url: url.to_string(), source })?)
    }

    /// The secret for a URL, where `tls_secret_always` wants it there.
    pub fn secret_for_url(&self, settings: &Settings) -> Result<Option<Secret>, EnrollError> {
        if settings.api.secret_always { secret(&settings.enroll.secret).map(Some) } else { Ok(None) }
    }

    fn secret_variable<'a>(&self, settings: &'a Settings, secret: &'a Secret) -> SecretVariable<'a> {
        settings.api.secret_always.then_some((settings.api.secret_name.as_str(), secret))
    }

    /// The key to use now, when there is one.
    fn usable_key(&self) -> Option<Secret> {
        if self.state().blank {
            return Some(Secret::default());
        }
        match self.manager.setting(KEY) {
            Ok(stored) => {
                let stored = stored.filter(|key| !key.is_empty()).map(Secret::new);
                let mut state = self.state();
                let key = stored.filter(|key| state.rejected.as_ref() != Some(key)).or_else(|| state.unstored.clone());
                let another = key.is_some() && state.last_seen != key;
                state.last_seen.clone_from(&key);
                drop(state);
                if another {
                    self.learn_time();
                }
                key
            }
            Err(error) => {
                log::debug!("going on with the node key seen last: {error}");
                self.state().last_seen.clone()
            }
        }
    }

    /// Since when there is the node key, as whoever stored it says.
    fn learn_time(&self) {
        let time = self.manager.setting(KEY_TIME).ok().flatten().and_then(|time| time.trim().parse().ok());
        self.state().since = time.unwrap_or_default();
    }

    fn back_off(&self, state: &State) {
        let wait = state.not_before.saturating_duration_since(Instant::now());
        self.transport.stats.back_off(Endpoint::Enroll, wait);
    }

    fn store(&self, key: &Secret, asked_at: u64) {
        let _guard = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = self
            .manager
            .put_setting(KEY, key.expose())
            .and_then(|()| self.manager.put_setting(KEY_TIME, &asked_at.to_string()));
        let mut state = self.state();
        state.rejected = None;
        match stored {
            Ok(()) => state.unstored = None,
            Err(error) => {
                log::warn!(
                    "the node key can't be stored: it is used until the end, then this host enrolls again: {error}"
                );
                state.unstored = Some(key.clone());
            }
        }
    }

    fn remove_if_current(&self, key: &Secret) {
        let _guard = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = match self.manager.setting(KEY) {
            Ok(Some(stored)) if stored == key.expose() => {
                log::warn!("the server does not accept the node key any more: enrolling again");
                self.manager.remove_setting(KEY).and_then(|()| self.manager.remove_setting(KEY_TIME))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            log::warn!("the rejected node key can't be removed, and is not used any more: {error}");
            self.state().rejected = Some(key.clone());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts an enrollment: the next one may have to wait for the allowance of an hour.
    fn use_allowance(&mut self, max_per_hour: u32) {
        let now = Instant::now();
        let due = self.allowance.used(now, max_per_hour);
        self.not_before = self.not_before.max(due);
        let wait = due.duration_since(now).as_secs();
        let reason = format!(
            "so many node keys were rejected that the next one waits for {wait} s (enroll_max_per_hour={max_per_hour})"
        );
        self.last_error = (due > now).then(|| reason.clone());
        self.throttled = (due > now).then_some(reason);
    }

    /// Counts a failed attempt: its wait begins, and after the last one of a round nobody waits any longer. The
    /// next need begins another round, after that wait.
    fn failed(&mut self, enroll: &EnrollSettings, error: String, retry_after: Option<Duration>) {
        self.backoff.set_bounds(Duration::from_secs(1), enroll.max_interval);
        self.not_before = Instant::now() + self.backoff.failed_in_a_fleet().max(retry_after.unwrap_or_default());
        self.last_error = Some(error);
        self.attempts = self.attempts.saturating_add(1);
        if enroll.max_attempts.is_some_and(|most| self.attempts >= most) {
            if self.wanted {
                log::error!("{} enrollment attempts failed: pausing until a node key is needed again", self.attempts);
            }
            self.attempts = 0;
            self.wanted = false;
            self.forced = false;
        }
    }
}

/// The node key in osqueryd's store, when there is one: for a look at the enrollment without a part in it.
pub fn stored_key(manager: &Manager) -> Result<Option<Secret>, ManagerError> {
    Ok(manager.setting(KEY)?.filter(|key| !key.is_empty()).map(Secret::new))
}

/// The enroll secret, trimmed.
pub fn secret(source: &SecretSource) -> Result<Secret, EnrollError> {
    let text = match source {
        SecretSource::None => String::new(),
        SecretSource::File(path) => fs::read_to_string(path)
            .map_err(|error| EnrollError::SecretFile { path: path.display().to_string(), reason: error.to_string() })?,
        SecretSource::Environment(name) => {
            std::env::var(name).map_err(|_| EnrollError::SecretVariable(name.clone()))?
        }
    };
    Ok(Secret::new(text.trim()))
}
