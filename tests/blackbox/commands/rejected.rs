//! `rejected`: lines that no server takes are listed, shown, tried again and forgotten while everything runs.

use serde_json::{Value, json};
use testkit::server::{Answer, Endpoint};

use super::{Said, run};
use crate::rig::{LIMIT, Rig, SECRET, Setup, line};

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
    assert_eq!((shown.code, shown.out), (0, format!("no JSON\n{long}\n")));
    let whys: Vec<&str> = shown.err.lines().collect();
    assert!(whys[0].starts_with(&format!("{}, of results, set aside ", name(no_json))), "{whys:?}");
    assert!(whys[0].ends_with(" ago: it is no JSON") && whys[1].contains("(logger_tls_max_linesize)"), "{whys:?}");

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

/// Case operator: the list showed the same first 60 characters of every refusal, and never the server's words.
#[test]
fn what_the_server_said_of_a_line_is_shown() {
    let rig = Rig::start();
    rig.config();
    rig.server.always(Endpoint::Log, Some(Answer::empty(503)));
    rig.log(&line(0));
    rig.log("{\"n\":1,\"x\":\"poison\"}");
    (2..9).for_each(|n| rig.log(&line(n)));
    rig.server.refuse("poison", Some(Answer::status(400, "the column epoch is out of range")));
    rig.server.always(Endpoint::Log, None);
    rig.osqueryd.wait("the refused line", LIMIT, || (listed(&rig).len() == 1).then_some(()));
    let text = run(&rig, &["rejected", "list"]).out;
    let row = text.lines().nth(1).unwrap();
    assert!(row.contains("  HTTP 400") && row.contains("the column epoch is out of range"), "{text}");
    let shown = run(&rig, &["rejected", "show", "--all"]);
    assert_eq!((shown.code, shown.out.as_str()), (0, "{\"n\":1,\"x\":\"poison\"}\n"));
    let why =
        format!("the server refuses it alone, and takes others: logger (https://{}/log): ", rig.server.hostname());
    assert!(shown.err.contains(&why) && shown.err.contains("the column epoch is out of range"), "{}", shown.err);
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
    rig.said("given to the logger again, as an operator asked: 2 lines that had been set aside");
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
    // Looking needs no running process; but where the buffers are is osqueryd's flag.
    let directory = rig.directory.path().join("remote_tls");
    let kept = std::fs::read_to_string(directory.join("rejected.ndjson")).unwrap();
    assert_eq!(kept.lines().count(), 2);
}

#[test]
fn secrets_in_lines_are_masked_and_no_line_moves_the_cursor() {
    let key = "node/key+with \"odd\" characters";
    let setup = Setup::new();
    let buffers = setup.path().join("remote_tls");
    let rig = setup.own_flag(&format!("--buffer_path={}", buffers.display())).start();
    rig.server.set_next_node_key(key);
    rig.config();
    let moving = "\u{1b}[2J\u{9b}1A\r\u{202e}\u{0}";
    rig.log(&format!("no JSON: {key}, {SECRET}{moving}"));
    rig.settled();
    rig.server.always(Endpoint::Log, Some(Answer::empty(500)));
    rig.log(&json!({"n": 1, "key": key, "secret": SECRET}).to_string());
    rig.log(&format!("{{\"n\":2,\"x\":\"{moving}\"}}"));
    let shown: String = [&["rejected", "show", "--all"][..], &["rejected", "list"], &["buffer", "show", "results"]]
        .map(|arguments| run(&rig, arguments).out)
        .concat();
    let escaped = "\\u{1b}[2J\\u{9b}1A\\r\\u{202e}\\u{0}";
    for wanted in [
        &format!("no JSON: <hidden>, <hidden>{escaped}\n"),
        "{\"n\":1,\"key\":\"<hidden>\",\"secret\":\"<hidden>\"}\n",
        &format!("{{\"n\":2,\"x\":\"{escaped}\"}}\n"),
    ] {
        assert!(shown.contains(wanted), "{wanted:?} is missing in {shown:?}");
    }
    let json = run(&rig, &["rejected", "list", "--json"]).out;
    let is_plain = |text: &str| text.chars().all(|character| character == '\n' || !character.is_control());
    assert!(is_plain(&shown) && is_plain(&json), "{shown:?} {json:?}");
    for part in ["odd", "node/key", SECRET, "\u{202e}"] {
        assert!(!shown.contains(part) && !json.contains(part), "{part:?} is shown: {shown:?} {json:?}");
    }

    // The node key can't be known any more and so not be masked: no word of a line is shown.
    rig.osqueryd.kill_worker();
    for arguments in [&["rejected", "show", "--all"][..], &["buffer", "show", "results"]] {
        let refused = run(&rig, arguments);
        assert_eq!((refused.code, refused.out.as_str()), (1, ""));
        assert!(refused.err.contains("words of lines are not shown"), "{}", refused.err);
    }
    let listed = run(&rig, &["rejected", "list"]);
    assert_eq!(listed.code, 0);
    assert!(listed.out.contains("  results  ") && !listed.out.contains("no JSON"), "{}", listed.out);
    assert!(listed.err.contains("words of lines are not shown"), "{}", listed.err);
}

#[test]
fn status_lines_and_results_of_distributed_queries_are_sent_when_they_are_tried_again() {
    let rig = Setup::new()
        .flag("logger_tls_max_linesize", "1000")
        .flag("distributed_tls_max_attempts", "1")
        .osqueryd(|options| options.verbose = true)
        .start();
    rig.config();
    let status = json!([{"s": 0, "f": "a.cpp", "i": 7, "m": "m".repeat(1200), "h": "h", "c": "Mon", "u": 1}]);
    assert_eq!(rig.call("logger", &[("status", "true"), ("log", &status.to_string())]).code, 0);
    rig.osqueryd.wait("the status line", LIMIT, || (listed(&rig).len() == 1).then_some(()));
    rig.server.always(Endpoint::DistributedWrite, Some(Answer::empty(503)));
    for text in ["fine", "poison", "fine", "fine", "fine", "fine", "fine", "fine"] {
        let results = json!({"queries": {"q": [{"p": text}]}}).to_string();
        assert_eq!(rig.call("distributed", &[("action", "writeResults"), ("results", &results)]).code, 0, "kept");
    }
    rig.server.refuse("poison", Some(Answer::empty(400)));
    rig.server.always(Endpoint::DistributedWrite, None);
    rig.osqueryd.wait("the refused results", LIMIT * 3, || (listed(&rig).len() == 2).then_some(()));
    rig.server.refuse("poison", None);
    rig.osqueryd.options_set("logger_tls_max_linesize", "1000000");
    rig.log(&line(0));
    rig.delivered(1);
    assert_eq!(said(&run(&rig, &["rejected", "retry", "--all"])), (0, "2 lines given to the logger again\n", ""));
    rig.server.wait("the status line", LIMIT, |server| {
        server.statuses().iter().any(|line| line["line"] == 7 && line["message"] == "m".repeat(1200)).then_some(())
    });
    rig.server.wait("the results", LIMIT, |server| {
        let written = server.written();
        (written.len() == 8 && written[7]["queries"]["q"][0]["p"] == "poison").then_some(())
    });
    assert_eq!(listed(&rig), Vec::<Value>::new());
}

/// From a review of issue 12: of 200 lines that two workers set aside during a `forget`, 200 were lost.
#[test]
fn what_is_set_aside_while_lines_are_tried_again_or_forgotten_is_kept() {
    let rig = Rig::start();
    rig.config();
    let log = |n: u64| rig.log(&format!("no JSON {n}"));
    (0..30).for_each(log);
    rig.settled();
    let doomed: Vec<String> = listed(&rig).iter().take(10).map(|line| name(line).to_owned()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| (30..300).for_each(log));
        let discard = [&["rejected", "discard"][..], &doomed.iter().map(String::as_str).collect::<Vec<_>>()].concat();
        assert_eq!(said(&run(&rig, &discard)), (0, "10 lines discarded\n", ""));
        for _ in 0..3 {
            assert_eq!(run(&rig, &["rejected", "retry", "--all"]).code, 0);
        }
    });
    // Each is refused again, and there once, but for the newest ten of the first, which were forgotten.
    let mut wanted: Vec<String> = (0..20).chain(30..300).map(|n| format!("no JSON {n}")).collect();
    wanted.sort();
    rig.osqueryd.wait("all lines", LIMIT, || {
        let mut aside: Vec<String> = rig.set_aside().into_iter().map(|(line, _)| line).collect();
        aside.sort();
        (aside == wanted).then_some(())
    });
}
