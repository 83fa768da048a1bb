//! One line that the server refuses, in whatever way, stops no other line; and in an outage none is given up. The case
//! poison-line (launcher#445, kolide/fleet#2014, osquery#7150).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use crate::rig::{Rig, Setup, at_once, numbers};

/// Several waits after failures go by: longer than a condition takes elsewhere.
const WAIT_LIMIT: Duration = Duration::from_secs(120);

/// What the server refuses a line for.
const POISON: &str = "poison";

/// Lines that are logged at once.
const LINES: u64 = 30;

/// The most requests that are made for `lines` lines, of which `refused` are refused, as docs/reliability.md says.
fn bound(lines: u64, refused: usize) -> usize {
    (refused + 1) * (2 * lines.next_power_of_two().ilog2() as usize + 10)
}

fn line(n: u64, is_poison: bool) -> String {
    format!("{{\"name\":\"q\",\"n\":{n},\"p\":\"{}\"}}", if is_poison { POISON } else { "x" })
}

/// Waits until the condition holds; meanwhile a line comes each second, as on a living host. Answers how many came.
fn until(rig: &Rig, what: &str, mut next: u64, mut is_so: impl FnMut() -> bool) -> u64 {
    let began = Instant::now();
    let mut came = 0;
    while !is_so() {
        assert!(began.elapsed() < WAIT_LIMIT, "not within {WAIT_LIMIT:?}: {what}");
        if began.elapsed() > Duration::from_secs(came + 8) {
            rig.log(&line(next, false));
            (came, next) = (came + 1, next + 1);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    came
}

/// A batch with poison in it: in one piece, so that the server has to refuse it first.
fn log_at_once(rig: &Rig, lines: &[String]) {
    rig.server.stop();
    lines.iter().for_each(|line| rig.log(line));
    rig.server.resume().unwrap();
}

/// How a line is refused, and the words that are kept with it.
struct Case {
    answer: Answer,
    words: &'static str,
    /// Requests that one attempt makes: a connection that breaks is tried once more.
    requests: usize,
}

/// Every place of the poison, with and without an outage in the middle of the search.
fn every_place(case: &Case, lines: u64, outages: &[Option<usize>]) {
    at_once(outages, |&outage| every_place_with(case, lines, outage));
}

/// `outage`: after how many requests it begins.
fn every_place_with(case: &Case, lines: u64, outage: Option<usize>) {
    // Only where an answer is waited for in vain: a slow machine's other answers are not to come too late.
    let seconds = if case.words == "timed out" { 1 } else { 60 };
    let rig = Setup::new().own_flag(&format!("--request_timeout={seconds}")).start();
    rig.config();
    let mut first = 0;
    for poison in [vec![0], vec![lines / 3], vec![lines - 1], vec![0, 1, lines / 2, lines - 2]] {
        let poison: BTreeSet<u64> = poison.iter().map(|n| first + n).collect();
        let what = format!("poison {poison:?}, outage after {outage:?} requests");
        rig.server.forget_requests();
        rig.server.refuse(POISON, Some(case.answer.clone()));
        if let Some(after) = outage {
            rig.server.script(Endpoint::Log, vec![Answer::default_behaviour(); after]);
            rig.server.script(Endpoint::Log, vec![Answer::empty(500); 6]);
        }
        let all: Vec<String> = (first..first + lines).map(|n| line(n, poison.contains(&n))).collect();
        let before = rig.set_aside().len();
        log_at_once(&rig, &all);
        let healthy = |end: u64| -> Vec<u64> { (first..end).filter(|n| !poison.contains(n)).collect() };
        let came = until(&rig, &what, first + lines, || {
            rig.set_aside().len() >= before + poison.len() && rig.server.result_count() >= healthy(first + lines).len()
        });
        let end = first + lines + came;
        rig.settled();
        let mut delivered = numbers(&rig.server.results());
        delivered.sort_unstable();
        if case.words == "timed out" {
            // What a slow machine's server takes, and answers too late, comes once more.
            delivered.dedup();
        }
        assert_eq!(delivered, healthy(end), "{what}: every other line, and each once");
        let aside = rig.set_aside().split_off(before);
        let aside_lines: BTreeSet<String> = aside.iter().map(|(line, _)| line.clone()).collect();
        assert_eq!(aside_lines, poison.iter().map(|&n| line(n, true)).collect(), "{what}");
        assert!(aside.iter().all(|(_, reason)| reason.contains(case.words)), "{what}: {aside:?}");
        let most = case.requests * (bound(lines, poison.len()) + came as usize) + outage.map_or(0, |_| 12);
        assert!(
            rig.result_requests().len() <= most,
            "{what}: {} requests, {most} at most",
            rig.result_requests().len()
        );
        first = end;
    }
}

/// Without an outage, and with one that begins early and late in the search.
const OUTAGES: [Option<usize>; 3] = [None, Some(5), Some(9)];

#[test]
fn a_line_that_is_answered_with_500_stops_no_other() {
    let case = Case { answer: Answer::empty(500), words: "HTTP 500", requests: 1 };
    every_place(&case, LINES, &OUTAGES);
}

#[test]
fn a_line_that_is_answered_with_400_stops_no_other() {
    let answer = Answer::status(400, "{\"error\":\"what is this?\"}");
    every_place(&Case { answer, words: "what is this?", requests: 1 }, LINES, &OUTAGES);
}

#[test]
fn a_line_that_is_answered_with_422_or_403_stops_no_other() {
    at_once([422, 403], |status| {
        every_place(&Case { answer: Answer::empty(status), words: "HTTP 4", requests: 1 }, LINES, &[None]);
    });
}

#[test]
fn a_line_that_is_answered_with_html_stops_no_other() {
    every_place(&Case { answer: Answer::html(200), words: "not a JSON object", requests: 1 }, LINES, &OUTAGES);
}

#[test]
fn a_line_that_is_answered_with_an_error_stops_no_other() {
    let answer = Answer::status(200, "{\"error\":\"no room for it\"}");
    every_place(&Case { answer, words: "no room for it", requests: 1 }, LINES, &OUTAGES);
}

#[test]
fn a_line_that_is_called_too_large_alone_stops_no_other() {
    every_place(&Case { answer: Answer::empty(413), words: "HTTP 413", requests: 1 }, LINES, &OUTAGES);
}

#[test]
fn a_line_that_breaks_the_connection_stops_no_other() {
    let case = Case { answer: Answer::drop_connection(), words: "the connection broke", requests: 2 };
    every_place(&case, LINES, &OUTAGES);
}

#[test]
fn a_line_that_is_never_answered_stops_no_other_and_is_not_sent_for_ever() {
    every_place(&Case { answer: Answer::hang(), words: "timed out", requests: 1 }, 12, &[None, Some(5)]);
}

#[test]
fn in_an_outage_nothing_is_set_aside_whatever_is_answered() {
    let rig = Setup::new().own_flag("--request_timeout=1").start();
    rig.config();
    let all: Vec<String> = (0..LINES).map(|n| line(n, false)).collect();
    rig.server.always(Endpoint::Log, Some(Answer::empty(500)));
    log_at_once(&rig, &all);
    for answer in [
        Answer::empty(500),
        Answer::empty(413),
        Answer::status(422, "{\"error\":\"no\"}"),
        Answer::html(200),
        Answer::drop_connection(),
        Answer::hang(),
    ] {
        rig.server.always(Endpoint::Log, Some(answer));
        let seen = rig.result_requests().len();
        rig.server.wait("more attempts", WAIT_LIMIT, |_| (rig.result_requests().len() >= seen + 5).then_some(()));
    }
    rig.server.always(Endpoint::Log, None);
    rig.settled();
    let mut delivered = numbers(&rig.server.results());
    delivered.sort_unstable();
    assert_eq!(delivered, (0..LINES).collect::<Vec<u64>>());
    assert!(rig.set_aside().is_empty() && !rig.stderr().contains("set aside"), "{}", rig.stderr());
}

/// osquery#7150: one line with a NUL in it (samples/poison_line.jsonl).
#[test]
fn the_line_of_the_bug_report_is_set_aside_and_all_others_are_delivered() {
    let all: Vec<String> = include_str!("samples/poison_line.jsonl").lines().map(str::to_owned).collect();
    at_once([Answer::empty(500), Answer::empty(400), Answer::html(200), Answer::drop_connection()], |answer| {
        let rig = Rig::start();
        rig.config();
        rig.server.refuse("a\\u0000b", Some(answer));
        log_at_once(&rig, &all);
        until(&rig, "the line", 100, || rig.set_aside().len() == 1);
        assert_eq!(rig.set_aside()[0].0, all[10]);
        rig.settled();
        let delivered: BTreeSet<u64> = numbers(&rig.server.results()).into_iter().filter(|&n| n < 100).collect();
        assert_eq!(delivered, (0..30).filter(|&n| n != 10).collect());
        rig.said("1 line of the results journal set aside so far; the last because the server refuses it alone, and takes others");
        rig.said("result lines are delivered again");
    });
}

#[test]
fn a_refused_line_within_a_whole_query_is_set_aside_and_its_other_lines_are_delivered() {
    let rig = Setup::new().own_flag("--logger_expand_events=true").start();
    rig.config();
    rig.server.refuse(POISON, Some(Answer::empty(500)));
    let row = |n: u64| format!("{{\"n\":\"{n}\",\"p\":\"{}\"}}", if n == 7 { POISON } else { "x" });
    let rows: Vec<String> = (0..20).map(row).collect();
    let batch = format!("{{\"diffResults\":{{\"removed\":[],\"added\":[{}]}},\"name\":\"q\"}}", rows.join(","));
    log_at_once(&rig, &[line(1000, false), batch, line(1001, false)]);
    until(&rig, "the row", 1002, || rig.set_aside().len() == 1);
    let expected = format!("{{\"name\":\"q\",\"columns\":{},\"action\":\"added\"}}", row(7));
    assert_eq!(rig.set_aside()[0].0, expected);
    rig.settled();
    let results = rig.server.results();
    let mut delivered: Vec<u64> =
        results.iter().filter_map(|line| line["columns"]["n"].as_str()?.parse().ok()).collect();
    delivered.sort_unstable();
    assert_eq!(delivered, (0..20).filter(|&n| n != 7).collect::<Vec<u64>>());
    assert!(numbers(&results).contains(&1001), "what stands behind it");
}

#[test]
fn a_refused_status_line_stops_no_other() {
    let rig = Rig::start();
    rig.config();
    rig.server.refuse(POISON, Some(Answer::empty(500)));
    let status = |n: u64| {
        let text = if n == 3 { POISON } else { "fine" };
        json!([{"s": 0, "f": "a.cpp", "i": n, "m": text, "h": "h", "c": "Mon", "u": 1}]).to_string()
    };
    rig.server.stop();
    let log = |n: u64| assert_eq!(rig.call("logger", &[("status", "true"), ("log", &status(n))]).code, 0);
    (0..LINES).for_each(log);
    rig.server.resume().unwrap();
    until(&rig, "the status line", 100, || rig.set_aside().len() == 1);
    rig.server.wait("the others", WAIT_LIMIT, |server| (server.statuses().len() as u64 >= LINES - 1).then_some(()));
    assert!(rig.set_aside()[0].0.contains(POISON), "{:?}", rig.set_aside());
    let mut delivered: Vec<u64> = rig.server.statuses().iter().filter_map(|line| line["line"].as_u64()).collect();
    delivered.sort_unstable();
    assert_eq!(delivered, (0..LINES).filter(|&n| n != 3).collect::<Vec<u64>>());
}

#[test]
fn refused_results_of_a_distributed_query_stop_no_others() {
    at_once(
        [Answer::empty(500), Answer::status(400, "{\"error\":\"unknown campaign\"}"), Answer::drop_connection()],
        |answer| {
            let rig = Setup::new().flag("distributed_tls_max_attempts", "1").start();
            rig.config();
            rig.server.always(Endpoint::DistributedWrite, Some(Answer::empty(503)));
            let results = |n: u64| {
                let text = if n == 1 { POISON } else { "fine" };
                format!("{{\"queries\":{{\"q{n}\":[{{\"p\":\"{text}\"}}]}}}}")
            };
            for n in 0..8 {
                let written = rig.call("distributed", &[("action", "writeResults"), ("results", &results(n))]);
                assert_eq!(written.code, 0, "kept");
            }
            rig.server.refuse(POISON, Some(answer));
            rig.server.always(Endpoint::DistributedWrite, None);
            rig.server.wait("the others", WAIT_LIMIT, |server| (server.written().len() == 7).then_some(()));
            rig.server.wait("the refused one", WAIT_LIMIT, |_| (rig.set_aside().len() == 1).then_some(()));
            let (kept, reason) = rig.set_aside().remove(0);
            assert!(kept.contains(&results(1)), "{kept}");
            assert!(reason.contains("takes others") && reason.contains("distributed write"), "{reason}");
            let names: BTreeSet<String> = rig
                .server
                .written()
                .iter()
                .flat_map(|body| body["queries"].as_object().unwrap().keys().cloned())
                .collect();
            assert_eq!(names, (0..8).filter(|&n| n != 1).map(|n| format!("q{n}")).collect());
        },
    );
}

/// The case of the early 413 (psf/requests#2422, httpie/cli#600, Rocket#2783): the client was still sending, took the
/// closed connection for an error of its own, and lines were stuck.
#[test]
fn a_server_that_calls_a_request_too_large_from_its_head_gets_smaller_ones() {
    let rig = Rig::start();
    rig.config();
    rig.server.set_body_limit(100_000);
    rig.server.always(Endpoint::Log, Some(Answer::from_head(413)));
    let large = |n: u64| format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(10_000));
    let all: Vec<String> = (0..400).map(large).collect();
    log_at_once(&rig, &all);
    rig.server.wait("every line", WAIT_LIMIT, |server| (server.result_count() >= 400).then_some(()));
    rig.settled();
    let mut delivered = numbers(&rig.server.results());
    delivered.sort_unstable();
    assert_eq!(delivered, (0..400).collect::<Vec<u64>>());
    assert!(rig.set_aside().is_empty());
    assert!(rig.stderr().matches("can't be delivered").count() <= 1, "{}", rig.stderr());
}
