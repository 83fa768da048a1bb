//! Enrollment: trades the secret for a node key, keeps it in osqueryd's backing store, and gives it up when the
//! server rejects it.
//!
//! One thread enrolls, for all that need a key; they wait for it. The key lives where the built-in plugins
//! keep theirs, so a host that changes plugins keeps its identity. Either side may replace it at any time: it is
//! read before each use, and only the very key that was rejected is removed.
//!
//! A key that a server gives is provisional until a request with it succeeds. When the next request rejects it,
//! that counts as a failed attempt, and its wait applies: no tight loop of enrollments against a server that gives
//! out keys it doesn't know.
//!
//! [`state`] decides what is to be done; this file does it, with the thread, the locks, osqueryd's store and the log.

pub(super) mod error;
mod state;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::Level;

pub use self::error::EnrollError;
use self::state::{Action, Event, KeyStorage, Machine};
use super::api::{self, ClientCertificate, Enrolled};
use super::endpoint::Endpoint;
use super::host::Host;
use super::node_key;
use super::request::{Applicant, Request, Requests};
use super::servers::{Servers, verdict_of_enrollment};
use super::transport::Encoding;
use crate::chain::chain;
use crate::clock::unix_time;
use crate::extension::manager::{Manager, ManagerError};
use crate::lock::{Mutex, MutexGuard};
use crate::logging::Streak;
use crate::policy::Chance;
use crate::secret::Secret;
use crate::settings::live::Flags;
use crate::settings::{EnrollSettings, NodeKeys, Settings};
use crate::shutdown::Shutdown;
use crate::single_flight::{Next, SingleFlight};
use crate::words::counted;

/// The built-in plugins' names for the node key and the time it was asked for.
const KEY: &str = "nodeKey";
const KEY_TIME: &str = "nodeKeyTime";

/// Where a node key is kept in osqueryd's store.
struct Slot {
    key: Cow<'static, str>,
    time: Cow<'static, str>,
}

/// Which servers a node key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyScope {
    /// All of them: another one is asked for of the server in use.
    All,
    /// One server alone, by its number: 0 is `tls_hostname`, then those of `failover_hostnames` follow.
    One(usize),
}

/// A host's enrollments: one with all servers, or one with each.
pub struct Enrollments {
    first: Arc<Enrollment>,
    others: Vec<Arc<Enrollment>>,
}

/// The state of an enrollment, as tables and metrics show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollmentStatus {
    /// Whether there is a node key, or the server wants none.
    pub enrolled: bool,
    /// When the node key was asked for, in Unix seconds; 0 without one, and when that is not known.
    pub since: i64,
    /// Attempts since this worker began.
    pub attempts: u64,
    /// Why the last attempt failed, its key was refused, or the next one waits. It may hold secrets: mask it
    /// where it is shown.
    pub last_error: Option<String>,
}

/// The enrollment with one server or with all: it gets the node key, keeps it in osqueryd's store, and gets another
/// one when the server rejects it.
pub struct Enrollment {
    manager: Arc<Manager>,
    host: Arc<Host>,
    flags: Arc<Flags>,
    requests: Arc<Requests>,
    servers: Arc<Servers>,
    scope: KeyScope,
    slot: Slot,
    /// A round of attempts, made by [`Enrollment::run`].
    rounds: Arc<SingleFlight<()>>,
    machine: Mutex<Machine>,
    /// Held from a look at the stored key, or its change, until the machine knows of it.
    store: Mutex<()>,
    /// `enroll_always` asks for an enrollment when a key is needed for the first time.
    anew: AtomicBool,
    failures: Streak,
}

impl Enrollments {
    /// Nothing is asked for before a key is needed; [`Enrollment::run`] must be running by then.
    #[must_use]
    pub fn new(
        manager: &Arc<Manager>,
        host: &Arc<Host>,
        flags: &Arc<Flags>,
        requests: &Arc<Requests>,
        servers: &Arc<Servers>,
        shutdown: &Shutdown,
    ) -> Self {
        let settings = flags.current();
        let new = |scope| {
            Arc::new(Enrollment {
                manager: Arc::clone(manager),
                host: Arc::clone(host),
                flags: Arc::clone(flags),
                requests: Arc::clone(requests),
                servers: Arc::clone(servers),
                scope,
                slot: Slot::new(&settings, scope),
                rounds: SingleFlight::new(shutdown),
                machine: Mutex::new(Machine::new(&settings.enroll, Instant::now(), Chance::new())),
                store: Mutex::default(),
                anew: AtomicBool::new(settings.enroll.always && !settings.enroll.disabled),
                failures: Streak::default(),
            })
        };
        match settings.failover.node_keys {
            NodeKeys::Shared => Self { first: new(KeyScope::All), others: Vec::new() },
            NodeKeys::Each => Self {
                first: new(KeyScope::One(0)),
                others: (1..=settings.failover.servers.len()).map(|other| new(KeyScope::One(other))).collect(),
            },
        }
    }

    /// The one with this server.
    #[must_use]
    pub fn of(&self, server: usize) -> &Arc<Enrollment> {
        server.checked_sub(1).and_then(|other| self.others.get(other)).unwrap_or(&self.first)
    }

    /// Every enrollment, that of the first server first.
    pub fn each(&self) -> impl Iterator<Item = &Arc<Enrollment>> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Enrollment {
    /// The node key; enrolls first when there is none, and waits for that, at most `limit`.
    ///
    /// A blank key where enrollment is disabled, and where the server knows its nodes by their certificates. The
    /// error is the last attempt's.
    pub fn node_key(&self, settings: &Settings, limit: Duration) -> Result<Secret, Arc<EnrollError>> {
        let policy = &settings.enroll;
        if policy.disabled {
            return Ok(Secret::default());
        }
        // The first request at the start waits for the enrollment that `enroll_always` asks for.
        let anew = self.anew.load(Ordering::SeqCst);
        if !anew && let Some(key) = self.usable_key(policy) {
            return Ok(key);
        }
        self.host.is_identified(&settings.identity).map_err(|error| Arc::new(error.into()))?;
        let first = anew && self.anew.swap(false, Ordering::SeqCst);
        self.on(if first { Event::NeededAnew } else { Event::Needed }, policy);
        // The outcome is the machine's to tell, however long it was waited for.
        let _ = self.rounds.wait(self.rounds.ask(), Instant::now() + limit);
        // A renewal that failed leaves the key that there was.
        self.usable_key(policy).ok_or_else(|| {
            let error = self.machine().view(Instant::now()).error;
            error.unwrap_or_else(|| Arc::new(EnrollError::NoAnswerYet))
        })
    }

    /// An operator asks: another key is asked for now, and not at the moment within `reenroll_within` that chance chose.
    pub fn hurry(&self) {
        if self.machine().hurry(Instant::now()) {
            self.rounds.wake();
        }
    }

    /// How the enrollment stands, as of the last time that the key was looked at. Doesn't ask osqueryd.
    #[must_use]
    pub fn status(&self) -> EnrollmentStatus {
        let view = self.machine().view(Instant::now());
        EnrollmentStatus {
            enrolled: view.enrolled,
            since: view.since,
            attempts: view.made,
            last_error: view.error.map(|error| chain(&*error).to_string()),
        }
    }

    /// A request with this key succeeded.
    pub fn confirm(&self, policy: &EnrollSettings, key: &Secret) {
        self.on(Event::Confirmed(key.clone()), policy);
    }

    /// The server rejected this key: removes it if it is still the current one. Answers whether another key can
    /// be had (not with `disable_reenrollment`).
    pub fn reject(&self, policy: &EnrollSettings, key: &Secret) -> bool {
        if policy.disabled || policy.reenrollment_disabled {
            return false;
        }
        let _guard = self.store();
        self.on(Event::Rejected(key.clone()), policy);
        self.back_off();
        if let Err(error) = self.remove_if_current(key) {
            log::warn!("the rejected node key can't be removed, and is not used any more: {}", chain(&error));
            self.on(Event::NotRemoved(key.clone()), policy);
        }
        true
    }

    /// The enrolling thread's work, until the end is asked for.
    pub fn run(&self) {
        // Known from the start on: what `status` tells, and which key is to be masked.
        self.usable_key(&self.flags.current().enroll);
        loop {
            match self.rounds.next(None) {
                Next::End => return,
                Next::Look => continue,
                Next::Asked(_) => {}
            }
            let (due, throttle) = {
                let (machine, now) = (self.machine(), Instant::now());
                (machine.due(), machine.throttle(now))
            };
            match due {
                // For those too who came while it was under way.
                None => _ = self.rounds.done(self.rounds.last_ticket(), ()),
                Some(at) if at > Instant::now() => {
                    match throttle {
                        Some(reason @ EnrollError::Spread(_)) => log::info!("enrollment waits: {reason}"),
                        Some(reason) => log::error!("enrollment waits: {reason}"),
                        None => {}
                    }
                    if self.rounds.pause(at) {
                        return;
                    }
                }
                Some(_) => self.attempt(),
            }
        }
    }

    /// One attempt, unless a key has come meanwhile (another caller's, the built-in plugins').
    fn attempt(&self) {
        let settings = self.flags.fresh();
        self.usable_key(&settings.enroll);
        if self.machine().due().is_none() {
            return;
        }
        let server = match self.scope {
            KeyScope::All => self.servers.number(),
            KeyScope::One(server) => server,
        };
        let asked_at = unix_time();
        let outcome = self.ask(&settings.with_server(server));
        self.servers.note(&settings, server, verdict_of_enrollment(&outcome));
        match outcome {
            Ok(enrolled) => self.granted(enrolled, asked_at, &settings.enroll),
            Err(error) => {
                let failed = self.failures.failed(Level::Error);
                log::log!(failed.level, "enrollment failed, trying again: {}{failed}", chain(&error));
                self.on(Event::Failed(Arc::new(error)), &settings.enroll);
            }
        }
        self.back_off();
    }

    fn ask(&self, settings: &Settings) -> Result<Enrolled, EnrollError> {
        let request = self.request(settings).inspect_err(|error| self.requests.note_unsent(Endpoint::Enroll, error))?;
        let certificate = match &settings.tls.client {
            Ok(Some(_)) => ClientCertificate::Configured,
            _ => ClientCertificate::Absent,
        };
        Ok(self.requests.make(settings, &request, Encoding::Plain, |answer| {
            api::judge_enrollment(answer.status, answer.retry_after, &answer.body, certificate)
        })?)
    }

    fn request(&self, settings: &Settings) -> Result<Request<'static>, EnrollError> {
        let applicant = Applicant {
            identifier: self.host.identifier(&settings.identity)?,
            platform_type: self.host.platform_type()?,
            details: self.host.details()?,
        };
        Ok(Request::enrollment(settings, applicant)?)
    }

    fn granted(&self, enrolled: Enrolled, asked_at: i64, policy: &EnrollSettings) {
        let _guard = self.store();
        let storage = match &enrolled {
            Enrolled::Blank => KeyStorage::Nowhere,
            Enrolled::Key(key) => self.put(key, asked_at),
        };
        self.on(Event::Granted { enrolled, storage, asked_at }, policy);
        match self.failures.succeeded() {
            Some(failures) => log::info!("enrolled, {failures}"),
            None => log::info!("enrolled"),
        }
    }

    /// The key to use now; `None` while the host has none that is accepted.
    fn usable_key(&self, policy: &EnrollSettings) -> Option<Secret> {
        let _guard = self.store();
        if self.machine().is_in_store() {
            match self.manager.setting(&self.slot.key) {
                Ok(stored) => self.on(Event::Seen(stored.filter(|key| is_usable(key)).map(Secret::new)), policy),
                Err(error) => log::debug!("going on with the node key seen last: {}", chain(&error)),
            }
        }
        self.machine().key().cloned()
    }

    fn put(&self, key: &Secret, asked_at: i64) -> KeyStorage {
        let put = self
            .manager
            .put_setting(&self.slot.key, key.expose())
            .and_then(|()| self.manager.put_setting(&self.slot.time, &asked_at.to_string()));
        match put {
            Ok(()) => KeyStorage::Store,
            Err(error) => {
                log::warn!(
                    "the node key can't be stored: it is used until the end, then this host enrolls again: {}",
                    chain(&error)
                );
                KeyStorage::Memory
            }
        }
    }

    fn remove_if_current(&self, key: &Secret) -> Result<(), ManagerError> {
        if self.manager.setting(&self.slot.key)?.as_deref() != Some(key.expose()) {
            return Ok(());
        }
        log::warn!("the server does not accept the node key any more: it is given up, and another one asked for");
        self.manager.remove_setting(&self.slot.key)?;
        self.manager.remove_setting(&self.slot.time)
    }

    /// Something has happened: does what follows from it.
    fn on(&self, event: Event, policy: &EnrollSettings) {
        let actions = self.machine().on(event, policy, Instant::now());
        for action in actions {
            match action {
                Action::Settle => _ = self.rounds.done(self.rounds.last_ticket(), ()),
                Action::Date => {
                    let time = self.manager.setting(&self.slot.time).ok().flatten();
                    let since = time.and_then(|time| time.trim().parse().ok()).unwrap_or_default();
                    self.machine().on(Event::Dated(since), policy, Instant::now());
                }
                Action::SayGivenUp(attempts) => {
                    let attempts = counted(u64::from(attempts), "attempt");
                    log::error!("enrollment failed in {attempts}: pausing until a node key is needed again");
                }
            }
        }
    }

    /// The table of endpoints tells until when no attempt is made.
    fn back_off(&self) {
        let wait = self.machine().not_before().saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            self.requests.stats.back_off(Endpoint::Enroll, wait);
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock()
    }

    fn store(&self) -> MutexGuard<'_, ()> {
        self.store.lock()
    }
}

impl Slot {
    /// The built-in plugins' own, but for the key of one of our other servers.
    fn new(settings: &Settings, scope: KeyScope) -> Self {
        let other = match scope {
            KeyScope::All => None,
            KeyScope::One(server) => settings.other_server(server),
        };
        match other {
            None => Self { key: KEY.into(), time: KEY_TIME.into() },
            Some(server) => Self { key: format!("{KEY}.{server}").into(), time: format!("{KEY_TIME}.{server}").into() },
        }
    }
}

/// The node key in osqueryd's store, or `None`: for a look at the enrollment without a part in it.
pub fn stored_key(manager: &Manager) -> Result<Option<Secret>, ManagerError> {
    Ok(manager.setting(KEY)?.filter(|key| !key.is_empty() && is_usable(key)).map(Secret::new))
}

/// Has every node key in osqueryd's store masked from now on, also those of `failover_hostnames`.
///
/// # Errors
/// osqueryd doesn't give one.
pub fn mask_stored_keys(manager: &Manager, settings: &Settings) -> Result<(), ManagerError> {
    for server in 0..=settings.failover.servers.len() {
        let slot = Slot::new(settings, KeyScope::One(server));
        // To be known is to be masked.
        let _known = manager.setting(&slot.key)?.filter(|key| is_usable(key)).map(Secret::new);
    }
    Ok(())
}

/// Whether a stored key can be used: one that no server could have given us counts as none, so that nothing in the
/// store can keep this host from enrolling.
fn is_usable(key: &str) -> bool {
    let usable = node_key::check(key);
    if let Err(reason) = usable {
        log::debug!("the stored node key counts for nothing: {reason}");
    }
    usable.is_ok()
}
