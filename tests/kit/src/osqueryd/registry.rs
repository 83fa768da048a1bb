//! What registered: extensions, their plugins, and who owns which plugin name.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

use super::Row;

/// `registry → plugin → route information`, as an extension sends it.
pub(super) type Broadcast = BTreeMap<String, BTreeMap<String, Vec<Row>>>;

/// The oldest SDK that osqueryd lets in.
const OLDEST_SDK: &str = "1.7.7";
/// What osqueryd itself has, as far as an extension can run into it: table names are in `tables.rs`.
const BUILT_IN: &[(&str, &[&str])] = &[
    ("config", &["filesystem", "tls", "update"]),
    (
        "config_parser",
        &["auto_constructed_tables", "decorators", "events", "feature_vectors", "file_paths", "options", "views"],
    ),
    ("database", &["ephemeral", "rocksdb", "sqlite"]),
    ("distributed", &["tls"]),
    ("enroll", &["tls"]),
    ("event_publisher", &[]),
    ("event_subscriber", &[]),
    ("logger", &["aws_firehose", "aws_kinesis", "filesystem", "kafka_producer", "stdout", "syslog", "tls"]),
    ("numeric_monitoring", &["filesystem"]),
    ("sql", &["sql"]),
    ("table", &[]),
];

/// One successful registration.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The uuid it was given.
    pub uuid: i64,
    /// The extension's name.
    pub name: String,
    /// The extension's version.
    pub version: String,
    /// The version of the SDK that it says it was built with.
    pub sdk_version: String,
    /// When it registered.
    pub at: Instant,
    /// The process at the other end of the connection.
    pub pid: Option<u32>,
    /// Which worker it registered with: the first is 1.
    pub worker: usize,
    /// The names of its plugins, by registry.
    pub plugins: BTreeMap<String, Vec<String>>,
}

/// An extension that is registered now.
#[derive(Clone, Debug)]
pub(super) struct Extension {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) sdk_version: String,
    pub(super) min_sdk_version: String,
    pub(super) routes: Broadcast,
}

/// The extensions that are registered now.
#[derive(Debug, Default)]
pub(super) struct Registry {
    extensions: BTreeMap<i64, Extension>,
}

impl Registry {
    /// Registers an extension; the error is the message of status code 1.
    pub(super) fn add(&mut self, extension: Extension, tables: &[&str]) -> Result<i64, String> {
        if self.extensions.values().any(|other| other.name == extension.name) {
            return Err("Duplicate extension registered".to_owned());
        }
        if !at_least(OLDEST_SDK, &extension.sdk_version) {
            return Err("Incompatible extension SDK version".to_owned());
        }
        for (registry, plugins) in &extension.routes {
            if let Some(plugin) = plugins.keys().find(|plugin| self.has(registry, plugin, tables)) {
                return Err(format!(
                    "Failed adding registry: Registry item {plugin} conflicts with another item of the same name."
                ));
            }
            // A table's route information are its columns: the SQL implementation attaches it by them.
            if registry == "table" && plugins.values().any(Vec::is_empty) {
                return Err("Failed adding registry: Invalid route info".to_owned());
            }
            if !BUILT_IN.iter().any(|(name, _)| name == registry) {
                return Err(format!("Failed adding registry: Unknown registry: {registry}"));
            }
        }
        let uuid = self.unused_uuid();
        self.extensions.insert(uuid, extension);
        Ok(uuid)
    }

    /// Forgets an extension and its plugins. False when none has that uuid.
    pub(super) fn remove(&mut self, uuid: i64) -> bool {
        self.extensions.remove(&uuid).is_some()
    }

    pub(super) fn extensions(&self) -> &BTreeMap<i64, Extension> {
        &self.extensions
    }

    /// The extension that has the plugin.
    pub(super) fn owner(&self, registry: &str, plugin: &str) -> Option<i64> {
        let has = |extension: &Extension| extension.routes.get(registry).is_some_and(|r| r.contains_key(plugin));
        self.extensions.iter().find(|(_, extension)| has(extension)).map(|(uuid, _)| *uuid)
    }

    /// Whether the plugin exists, built in or not.
    pub(super) fn has(&self, registry: &str, plugin: &str, tables: &[&str]) -> bool {
        is_built_in(registry, plugin)
            || (registry == "table" && tables.contains(&plugin))
            || self.owner(registry, plugin).is_some()
    }

    fn unused_uuid(&self) -> i64 {
        loop {
            let random = RandomState::new().build_hasher().finish();
            let uuid = (random % 65_535) as i64 + 1;
            if !self.extensions.contains_key(&uuid) {
                return uuid;
            }
        }
    }
}

/// Whether osqueryd has the plugin itself. Tables are not among them.
pub(super) fn is_built_in(registry: &str, plugin: &str) -> bool {
    built_in().any(|known| known == (registry, plugin))
}

/// `(registry, plugin)` of everything built in but tables.
pub(super) fn built_in() -> impl Iterator<Item = (&'static str, &'static str)> {
    BUILT_IN.iter().flat_map(|(registry, plugins)| plugins.iter().map(move |plugin| (*registry, *plugin)))
}

/// osquery's comparison: part by part, as numbers when both are, else as text; 0.0.0 passes.
pub(super) fn at_least(required: &str, version: &str) -> bool {
    if required == "0.0.0" || version == "0.0.0" {
        return true;
    }
    let mut required = required.split('.').filter(|part| !part.is_empty());
    for part in version.split('.').filter(|part| !part.is_empty()) {
        let Some(wanted) = required.next() else { return true };
        match (leading_number(part), leading_number(wanted)) {
            (Some(part), Some(wanted)) if part < wanted => return false,
            (Some(part), Some(wanted)) if part > wanted => return true,
            (Some(_), Some(_)) => {}
            _ if part < wanted => return false,
            _ => {}
        }
    }
    true
}

fn leading_number(part: &str) -> Option<u64> {
    part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Broadcast, Extension, Registry, at_least};

    fn extension(name: &str, sdk: &str, plugins: &[(&str, &str)]) -> Extension {
        let mut routes = Broadcast::new();
        for (registry, plugin) in plugins {
            routes.entry((*registry).to_owned()).or_default().insert((*plugin).to_owned(), Vec::new());
        }
        let (version, min_sdk_version) = ("1".to_owned(), "0.0.0".to_owned());
        Extension { name: name.to_owned(), version, sdk_version: sdk.to_owned(), min_sdk_version, routes }
    }

    #[test]
    fn names_are_taken_once() {
        let mut registry = Registry::default();
        let uuid = registry.add(extension("a", "5.0.0", &[("logger", "mine")]), &[]).unwrap();
        assert!((1..=65_535).contains(&uuid));
        let mut refusal =
            |name: &str, sdk: &str, plugin| registry.add(extension(name, sdk, &[plugin]), &["time"]).unwrap_err();
        assert_eq!(refusal("a", "5.0.0", ("logger", "other")), "Duplicate extension registered");
        for plugin in [("logger", "mine"), ("logger", "tls"), ("table", "time")] {
            let expected = format!(
                "Failed adding registry: Registry item {} conflicts with another item of the same name.",
                plugin.1
            );
            assert_eq!(refusal("b", "5.0.0", plugin), expected);
        }
        assert_eq!(refusal("b", "1.7.6", ("logger", "other")), "Incompatible extension SDK version");
        assert_eq!(refusal("b", "5.0.0", ("cake", "x")), "Failed adding registry: Unknown registry: cake");
        assert_eq!(refusal("b", "5.0.0", ("table", "mine")), "Failed adding registry: Invalid route info");
        assert!(registry.remove(uuid) && !registry.remove(uuid));
        registry.add(extension("a", "0.0.0", &[("logger", "mine")]), &[]).unwrap();
    }

    #[test]
    fn versions_compare_by_part() {
        assert!(at_least("1.7.7", "1.7.7") && at_least("1.7.7", "5.23.0-38-g1") && at_least("1.7.7", "1.10"));
        assert!(!at_least("1.7.7", "1.7.6"));
        assert!(at_least("1.7.7", "Unknown"));
    }
}
