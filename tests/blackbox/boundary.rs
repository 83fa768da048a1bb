//! Every row of the request table, and clients that osqueryd isn't.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use testkit::server::Endpoint;

use crate::rig::{LIMIT, Rig, Setup, line};

#[test]
fn logger_calls_that_carry_results() {
    let rig = Rig::start();
    let call = |request: &[(&str, &str)]| assert_eq!(rig.call("logger", request).code, 0, "{request:?}");
    call(&[("string", &line(0)), ("category", "event")]);
    call(&[("snapshot", &line(1))]);
    call(&[("string_batch", &json!([line(2), line(3)]).to_string())]);
    call(&[("event", &line(4))]);
    assert_eq!(rig.delivered(5), [0, 1, 2, 3, 4]);
}

#[test]
fn logger_calls_that_carry_status_lines() {
    let rig = Rig::start();
    let log = r#"[{"s":1,"f":"scheduler.cpp","i":117,"m":"first","h":"host","c":"Mon Nov 23 04:12:05 2026 UTC","u":1795407125},
                  {"s":"2","f":"x.cpp","i":"0","m":"sec\nond","h":"host","c":"Mon","u":"1795407126"}]"#;
    assert_eq!(rig.call("logger", &[("status", "true"), ("log", log)]).code, 0);
    // What old versions hand over with init.
    let early = r#"[{"s":0,"f":"init.cpp","i":1,"m":"third","h":"host","c":"Mon","u":1}]"#;
    assert_eq!(rig.call("logger", &[("init", "osqueryd"), ("log", early)]).code, 0);
    let statuses =
        rig.server.wait("status lines", LIMIT, |server| Some(server.statuses()).filter(|lines| lines.len() == 3));
    assert_eq!(
        statuses[0].to_string(),
        json!({
            "hostIdentifier": "host", "calendarTime": "Mon Nov 23 04:12:05 2026 UTC", "unixTime": 1795407125,
            "severity": 1, "filename": "scheduler.cpp", "line": 117, "message": "first", "version": "5.23.0",
        })
        .to_string()
    );
    assert_eq!((&statuses[1]["unixTime"], &statuses[1]["severity"]), (&json!(1795407126), &json!(2)));
    assert_eq!((&statuses[1]["line"], &statuses[1]["message"]), (&json!(0), &json!("sec\nond")));
    assert_eq!(statuses[2]["message"], "third");
}

#[test]
fn logger_calls_without_lines() {
    let rig = Rig::start();
    assert_eq!(rig.call("logger", &[("init", "osqueryd")]).code, 0);
    // The code is the bit mask: 1 is "takes status lines".
    assert_eq!(rig.call("logger", &[("action", "features")]).code, 1);
    assert_eq!(rig.call("logger", &[("status", "true"), ("log", "[]")]).code, 0);
}

#[test]
fn config_and_distributed_calls() {
    let rig = Rig::start();
    assert_eq!(rig.config().0, "tls_plugin");
    let pack = rig.call("config", &[("action", "genPack"), ("name", "base"), ("value", "/etc/pack.conf")]);
    assert_eq!(pack.code, 1);
    assert!(pack.message.contains("base"), "{}", pack.message);
    rig.server.add_query("q1", "select 1");
    let queries = rig.call("distributed", &[("action", "getQueries")]);
    assert_eq!((queries.code, queries.rows.len()), (0, 1));
    let text: Value = serde_json::from_str(&queries.rows[0]["results"]).unwrap();
    assert_eq!(text["queries"]["q1"], "select 1");
    let results = r#"{"queries":{"q1":[]},"statuses":{"q1":0}}"#;
    assert_eq!(rig.call("distributed", &[("action", "writeResults"), ("results", results)]).code, 0);
    assert_eq!(rig.server.written().len(), 1);
}

#[test]
fn unknown_actions_and_broken_requests_fail_with_a_reason() {
    let rig = Rig::start();
    for (registry, request, reason) in [
        ("config", &[("action", "noSuch")][..], "noSuch"),
        ("config", &[], "has nothing that it knows"),
        ("logger", &[("action", "noSuch")], "noSuch"),
        ("distributed", &[("action", "noSuch")], "noSuch"),
        ("distributed", &[("action", "writeResults")], "results"),
        ("distributed", &[("action", "writeResults"), ("results", "no json")], "not a JSON object"),
    ] {
        let outcome = rig.call(registry, request);
        assert_eq!(outcome.code, 1, "{registry} {request:?}");
        assert!(outcome.message.contains(reason), "{registry} {request:?}: {}", outcome.message);
    }
}

#[test]
fn a_line_that_is_not_utf_8_is_repaired_and_delivered() {
    let rig = Rig::start();
    let request: [(&str, &[u8]); 1] = [("string", b"{\"n\":1,\"path\":\"/tmp/\xff\xfe\"}")];
    assert_eq!(rig.osqueryd.call("logger", "remote_tls", &request).unwrap().code, 0);
    rig.delivered(1);
    assert_eq!(rig.server.results()[0]["path"], "/tmp/\u{fffd}\u{fffd}");
    assert_eq!(rig.server.results()[0]["invalid_utf8"], true, "it says so");
    // Only a line that was repaired, and not one that holds that character as it was written.
    rig.log("{\"n\":2,\"path\":\"\u{fffd}\"}");
    rig.delivered(2);
    assert_eq!(rig.server.results()[1].get("invalid_utf8"), None);
}

#[test]
fn a_large_line_is_taken() {
    // Larger than the thrift crate's own limit of 100 MB for a string would be slow here; larger than any buffer
    // in between is enough.
    let rig = Setup::new().flag("logger_tls_max_linesize", "20000000").start();
    let text = "x".repeat(9_000_000);
    rig.log(&format!("{{\"n\":7,\"text\":\"{text}\"}}"));
    assert_eq!(rig.delivered(1), [7]);
    assert_eq!(rig.server.results()[0]["text"].as_str().map(str::len), Some(text.len()));
}

#[test]
fn idle_and_hostile_clients_do_not_keep_osqueryd_waiting() {
    let rig = Rig::start();
    let socket = rig.extension_socket();
    let idle: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let mut garbage = UnixStream::connect(&socket).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    hung_up(&mut garbage);
    // A call whose string claims 2 GiB: hung up on, without the memory for it.
    let mut absurd = UnixStream::connect(&socket).unwrap();
    absurd.write_all(b"\x80\x01\x00\x01\x00\x00\x00\x04call\x00\x00\x00\x00\x0b\x00\x01\x7f\xff\xff\xff").unwrap();
    hung_up(&mut absurd);
    rig.log(&line(1));
    assert_eq!(rig.delivered(1), [1]);
    drop(idle);
}

/// Waits until the other side hangs up, whatever it says before.
fn hung_up(client: &mut UnixStream) {
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.read_to_end(&mut Vec::new()).expect("a client that talks nonsense is hung up on");
}

#[test]
fn a_config_call_that_waits_does_not_delay_a_line() {
    let rig = Rig::start();
    rig.config();
    rig.server.always(Endpoint::Config, Some(testkit::server::Answer::hang()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| rig.osqueryd.call("config", "remote_tls", &[("action", b"genConfig")]));
        }
        rig.server.wait("a config request that waits", LIMIT, |server| {
            (server.requests_to(Endpoint::Config).len() >= 2).then_some(())
        });
        rig.log(&line(1));
        rig.server.stop();
    });
}
