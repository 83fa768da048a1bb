//! The config plugin: what the server gives, when it is a configuration; the last good one while the server can't be
//! reached at the start.
//!
//! osqueryd's start waits for the first genConfig, so a call waits at most [`CALL_LIMIT`]. The fetching is done by a
//! thread of its own, which goes on when the call doesn't wait any longer, and tries again until it succeeds; what it
//! gets then is pushed to osqueryd.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

use crate::backoff::Backoff;
use crate::decorations::Decorations;
use crate::extension::manager::Manager;
use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::logging::Streak;
use crate::remote::Endpoint;
use crate::remote::RemoteError;
use crate::remote::api::{self, AnswerError, ConfigLimits, Payload};
use crate::remote::node::{Node, key_place};
use crate::shutdown::{Doorbell, Shutdown};

/// The name that the built-in plugin gives its one source; another one would be a second configuration.
const SOURCE: &str = "tls_plugin";

/// The longest that a genConfig waits, enrollment and all attempts included.
pub const CALL_LIMIT: Duration = Duration::from_secs(45);

/// Waits between attempts that nobody waits for.
const RETRY_STEP: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The file of the last good configuration, in the directory of the buffers.
pub const FILE: &str = "config.json";

/// Gives osqueryd its configuration.
pub struct Config {
    node: Arc<Node>,
    manager: Arc<Manager>,
    decorations: Arc<Decorations>,
    file: PathBuf,
    shutdown: Shutdown,
    state: Mutex<State>,
    changed: Condvar,
    asked: Doorbell,
    /// What fails again and again is said once.
    streaks: Streaks,
}

/// Failures in a row of each kind.
#[derive(Default)]
struct Streaks {
    /// Answers that were no configuration.
    unusable: Streak,
    /// Configurations that osqueryd did not take.
    not_taken: Streak,
    /// Calls that got the last good configuration in place of the server's.
    stale: Streak,
    /// Configurations that could not be kept.
    not_kept: Streak,
}

#[derive(Default)]
struct State {
    /// Counts genConfigs; the fetching thread answers the newest.
    asked: u64,
    answered: u64,
    answer: Option<Result<String, String>>,
    /// Whether osqueryd has a configuration of the server's, from this worker.
    delivered: bool,
    /// A genConfig was answered without one: what comes later is pushed.
    owed: bool,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("config: {0}")]
    Answer(#[from] AnswerError),
}

impl Config {
    /// Asks as this node; keeps the last good configuration in `directory`. [`Self::run`] must be running.
    #[must_use]
    pub fn new(
        node: Arc<Node>,
        manager: Arc<Manager>,
        decorations: Arc<Decorations>,
        directory: &Path,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let config = Arc::new(Self {
            node,
            manager,
            decorations,
            file: directory.join(FILE),
            shutdown: shutdown.clone(),
            state: Mutex::default(),
            changed: Condvar::new(),
            asked: Doorbell::default(),
            streaks: Streaks::default(),
        });
        let ended = Arc::downgrade(&config);
        shutdown.on_request(move || {
            if let Some(config) = ended.upgrade() {
                config.asked.ring();
                // Under the lock: whoever is about to wait has either seen the request or is waiting.
                let _state = config.state();
                config.changed.notify_all();
            }
        });
        config
    }

    /// The fetching thread's work, until the end is asked for.
    pub fn run(&self) {
        let mut backoff = Backoff::new(RETRY_STEP, RETRY_MAX);
        let mut retry_at = None;
        while !self.shutdown.requested() {
            self.asked.wait(retry_at.filter(|_| self.state().owed));
            let asked = {
                let state = self.state();
                if state.owed && retry_at.is_none() {
                    retry_at = Some(Instant::now() + backoff.failed_in_a_fleet());
                }
                let due = state.owed && retry_at.is_some_and(|at| Instant::now() >= at);
                if state.asked == state.answered && !due {
                    continue;
                }
                state.asked
            };
            let fetched = self.fetch().map_err(|error| error.to_string());
            if let Ok(document) = &fetched {
                self.keep(document);
            }
            retry_at = match self.answer(asked, fetched) {
                Owed::Nothing => {
                    backoff.succeeded();
                    None
                }
                Owed::Configuration => Some(Instant::now() + backoff.failed_in_a_fleet()),
            };
        }
    }

    /// Answers the calls up to `asked`, and pushes what nobody waits for any longer.
    fn answer(&self, asked: u64, fetched: Result<String, String>) -> Owed {
        let mut state = self.state();
        state.answered = asked;
        let push = state.owed.then(|| fetched.as_ref().ok().cloned()).flatten();
        state.answer = Some(fetched);
        self.changed.notify_all();
        let Some(document) = push else {
            return if state.owed { Owed::Configuration } else { Owed::Nothing };
        };
        drop(state);
        match self.manager.push_config(SOURCE, &document) {
            Ok(()) => {
                self.streaks.not_taken.succeeded();
                self.streaks.stale.succeeded();
                log::info!("the configuration has come, and osqueryd has it");
                let mut state = self.state();
                state.owed = false;
                state.delivered = true;
                drop(state);
                self.decorations.configure(&document);
                Owed::Nothing
            }
            Err(error) => {
                let level = self.streaks.not_taken.failed(Level::Warn);
                log::log!(level, "the configuration has come, and osqueryd can't be given it: {error}");
                Owed::Configuration
            }
        }
    }

    fn gen_config(&self) -> Reply {
        let outcome = self.wait_for_answer();
        let mut state = self.state();
        match outcome {
            Ok(document) => {
                state.delivered = true;
                state.owed = false;
                drop(state);
                self.given(document)
            }
            // With code 1 the running schedule stays. Without one, the last good configuration is better.
            Err(error) if state.delivered => Reply::failed(error),
            Err(error) => {
                state.owed = true;
                drop(state);
                self.asked.ring();
                match fs::read_to_string(&self.file).map(|text| self.check(text)) {
                    Ok(Ok(document)) => {
                        let level = self.streaks.stale.failed(Level::Warn);
                        log::log!(
                            level,
                            "giving osqueryd the last good configuration, the server's comes later: {error}"
                        );
                        self.given(document)
                    }
                    _ => Reply::failed(error),
                }
            }
        }
    }

    fn given(&self, document: String) -> Reply {
        self.decorations.configure(&document);
        Reply::row(SOURCE, document)
    }

    /// Has the server asked, and waits for its answer.
    fn wait_for_answer(&self) -> Result<String, String> {
        let deadline = Instant::now() + CALL_LIMIT;
        let mut state = self.state();
        state.asked += 1;
        let asked = state.asked;
        self.asked.ring();
        while state.answered < asked {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.shutdown.requested() {
                return Err(format!("config: no answer within {CALL_LIMIT:?}; still asking"));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.answer.clone().unwrap_or_else(|| Err("config: no answer".to_owned()))
    }

    fn fetch(&self) -> Result<String, FetchError> {
        let settings = self.node.flags.fresh();
        let answer = self.node.send_with_attempts(Endpoint::Config, Payload::None, settings.config_max_attempts)?;
        let limits = self.limits();
        let document = api::configuration(answer, key_place(&settings), limits).inspect_err(|error| {
            let level = self.streaks.unusable.failed(Level::Error);
            log::log!(level, "the server gives no configuration that osqueryd could use: {error}");
            self.node.transport.stats.recant(Endpoint::Config, &format!("config: {error}"));
        })?;
        if let Some(failures) = self.streaks.unusable.succeeded() {
            log::info!("the server gives a usable configuration again, after {failures} others");
        }
        Ok(document)
    }

    fn limits(&self) -> ConfigLimits {
        ConfigLimits::of_version(self.node.host.version().as_deref())
    }

    /// What lies on the disk is no more to be trusted than what comes over the network.
    fn check(&self, text: String) -> Result<String, AnswerError> {
        api::configuration(text, api::KeyPlace::Body, self.limits())
    }

    /// Keeps a configuration for a start without the server. All or nothing: written aside, then renamed.
    fn keep(&self, document: &str) {
        let write = || -> io::Result<()> {
            if fs::read_to_string(&self.file).is_ok_and(|kept| kept == document) {
                return Ok(());
            }
            let aside = self.file.with_extension("new");
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
            file.write_all(document.as_bytes())?;
            file.sync_all()?;
            fs::rename(&aside, &self.file)
        };
        match write() {
            Ok(()) => {
                if let Some(failures) = self.streaks.not_kept.succeeded() {
                    log::info!("the configuration can be kept again, after {failures} failures");
                }
            }
            Err(error) => {
                let level = self.streaks.not_kept.failed(Level::Warn);
                log::log!(level, "the configuration can't be kept in {}: {error}", self.file.display());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
