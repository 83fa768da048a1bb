//! The server against plain sockets: what really goes over the wire for each answer and fault.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

fn plain() -> Server {
    Server::start(Options { tls: false, ..Options::default() }).unwrap()
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn send(stream: &mut TcpStream, path: &str, body: &Value) {
    let body = body.to_string();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
}

/// Everything up to the end of the connection, and whether the end was an orderly one.
fn rest(stream: &mut TcpStream) -> (String, bool) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (String::from_utf8_lossy(&bytes).into_owned(), true),
            Ok(size) => bytes.extend_from_slice(&piece[..size]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return (String::from_utf8_lossy(&bytes).into_owned(), false);
            }
            Err(error) => panic!("{error} behind {}", String::from_utf8_lossy(&bytes)),
        }
    }
}

/// Reads until the answer so far ends like this, leaving the connection open.
fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(end.as_bytes()) {
        let size = stream.read(&mut byte).unwrap();
        assert_ne!(size, 0, "closed behind {}", String::from_utf8_lossy(&bytes));
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

/// The answer of a server that closes behind it, for one faulty enroll request.
fn faulty(answer: Answer) -> String {
    let server = plain();
    server.script(Endpoint::Enroll, [answer]);
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    let (text, _) = rest(&mut stream);
    assert_eq!(server.requests().len(), 1);
    text
}

#[test]
fn a_node_enrolls_asks_and_logs_on_one_connection() {
    let server = plain();
    let mut stream = connect(&server);
    send(&mut stream, "/config", &json!({"node_key": "node-key-1"}));
    until(&mut stream, r#"{"node_invalid":true}"#);
    send(&mut stream, "/enroll", &json!({}));
    until(&mut stream, r#"{"node_key":"node-key-1"}"#);
    send(&mut stream, "/log", &json!({"node_key": "node-key-1", "log_type": "result", "data": [{"a": 1}]}));
    until(&mut stream, "\r\n\r\n{}");
    server.add_query("q", "SELECT 1");
    send(&mut stream, "/distributed_read", &json!({"node_key": "node-key-1"}));
    until(&mut stream, r#"{"queries":{"q":"SELECT 1"}}"#);
    send(&mut stream, "/distributed_write", &json!({"node_key": "node-key-1", "statuses": {}}));
    until(&mut stream, "\r\n\r\n{}");
    assert_eq!(server.results(), [json!({"a": 1})]);
    assert_eq!(server.written().len(), 1);
    assert_eq!((server.connections(), server.requests().len()), (1, 5), "{}", server.transcript());
}

#[test]
fn a_configuration_that_is_known_is_answered_shortly() {
    let server =
        Server::start(Options { tls: false, etags: true, config: json!({"a": 1}), ..Options::default() }).unwrap();
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    until(&mut stream, "node-key-1\"}");
    let mut ask = |etag: Value, end: &str| {
        send(&mut stream, "/config", &json!({"node_key": "node-key-1", "etag": etag}));
        until(&mut stream, end)
    };
    let etag = state::etag(&json!({"a": 1}));
    let whole = format!("{{\"a\":1,\"etag\":\"{etag}\"}}");
    ask(json!(""), &whole);
    ask(json!("another"), &whole);
    ask(json!(etag), r#"{"etag":"ok"}"#);
    send(&mut stream, "/config", &json!({"node_key": "node-key-1"}));
    until(&mut stream, "\r\n\r\n{\"a\":1}");
}

#[test]
fn the_node_api_finds_its_key_in_the_path() {
    let server = plain();
    server.set_next_node_key("a/b+c");
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    until(&mut stream, "}");
    write!(stream, "GET /a%2Fb%2Bc/config&node_key=a%2Fb%2Bc HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let answer = until(&mut stream, "}\"}");
    assert!(answer.contains(r#"{"config":"{\"schedule\""#), "{answer}");
}

#[test]
fn the_third_config_request_is_invalid_and_forgets_the_key() {
    let server = Server::start(Options { tls: false, invalid_every: Some(3), ..Options::default() }).unwrap();
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    until(&mut stream, "}");
    for end in ["}}}", "}}}", r#"{"node_invalid":true}"#, r#"{"node_invalid":true}"#] {
        send(&mut stream, "/config", &json!({"node_key": "node-key-1"}));
        until(&mut stream, end);
    }
}

#[test]
fn dropped_requests_get_no_byte_of_an_answer() {
    assert_eq!(faulty(Answer::drop_connection()), "");
    assert_eq!(faulty(Answer::drop_mid_request()), "");
    assert_eq!(faulty(Answer::lost()), "");
}

#[test]
fn a_request_dropped_midway_needs_no_body() {
    let server = plain();
    server.script(Endpoint::Log, [Answer::drop_mid_request()]);
    let mut stream = connect(&server);
    write!(stream, "POST /log HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n").unwrap();
    assert_eq!(rest(&mut stream).0, "");
    assert_eq!(server.requests_to(Endpoint::Log)[0].wire_bytes, 0);
}

#[test]
fn a_lost_answer_was_given_all_the_same() {
    let server = plain();
    server.set_next_node_key("");
    server.script(Endpoint::Enroll, [Answer::lost()]);
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    rest(&mut stream);
    assert_eq!(server.node_keys(), [""]);
}

#[test]
fn a_truncated_answer_ends_in_the_middle() {
    let text = faulty(Answer::truncated("{\"node_", 100));
    assert!(text.contains("content-length: 100\r\n") && text.ends_with("\r\n\r\n{\"node_"), "{text}");
}

#[test]
fn http10_has_no_length_and_ends_with_the_connection() {
    let text = faulty(Answer::json(json!({"a": 1})).http10()).to_lowercase();
    assert!(text.starts_with("http/1.0 200") && text.ends_with("\r\n\r\n{\"a\":1}"), "{text}");
    assert!(!text.contains("content-length") && !text.contains("connection:"), "{text}");
}

#[test]
fn a_silent_close_is_not_announced() {
    for answer in [Answer::json(json!({"a": 1})), Answer::empty(200), Answer::default_behaviour()] {
        let text = faulty(answer.close_silently()).to_lowercase();
        assert!(text.starts_with("http/1.1 200") && !text.contains("connection:"), "{text}");
        assert!(text.contains("content-length:"), "{text}");
    }
}

#[test]
fn without_keep_alive_every_answer_closes() {
    let server = Server::start(Options { tls: false, keep_alive: false, ..Options::default() }).unwrap();
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    let (text, orderly) = rest(&mut stream);
    assert!(orderly && text.starts_with("HTTP/1.0 200") && text.contains("connection: close"), "{text}");
}

#[test]
fn a_trickle_goes_on_behind_its_body() {
    let server = plain();
    server.script(Endpoint::Enroll, [Answer::trickle("{}", Duration::from_millis(2))]);
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    until(&mut stream, "1\r\n{\r\n1\r\n}\r\n1\r\n \r\n1\r\n \r\n");
}

#[test]
fn an_endless_answer_is_as_long_as_was_asked() {
    let server = plain();
    server.script(Endpoint::Enroll, [Answer::endless(3_000_000).http10()]);
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    let (text, _) = rest(&mut stream);
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.len(), 3_000_000);
}

#[test]
fn a_compressed_answer_says_so() {
    let text = faulty(Answer::json(json!({})).gzip().http10());
    assert!(text.contains("content-encoding: gzip\r\n") && !text.ends_with("{}"), "{text}");
}

#[test]
fn a_hanging_request_is_on_record_and_ends_when_the_server_stops() {
    let server = plain();
    server.always(Endpoint::Config, Some(Answer::hang()));
    let mut stream = connect(&server);
    send(&mut stream, "/config", &json!({}));
    server.wait("the request", LIMIT, |server| (server.requests().len() == 1).then_some(()));
    server.stop();
    assert_eq!(rest(&mut stream).0, "");
}

#[test]
fn a_stopped_server_refuses_and_comes_back_with_its_state() {
    let server = plain();
    let mut stream = connect(&server);
    send(&mut stream, "/enroll", &json!({}));
    until(&mut stream, "}");
    server.stop();
    server.stop();
    assert!(rest(&mut stream).0.is_empty());
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    server.resume().unwrap();
    server.resume().unwrap();
    let mut stream = connect(&server);
    send(&mut stream, "/config", &json!({"node_key": "node-key-1"}));
    until(&mut stream, "}}}");
}

#[test]
fn scripts_go_first_then_always_then_default() {
    let server = plain();
    server.always(Endpoint::Other, Some(Answer::status(503, "{\"always\":1}").header("Retry-After", "2")));
    server.script(Endpoint::Other, [Answer::html(502)]);
    let mut stream = connect(&server);
    send(&mut stream, "/", &json!({}));
    until(&mut stream, "</html>\n");
    send(&mut stream, "/", &json!({}));
    assert!(until(&mut stream, "{\"always\":1}").contains("retry-after: 2\r\n"));
    server.always(Endpoint::Other, None);
    send(&mut stream, "/", &json!({}));
    until(&mut stream, "{\"foo\":\"bar\"}");
    let statuses: Vec<u16> = server.requests().iter().map(|request| request.answer_status).collect();
    assert_eq!(statuses, [502, 503, 200]);
}

#[test]
#[should_panic(expected = "what never comes")]
fn waiting_in_vain_panics_and_says_for_what() {
    plain().wait("what never comes", Duration::from_millis(1), |_| None::<()>);
}

#[test]
fn with_a_drain_it_keeps_nothing_of_what_it_takes() {
    let drained = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::new(Mutex::new(0));
    let (drain, count) = (Arc::clone(&drained), Arc::clone(&seen));
    let server = Server::start(Options {
        tls: false,
        drain: Some(Arc::new(move |taken| drain.lock().unwrap().push(format!("{taken:?}")))),
        observer: Some(Arc::new(move |_| *count.lock().unwrap() += 1)),
        ..Options::default()
    })
    .unwrap();
    let mut stream = connect(&server);
    for (path, body) in [
        ("/enroll", json!({})),
        ("/log", json!({"node_key": "node-key-1", "log_type": "result", "data": [{"n": 1}]})),
        ("/log", json!({"node_key": "node-key-1", "log_type": "status", "data": [{"n": 2}]})),
        ("/log", json!({"node_key": "another", "log_type": "result", "data": [{"n": 3}]})),
        ("/distributed_write", json!({"node_key": "node-key-1", "queries": {"q": []}})),
    ] {
        send(&mut stream, path, &body);
        until(&mut stream, "}");
    }
    let drained = drained.lock().unwrap().join("\n");
    for taken in ["Results([Object {\"n\": Number(1)}])", "Statuses([Object {\"n\": Number(2)}])", "Written("] {
        assert!(drained.contains(taken), "{taken} is not in {drained}");
    }
    assert!(!drained.contains("Number(3)"), "{drained}");
    assert_eq!(*seen.lock().unwrap(), 5);
    assert_eq!((server.requests().len(), server.result_count(), server.statuses().len()), (0, 0, 0));
    assert_eq!(server.written(), Vec::<Value>::new());
}
