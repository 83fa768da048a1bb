//! The config plugin.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup};

#[test]
fn the_configuration_is_handed_on_as_it_came() {
    let rig = Rig::start();
    let text = "{\n \"schedule\": {\"a\": {\"query\": \"select '\\u00e9'\", \"interval\": 1.50e1}} }";
    rig.server.script(Endpoint::Config, [Answer::status(200, text)]);
    assert_eq!(rig.config(), ("tls_plugin".to_owned(), text.to_owned()));
}

#[test]
fn only_a_configuration_reaches_osqueryd() {
    let deep = format!("{}1{}", "{\"a\":".repeat(33), "}".repeat(33));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
    let bad: Vec<(Answer, &str)> = vec![
        (Answer::html(200), "not a JSON object"),
        (Answer::html(500), "HTTP 500"),
        (Answer::empty(200), "empty object"),
        (Answer::empty(503), "HTTP 503"),
        (Answer::status(200, "{}"), "empty object"),
        (Answer::status(200, "[]"), "not a JSON object"),
        (Answer::status(200, "null"), "not a JSON object"),
        (Answer::status(200, "{\"schedule\": {"), "not a JSON object"),
        (Answer::status(403, "{\"message\":\"Forbidden\"}"), "HTTP 403"),
        (Answer::status(200, "{\"error\":\"no such team\"}"), "no such team"),
        (Answer::status(200, "{\"status\":\"error\",\"message\":\"bad host\"}"), "bad host"),
        (Answer::status(200, "{\"node_invalid\":false}"), "empty object"),
        (Answer::status(200, deep), "33 levels"),
        (Answer::status(200, large), "osqueryd takes 1048576"),
        (Answer::drop_connection(), "connection broke"),
        (Answer::truncated("{\"schedule\":{}", 400), "connection broke"),
    ];
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    rig.config();
    for (answer, reason) in bad {
        // Twice, where a broken connection costs an immediate second sending.
        rig.server.always(Endpoint::Config, Some(answer.clone()));
        let outcome = rig.gen_config();
        assert_eq!((outcome.code, outcome.rows.len()), (1, 0), "{answer:?}");
        assert!(outcome.message.contains(reason), "{reason:?} is missing in {}", outcome.message);
    }
    rig.server.always(Endpoint::Config, None);
    rig.config();
}

#[test]
fn a_newer_osqueryd_takes_larger_configurations() {
    let rig = Setup::new().osqueryd(|options| options.version = "5.24.0".to_owned()).start();
    let config = json!({"schedule": {}, "padding": "x".repeat(2 << 20)});
    rig.server.set_config(config.clone());
    assert_eq!(serde_json::from_str::<Value>(&rig.config().1).unwrap(), config);
}

#[test]
fn a_failure_is_tried_again_after_one_and_four_seconds() {
    let rig = Rig::start();
    rig.config();
    rig.server.forget_requests();
    rig.server.script(Endpoint::Config, [Answer::empty(500), Answer::empty(502)]);
    rig.config();
    let at: Vec<Instant> = rig.server.requests_to(Endpoint::Config).iter().map(|request| request.at).collect();
    let [first, second, third] = at.as_slice() else { panic!("{} requests", at.len()) };
    assert!(second.duration_since(*first) >= Duration::from_secs(1));
    assert!(third.duration_since(*second) >= Duration::from_secs(4));
}

#[test]
fn attempts_end_where_the_flag_says() {
    let rig = Setup::new().flag("config_tls_max_attempts", "2").start();
    rig.config();
    rig.server.forget_requests();
    rig.server.always(Endpoint::Config, Some(Answer::empty(500)));
    assert_eq!(rig.gen_config().code, 1);
    assert_eq!(rig.server.requests_to(Endpoint::Config).len(), 2);
}

#[test]
fn a_running_daemon_keeps_its_schedule_through_bad_answers() {
    let rig = Setup::new()
        .server(|server| server.config = json!({"schedule": {"t": {"query": "select 1", "interval": 60}}}))
        .flag("config_refresh", "1")
        .flag("config_accelerated_refresh", "1")
        .flag("config_tls_max_attempts", "1")
        .start_daemon();
    assert_eq!(rig.osqueryd.schedule().len(), 1);
    rig.server.forget_requests();
    rig.server.always(Endpoint::Config, Some(Answer::html(502)));
    rig.server.wait("two refreshes", LIMIT, |server| (server.requests_to(Endpoint::Config).len() >= 2).then_some(()));
    assert_eq!(rig.osqueryd.schedule().len(), 1);
    rig.server.set_config(json!({"schedule": {
        "t": {"query": "select 1", "interval": 60}, "u": {"query": "select 2", "interval": 60}
    }}));
    rig.server.always(Endpoint::Config, None);
    rig.osqueryd.wait("the new schedule", LIMIT, || (rig.osqueryd.schedule().len() == 2).then_some(()));
}

#[test]
fn the_last_good_configuration_is_given_at_a_start_without_the_server_and_the_newer_one_pushed() {
    let schedule = |name: &str| json!({"schedule": {name: {"query": "select 1", "interval": 60}}});
    let rig = Setup::new()
        .server(|server| server.config = schedule("old"))
        .flag("config_tls_max_attempts", "1")
        .start_daemon();
    let names = || rig.osqueryd.schedule().into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    assert_eq!(names(), ["old"]);
    rig.server.stop();
    rig.osqueryd.kill_worker();
    rig.osqueryd.start_worker().unwrap();
    assert_eq!(names(), ["old"], "a new osqueryd has it from the disk");
    rig.said("giving osqueryd the last good configuration");
    rig.server.set_config(schedule("new"));
    rig.server.resume().unwrap();
    // Long before osqueryd asks again by itself.
    rig.osqueryd.wait("the newer one", LIMIT, || (names() == ["new"]).then_some(()));
    rig.said("the configuration has come, and osqueryd has it");
}

#[test]
fn a_configuration_that_came_too_late_at_the_very_first_start_is_pushed() {
    let rig = Setup::new()
        .server(|server| server.config = json!({"schedule": {"q": {"query": "select 1", "interval": 60}}}))
        .flag("tls_enroll_max_attempts", "1")
        .start();
    rig.server.stop();
    assert_eq!(rig.gen_config().code, 1, "there is nothing to give");
    rig.server.resume().unwrap();
    rig.said("the configuration has come, and osqueryd has it");
    rig.osqueryd.wait("the schedule", LIMIT, || (rig.osqueryd.schedule().len() == 1).then_some(()));
}

#[test]
fn a_kept_configuration_that_was_tampered_with_is_not_given() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    rig.config();
    let kept = rig.directory.path().join("remote_tls/config.json");
    rig.osqueryd.wait("the kept configuration", LIMIT, || kept.exists().then_some(()));
    std::fs::write(&kept, "<html>").unwrap();
    rig.server.stop();
    rig.osqueryd.kill_worker();
    rig.osqueryd.start_worker().unwrap();
    rig.wait_attached();
    assert_eq!(rig.gen_config().code, 1);
}
