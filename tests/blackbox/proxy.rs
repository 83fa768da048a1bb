//! `proxy_hostname`: a scripted proxy, and one of a package if that is installed.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::proxy::{Behaviour, Proxy};

use crate::rig::{LIMIT, Rig, Setup, line};

fn behind(proxy: &str) -> Setup {
    Setup::new().flag("proxy_hostname", proxy).flag("tls_enroll_max_attempts", "1")
}

#[test]
fn every_request_goes_through_the_proxy() {
    let proxy = Proxy::start(Behaviour::Tunnel).unwrap();
    let rig = behind(&format!("127.0.0.1:{}", proxy.port())).start();
    rig.config();
    rig.log(&line(0));
    rig.delivered(1);
    let connects = proxy.connects();
    assert!(!connects.is_empty() && connects.len() <= 3, "connections are reused: {connects:?}");
    assert_eq!(connects.len(), rig.server.connections());
    for connect in connects {
        assert_eq!((connect.target, connect.authorization), (rig.server.hostname(), None));
        // As every request's, and no library's.
        assert_eq!(connect.user_agent.as_deref(), rig.server.requests()[0].header("user-agent"));
    }
}

#[test]
fn credentials_are_shown_to_the_proxy_and_to_nobody_else() {
    let proxy = Proxy::start(Behaviour::Tunnel).unwrap();
    let rig = behind(&format!("scott:ti:g@er@localhost:{}", proxy.port())).flag("verbose", "true").start();
    rig.config();
    // base64 of scott:ti:g@er
    assert_eq!(proxy.connects()[0].authorization.as_deref(), Some("Basic c2NvdHQ6dGk6Z0Blcg=="));
    for request in rig.server.requests() {
        assert_eq!((request.header("proxy-authorization"), request.target.contains("g@er")), (None, false));
    }
    assert!(!rig.stderr().contains("ti:g@er"), "{}", rig.stderr());
}

#[test]
fn the_environment_s_proxies_do_not_count() {
    let proxy = Proxy::start(Behaviour::Refuse(403)).unwrap();
    let rig = Setup::new()
        .osqueryd(|options| {
            for name in ["https_proxy", "HTTPS_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
                options.env.push((name.to_owned(), format!("http://127.0.0.1:{}", proxy.port())));
            }
        })
        .start();
    rig.config();
    assert_eq!(proxy.connects(), []);
}

#[test]
fn a_proxy_s_refusals_are_named_as_the_proxy_s() {
    for (behaviour, reason) in [
        (Behaviour::Refuse(403), "it answered HTTP 403 (Refused)"),
        (Behaviour::Refuse(407), "it answered HTTP 407 (Refused)"),
        (Behaviour::Refuse(502), "it answered HTTP 502 (Refused)"),
        (Behaviour::Close, "it closed the connection without an answer"),
        (Behaviour::Garbage, "its answer is no HTTP"),
    ] {
        let proxy = Proxy::start(behaviour).unwrap();
        let rig = behind(&format!("127.0.0.1:{}", proxy.port())).start();
        let outcome = rig.gen_config();
        assert_eq!(outcome.code, 1);
        assert!(outcome.message.contains("the proxy 127.0.0.1:"), "{behaviour:?}: {}", outcome.message);
        assert!(outcome.message.contains(reason), "{behaviour:?}: {}", outcome.message);
        assert_eq!(rig.server.connections(), 0);
    }
}

#[test]
fn a_proxy_that_never_answers_is_given_up() {
    let proxy = Proxy::start(Behaviour::Hang).unwrap();
    let rig = behind(&format!("127.0.0.1:{}", proxy.port())).own_flag("--request_timeout=2").start();
    let message = rig.gen_config().message;
    assert!(message.contains("timed out"), "{message}");
}

/// Issue 15: a proxy that answered a byte now and then held a request 100 s at a limit of 10.
#[test]
fn a_proxy_that_answers_slowly_is_given_up_in_time() {
    let proxy = Proxy::start(Behaviour::Trickle(Duration::from_millis(300))).unwrap();
    let rig = behind(&format!("127.0.0.1:{}", proxy.port())).own_flag("--request_timeout=2").start();
    let began = Instant::now();
    let message = rig.gen_config().message;
    assert!(message.contains("the proxy 127.0.0.1:") && message.contains("timed out"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    let rig = behind("127.0.0.1:1").start();
    let message = rig.gen_config().message;
    assert!(message.contains("the proxy 127.0.0.1:1 gave no connection: can't connect"), "{message}");
}

/// tinyproxy (CI installs it): a proxy that people really run.
#[test]
fn tinyproxy_carries_everything() {
    if Command::new("tinyproxy").arg("-v").output().is_err() {
        eprintln!("tinyproxy is not installed: nothing was tested");
        return;
    }
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("tinyproxy.conf");
    let text = format!("Port {port}\nListen 127.0.0.1\nTimeout 60\nBasicAuth scott tiger\nMaxClients 20\n");
    fs::write(&config, text).unwrap();
    let mut tinyproxy =
        Command::new("tinyproxy").arg("-d").arg("-c").arg(&config).stdout(Stdio::null()).spawn().unwrap();
    wait_for(port);
    let carried = std::panic::catch_unwind(|| {
        let rig = behind(&format!("scott:tiger@127.0.0.1:{port}")).start();
        rig.config();
        rig.log(&line(0));
        assert_eq!(rig.delivered(1), [0]);
        let stranger: Rig = behind(&format!("127.0.0.1:{port}")).start();
        let message = stranger.gen_config().message;
        assert!(message.contains("gave no connection") && message.contains("407"), "{message}");
    });
    tinyproxy.kill().unwrap();
    tinyproxy.wait().unwrap();
    carried.unwrap();
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn wait_for(port: u16) {
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < deadline, "no proxy listens on {port}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
