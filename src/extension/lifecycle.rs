//! Registration: waits for osqueryd's manager, registers with it, and knows whether the registration still holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::manager::{Manager, ManagerError};
use super::registry::{NAME, Routes};
use crate::words::Span;

/// Between two looks for a manager. osqueryd's worker that restarts waits 3 s for its plugins.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long an entry of our name is taken for a predecessor's, which osqueryd has not pruned yet.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks whether another copy is still there.
const OTHER_COPY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the extension could not be, or stay, registered.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// No manager came within `--timeout`.
    #[error("no osqueryd to register with after {waited}; is it running, with extensions enabled?", waited = Span(*.waited))]
    NoManager {
        /// How long it was waited for.
        waited: Duration,
        /// The last attempt's error.
        source: ManagerError,
    },
    /// osqueryd refused the registration.
    #[error("osqueryd does not accept the extension")]
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
    /// The registries and plugins that it registers.
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

    /// Waits until osqueryd has no extension of our name: whether that was so before `stop`, as in
    /// [`Self::wait_for_manager`], said that the wait is over.
    ///
    /// For some seconds it can be a predecessor that osqueryd has not pruned yet. After that it is another copy: this one
    /// waits for as long as that one is there, and may take its place then. It doesn't end, since osqueryd's watcher would
    /// start it again and again; and it asks for the list of extensions, since osqueryd logs each registration that it
    /// refuses.
    pub fn wait_for_name(&self, mut stop: impl FnMut(Duration) -> bool) -> Result<bool, LifecycleError> {
        let began = Instant::now();
        let mut is_said = false;
        loop {
            let extensions = self.manager.extensions().map_err(LifecycleError::Refused)?;
            if !extensions.values().any(|(name, _)| name == NAME) {
                return Ok(true);
            }
            let may_be_predecessor = began.elapsed() < PREDECESSOR_LIMIT;
            if !may_be_predecessor && !std::mem::replace(&mut is_said, true) {
                log::error!(
                    "osqueryd has another extension {NAME} already (is it in extensions.load twice?): this copy waits"
                );
            }
            if stop(if may_be_predecessor { LOOK_INTERVAL } else { OTHER_COPY_INTERVAL }) {
                return Ok(false);
            }
        }
    }

    /// Registers, once [the name is free](Self::wait_for_name): the uuid that osqueryd gives, `None` when `stop` ended the
    /// attempts.
    pub fn register(&self, mut stop: impl FnMut(Duration) -> bool) -> Result<Option<i64>, LifecycleError> {
        loop {
            match self.manager.register(&self.routes) {
                Ok(uuid) => return Ok(Some(uuid)),
                Err(error) if is_duplicate(&error) => {
                    log::debug!("osqueryd still has an entry of this name: waiting until it is gone");
                }
                Err(error) => return Err(LifecycleError::Refused(error)),
            }
            // At least one pause, should a name be refused that isn't in the list.
            if stop(LOOK_INTERVAL) || !self.wait_for_name(&mut stop)? {
                return Ok(None);
            }
        }
    }

    /// Whether osqueryd still knows us. A ping would prove nothing: it answers extensions that it has dropped, too.
    #[must_use]
    pub fn is_known(&self, uuid: i64) -> bool {
        // A connection may break because osqueryd's worker has just ended: the second attempt can't connect then.
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
