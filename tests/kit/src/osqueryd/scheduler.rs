//! The schedule: runs queries at their intervals, compares with the run before, and logs what changed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::config::{Pack, Scheduled};
use super::database::QUERIES;
use super::lines::{Item, Outcome, Shape};
use super::logger::Line;
use super::rows::{Cell, Difference, Rows, TypedRow, difference, restored, stored};
use super::updates::DecorationPoint;
use super::worker::Worker;
use super::{CallOutcome, calendar, lock};

impl Worker {
    /// A step is a second of osqueryd's clock; its count begins with the time of day, so that queries of one interval
    /// run in the same step. As in osqueryd, one that has begun is run to its end, with all of its queries.
    pub(super) fn run_schedule(&self) {
        let step = self.core.scaled(Duration::from_secs(1));
        let mut ran = BTreeSet::new();
        let mut second = calendar::unix_time();
        loop {
            let begun = Instant::now();
            self.discover_again();
            let schedule: Vec<Scheduled> = lock(&self.config).schedule().cloned().collect();
            for query in schedule {
                let first = query.runs_at_start() && !ran.contains(&query.name);
                if !second.is_multiple_of(query.splayed) && !first {
                    continue;
                }
                ran.insert(query.name.clone());
                self.launch_query(&query);
                if !self.is_alive() {
                    return;
                }
            }
            if second.is_multiple_of(60) {
                self.decorate(DecorationPoint::Interval(second), None);
            }
            lock(&self.core.database).save();
            if self.pause(step.saturating_sub(begun.elapsed())) {
                return;
            }
            second += 1;
        }
    }

    /// Runs one query, and logs what it found.
    pub(super) fn launch_query(&self, query: &Scheduled) {
        self.print_verbose("scheduler.cpp", 107, &format!("Executing scheduled query {}: {}", query.name, query.sql));
        self.decorate(DecorationPoint::Always, None);
        let found = match self.query(&query.sql) {
            Ok(found) => found,
            Err(message) => {
                let message = format!("Error executing scheduled query {}: {message}", query.name);
                return self.print(2, "scheduler.cpp", 128, &message);
            }
        };
        let time = calendar::unix_time();
        lock(&self.runs).entry(query.name.clone()).and_modify(|run| *run = (run.0 + 1, time)).or_insert((1, time));
        let epoch = lock(&self.flags).number("schedule_epoch");
        let (result, counter) = match query.snapshot {
            true => (Outcome::Snapshot(found.rows), 0),
            false => {
                let (mut changed, counter) = self.compare(query, found, epoch);
                if !query.removed {
                    changed.removed.clear();
                }
                if changed == Difference::default() && counter != 0 {
                    return;
                }
                (Outcome::Difference(changed), counter)
            }
        };
        let decorations = lock(&self.config).all_decorations();
        let (name, identifier) = (query.name.clone(), self.identifier());
        self.log_item(&Item { name, identifier, time, epoch, counter, decorations, result });
    }

    /// The difference to the run before, which from here on is this run: whether the lines are taken or not.
    fn compare(&self, query: &Scheduled, found: Rows, epoch: u64) -> (Difference, u64) {
        let Scheduled { name, sql, .. } = query;
        let mut now: Vec<TypedRow> = found.rows;
        now.iter_mut().flat_map(|row| row.values_mut()).for_each(Cell::escape);
        let kept = |key: &str| lock(&self.core.database).value(QUERIES, key);
        let put = |key: &str, value: &str| lock(&self.core.database).put(QUERIES, key, value);
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
        let before = kept(name);
        let new_epoch = if before.is_none() {
            let message = format!("Storing initial results for new scheduled query: {name}");
            self.print(0, "query.cpp", 119, &message);
            put(&format!("query.{name}"), sql);
            true
        } else if number(kept(&format!("{name}epoch"))) != epoch {
            self.print(0, "query.cpp", 124, &format!("New Epoch {epoch} for scheduled query {name}"));
            true
        } else {
            if kept(&format!("query.{name}")).as_ref() != Some(sql) {
                self.print(0, "query.cpp", 129, &format!("Scheduled query has been updated: {name}"));
                put(&format!("query.{name}"), sql);
            }
            false
        };
        let changed = match before.filter(|_| !new_epoch) {
            Some(before) => difference(&restored(&before), &now),
            None => Difference { removed: Vec::new(), added: now.clone() },
        };
        if changed == Difference::default() && !new_epoch {
            return (changed, 1);
        }
        put(name, &stored(&now));
        put(&format!("{name}epoch"), &epoch.to_string());
        let key = format!("{name}counter");
        let counter = if new_epoch { 0 } else { kept(&key).map_or(0, |kept| number(Some(kept)) + 1) };
        put(&key, &counter.to_string());
        (changed, counter)
    }

    fn log_item(&self, item: &Item) {
        let shape = {
            let flags = lock(&self.flags);
            if flags.is("disable_logging") {
                return;
            }
            Shape {
                event_type: flags.is("logger_event_type"),
                snapshot_event_type: flags.is("logger_snapshot_event_type"),
                numerics: flags.is("logger_numerics"),
                top_level: flags.is("decorations_top_level"),
            }
        };
        let kind = match item.result {
            Outcome::Snapshot(_) => Line::Snapshot,
            Outcome::Difference(_) => Line::String,
        };
        self.print_verbose("scheduler.cpp", 197, &format!("Found results for query: {}", item.name));
        let lines = item.lines(shape);
        let mut last = CallOutcome::default();
        // As in osqueryd, a failure in the middle does not end the loop: the last line's status counts.
        for line in &lines {
            last = self.log_line(kind, line.as_bytes());
            if !self.is_alive() {
                return;
            }
        }
        if last.is_ok() {
            let message = format!("logged {} lines of query {}", lines.len(), item.name);
            self.core.transcript.print(0, "logger.cpp", 480, &message);
        }
        self.give_up_when_failed(&item.name, &last);
    }

    /// Discovery queries are asked again when their answer is old.
    fn discover_again(&self) {
        let fresh = lock(&self.flags).number("pack_refresh_interval");
        let old = |pack: &Pack| !pack.discovery.is_empty() && pack.asked + fresh <= calendar::unix_time();
        let due: Vec<Pack> = lock(&self.config).packs.iter().filter(|pack| old(pack)).cloned().collect();
        for mut pack in due {
            self.discover(&mut pack);
            let mut config = lock(&self.config);
            let same = |other: &&mut Pack| other.name == pack.name && other.source == pack.source;
            if let Some(kept) = config.packs.iter_mut().find(same) {
                (kept.active, kept.asked) = (pack.active, pack.asked);
            }
        }
    }
}
