//! Decorations of status lines: what the configuration's decorators find, by osqueryd's own SQL.
//!
//! osqueryd decorates result lines itself; status lines are decorated by the logger plugin, and an extension has to run
//! the decorators once more for that. As in osqueryd (plugins/config/parsers/decorators.cpp), each column of a
//! decorator's first row is a decoration, which stays until another one of that name or another configuration comes.
//! Load decorators run once a configuration. The others run when status lines come: always decorators each time
//! (osqueryd runs them before each query of its schedule), interval decorators when their time is over (osqueryd
//! runs them by the clock). Decorators within packs, which osquery's documentation doesn't know, are not run.
//!
//! A status call comes from a thread of osqueryd's, and a query can make osqueryd write a status line. Therefore:
//!
//! * A thread of its own makes the queries, on a manager connection of its own: nothing but the lines waits for them.
//! * A call waits at most [`ROUND_LIMIT`] and then takes what is found by then. Once one has waited in vain, none
//!   waits until a round was in time again.
//! * Only a line younger than the end of the last round begins another one. What the queries make osqueryd write is
//!   older, so a round never begins the next one.
//! * A decorator that fails is left alone for a time that grows with its failures.
//!
//! What is found stands in every line, and a server chooses what is asked for: an answer is read up to [`LARGEST_FINDING`],
//! and all decorations together have [`MOST_FOUND`] bytes at most. A decorator that would make them more has failed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::status_line::Decoration;
use crate::chain::chain;
use crate::clock::unix_time;
use crate::extension::manager::{Manager, ManagerError};
use crate::extension::registry::StringMap;
use crate::lock::{Mutex, MutexGuard};
use crate::logging::Streak;
use crate::members;
use crate::plugins::config::kept;
use crate::policy::{Backoff, Chance};
use crate::settings::Placement;
use crate::shutdown::Shutdown;
use crate::single_flight::{Next, NotDone, SingleFlight, Ticket};

/// The longest that status lines wait for their decorations. osqueryd's own queries for them take milliseconds.
pub const ROUND_LIMIT: Duration = Duration::from_secs(1);

/// The largest answer to a decorator's query, in bytes.
pub const LARGEST_FINDING: u64 = 1 << 20;

/// The most bytes that the names and values of all decorations have together.
const MOST_FOUND: usize = 64 << 10;

/// How long a decorator is left alone after its first failure, and at most.
const PAUSE_STEP: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// As many decorators of a configuration are run, the first ones.
const MOST_DECORATORS: usize = 1000;

/// As many of those that can't be used are named.
const MOST_NAMED: usize = 10;

/// Runs the decorators of the configuration that osqueryd has, and knows what they found.
pub struct Decorations {
    manager: Manager,
    /// The last good configuration: osqueryd doesn't ask a worker that takes another one's place for one.
    kept: PathBuf,
    state: Mutex<State>,
    /// Made by [`Decorations::run`].
    rounds: Arc<SingleFlight<()>>,
}

#[derive(Default)]
struct State {
    /// The configuration, by its hash; `None` while there is none.
    configuration: Option<u64>,
    decorators: Vec<Decorator>,
    found: Arc<BTreeMap<String, String>>,
    /// When the last round ended, in Unix seconds; 0 before the first one of a configuration.
    ended: i64,
    /// Whether lines have waited for a round in vain.
    late: bool,
}

/// When a decorator runs, as osquery names it. Decorators run in the order of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DecorationPoint {
    Load,
    Interval(Duration),
    Always,
}

/// One query, and when it is due.
struct Decorator {
    point: DecorationPoint,
    sql: String,
    /// `None` when it has done its work for this configuration.
    due: Option<Instant>,
    pauses: Backoff,
    failures: Streak,
}

impl Decorations {
    /// Queries osqueryd by `manager`, which is for this alone; looks for a configuration in the file `kept` when
    /// it is not told one. [`Self::run`] must be running.
    #[must_use]
    pub fn new(manager: Manager, kept: PathBuf, shutdown: &Shutdown) -> Arc<Self> {
        let decorations =
            Arc::new(Self { manager, kept, state: Mutex::default(), rounds: SingleFlight::new(shutdown) });
        let ended = Arc::downgrade(&decorations);
        shutdown.on_request(move || {
            if let Some(decorations) = ended.upgrade() {
                decorations.manager.close();
            }
        });
        decorations
    }

    /// The querying thread's work, until the end is asked for.
    pub fn run(&self) {
        loop {
            match self.rounds.next(None) {
                Next::Asked(ticket) => {
                    self.take_kept();
                    self.round(ticket);
                }
                Next::Look => {}
                Next::End => return,
            }
        }
    }

    /// osqueryd has this configuration now. The same one again is no change, as in osqueryd.
    pub fn configure(&self, document: &str) {
        let configuration = hash(document);
        if self.state().configuration == Some(configuration) {
            return;
        }
        let decorators = decorators_of(document);
        self.state().begin(configuration, decorators);
    }

    /// What goes into status lines of which the youngest is of `newest` (Unix seconds); nothing where `placement` is
    /// `None`. Waits at most [`ROUND_LIMIT`].
    pub fn decoration(&self, newest: i64, placement: Option<Placement>) -> Decoration {
        placement.map_or_else(Decoration::default, |placement| Decoration { values: self.values(newest), placement })
    }

    fn values(&self, newest: i64) -> Arc<BTreeMap<String, String>> {
        let (wants_round, late) = {
            let state = self.state();
            (state.wants_round(newest), state.late)
        };
        if wants_round {
            let ticket = self.rounds.ask();
            if !late && self.rounds.wait(ticket, Instant::now() + ROUND_LIMIT) == Err(NotDone::Late) {
                let mut state = self.state();
                // Unless it ended in this moment.
                state.late = self.rounds.wait(ticket, Instant::now()).is_err();
            }
        }
        Arc::clone(&self.state().found)
    }

    /// Begins with the last good configuration when none has come: that is the one that osqueryd has.
    fn take_kept(&self) {
        if self.state().configuration.is_some() {
            return;
        }
        let document = kept(&self.kept).unwrap_or_default();
        let decorators = decorators_of(&document);
        let mut state = self.state();
        if state.configuration.is_none() {
            state.begin(hash(&document), decorators);
        }
    }

    /// Runs what is due, without the lock. What was found for a configuration that has gone meanwhile is thrown away,
    /// and the round is still to be made. Each answer is settled as it comes: a thousand of them would be too much to hold.
    fn round(&self, ticket: Ticket) {
        let began = Instant::now();
        let (configuration, due) = {
            let state = self.state();
            (state.configuration, state.due(began))
        };
        for (index, sql) in due {
            let outcome = self.manager.query(&sql);
            let answered = matches!(outcome, Ok(_) | Err(ManagerError::Refused { .. } | ManagerError::TooLarge { .. }));
            let mut state = self.state();
            if state.configuration != configuration {
                return;
            }
            state.settle(index, outcome);
            if !answered {
                break;
            }
        }
        let mut state = self.state();
        if state.configuration == configuration {
            state.ended = unix_time();
            state.late &= began.elapsed() > ROUND_LIMIT;
            // Under the lock, so that no caller takes this round for a late one meanwhile.
            self.rounds.done(ticket, ());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn begin(&mut self, configuration: u64, decorators: Vec<Decorator>) {
        self.configuration = Some(configuration);
        self.decorators = decorators;
        self.found = Arc::default();
        self.ended = 0;
    }

    /// Whether lines of that age make it worth to run what is due.
    fn wants_round(&self, newest: i64) -> bool {
        // By a clock that was set back, all lines would be old.
        let young = newest > self.ended || unix_time() < self.ended;
        young && (self.configuration.is_none() || !self.due(Instant::now()).is_empty())
    }

    fn due(&self, now: Instant) -> Vec<(usize, String)> {
        let due = self.decorators.iter().enumerate().filter(|(_, decorator)| decorator.due.is_some_and(|at| at <= now));
        due.map(|(index, decorator)| (index, decorator.sql.clone())).collect()
    }

    fn settle(&mut self, index: usize, outcome: Result<Vec<StringMap>, ManagerError>) {
        let Some(decorator) = self.decorators.get_mut(index) else { return };
        match outcome {
            Ok(rows) => {
                // osqueryd warns of further rows when it runs the decorator itself.
                let row = rows.into_iter().next().unwrap_or_default();
                // Those of a name that is found again are replaced.
                let others = self.found.iter().filter(|(name, _)| !row.contains_key(*name));
                if weight(others) + weight(&row) > MOST_FOUND {
                    return decorator.failed(&TooMuch);
                }
                decorator.succeeded();
                if !row.is_empty() {
                    Arc::make_mut(&mut self.found).extend(row);
                }
            }
            // Nothing was asked.
            Err(error @ ManagerError::Unreachable { .. }) => log::debug!("no decorations: {}", chain(&error)),
            Err(error) => decorator.failed(&error),
        }
    }
}

impl Decorator {
    fn new(point: DecorationPoint, sql: &str) -> Self {
        let pauses = Backoff::new(PAUSE_STEP, LONGEST_PAUSE);
        Self { point, sql: sql.to_owned(), due: Some(Instant::now()), pauses, failures: Streak::default() }
    }

    fn succeeded(&mut self) {
        self.due = match self.point {
            DecorationPoint::Load => None,
            DecorationPoint::Interval(interval) => Some(Instant::now() + interval),
            DecorationPoint::Always => Some(Instant::now()),
        };
        self.pauses.succeeded();
        if let Some(failures) = self.failures.succeeded() {
            log::info!("a decorator works again, {failures}: {}", self.sql);
        }
    }

    fn failed(&mut self, error: &(dyn std::error::Error + 'static)) {
        self.due = Some(Instant::now() + self.pauses.failed(&mut Chance::new()));
        let failed = self.failures.failed(Level::Warn);
        log::log!(failed.level, "a decorator fails and is tried again later: {}: {}{failed}", chain(error), self.sql);
    }
}

/// What a decorator found has no room beside what the others did.
#[derive(Debug, thiserror::Error)]
#[error("all decorations would be larger than {MOST_FOUND} bytes together")]
struct TooMuch;

fn weight<'a>(found: impl IntoIterator<Item = (&'a String, &'a String)>) -> usize {
    found.into_iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// A configuration's decorators, in the order in which they replace each other's findings. Says what can't be used.
fn decorators_of(document: &str) -> Vec<Decorator> {
    #[derive(Default, Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        decorators: Option<&'a RawValue>,
    }
    let Document { decorators } = serde_json::from_str(document).unwrap_or_default();
    let (queries, unusable) = decorators.map(|decorators| queries_of(decorators.get())).unwrap_or_default();
    for what in unusable {
        log::warn!("a decorator is passed over: {what}");
    }
    queries.iter().map(|(point, sql)| Decorator::new(*point, sql)).collect()
}

/// The queries of a configuration's `decorators`, and what is wrong with the rest. Read in place: a server can write
/// anything there.
fn queries_of(decorators: &str) -> (Vec<(DecorationPoint, String)>, Vec<String>) {
    let mut parser = DecoratorParser::default();
    let read = members::each(decorators, |name, value| match () {
        () if members::is(name, "load") => parser.list(DecorationPoint::Load, "load", value),
        () if members::is(name, "always") => parser.list(DecorationPoint::Always, "always", value),
        () if members::is(name, "interval") => {
            let read = members::each(value, |seconds, value| parser.interval(&name_of(seconds), value));
            if read.is_none() {
                parser.passed_over(|| "interval is no object of seconds and lists".to_owned());
            }
        }
        () => parser.passed_over(|| format!("{} is neither load nor always nor interval", name_of(name))),
    });
    if read.is_none() {
        parser.passed_over(|| "decorators is no object".to_owned());
    }
    parser.finish()
}

/// A member's name, or its beginning as it is written.
fn name_of(written: &str) -> String {
    members::string(written, 60).unwrap_or_else(|| written.chars().take(60).collect())
}

/// Collects the queries of `decorators`, and what in it can't be used.
#[derive(Default)]
struct DecoratorParser {
    queries: Vec<(DecorationPoint, String)>,
    unusable: Vec<String>,
    /// Those of the unusable that are not named.
    further: u64,
}

impl DecoratorParser {
    fn list(&mut self, point: DecorationPoint, name: &str, value: &str) {
        let read = members::items(value, |item| match members::string(item, usize::MAX) {
            Some(_) if self.queries.len() >= MOST_DECORATORS => {
                self.passed_over(|| format!("{name} has one more than the {MOST_DECORATORS} that are run"));
            }
            Some(sql) => self.queries.push((point, sql)),
            None => self.passed_over(|| format!("{name} holds something that is no query")),
        });
        if read.is_none() {
            self.passed_over(|| format!("{name} is no list of queries"));
        }
    }

    /// Whole minutes only, as in osqueryd.
    fn interval(&mut self, seconds: &str, value: &str) {
        match seconds.parse::<u64>() {
            Ok(number) if number > 0 && number.is_multiple_of(60) => {
                self.list(
                    DecorationPoint::Interval(Duration::from_secs(number)),
                    &format!("interval {seconds}"),
                    value,
                );
            }
            _ => self.passed_over(|| format!("interval {seconds} is no multiple of 60 seconds")),
        }
    }

    fn passed_over(&mut self, what: impl FnOnce() -> String) {
        match self.unusable.len() < MOST_NAMED {
            true => self.unusable.push(what()),
            false => self.further += 1,
        }
    }

    fn finish(mut self) -> (Vec<(DecorationPoint, String)>, Vec<String>) {
        // Whatever their order in the document.
        self.queries.sort_by_key(|(point, _)| *point);
        if self.further > 0 {
            self.unusable.push(format!("{} more can't be used", self.further));
        }
        (self.queries, self.unusable)
    }
}

fn hash(document: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    document.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn queries_are_run_in_one_order_whatever_the_document_s() {
        let decorators = json!({"always": ["a1", "a2"], "interval": {"3600": ["j"], "60": ["i"]}, "load": ["l"]});
        let (queries, unusable) = queries_of(&decorators.to_string());
        let minutes = |minutes: u64| DecorationPoint::Interval(Duration::from_secs(60 * minutes));
        let expected = [
            (DecorationPoint::Load, "l"),
            (minutes(1), "i"),
            (minutes(60), "j"),
            (DecorationPoint::Always, "a1"),
            (DecorationPoint::Always, "a2"),
        ];
        assert_eq!(queries, expected.map(|(point, sql)| (point, sql.to_owned())));
        assert_eq!(unusable, Vec::<String>::new());
    }

    #[test]
    fn what_is_no_decorator_is_named_and_the_others_count() {
        let decorators = json!({"load": ["l", 7], "always": "a", "allways": [], "interval": {
            "61": ["i"], "0": ["i"], "x": ["i"], "60": "i", "120": ["j"]}});
        let (queries, unusable) = queries_of(&decorators.to_string());
        assert_eq!(queries.iter().map(|(_, sql)| sql.as_str()).collect::<Vec<_>>(), ["l", "j"]);
        assert_eq!(
            unusable,
            [
                "load holds something that is no query",
                "always is no list of queries",
                "allways is neither load nor always nor interval",
                "interval 61 is no multiple of 60 seconds",
                "interval 0 is no multiple of 60 seconds",
                "interval x is no multiple of 60 seconds",
                "interval 60 is no list of queries",
            ]
        );
        assert_eq!(queries_of("[]").1, ["decorators is no object"]);
        assert_eq!(queries_of(r#"{"interval":[]}"#).1, ["interval is no object of seconds and lists"]);
    }

    #[test]
    fn decorators_without_number_cost_neither_memory_nor_a_line_each() {
        let many = format!("{{\"load\":[{}7],\"x\":1}}", "\"q\",7,".repeat(2 * MOST_DECORATORS));
        let (queries, unusable) = queries_of(&many);
        assert_eq!((queries.len(), unusable.len()), (MOST_DECORATORS, MOST_NAMED + 1));
        assert_eq!(unusable[MOST_NAMED], format!("{} more can't be used", 3 * MOST_DECORATORS + 2 - MOST_NAMED));
    }

    #[test]
    fn only_lines_younger_than_the_last_round_begin_another_one() {
        let now = unix_time();
        let mut state = State::default();
        assert!(state.wants_round(now), "the kept configuration is not read yet");
        state.begin(1, vec![Decorator::new(DecorationPoint::Always, "SELECT 1")]);
        assert!(state.wants_round(now));
        state.ended = now;
        assert!(!state.wants_round(now) && !state.wants_round(0));
        assert!(state.wants_round(now + 1));
        state.ended = now + 1000;
        assert!(state.wants_round(now), "the clock was set back");
    }

    #[test]
    fn each_decorator_is_due_at_its_point() {
        let minute = Duration::from_secs(60);
        let mut state = State::default();
        state.begin(
            1,
            [DecorationPoint::Load, DecorationPoint::Interval(minute), DecorationPoint::Always]
                .map(|point| Decorator::new(point, ""))
                .into(),
        );
        let due =
            |state: &State, at| state.due(Instant::now() + at).into_iter().map(|(index, _)| index).collect::<Vec<_>>();
        assert_eq!(due(&state, Duration::ZERO), [0, 1, 2]);
        (0..3).for_each(|index| state.settle(index, Ok(Vec::new())));
        assert_eq!(due(&state, Duration::ZERO), [2]);
        assert_eq!(due(&state, minute), [1, 2]);
        let refused = || Err(ManagerError::Refused { method: "query", message: "no such table".to_owned() });
        state.settle(2, refused());
        assert_eq!(due(&state, Duration::ZERO), Vec::<usize>::new());
        assert_eq!(due(&state, minute), [1, 2]);
        state.settle(2, refused());
        assert_eq!(due(&state, minute + minute / 2), [1], "the pause grows");
    }
}
