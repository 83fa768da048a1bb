//! Requests as this node: with the node key, and once more after a re-enrollment when the server rejects it.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::api::{self, AnswerError, Payload};
use super::endpoint::Endpoint;
use super::enroll::{Enrollment, Enrollments};
use super::error::RemoteError;
use super::host::Host;
use super::outages::{Noted, Outages, Unwell, is_made_again};
use super::request::{Request, RequestError, Requests};
use super::servers::{Servers, verdict};
use super::transport::{Answer, Encoding};
use crate::chain::chain;
use crate::extension::manager::Manager;
use crate::lock::Mutex;
use crate::policy::{Backoff, Chance, Consequence};
use crate::secret::Secret;
use crate::settings::Settings;
use crate::settings::live::Flags;
use crate::shutdown::{Doorbell, Shutdown};

/// How long a request waits for an enrollment. osqueryd's threads wait for some requests, so this is bounded; the
/// enrollment goes on without them.
const ENROLLMENT_LIMIT: Duration = Duration::from_secs(30);

/// This host as the server's node.
pub struct Node {
    /// Asks osqueryd about this host.
    pub host: Arc<Host>,
    /// The flags, from which each request takes its settings.
    pub flags: Arc<Flags>,
    /// What became of requests.
    pub requests: Arc<Requests>,
    /// Which server is asked.
    pub servers: Arc<Servers>,
    /// They keep the node key, or one for each server.
    pub enrollments: Enrollments,
    shutdown: Shutdown,
    outages: Mutex<Outages>,
    /// Rung when an endpoint works again.
    recoveries: Mutex<Vec<Arc<Doorbell>>>,
    /// The servers that take no compressed log requests, whatever `logger_tls_compress` says.
    gzip_refused: Mutex<HashSet<usize>>,
}

impl Node {
    /// The node of the osqueryd behind this manager. The [`Enrollment::run`] of each of its `enrollments` must be
    /// running.
    #[must_use]
    pub fn new(manager: Arc<Manager>, flags: Arc<Flags>, shutdown: &Shutdown) -> Arc<Self> {
        let host = Arc::new(Host::new(Arc::clone(&manager)));
        let requests = Arc::new(Requests::new(Arc::clone(&host), shutdown.clone()));
        let servers = Arc::new(Servers::default());
        let enrollments = Enrollments::new(&manager, &host, &flags, &requests, &servers, shutdown);
        Arc::new(Self {
            enrollments,
            host,
            flags,
            requests,
            servers,
            shutdown: shutdown.clone(),
            outages: Mutex::default(),
            recoveries: Mutex::default(),
            gzip_refused: Mutex::default(),
        })
    }

    /// Makes one request: the text of the JSON object that a success answers.
    ///
    /// A rejected node key costs one re-enrollment and one more sending.
    pub fn send(&self, endpoint: Endpoint, payload: Payload<'_>) -> Result<String, RemoteError> {
        self.attempt(endpoint, payload, &|_, answer| Ok(answer))
    }

    /// Makes a request of those that osqueryd asks for at its intervals. Against a server that is not well there is one
    /// attempt, and then none for a while ([`Breaker`](crate::policy::Breaker)): that and all that follow until it is well
    /// again is [`RemoteError::BackingOff`].
    ///
    /// `judge` has the last word on what the server meant as a success.
    pub fn ask<T>(
        &self,
        endpoint: Endpoint,
        payload: Payload<'_>,
        judge: impl Fn(&Settings, String) -> Result<T, AnswerError>,
    ) -> Result<T, RemoteError> {
        if let Some(left) = self.left_alone_for(endpoint) {
            return Err(RemoteError::BackingOff { endpoint, left });
        }
        let server = self.servers.number();
        let is_known = self.outages.lock().is_unwell(server, endpoint);
        self.attempts(endpoint, payload, judge, Unwell::Once).map_err(|error| match self.left_alone_for(endpoint) {
            Some(left) if is_known => RemoteError::BackingOff { endpoint, left },
            _ => error,
        })
    }

    /// Makes a request as often as its endpoint's flag allows, with up to n² seconds after the n-th attempt.
    ///
    /// `judge` has the last word on what the server meant as a success.
    pub fn send_with_attempts<T>(
        &self,
        endpoint: Endpoint,
        payload: Payload<'_>,
        judge: impl Fn(&Settings, String) -> Result<T, AnswerError>,
    ) -> Result<T, RemoteError> {
        let (server, now) = (self.servers.number(), Instant::now());
        let asked_for = self.outages.lock().asked_for(server, endpoint, now);
        match asked_for {
            Some(left) => Err(RemoteError::BackingOff { endpoint, left }),
            None => self.attempts(endpoint, payload, judge, Unwell::AsOften),
        }
    }

    /// [`Self::send`], although the server asked to be left alone, and although a new node key is spread over a fleet's time: an
    /// operator waits for what the server says now.
    pub fn send_at_once<T>(
        &self,
        endpoint: Endpoint,
        payload: Payload<'_>,
        judge: impl Fn(&Settings, String) -> Result<T, AnswerError>,
    ) -> Result<T, RemoteError> {
        self.enrollment().hurry();
        self.attempts(endpoint, payload, judge, Unwell::AsOften)
    }

    fn attempts<T>(
        &self,
        endpoint: Endpoint,
        payload: Payload<'_>,
        judge: impl Fn(&Settings, String) -> Result<T, AnswerError>,
        unwell: Unwell,
    ) -> Result<T, RemoteError> {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        loop {
            let error = match self.attempt(endpoint, payload, &judge) {
                Ok(answer) => {
                    self.is_over(endpoint);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            self.note(endpoint, &error);
            let wait = backoff.failed(&mut Chance::new());
            let most = endpoint.attempts(&self.flags.current());
            if !is_made_again(&error, backoff.failures(), most, wait, unwell) || self.shutdown.wait(wait) {
                return Err(error);
            }
        }
    }

    /// The enrollment with the server in use.
    #[must_use]
    pub fn enrollment(&self) -> &Arc<Enrollment> {
        self.enrollments.of(self.servers.number())
    }

    /// Has this bell rung when an endpoint of those that osqueryd asks works again after failing.
    pub fn ring_at_recoveries(&self, bell: Arc<Doorbell>) {
        self.recoveries.lock().push(bell);
    }

    fn is_over(&self, endpoint: Endpoint) {
        let (server, now) = (self.servers.number(), Instant::now());
        let past = self.outages.lock().is_over(server, endpoint, now);
        if let Some(failures) = past {
            log::info!("{endpoint}: works again, {failures}");
            self.ring();
        }
    }

    /// How long the server in use still is to be left alone, whether it asked for that or not.
    fn left_alone_for(&self, endpoint: Endpoint) -> Option<Duration> {
        let (server, now) = (self.servers.number(), Instant::now());
        self.outages.lock().open_for(server, endpoint, now)
    }

    fn ring(&self) {
        let bells = self.recoveries.lock();
        bells.iter().for_each(|bell| bell.ring());
    }

    /// No request is made to this endpoint within `wait`.
    pub fn back_off(&self, endpoint: Endpoint, wait: Duration) {
        self.requests.stats.back_off(endpoint, wait);
    }

    /// Breaks off the requests in flight, and makes no more.
    pub fn abort(&self) {
        self.requests.transport.abort();
    }

    /// Another osqueryd runs now, perhaps of another version.
    pub fn osqueryd_was_replaced(&self) {
        self.host.osqueryd_was_replaced();
    }

    fn note(&self, endpoint: Endpoint, error: &RemoteError) {
        // The server answers as it should, and the caller says what is wrong with the configuration.
        if error.is_unusable_configuration() {
            return self.is_over(endpoint);
        }
        let (server, now) = (self.servers.number(), Instant::now());
        let Noted { wait, failed } = self.outages.lock().note(server, endpoint, error, now, &mut Chance::new());
        log::log!(failed.level, "requests fail: {}{failed}", chain(error));
        if let Some(wait) = wait {
            self.back_off(endpoint, wait);
        }
    }

    /// One attempt, and one more with each server that is to be asked in the place of the one that was.
    fn attempt<T>(
        &self,
        endpoint: Endpoint,
        payload: Payload<'_>,
        judge: &impl Fn(&Settings, String) -> Result<T, AnswerError>,
    ) -> Result<T, RemoteError> {
        let given = self.flags.fresh();
        // The answers to distributed queries go to where these came from, as long as that works.
        let mut server = self.servers.choose(endpoint != Endpoint::DistributedWrite);
        loop {
            let settings = given.with_server(server);
            let to = Target { server, settings: &settings, enrollment: self.enrollments.of(server) };
            let outcome = self.attempt_with(&to, endpoint, payload, judge);
            let consequence = self.servers.note(&given, server, verdict(&outcome));
            if let Consequence::Leave(..) | Consequence::Return = consequence {
                self.ring();
            }
            match consequence {
                Consequence::Repeat(next) | Consequence::Leave(next, _) => server = next,
                Consequence::None | Consequence::Return => return outcome,
            }
        }
    }

    fn attempt_with<T>(
        &self,
        to: &Target<'_>,
        endpoint: Endpoint,
        payload: Payload<'_>,
        judge: &impl Fn(&Settings, String) -> Result<T, AnswerError>,
    ) -> Result<T, RemoteError> {
        let policy = &to.settings.enroll;
        let node_key = || {
            let key = to.enrollment.node_key(to.settings, ENROLLMENT_LIMIT);
            key.map_err(|source| RemoteError::NotEnrolled { endpoint, source })
        };
        let key = node_key()?;
        match self.send_as(to, endpoint, payload, &key, judge) {
            Err(error) if error.is_node_invalid() && to.enrollment.reject(policy, &key) => {
                let key = node_key()?;
                let again = self.send_as(to, endpoint, payload, &key, judge);
                if again.as_ref().is_err_and(RequestError::is_node_invalid) {
                    to.enrollment.reject(policy, &key);
                }
                Ok(again?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// Sends with this key; a compressed body that may be what the server doesn't like is sent once more as it is.
    fn send_as<T>(
        &self,
        to: &Target<'_>,
        endpoint: Endpoint,
        payload: Payload<'_>,
        key: &Secret,
        judge: &impl Fn(&Settings, String) -> Result<T, AnswerError>,
    ) -> Result<T, RequestError> {
        let Target { settings, enrollment, .. } = to;
        let request = Request::new(settings, endpoint, payload, key)
            .inspect_err(|error| self.requests.note_unsent(endpoint, error))?;
        let send = |encoding| {
            let accepted = Cell::new(false);
            let judged = |answer: Answer| {
                let text = api::judge(endpoint, answer.status, answer.retry_after, answer.body)?;
                accepted.set(true);
                judge(settings, text)
            };
            let outcome = self.requests.make(settings, &request, encoding, judged);
            if accepted.get() {
                enrollment.confirm(&settings.enroll, key);
                self.host.learn_identifier(&settings.identity);
            }
            outcome
        };
        match self.encoding(settings, to.server, endpoint) {
            Encoding::Plain => send(Encoding::Plain),
            Encoding::Gzip => match send(Encoding::Gzip) {
                Err(error) if error.may_be_the_compression() => {
                    let answer = send(Encoding::Plain)?;
                    log::warn!(
                        "the server takes no compressed requests ({}): logger_tls_compress has no effect",
                        chain(&error)
                    );
                    self.gzip_refused.lock().insert(to.server);
                    Ok(answer)
                }
                outcome => outcome,
            },
        }
    }

    /// Whether bodies for this endpoint are sent compressed: asked for, and not refused by the server.
    #[must_use]
    pub fn compresses(&self, settings: &Settings, endpoint: Endpoint) -> bool {
        self.encoding(settings, self.servers.number(), endpoint) == Encoding::Gzip
    }

    fn encoding(&self, settings: &Settings, server: usize, endpoint: Endpoint) -> Encoding {
        let wanted = endpoint == Endpoint::Logger && settings.logger.compress;
        if wanted && !self.gzip_refused.lock().contains(&server) { Encoding::Gzip } else { Encoding::Plain }
    }
}

/// The server that a request goes to.
struct Target<'a> {
    server: usize,
    /// The settings with this server in the first one's place.
    settings: &'a Settings,
    enrollment: &'a Enrollment,
}
