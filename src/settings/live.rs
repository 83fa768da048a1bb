//! osqueryd's flags, kept fresh: values can change while running, since a configuration's `options` set them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::extension::manager::Manager;
use crate::lock::{Mutex, MutexGuard};
use crate::logging::{self, Verbosity};
use crate::settings::{Options, OwnFlags, Settings, own};

/// Settings read so recently are fresh: one flush or one call of osqueryd asks for them several times.
const FRESH: Duration = Duration::from_secs(1);

/// The current [`Settings`], read from osqueryd again when they may have changed.
pub struct Flags {
    manager: Arc<Manager>,
    own: OwnFlags,
    verbose: Verbosity,
    state: Mutex<State>,
    on_change: Mutex<Option<OnChange>>,
}

/// Called with settings that have changed.
pub type OnChange = Box<dyn Fn(&Settings) + Send>;

struct State {
    settings: Arc<Settings>,
    read_at: Instant,
    /// What was said of unusable values, so that it is said once.
    said: BTreeSet<String>,
}

impl Flags {
    /// Begins with these flags of osqueryd's. `verbose` is what the command line asks for.
    #[must_use]
    pub fn new(manager: Arc<Manager>, own: OwnFlags, verbose: Verbosity, options: &Options) -> Self {
        let mut said = BTreeSet::new();
        let settings = Arc::new(settings(options, &own, verbose, &mut said));
        let state = Mutex::new(State { settings, read_at: Instant::now(), said });
        Self { manager, own, verbose, state, on_change: Mutex::default() }
    }

    /// Has this told of every change from now on.
    pub fn tell_of_changes(&self, on_change: OnChange) {
        *self.on_change.lock() = Some(on_change);
    }

    /// The settings as last read.
    #[must_use]
    pub fn current(&self) -> Arc<Settings> {
        Arc::clone(&self.state().settings)
    }

    /// The settings as they are now; as last read when osqueryd can't be asked.
    #[must_use]
    pub fn fresh(&self) -> Arc<Settings> {
        let state = self.state();
        if state.read_at.elapsed() < FRESH {
            return Arc::clone(&state.settings);
        }
        drop(state);
        self.refresh();
        self.current()
    }

    /// Reads them again now.
    pub fn refresh(&self) {
        // The lock is not held while osqueryd is asked: others go on with what was read before.
        let mut said = self.state().said.clone();
        match self.manager.options() {
            Ok(options) => {
                let settings = settings(&options, &self.own, self.verbose, &mut said);
                let mut state = self.state();
                let settings = Arc::new(settings);
                let has_changed = state.settings != settings;
                if has_changed {
                    state.settings = Arc::clone(&settings);
                }
                state.said = said;
                state.read_at = Instant::now();
                drop(state);
                let on_change = self.on_change.lock();
                if let Some(tell) = on_change.as_ref().filter(|_| has_changed) {
                    tell(&settings);
                }
            }
            Err(error) => log::debug!("going on with the flags read before: {error}"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn settings(options: &Options, own: &OwnFlags, verbose: Verbosity, said: &mut BTreeSet<String>) -> Settings {
    let (settings, errors) = Settings::new(options, own);
    logging::configure(&settings.log, verbose);
    let unusable = [settings.server.as_ref().err(), settings.proxy.as_ref().err(), settings.tls.client.as_ref().err()];
    if settings.tls.pins.as_ref().is_ok_and(|pins| pins.len() == 1) && said.insert(own::TLS_PINS.name.to_owned()) {
        log::warn!(
            "tls_pins has one key and no spare: when the server's key changes, this host can't be reached any more"
        );
    }
    for error in errors.iter().chain(unusable.into_iter().flatten()) {
        let message = error.to_string();
        if said.insert(message.clone()) {
            log::error!("{message}");
        }
    }
    settings
}
