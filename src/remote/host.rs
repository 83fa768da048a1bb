//! What osqueryd's tables say about this host: its identity, its details for the enrollment, osqueryd's version.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};

use crate::extension::manager::{Manager, ManagerError};
use crate::extension::registry::StringMap;
use crate::settings::HostIdentifier;

/// The tables whose first rows are the `host_details` of an enrollment.
const DETAIL_TABLES: [&str; 4] = ["os_version", "osquery_info", "system_info", "platform_info"];

/// Asks osqueryd about this host.
pub struct Host {
    manager: Arc<Manager>,
    version: Mutex<Option<String>>,
    ephemeral: OnceLock<String>,
    /// The identifier that was last asked for, and in which sense.
    identifier: Mutex<Option<(HostIdentifier, String)>>,
}

impl Host {
    /// Asks this manager.
    #[must_use]
    pub fn new(manager: Arc<Manager>) -> Self {
        Self { manager, version: Mutex::new(None), ephemeral: OnceLock::new(), identifier: Mutex::new(None) }
    }

    /// osqueryd's version, `X.Y.Z` with whatever follows; asked for once per osqueryd. `None` while it can't be asked.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        let known = self.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return known;
        }
        let version = self.first_row("SELECT version FROM osquery_info").ok()??.remove("version")?;
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version.clone());
        Some(version)
    }

    /// Another osqueryd is there, perhaps of another version.
    pub fn forget_version(&self) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The `User-Agent` of every request.
    #[must_use]
    pub fn user_agent(&self) -> String {
        format!("osquery/{}", self.version().as_deref().unwrap_or("0.0.0"))
    }

    /// The host identifier of an enrollment.
    pub fn identifier(&self, wanted: &HostIdentifier) -> Result<String, ManagerError> {
        let identifier = self.ask_identifier(wanted)?;
        let known = Some((wanted.clone(), identifier.clone()));
        *self.identifier.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(identifier)
    }

    /// The host identifier as it was last asked for; `None` when it was not. Doesn't ask osqueryd.
    #[must_use]
    pub fn known_identifier(&self, wanted: &HostIdentifier) -> Option<String> {
        let known = self.identifier.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.filter(|(sense, _)| sense == wanted).map(|(_, identifier)| identifier)
    }

    /// Asks for the host identifier once, so that [`Self::known_identifier`] knows it.
    pub fn learn_identifier(&self, wanted: &HostIdentifier) {
        if self.known_identifier(wanted).is_none()
            && let Err(error) = self.identifier(wanted)
        {
            log::debug!("the host identifier is not known yet: {error}");
        }
    }

    fn ask_identifier(&self, wanted: &HostIdentifier) -> Result<String, ManagerError> {
        let sql = match wanted {
            HostIdentifier::Specified(identifier) => return Ok(identifier.clone()),
            HostIdentifier::Ephemeral => {
                return Ok(self.ephemeral.get_or_init(|| uuid::Uuid::new_v4().to_string()).clone());
            }
            HostIdentifier::Hostname => "SELECT hostname AS id FROM system_info",
            HostIdentifier::Uuid => "SELECT uuid AS id FROM system_info",
            HostIdentifier::Instance => "SELECT instance_id AS id FROM osquery_info",
        };
        Ok(self.first_row(sql)?.and_then(|mut row| row.remove("id")).unwrap_or_default())
    }

    /// osquery's number for the platform, as a string: "9" is Linux, "21" macOS.
    pub fn platform_type(&self) -> Result<String, ManagerError> {
        let row = self.first_row("SELECT platform_mask FROM osquery_info")?;
        Ok(row.and_then(|mut row| row.remove("platform_mask")).unwrap_or_default())
    }

    /// The first rows of the enrollment's tables; a table without a row is left out.
    pub fn details(&self) -> Result<Map<String, Value>, ManagerError> {
        let mut details = Map::new();
        for table in DETAIL_TABLES {
            if let Some(row) = self.first_row(&format!("SELECT * FROM {table} LIMIT 1"))? {
                details.insert(table.to_owned(), object(row));
            }
        }
        Ok(details)
    }

    fn first_row(&self, sql: &str) -> Result<Option<StringMap>, ManagerError> {
        Ok(self.manager.query(sql)?.into_iter().next())
    }
}

fn object(row: StringMap) -> Value {
    // Firmware strings end in NUL bytes, which some servers' databases refuse.
    row.into_iter().map(|(column, value)| (column, Value::from(value.replace('\0', "")))).collect()
}
