//! The tables: what they tell after known events, that they wait for neither osqueryd nor the server, and the ways in which they are asked.

use std::time::{Duration, Instant};

use rcgen::date_time_ymd;
use rustix::process::Signal;
use serde_json::json;
use testkit::certs::{Authority, default_authority};
use testkit::osqueryd::Row;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup, child_of, line, signal, unix_time};

pub(crate) const TABLES: [&str; 4] =
    ["remote_tls_endpoints", "remote_tls_buffer", "remote_tls_enrollment", "remote_tls_rejected"];

/// However busy the machine is: an answer that waited for osqueryd or the server would take ten seconds or more.
const AT_ONCE: Duration = Duration::from_secs(5);

fn rows(rig: &Rig, sql: &str) -> Vec<Row> {
    rig.osqueryd.query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn endpoint(rig: &Rig, name: &str) -> Row {
    rows(rig, &format!("SELECT * FROM remote_tls_endpoints WHERE name = '{name}'")).remove(0)
}

fn stream(rig: &Rig, name: &str) -> Row {
    rows(rig, &format!("SELECT * FROM remote_tls_buffer WHERE stream = '{name}'")).remove(0)
}

fn enrollment(rig: &Rig) -> Row {
    let [row] = &rows(rig, "SELECT * FROM remote_tls_enrollment")[..] else { panic!("one row") };
    row.clone()
}

/// Waits until a row is as it should be.
fn wait(rig: &Rig, what: &str, read: impl Fn() -> Row, is: impl Fn(&Row) -> bool) -> Row {
    rig.osqueryd.wait(what, LIMIT, || Some(read()).filter(|row| is(row)))
}

fn number(row: &Row, column: &str) -> i64 {
    row[column].parse().unwrap_or_else(|_| panic!("{column} is no number in {row:?}"))
}

fn numbers<const N: usize>(row: &Row, columns: [&str; N]) -> [i64; N] {
    columns.map(|column| number(row, column))
}

fn is_just_now(time: i64) -> bool {
    (unix_time() - 60..=unix_time()).contains(&time)
}

fn kill_worker(rig: &Rig) {
    let worker = rig.worker_pid();
    signal(worker, Signal::KILL);
    rig.osqueryd.wait("another worker", LIMIT, || child_of(rig.pid()).filter(|&successor| successor != worker));
}

#[test]
fn a_success_and_a_failure_are_told_by_the_endpoint() {
    let rig = Rig::start();
    let names: Vec<String> = rows(&rig, "SELECT name FROM remote_tls_endpoints")
        .into_iter()
        .map(|mut row| row.remove("name").unwrap())
        .collect();
    assert_eq!(names, ["enroll", "config", "logger", "distributed read", "distributed write"]);
    let fresh = endpoint(&rig, "logger");
    assert_eq!(fresh["url"], format!("https://{}/log", rig.server.hostname()));
    let counted = ["requests", "failures", "consecutive_failures", "last_success", "last_failure", "last_status"];
    assert_eq!(numbers(&fresh, counted), [0; 6]);

    rig.log(&line(1));
    let succeeded = wait(&rig, "a success", || endpoint(&rig, "logger"), |row| row["last_status"] == "200");
    assert_eq!(numbers(&succeeded, ["requests", "failures", "consecutive_failures", "backoff_until"]), [1, 0, 0, 0]);
    assert!(is_just_now(number(&succeeded, "last_success")), "{succeeded:?}");
    assert_eq!((&*succeeded["last_failure"], &*succeeded["last_error"]), ("0", ""));
    let body = i64::try_from(rig.server.requests_to(Endpoint::Log)[0].wire_bytes).unwrap();
    let [sent, received] = numbers(&succeeded, ["bytes_out", "bytes_in"]);
    assert!((body + 50..body + 1000).contains(&sent), "{sent} bytes out, a body of {body}");
    assert!((20..1000).contains(&received), "{received} bytes in");

    rig.server.always(Endpoint::Log, Some(Answer::empty(500).delayed(Duration::from_millis(30))));
    rig.log(&line(2));
    let failed = wait(&rig, "failures", || endpoint(&rig, "logger"), |row| number(row, "failures") >= 2);
    assert_eq!(failed["last_status"], "500");
    assert_eq!(failed["failures"], failed["consecutive_failures"]);
    assert!(is_just_now(number(&failed, "last_failure")) && number(&failed, "latency_ms") >= 30, "{failed:?}");
    let error = &failed["last_error"];
    assert!(error.contains("logger (https://localhost:") && error.contains("HTTP 500"), "{error}");

    rig.server.always(Endpoint::Log, None);
    let recovered = wait(&rig, "a success", || endpoint(&rig, "logger"), |row| row["consecutive_failures"] == "0");
    assert_eq!((&recovered["last_error"], &*recovered["last_status"]), (error, "200"));
    assert!(number(&recovered, "failures") >= 2);
}

#[test]
fn no_answer_has_no_status() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    rig.config();
    rig.server.stop();
    assert_eq!(rig.gen_config().code, 1);
    let row = endpoint(&rig, "config");
    assert_eq!(numbers(&row, ["requests", "failures", "last_status"]), [2, 1, 0]);
    assert!(row["last_error"].contains("can't connect"), "{row:?}");
}

#[test]
fn an_answer_that_is_no_configuration_is_a_failure() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({}))));
    for _ in 0..2 {
        assert_eq!(rig.gen_config().code, 1);
    }
    let row = endpoint(&rig, "config");
    assert_eq!(numbers(&row, ["consecutive_failures", "last_success"]), [number(&row, "requests"), 0]);
    assert!(row["last_error"].contains("not a configuration"), "{row:?}");
}

#[test]
fn a_wait_that_the_server_asks_for_is_told() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    rig.config();
    for endpoint in [Endpoint::Config, Endpoint::Log] {
        rig.server.always(endpoint, Some(Answer::empty(503).header("Retry-After", "600")));
    }
    assert_eq!(rig.gen_config().code, 1);
    rig.log(&line(1));
    for name in ["config", "logger"] {
        let is = |row: &Row| number(row, "backoff_until") > 0;
        let until = number(&wait(&rig, "a back-off", || endpoint(&rig, name), is), "backoff_until");
        let asked = "the server answered HTTP 503; it asks to be left alone for 10 min";
        assert!(endpoint(&rig, name)["last_error"].ends_with(asked), "{:?}", endpoint(&rig, name));
        assert!(
            (unix_time() + 500..=unix_time() + 1201).contains(&until),
            "{name}: {until}, and it is {}",
            unix_time()
        );
    }
    assert_eq!(endpoint(&rig, "enroll")["backoff_until"], "0");
}

#[test]
fn lines_are_counted_while_they_wait_and_when_they_are_delivered() {
    let rig = Setup::new().flag("buffered_log_max", "500").own_flag("--buffer_max_bytes=5000000").start();
    rig.config();
    rig.server.stop();
    let (padding, first) = ("x".repeat(1000), unix_time());
    for n in 0..50 {
        rig.log(&format!("{{\"n\":{n},\"unixTime\":{},\"x\":\"{padding}\"}}", first + n));
    }
    let waiting = stream(&rig, "results");
    let counted = ["waiting_lines", "oldest_time", "accepted", "delivered", "dropped", "set_aside"];
    assert_eq!(numbers(&waiting, counted), [50, first, 50, 0, 0, 0]);
    let [bytes, file] = numbers(&waiting, ["waiting_bytes", "file_bytes"]);
    assert!((50_000..150_000).contains(&bytes) && file >= 50_000, "{waiting:?}");
    assert_eq!(numbers(&waiting, ["max_lines", "max_bytes", "min_free_bytes"]), [500, 5_000_000, 104_857_600]);
    rig.server.resume().unwrap();
    let is_empty = |row: &Row| row["waiting_lines"] == "0";
    let delivered = wait(&rig, "an empty buffer", || stream(&rig, "results"), is_empty);
    assert_eq!(numbers(&delivered, counted), [0, 0, 50, 50, 0, 0]);
    assert_eq!(delivered["waiting_bytes"], "0");
    let streams: Vec<Row> = rows(&rig, "SELECT stream, accepted, max_lines FROM remote_tls_buffer");
    let others = |row: &Row| (row["stream"].clone(), row["accepted"].clone(), row["max_lines"].clone());
    let [_, statuses, distributed] = &streams.iter().map(others).collect::<Vec<_>>()[..] else { panic!("{streams:?}") };
    assert_eq!(statuses, &("statuses".to_owned(), "0".to_owned(), "500".to_owned()));
    assert_eq!(distributed, &("distributed".to_owned(), "0".to_owned(), "1000".to_owned()));
}

#[test]
fn lines_that_wait_in_memory_are_counted_too() {
    let setup = Setup::new();
    let blocked = setup.file("blocked", "a file where the directory should be");
    let rig = setup.own_flag(&format!("--buffer_path={}", blocked.display())).start();
    rig.config();
    rig.server.stop();
    rig.log("{\"unixTime\":7}");
    rig.log("{\"unixTime\":8}");
    let row = stream(&rig, "results");
    assert_eq!(numbers(&row, ["waiting_lines", "waiting_bytes", "oldest_time", "file_bytes"]), [2, 30, 0, 0]);
}

#[test]
fn lines_that_are_dropped_are_counted() {
    let rig = Setup::new().flag("buffered_log_max", "10").start();
    rig.config();
    rig.server.stop();
    for n in 0..25 {
        rig.log(&line(n));
    }
    assert_eq!(numbers(&stream(&rig, "results"), ["waiting_lines", "accepted", "dropped"]), [10, 25, 15]);
}

#[test]
fn results_of_distributed_queries_that_are_kept_are_told() {
    let rig = Setup::new().flag("distributed_tls_max_attempts", "1").start();
    rig.config();
    rig.server.stop();
    let outcome = rig.call("distributed", &[("action", "writeResults"), ("results", "{\"queries\":{}}")]);
    assert_eq!(outcome.code, 0);
    let row = stream(&rig, "distributed");
    assert_eq!(numbers(&row, ["waiting_lines", "accepted"]), [1, 1]);
    assert!(is_just_now(number(&row, "oldest_time")), "{row:?}");
}

#[test]
fn lines_that_are_set_aside_are_shown_newest_first() {
    let rig = Setup::new().flag("logger_tls_max_linesize", "1000").start();
    assert_eq!(rows(&rig, "SELECT * FROM remote_tls_rejected"), Vec::<Row>::new());
    rig.log("this is no JSON");
    let too_long = format!("{{\"n\":1,\"x\":\"{}\"}}", "é".repeat(1000));
    rig.log(&too_long);
    let set_aside = |row: &Row| row["set_aside"] == "2" && row["waiting_lines"] == "0";
    let counted = wait(&rig, "set-aside lines", || stream(&rig, "results"), set_aside);
    assert_eq!(numbers(&counted, ["waiting_lines", "accepted", "delivered"]), [0, 2, 0]);
    let [long, no_json] = &rows(&rig, "SELECT * FROM remote_tls_rejected")[..] else { panic!("two rows") };
    assert_eq!(no_json["beginning"], "this is no JSON");
    assert_eq!((&*no_json["stream"], &*no_json["reason"], &*no_json["size"]), ("results", "it is no JSON", "15"));
    assert!(is_just_now(number(no_json, "time")), "{no_json:?}");
    assert_eq!(long["reason"], "it has more than 1000 bytes (logger_tls_max_linesize)");
    assert_eq!(long["size"], too_long.len().to_string());
    assert_eq!(long["beginning"], too_long.chars().take(200).collect::<String>());
    // They outlive the worker; the counters don't.
    kill_worker(&rig);
    assert_eq!(rows(&rig, "SELECT * FROM remote_tls_rejected").len(), 2);
    assert_eq!(numbers(&stream(&rig, "results"), ["accepted", "set_aside"]), [0, 0]);
}

#[test]
fn an_enrollment_is_told_from_its_failures_to_its_success() {
    let setup = Setup::new().flag("config_tls_max_attempts", "1").flag("tls_enroll_max_attempts", "2");
    let secret = setup.path().join("secret");
    let identity = default_authority().issue_server_with(|params| params.not_after = date_time_ymd(2035, 1, 1));
    let rig = setup.server(|server| server.identity = identity).start();
    let fresh = enrollment(&rig);
    assert_eq!(numbers(&fresh, ["enrolled", "since", "attempts", "server_certificate_expiry"]), [0; 4]);
    assert_eq!(fresh["secret_source"], format!("enroll_secret_path={}", secret.display()));
    assert_eq!(fresh["server_name"], rig.server.hostname());
    assert_eq!((&*fresh["last_error"], &*fresh["host_identifier"]), ("", ""));

    rig.server.always(Endpoint::Enroll, Some(Answer::empty(500)));
    assert_eq!(rig.gen_config().code, 1);
    let failed = enrollment(&rig);
    assert_eq!(numbers(&failed, ["enrolled", "since", "attempts"]), [0, 0, 2]);
    assert!(failed["last_error"].contains("enroll (https://localhost:"), "{failed:?}");
    assert!(failed["last_error"].contains("HTTP 500"), "{failed:?}");
    assert_eq!(number(&failed, "server_certificate_expiry"), date_time_ymd(2035, 1, 1).unix_timestamp());
    assert_eq!(numbers(&endpoint(&rig, "enroll"), ["requests", "consecutive_failures", "last_status"]), [2, 2, 500]);

    rig.server.always(Endpoint::Enroll, None);
    rig.config();
    let enrolled = enrollment(&rig);
    assert_eq!(numbers(&enrolled, ["enrolled", "attempts"]), [1, 3]);
    assert_eq!(enrolled["last_error"], "");
    assert_eq!(enrolled["since"], rig.osqueryd.store_get("configurations", "nodeKeyTime").unwrap());
    assert!(is_just_now(number(&enrolled, "since")), "{enrolled:?}");
    let host = rows(&rig, "SELECT hostname FROM system_info").remove(0).remove("hostname").unwrap();
    assert_eq!(enrolled["host_identifier"], host);
    assert_eq!(enrolled["client_certificate_expiry"], "0");

    // The next worker knows of it without asking the server.
    kill_worker(&rig);
    let is_enrolled = |row: &Row| row["enrolled"] == "1" && row["since"] == enrolled["since"];
    assert_eq!(wait(&rig, "the enrollment", || enrollment(&rig), is_enrolled)["attempts"], "0");
}

#[test]
fn a_key_of_the_built_in_plugins_and_one_that_is_rejected_are_told() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").flag("disable_reenrollment", "true").start();
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"schedule": {}}))));
    rig.osqueryd.store_put("configurations", "nodeKey", "a-key-from-before");
    rig.osqueryd.store_put("configurations", "nodeKeyTime", "1795400000");
    rig.config();
    assert_eq!(numbers(&enrollment(&rig), ["enrolled", "since", "attempts"]), [1, 1_795_400_000, 0]);

    let rig = Setup::new().flag("config_tls_max_attempts", "1").flag("tls_enroll_max_attempts", "1").start();
    rig.config();
    rig.server.always(Endpoint::Enroll, Some(Answer::empty(403)));
    rig.server.forget_nodes();
    assert_eq!(rig.gen_config().code, 1);
    assert_eq!(numbers(&enrollment(&rig), ["enrolled", "since", "attempts"]), [0, 0, 2]);
}

#[test]
fn enrollments_of_other_kinds_are_told() {
    let authority = Authority::new("clients");
    let setup = Setup::new();
    let (cert, key) = authority.issue_client("host").write(setup.path(), "client");
    let rig = setup
        .client_certificate(&cert, &key)
        .without_flag("enroll_secret_path")
        .flag("enroll_secret_env", "SECRET_OF_THE_TESTS")
        .flag("host_identifier", "specified")
        .flag("specified_identifier", "me")
        .osqueryd(|options| options.env.push(("SECRET_OF_THE_TESTS".into(), "s3cret-in-the-environment".into())))
        .server(|server| server.client_ca_pem = Some(authority.cert_pem()))
        .start();
    rig.server.always(Endpoint::Enroll, Some(Answer::json(json!({"node_key": ""}))));
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"schedule": {}}))));
    rig.config();
    let row = enrollment(&rig);
    assert_eq!((&*row["enrolled"], &*row["host_identifier"]), ("1", "me"));
    assert_eq!(row["secret_source"], "enroll_secret_env=SECRET_OF_THE_TESTS");
    assert!(is_just_now(number(&row, "since")), "{row:?}");
    assert_eq!(number(&row, "client_certificate_expiry"), date_time_ymd(4096, 1, 1).unix_timestamp());

    let rig = Setup::new().flag("disable_enrollment", "true").start();
    rig.server.always(Endpoint::Config, Some(Answer::json(json!({"schedule": {}}))));
    rig.config();
    assert_eq!(numbers(&enrollment(&rig), ["enrolled", "since", "attempts"]), [0; 3]);
}

#[test]
fn tables_answer_at_once_while_the_server_hangs_and_many_lines_wait() {
    let setup = Setup::new();
    let directory = setup.path().join("remote_tls/results");
    std::fs::create_dir_all(&directory).unwrap();
    let lines: String = (1..=1_000_000).map(|n| format!("{{\"unixTime\":{}}}\n", 1_795_400_000 + n)).collect();
    // In several files, as a journal has them.
    let (older, newer) = lines.split_at(lines.len() / 1_000_000 * 900_000);
    std::fs::write(directory.join("0000000000000000.ndjson"), older).unwrap();
    std::fs::write(directory.join("0000000000900000.ndjson"), newer).unwrap();
    let rig = setup.start();
    for endpoint in [Endpoint::Enroll, Endpoint::Config, Endpoint::Log] {
        rig.server.always(endpoint, Some(Answer::hang()));
    }
    std::thread::scope(|scope| {
        let config = scope.spawn(|| rig.gen_config());
        rig.server
            .wait("a request that hangs", LIMIT, |server| server.requests_to(Endpoint::Enroll).first().map(|_| ()));
        let began = Instant::now();
        for table in TABLES {
            rows(&rig, &format!("SELECT * FROM {table}"));
        }
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        let row = stream(&rig, "results");
        assert_eq!(numbers(&row, ["waiting_lines", "oldest_time"]), [1_000_000, 1_795_400_001]);
        rig.server.stop();
        for endpoint in [Endpoint::Enroll, Endpoint::Config, Endpoint::Log] {
            rig.server.always(endpoint, None);
        }
        rig.server.resume().unwrap();
        config.join().unwrap();
    });
}

#[test]
fn tables_do_not_wait_for_osqueryd() {
    let rig = Rig::start();
    rig.log(&line(1));
    rig.delivered(1);
    rig.osqueryd.hang(true);
    std::thread::scope(|scope| {
        // Asks osqueryd for its flags or the key, and so holds the one connection to it: as a query of ours does that osqueryd
        // is in the middle of when it asks for one of our tables.
        let config = scope.spawn(|| rig.gen_config());
        rig.osqueryd.wait("a call of ours", LIMIT, || {
            let transcript = rig.osqueryd.transcript();
            let hangs = transcript.rfind("the manager hangs: true").unwrap();
            ["options", "call"]
                .iter()
                .any(|call| transcript[hangs..].contains(&format!("manager: {call}")))
                .then_some(())
        });
        let began = Instant::now();
        for table in TABLES {
            rows(&rig, &format!("SELECT * FROM {table}"));
        }
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        rig.osqueryd.hang(false);
        config.join().unwrap();
    });
}

#[test]
fn a_table_is_asked_by_the_schedule_and_by_distributed_queries() {
    let rig = Setup::new()
        .flag("disable_distributed", "false")
        .flag("distributed_interval", "1")
        .server(|server| {
            server.config = json!({"schedule": {"buffers": {
                "query": "SELECT stream, max_lines FROM remote_tls_buffer", "interval": 1, "snapshot": true,
            }}});
        })
        .osqueryd(|options| {
            options.scheduler = true;
            options.distributed = true;
        })
        .start_daemon();
    let snapshot = rig
        .server
        .wait("a snapshot", LIMIT, |server| server.results().into_iter().find(|line| line["name"] == "buffers"));
    let streams = ["results", "statuses", "distributed"];
    let limits = ["1000000", "1000000", "1000"];
    let expected: Vec<_> =
        streams.iter().zip(limits).map(|(stream, lines)| json!({"stream": stream, "max_lines": lines})).collect();
    assert_eq!(snapshot["snapshot"], json!(expected));
    rig.server.add_query("enrolled", "SELECT enrolled, server_name FROM remote_tls_enrollment");
    let written = rig.server.wait("the results", LIMIT, |server| server.written().into_iter().next());
    assert_eq!(written["queries"]["enrolled"], json!([{"enrolled": "1", "server_name": rig.server.hostname()}]));
}

#[test]
fn a_table_tells_its_columns_can_t_be_written_to_and_knows_no_other_action() {
    let rig = Rig::start();
    let call = |table: &str, action: &str| {
        rig.osqueryd.call("table", table, &[("action", action.as_bytes()), ("context", b"{}")]).unwrap()
    };
    for table in TABLES {
        let columns = call(table, "columns").rows;
        let attached = rows(&rig, &format!("SELECT name, type FROM pragma_table_info('{table}')"));
        let of = |row: &Row| (row["name"].clone(), row["type"].clone());
        assert_eq!(columns.iter().map(of).collect::<Vec<_>>(), attached.iter().map(of).collect::<Vec<_>>());
        assert!(columns.iter().all(|row| row["id"] == "column" && row["op"] == "0"), "{columns:?}");
        // Each row has each column, and nothing else.
        for row in call(table, "generate").rows {
            assert_eq!(
                row.keys().collect::<std::collections::BTreeSet<_>>(),
                columns.iter().map(|row| &row["name"]).collect()
            );
        }
        for action in ["insert", "update", "delete"] {
            assert_eq!(call(table, action).rows, [Row::from([("status".to_owned(), "readonly".to_owned())])]);
        }
        let outcome = call(table, "explode");
        assert_eq!(outcome.code, 1);
        assert!(outcome.message.contains(table) && outcome.message.contains("explode"), "{}", outcome.message);
    }
    assert_eq!(rig.osqueryd.call("table", "remote_tls", &[]).unwrap_err(), "Cannot call registry item: remote_tls");
}
