//! A configuration as osqueryd reads it: what it takes for one, and the packs and decorators in it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::registry::at_least;

/// Levels of objects and lists, the outermost included.
const MAX_DEPTH: usize = 32;
/// Bytes, comments not counted. The newest versions take four times that.
const MAX_SIZE: usize = 1 << 20;
/// The longest interval of a scheduled query, a week.
const MAX_INTERVAL: u64 = 604_800;

/// What all sources together put in force.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// Every source's text, valid or not: the same text again is no change.
    pub(super) texts: BTreeMap<String, String>,
    pub(super) packs: Vec<Pack>,
    /// Every option seen so far: they are merged, and never taken back.
    pub(super) options: Map<String, Value>,
    pub(super) decorators: BTreeMap<String, Decorators>,
    /// By source: what decorators found.
    pub(super) decorations: BTreeMap<String, BTreeMap<String, String>>,
    /// osqueryd's own opinion: true once an answer came, whatever was in it.
    pub(super) valid: bool,
    /// Seconds to the next refresh.
    pub(super) refresh: u64,
}

/// One pack; the schedule itself is the pack `main`.
#[derive(Clone, Debug)]
pub(super) struct Pack {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) discovery: Vec<String>,
    /// What the discovery queries said, and when they were asked.
    pub(super) active: bool,
    pub(super) asked: u64,
    pub(super) queries: Vec<Scheduled>,
}

/// One scheduled query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scheduled {
    /// As result lines have it, `pack_<pack>_<query>` for one from a pack.
    pub(super) name: String,
    pub(super) sql: String,
    pub(super) interval: u64,
    /// The interval that it really runs at.
    pub(super) splayed: u64,
    pub(super) snapshot: bool,
    /// Whether removed rows are logged.
    pub(super) removed: bool,
    pub(super) denylist: bool,
    startup_priority: u64,
}

/// The decorators of one source.
#[derive(Clone, Debug, Default)]
pub(super) struct Decorators {
    pub(super) load: Vec<String>,
    pub(super) always: Vec<String>,
    pub(super) interval: BTreeMap<u64, Vec<String>>,
}

/// What decides which queries run here.
pub(super) struct Host<'a> {
    pub(super) version: &'a str,
    pub(super) delimiter: &'a str,
    pub(super) default_interval: u64,
    /// 1 to 100.
    pub(super) shard: u64,
    pub(super) splay: &'a dyn Fn(&str, u64) -> u64,
}

impl Config {
    /// The queries of active packs, in the order in which they run.
    pub(super) fn schedule(&self) -> impl Iterator<Item = &Scheduled> {
        self.packs.iter().filter(|pack| pack.active).flat_map(|pack| &pack.queries)
    }

    /// Every source's decorations together.
    pub(super) fn all_decorations(&self) -> BTreeMap<String, String> {
        self.decorations.values().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// A configuration's text without its comments, or rather: as its size is measured and as it is parsed.
pub(super) fn stripped(text: &str) -> String {
    let joined = text.replace("\\\n", "");
    let lines = joined.split('\n').map(str::trim).filter(|line| !line.starts_with('#') && !line.starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The object in a configuration's text, or why it is refused.
pub(super) fn parsed(text: &str) -> Result<Map<String, Value>, String> {
    let text = stripped(text);
    if text.len() > MAX_SIZE {
        return Err(format!("Error parsing the config JSON: the config size exceeds the limit of {MAX_SIZE} bytes"));
    }
    let Ok(Value::Object(object)) = serde_json::from_str(&text) else {
        return Err("Error parsing the config JSON".to_owned());
    };
    if object.values().any(|value| depth(value) >= MAX_DEPTH) {
        let message = "Error validating the config JSON: Configuration has too many nesting levels!";
        return Err(message.to_owned());
    }
    Ok(object)
}

/// Finds the pack that stands for a string, by its name and the string.
pub(super) type Fetch<'a> = dyn Fn(&str, &str) -> Option<Map<String, Value>> + 'a;

/// The packs of a configuration; a pack whose value is a string is given to `fetch` by name and value.
pub(super) fn packs(source: &str, config: &Map<String, Value>, host: &Host<'_>, fetch: &Fetch<'_>) -> Vec<Pack> {
    let mut packs = Vec::new();
    if let Some(schedule @ Value::Object(_)) = config.get("schedule") {
        let main = Map::from_iter([("queries".to_owned(), schedule.clone())]);
        packs.extend(Pack::new("main", source, &main, host));
    }
    let Some(Value::Object(listed)) = config.get("packs") else { return packs };
    for (name, value) in listed {
        let fetched = match value {
            Value::Object(pack) => Some(pack.clone()),
            Value::String(value) => fetch(name, value),
            _ => None,
        };
        let Some(fetched) = fetched else { continue };
        if name == "*" {
            let several = fetched.iter().filter_map(|(name, pack)| Some((name, pack.as_object()?)));
            packs.extend(several.filter_map(|(name, pack)| Pack::new(name, source, pack, host)));
        } else {
            packs.extend(Pack::new(name, source, &fetched, host));
        }
    }
    packs
}

impl Pack {
    /// None when the pack is not for this host.
    fn new(name: &str, source: &str, pack: &Map<String, Value>, host: &Host<'_>) -> Option<Pack> {
        if !is_for(pack, host) {
            return None;
        }
        let discovery = pack.get("discovery").map(strings).unwrap_or_default();
        let empty = Map::new();
        let listed = pack.get("queries").and_then(Value::as_object).unwrap_or(&empty);
        let mut queries: Vec<Scheduled> =
            listed.iter().filter_map(|(query, value)| Scheduled::new(name, query, value.as_object()?, host)).collect();
        queries.sort_by(|a, b| (a.startup_priority, &a.name).cmp(&(b.startup_priority, &b.name)));
        let active = discovery.is_empty();
        Some(Pack { name: name.to_owned(), source: source.to_owned(), discovery, active, asked: 0, queries })
    }
}

impl Scheduled {
    fn new(pack: &str, query: &str, value: &Map<String, Value>, host: &Host<'_>) -> Option<Scheduled> {
        let sql = value.get("query").and_then(Value::as_str).filter(|sql| !sql.is_empty())?;
        let interval = value.get("interval").map_or(host.default_interval, size);
        if !is_for(value, host) || !(1..=MAX_INTERVAL).contains(&interval) || is_reserved(query) {
            return None;
        }
        let name = match pack {
            "main" => query.to_owned(),
            _ => format!("pack{0}{pack}{0}{query}", host.delimiter),
        };
        let option = |option: &str, default| value.get(option).map_or(default, truth);
        Some(Scheduled {
            sql: sql.to_owned(),
            interval,
            splayed: (host.splay)(query, interval),
            snapshot: option("snapshot", false),
            removed: option("removed", true),
            denylist: option("denylist", true),
            startup_priority: value.get("startup_priority").map_or(u64::MAX, size),
            name,
        })
    }

    /// Whether it runs once right after the start.
    pub(super) fn runs_at_start(&self) -> bool {
        self.startup_priority != u64::MAX
    }
}

impl Decorators {
    /// None when the value is no object.
    pub(super) fn new(value: &Value) -> Option<Decorators> {
        let value = value.as_object()?;
        let list = |key| value.get(key).map(strings).unwrap_or_default();
        let intervals = value.get("interval").and_then(Value::as_object).into_iter().flatten();
        let interval = intervals
            .filter_map(|(seconds, queries)| Some((seconds.parse().ok()?, strings(queries))))
            .filter(|(seconds, _): &(u64, _)| *seconds > 0 && seconds % 60 == 0);
        Some(Decorators { load: list("load"), always: list("always"), interval: interval.collect() })
    }
}

/// An option's value as the flags get it; none for what is no value.
pub(super) fn option_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        other => Some(other.to_string()),
    }
}

/// osquery's way to spread intervals; the random part is the name's, so that a test sees the same each time.
pub(super) fn splayed(name: &str, interval: u64, percent: u64) -> u64 {
    if percent == 0 || percent > 100 {
        return interval;
    }
    let difference = interval * percent / 100;
    let low = interval.saturating_sub(difference).max(1);
    let spread = interval + difference - low + 1;
    low + name.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % spread
}

fn depth(value: &Value) -> usize {
    // serde_json gives up at 128 levels, so that this cannot run away.
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

fn is_for(item: &Map<String, Value>, host: &Host<'_>) -> bool {
    let text = |key| item.get(key).and_then(Value::as_str).filter(|text| !text.is_empty() && *text != "null");
    let platforms = ["any", "all", "linux", "ubuntu", "centos", "posix"];
    let platform = text("platform").is_none_or(|wanted| platforms.iter().any(|platform| wanted.contains(platform)));
    let version = text("version").is_none_or(|wanted| at_least(wanted, host.version));
    let shard = item.get("shard").map_or(0, size);
    platform && version && (shard == 0 || shard >= host.shard)
}

/// Names that would collide with what the store keeps beside a query's results.
fn is_reserved(query: &str) -> bool {
    let prefixes = BTreeSet::from(["query."]);
    let suffixes = BTreeSet::from(["counter", "epoch"]);
    prefixes.iter().any(|prefix| query.starts_with(prefix)) || suffixes.iter().any(|suffix| query.ends_with(suffix))
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn size(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).unwrap_or(0)
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => text == "true",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Host, packs, parsed, splayed};

    const HOST: Host<'_> =
        Host { version: "5.23.0", delimiter: "_", default_interval: 3600, shard: 40, splay: &|_, interval| interval };

    fn names(config: Value) -> Vec<String> {
        let packs = packs("s", config.as_object().unwrap(), &HOST, &|name, value| {
            (value == "there").then(|| json!({"queries": {name: {"query": "q", "interval": 1}}}))?.as_object().cloned()
        });
        packs.into_iter().flat_map(|pack| pack.queries).map(|query| query.name).collect()
    }

    #[test]
    fn comments_and_joined_lines_are_taken_out() {
        let text = "# one\n{\"a\": \\\n 1, // stays, and fails\n // two\n \"b\": 2}";
        assert!(parsed(text).is_err());
        assert_eq!(parsed(&text.replace("// stays, and fails", "")).unwrap()["b"], 2);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["", "<html></html>", "[]", "{\"schedule\":", "\"x\""] {
            assert_eq!(parsed(text).unwrap_err(), "Error parsing the config JSON", "{text}");
        }
        let nested = |levels: usize| format!("{{\"a\": {}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(parsed(&nested(31)).is_ok());
        assert!(parsed(&nested(32)).unwrap_err().contains("nesting"));
        let large = format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20));
        assert!(parsed(&large).unwrap_err().contains("exceeds the limit"));
        assert!(parsed(&format!("{{}}{}", "\n# x".repeat(1 << 20))).is_ok());
    }

    #[test]
    fn a_schedule_holds_what_is_for_this_host() {
        let query = |more: Value| {
            let mut query = json!({"query": "select 1", "interval": 60});
            query.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            query
        };
        let config = json!({
            "schedule": {
                "nulls": query(json!({"platform": null, "version": null, "shard": null, "removed": null})),
                "windows": query(json!({"platform": "windows"})),
                "newer": query(json!({"version": "6.0.0"})),
                "shard": query(json!({"shard": 39})),
                "never": query(json!({"interval": 0})),
                "text": query(json!({"interval": "70"})),
            },
            "packs": {
                "p": {"queries": {"q": query(json!({}))}},
                "elsewhere": {"platform": "darwin", "queries": {"q": query(json!({}))}},
                "fetched": "there",
                "missing": "away",
            },
        });
        assert_eq!(names(config), ["nulls", "text", "pack_p_q", "pack_fetched_fetched"]);
        assert!(names(json!({"schedule": null, "packs": []})).is_empty());
    }

    #[test]
    fn the_splay_stays_within_its_percentage() {
        assert_eq!(splayed("q", 1, 10), 1);
        assert!((90..=110).contains(&splayed("some query", 100, 10)));
    }
}
