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
mod owed;
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
use self::owed::{Ask, Instead, Owed, Then, call_limit};
pub use self::whole_queries::WholeQueries;
use crate::chain::chain;
use crate::extension::manager::Manager;
use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::lock::{Mutex, MutexGuard};
use crate::logging::Streak;
use crate::policy::Chance;
use crate::remote::api::{self, Payload};
use crate::remote::configuration::ConfigLimits;
use crate::remote::{Endpoint, Node, RemoteError};
use crate::settings::Settings;
use crate::shown::quoted;
use crate::shutdown::Shutdown;
use crate::single_flight::{Next, NotDone, SingleFlight, Ticket};
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
    /// Decides what follows from what happens.
    owed: Mutex<Owed>,
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
            owed: Mutex::new(Owed::new(Chance::new())),
            streaks: Streaks::default(),
        })
    }

    /// osqueryd is gone: the next one may be given the last good configuration again.
    pub fn osqueryd_is_gone(&self) {
        self.owed().osqueryd_is_gone();
    }

    /// Fetches the configuration now, and pushes it.
    pub fn refresh(&self) {
        self.owed().refresh();
        self.fetching.ask();
    }

    /// The fetching thread's work, until the end is asked for.
    pub fn run(&self) {
        let mut last = None;
        loop {
            let retry_at = self.owed().retry_at();
            let ticket = match self.fetching.next(retry_at) {
                Next::End => return,
                Next::Asked(ticket) => ticket,
                Next::Look if self.owed().is_due(Instant::now()) => self.fetching.last_ticket(),
                Next::Look => continue,
            };
            self.fetch_for(ticket, &mut last);
        }
    }

    /// Fetches for all up to this ticket, and pushes what no call waits for any longer. `last` is the last one that could
    /// be used.
    fn fetch_for(&self, ticket: Ticket, last: &mut Option<Received>) {
        let fetched = self.fetch(last).map(|received| {
            self.kept.keep(&received);
            Arc::clone(&last.insert(received).document)
        });
        let taken = self.fetching.done(ticket, fetched.clone());
        let then = self.owed().fetched(fetched.ok(), taken, Instant::now());
        match then {
            Then::Wait => {}
            Then::SayUnchanged => log::debug!("the server gives the configuration that osqueryd has"),
            Then::Push(document) => {
                let has_it = self.push(&document);
                self.owed().pushed(has_it, Instant::now());
            }
        }
    }

    /// Gives osqueryd a configuration of the server's: whether it has it.
    fn push(&self, document: &Arc<str>) -> bool {
        match self.manager.push_config(SOURCE, &self.for_osqueryd(document)) {
            Ok(()) => {
                self.has(document);
                log::info!("the configuration has come, and osqueryd has it");
                true
            }
            Err(error) => {
                let failed = self.streaks.not_taken.failed(Level::Warn);
                let error = chain(&error);
                log::log!(failed.level, "the configuration has come, and osqueryd can't be given it: {error}{failed}");
                false
            }
        }
    }

    /// An operator wants the configuration fetched and pushed, and to know what came of it.
    fn refresh_now(&self) -> Reply {
        self.owed().wanted_now();
        let failed = |reason: String| {
            self.fetching.wake();
            Reply::failed(format!("{reason}; the extension goes on asking, and pushes what it gets"))
        };
        match self.fetching.wait(self.fetching.ask(), Instant::now() + REFRESH_LIMIT) {
            Ok(Ok(document)) => match self.push(&document) {
                true => Reply::row("outcome", "osqueryd has the configuration that the server gives now"),
                false => failed("osqueryd could not be given the configuration".to_owned()),
            },
            Ok(Err(error)) => failed(chain(&*error).to_string()),
            Err(NotDone::Late) => failed(format!("no configuration within {}", Span(REFRESH_LIMIT))),
            Err(NotDone::Ending) => Reply::failed("config: the extension is ending"),
        }
    }

    fn gen_config(&self) -> Reply {
        let may_have_kept = self.owed().has_none();
        let kept = if may_have_kept { self.kept_configuration() } else { None };
        let limit = call_limit(kept.is_some());
        let outcome = self.fetching.wait(self.fetching.ask(), Instant::now() + limit);
        let is_left_alone = matches!(&outcome, Ok(Err(error)) if matches!(**error, RemoteError::BackingOff { .. }));
        let error = match outcome {
            Ok(Ok(document)) => {
                self.has(&document);
                return self.reply(&document);
            }
            Ok(Err(error)) => chain(&*error).to_string(),
            Err(NotDone::Late) => format!("config: no answer within {}; still asking", Span(limit)),
            Err(NotDone::Ending) => "config: the extension is ending".to_owned(),
        };
        let instead = self.owed().unanswered(is_left_alone);
        if instead == Instead::NoNews {
            log::debug!("osqueryd keeps its configuration for now: {error}");
            return Reply::rows(vec![StringMap::new()]);
        }
        self.fetching.wake();
        let Some(document) = kept.filter(|_| instead == Instead::LastGood) else { return Reply::failed(error) };
        let failed = self.streaks.stale.failed(Level::Warn);
        let level = failed.level;
        log::log!(level, "giving osqueryd the last good configuration, the server's comes later: {error}{failed}");
        (self.announce)(&document);
        self.reply(&document)
    }

    /// osqueryd has this configuration of the server's now.
    fn has(&self, document: &Arc<str>) {
        self.owed().given(document);
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
        let ask = self.owed().ask();
        let known = if ask == Ask::AtOnce { None } else { last.clone().or_else(|| self.kept_received()) };
        let condition = |settings: &Settings| condition(settings, known.as_ref());
        let payload = Payload::Made(&condition);
        let judge = |settings: &Settings, answer| received(settings, answer, self.limits(), known.as_ref());
        let answer = match ask {
            Ask::AtOnce => self.node.send_at_once(Endpoint::Config, payload, judge),
            Ask::AtInterval => self.node.ask(Endpoint::Config, payload, judge),
            Ask::WithAttempts => self.node.send_with_attempts(Endpoint::Config, payload, judge),
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

    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock()
    }
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
                    "the pack {} is only named in the configuration: the remote API has no packs to fetch, give it inline",
                    quoted(name)
                ))
            }
            other => Reply::no_such_action("the config plugin", other),
        }
    }
}
