//! The config plugin: what the server gives, when it is a configuration; the last good one while the server can't be
//! reached at the start.
//!
//! osqueryd's start waits for the first genConfig, so a call waits at most [`KEPT_LIMIT`] where there is a kept
//! configuration to give, and [`CALL_LIMIT`] where there is none. The fetching is done by a thread of its own, which
//! goes on when the call doesn't wait any longer, and tries again until it succeeds; what it gets then is pushed to
//! osqueryd. The same after a refresh that failed, since osqueryd itself asks again only after
//! `config_accelerated_refresh`; then only what is new is pushed.

mod active_plugins;
mod conditional;
mod kept;
mod operator;
mod options;
mod whole_queries;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;

pub use self::active_plugins::ActivePlugins;
use self::conditional::{Received, condition, received};
use self::kept::Kept;
pub use self::kept::{FILE, kept};
pub use self::whole_queries::WholeQueries;
use crate::chain::chain;
use crate::extension::manager::Manager;
use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::lock::{Mutex, MutexGuard};
use crate::logging::Streak;
use crate::policy::{Backoff, Chance};
use crate::remote::api::{self, Payload};
use crate::remote::configuration::ConfigLimits;
use crate::remote::{Endpoint, Node, RemoteError};
use crate::settings::Settings;
use crate::shutdown::Shutdown;
use crate::single_flight::{Next, NotDone, SingleFlight, Taken, Ticket};
use crate::words::Span;

/// The name that the built-in plugin gives its one source; another one would be a second configuration.
const SOURCE: &str = "tls_plugin";

/// The longest that a genConfig waits, enrollment and all attempts included.
pub const CALL_LIMIT: Duration = Duration::from_secs(45);

/// The longest that a genConfig waits while the last good configuration can be given instead: the schedule of a host whose
/// server hangs begins no later than a healthy one's by more than this.
pub const KEPT_LIMIT: Duration = Duration::from_secs(4);

/// The longest that an operator's refresh waits: osqueryd stands between, and its answer is waited for 10 s.
const REFRESH_LIMIT: Duration = Duration::from_secs(8);

/// Waits between attempts that no call waits for.
const RETRY_STEP: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Gives osqueryd its configuration.
pub struct Config {
    node: Arc<Node>,
    manager: Arc<Manager>,
    whole_queries: Arc<WholeQueries>,
    active_plugins: Arc<ActivePlugins>,
    announce: Announce,
    kept: Kept,
    /// Requests for a configuration, made by [`Config::run`] for all calls that wait.
    fetching: Arc<SingleFlight<Fetched>>,
    state: Mutex<State>,
    streaks: Streaks,
}

/// Called with each configuration that osqueryd has from now on, as the server gave it: for parts that depend on it.
pub type Announce = Box<dyn Fn(&str) + Send + Sync>;

/// Failures in a row of each kind.
#[derive(Default)]
struct Streaks {
    /// Answers that were no configuration.
    unusable: Streak,
    /// Configurations that osqueryd did not take.
    not_taken: Streak,
    /// Calls that got the last good configuration in place of the server's.
    stale: Streak,
}

#[derive(Default)]
struct State {
    /// The configuration of the server's that osqueryd has from this worker.
    delivered: Option<Arc<str>>,
    /// A genConfig was answered without one, or an operator wants it now: what comes later is pushed.
    owed: bool,
    /// An operator wants it now: the next request is made however the server is, and names no configuration that is here.
    is_pressing: bool,
}

/// The server's document, or why there is none.
type Fetched = Result<Arc<str>, Arc<RemoteError>>;

impl Config {
    /// Asks as this node; keeps the last good configuration in `directory`. `announce` is told of each configuration
    /// that osqueryd has. [`Self::run`] must be running.
    #[must_use]
    pub fn new(
        node: Arc<Node>,
        manager: Arc<Manager>,
        whole_queries: Arc<WholeQueries>,
        active_plugins: Arc<ActivePlugins>,
        announce: Announce,
        directory: &Path,
        shutdown: &Shutdown,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            manager,
            whole_queries,
            active_plugins,
            announce,
            kept: Kept::new(directory),
            fetching: SingleFlight::new(shutdown),
            state: Mutex::default(),
            streaks: Streaks::default(),
        })
    }

    /// osqueryd is gone: the next one may be given the last good configuration again.
    pub fn osqueryd_is_gone(&self) {
        self.state().delivered = None;
    }

    /// Fetches the configuration now, and pushes it.
    pub fn refresh(&self) {
        *self.state() = State { delivered: None, owed: true, is_pressing: true };
        self.fetching.ask();
    }

    /// The fetching thread's work, until the end is asked for.
    pub fn run(&self) {
        let mut backoff = Backoff::new(RETRY_STEP, RETRY_MAX);
        let mut retry_at: Option<Instant> = None;
        let mut last = None;
        loop {
            let owed = self.state().owed;
            let ticket = match (self.fetching.next(retry_at.filter(|_| owed)), retry_at) {
                (Next::End, _) => return,
                (Next::Asked(ticket), _) => ticket,
                (Next::Look, _) if !self.state().owed => continue,
                (Next::Look, Some(at)) if Instant::now() >= at => self.fetching.last_ticket(),
                (Next::Look, Some(_)) => continue,
                // A call has just been answered without one.
                (Next::Look, None) => {
                    retry_at = Some(Instant::now() + backoff.failed(&mut Chance::new()));
                    continue;
                }
            };
            retry_at = match self.fetch_for(ticket, &mut last) {
                Owed::Nothing => {
                    backoff.succeeded();
                    None
                }
                Owed::Configuration => Some(Instant::now() + backoff.failed(&mut Chance::new())),
            };
        }
    }

    /// Fetches for all up to this ticket, and pushes what no call waits for any longer. `last` is the last one that could
    /// be used.
    fn fetch_for(&self, ticket: Ticket, last: &mut Option<Received>) -> Owed {
        let fetched = self.fetch(last).map(|received| {
            self.kept.keep(&received);
            Arc::clone(&last.insert(received).document)
        });
        let taken = self.fetching.done(ticket, fetched.clone());
        match fetched {
            _ if !self.state().owed => Owed::Nothing,
            // The call that waited hands it on.
            Ok(_) if taken == Taken::Claimed => Owed::Nothing,
            Ok(document) if self.state().delivered.as_ref() == Some(&document) => {
                self.state().owed = false;
                log::debug!("the server gives the configuration that osqueryd has");
                Owed::Nothing
            }
            Ok(document) => self.push(&document),
            Err(_) => Owed::Configuration,
        }
    }

    fn push(&self, document: &Arc<str>) -> Owed {
        match self.manager.push_config(SOURCE, &self.for_osqueryd(document)) {
            Ok(()) => {
                self.has(document);
                log::info!("the configuration has come, and osqueryd has it");
                Owed::Nothing
            }
            Err(error) => {
                let failed = self.streaks.not_taken.failed(Level::Warn);
                let error = chain(&error);
                log::log!(failed.level, "the configuration has come, and osqueryd can't be given it: {error}{failed}");
                Owed::Configuration
            }
        }
    }

    /// An operator wants the configuration fetched and pushed, and to know what came of it.
    fn refresh_now(&self) -> Reply {
        {
            let mut state = self.state();
            (state.owed, state.is_pressing) = (true, true);
        }
        let failed = |reason: String| {
            self.fetching.wake();
            Reply::failed(format!("{reason}; the extension goes on asking, and pushes what it gets"))
        };
        match self.fetching.wait(self.fetching.ask(), Instant::now() + REFRESH_LIMIT) {
            Ok(Ok(document)) => match self.push(&document) {
                Owed::Nothing => Reply::row("outcome", "osqueryd has the configuration that the server gives now"),
                Owed::Configuration => failed("osqueryd could not be given the configuration".to_owned()),
            },
            Ok(Err(error)) => failed(chain(&*error).to_string()),
            Err(NotDone::Late) => failed(format!("no configuration within {}", Span(REFRESH_LIMIT))),
            Err(NotDone::Ending) => Reply::failed("config: the extension is ending"),
        }
    }

    fn gen_config(&self) -> Reply {
        let kept = if self.state().delivered.is_some() { None } else { self.kept_configuration() };
        let limit = if kept.is_some() { KEPT_LIMIT } else { CALL_LIMIT };
        let error = match self.fetching.wait(self.fetching.ask(), Instant::now() + limit) {
            Ok(Ok(document)) => {
                self.has(&document);
                return self.reply(&document);
            }
            Ok(Err(error)) if self.is_delivered() && matches!(*error, RemoteError::BackingOff { .. }) => {
                log::debug!("osqueryd keeps its configuration for now: {}", chain(&*error));
                return Reply::rows(vec![StringMap::new()]);
            }
            Ok(Err(error)) => chain(&*error).to_string(),
            Err(NotDone::Late) => format!("config: no answer within {}; still asking", Span(limit)),
            Err(NotDone::Ending) => "config: the extension is ending".to_owned(),
        };
        let has_one = self.now_owes();
        self.fetching.wake();
        // With code 1 the running schedule stays. Without one, the last good configuration is better.
        let Some(document) = kept.filter(|_| !has_one) else { return Reply::failed(error) };
        let failed = self.streaks.stale.failed(Level::Warn);
        let level = failed.level;
        log::log!(level, "giving osqueryd the last good configuration, the server's comes later: {error}{failed}");
        (self.announce)(&document);
        self.reply(&document)
    }

    fn is_delivered(&self) -> bool {
        self.state().delivered.is_some()
    }

    /// A call is answered without the server's configuration, which is to be pushed: whether osqueryd has an older one.
    fn now_owes(&self) -> bool {
        let mut state = self.state();
        state.owed = true;
        state.delivered.is_some()
    }

    /// osqueryd has this configuration of the server's now.
    fn has(&self, document: &Arc<str>) {
        *self.state() = State { delivered: Some(Arc::clone(document)), ..State::default() };
        self.streaks.not_taken.succeeded();
        self.streaks.stale.succeeded();
        (self.announce)(document);
    }

    fn reply(&self, document: &str) -> Reply {
        Reply::row(SOURCE, self.for_osqueryd(document))
    }

    /// A configuration as osqueryd is given it: every way leads through here.
    fn for_osqueryd<'a>(&self, document: &'a str) -> Cow<'a, str> {
        let settings = self.node.flags.current();
        let (expand, limits) = (settings.logger.expand_events, self.limits());
        let ours = settings.keep_plugins.then(|| self.active_plugins.hand_on(document, limits)).flatten();
        match ours {
            None => self.whole_queries.hand_on(document, expand, limits),
            Some(document) => Cow::Owned(self.whole_queries.hand_on(&document, expand, limits).into_owned()),
        }
    }

    fn fetch(&self, last: &Option<Received>) -> Result<Received, Arc<RemoteError>> {
        let is_pressing = std::mem::take(&mut self.state().is_pressing);
        // An operator's is the way out where a server's etags are wrong.
        let known = if is_pressing { None } else { last.clone().or_else(|| self.kept_received()) };
        let condition = |settings: &Settings| condition(settings, known.as_ref());
        let payload = Payload::Made(&condition);
        let judge = |settings: &Settings, answer| received(settings, answer, self.limits(), known.as_ref());
        // osqueryd's start waits for its first configuration, an operator for any; at its intervals osqueryd asks again
        // anyway.
        let answer = if is_pressing {
            self.node.send_at_once(Endpoint::Config, payload, judge)
        } else if self.is_delivered() {
            self.node.ask(Endpoint::Config, payload, judge)
        } else {
            self.node.send_with_attempts(Endpoint::Config, payload, judge)
        };
        match answer {
            Ok(received) => {
                if let Some(failures) = self.streaks.unusable.succeeded() {
                    log::info!("the server gives a usable configuration again, {failures}");
                }
                Ok(received)
            }
            Err(error) => {
                if error.is_unusable_configuration() {
                    let failed = self.streaks.unusable.failed(Level::Error);
                    let said = chain(&error);
                    log::log!(
                        failed.level,
                        "the server gives no configuration that osqueryd could use: {said}{failed}"
                    );
                }
                Err(Arc::new(error))
            }
        }
    }

    fn limits(&self) -> ConfigLimits {
        ConfigLimits::of_version(self.node.host.version().as_deref())
    }

    /// What lies on the disk is no more to be trusted than what comes over the network.
    fn kept_configuration(&self) -> Option<String> {
        api::configuration(self.kept.read()?, api::KeyPlace::Body, self.limits()).ok()
    }

    /// The kept configuration with where it came from; `None` where that isn't known.
    fn kept_received(&self) -> Option<Received> {
        let from = self.kept.origin()?;
        Some(Received::new(self.kept_configuration()?, from))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Whether osqueryd still waits for a configuration.
enum Owed {
    Nothing,
    Configuration,
}

impl Plugin for Arc<Config> {
    fn registry(&self) -> RegistryName {
        RegistryName::Config
    }

    fn call(&self, request: StringMap) -> Reply {
        match request.get("action").map(String::as_str) {
            Some("genConfig") => self.gen_config(),
            // Ours: the command of that name.
            Some("refresh") => self.refresh_now(),
            Some("genPack") => {
                let name = request.get("name").map_or("", String::as_str);
                Reply::failed(format!(
                    "the pack {name} is only named in the configuration: the remote API has no packs to fetch, give it inline"
                ))
            }
            other => Reply::failed(format!("the config plugin has no action {other:?}")),
        }
    }
}
