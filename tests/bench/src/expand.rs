//! Our setting `logger_expand_events`: osqueryd hands a query's whole difference over in one call
//! (`--logger_event_type=false`), and the extension makes the event lines of it when it sends them.

use std::time::{Duration, Instant};

use crate::Bench;
use crate::contenders::Contender;
use crate::cores::Cores;
use crate::deliver::WAIT_LIMIT;
use crate::lines;
use crate::load::{self, Amount, Caller};
use crate::report::{Bound, figure};
use crate::sink::{Sink, SinkSetup};
use crate::statistics::median;

/// Rows of the one query.
const ROWS: u64 = 100_000;

/// Lines by which the rate line by line is found.
const CALLS: usize = 10_000;

/// Bytes of a line.
const SIZE: usize = 500;

const FLAG: &str = "logger_expand_events";

const WHAT: &str = "expand: delivery of a query of 100,000 rows as event lines";
const WANTED: Bound = Bound::AtLeast(400_000.0);

/// Measures the delivery of one query that came in one call, and its intake beside that line by line.
pub(crate) fn run(bench: &mut Bench) {
    bench.report.title("Expand: a whole query in one call (`logger_expand_events`)");
    if !bench.programs.knows_flag(FLAG) {
        bench.report.say(&format!("not measured: the binary has no {FLAG}"));
        bench.report.target(WHAT, WANTED, "lines/s", None);
        return;
    }
    let rounds: Vec<(Whole, f64)> = (0..bench.rounds()).map(|_| (at_once(bench), line_by_line(bench))).collect();
    let delivery = median(rounds.iter().map(|round| round.0.delivery));
    let whole = median(rounds.iter().map(|round| round.0.intake));
    let single = median(rounds.iter().map(|round| round.1));
    let ratio = median(rounds.iter().map(|round| round.0.intake / round.1));
    bench.report.say(&format!(
        "A difference of {} rows ({SIZE} B a line), sent in one call by the load generator, until the call is answered and so \
         the lines are safe. Beside it the same lines, a call each; osqueryd's own part (about 50 µs a call) comes on top \
         of these. Then a server comes, and gets each row as an event line: from the first connection to the last answer.",
        figure(ROWS as f64)
    ));
    let rows = [
        vec!["intake, one call for all".to_owned(), figure(whole), format!("{ratio:.1} x")],
        vec!["intake, a call for each line".to_owned(), figure(single), "1.0 x".to_owned()],
        vec!["delivery of the one call as event lines".to_owned(), figure(delivery), String::new()],
    ];
    bench.report.table(&["", "lines/s", ""], &rows);
    bench.report.target(WHAT, WANTED, "lines/s", delivery);
}

/// Lines a second of a query that comes in one call.
struct Whole {
    intake: f64,
    delivery: f64,
}

fn at_once(bench: &Bench) -> Whole {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let setup = SinkSetup::new(directory.path());
    let contender = Contender::ours(&bench.programs, &setup, &[]);
    let call = contender.log(&difference(ROWS));
    let began = Instant::now();
    Caller::new(&contender.socket).call(&call);
    let taken = began.elapsed();
    let counts = Sink::start(&setup).wait(ROWS, WAIT_LIMIT);
    assert_eq!(counts.lines, ROWS, "each row makes one line");
    let rate = |time: Duration| ROWS as f64 / time.as_secs_f64();
    Whole { intake: rate(taken), delivery: rate(counts.time) }
}

/// Lines a second, when each comes in a call of its own.
fn line_by_line(bench: &Bench) -> f64 {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let contender = Contender::ours(&bench.programs, &SinkSetup::new(directory.path()), &[]);
    let call = contender.log(&lines::line(0, SIZE));
    load::drive(&contender.socket, &call, 1, Cores::Any, Amount { time: Duration::from_secs(60), calls: CALLS })
        .calls_per_second()
}

/// What osqueryd logs for a query that found `rows` new rows.
fn difference(rows: u64) -> String {
    let rows: Vec<String> = (0..rows).map(|n| lines::columns(n, SIZE)).collect();
    format!(
        "{{\"diffResults\":{{\"removed\":[],\"added\":[{}]}},\"name\":\"bench_processes\",\
         \"hostIdentifier\":\"host-17.example.com\",\"calendarTime\":\"Mon Nov 23 04:45:06 2026 UTC\",\
         \"unixTime\":1795409106,\"epoch\":0,\"counter\":1,\"numerics\":false}}",
        rows.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_what_osqueryd_logs() {
        let line: serde_json::Value = serde_json::from_str(&difference(3)).unwrap();
        assert_eq!(line["diffResults"]["added"].as_array().unwrap().len(), 3);
        assert_eq!((&line["name"], &line["counter"]), (&"bench_processes".into(), &1.into()));
    }
}
