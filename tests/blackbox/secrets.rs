//! Nothing that leaves the process shows a secret or a node key.

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, SECRET, Setup, line};
use crate::tables::TABLES;

/// What comes to the socket, until a packet says that it is over.
fn collect(socket: &std::os::unix::net::UnixDatagram) -> String {
    let mut packets = String::new();
    let mut packet = [0; 2048];
    loop {
        let length = socket.recv(&mut packet).unwrap();
        match &packet[..length] {
            b"over" => return packets,
            text => packets.push_str(&String::from_utf8_lossy(text)),
        }
        packets.push('\n');
    }
}

/// What osqueryd is answered while the server repeats node keys and secrets in its errors, as servers do.
fn repeating_secrets(rig: &Rig, key: &str) -> Vec<String> {
    let mut messages = Vec::new();
    for (endpoint, call) in [
        (Endpoint::Config, ("config", vec![("action", "genConfig")])),
        (Endpoint::DistributedRead, ("distributed", vec![("action", "getQueries")])),
        (Endpoint::DistributedWrite, ("distributed", vec![("action", "writeResults"), ("results", "{}")])),
    ] {
        for answer in [
            Answer::status(401, json!({"error": format!("unknown node key {key}, secret {SECRET}")}).to_string()),
            Answer::status(200, format!("<p>{SECRET}</p>")),
            // Cut in the middle of the key, and escaped in a way that is not ours.
            Answer::status(200, format!("{}{key}", "x".repeat(30))),
            Answer::status(200, json!({"node_key": key, "error": "no"}).to_string().replace('/', "\\/")),
            Answer::drop_connection(),
            Answer::status(401, json!({"node_invalid": true, "error": format!("unknown node key {key}")}).to_string()),
        ] {
            rig.server.always(endpoint, Some(answer));
            messages.push(rig.call(call.0, &call.1).message);
        }
        // Or a later attempt's answer gives up the next key, too.
        rig.server.always(endpoint, None);
    }
    messages
}

/// Nothing of what is shown is a secret or a node key, and their places are.
fn shows_no_secret(shown: &str, key: &str, server: &str) {
    let encoded = "node%2Fkey%2Bwith%20%22odd%22%20characters";
    let escaped = "node/key+with \\\"odd\\\" characters";
    for secret in [SECRET, key, encoded, escaped, "node/key+w", "node\\/key"] {
        assert!(!shown.contains(secret), "{secret} is shown in\n{shown}");
    }
    // The tables have the same errors and URLs, masked.
    let url = "/<node_key>/log?enroll_secret=<secret>&node_key=<node_key>";
    for told in [
        &format!("remote_tls_endpoints.url = https://{}{url}", server),
        "remote_tls_endpoints.last_error = logger (https://",
        "(HTTP 500): no node <hidden>",
        "remote_tls_enrollment.enrolled = 1",
    ] {
        assert!(shown.contains(told), "{told} is missing in\n{shown}");
    }
    // It was dumped, but masked.
    assert!(shown.contains("tls_dump: enroll request: {\"enroll_secret\":\"<hidden>\""), "{shown}");
    assert!(shown.contains("unknown node key <hidden>, secret <hidden>"), "{shown}");
}

#[test]
fn nothing_shows_a_secret() {
    let key = "node/key+with \"odd\" characters";
    let setup = Setup::new();
    let [file, socket] = ["own.log", "syslog"].map(|name| setup.path().join(name));
    let syslog = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let collector = std::thread::spawn(move || collect(&syslog));
    let rig = setup
        .own_flag(&format!("--log_file={}", file.display()))
        .own_flag(&format!("--log_syslog={}", socket.display()))
        .flag("verbose", "true")
        .flag("tls_dump", "true")
        .flag("tls_secret_always", "true")
        .flag("tls_node_api", "true")
        .flag("config_tls_max_attempts", "1")
        .flag("distributed_tls_max_attempts", "1")
        .osqueryd(|options| options.verbose = true)
        .start();
    rig.server.set_next_node_key(key);
    rig.server.always(Endpoint::Log, Some(Answer::status(500, json!({"error": format!("no node {key}")}).to_string())));
    rig.config();
    assert_eq!(rig.stored_key().as_deref(), Some(key));
    let mut messages = repeating_secrets(&rig, key);
    // One that is set aside, with a secret where the beginning that is shown ends.
    rig.log(&format!("no JSON: {key}, {SECRET}, {}{key}", "x".repeat(130)));
    rig.osqueryd.wait("the line in the table", LIMIT, || {
        let rows = rig.osqueryd.query("SELECT * FROM remote_tls_rejected").unwrap();
        (rows.first()?["beginning"].starts_with("no JSON: <hidden>, <hidden>, xxx")).then_some(())
    });
    rig.log(&line(1));
    rig.said("result lines can't be delivered");
    // The one before was given up.
    rig.osqueryd.wait("another node key", LIMIT, || {
        let rows = rig.osqueryd.query("SELECT enrolled FROM remote_tls_enrollment").unwrap();
        (rows[0]["enrolled"] == "1").then_some(())
    });
    for table in TABLES {
        let rows = rig.osqueryd.query(&format!("SELECT * FROM {table}")).unwrap();
        assert!(!rows.is_empty(), "{table}");
        messages.extend(rows.into_iter().flatten().map(|(column, value)| format!("{table}.{column} = {value}")));
    }
    rig.server.stop();
    messages.push(rig.gen_config().message);
    rig.osqueryd.stop();
    std::os::unix::net::UnixDatagram::unbound().unwrap().send_to(b"over", &socket).unwrap();
    let kept = format!("{}\n{}", std::fs::read_to_string(&file).unwrap(), collector.join().unwrap());
    assert!(kept.contains("unknown node key <hidden>, secret <hidden>") && !kept.contains("tls_dump"), "{kept}");
    let shown = format!("{}\n{kept}\n{}", messages.join("\n"), rig.stderr());
    shows_no_secret(&shown, key, &rig.server.hostname());
}

#[test]
fn compressed_bodies_are_dumped_as_they_are_meant() {
    let rig = Setup::new()
        .flag("verbose", "true")
        .flag("tls_dump", "true")
        .flag("logger_tls_compress", "true")
        .flag("tls_accept_gzip", "true")
        .start();
    rig.server.script(Endpoint::Config, [Answer::json(json!({"schedule": {}, "padding": "plain to see"})).gzip()]);
    rig.config();
    rig.said("tls_dump: config answer: {\"schedule\":{},\"padding\":\"plain to see\"}");
    rig.log(&line(7));
    rig.said("tls_dump: logger request: {\"node_key\":\"<hidden>\",\"log_type\":\"result\",\"data\":[{\"name\":\"q\",\"n\":7}]}");
    rig.delivered(1);
    let request = rig.server.requests_to(Endpoint::Log).remove(0);
    assert_eq!(request.header("content-encoding"), Some("gzip"));
}
