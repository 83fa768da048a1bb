//! `rejected`: lines that no server takes are listed, shown, tried again and forgotten while everything runs.

use serde_json::Value;
use testkit::server::{Answer, Endpoint};

use super::{Said, run};
use crate::rig::{LIMIT, Rig, Setup, line};

fn listed(rig: &Rig) -> Vec<Value> {
    run(rig, &["rejected", "list", "--json"]).json().as_array().unwrap().clone()
}

fn name(line: &Value) -> &str {
    line["name"].as_str().unwrap()
}

fn said(said: &Said) -> (i32, &str, &str) {
    (said.code, &said.out, &said.err)
}

/// Two lines are set aside: one that is no JSON, and before it one that was too long when it came.
fn with_two(rig: &Rig) -> (String, Vec<Value>) {
    let long = format!("{{\"n\":1,\"x\":\"{}\"}}", "é".repeat(600));
    rig.log(&long);
    rig.log("no JSON");
    rig.settled();
    let lines = listed(rig);
    assert_eq!(lines.len(), 2, "{lines:?}");
    (long, lines)
}

#[test]
fn lines_are_listed_shown_and_discarded_by_their_names() {
    let rig = Setup::new().flag("logger_tls_max_linesize", "1000").start();
    rig.config();
    assert_eq!(said(&run(&rig, &["rejected", "list"])), (0, "no line is set aside\n", ""));
    let (long, lines) = with_two(&rig);
    let [no_json, too_long] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&no_json["beginning"], &no_json["reason"]), (&Value::from("no JSON"), &Value::from("it is no JSON")));
    assert_eq!((&too_long["size"], &too_long["whole"]), (&Value::from(long.len()), &Value::from(true)));
    let text = run(&rig, &["rejected", "list"]).out;
    assert!(text.lines().nth(1).unwrap().starts_with(&format!("{}  ", name(no_json))), "{text}");
    let shown = run(&rig, &["rejected", "show", name(too_long), name(no_json)]);
    assert_eq!(said(&shown), (0, &*format!("no JSON\n{long}\n"), ""));

    // What comes meanwhile changes no name, and stays.
    rig.log("no JSON either");
    rig.settled();
    assert_eq!(said(&run(&rig, &["rejected", "discard", name(no_json)])), (0, "1 line discarded\n", ""));
    let left: Vec<Value> = listed(&rig);
    assert_eq!((&left[0]["beginning"], &left[1], left.len()), (&Value::from("no JSON either"), too_long, 2));
    let unknown = run(&rig, &["rejected", "discard", "000000000000"]);
    assert_eq!((unknown.code, unknown.out.as_str()), (1, ""));
    assert!(unknown.err.contains("no line that is set aside has the name 000000000000"), "{}", unknown.err);
    assert_eq!(run(&rig, &["rejected", "discard"]).code, 64, "neither names nor --all");
    assert_eq!(said(&run(&rig, &["rejected", "discard", "--all"])), (0, "2 lines discarded\n", ""));
    assert_eq!(listed(&rig), Vec::<Value>::new());
    // And lines are set aside as before.
    rig.log("no JSON again");
    rig.settled();
    assert_eq!(listed(&rig).len(), 1);
}

#[test]
fn lines_are_sent_when_they_are_tried_again_and_what_is_refused_again_is_set_aside_anew() {
    let rig = Setup::new().flag("logger_tls_max_linesize", "1000").start();
    rig.config();
    let (_, lines) = with_two(&rig);
    // As an operator does who reads the reason.
    rig.osqueryd.options_set("logger_tls_max_linesize", "1000000");
    rig.log(&line(0));
    rig.delivered(1);
    assert_eq!(said(&run(&rig, &["rejected", "retry", "--all"])), (0, "2 lines given to the logger again\n", ""));
    assert_eq!(rig.delivered(2), [0, 1]);
    let again = rig.osqueryd.wait("a line that is set aside anew", LIMIT, || {
        let again = listed(&rig);
        (again.len() == 1).then_some(again)
    });
    assert_eq!(again[0]["beginning"], lines[0]["beginning"]);
}

#[test]
fn a_line_of_which_only_the_beginning_is_kept_stays() {
    let rig = Setup::new().flag("logger_tls_max_linesize", "1000").start();
    rig.config();
    rig.log(&format!("{{\"n\":1,\"x\":\"{}\"}}", "y".repeat(70_000)));
    rig.settled();
    let lines = listed(&rig);
    assert_eq!((lines.len(), &lines[0]["whole"]), (1, &Value::from(false)));
    let stays = format!("{} stays: it is not kept whole\n", name(&lines[0]));
    let retried = run(&rig, &["rejected", "retry", name(&lines[0])]);
    assert_eq!(said(&retried), (1, "0 lines given to the logger again\n", &*stays));
    assert_eq!(listed(&rig), lines);
}

#[test]
fn nothing_is_thrown_away_without_the_running_extension() {
    let rig = Setup::new().flag("logger_tls_max_linesize", "1000").start();
    rig.config();
    with_two(&rig);
    rig.server.always(Endpoint::Log, Some(Answer::empty(500)));
    rig.osqueryd.kill_worker();
    for arguments in [["rejected", "discard", "--all"], ["rejected", "retry", "--all"]] {
        let refused = run(&rig, &arguments);
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{}", refused.err);
    }
    // To look needs nobody: but where the buffers are is osqueryd's flag.
    let directory = rig.directory.path().join("remote_tls");
    let kept = std::fs::read_to_string(directory.join("rejected.ndjson")).unwrap();
    assert_eq!(kept.lines().count(), 2);
}
