//! Distributed queries: asks for them, runs them, and hands their results over until the plugin takes them.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::database::{CONFIGURATIONS, DISTRIBUTED};
use super::worker::Worker;
use super::{CallOutcome, calendar, lock};

/// The key of the moment until which osqueryd asks more often.
const ACCELERATED: &str = "distributed_accelerate_checkins_expire";
/// Seconds between two polls meanwhile.
const ACCELERATED_INTERVAL: u64 = 5;

/// One query that was run.
#[derive(Clone, Debug)]
pub(super) struct Finished {
    name: String,
    rows: Value,
    status: i32,
    message: String,
    stats: Value,
}

impl Worker {
    pub(super) fn run_distributed(&self) {
        loop {
            // osqueryd ignores both outcomes.
            let _ = self.poll_distributed();
            let until = lock(&self.core.database).value(CONFIGURATIONS, ACCELERATED);
            let until: u64 = until.and_then(|until| until.parse().ok()).unwrap_or(0);
            let seconds = match calendar::unix_time() > until {
                true => lock(&self.flags).number("distributed_interval"),
                false => ACCELERATED_INTERVAL,
            };
            if self.pause(self.core.scaled(Duration::from_secs(seconds))) {
                return;
            }
        }
    }

    /// One round. The error says what kept it from being complete.
    pub(super) fn poll_distributed(&self) -> Result<(), String> {
        let pulled = self.pull_queries();
        self.run_queries();
        self.flush_results().and(pulled)
    }

    /// The plugin's answer to `getQueries`.
    pub(super) fn call_get_queries(&self) -> CallOutcome {
        let plugin = self.plugin_of("distributed");
        self.registry_call("distributed", &plugin, &[("action", b"getQueries")])
    }

    /// The plugin's answer to `writeResults`.
    pub(super) fn call_write_results(&self, results: &str) -> CallOutcome {
        let plugin = self.plugin_of("distributed");
        let request: [(&str, &[u8]); 2] = [("action", b"writeResults"), ("results", results.as_bytes())];
        self.registry_call("distributed", &plugin, &request)
    }

    fn pull_queries(&self) -> Result<(), String> {
        let outcome = self.call_get_queries();
        if outcome.code != 0 {
            return Err(outcome.message);
        }
        outcome.rows.first().and_then(|row| row.get("results")).map_or(Ok(()), |work| self.accept_work(work))
    }

    /// The first thing that is wrong ends it; what was taken before stays.
    pub(super) fn accept_work(&self, work: &str) -> Result<(), String> {
        let Ok(Value::Object(work)) = serde_json::from_str(work) else {
            return Err("Error Parsing JSON".to_owned());
        };
        let mut skipped = Vec::new();
        for (name, sql) in texts(&work, "discovery", "Distributed discovery query is not a string")? {
            let found = self.query(&sql).map_err(|_| "Distributed discovery query has an SQL error")?;
            if found.rows.is_empty() {
                skipped.push(name);
            }
        }
        for (name, sql) in texts(&work, "queries", "Distributed query is not a string")? {
            if !skipped.contains(&name) {
                lock(&self.core.database).put(DISTRIBUTED, &name, &sql);
            }
        }
        if let Some(seconds) = work.get("accelerate").and_then(Value::as_i64) {
            let message = format!("Accelerating distributed query checkins for {seconds} seconds");
            self.print(0, "distributed.cpp", 330, &message);
            let until = calendar::unix_time().saturating_add_signed(seconds).to_string();
            lock(&self.core.database).put(CONFIGURATIONS, ACCELERATED, &until);
        }
        Ok(())
    }

    fn run_queries(&self) {
        let names = lock(&self.core.database).keys(DISTRIBUTED, "", 0);
        for name in names {
            let sql = {
                let mut database = lock(&self.core.database);
                let sql = database.value(DISTRIBUTED, &name).unwrap_or_default();
                database.remove(DISTRIBUTED, &name);
                sql
            };
            let begun = Instant::now();
            let found = self.query(&sql);
            let took = begun.elapsed().as_millis() as u64;
            let stats = json!({"wall_time_ms": took, "user_time": 0, "system_time": 0, "memory": 0});
            let (rows, status, message) = match found {
                Ok(found) => (found.in_order(), 0, String::new()),
                Err(message) => {
                    let shown = format!("Error executing distributed query: {name}: {message}");
                    self.print(2, "distributed.cpp", 187, &shown);
                    (json!([]), 1, message)
                }
            };
            lock(&self.finished).push(Finished { name, rows, status, message, stats });
        }
    }

    /// Everything that is finished goes in one call, and is forgotten when that is answered with 0.
    fn flush_results(&self) -> Result<(), String> {
        let finished = lock(&self.finished).clone();
        if finished.is_empty() {
            return Ok(());
        }
        let body = results(&finished);
        let outcome = self.call_write_results(&body);
        if outcome.code != 0 {
            return Err(outcome.message);
        }
        lock(&self.finished).drain(..finished.len());
        self.core.transcript.ring();
        Ok(())
    }
}

/// The `results` parameter of `writeResults`.
fn results(finished: &[Finished]) -> String {
    let column = |value: &dyn Fn(&Finished) -> Value| -> Value {
        Value::Object(finished.iter().map(|one| (one.name.clone(), value(one))).collect::<Map<String, Value>>())
    };
    json!({
        "queries": column(&|one| one.rows.clone()),
        "statuses": column(&|one| json!(one.status)),
        "messages": column(&|one| json!(one.message)),
        "stats": column(&|one| one.stats.clone()),
    })
    .to_string()
}

/// The members of an object of strings; `error` when one is no string, or is empty.
fn texts(work: &Map<String, Value>, member: &str, error: &str) -> Result<Vec<(String, String)>, String> {
    let Some(Value::Object(members)) = work.get(member) else { return Ok(Vec::new()) };
    let text = |(name, value): (&String, &Value)| {
        let text = value.as_str().filter(|text| !text.is_empty() && !name.is_empty());
        text.map(|text| (name.clone(), text.to_owned())).ok_or_else(|| error.to_owned())
    };
    members.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Finished, results};

    #[test]
    fn results_have_the_shape_of_osquerys() {
        let stats = json!({"wall_time_ms": 0, "user_time": 0, "system_time": 0, "memory": 0});
        let good = Finished {
            name: "good".to_owned(),
            rows: json!([{"s": "a", "i": "1"}]),
            status: 0,
            message: String::new(),
            stats: stats.clone(),
        };
        let message = "no such table: x".to_owned();
        let bad = Finished { name: "bad".to_owned(), rows: json!([]), status: 1, message, stats };
        let expected = concat!(
            r#"{"queries":{"bad":[],"good":[{"s":"a","i":"1"}]},"statuses":{"bad":1,"good":0},"#,
            r#""messages":{"bad":"no such table: x","good":""},"#,
            r#""stats":{"bad":{"wall_time_ms":0,"user_time":0,"system_time":0,"memory":0},"#,
            r#""good":{"wall_time_ms":0,"user_time":0,"system_time":0,"memory":0}}}"#
        );
        assert_eq!(results(&[bad, good]), expected);
    }
}
