//! Decorations of status lines.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::osqueryd::StatusLine;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup, signal, unix_time};

/// As in src/plugins/logger/decorations.rs.
const ROUND_LIMIT: Duration = Duration::from_secs(1);

/// What differs each time that it is run.
const RANDOM: &str = "select hex(randomblob(8)) as";

fn config(decorators: Value) -> Value {
    json!({"schedule": {}, "decorators": decorators})
}

/// A rig whose osqueryd has got these decorators.
fn start(decorators: Value) -> Rig {
    start_with(Setup::new(), decorators)
}

fn start_with(setup: Setup, decorators: Value) -> Rig {
    let rig = setup.server(|server| server.config = config(decorators)).start();
    rig.config();
    rig
}

/// Seconds after this moment, in Unix seconds: the time of a line that is younger than whatever was found before.
fn later(seconds: i64) -> i64 {
    unix_time() + seconds
}

/// A status call with one line of that time.
fn write_status(rig: &Rig, message: &str, time: i64) {
    let line = json!([{"s": 0, "f": "f.cpp", "i": 1, "m": message, "h": "h", "c": "c", "u": time}]);
    assert_eq!(rig.call("logger", &[("status", "true"), ("log", &line.to_string())]).code, 0);
}

/// The status line with that message, once the server has it.
fn delivered(rig: &Rig, message: &str) -> Value {
    rig.server.wait(message, LIMIT, |server| {
        server.statuses().into_iter().find(|line| line["message"].as_str().is_some_and(|text| text.contains(message)))
    })
}

/// A status line written now, as the server gets it.
fn status(rig: &Rig, message: &str) -> Value {
    write_status(rig, message, later(1000));
    delivered(rig, message)
}

/// The decorations of a line whose round ended in time: on a busy machine the first ones have a part of it only.
fn whole(rig: &Rig, message: &str) -> Value {
    let decorated = |n| Some(status(rig, &format!("{message} {n}"))["decorations"].clone());
    let has_last = |decorations: &Value| decorations["row"].is_string();
    (0..20).find_map(|n| decorated(n).filter(has_last)).expect("a round within its second")
}

/// How often osqueryd was asked for this query.
fn runs(rig: &Rig, sql: &str) -> usize {
    rig.osqueryd.transcript().matches(&format!("manager: query {sql}")).count()
}

#[test]
fn each_decorator_runs_at_its_moment() {
    let rig = start(json!({
        "load": [format!("{RANDOM} at_load"), "select 7 as number, null as empty"],
        "interval": {"60": [format!("{RANDOM} each_minute")]},
        "always": [format!("{RANDOM} each_time"), "select 'first' as row union all select 'second' as row"],
    }));
    let first = whole(&rig, "first");
    let second = whole(&rig, "second");
    assert_eq!((&first["number"], &first["empty"], &first["row"]), (&json!("7"), &json!(""), &json!("first")));
    assert_eq!(first["at_load"].as_str().unwrap().len(), 16);
    assert_eq!(first["at_load"], second["at_load"]);
    assert_eq!(first["each_minute"].as_str().unwrap().len(), 16);
    assert_eq!(first["each_minute"], second["each_minute"]);
    assert_ne!(first["each_time"], second["each_time"]);
}

#[test]
fn another_configuration_begins_anew_and_the_same_one_again_changes_nothing() {
    let rig = start(json!({"load": [format!("{RANDOM} a")]}));
    let first = status(&rig, "first")["decorations"].clone();
    rig.config();
    assert_eq!(status(&rig, "second")["decorations"], first);
    rig.server.set_config(config(json!({"load": ["select 1 as b"]})));
    rig.config();
    assert_eq!(status(&rig, "third")["decorations"], json!({"b": "1"}));
    rig.server.set_config(json!({"schedule": {}}));
    rig.config();
    assert_eq!(status(&rig, "fourth").get("decorations"), None);
    // An answer that is no configuration leaves all as it is.
    rig.server.set_config(config(json!({"always": ["select 2 as c"]})));
    rig.config();
    rig.server
        .script(Endpoint::Config, [Answer::status(200, "{\"error\": \"no\"}"), Answer::html(200), Answer::html(200)]);
    assert_eq!(rig.gen_config().code, 1);
    assert_eq!(status(&rig, "fifth")["decorations"], json!({"c": "2"}));
}

#[test]
fn flags_disable_decorations_or_put_them_at_the_top_level() {
    let rig = start_with(Setup::new().flag("disable_decorators", "true"), json!({"always": ["select 1 as one"]}));
    assert_eq!(status(&rig, "disabled").get("decorations"), None);
    assert_eq!(runs(&rig, "select 1 as one"), 0);
    rig.osqueryd.options_set("disable_decorators", "false");
    rig.osqueryd.options_set("decorations_top_level", "true");
    rig.osqueryd.init_logger();
    let line = status(&rig, "enabled");
    assert_eq!((line.get("decorations"), &line["one"]), (None, &json!("1")));
}

#[test]
fn a_failing_decorator_is_said_once_and_the_others_count() {
    let rig = start(json!({"always": ["select * from no_such_table", "select 1 as one"]}));
    for message in ["first", "second", "third"] {
        assert_eq!(status(&rig, message)["decorations"], json!({"one": "1"}));
    }
    let said = "a decorator fails and is tried again later: osqueryd refused query: no such table: no_such_table: \
                select * from no_such_table";
    assert_eq!(rig.stderr().matches(said).count(), 1, "{}", rig.stderr());
    assert_eq!((runs(&rig, "select * from no_such_table"), runs(&rig, "select 1 as one")), (1, 3));
}

#[test]
fn what_is_no_decorator_is_said_once_and_passed_over() {
    let rig = start(json!({"load": ["select 1 as one", 2], "interval": {"90": ["select 3 as three"]}, "always": {}}));
    assert_eq!(status(&rig, "a line")["decorations"], json!({"one": "1"}));
    rig.config();
    for what in
        ["load holds something that is no query", "interval 90 is no multiple of 60 seconds", "always is no list"]
    {
        let said = format!("a decorator is passed over: {what}");
        assert_eq!(rig.stderr().matches(&said).count(), 1, "{said}: {}", rig.stderr());
    }
}

#[test]
fn a_hanging_osqueryd_delays_a_status_call_by_the_limit_once_and_what_was_known_is_used() {
    let rig = start(json!({"always": [format!("{RANDOM} it")]}));
    let known = status(&rig, "before")["decorations"].clone();
    rig.osqueryd.hang(true);
    let begun = Instant::now();
    write_status(&rig, "first within", later(1000));
    let first = begun.elapsed();
    for n in 0..20 {
        write_status(&rig, &format!("{n} within"), later(2000 + n));
    }
    let all = begun.elapsed();
    // A query is given up after 10 s; a call that waited for one would take as long.
    assert!(first >= ROUND_LIMIT && all < 5 * ROUND_LIMIT, "{first:?}, {all:?}");
    rig.osqueryd.hang(false);
    assert_eq!(delivered(&rig, "first within")["decorations"], known);
    assert_eq!(delivered(&rig, "19 within")["decorations"], known);
}

#[test]
fn what_the_queries_make_osqueryd_log_begins_no_other_round() {
    let sql = format!("{RANDOM} it");
    let rig = start(json!({"always": [sql]}));
    rig.osqueryd.remark_on_queries(true);
    rig.osqueryd.print(&StatusLine::new(1, "a.cpp", 1, "what began it"));
    rig.osqueryd.init_logger();
    assert_eq!(runs(&rig, &sql), 1);
    // Each relay would take what osqueryd said of the round before, for ever.
    for _ in 0..3 {
        rig.osqueryd.relay_status();
    }
    let remark = delivered(&rig, &format!("Running for an extension: {sql}"));
    assert_eq!(remark["decorations"], delivered(&rig, "what began it")["decorations"]);
    assert_eq!(runs(&rig, &sql), 1);
    assert_eq!(status(&rig, "another one")["severity"], 0);
    assert_eq!(runs(&rig, &sql), 2, "a line that is younger than the last round");
}

#[test]
fn a_worker_that_takes_another_one_s_place_has_the_decorators_too() {
    let rig = start(json!({"load": ["select 1 as one"]}));
    assert_eq!(status(&rig, "first")["decorations"], json!({"one": "1"}));
    let worker = rig.worker_pid();
    signal(worker, Signal::KILL);
    rig.osqueryd.wait("another worker", LIMIT, || (rig.worker_pid() != worker).then_some(()));
    assert_eq!(status(&rig, "second")["decorations"], json!({"one": "1"}));
}

#[test]
fn a_pushed_configuration_brings_its_decorators() {
    let rig = Setup::new()
        .server(|server| server.config = config(json!({"always": ["select 1 as one"]})))
        .flag("tls_enroll_max_attempts", "1")
        .start();
    rig.server.stop();
    assert_eq!(rig.gen_config().code, 1);
    write_status(&rig, "before the configuration", later(1000));
    rig.server.resume().unwrap();
    rig.said("the configuration has come, and osqueryd has it");
    assert_eq!(status(&rig, "behind it")["decorations"], json!({"one": "1"}));
    assert_eq!(delivered(&rig, "before the configuration").get("decorations"), None);
}

#[test]
fn status_lines_of_our_own_are_decorated_too() {
    let rig = start(json!({"load": ["select 1 as one"]}));
    rig.log("no JSON");
    let line = delivered(&rig, "set aside so far");
    assert_eq!(line["decorations"], json!({"one": "1"}), "{line}");
}
