//! Registration: waits for osqueryd's manager, registers with it, and knows whether the registration still holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::manager::{Manager, ManagerError};
use super::registry::Routes;

/// Between two looks for a manager. osqueryd's worker that restarts waits 3 s for its plugins.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a "duplicate" refusal is taken for an entry that osqueryd has not pruned yet.
const DUPLICATE_LIMIT: Duration = Duration::from_secs(5);

/// Why the extension could not be, or stay, registered.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// No manager came within `--timeout`.
    #[error("no osqueryd to register with after {waited:?}; is it running, with extensions enabled?")]
    NoManager {
        /// How long it was waited for.
        waited: Duration,
        /// The last attempt's error.
        source: ManagerError,
    },
    /// osqueryd refused the registration.
    #[error("osqueryd does not accept the extension (is another copy of it running?)")]
    Refused(#[source] ManagerError),
}

impl LifecycleError {
    /// Whether osqueryd went away in the middle of the registration.
    #[must_use]
    pub fn is_gone_again(&self) -> bool {
        matches!(self, Self::Refused(ManagerError::Unreachable { .. } | ManagerError::Broken { .. }))
    }
}

/// Registers this extension with the manager.
#[derive(Clone)]
pub struct Lifecycle {
    /// osqueryd's manager.
    pub manager: Arc<Manager>,
    /// What it offers.
    pub routes: Routes,
}

impl Lifecycle {
    /// Waits for a manager to accept a connection, at most `limit`: whether one did before `stop`, which also makes
    /// the pause between two attempts, said that the wait is over.
    pub fn wait_for_manager(
        &self,
        limit: Duration,
        mut stop: impl FnMut(Duration) -> bool,
    ) -> Result<bool, LifecycleError> {
        let began = Instant::now();
        loop {
            match self.manager.connect() {
                Ok(()) => return Ok(true),
                Err(source) if began.elapsed() >= limit => {
                    return Err(LifecycleError::NoManager { waited: limit, source });
                }
                Err(_) if stop(LOOK_INTERVAL) => return Ok(false),
                Err(_) => {}
            }
        }
    }

    /// Registers: the uuid that osqueryd gives, `None` when `stop` ended the attempts.
    ///
    /// An entry of the same name may be the one of a predecessor that osqueryd has not pruned yet, so that refusal
    /// is not believed at once.
    pub fn register(&self, mut stop: impl FnMut(Duration) -> bool) -> Result<Option<i64>, LifecycleError> {
        let began = Instant::now();
        loop {
            match self.manager.register(&self.routes) {
                Ok(uuid) => return Ok(Some(uuid)),
                Err(error) if is_duplicate(&error) && began.elapsed() < DUPLICATE_LIMIT => {
                    log::debug!("osqueryd still has an entry of this name; trying again");
                }
                Err(error) => return Err(LifecycleError::Refused(error)),
            }
            if stop(LOOK_INTERVAL) {
                return Ok(None);
            }
        }
    }

    /// Whether osqueryd still knows us. A ping would prove nothing: it answers extensions that it has dropped, too.
    #[must_use]
    pub fn is_known(&self, uuid: i64) -> bool {
        // The first answer may fail because the connection is an old one.
        match self.manager.knows(uuid).or_else(|_| self.manager.knows(uuid)) {
            Ok(known) => known,
            Err(ManagerError::Unreachable { .. }) => false,
            Err(error) => {
                // osqueryd is there and doesn't answer: it may only be busy. Ask again at the next interval.
                log::debug!("can't ask osqueryd for its extensions: {error}");
                true
            }
        }
    }
}

fn is_duplicate(error: &ManagerError) -> bool {
    matches!(error, ManagerError::Refused { message, .. } if message.contains("Duplicate extension"))
}
