//! The osqueryd that answers at the socket: its flags, its plugins, and how it knows our extension.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::extension::manager::{Manager, ManagerError};
use crate::extension::registry::{NAME, StringMap};
use crate::settings::Options;

/// osqueryd's own answers are there in milliseconds.
pub(super) const OSQUERYD_LIMIT: Duration = Duration::from_secs(4);

/// An osqueryd that answers.
pub(crate) struct Running {
    pub(crate) manager: Arc<Manager>,
    /// Its flags as they are now.
    pub(crate) options: Options,
    /// Its version, when it says it.
    pub(crate) version: Option<String>,
    /// The uuid and the version of our extension, when it is registered; an error is osqueryd's.
    pub(crate) extension: Result<Option<(i64, String)>, ManagerError>,
    /// The plugins of the registries config, logger and distributed.
    pub(super) plugins: Vec<StringMap>,
}

impl Running {
    pub(super) fn ask(socket: PathBuf) -> Result<Self, ManagerError> {
        let manager = Arc::new(Manager::new(socket, Arc::new(|| {})).within(OSQUERYD_LIMIT));
        let options = manager.options()?;
        let version = manager.table("osquery_info").ok().and_then(|rows| rows.into_iter().next()?.remove("version"));
        let extension = manager.extensions().map(|known| {
            known.into_iter().find(|(_, (name, _))| name == NAME).map(|(uuid, (_, version))| (uuid, version))
        });
        let sql = "SELECT registry, name, active FROM osquery_registry \
                   WHERE registry IN ('config', 'logger', 'distributed')";
        let plugins = manager.query(sql).unwrap_or_default();
        Ok(Self { manager, options, version, extension, plugins })
    }

    /// The names of the plugins in a registry, those of extensions too; none when osqueryd doesn't say.
    pub(super) fn plugins(&self, registry: &str) -> BTreeSet<String> {
        self.rows(registry).filter_map(|row| row.get("name").cloned()).collect()
    }

    /// Those that osqueryd uses.
    pub(crate) fn active(&self, registry: &str) -> BTreeSet<String> {
        let active = |row: &&StringMap| row.get("active").is_some_and(|active| active == "1");
        self.rows(registry).filter(active).filter_map(|row| row.get("name").cloned()).collect()
    }

    /// Whether osqueryd has chosen among a registry's plugins. Until it has, which is after its first configuration for all but
    /// config, its registry shows every one as active.
    pub(crate) fn has_chosen(&self, registry: &str) -> bool {
        let (active, flag) = (self.active(registry), self.options.get(&format!("{registry}_plugin")));
        active != self.plugins(registry) || active.len() <= names(flag.map_or("", String::as_str)).count().max(1)
    }

    /// Whether it never chooses, since it uses none.
    pub(crate) fn uses_none(&self, registry: &str) -> bool {
        registry == "distributed" && self.options.get("disable_distributed").is_some_and(|value| value == "true")
    }

    fn rows<'a>(&'a self, registry: &'a str) -> impl Iterator<Item = &'a StringMap> {
        self.plugins.iter().filter(move |row| row.get("registry").is_some_and(|of| of == registry))
    }

    /// The version that our extension is registered with.
    pub(crate) fn extension_version(&self) -> Option<&str> {
        self.extension.as_ref().ok()?.as_ref().map(|(_, version)| version.as_str())
    }
}

/// The plugins that a flag names.
pub(super) fn names(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|name| !name.is_empty())
}
