//! A load of which every line is known, and counting what of it has reached the server.
//!
//! Where ours is the only logger nothing else says what osqueryd has logged, so the queries' rows have numbers of their
//! own: each run of a query differs from the one before in all its rows, so that osqueryd numbers the runs without a
//! gap (`counter`), and its verbose log says how many there were. With a second logger its file is what counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value, json};

use crate::rig::{Host, logged};

/// What osqueryd's log says at each run of a query before it logs the rows.
pub(crate) const FOUND: &str = "Found results for query: ";

/// Queries that run all the time.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// `q0` and so on: rows that are all other than before.
    pub(crate) bursts: usize,
    /// Rows of each run of these: as many lines are added and, from the second run on, as many are removed.
    pub(crate) rows: u64,
    /// Bytes that make each of these rows longer.
    pub(crate) filler: usize,
    /// Seconds from one run to the next.
    pub(crate) interval: u32,
    /// `s0` and so on: one added row, so that each line is its query's last, whose failure ends osqueryd.
    pub(crate) singles: usize,
}

/// One row that was added or removed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Row {
    query: String,
    /// Which run of the query it was.
    counter: u64,
    action: String,
    x: u64,
}

/// What came of a load.
pub(crate) struct Count {
    /// Lines that osqueryd has logged.
    pub(crate) logged: usize,
    /// Of these, the ones that the server hasn't got.
    pub(crate) missing: usize,
    /// Runs of a query of which no line has come.
    pub(crate) runs_missing: usize,
    /// Lines that came more than once.
    pub(crate) twice: usize,
    holes: Vec<String>,
}

impl Load {
    /// Queries of 100 rows, one beside the other.
    pub(crate) const fn bursts(bursts: usize) -> Self {
        Self { bursts, rows: 100, filler: 0, interval: 1, singles: 0 }
    }

    pub(crate) const fn and_singles(self, singles: usize) -> Self {
        Self { singles, ..self }
    }

    /// The configuration with its queries.
    pub(crate) fn config(self) -> Value {
        let Self { rows, filler, interval, .. } = self;
        let burst = format!(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {rows}) \
             SELECT x, random() AS r, '{}' AS filler FROM c",
            "y".repeat(filler)
        );
        let mut schedule = serde_json::Map::new();
        for n in 0..self.bursts {
            schedule.insert(format!("q{n}"), json!({"query": burst, "interval": interval}));
        }
        for n in 0..self.singles {
            let query = json!({"query": "SELECT 1 AS x, random() AS r", "interval": interval, "removed": false});
            schedule.insert(format!("s{n}"), query);
        }
        json!({"schedule": schedule})
    }

    /// Counts by the numbers of rows and runs. Nothing may be logged any more.
    pub(crate) fn count(self, host: &Host) -> Count {
        let expected = self.expected(&runs(&host.log()));
        count(&expected, &host.server.results())
    }

    /// Whether all has come, for a test that waits for it.
    pub(crate) fn is_complete(self, host: &Host) -> bool {
        self.count(host).missing == 0
    }

    fn expected(self, runs: &BTreeMap<String, u64>) -> BTreeSet<Row> {
        let mut all = BTreeSet::new();
        for (query, &runs) in runs {
            let (rows, removes) = if query.starts_with('q') { (self.rows, true) } else { (1, false) };
            for counter in 0..runs {
                for x in 1..=rows {
                    let row = |action: &str| Row { query: query.clone(), counter, action: action.to_owned(), x };
                    all.insert(row("added"));
                    if removes && counter > 0 {
                        all.insert(row("removed"));
                    }
                }
            }
        }
        all
    }
}

/// Counts the lines of the filesystem logger, the first of two, against the server's.
pub(crate) fn count_beside_filesystem(host: &Host) -> Count {
    let expected = rows(&logged(&host.path("logs/osqueryd.results.log")));
    count(&expected, &host.server.results())
}

fn count(expected: &BTreeSet<Row>, lines: &[Value]) -> Count {
    let arrived = rows(lines);
    let missing: Vec<&Row> = expected.difference(&arrived).collect();
    let per_run = |rows: &mut dyn Iterator<Item = &Row>| {
        let mut runs = BTreeMap::<(String, u64), usize>::new();
        rows.for_each(|row| *runs.entry((row.query.clone(), row.counter)).or_default() += 1);
        runs
    };
    let all_of_run = per_run(&mut expected.iter());
    let holes = per_run(&mut missing.iter().copied());
    let whole = |(run, count): &(&(String, u64), &usize)| all_of_run[*run] == **count;
    Count {
        logged: expected.len(),
        missing: missing.len(),
        runs_missing: holes.iter().filter(whole).count(),
        twice: lines.len() - arrived.len(),
        holes: holes
            .iter()
            .map(|(run, count)| format!("{} run {}: {count} of {}", run.0, run.1, all_of_run[run]))
            .collect(),
    }
}

/// The rows of event lines. Other lines have none, and so are missing where rows are expected.
fn rows(lines: &[Value]) -> BTreeSet<Row> {
    lines.iter().filter_map(row).collect()
}

fn row(line: &Value) -> Option<Row> {
    Some(Row {
        query: line["name"].as_str()?.to_owned(),
        counter: line["counter"].as_u64()?,
        action: line["action"].as_str()?.to_owned(),
        x: line["columns"]["x"].as_str()?.parse().ok()?,
    })
}

/// How often each query was logged.
pub(crate) fn runs(log: &str) -> BTreeMap<String, u64> {
    let mut runs = BTreeMap::new();
    for name in log.lines().filter_map(|line| Some(line.split_once(FOUND)?.1.trim())) {
        *runs.entry(name.to_owned()).or_default() += 1;
    }
    runs
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines logged, {} missing, {} twice", self.logged, self.missing, self.twice)?;
        if !self.holes.is_empty() {
            let shown = self.holes.len().min(20);
            write!(f, " ({} runs with holes: {}", self.holes.len(), self.holes[..shown].join("; "))?;
            write!(f, "{})", if shown < self.holes.len() { "; ..." } else { "" })?;
        }
        Ok(())
    }
}
