//! What osqueryd says about this host: its identity, its details for the enrollment, its own version.
//!
//! Its tables are asked as its own enrollment asks them, without SQL ([`Manager::table`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::chain::chain;
use crate::extension::manager::{Manager, ManagerError};
use crate::extension::registry::StringMap;
use crate::lock::{Mutex, MutexGuard};
use crate::settings::HostIdentifier;

/// The tables whose first rows are the `host_details` of an enrollment.
const DETAIL_TABLES: [&str; 4] = ["os_version", "osquery_info", "system_info", "platform_info"];

/// How long the first line of osqueryd's is waited for, which has its ephemeral identifier. Its status lines come as
/// soon as it has got its configuration, or has not got one.
const FIRST_LINE_LIMIT: Duration = Duration::from_secs(10);

/// Why osqueryd doesn't say something about this host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It could not be asked.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// Its ephemeral identifier can't be asked for: its lines have it, and none has come yet.
    #[error("osqueryd has not shown its ephemeral host identifier yet, which its first status line has")]
    NotShown,
}

/// Asks osqueryd about this host.
pub struct Host {
    manager: Arc<Manager>,
    known: Mutex<Known>,
}

/// What is known of the osqueryd that runs.
#[derive(Default)]
struct Known {
    version: Option<String>,
    /// The identifier that was last asked for, and in which sense.
    identifier: Option<(HostIdentifier, String)>,
    ephemeral: Ephemeral,
}

/// osqueryd's `host_identifier=ephemeral`, a UUID that it makes when it starts.
#[derive(Default)]
enum Ephemeral {
    /// It was not needed yet, and no line has shown it.
    #[default]
    Unknown,
    /// It has been needed since then.
    Awaited(Instant),
    /// As a line has it; or one of our own, where no lines come.
    Known(String),
}

impl Host {
    /// The host of the osqueryd behind this manager. Nothing is asked yet.
    #[must_use]
    pub fn new(manager: Arc<Manager>) -> Self {
        Self { manager, known: Mutex::default() }
    }

    /// osqueryd's version, `X.Y.Z` with whatever follows; asked for once per osqueryd. `None` while it can't be asked.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        if let Some(version) = &self.known().version {
            return Some(version.clone());
        }
        let version = self.first_row("osquery_info").ok()??.remove("version")?;
        self.known().version = Some(version.clone());
        Some(version)
    }

    /// Another osqueryd runs now: perhaps of another version, and its ephemeral identifier is another one.
    pub fn osqueryd_was_replaced(&self) {
        *self.known() = Known::default();
    }

    /// The `User-Agent` of every request.
    #[must_use]
    pub fn user_agent(&self) -> String {
        format!("osquery/{}", self.version().as_deref().unwrap_or("0.0.0"))
    }

    /// A line of osqueryd's has this identifier.
    pub fn saw_identifier(&self, identifier: &str) {
        let mut known = self.known();
        if !identifier.is_empty() && !matches!(&known.ephemeral, Ephemeral::Known(known) if known == identifier) {
            known.ephemeral = Ephemeral::Known(identifier.to_owned());
        }
    }

    /// Whether an enrollment can have its identifier by now. Not at once where only osqueryd's first line will show it:
    /// a start that waits for its configuration writes none.
    pub fn is_identified(&self, wanted: &HostIdentifier) -> Result<(), HostError> {
        if *wanted == HostIdentifier::Ephemeral { self.ephemeral().map(drop) } else { Ok(()) }
    }

    /// The host identifier of an enrollment.
    pub fn identifier(&self, wanted: &HostIdentifier) -> Result<String, HostError> {
        let identifier = match wanted {
            HostIdentifier::Specified(identifier) => identifier.clone(),
            HostIdentifier::Ephemeral => self.ephemeral()?,
            HostIdentifier::Hostname => self.cell("system_info", "hostname")?,
            HostIdentifier::Uuid => self.cell("system_info", "uuid")?,
            HostIdentifier::Instance => self.cell("osquery_info", "instance_id")?,
        };
        self.known().identifier = Some((wanted.clone(), identifier.clone()));
        Ok(identifier)
    }

    /// The host identifier as it was last asked for; `None` when it was not. Doesn't ask osqueryd.
    #[must_use]
    pub fn known_identifier(&self, wanted: &HostIdentifier) -> Option<String> {
        let known = self.known().identifier.clone();
        known.filter(|(sense, _)| sense == wanted).map(|(_, identifier)| identifier)
    }

    /// Asks for the host identifier once, so that [`Self::known_identifier`] knows it.
    pub fn learn_identifier(&self, wanted: &HostIdentifier) {
        if self.known_identifier(wanted).is_none()
            && let Err(error) = self.identifier(wanted)
        {
            log::debug!("the host identifier is not known yet: {}", chain(&error));
        }
    }

    /// osquery's number for the platform, as a string: "9" is Linux, "21" macOS.
    pub fn platform_type(&self) -> Result<String, HostError> {
        self.cell("osquery_info", "platform_mask")
    }

    /// The first rows of the enrollment's tables; a table without a row is left out, and so is one that this osqueryd
    /// doesn't have.
    pub fn details(&self) -> Result<Map<String, Value>, HostError> {
        let mut details = Map::new();
        for table in DETAIL_TABLES {
            match self.first_row(table) {
                Ok(Some(row)) => _ = details.insert(table.to_owned(), object(row)),
                Ok(None) => {}
                Err(error @ ManagerError::Refused { .. }) => log::debug!("without {table}: {}", chain(&error)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(details)
    }

    fn ephemeral(&self) -> Result<String, HostError> {
        let mut known = self.known();
        match &known.ephemeral {
            Ephemeral::Known(identifier) => Ok(identifier.clone()),
            Ephemeral::Awaited(since) if since.elapsed() > FIRST_LINE_LIMIT => {
                let own = uuid::Uuid::new_v4().to_string();
                known.ephemeral = Ephemeral::Known(own.clone());
                Ok(own)
            }
            Ephemeral::Awaited(_) => Err(HostError::NotShown),
            Ephemeral::Unknown => {
                known.ephemeral = Ephemeral::Awaited(Instant::now());
                Err(HostError::NotShown)
            }
        }
    }

    fn cell(&self, table: &str, column: &str) -> Result<String, HostError> {
        Ok(self.first_row(table)?.and_then(|mut row| row.remove(column)).unwrap_or_default())
    }

    fn first_row(&self, table: &str) -> Result<Option<StringMap>, ManagerError> {
        Ok(self.manager.table(table)?.into_iter().next())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}

fn object(row: StringMap) -> Value {
    // Firmware strings end in NUL bytes, which some servers' databases refuse.
    row.into_iter().map(|(column, value)| (column, Value::from(value.replace('\0', "")))).collect()
}
