//! How a worker takes configurations: when it asks, what it does with an answer, and what an answer can destroy.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::config::{self, Decorators, Host, Pack};
use super::database::CONFIGURATIONS;
use super::worker::Worker;
use super::{CallOutcome, Row, calendar, lock, rows};

/// When decorators run, as osquery names it.
#[derive(Clone, Copy, Debug)]
pub(super) enum DecorationPoint {
    Load,
    Always,
    /// At this second of the schedule's clock.
    Interval(u64),
}

impl Worker {
    /// The first configuration, and the service that refreshes it.
    pub(super) fn load_config(self: &Arc<Worker>) {
        let seconds = lock(&self.flags).number("config_refresh");
        lock(&self.config).refresh = seconds;
        if seconds > 0 {
            self.spawn("config-refresh", |worker| {
                loop {
                    let seconds = lock(&worker.config).refresh;
                    if worker.pause(worker.core.scaled(Duration::from_secs(seconds))) {
                        return;
                    }
                    worker.refresh_config();
                }
            });
        }
        let outcome = self.refresh_config();
        if outcome.code != 0 {
            self.print(1, "init.cpp", 758, &format!("Error reading config: {}", outcome.message));
        }
    }

    /// Asks the active plugin, and takes what it answers. The outcome is the plugin's.
    pub(super) fn refresh_config(&self) -> CallOutcome {
        let plugin = self.plugin_of("config");
        let outcome = self.registry_call("config", &plugin, &[("action", b"genConfig")]);
        let (normal, accelerated) = {
            let flags = lock(&self.flags);
            (flags.number("config_refresh"), flags.number("config_accelerated_refresh"))
        };
        let mut config = lock(&self.config);
        if outcome.code != 0 {
            if normal > 0 && config.refresh == normal {
                config.refresh = accelerated;
            }
            return outcome;
        }
        config.refresh = normal;
        config.valid = true;
        drop(config);
        if let Some(answer) = outcome.rows.first().filter(|answer| !answer.is_empty()) {
            self.core.note_config(answer);
            // osqueryd prints what is wrong with it, and goes on.
            let _ = self.update_config(answer);
        }
        outcome
    }

    /// A call of one of osqueryd's own config plugins, or of `update`.
    pub(super) fn config_call(&self, item: &str, request: &Row) -> CallOutcome {
        let field = |name: &str| request.get(name).map(String::as_str);
        match field("action") {
            Some("update") => match (field("source"), field("data")) {
                (Some(source), Some(data)) => {
                    let answer = Row::from([(source.to_owned(), data.to_owned())]);
                    self.core.note_config(&answer);
                    self.update_config(&answer).map_or_else(|m| CallOutcome::failed(&m), |()| CallOutcome::default())
                }
                _ => CallOutcome::failed("Missing source or data"),
            },
            Some("option") => {
                let name = field("name").unwrap_or("");
                let value = lock(&self.flags).value(name);
                let row = [("name".to_owned(), name.to_owned()), ("value".to_owned(), value)];
                CallOutcome { rows: vec![Row::from(row)], ..CallOutcome::default() }
            }
            Some("genConfig") if item == "filesystem" => {
                let path = lock(&self.flags).value("config_path");
                match fs::read_to_string(&path) {
                    Ok(text) => CallOutcome { rows: vec![Row::from([(path, text)])], ..CallOutcome::default() },
                    Err(_) => CallOutcome::failed(&format!("config file does not exist: {path}")),
                }
            }
            Some(action) => CallOutcome::failed(&format!("Config plugin action unknown: {action}")),
            None => CallOutcome::failed("Config plugins require an action"),
        }
    }

    /// Takes `source → text`. The error is the message of status code 1; by then the source's schedule is gone.
    pub(super) fn update_config(&self, answer: &Row) -> Result<(), String> {
        for (source, text) in answer {
            if let Err(message) = self.update_source(source, text) {
                let shown = format!("updateSource failed to parse config, of source: {source} and content: {text}");
                self.print(2, "config.cpp", 905, &shown);
                self.core.transcript.ring();
                return Err(message);
            }
        }
        self.core.transcript.ring();
        Ok(())
    }

    fn update_source(&self, source: &str, text: &str) -> Result<(), String> {
        {
            let mut config = lock(&self.config);
            if config.texts.insert(source.to_owned(), text.to_owned()).is_some_and(|old| old == text) {
                return Ok(());
            }
            // First emptied, then read: osqueryd's order.
            config.packs.retain(|pack| pack.source != source);
        }
        let object = config::parsed(text)?;
        let mut packs = self.packs(source, &object);
        for pack in packs.iter_mut().filter(|pack| !pack.discovery.is_empty()) {
            self.discover(pack);
        }
        let count: usize = packs.iter().map(|pack| pack.queries.len()).sum();
        lock(&self.config).packs.extend(packs);
        self.apply_options(&object);
        self.apply_decorators(source, &object);
        let message = format!("Applied config of source {source}: {} bytes, {count} queries", text.len());
        self.core.transcript.print(0, "config.cpp", 860, &message);
        Ok(())
    }

    fn packs(&self, source: &str, object: &Map<String, Value>) -> Vec<Pack> {
        let flags = lock(&self.flags).clone();
        let percent = match flags.number("schedule_splay_percent") {
            0 | 1 => 10,
            percent => percent,
        };
        let splay = |name: &str, interval| self.splayed(name, interval, percent);
        let delimiter = flags.value("pack_delimiter");
        let shard = self.core.host_uuid().bytes().map(u64::from).sum::<u64>() % 100 + 1;
        let host = Host {
            version: &self.core.options.version,
            delimiter: &delimiter,
            default_interval: flags.number("schedule_default_interval"),
            shard,
            splay: &splay,
        };
        config::packs(source, object, &host, &|name, value| self.gen_pack(name, value))
    }

    /// The interval with its splay, which the store keeps for as long as the interval is the same.
    fn splayed(&self, name: &str, interval: u64, percent: u64) -> u64 {
        let key = format!("interval.{name}");
        let mut database = lock(&self.core.database);
        let kept = database.value(CONFIGURATIONS, &key);
        let kept = kept.as_deref().and_then(|kept| kept.split_once(':'));
        let kept = kept.filter(|(of, _)| of.parse() == Ok(interval)).and_then(|(_, splayed)| splayed.parse().ok());
        kept.unwrap_or_else(|| {
            let splayed = config::splayed(name, interval, percent);
            database.put(CONFIGURATIONS, &key, &format!("{interval}:{splayed}"));
            splayed
        })
    }

    fn gen_pack(&self, name: &str, value: &str) -> Option<Map<String, Value>> {
        let plugin = self.plugin_of("config");
        let request: [(&str, &[u8]); 3] =
            [("action", b"genPack"), ("name", name.as_bytes()), ("value", value.as_bytes())];
        let outcome = self.registry_call("config", &plugin, &request);
        let text = outcome.rows.first()?.get(name)?;
        match serde_json::from_str(&config::stripped(text)) {
            Ok(Value::Object(pack)) => Some(pack),
            _ => {
                self.print(1, "config.cpp", 812, &format!("Error parsing the \"{name}\" pack JSON"));
                None
            }
        }
    }

    /// Asks a pack's discovery queries again.
    pub(super) fn discover(&self, pack: &mut Pack) {
        pack.asked = calendar::unix_time();
        pack.active = pack.discovery.iter().all(|sql| match self.query(sql) {
            Ok(found) => !found.rows.is_empty(),
            Err(message) => {
                self.print(1, "packs.cpp", 374, &format!("Discovery query failed ({sql}): {message}"));
                false
            }
        });
    }

    fn apply_options(&self, object: &Map<String, Value>) {
        let Some(Value::Object(options)) = object.get("options") else { return };
        let merged = {
            let mut config = lock(&self.config);
            config.options.extend(options.clone());
            config.options.clone()
        };
        for (name, value) in &merged {
            let Some(text) = config::option_text(value) else { continue };
            let set = lock(&self.flags).set_from_config(name, &text);
            if let Err(warning) = set {
                self.print(1, "options.cpp", 101, &warning);
            }
        }
    }

    fn apply_decorators(&self, source: &str, object: &Map<String, Value>) {
        let decorators = object.get("decorators").and_then(Decorators::new).unwrap_or_default();
        {
            let mut config = lock(&self.config);
            config.decorations.remove(source);
            config.decorators.insert(source.to_owned(), decorators);
        }
        self.decorate(DecorationPoint::Load, Some(source));
    }

    /// Runs the decorators of that point, of one source or of all.
    pub(super) fn decorate(&self, point: DecorationPoint, only: Option<&str>) {
        if lock(&self.flags).is("disable_decorators") {
            return;
        }
        let due = |decorators: &Decorators| match point {
            DecorationPoint::Load => decorators.load.clone(),
            DecorationPoint::Always => decorators.always.clone(),
            DecorationPoint::Interval(second) => {
                let due = decorators.interval.iter().filter(|(seconds, _)| second % **seconds == 0);
                due.flat_map(|(_, queries)| queries.clone()).collect()
            }
        };
        let queries: Vec<(String, String)> = {
            let config = lock(&self.config);
            let sources = config.decorators.iter().filter(|(source, _)| only.is_none_or(|only| only == *source));
            let listed = sources
                .flat_map(|(source, decorators)| due(decorators).into_iter().map(move |query| (source.clone(), query)));
            listed.collect()
        };
        for (source, query) in queries {
            let Ok(found) = self.query(&query) else { continue };
            if found.rows.len() > 1 {
                let message = format!("Multiple rows returned for decorator query: {query}");
                self.print(1, "decorators.cpp", 307, &message);
            }
            if let Some(row) = found.rows.first() {
                lock(&self.config).decorations.entry(source).or_default().extend(rows::plain(row));
            }
        }
    }
}
