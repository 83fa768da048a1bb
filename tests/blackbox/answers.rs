//! Answers as servers and what lies between really give them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::proxy::{Behaviour, Proxy};
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup, at_once, line, memory_of, program};

fn one_attempt() -> Setup {
    Setup::new().flag("config_tls_max_attempts", "1")
}

#[test]
fn redirects_within_the_host_are_followed_with_the_body() {
    let rig = one_attempt().start();
    rig.config();
    for status in [301, 302, 303, 307, 308] {
        rig.server.forget_requests();
        let location = format!("https://{}/elsewhere/config", rig.server.hostname());
        rig.server.script(Endpoint::Config, [Answer::empty(status).header("Location", &location)]);
        rig.config();
        rig.server.script(Endpoint::Config, [Answer::empty(status).header("Location", "/elsewhere/config")]);
        rig.config();
        let requests = rig.server.requests_to(Endpoint::Config);
        let targets: Vec<&str> = requests.iter().map(|request| request.target.as_str()).collect();
        assert_eq!(targets, ["/config", "/elsewhere/config", "/config", "/elsewhere/config"]);
        assert!(requests.iter().all(|request| request.method == "POST" && request.node_key().is_some()));
    }
}

#[test]
fn redirects_elsewhere_are_not_followed() {
    let rig = one_attempt().start();
    rig.config();
    let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    for location in [
        format!("https://localhost:{port}/config"),
        format!("http://{}/config", rig.server.hostname()),
        format!("https://127.0.0.1:{}/config", rig.server.port()),
        format!("//localhost:{port}/config"),
        String::new(),
    ] {
        let answer = Answer::empty(302);
        let answer = if location.is_empty() { answer } else { answer.header("Location", &location) };
        rig.server.script(Endpoint::Config, [answer]);
        let message = rig.refusal();
        assert!(message.contains("redirected to") && message.contains("not followed"), "{location}: {message}");
    }
    assert!(elsewhere.accept().is_err(), "another server was asked");
}

#[test]
fn redirects_in_a_circle_end() {
    let rig = one_attempt().start();
    rig.config();
    rig.server.forget_requests();
    rig.server.always(Endpoint::Config, Some(Answer::empty(302).header("Location", "/config")));
    assert!(rig.refusal().contains("redirected more than 10 times"));
    assert_eq!(rig.server.requests_to(Endpoint::Config).len(), 11);
}

#[test]
fn http_1_0_servers_and_those_that_close_are_spoken_to() {
    let rig = Setup::new().server(|server| server.keep_alive = false).start();
    rig.config();
    rig.log(&line(0));
    assert_eq!(rig.delivered(1), [0]);
    rig.server.always(Endpoint::Config, Some(Answer::default_behaviour().http10()));
    rig.config();
    rig.server.always(Endpoint::Config, Some(Answer::default_behaviour().close_silently()));
    for _ in 0..3 {
        rig.config();
    }
}

#[test]
fn a_server_that_sends_retry_after_is_left_alone_on_every_endpoint() {
    let rig = Setup::new().start();
    rig.config();
    for (endpoint, call) in
        [(Endpoint::Config, ("config", "genConfig")), (Endpoint::DistributedRead, ("distributed", "getQueries"))]
    {
        rig.server.forget_requests();
        rig.server.script(endpoint, [Answer::empty(503).header("Retry-After", "3600")]);
        let asked = || rig.call(call.0, &[("action", call.1)]);
        assert!(asked().message.contains("503"));
        // What there is without the server: the running configuration, and no queries.
        let rows = asked().rows;
        let nothing = match call.0 {
            "config" => BTreeMap::new(),
            _ => BTreeMap::from([("results".to_owned(), "{\"queries\":{}}".to_owned())]),
        };
        assert_eq!(rows, [nothing]);
        assert_eq!(rig.server.requests_to(endpoint).len(), 1);
    }
    let rig = Setup::new().flag("tls_enroll_max_interval", "600").start();
    rig.server.script(Endpoint::Enroll, [Answer::empty(429).header("Retry-After", "3")]);
    rig.config();
    let at: Vec<Instant> = rig.server.requests_to(Endpoint::Enroll).iter().map(|request| request.at).collect();
    assert!(at[1].duration_since(at[0]) >= Duration::from_secs(3));
}

#[test]
fn content_types_do_not_matter() {
    let rig = one_attempt().start();
    for content_type in ["text/html", "text/plain; charset=utf-8", "application/octet-stream", ""] {
        let answer = Answer::default_behaviour().header("Content-Type", content_type);
        rig.server.script(Endpoint::Config, [answer]);
        rig.config();
    }
}

#[test]
fn endless_answers_cost_no_memory() {
    let rig = one_attempt().flag("tls_accept_gzip", "true").start();
    rig.config();
    let before = resident_kib(&rig);
    for answer in [Answer::endless(1 << 30), Answer::endless(1 << 30).gzip()] {
        rig.server.script(Endpoint::Config, [answer]);
        assert!(rig.refusal().contains("larger than 16777216 bytes"));
    }
    let grown = peak_kib(&rig).saturating_sub(before);
    assert!(grown < 80 << 10, "{grown} KiB more than before");
}

fn resident_kib(rig: &Rig) -> u64 {
    memory_of(rig.worker_pid(), "VmRSS:")
}

fn peak_kib(rig: &Rig) -> u64 {
    memory_of(rig.worker_pid(), "VmHWM:")
}

#[test]
fn absurdly_nested_answers_are_refused() {
    let rig = one_attempt().flag("distributed_tls_max_attempts", "1").start();
    rig.config();
    let nested = format!("{{\"queries\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (endpoint, request) in
        [(Endpoint::Config, ("config", "genConfig")), (Endpoint::DistributedRead, ("distributed", "getQueries"))]
    {
        rig.server.script(endpoint, [Answer::status(200, nested.clone())]);
        let outcome = rig.call(request.0, &[("action", request.1)]);
        assert_eq!(outcome.code, 1, "{}", outcome.message);
    }
    rig.config();
}

#[test]
fn servers_that_say_nothing_are_given_up_at_every_step() {
    // Connected, and never a word of TLS.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = format!("localhost:{}", silent.local_addr().unwrap().port());
    let rig = one_attempt()
        .flag("tls_hostname", &address)
        .flag("tls_enroll_max_attempts", "1")
        .own_flag("--request_timeout=2")
        .start();
    let begun = Instant::now();
    assert!(rig.refusal().contains("timed out"));
    assert!(begun.elapsed() < LIMIT);

    // Connected, and not TLS at all.
    let plain = Setup::new().server(|server| server.tls = false).flag("tls_enroll_max_attempts", "1").start();
    let message = plain.refusal();
    assert!(message.contains("does not speak TLS") || message.contains("connection broke"), "{message}");

    // Never the first byte; never the last one; the request never read.
    for answer in [
        Answer::hang(),
        Answer::trickle("{\"schedule\":{}", Duration::from_millis(50)),
        Answer::default_behaviour().delayed(Duration::from_secs(3600)),
    ] {
        let rig = one_attempt().own_flag("--request_timeout=2").start();
        rig.config();
        rig.server.script(Endpoint::Config, [answer]);
        let begun = Instant::now();
        assert!(rig.refusal().contains("timed out"));
        assert!(begun.elapsed() < LIMIT);
    }
}

#[test]
fn a_server_that_takes_no_connection_is_given_up() {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    // A listener whose backlog is full: further connections get no answer at all.
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    listen(&listener, 1).unwrap();
    let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
    let wait = Duration::from_millis(200);
    let filling: Vec<TcpStream> = std::iter::from_fn(|| TcpStream::connect_timeout(&address, wait).ok()).collect();
    let rig = one_attempt()
        .flag("tls_hostname", &address.to_string())
        .flag("tls_enroll_max_attempts", "1")
        .own_flag("--request_timeout=2")
        .start();
    let message = rig.refusal();
    assert!(message.contains("timed out"), "{message}");
    drop(filling);
}

#[test]
fn a_server_that_stops_reading_is_given_up() {
    let proxy = Proxy::start(Behaviour::StallAfter(100_000)).unwrap();
    let rig = Setup::new()
        .flag("proxy_hostname", &format!("127.0.0.1:{}", proxy.port()))
        .flag("distributed_tls_max_attempts", "1")
        .own_flag("--request_timeout=2")
        .start();
    rig.config();
    let begun = Instant::now();
    let results = format!("{{\"queries\":{{\"q\":[{{\"x\":\"{}\"}}]}}}}", "x".repeat(20_000_000));
    assert_eq!(rig.call("distributed", &[("action", "writeResults"), ("results", &results)]).code, 0, "kept");
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert_eq!(rig.server.written().len(), 0);
}

#[test]
fn the_reference_server_misbehaves_as_its_command_line_says() {
    let server = program("reference-server");
    let mut server = Command::new(server)
        .args(["--tls", "--persist", "--certificate", "self-signed", "--timeout", "60"])
        .args(["--misbehave", "config=html:502*1", "--misbehave", "read=error:500*1", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It prints the flags that go with it.
    let lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let flags: Vec<String> =
        lines.skip_while(|line| !line.contains("--")).take_while(|line| !line.contains("write_endpoint")).collect();
    let mut setup = one_attempt().flag("distributed_tls_max_attempts", "1");
    for flag in flags.iter().filter_map(|line| line.trim().strip_prefix("--")) {
        let (name, value) = flag.split_once('=').unwrap();
        setup = setup.flag(name, value);
    }
    let rig = setup.start();
    assert!(rig.refusal().contains("502"));
    rig.config();
    let read = || rig.call("distributed", &[("action", "getQueries")]);
    assert!(read().message.contains("told to misbehave"));
    assert_eq!(read().code, 0);
    server.kill().unwrap();
    server.wait().unwrap();
}

/// As README.md shows it.
#[test]
fn both_halves_of_the_kit_run_by_hand_and_a_line_arrives() {
    let host = tempfile::tempdir().unwrap();
    let programs = ["reference-server", "osqueryd-standin"].map(program);
    assert!(programs[0].with_file_name("osquery-remote-tls").exists(), "the test's own binary lies there");
    let mut server = Command::new(&programs[0])
        .args(["--tls", "--timeout", "60", "--host"])
        .arg(host.path())
        .arg("0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("a host: osqueryd --flagfile ")));
    let mut osqueryd = Command::new(&programs[1])
        .arg("--flagfile")
        .arg(host.path().join("osquery.flags"))
        .arg("--allow_unsafe")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let arrived = lines.any(|line| line.contains("\"log_type\":\"result\"") && line.contains("\"clock\""));
    kill_process(Pid::from_child(&osqueryd), Signal::TERM).unwrap();
    osqueryd.wait().unwrap();
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    server.wait().unwrap();
    assert!(arrived, "no line of the schedule came to the server");
}

#[test]
fn a_host_without_an_address_is_named() {
    let rig = Setup::new().flag("tls_hostname", "no-such-host.invalid").flag("tls_enroll_max_attempts", "1").start();
    let message = rig.refusal();
    assert!(message.contains("no-such-host.invalid") && message.contains("can't be resolved"), "{message}");
}

#[test]
fn every_kind_of_bad_answer_leaves_every_endpoint_working_afterwards() {
    at_once(
        [
            Answer::html(502),
            Answer::empty(204),
            Answer::status(200, "\u{feff}{}"),
            Answer::status(200, "{\"a\":\"\\ud800\"}"),
            Answer::status(599, "x"),
            Answer::truncated("{", 10),
            Answer::drop_mid_request(),
        ],
        |answer| {
            let rig = one_attempt().flag("distributed_tls_max_attempts", "1").start();
            rig.config();
            for endpoint in [Endpoint::Config, Endpoint::DistributedRead, Endpoint::DistributedWrite] {
                rig.server.script(endpoint, [answer.clone()]);
            }
            rig.call("config", &[("action", "genConfig")]);
            rig.call("distributed", &[("action", "getQueries")]);
            rig.call("distributed", &[("action", "writeResults"), ("results", "{}")]);
            // A server that was not well is left alone for a moment.
            rig.osqueryd.wait("a configuration", LIMIT, || {
                let outcome = rig.gen_config();
                (outcome.code == 0 && !outcome.rows[0].is_empty()).then_some(())
            });
            assert_eq!(rig.call("distributed", &[("action", "getQueries")]).code, 0);
            let results = json!({"queries": {"q": []}}).to_string();
            assert_eq!(rig.call("distributed", &[("action", "writeResults"), ("results", &results)]).code, 0);
            rig.log(&line(0));
            assert_eq!(rig.delivered(1), [0]);
            let _: Value = serde_json::from_str(&rig.config().1).unwrap();
        },
    );
}
