//! osqueryd's backing store: domains of keys and values, and the `database` plugin's calls on them.
//!
//! A JSON file keeps it from one process to the next. The results of scheduled queries can be large and change at
//! every run, so they alone do not force a write at once: [`Database::save`] is called behind each round instead.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Row;

/// Settings, the node key among them.
pub(super) const CONFIGURATIONS: &str = "configurations";
/// What scheduled queries returned last.
pub(super) const QUERIES: &str = "queries";
/// Distributed queries that wait to be run.
pub(super) const DISTRIBUTED: &str = "distributed";
const DOMAINS: [&str; 8] =
    [CONFIGURATIONS, QUERIES, "events", "carves", "logs", DISTRIBUTED, "distributed_running", "query_performance"];

/// The store.
#[derive(Debug)]
pub(super) struct Database {
    path: Option<PathBuf>,
    domains: BTreeMap<String, BTreeMap<String, String>>,
    changed: bool,
}

impl Database {
    /// Opens the store kept in a file, which need not exist yet; without a path it is in memory only.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Database> {
        let mut domains = BTreeMap::new();
        if let Some(path) = path {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            match fs::read(path) {
                Ok(bytes) => domains = serde_json::from_slice(&bytes)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Database { path: path.map(Path::to_owned), domains, changed: false })
    }

    pub(super) fn value(&self, domain: &str, key: &str) -> Option<String> {
        self.domains.get(domain)?.get(key).cloned()
    }

    pub(super) fn put(&mut self, domain: &str, key: &str, value: &str) {
        self.domains.entry(domain.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self.touch(domain);
    }

    pub(super) fn remove(&mut self, domain: &str, key: &str) {
        if let Some(keys) = self.domains.get_mut(domain) {
            keys.remove(key);
        }
        self.touch(domain);
    }

    /// The keys with that prefix in order, at most `max` of them; 0 is no limit.
    pub(super) fn keys(&self, domain: &str, prefix: &str, max: usize) -> Vec<String> {
        let limit = if max == 0 { usize::MAX } else { max };
        let keys = self.domains.get(domain).into_iter().flat_map(BTreeMap::keys);
        keys.filter(|key| key.starts_with(prefix)).take(limit).cloned().collect()
    }

    /// Writes the file when something changed.
    pub(super) fn save(&mut self) {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else { return };
        let written = serde_json::to_vec(&self.domains).map_err(io::Error::from).and_then(|bytes| {
            let beside = path.with_extension("new");
            fs::write(&beside, bytes)?;
            fs::rename(&beside, path)
        });
        self.changed = written.is_err();
    }

    /// One call of the `database` plugin; the error is the message of status code 1.
    pub(super) fn call(&mut self, request: &Row) -> Result<Vec<Row>, String> {
        let field = |name: &str| request.get(name).map(String::as_str);
        let action = field("action").ok_or("Database plugin must include a request action")?;
        let (domain, key) = (field("domain").unwrap_or(""), field("key").unwrap_or(""));
        if action != "reset" && !DOMAINS.contains(&domain) {
            return Err("Could not get column family".to_owned());
        }
        match action {
            "get" => match self.value(domain, key) {
                Some(value) => Ok(vec![Row::from([("v".to_owned(), value)])]),
                None => Err("NotFound: ".to_owned()),
            },
            "put" => {
                let value = field("value").ok_or("Database plugin put action requires a value")?;
                self.put(domain, key, value);
                Ok(Vec::new())
            }
            "putBatch" => {
                let json = field("json").ok_or("Database plugin putBatch action requires a json-encoded value list")?;
                self.put_batch(domain, json).map(|()| Vec::new())
            }
            "remove" => {
                self.remove(domain, key);
                Ok(Vec::new())
            }
            "remove_range" => {
                let high = field("key_high").unwrap_or("");
                if key.is_empty() || high.is_empty() {
                    return Err("Missing range".to_owned());
                }
                if let Some(keys) = self.domains.get_mut(domain) {
                    keys.retain(|present, _| present.as_str() < key || present.as_str() > high);
                }
                self.touch(domain);
                Ok(Vec::new())
            }
            "scan" => {
                let max = field("max").map_or(Ok(0), str::parse).map_err(|_| "stoul".to_owned())?;
                // osqueryd looks it up unasked, and its library throws.
                let prefix = field("prefix").ok_or("map::at")?;
                let keys = self.keys(domain, prefix, max);
                Ok(keys.into_iter().map(|key| Row::from([("k".to_owned(), key)])).collect())
            }
            "reset" => Ok(Vec::new()),
            _ => Err("Unknown database plugin action".to_owned()),
        }
    }

    fn put_batch(&mut self, domain: &str, json: &str) -> Result<(), String> {
        let invalid = "Database plugin putBatch action with an invalid json received. Only string values are supported";
        let values = match serde_json::from_str::<Value>(json) {
            Ok(Value::Object(values)) => values,
            _ => return Err(invalid.to_owned()),
        };
        let values: Option<Vec<(&String, &str)>> =
            values.iter().map(|(key, value)| value.as_str().map(|value| (key, value))).collect();
        for (key, value) in values.ok_or(invalid)? {
            self.put(domain, key, value);
        }
        Ok(())
    }

    fn touch(&mut self, domain: &str) {
        self.changed = true;
        if domain != QUERIES {
            self.save();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Database;
    use crate::osqueryd::Row;

    fn request(fields: &[(&str, &str)]) -> Row {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_plugin_answers_as_osquerys_does() {
        let mut database = Database::open(None).unwrap();
        let mut call = |fields: &[(&str, &str)]| database.call(&request(fields));
        let base = |action| vec![("action", action), ("domain", "configurations")];
        let with = |action, more: &[(&'static str, &'static str)]| [base(action), more.to_vec()].concat();
        assert!(call(&with("get", &[("key", "nodeKey")])).is_err());
        call(&with("put", &[("key", "nodeKey"), ("value", "k")])).unwrap();
        assert_eq!(call(&with("get", &[("key", "nodeKey")])).unwrap()[0]["v"], "k");
        call(&with("putBatch", &[("json", r#"{"a1": "x", "a2": "y", "a3": "z"}"#)])).unwrap();
        assert!(call(&with("putBatch", &[("json", r#"{"a1": 1}"#)])).is_err());
        assert_eq!(call(&with("scan", &[("prefix", "a"), ("max", "2")])).unwrap().len(), 2);
        assert_eq!(call(&with("scan", &[("prefix", "")])).unwrap().len(), 4);
        assert_eq!(call(&base("scan")).unwrap_err(), "map::at");
        call(&with("remove_range", &[("key", "a1"), ("key_high", "a2")])).unwrap();
        assert_eq!(call(&with("scan", &[("prefix", "a")])).unwrap()[0]["k"], "a3");
        call(&with("remove", &[("key", "a3")])).unwrap();
        assert!(call(&[("action", "get"), ("domain", "nowhere"), ("key", "x")]).is_err());
    }

    #[test]
    fn the_file_keeps_what_was_put() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/osquery.db");
        Database::open(Some(&path)).unwrap().put("configurations", "a", "b");
        assert_eq!(Database::open(Some(&path)).unwrap().value("configurations", "a").as_deref(), Some("b"));
    }
}
