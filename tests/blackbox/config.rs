//! The config plugin.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup, signal};

#[test]
fn the_configuration_is_handed_on_as_it_came() {
    let rig = Setup::new().own_flag("--logger_expand_events=false").start();
    let text = "{\n \"schedule\": {\"a\": {\"query\": \"select '\\u00e9'\", \"interval\": 1.50e1}} }";
    rig.server.script(Endpoint::Config, [Answer::status(200, text)]);
    assert_eq!(rig.config(), ("tls_plugin".to_owned(), text.to_owned()));
}

/// Where ours is the only logger, and neither flags nor the configuration say otherwise.
#[test]
fn whole_queries_are_asked_for_and_every_other_byte_stays() {
    let rig = Rig::start();
    let text = "{\n \"schedule\": {},  \"options\" : { \"verbose\": true }, \"x\":\"\\u00e9\" }";
    rig.server.always(Endpoint::Config, Some(Answer::status(200, text)));
    let asked_for = text.replace("{ \"verbose\"", "{\"logger_event_type\":false, \"verbose\"");
    assert_eq!(rig.config().1, asked_for);
    let second = Setup::new().flag("logger_plugin", "filesystem,remote_tls").start();
    second.server.always(Endpoint::Config, Some(Answer::status(200, text)));
    assert_eq!(second.config().1, text);
}

/// Configurations as servers make them for every host, whatever plugins it has: Fleet's default agent options, Zentral,
/// and the case plugin-options (kolide/fleet#942, osquery#6251).
const NAMING_TLS: [&str; 3] = [
    include_str!("samples/04_config_response_fleet.json"),
    include_str!("samples/04e_config_response_zentral.json"),
    r#"{"schedule": {"q": {"query": "select 1 as one", "interval": 1, "snapshot": true}}, "options": {"logger_plugin": "tls", "distributed_plugin": "tls", "logger_tls_endpoint": "/log", "logger_tls_period": 1}}"#,
];

/// The same with ours in the built-in plugins' places.
fn naming_ours(text: &str) -> String {
    let text = text.trim();
    let changed = text.replace("\"tls\"", "\"remote_tls\"").replace("\"filesystem,tls\"", "\"filesystem,remote_tls\"");
    assert_ne!(text, changed);
    changed
}

#[test]
fn options_that_name_the_built_in_plugins_leave_ours_in_their_places() {
    let rig = Setup::new().own_flag("--logger_expand_events=false").start();
    for text in NAMING_TLS {
        rig.server.always(Endpoint::Config, Some(Answer::status(200, text)));
        assert_eq!(rig.config().1, naming_ours(text));
        assert_eq!(rig.config().1, naming_ours(text));
    }
    let said = rig.stderr().matches("for distributed_plugin, and osqueryd is given remote_tls in its place").count();
    assert_eq!(said, 1, "{}", rig.stderr());
}

#[test]
fn options_stay_as_they_are_where_the_host_s_flags_or_the_setting_want_it_so() {
    let switched_off = Setup::new().own_flag("--logger_expand_events=false").own_flag("--keep_plugins=false").start();
    let built_in = Setup::new()
        .own_flag("--logger_expand_events=false")
        .flag("logger_plugin", "filesystem")
        .flag("distributed_plugin", "tls")
        .start();
    for rig in [switched_off, built_in] {
        for text in NAMING_TLS {
            rig.server.always(Endpoint::Config, Some(Answer::status(200, text)));
            assert_eq!(rig.config().1, text.trim());
        }
    }
}

#[test]
fn the_kept_configuration_and_pushes_leave_our_plugins_in_their_places_too() {
    let rig = Setup::new().own_flag("--logger_expand_events=false").flag("config_tls_max_attempts", "1").start();
    let text = NAMING_TLS[0];
    rig.server.always(Endpoint::Config, Some(Answer::status(200, text)));
    assert_eq!(rig.config().1, naming_ours(text));
    let worker = rig.worker_pid();
    rig.server.stop();
    signal(worker, Signal::KILL);
    rig.osqueryd.wait("another worker", LIMIT, || (rig.worker_pid() != worker).then_some(()));
    assert_eq!(rig.config().1, naming_ours(text));
    rig.said("giving osqueryd the last good configuration");
    let kept = std::fs::read_to_string(rig.directory.path().join("remote_tls/config.json")).unwrap();
    assert_eq!(kept, text.trim(), "kept as the server gave it");
    rig.server.resume().unwrap();
    rig.said("the configuration has come, and osqueryd has it");
    let pushed: Vec<_> = rig.osqueryd.configs().into_iter().map(|given| given["tls_plugin"].clone()).collect();
    assert_eq!(pushed, [naming_ours(text)]);
}

#[test]
fn a_daemon_whose_server_names_tls_asks_our_plugin_for_distributed_queries() {
    let setup = || {
        Setup::new()
            .server(|server| server.config = serde_json::from_str(NAMING_TLS[0]).unwrap())
            .osqueryd(|options| (options.distributed, options.time_scale) = (true, 10))
    };
    let rig = setup().start_daemon();
    assert_eq!(rig.osqueryd.option("distributed_plugin"), "remote_tls");
    rig.server.add_query("q", "SELECT 1 AS one");
    rig.server.wait("the answer", LIMIT, |server| {
        server.written().iter().any(|body| body["statuses"]["q"] == 0).then_some(())
    });
    // What happens otherwise.
    let switched_off = setup().own_flag("--keep_plugins=false").start_daemon();
    assert_eq!(switched_off.osqueryd.option("distributed_plugin"), "tls");
}

#[test]
fn only_a_configuration_reaches_osqueryd() {
    // The case config-depth: osqueryd counts values.
    let deep = format!("{}1{}", "{\"a\":".repeat(32), "}".repeat(32));
    // With the line's end that osqueryd puts behind it, a byte too many.
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat((1 << 20) - 8));
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
        // What the reference server of osquery's documentation answers at any other path.
        (Answer::status(200, "{\"foo\":\"bar\"}"), "none of a configuration's members"),
        (Answer::status(200, "{\"message\":\"Not Found\"}"), "none of a configuration's members"),
        (Answer::status(200, deep), "33 levels"),
        (Answer::status(200, "{\"a\":\"\\ud83d\"}"), "not a JSON object"),
        (Answer::status(200, "{\n// a comment\n\"a\":1}"), "not a JSON object"),
        (Answer::status(200, large), "osqueryd takes 1048576"),
        (Answer::drop_connection(), "connection broke"),
        (Answer::truncated("{\"schedule\":{}", 400), "connection broke"),
    ];
    for (answer, reason) in bad {
        // One each: a server that is not well is left alone for a while.
        let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
        rig.config();
        // Twice, where a broken connection costs an immediate second sending.
        rig.server.always(Endpoint::Config, Some(answer.clone()));
        let outcome = rig.gen_config();
        assert_eq!((outcome.code, outcome.rows.len()), (1, 0), "{answer:?}");
        assert!(outcome.message.contains(reason), "{reason:?} is missing in {}", outcome.message);
    }
}

#[test]
fn a_server_that_is_not_well_is_asked_once_and_osqueryd_keeps_its_configuration() {
    let rig = Rig::start();
    rig.config();
    rig.call("distributed", &[("action", "getQueries")]);
    rig.server.forget_requests();
    for (endpoint, request, action) in
        [(Endpoint::Config, "config", "genConfig"), (Endpoint::DistributedRead, "distributed", "getQueries")]
    {
        rig.server.always(endpoint, Some(Answer::empty(500)));
        let ask = || rig.call(request, &[("action", action)]);
        assert_eq!(ask().code, 1, "it is said");
        for _ in 0..3 {
            let outcome = ask();
            assert_eq!(outcome.code, 0, "{}", outcome.message);
            let [row] = &outcome.rows[..] else { panic!("{:?}", outcome.rows) };
            assert!(
                row.get("tls_plugin").is_none() && row.get("results").is_none_or(|text| text == "{\"queries\":{}}")
            );
        }
        assert_eq!(rig.server.requests_to(endpoint).len(), 1);
        rig.server.always(endpoint, None);
        // 10 s at most after a first failure.
        rig.server.wait("another request", LIMIT, |server| {
            ask();
            (server.requests_to(endpoint).len() >= 2).then_some(())
        });
    }
    rig.said("config: works again");
    rig.said("distributed read: works again");
}

/// The cases config-depth, surrogate and node-api-comments (osquery#2785, #8201, kolide/fleet#1828), and what is small enough once it is stripped.
#[test]
fn what_osqueryd_takes_is_handed_on_unchanged() {
    let rig = Setup::new().own_flag("--logger_expand_events=false").start();
    for text in [
        format!("{}1{}", "{\"yara\":".repeat(31), "}".repeat(31)),
        "{\"yara\":".repeat(31) + "{}" + &"}".repeat(31),
        r#"{"schedule":{"q":{"query":"select 2 as two","interval":1,"description":"caf\udce9"}}}"#.to_owned(),
        format!("{{\"views\":{{}},{}\"b\":2}}", "\n    ".repeat(1 << 18)),
    ] {
        rig.server.always(Endpoint::Config, Some(Answer::status(200, &*text)));
        assert_eq!(rig.config().1, text);
    }
    let node_api = Setup::new().own_flag("--logger_expand_events=false").flag("tls_node_api", "true").start();
    for config in [
        "{\n // a comment\n\"schedule\":{\"q\":{\"query\":\"select 1\",\"interval\":10}}\n}",
        "# head\n{\"schedule\":{\"q\":{\"query\":\"select 1\",\"interval\":10}}}\n",
        "{\"schedule\":{\"q\":{\"query\":\"select \\\n 1;\",\"interval\":10}}}",
    ] {
        node_api.server.always(Endpoint::Config, Some(Answer::json(json!({"config": config}))));
        assert_eq!(node_api.config().1, config);
    }
}

#[test]
fn a_newer_osqueryd_takes_larger_configurations() {
    let rig = Setup::new()
        .own_flag("--logger_expand_events=false")
        .osqueryd(|options| options.version = "5.24.0".to_owned())
        .start();
    let config = json!({"schedule": {}, "padding": "x".repeat(2 << 20)});
    rig.server.set_config(config.clone());
    assert_eq!(serde_json::from_str::<Value>(&rig.config().1).unwrap(), config);
}

/// osqueryd's start waits for its first configuration.
#[test]
fn a_failure_at_the_start_is_tried_again_within_one_and_four_seconds() {
    let rig = Rig::start();
    rig.server.script(Endpoint::Config, [Answer::empty(500), Answer::empty(502)]);
    rig.config();
    let at: Vec<Instant> = rig.server.requests_to(Endpoint::Config).iter().map(|request| request.at).collect();
    let [first, second, third] = at.as_slice() else { panic!("{} requests", at.len()) };
    assert!(second.duration_since(*first) >= Duration::from_millis(500));
    assert!(third.duration_since(*second) >= Duration::from_secs(2));
}

#[test]
fn attempts_end_where_the_flag_says() {
    let rig = Setup::new().flag("config_tls_max_attempts", "2").start();
    rig.server.always(Endpoint::Config, Some(Answer::empty(500)));
    assert_eq!(rig.gen_config().code, 1);
    // Behind them a thread of its own goes on.
    let at: Vec<Instant> = rig.server.requests_to(Endpoint::Config).iter().map(|request| request.at).collect();
    assert!(at.len() >= 2 && at[1].duration_since(at[0]) <= Duration::from_secs(2), "{}", at.len());
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
    rig.server.always(Endpoint::Config, Some(Answer::html(200)));
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

/// The longest that osqueryd's start may be kept from its schedule by a server that doesn't answer.
const BOOT_LIMIT: Duration = Duration::from_secs(5);

/// A worker that has given osqueryd nothing yet gives it the last good configuration in time, whatever the trouble,
/// and pushes the server's when that is over.
fn boots_with_the_kept_configuration(trouble: impl Fn(&Rig), end: impl Fn(&Rig)) {
    let schedule = |name: &str| json!({"schedule": {name: {"query": "select 1", "interval": 60}}});
    let rig = Setup::new()
        .server(|server| server.config = schedule("old"))
        // What hangs hangs for longer than a genConfig may.
        .own_flag("--request_timeout=8")
        .start();
    let old = rig.config();
    let worker = rig.worker_pid();
    trouble(&rig);
    rig.server.set_config(schedule("new"));
    signal(worker, Signal::KILL);
    rig.osqueryd.wait("another worker", LIMIT, || (rig.worker_pid() != worker).then_some(()));
    let asked = Instant::now();
    assert_eq!(rig.config(), old);
    assert!(asked.elapsed() < BOOT_LIMIT, "{:?}", asked.elapsed());
    rig.said("giving osqueryd the last good configuration");
    end(&rig);
    rig.said("the configuration has come, and osqueryd has it");
    let names = || rig.osqueryd.schedule().into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    rig.osqueryd.wait("the newer one", LIMIT, || (names() == ["new"]).then_some(()));
    assert_eq!(rig.gen_config().code, 0);
}

/// The case of a server that hangs at boot: a known host had its schedule after 45 s.
#[test]
fn a_server_that_hangs_at_config_keeps_the_schedule_back_for_a_moment_only() {
    boots_with_the_kept_configuration(
        |rig| rig.server.always(Endpoint::Config, Some(Answer::hang())),
        |rig| rig.server.always(Endpoint::Config, None),
    );
}

#[test]
fn a_server_that_hangs_at_enroll_keeps_the_schedule_back_for_a_moment_only() {
    boots_with_the_kept_configuration(
        |rig| {
            rig.osqueryd.store_remove("configurations", "nodeKey");
            rig.server.always(Endpoint::Enroll, Some(Answer::hang()));
        },
        |rig| rig.server.always(Endpoint::Enroll, None),
    );
}

#[test]
fn a_server_that_refuses_connections_keeps_the_schedule_back_for_a_moment_only() {
    boots_with_the_kept_configuration(|rig| rig.server.stop(), |rig| rig.server.resume().unwrap());
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

fn schedule(names: &[&str]) -> Value {
    let queries = names.iter().map(|&name| (name.to_owned(), json!({"query": "select 1", "interval": 60})));
    json!({"schedule": queries.collect::<serde_json::Map<_, _>>()})
}

/// A daemon that won't ask again within any test, once a refresh has failed.
fn daemon_after_a_failed_refresh() -> Rig {
    let rig = Setup::new()
        .server(|server| server.config = schedule(&["old"]))
        .own_flag("--log_level=debug")
        .flag("config_refresh", "1")
        .flag("config_accelerated_refresh", "3600")
        .flag("config_tls_max_attempts", "1")
        .start_daemon();
    rig.server.always(Endpoint::Config, Some(Answer::html(502)));
    rig.osqueryd.wait("a refresh that fails", LIMIT, || (rig.osqueryd.config_interval() == 3600).then_some(()));
    rig
}

#[test]
fn after_a_refresh_that_failed_what_is_new_is_pushed_long_before_osqueryd_asks_again() {
    let rig = daemon_after_a_failed_refresh();
    rig.server.set_config(schedule(&["old", "new"]));
    rig.server.always(Endpoint::Config, None);
    rig.osqueryd.wait("the new schedule", LIMIT, || (rig.osqueryd.schedule().len() == 2).then_some(()));
    rig.said("the configuration has come, and osqueryd has it");
}

#[test]
fn after_a_refresh_that_failed_the_same_configuration_is_not_pushed() {
    let rig = daemon_after_a_failed_refresh();
    let given = rig.osqueryd.configs().len();
    rig.server.always(Endpoint::Config, None);
    rig.said("the server gives the configuration that osqueryd has");
    assert_eq!(rig.osqueryd.configs().len(), given);
    // And isn't asked for again.
    rig.server.forget_requests();
    rig.osqueryd.wait_briefly(Duration::from_secs(4));
    assert_eq!(rig.server.requests_to(Endpoint::Config).len(), 0);
}

#[test]
fn sighup_fetches_the_configuration_and_pushes_it() {
    let rig =
        Setup::new().server(|server| server.config = schedule(&["old"])).flag("config_refresh", "3600").start_daemon();
    rig.server.set_config(schedule(&["old", "new"]));
    signal(rig.pid(), Signal::HUP);
    rig.osqueryd.wait("the new schedule", LIMIT, || (rig.osqueryd.schedule().len() == 2).then_some(()));
}

/// One that asks the server only when it must, and has a schedule.
fn daemon_that_asks_once() -> Rig {
    Setup::new()
        .server(|server| server.config = schedule(&["old"]))
        .flag("config_refresh", "3600")
        .flag("config_tls_max_attempts", "1")
        .start_daemon()
}

#[test]
fn the_command_refresh_fetches_the_configuration_and_says_what_came_of_it() {
    let rig = daemon_that_asks_once();
    rig.server.set_config(schedule(&["old", "new"]));
    let done = "osqueryd has the configuration that the server gives now\n";
    assert_eq!(rig.refresh(), (Some(0), done.to_owned()));
    assert_eq!(rig.osqueryd.schedule().len(), 2);
    assert_eq!(rig.refresh(), (Some(0), done.to_owned()), "the same again");
    rig.server.always(Endpoint::Config, Some(Answer::html(502)));
    let (code, said) = rig.refresh();
    assert_eq!(code, Some(1));
    assert!(said.contains("502") && said.contains("the extension goes on asking"), "{said}");
    assert_eq!(rig.osqueryd.schedule().len(), 2);
    rig.server.set_config(schedule(&["old", "new", "newer"]));
    rig.server.always(Endpoint::Config, None);
    rig.osqueryd.wait("what came later", LIMIT, || (rig.osqueryd.schedule().len() == 3).then_some(()));
}

/// Issue 15: after a `Retry-After` of the year 9999, `refresh` did not ask the server for 1.5 hours.
#[test]
fn the_command_refresh_makes_its_request_although_the_server_asked_to_be_left_alone() {
    let rig = daemon_that_asks_once();
    rig.server.script(Endpoint::Config, [Answer::empty(503).header("Retry-After", "3600")]);
    assert_eq!(rig.refresh().0, Some(1));
    rig.server.set_config(schedule(&["old", "new"]));
    assert_eq!(rig.refresh().0, Some(0));
    assert_eq!(rig.osqueryd.schedule().len(), 2);
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
