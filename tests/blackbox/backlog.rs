//! Lines that could not be sent for a minute, and new ones before them.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use testkit::server::Answer;

use crate::rig::{LIMIT, Rig, Setup, line, numbers};

/// osqueryd and its server come back after an outage of `seconds`, in which these lines have waited.
fn after_an_outage(rig: &Rig, lines: impl Iterator<Item = String>, seconds: u64) {
    rig.config();
    rig.server.stop();
    lines.for_each(|line| rig.log(&line));
    rig.said("can't be delivered and are kept");
    for file in fs::read_dir(rig.directory.path().join("remote_tls/results")).unwrap() {
        let file = fs::File::options().append(true).open(file.unwrap().path()).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }
    rig.kill_both_and_wait();
    rig.server.resume().unwrap();
}

fn snapshot(n: u64) -> String {
    format!("{{\"snapshot\":[],\"action\":\"snapshot\",\"name\":\"q\",\"n\":{n}}}")
}

/// Waits for this line at the server: all that came until then.
fn delivered_until(rig: &Rig, n: u64) -> Vec<u64> {
    rig.server.wait("a line", LIMIT, |_| {
        let numbers = numbers(&rig.server.results());
        numbers.contains(&n).then_some(numbers)
    })
}

#[test]
fn new_lines_go_before_an_old_backlog_which_goes_slowly() {
    let rig = Rig::start();
    after_an_outage(&rig, (0..1200).map(line), 600);
    rig.said("1200 lines could not be sent for a minute");
    for n in [5000, 5001, 5002] {
        rig.log(&line(n));
        let numbers = delivered_until(&rig, n);
        assert!(numbers.len() < 300, "{} lines before {n}", numbers.len());
    }
    // Old ones go on, in their order, with the new ones and without.
    let old = rig.server.wait("more of the old lines", LIMIT, |_| {
        let old: Vec<u64> = numbers(&rig.server.results()).into_iter().filter(|&n| n < 5000).collect();
        (old.len() >= 6).then_some(old)
    });
    assert_eq!(old, (0..old.len() as u64).collect::<Vec<_>>());
    // For operators both are one stream.
    let rows = rig.osqueryd.query("SELECT waiting_lines FROM remote_tls_buffer WHERE stream = 'results'").unwrap();
    let results = &rows[0];
    let number = |name: &str| results[name].parse::<usize>().unwrap();
    let received = numbers(&rig.server.results()).len();
    assert!(number("waiting_lines") + received >= 1203, "{results:?}, and {received} at the server");
    assert!(number("waiting_lines") > 1100, "{results:?}");
}

#[test]
fn a_new_snapshot_is_never_sent_before_an_older_one_of_the_backlog() {
    let rig = Rig::start();
    let old = [line(0), snapshot(1), snapshot(2)];
    after_an_outage(&rig, old.into_iter(), 90);
    rig.said("could not be sent for a minute");
    rig.log(&snapshot(10));
    rig.log(&line(11));
    let early = delivered_until(&rig, 11);
    assert!(!early.contains(&10) || early.contains(&2), "{early:?}");
    let mut all = rig.server.wait("all lines", 4 * LIMIT, |_| {
        let numbers = numbers(&rig.server.results());
        (numbers.len() >= 5).then_some(numbers)
    });
    let snapshots: Vec<u64> = all.iter().copied().filter(|n| [1, 2, 10].contains(n)).collect();
    assert_eq!(snapshots, [1, 2, 10]);
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 10, 11]);
    // With an empty backlog they go with the others.
    rig.log(&snapshot(12));
    delivered_until(&rig, 12);
    assert!(rig.waiting("backlog").is_empty());
}

#[test]
fn in_order_where_the_operator_wants_it_so() {
    let rig = Setup::new().own_flag("--new_lines_first=false").start();
    after_an_outage(&rig, (0..200).map(line), 100);
    rig.delivered(1);
    rig.log(&line(5000));
    let numbers = rig.delivered(10);
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    assert!(rig.waiting("backlog").is_empty());
}

/// A backlog that is there when an operator wants order goes first.
#[test]
fn a_backlog_goes_first_when_order_is_wanted_from_now_on() {
    let rig = Rig::start();
    after_an_outage(&rig, (0..3).map(line), 90);
    rig.said("could not be sent for a minute");
    fs::write(rig.directory.path().join("remote_tls.flags"), "--new_lines_first=false\n").unwrap();
    rig.kill_both_and_wait();
    rig.log(&line(10));
    let numbers = rig.server.wait("all lines", 4 * LIMIT, |_| {
        let numbers = numbers(&rig.server.results());
        (numbers.len() >= 4).then_some(numbers)
    });
    assert_eq!(numbers, [0, 1, 2, 10]);
}

/// A line that the server refuses is found wherever it waits, though new and old ones go in one request; also when it is
/// all that is left of the backlog.
#[test]
fn a_refused_line_is_found_among_old_and_new_ones() {
    let rig = Rig::start();
    rig.server.refuse("bad", Some(Answer::empty(400)));
    after_an_outage(&rig, ["{\"n\":0,\"x\":\"bad\"}".to_owned(), line(1)].into_iter(), 90);
    rig.said("could not be sent for a minute");
    let mut all = BTreeSet::from([1]);
    let log = |n: u64| {
        rig.log(&line(n));
        delivered_until(&rig, n);
    };
    let mut n = 10;
    while rig.set_aside().is_empty() {
        assert!(n < 100, "it is not found");
        log(n);
        all.insert(n);
        n += 1;
    }
    rig.log("{\"n\":200,\"x\":\"bad\"}");
    for n in 201..212 {
        log(n);
        all.insert(n);
    }
    rig.server.wait("both are set aside, and all others there", 4 * LIMIT, |_| {
        let numbers: BTreeSet<u64> = numbers(&rig.server.results()).into_iter().collect();
        (rig.set_aside().len() == 2 && numbers == all).then_some(())
    });
}

/// From a review of issue 14: the search for a refused new line stopped the backlog.
#[test]
fn a_refused_new_line_holds_up_no_old_one() {
    let rig = Rig::start();
    rig.server.refuse("bad", Some(Answer::empty(400)));
    after_an_outage(&rig, (0..1200).map(line), 100);
    rig.said("could not be sent for a minute");
    rig.log("{\"n\":5000,\"x\":\"bad\"}");
    rig.server.wait("old lines, and the refused one set aside", 2 * LIMIT, |server| {
        (server.result_count() > 40 && rig.set_aside().len() == 1).then_some(())
    });
}

#[test]
fn the_limits_hold_for_new_lines_and_backlog_together() {
    let rig = Setup::new().flag("buffered_log_max", "100").start();
    after_an_outage(&rig, (0..100).map(line), 1000);
    rig.said("could not be sent for a minute");
    rig.server.stop();
    (1000..1030).for_each(|n| rig.log(&line(n)));
    rig.server.wait("the oldest go", LIMIT, |_| {
        let waiting = rig.waiting("backlog").len() + rig.waiting("results").len();
        (waiting <= 100).then_some(())
    });
    let new = rig.waiting("results");
    assert_eq!(new.len() + rig.waiting("backlog").iter().filter(|line| line.contains("\"n\":10")).count(), 30);
    // The server is told what went of the backlog, as of any other lines.
    rig.server.resume().unwrap();
    rig.server.wait("word of the loss", LIMIT, |server| {
        let is_told =
            |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains("dropped so far"));
        server.statuses().iter().any(is_told).then_some(())
    });
}

/// Killed at any moment, also while lines change places, a worker loses none.
#[test]
fn workers_that_die_while_lines_are_put_behind_lose_none() {
    const LINES: u64 = 20_000;
    let rig = Rig::start();
    let filler = "x".repeat(500);
    let long = |n: u64| format!("{{\"n\":{n},\"filler\":\"{filler}\"}}");
    after_an_outage(&rig, (0..LINES).map(long), 600);
    let backlog = rig.directory.path().join("remote_tls/backlog");
    let size = || -> u64 {
        let files = fs::read_dir(&backlog).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
    };
    let mut hits = 0;
    for _ in 0..6 {
        let before = size();
        rig.osqueryd
            .wait("lines on their way", LIMIT, || (size() > before || rig.waiting("results").is_empty()).then_some(()));
        if rig.waiting("results").is_empty() {
            break;
        }
        let worker = i32::try_from(rig.worker_pid()).unwrap();
        kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
        hits += usize::from(!rig.waiting("results").is_empty());
    }
    assert!(hits > 0, "no kill came while lines were on their way");
    // The next one goes on, and has them all there in the end.
    rig.osqueryd.wait("the others", LIMIT, || rig.waiting("results").is_empty().then_some(()));
    rig.log(&line(LINES));
    delivered_until(&rig, LINES);
    // In the order in which they go.
    let waiting = [rig.waiting("results"), rig.waiting("backlog")].concat();
    let number = |line: String| serde_json::from_str::<serde_json::Value>(&line).unwrap()["n"].as_u64().unwrap();
    // In this order: what is delivered meanwhile is seen here.
    let mut seen: BTreeSet<u64> = numbers(&rig.server.results()).into_iter().collect();
    seen.extend(waiting.into_iter().map(number));
    assert_eq!(seen, (0..=LINES).collect::<BTreeSet<_>>());
}
