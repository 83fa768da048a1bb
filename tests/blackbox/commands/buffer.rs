//! `buffer`: what waits is listed, shown, exported and thrown away while everything runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use testkit::server::{Answer, Endpoint};

use super::run;
use crate::rig::{LIMIT, Rig, SECRET, line};

fn waiting(rig: &Rig) -> u64 {
    let json = run(rig, &["buffer", "list", "--json"]).json();
    assert_eq!(json[0]["stream"], "results");
    json[0]["waiting_lines"].as_u64().unwrap()
}

#[test]
fn what_waits_is_listed_shown_and_exported_and_stays() {
    let rig = Rig::start();
    rig.config();
    rig.server.always(Endpoint::Log, Some(Answer::empty(500)));
    let lines: Vec<String> = (0..20).map(line).collect();
    lines.iter().for_each(|line| rig.log(line));
    rig.log(&format!("{{\"n\":20,\"x\":\"\u{202e}{}\"}}", "y".repeat(2000)));
    assert_eq!(waiting(&rig), 21);
    let listed = run(&rig, &["buffer", "list"]);
    assert!(listed.out.contains("\nresults ") && listed.out.contains("\npending "), "{}", listed.out);
    let shown = run(&rig, &["buffer", "show", "results", "--lines", "2"]);
    assert_eq!((shown.code, shown.out), (0, format!("{}\n{}\n", lines[0], lines[1])));
    let shown = run(&rig, &["buffer", "show", "results", "--lines=100"]).out;
    let last = shown.lines().last().unwrap();
    assert!(last.starts_with("{\"n\":20,\"x\":\"\\u{202e}yyy") && last.ends_with('…'), "{last}");

    let file = rig.directory.path().join("export.ndjson");
    let exported = run(&rig, &["buffer", "export", "results", file.to_str().unwrap()]);
    assert_eq!(exported.code, 0, "{}", exported.err);
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().take(20).collect::<Vec<_>>(), lines);
    assert_eq!(text.lines().count(), 21);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(run(&rig, &["buffer", "export", "results"]).out, text);
    let again = run(&rig, &["buffer", "export", "results", file.to_str().unwrap()]);
    assert_eq!(again.code, 1, "nothing is overwritten");
    assert_eq!(run(&rig, &["buffer", "show", "statuses"]).out, "");

    rig.server.always(Endpoint::Log, None);
    // One from the middle may have gone first, to see whether the server refuses them all.
    let mut delivered = rig.delivered(21);
    delivered.sort_unstable();
    assert_eq!(delivered, (0..21).collect::<Vec<u64>>());
    assert!(!text.contains(SECRET));
}

#[test]
fn what_is_discarded_is_never_sent_and_counted_and_what_comes_after_it_is_sent() {
    let rig = Rig::start();
    rig.config();
    rig.server.always(Endpoint::Log, Some(Answer::empty(500)));
    (0..50).for_each(|n| rig.log(&line(n)));
    assert_eq!(waiting(&rig), 50);
    let discarded = run(&rig, &["buffer", "discard", "results"]);
    assert_eq!((discarded.code, discarded.out.as_str(), discarded.err.as_str()), (0, "50 lines discarded\n", ""));
    assert_eq!(waiting(&rig), 0);
    rig.log(&line(50));
    rig.server.always(Endpoint::Log, None);
    assert_eq!(rig.delivered(1), [50]);
    let row = rig.osqueryd.wait("the counts", LIMIT, || {
        let rows = rig.osqueryd.query("SELECT * FROM remote_tls_buffer WHERE stream = 'results'").unwrap();
        // It is counted a moment before it is forgotten.
        (rows[0]["delivered"] == "1" && rows[0]["waiting_lines"] == "0").then(|| rows[0].clone())
    });
    assert_eq!((row["dropped"].as_str(), row["discarded"].as_str()), ("50", "50"));
    let doctor = run(&rig, &["doctor"]).out;
    let line = doctor.lines().find(|line| line.contains("delivery")).unwrap();
    let wanted = "0 lines wait, none was dropped since the worker began but 50 lines that an operator discarded";
    assert!(line.starts_with("ok ") && line.ends_with(wanted), "{line}");
    rig.said("50 lines of the results journal dropped so far; the last because an operator discarded them");
}

/// From a review of issue 12: the journal `pending` was offered, and refused.
#[test]
fn a_journal_that_the_extension_can_not_discard_is_no_possible_value() {
    let rig = Rig::start();
    for stream in ["pending", "nothing"] {
        let said = run(&rig, &["buffer", "discard", stream]);
        assert_eq!((said.code, said.out.as_str()), (64, ""), "{}", said.err);
        assert!(said.err.contains("[possible values: results, statuses, distributed]"), "{}", said.err);
    }
}
