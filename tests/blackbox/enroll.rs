//! Enrollment and the node key.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::certs::Authority;
use testkit::osqueryd::StatusLine;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, SECRET, Setup, line, signal, unix_time};

fn enrollments(rig: &Rig) -> Vec<Value> {
    rig.server.requests_to(Endpoint::Enroll).into_iter().map(|request| request.json.unwrap()).collect()
}

fn enrollment_times(rig: &Rig) -> Vec<Instant> {
    rig.server.requests_to(Endpoint::Enroll).into_iter().map(|request| request.at).collect()
}

#[test]
fn an_enrollment_has_the_secret_and_the_host_s_details() {
    let rig = Rig::start();
    rig.config();
    let [body] = &enrollments(&rig)[..] else { panic!("one enrollment") };
    let members: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(members, ["enroll_secret", "host_identifier", "platform_type", "host_details"]);
    assert_eq!(body["enroll_secret"], SECRET);
    assert_eq!(body["platform_type"], "9");
    let details = body["host_details"].as_object().unwrap();
    for table in ["os_version", "osquery_info", "system_info"] {
        let row = details[table].as_object().unwrap();
        assert!(!row.is_empty() && row.values().all(Value::is_string), "{table}: {row:?}");
    }
    assert_eq!(details["osquery_info"]["version"], "5.23.0");
    assert_eq!(body["host_identifier"], details["system_info"]["hostname"]);
    // The columns are the tables' own, as the built-in enrollment sends them (golden/plain.json), but without NUL bytes.
    let has = |table: &str, column: &str| details[table].get(column).is_some();
    assert!(has("os_version", "pid_with_namespace") && has("system_info", "cpu_microcode"), "{details:?}");
    assert!(!has("os_version", "build") && !has("system_info", "hardware_serial"), "{details:?}");
    assert_eq!(details["system_info"]["cpu_brand"], "Stand-in(R) Processor");
}

/// The case of `--disable_tables` with one of the four (kolide/fleet#2164, osquery#6795): the host never enrolled.
#[test]
fn tables_that_are_switched_off_are_among_the_details_all_the_same() {
    for (flag, value) in
        [("disable_tables", "platform_info,os_version,osquery_info,system_info"), ("enable_tables", "time")]
    {
        let rig = Setup::new().flag(flag, value).start();
        assert!(rig.osqueryd.query("select * from system_info").is_err(), "SQL has no such table");
        rig.config();
        let body = enrollments(&rig).remove(0);
        let tables: Vec<&String> = body["host_details"].as_object().unwrap().keys().collect();
        assert_eq!(tables, ["os_version", "osquery_info", "system_info", "platform_info"]);
        assert_eq!(body["platform_type"], "9");
        assert_eq!(body["host_identifier"], body["host_details"]["system_info"]["hostname"]);
        let request = rig.server.requests_to(Endpoint::Config).remove(0);
        assert_eq!(request.header("user-agent"), Some("osquery/5.23.0"));
    }
}

#[test]
fn a_table_without_a_row_is_left_out() {
    let rig = Setup::new().osqueryd(|options| options.platform_info = false).start();
    rig.config();
    let details = enrollments(&rig)[0]["host_details"].clone();
    let tables: Vec<&String> = details.as_object().unwrap().keys().collect();
    assert_eq!(tables, ["os_version", "osquery_info", "system_info"]);
}

#[test]
fn the_key_is_kept_where_the_built_in_plugins_keep_it() {
    let rig = Rig::start();
    let before = unix_time();
    rig.config();
    assert_eq!(rig.stored_key().as_ref(), rig.server.node_keys().first());
    let time: i64 = rig.osqueryd.store_get("configurations", "nodeKeyTime").unwrap().parse().unwrap();
    assert!((before..=unix_time()).contains(&time), "{time}");
}

#[test]
fn a_key_of_the_built_in_plugins_is_used_and_a_changed_one_too() {
    let rig = Rig::start();
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"schedule": {}}))));
    let asked_with = || {
        rig.config();
        rig.server.requests_to(Endpoint::Config).last().unwrap().node_key().unwrap()
    };
    rig.osqueryd.store_put("configurations", "nodeKey", "a-key-from-before");
    assert_eq!(asked_with(), "a-key-from-before");
    rig.osqueryd.store_put("configurations", "nodeKey", "another-one");
    assert_eq!(asked_with(), "another-one");
    assert_eq!(enrollments(&rig).len(), 0);
}

#[test]
fn identifiers() {
    let identifier = |flags: &[(&str, &str)]| {
        let setup = flags.iter().fold(Setup::new(), |setup, (name, value)| setup.flag(name, value));
        let rig = setup.start();
        rig.config();
        let body = enrollments(&rig).remove(0);
        (body["host_identifier"].as_str().unwrap().to_owned(), body["host_details"].clone())
    };
    let (uuid, details) = identifier(&[("host_identifier", "uuid")]);
    assert_eq!(uuid, details["system_info"]["uuid"]);
    let (instance, details) = identifier(&[("host_identifier", "instance")]);
    assert_eq!(instance, details["osquery_info"]["instance_id"]);
    assert_eq!(identifier(&[("host_identifier", "specified"), ("specified_identifier", "me")]).0, "me");
    let (unknown, details) = identifier(&[("host_identifier", "serial")]);
    assert_eq!(unknown, details["system_info"]["hostname"]);
}

/// The case of `host_identifier=ephemeral`: there was one identifier at the enrollment, and another in lines.
#[test]
fn an_ephemeral_identifier_is_the_one_that_osqueryd_s_lines_have() {
    let rig = Setup::new().flag("host_identifier", "ephemeral").start();
    // osqueryd's start waits for its configuration, and writes no line before it has an answer.
    let asked = Instant::now();
    let outcome = rig.gen_config();
    assert_eq!(outcome.code, 1);
    assert!(outcome.message.contains("has not shown its ephemeral host identifier yet"), "{}", outcome.message);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(enrollments(&rig).len(), 0);
    rig.osqueryd.print(&StatusLine::new(0, "init.cpp", 1, "the first line"));
    rig.osqueryd.init_logger();
    rig.config();
    let line = rig.server.wait("a status line", LIMIT, |server| server.statuses().into_iter().next());
    let [body] = &enrollments(&rig)[..] else { panic!("one enrollment") };
    assert_eq!(body["host_identifier"], line["hostIdentifier"]);
    assert_eq!(line["hostIdentifier"].as_str().unwrap().len(), 36);
    assert_ne!(line["hostIdentifier"], body["host_details"]["system_info"]["uuid"]);
}

#[test]
fn an_osqueryd_with_an_ephemeral_identifier_starts_and_gets_its_schedule() {
    let rig = Setup::new()
        .flag("host_identifier", "ephemeral")
        .server(|server| server.config = json!({"schedule": {"q": {"query": "select 1", "interval": 60}}}))
        .start_daemon();
    rig.osqueryd.wait("the schedule", LIMIT, || (rig.osqueryd.schedule().len() == 1).then_some(()));
    let line = rig.server.wait("a status line", LIMIT, |server| server.statuses().into_iter().next());
    assert_eq!(enrollments(&rig)[0]["host_identifier"], line["hostIdentifier"]);
    assert_eq!(enrollments(&rig).len(), 1);
}

#[test]
fn where_no_line_comes_an_ephemeral_identifier_is_our_own() {
    let rig = Setup::new().flag("host_identifier", "ephemeral").flag("logger_plugin", "filesystem").start();
    rig.osqueryd.wait("an enrollment", LIMIT, || (rig.gen_config().code == 0).then_some(()));
    assert_eq!(enrollments(&rig)[0]["host_identifier"].as_str().unwrap().len(), 36);
}

#[test]
fn the_secret_can_come_from_the_environment_and_can_be_missing() {
    let rig = Setup::new()
        .without_flag("enroll_secret_path")
        .flag("enroll_secret_env", "SECRET_OF_THE_TESTS")
        .osqueryd(|options| options.env.push(("SECRET_OF_THE_TESTS".into(), format!(" {SECRET} "))))
        .start();
    rig.config();
    assert_eq!(enrollments(&rig)[0]["enroll_secret"], SECRET);

    let rig = Setup::new().without_flag("enroll_secret_path").server(|server| server.enroll_secret = None).start();
    rig.config();
    assert_eq!(enrollments(&rig)[0]["enroll_secret"], "");
}

#[test]
fn a_secret_that_can_t_be_had_is_named_and_nothing_is_asked() {
    let rig = Setup::new().flag("enroll_secret_path", "/no/such/secret").flag("tls_enroll_max_attempts", "1").start();
    let outcome = rig.gen_config();
    assert_eq!(outcome.code, 1);
    assert!(outcome.message.contains("--enroll_secret_path=/no/such/secret"), "{}", outcome.message);
    assert_eq!(enrollments(&rig).len(), 0);
}

#[test]
fn a_rotated_secret_is_used_at_the_next_attempt() {
    let setup = Setup::new();
    let secret = setup.file("rotating", "wrong");
    let rig = setup.flag("enroll_secret_path", secret.to_str().unwrap()).start();
    std::thread::scope(|scope| {
        let config = scope.spawn(|| rig.config());
        rig.server
            .wait("a refused enrollment", LIMIT, |server| server.requests_to(Endpoint::Enroll).first().map(|_| ()));
        fs::write(&secret, SECRET).unwrap();
        config.join().unwrap();
    });
}

#[test]
fn failed_attempts_wait_with_the_square() {
    let rig = Setup::new().flag("tls_enroll_max_interval", "600").start();
    rig.server.script(Endpoint::Enroll, [Answer::empty(500), Answer::status(200, "{}")]);
    rig.config();
    let at = enrollment_times(&rig);
    assert_eq!(at.len(), 3);
    assert!(at[1].duration_since(at[0]) >= Duration::from_millis(500));
    assert!(at[2].duration_since(at[1]) >= Duration::from_secs(2));
}

#[test]
fn the_longest_wait_and_the_number_of_attempts_are_the_flags() {
    let rig = Setup::new().flag("tls_enroll_max_attempts", "4").start();
    rig.server.always(Endpoint::Enroll, Some(Answer::empty(500)));
    let outcome = rig.gen_config();
    assert_eq!(outcome.code, 1);
    assert!(outcome.message.contains("not enrolled") && outcome.message.contains("500"), "{}", outcome.message);
    let at = enrollment_times(&rig);
    assert_eq!(at.len(), 4);
    assert!(at[3].duration_since(at[0]) < Duration::from_secs(9), "one second between two, not 1, 4 and 9");
    rig.said("enrollment failed in 4 attempts");
    // The next need begins another round.
    rig.server.always(Endpoint::Enroll, None);
    rig.config();
}

#[test]
fn an_answer_without_a_key_is_no_enrollment() {
    let rig = Rig::start();
    rig.server.script(
        Endpoint::Enroll,
        [
            Answer::status(200, include_str!("samples/02f_enroll_response_empty_key.json")),
            Answer::status(401, include_str!("samples/02e_enroll_response_rejected_http401.json")),
            Answer::json(json!({"node_key": ""})),
            Answer::html(200),
        ],
    );
    rig.config();
    assert_eq!(enrollments(&rig).len(), 5);
}

#[test]
fn keys_that_servers_give_in_their_own_ways_are_taken() {
    for (answer, key) in [
        (include_str!("samples/02_enroll_response_ok.json"), "q/8Zt+V1n0aLpKfR2sWx7yBc3uMdGjHe"),
        (include_str!("samples/02b_enroll_response_ok_flag.json"), "q/8Zt+V1n0aLpKfR2sWx7yBc3uMdGjHe"),
        (include_str!("samples/02c_enroll_response_id_key.json"), "node-4411"),
        (include_str!("samples/02d_enroll_response_key_and_invalid_true.json"), "fpllngzieyoh43e0133o"),
    ] {
        let rig = Rig::start();
        rig.server.always(Endpoint::Enroll, Some(Answer::status(200, answer)));
        rig.server.always(Endpoint::Config, Some(Answer::json(json!({"schedule": {}}))));
        rig.config();
        assert_eq!(rig.stored_key().as_deref(), Some(key));
        assert_eq!(rig.server.requests_to(Endpoint::Config)[0].node_key().as_deref(), Some(key));
    }
}

#[test]
fn many_calls_at_once_make_one_enrollment() {
    let rig = Rig::start();
    rig.server.always(Endpoint::Enroll, Some(Answer::default_behaviour().delayed(Duration::from_millis(500))));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| rig.config());
        }
        rig.log(&line(1));
    });
    rig.delivered(1);
    assert_eq!(enrollments(&rig).len(), 1);
}

#[test]
fn a_rejected_key_is_given_up_and_another_one_asked_for() {
    let rig = Rig::start();
    rig.config();
    let first = rig.stored_key();
    for answer in [
        Answer::status(200, include_str!("samples/10f_distributed_read_response_node_invalid.json")),
        Answer::status(401, include_str!("samples/04d_config_response_invalid_http401.json")),
    ] {
        rig.server.script(Endpoint::Config, [answer]);
        rig.config();
    }
    assert_eq!(enrollments(&rig).len(), 3);
    assert_ne!(rig.stored_key(), first);
}

#[test]
fn a_key_that_had_worked_is_replaced_at_a_moment_of_this_host_s_own() {
    let rig = Setup::new().own_flag("--reenroll_within=80000").start();
    rig.config();
    rig.server.forget_nodes();
    let asked = Instant::now();
    let outcome = rig.gen_config();
    assert_eq!(outcome.code, 1);
    assert!(outcome.message.contains("another one is asked for in "), "{}", outcome.message);
    assert!(asked.elapsed() < Duration::from_secs(5), "the call did not wait for it: {:?}", asked.elapsed());
    assert_eq!((enrollments(&rig).len(), rig.stored_key()), (1, None));
    // An operator need not wait.
    let (code, text) = rig.refresh();
    assert_eq!((code, enrollments(&rig).len()), (Some(0), 2), "{text}");
    rig.server.forget_nodes();
    assert_eq!(rig.gen_config().code, 1);
    assert_eq!((enrollments(&rig).len(), rig.stored_key()), (2, None));
    // A key that another process has stored meanwhile is used.
    rig.osqueryd.store_put("configurations", "nodeKey", "another-one");
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"schedule": {}}))));
    rig.config();
    let rig = Setup::new().own_flag("--reenroll_within=4").start();
    rig.config();
    rig.server.forget_nodes();
    rig.osqueryd.wait("another configuration", LIMIT, || (rig.gen_config().code == 0).then_some(()));
    assert_eq!(enrollments(&rig).len(), 2);
}

#[test]
fn only_the_rejected_key_is_deleted() {
    let rig = Rig::start();
    rig.config();
    // While the request with the old key is in flight, the built-in plugins' key takes its place.
    rig.server.script(
        Endpoint::Config,
        [
            Answer::json(json!({"node_invalid": true})).delayed(Duration::from_secs(1)),
            Answer::json(json!({"schedule": {}})),
        ],
    );
    rig.server.forget_requests();
    std::thread::scope(|scope| {
        let config = scope.spawn(|| rig.config());
        rig.server.wait("the request", LIMIT, |server| server.requests_to(Endpoint::Config).first().map(|_| ()));
        rig.osqueryd.store_put("configurations", "nodeKey", "put-there-meanwhile");
        config.join().unwrap();
    });
    assert_eq!(rig.stored_key().as_deref(), Some("put-there-meanwhile"));
    assert_eq!(enrollments(&rig).len(), 0);
}

#[test]
fn an_error_without_node_invalid_is_no_reason_to_enroll_again() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    rig.config();
    for status in [401, 403] {
        rig.server.script(Endpoint::Config, [Answer::status(status, "{\"error\":\"no\"}")]);
        assert_eq!(rig.gen_config().code, 1);
    }
    rig.config();
    assert_eq!(enrollments(&rig).len(), 1);
}

#[test]
fn a_server_that_rejects_the_keys_that_it_gives_sees_no_loop_of_enrollments() {
    let rig = Setup::new()
        .flag("config_tls_max_attempts", "1")
        .flag("tls_enroll_max_interval", "600")
        .flag("tls_enroll_max_attempts", "3")
        .start();
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"node_invalid": true}))));
    assert_eq!(rig.gen_config().code, 1);
    assert_eq!(rig.gen_config().code, 1);
    let at = enrollment_times(&rig);
    assert!(at.len() <= 4, "{} enrollments", at.len());
    assert!(at[1].duration_since(at[0]) >= Duration::from_millis(500));
    assert!(at[2].duration_since(at[1]) >= Duration::from_secs(2));
}

#[test]
fn reenrollment_can_be_disabled() {
    let rig = Setup::new().flag("disable_reenrollment", "true").flag("config_tls_max_attempts", "1").start();
    rig.config();
    let key = rig.stored_key();
    rig.server.forget_nodes();
    assert_eq!(rig.gen_config().code, 1);
    assert_eq!((rig.stored_key(), enrollments(&rig).len()), (key, 1));
}

#[test]
fn enrollment_can_be_disabled() {
    let rig = Setup::new().flag("disable_enrollment", "true").start();
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"schedule": {}}))));
    rig.config();
    let request = rig.server.requests_to(Endpoint::Config).remove(0);
    assert_eq!(request.json.as_ref().unwrap(), &json!({"etag": "", "node_key": ""}));
    assert_eq!(request.header("authorization"), None);
    assert_eq!(enrollments(&rig).len(), 0);
}

#[test]
fn enroll_always_asks_for_a_new_key_once() {
    let rig = Setup::new().flag("enroll_always", "true").start();
    rig.osqueryd.store_put("configurations", "nodeKey", "an-old-key");
    rig.config();
    rig.config();
    assert_eq!(enrollments(&rig).len(), 1);
    assert_eq!(rig.stored_key().as_ref(), rig.server.node_keys().first());
    // Nor does a worker that replaces another one ask again.
    signal(rig.worker_pid(), Signal::KILL);
    rig.said("starting another one");
    rig.config();
    assert_eq!(enrollments(&rig).len(), 1);
}

#[test]
fn with_a_client_certificate_a_blank_key_is_a_success() {
    let authority = Authority::new("clients");
    let setup = Setup::new();
    let (cert, key) = authority.issue_client("host").write(setup.path(), "client");
    let rig = setup
        .client_certificate(&cert, &key)
        .server(|server| server.client_ca_pem = Some(authority.cert_pem()))
        .start();
    rig.server.always(Endpoint::Enroll, Some(Answer::json(json!({"node_key": ""}))));
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"schedule": {}}))));
    rig.config();
    rig.config();
    assert_eq!(enrollments(&rig).len(), 1);
    let request = rig.server.requests_to(Endpoint::Config).remove(0);
    assert_eq!(request.json.as_ref().unwrap(), &json!({"etag": "", "node_key": ""}));
}

#[test]
fn a_server_that_rejects_key_after_key_sees_a_bounded_number_of_enrollments() {
    // Every third configuration request is answered with node_invalid, so each key has worked before.
    let rig = Setup::new().own_flag("--enroll_max_per_hour=4").server(|server| server.invalid_every = Some(3)).start();
    let refused = (0..20).map(|_| rig.gen_config()).find(|outcome| outcome.code != 0).expect("a refusal");
    assert!(refused.message.contains("enroll_max_per_hour=4"), "{}", refused.message);
    // Half of an hour's enrollments came at once.
    assert_eq!(rig.server.requests_to(Endpoint::Enroll).len(), 2);
    // The next one is not due for half an hour, and no call waits for it.
    let asked = Instant::now();
    rig.gen_config();
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    rig.log(&line(1));
}

/// The case of `enroll_max_per_hour=4`: such a server saw seven enrollments in 114 s.
#[test]
fn a_server_that_grants_a_key_and_refuses_it_at_once_sees_no_more_enrollments_than_are_allowed() {
    let rig = Setup::new().own_flag("--enroll_max_per_hour=4").flag("config_tls_max_attempts", "1").start();
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"node_invalid": true}))));
    let throttled = || Some(rig.gen_config().message).filter(|message| message.contains("enroll_max_per_hour=4"));
    rig.osqueryd.wait("the end of the allowance", LIMIT, throttled);
    // A refused key's own wait is a second, after which another one would be asked for.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(4) {
        assert_eq!(rig.gen_config().code, 1);
        rig.osqueryd.wait_briefly(Duration::from_millis(200));
    }
    let at = enrollment_times(&rig);
    assert_eq!(at.len(), 2, "half of an hour's at once; the next one is due half an hour after the first");
    // What is said of it is true whenever it is said.
    let seconds = |text: &str| -> f64 {
        let (_, rest) = text.split_once("the next one waits for ").unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let said = seconds(&throttled().expect("it still waits"));
    let left = 1800.0 - at[0].elapsed().as_secs_f64();
    assert!((left - 1.0..left + 3.0).contains(&said), "{said} s, and it is {left} s");
    let log = rig.stderr();
    let logged: Vec<f64> = log.lines().filter(|line| line.contains("enrollment waits: ")).map(seconds).collect();
    assert!(
        !logged.is_empty() && logged.iter().all(|wait| (left..=1800.0).contains(wait)),
        "{logged:?}, {left}: {log}"
    );
}
