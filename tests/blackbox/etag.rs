//! Conditional configurations: what is here already is not sent again.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::server::{Answer, Endpoint, Server};

use crate::rig::{LIMIT, Rig, Setup, signal};

/// A server that knows etags.
fn setup() -> Setup {
    Setup::new()
        .server(|server| (server.etags, server.config) = (true, schedule("old")))
        .flag("config_tls_max_attempts", "1")
}

fn schedule(name: &str) -> Value {
    json!({"schedule": {name: {"query": "select 1", "interval": 60}}, "options": {"logger_plugin": "tls"}})
}

/// The etags that configurations were asked for with; `None` for a request without one.
fn asked(server: &Server) -> Vec<Option<String>> {
    let etag = |body: &Option<Value>| body.as_ref()?.get("etag")?.as_str().map(str::to_owned);
    server.requests_to(Endpoint::Config).iter().map(|request| etag(&request.json)).collect()
}

/// The last answer's own etag.
fn shown(rig: &Rig) -> String {
    let answer = rig.server.requests_to(Endpoint::Config).pop().unwrap().answer_body;
    serde_json::from_str::<Value>(&answer).unwrap()["etag"].as_str().unwrap().to_owned()
}

fn last_answer(rig: &Rig) -> String {
    rig.server.requests_to(Endpoint::Config).pop().unwrap().answer_body
}

fn kept(rig: &Rig, name: &str) -> PathBuf {
    rig.directory.path().join("remote_tls").join(name)
}

/// SIGKILL for the worker, and waits for the next one.
fn kill_worker(rig: &Rig) {
    let worker = rig.worker_pid();
    signal(worker, Signal::KILL);
    rig.osqueryd.wait("another worker", LIMIT, || (rig.worker_pid() != worker).then_some(()));
}

const UNCHANGED: &str = r#"{"etag":"ok"}"#;

#[test]
fn what_is_unchanged_is_not_sent_and_osqueryd_is_given_the_same_again() {
    let rig = setup().start();
    let given = rig.config();
    let etag = shown(&rig);
    assert!(given.1.contains("logger_event_type") && given.1.contains("remote_tls") && given.1.contains("\"old\""));
    for _ in 0..2 {
        assert_eq!(rig.config(), given);
        assert_eq!(last_answer(&rig), UNCHANGED);
    }
    rig.server.set_config(schedule("new"));
    assert!(rig.config().1.contains("\"new\""));
    let newer = shown(&rig);
    assert!(newer != etag && newer != "ok");
    assert!(rig.config().1.contains("\"new\""));
    assert_eq!(last_answer(&rig), UNCHANGED);
    assert_eq!(asked(&rig.server), [String::new(), etag.clone(), etag.clone(), etag, newer].map(Some));
}

#[test]
fn neither_a_worker_s_end_nor_a_restart_has_it_sent_again() {
    let rig = setup().start();
    let given = rig.config();
    let etag = shown(&rig);
    rig.osqueryd.wait("the origin", LIMIT, || kept(&rig, "config.origin").exists().then_some(()));
    for replace in [kill_worker, Rig::kill_both_and_wait] {
        replace(&rig);
        assert_eq!(rig.config(), given);
        assert_eq!(last_answer(&rig), UNCHANGED);
        assert_eq!(asked(&rig.server).pop(), Some(Some(etag.clone())));
    }
}

#[test]
fn an_etag_goes_nowhere_without_its_document_or_to_where_it_is_not_from() {
    let rig = setup().start();
    let given = rig.config();
    let is_kept = || rig.osqueryd.wait("the origin", LIMIT, || kept(&rig, "config.origin").exists().then_some(()));
    let spoil: [&dyn Fn(); 4] = [
        &|| fs::remove_file(kept(&rig, "config.json")).unwrap(),
        &|| fs::write(kept(&rig, "config.json"), r#"{"schedule":{},"etag":"x""#).unwrap(),
        &|| fs::remove_file(kept(&rig, "config.origin")).unwrap(),
        &|| fs::write(kept(&rig, "config.origin"), "https://elsewhere/config").unwrap(),
    ];
    for spoil in spoil {
        is_kept();
        spoil();
        kill_worker(&rig);
        assert_eq!(rig.config(), given);
        assert_eq!(asked(&rig.server).pop(), Some(Some(String::new())));
        assert_ne!(last_answer(&rig), UNCHANGED);
    }
    // Another server, or another one's part of this one.
    rig.osqueryd.options_set("config_tls_endpoint", "/elsewhere/config");
    rig.server.wait("the new endpoint", LIMIT, |server| {
        rig.config();
        server.requests_to(Endpoint::Config).pop().filter(|request| request.target == "/elsewhere/config")
    });
    let elsewhere = rig.server.requests_to(Endpoint::Config);
    let first = elsewhere.iter().find(|request| request.target == "/elsewhere/config").unwrap();
    assert_eq!(first.json.as_ref().unwrap()["etag"], "");
}

#[test]
fn the_etag_of_a_configuration_that_can_not_be_used_is_not_named() {
    let rig = setup().start();
    rig.config();
    let etag = shown(&rig);
    let deep = format!("{{\"etag\":\"of-a-deep-one\",\"a\":{}1{}}}", "[".repeat(40), "]".repeat(40));
    for refused in [deep, r#"{"etag":"of-an-empty-one"}"#.to_owned()] {
        rig.server.script(Endpoint::Config, [Answer::status(200, refused)]);
        assert_eq!(rig.gen_config().code, 1);
        assert!(rig.config().1.contains("\"old\""));
        assert_eq!(asked(&rig.server).pop(), Some(Some(etag.clone())));
        assert_eq!(last_answer(&rig), UNCHANGED);
    }
}

#[test]
fn a_server_that_knows_no_etags_is_as_before_and_one_that_answers_unasked_is_refused() {
    let rig = setup().server(|server| server.etags = false).start();
    rig.config();
    rig.config();
    assert_eq!(asked(&rig.server), [Some(String::new()), Some(String::new())]);
    rig.server.script(Endpoint::Config, [Answer::status(200, UNCHANGED)]);
    let outcome = rig.gen_config();
    assert_eq!(outcome.code, 1);
    assert!(outcome.message.contains("to a request that named no configuration"), "{}", outcome.message);
}

#[test]
fn no_etag_is_sent_where_the_setting_or_the_node_api_s_get_leaves_no_place_for_it() {
    let off = setup().own_flag("--config_tls_etag=false").start();
    let node_api = setup().flag("tls_node_api", "true").start();
    for rig in [off, node_api] {
        let given = rig.config();
        assert_eq!(rig.config(), given);
        assert_eq!(asked(&rig.server), [None, None]);
    }
}

/// The way out where a server says for ever that nothing has changed.
#[test]
fn an_operator_s_refresh_has_the_whole_configuration_sent() {
    let rig = setup().flag("config_refresh", "3600").start_daemon();
    assert_eq!(rig.refresh().0, Some(0));
    signal(rig.pid(), Signal::HUP);
    rig.server.wait("three configurations", LIMIT, |server| (asked(server).len() >= 3).then_some(()));
    assert!(asked(&rig.server).iter().all(|etag| etag.as_deref() == Some("")), "{:?}", asked(&rig.server));
}
