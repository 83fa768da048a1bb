//! Delivery: what is sent, when it is removed, what happens when the server, the disk or the lines are bad.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use testkit::server::{Answer, Endpoint, Recorded};

use crate::rig::{LIMIT, Rig, Setup, line};

/// How many lines a log request has.
fn lines_of(request: &Recorded) -> usize {
    request.json.as_ref().unwrap()["data"].as_array().unwrap().len()
}

#[test]
fn lines_arrive_in_order_as_they_were() {
    let rig = Setup::new().own_flag("--logger_expand_events=false").start();
    let samples = [
        include_str!("samples/05_log_line_added.json"),
        include_str!("samples/05_log_line_numerics.json"),
        include_str!("samples/05_log_line_snapshot.json"),
        include_str!("samples/05_log_line_batch_diffresults.json"),
    ];
    for sample in samples {
        rig.log(sample.trim());
    }
    rig.server.wait("the lines", LIMIT, |server| (server.result_count() == samples.len()).then_some(()));
    let bodies: String =
        rig.result_requests().iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    for sample in samples {
        assert!(bodies.contains(sample.trim()), "not byte by byte: {sample}");
    }
    let names: Vec<Value> = rig.server.results().iter().map(|line| line["name"].clone()).collect();
    assert_eq!(json!(names), json!(["pack/Global/listening", "uptime", "pack/team-3/disk", "procs"]));
}

#[test]
fn lines_are_taken_at_once_while_the_server_hangs() {
    let rig = Rig::start();
    rig.log(&line(0));
    rig.delivered(1);
    for endpoint in [Endpoint::Log, Endpoint::Enroll, Endpoint::Config] {
        rig.server.always(endpoint, Some(Answer::hang()));
    }
    rig.log(&line(1));
    rig.server.wait("a request that hangs", LIMIT, |_| (rig.result_requests().len() >= 2).then_some(()));
    // Hundreds of lines while the request is in flight; one that waited for it would take 16 s.
    let begun = std::time::Instant::now();
    for n in 2..300 {
        rig.log(&line(n));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    rig.server.stop();
    for endpoint in [Endpoint::Log, Endpoint::Enroll, Endpoint::Config] {
        rig.server.always(endpoint, None);
    }
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(300), (0..300).collect::<Vec<u64>>());
}

#[test]
fn lines_are_taken_while_there_is_no_server_and_delivered_when_there_is() {
    let rig = Rig::start();
    rig.server.stop();
    for n in 0..50 {
        rig.log(&line(n));
    }
    rig.said("can't be delivered and are kept");
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(50), (0..50).collect::<Vec<u64>>());
    rig.said("result lines are delivered again");
}

#[test]
fn lines_are_taken_while_the_disk_refuses_them() {
    let setup = Setup::new();
    let blocked = setup.path().join("blocked");
    fs::write(&blocked, "a file where the directory should be").unwrap();
    let rig = setup.own_flag(&format!("--buffer_path={}", blocked.display())).start();
    rig.log(&line(0));
    rig.log(&line(1));
    rig.said("wait in memory until it can be written again");
    fs::remove_file(&blocked).unwrap();
    assert_eq!(rig.delivered(2), [0, 1]);
}

#[test]
fn lines_are_taken_and_delivered_while_files_may_not_grow() {
    let setup = Setup::new();
    let limited =
        setup.file("limited.ext", &format!("#!/bin/sh\nulimit -f 600\nexec '{}' \"$@\"\n", crate::rig::BINARY));
    fs::set_permissions(&limited, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let rig = setup.osqueryd(|options| options.extensions = vec![limited]).start();
    rig.config();
    rig.server.stop();
    let count = 1000;
    for n in 0..count {
        rig.log(&format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(2000)));
    }
    rig.said("wait in memory until it can be written again");
    rig.server.resume().unwrap();
    rig.delivered(count as usize);
    assert!(!rig.stderr().contains("dropped"), "{}", rig.stderr());
    let delivered: std::collections::BTreeSet<u64> = crate::rig::numbers(&rig.server.results()).into_iter().collect();
    assert_eq!(delivered.len(), count as usize, "every line, whatever was delivered twice");
}

#[test]
fn no_answer_but_a_success_removes_lines() {
    let rig = Rig::start();
    let refusals = vec![
        Answer::empty(500),
        Answer::html(502),
        Answer::empty(503),
        Answer::empty(403),
        Answer::empty(413),
        Answer::empty(429).header("retry-after", "1"),
        Answer::status(500, include_str!("samples/08c_log_response_error_http500.json")),
        Answer::status(200, "{\"error\":\"no room\"}"),
        Answer::status(200, "{\"status\":\"error\",\"message\":\"no\"}"),
        Answer::html(200),
        Answer::status(200, "[]"),
        Answer::status(200, "{"),
        Answer::drop_connection(),
        Answer::drop_mid_request(),
        Answer::truncated("{}", 100),
        Answer::status(301, "").header("location", "https://localhost:1/elsewhere"),
    ];
    let count = refusals.len();
    rig.server.script(Endpoint::Log, refusals);
    rig.log(&line(0));
    rig.log(&line(1));
    // After refusals not always in order.
    let mut delivered = rig.delivered(2);
    delivered.sort_unstable();
    assert_eq!(delivered, [0, 1]);
    assert!(rig.result_requests().len() >= count - 2, "{} requests", rig.result_requests().len());
    // Nothing is left: what comes next comes alone.
    rig.settled();
    rig.server.forget_requests();
    rig.log(&line(2));
    assert_eq!(rig.delivered(1), [2]);
}

#[test]
fn a_request_whose_answer_was_lost_is_made_again() {
    let rig = Rig::start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.server.script(Endpoint::Log, [Answer::lost(), Answer::empty(500)]);
    rig.log(&line(1));
    // Delivered twice is the price of never lost.
    assert_eq!(rig.delivered(3), [0, 1, 1]);
}

#[test]
fn lines_outlive_the_extension() {
    let rig = Rig::start();
    rig.server.stop();
    for n in 0..20 {
        rig.log(&line(n));
    }
    rig.kill_both_and_wait();
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(20), (0..20).collect::<Vec<u64>>());
    rig.said("20 lines waited in the results journal at the start");
}

#[test]
fn batches_are_bounded_by_lines_and_the_flush_does_not_stop_before_the_buffer_is_empty() {
    let rig = Setup::new().flag("logger_tls_max_lines", "7").flag("logger_tls_period", "3").start();
    rig.server.stop();
    for n in 0..50 {
        rig.log(&line(n));
    }
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(50), (0..50).collect::<Vec<u64>>());
    let requests: Vec<_> = rig.result_requests().into_iter().filter(|request| request.answer_status == 200).collect();
    let sizes: Vec<usize> =
        requests.iter().filter(|request| !request.answer_body.contains("node_invalid")).map(lines_of).collect();
    assert!(sizes.iter().all(|&size| (1..=7).contains(&size)), "{sizes:?}");
    assert!(sizes.len() >= 8, "{sizes:?}");
    // Eight requests at one a period would have taken 21 s.
    let took = requests.last().unwrap().at.duration_since(requests.first().unwrap().at);
    assert!(took < Duration::from_secs(12), "{took:?}");
    let connections: std::collections::BTreeSet<usize> = requests.iter().map(|request| request.connection).collect();
    assert!(connections.len() <= 2, "connections are reused: {connections:?}");
}

#[test]
fn batches_are_bounded_by_bytes() {
    let rig = Setup::new().own_flag("--logger_max_request_bytes=20000").start();
    rig.server.stop();
    for n in 0..30 {
        let size = if n == 13 { 40_000 } else { 2_000 };
        rig.log(&format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(size)));
    }
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(30), (0..30).collect::<Vec<u64>>());
    let sizes: Vec<usize> = rig.result_requests().iter().map(|request| request.body.len()).collect();
    assert_eq!(sizes.iter().filter(|&&size| size > 20_000).count(), 1, "{sizes:?}");
    assert!(sizes.iter().filter(|&&size| size > 14_000).count() >= 3, "{sizes:?}");
}

#[test]
fn what_can_t_be_delivered_is_set_aside_counted_and_said() {
    let rig = Setup::new().flag("logger_tls_max_linesize", "1000").start();
    rig.log(&line(0));
    rig.log(&format!("{{\"n\":1,\"x\":\"{}\"}}", "x".repeat(2000)));
    rig.log(&line(2));
    assert_eq!(rig.delivered(2), [0, 2]);
    rig.said(
        "1 line of the results journal set aside so far; the last because it has more than 1000 bytes (logger_tls_max_linesize)",
    );
    rig.log("this is no JSON");
    rig.log(&line(3));
    assert_eq!(rig.delivered(3), [0, 2, 3]);
    rig.said("2 lines of the results journal set aside so far; the last because it is no JSON");
    // The server is told, in the shape of osqueryd's own status lines.
    let told =
        rig.server.wait("status lines", LIMIT, |server| Some(server.statuses()).filter(|lines| lines.len() == 2));
    assert!(told[1]["message"].as_str().unwrap().contains("2 lines of the results journal set aside"), "{told:?}");
    assert_eq!(
        (&told[1]["severity"], &told[1]["filename"], &told[1]["line"]),
        (&json!(2), &json!("remote_tls"), &json!(0))
    );
    let kept = fs::read_to_string(rig.directory.path().join("remote_tls/rejected.ndjson")).unwrap();
    let kept: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&kept[1]["stream"], &kept[1]["reason"]), (&json!("results"), &json!("it is no JSON")));
    let line = kept[1]["line"].as_str().unwrap();
    assert_eq!(line, "this is no JSON");
}

#[test]
fn the_oldest_lines_go_when_there_are_too_many() {
    let rig = Setup::new().flag("buffered_log_max", "10").start();
    rig.config();
    rig.server.stop();
    for n in 0..25 {
        rig.log(&line(n));
    }
    rig.said("more of them wait than buffered_log_max allows");
    // Of 12 lines two are too many, of 25 fifteen: the limit is looked at once a second.
    rig.osqueryd.wait("ten lines to wait", LIMIT, || (rig.waiting("results").len() == 10).then_some(()));
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(10), (15..25).collect::<Vec<u64>>());
}

#[test]
fn a_server_that_takes_small_requests_only_gets_them() {
    let rig = Rig::start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();
    rig.server.stop();
    for n in 1..=64 {
        rig.log(&line(n));
    }
    rig.server.script(Endpoint::Log, [Answer::empty(413), Answer::empty(413), Answer::empty(413)]);
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(65), (0..=64).collect::<Vec<u64>>());
    let sizes: Vec<usize> = rig.result_requests().iter().skip(1).map(lines_of).collect();
    assert_eq!(sizes[..5], [64, 32, 16, 8, 16], "halved, and doubled after a success");
}

#[test]
fn a_server_that_calls_everything_too_large_for_a_while_loses_nothing() {
    let rig = Rig::start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.server.script(Endpoint::Log, vec![Answer::empty(413); 9]);
    for n in 1..4 {
        rig.log(&line(n));
    }
    rig.server.wait("every line", LIMIT, |server| {
        let delivered: std::collections::BTreeSet<u64> = crate::rig::numbers(&server.results()).into_iter().collect();
        (delivered.len() == 4).then_some(())
    });
    assert!(!rig.stderr().contains("set aside"), "{}", rig.stderr());
}

#[test]
fn a_server_that_is_too_slow_gets_smaller_requests() {
    let rig = Rig::start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();
    rig.server.stop();
    for n in 1..=16 {
        rig.log(&line(n));
    }
    rig.server.script(Endpoint::Log, [Answer::empty(408), Answer::empty(408)]);
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(17), (0..=16).collect::<Vec<u64>>());
    let sizes: Vec<usize> = rig.result_requests().iter().skip(1).map(lines_of).collect();
    assert_eq!(sizes[..4], [16, 8, 4, 8]);
}

#[test]
fn a_server_that_takes_no_compressed_requests_gets_plain_ones() {
    // A dropped connection is tried twice, in case it was only idle for too long.
    for (refusal, times) in [(Answer::empty(400), 1), (Answer::empty(415), 1), (Answer::drop_connection(), 2)] {
        let rig = Setup::new().flag("logger_tls_compress", "true").start();
        rig.config();
        rig.server.script(Endpoint::Log, vec![refusal; times]);
        rig.log(&line(0));
        assert_eq!(rig.delivered(1), [0]);
        rig.said("the server takes no compressed requests");
        rig.log(&line(1));
        rig.delivered(2);
        assert_eq!(rig.result_requests().last().unwrap().header("content-encoding"), None);
    }
}

#[test]
fn retry_after_of_the_server_is_honoured() {
    let rig = Rig::start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.server.forget_requests();
    rig.server.script(Endpoint::Log, [Answer::empty(503).header("Retry-After", "4")]);
    rig.log(&line(1));
    rig.delivered(1);
    let at: Vec<_> = rig.result_requests().iter().map(|request| request.at).collect();
    let [refused, taken] = at.as_slice() else { panic!("{} requests", at.len()) };
    assert!(taken.duration_since(*refused) >= Duration::from_secs(4));
}

#[test]
fn failures_back_off_with_the_square() {
    let rig = Setup::new().flag("logger_tls_backoff_max", "3600").start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.server.forget_requests();
    rig.server.script(Endpoint::Log, [Answer::empty(500), Answer::empty(500)]);
    rig.log(&line(1));
    rig.delivered(1);
    let at: Vec<_> = rig.result_requests().iter().map(|request| request.at).collect();
    let [first, second, third] = at.as_slice() else { panic!("{} requests", at.len()) };
    assert!(second.duration_since(*first) >= Duration::from_millis(500));
    assert!(third.duration_since(*second) >= Duration::from_secs(2));
}

#[test]
fn results_and_statuses_fail_apart() {
    let rig = Setup::new().flag("logger_tls_backoff_max", "3600").start();
    rig.log(&line(0));
    rig.delivered(1);
    // The next log request is a result; it is refused for long. Statuses go on.
    rig.server.script(Endpoint::Log, [Answer::empty(503).header("Retry-After", "3600")]);
    rig.log(&line(1));
    rig.said("result lines can't be delivered and are kept");
    let log = r#"[{"s":1,"f":"a.cpp","i":1,"m":"still here","h":"h","c":"Mon","u":1}]"#;
    assert_eq!(rig.call("logger", &[("status", "true"), ("log", log)]).code, 0);
    rig.server.wait("the status line", LIMIT, |server| (server.statuses().len() == 1).then_some(()));
    assert_eq!(rig.server.result_count(), 1);
}

#[test]
fn status_lines_can_be_turned_off() {
    let rig = Setup::new().flag("tls_disable_status_log", "true").start();
    let log = r#"[{"s":1,"f":"a.cpp","i":1,"m":"not sent","h":"h","c":"Mon","u":1}]"#;
    assert_eq!(rig.call("logger", &[("status", "true"), ("log", log)]).code, 0);
    rig.log(&line(0));
    rig.delivered(1);
    assert_eq!(rig.server.statuses(), Vec::<Value>::new());
}

#[test]
fn nothing_is_sent_while_there_is_nothing_to_send() {
    let rig = Rig::start();
    rig.log(&line(0));
    rig.delivered(1);
    for request in rig.server.requests_to(Endpoint::Log) {
        let body = request.json.unwrap();
        assert_ne!(body["data"], json!([]), "an empty batch crashes some servers");
    }
}

#[test]
fn a_period_changed_by_a_configuration_counts() {
    let rig = Setup::new()
        .flag("logger_tls_period", "3600")
        .server(|server| server.config = json!({"schedule": {}, "options": {"logger_tls_period": 1}}))
        .start_daemon();
    // The first flush is due at once; the second after the period that the configuration has set.
    rig.log(&line(0));
    rig.delivered(1);
    rig.log(&line(1));
    assert_eq!(rig.delivered(2), [0, 1]);
}

#[test]
fn a_daemon_s_scheduled_queries_arrive() {
    let rig = Setup::new()
        .server(|server| {
            server.config = json!({"schedule": {
                "clock": {"query": "select unix_time from time", "interval": 1},
                "version": {"query": "select version from osquery_info", "interval": 1, "snapshot": true},
            }});
        })
        .osqueryd(|options| {
            options.scheduler = true;
            options.status_relay = true;
        })
        .start_daemon();
    rig.server.wait("every kind of line", LIMIT, |server| {
        let lines = server.results();
        let has = |action: &str| lines.iter().any(|line| line["action"] == action);
        (has("added") && has("removed") && has("snapshot")).then_some(())
    });
}

#[test]
fn a_batch_line_becomes_the_lines_that_osqueryd_would_have_written() {
    let rig = Setup::new().own_flag("--logger_expand_events=true").start();
    let batch = include_str!("samples/05_log_line_batch_diffresults.json").trim_end();
    rig.log(batch);
    // As osqueryd writes it: the other members, the row, the action; every byte.
    let members = batch.split_once(",\"name\":").unwrap().1.strip_suffix('}').unwrap();
    let line =
        |pid, action| format!("{{\"name\":{members},\"columns\":{{\"pid\":\"{pid}\"}},\"action\":\"{action}\"}}");
    let expected = [line(640, "removed"), line(812, "added"), line(813, "added")].join(",");
    rig.server.wait("the event lines", LIMIT, |server| (server.result_count() == 3).then_some(()));
    let requests = rig.server.requests_to(Endpoint::Log);
    let body = String::from_utf8(requests[0].body.clone()).unwrap();
    assert!(body.ends_with(&format!("\"data\":[{expected}]}}")), "{body}");
}

#[test]
fn expanded_lines_are_those_that_the_same_queries_make_as_events() {
    let lines = |flag: (&str, &str), own: &str| {
        let schedule = json!({"q": {"query": "SELECT 1 AS n, 'a\"\\b' AS s UNION ALL SELECT 2, ''", "interval": 60}});
        let rig = Setup::new()
            .flag(flag.0, flag.1)
            .own_flag(own)
            .server(|server| server.config = json!({"schedule": schedule}))
            .start_daemon();
        assert!(rig.osqueryd.run_scheduled("q"));
        rig.server.wait("results", LIMIT, |server| (server.result_count() == 2).then_some(()));
        // In however many requests they came.
        let lines = |request: testkit::server::Recorded| {
            let body = String::from_utf8(request.body).unwrap();
            body.split_once("\"data\":[").unwrap().1.strip_suffix("]}").unwrap().to_owned()
        };
        let data = rig.result_requests().into_iter().map(lines).collect::<Vec<_>>().join(",");
        // All that differs from run to run.
        let line = &rig.server.results()[0];
        data.replace(line["calendarTime"].as_str().unwrap(), "?").replace(&line["unixTime"].to_string(), "?")
    };
    let events = lines(("logger_event_type", "true"), "");
    let expanded = lines(("logger_event_type", "false"), "--logger_expand_events=true");
    assert_eq!(events, expanded);
}

/// What lines say of their time doesn't count: here all are from 1970.
#[test]
fn an_old_backlog_is_sent_at_a_share_of_its_own_rate_and_a_recent_one_at_once() {
    let rig = Rig::start();
    rig.config();
    rig.server.stop();
    (0..1200).for_each(|n| rig.log(&format!("{{\"n\":{n},\"unixTime\":{n}}}")));
    rig.said("can't be delivered and are kept");
    let file = fs::File::options()
        .append(true)
        .open(rig.directory.path().join("remote_tls/results/0000000000000000.ndjson"))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(600)).unwrap();
    rig.kill_both_and_wait();
    rig.server.resume().unwrap();
    // Two lines a second came: a quarter of that is sent.
    let numbers = rig.delivered(3);
    assert!(numbers.len() < 20, "{numbers:?}");
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    assert!(rig.result_requests().iter().map(lines_of).all(|lines| lines <= 2));
    // An outage of a moment.
    let rig = Rig::start();
    rig.config();
    rig.server.stop();
    (0..100).for_each(|n| rig.log(&format!("{{\"n\":{n},\"unixTime\":{n}}}")));
    rig.said("can't be delivered and are kept");
    rig.server.resume().unwrap();
    rig.delivered(100);
}

/// While lines wait for their back-off, another endpoint shows that the server is back.
#[test]
fn lines_don_t_wait_for_their_back_off_once_the_server_is_known_to_be_back() {
    let rig = Setup::new().flag("logger_tls_period", "3600").flag("distributed_tls_max_attempts", "1").start();
    rig.config();
    rig.server.stop();
    rig.log(&line(0));
    // The first flush comes at once; its back-off is half an hour at least.
    rig.said("result lines can't be delivered and are kept");
    let read = || rig.call("distributed", &[("action", "getQueries")]);
    assert_eq!(read().code, 1);
    rig.server.resume().unwrap();
    rig.osqueryd.wait("a read", LIMIT, || (read().code == 0 && rig.stderr().contains("works again")).then_some(()));
    rig.server.wait("the line", 3 * LIMIT, |server| (server.result_count() == 1).then_some(()));
}
