//! Flags: osqueryd's own, ours, and those that a configuration sets.

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup, line};

#[test]
fn an_unusable_value_is_named_and_lines_are_taken_all_the_same() {
    let rig = Setup::new()
        .own_flag("--logger_max_request_bytes=lots")
        .own_flag("--no_such_flag=1")
        .flag("proxy_hostname", "me:hunter2@http://proxy")
        .start();
    rig.said("--logger_max_request_bytes=lots can't be used: a number of bytes from 1024 to 1073741824 is needed");
    rig.said("remote_tls.flags:3: there is no flag --no_such_flag; there are --buffer_path");
    rig.said("--proxy_hostname=<hidden>@http://proxy can't be used");
    assert!(!rig.stderr().contains("hunter2"));
    rig.log(&line(0));
    assert!(rig.gen_config().message.contains("proxy_hostname"));
}

#[test]
fn an_endpoint_that_is_not_configured_is_named() {
    let rig = Setup::new().without_flag("config_tls_endpoint").start();
    let message = rig.gen_config().message;
    assert!(message.contains("--config_tls_endpoint="), "{message}");
}

#[test]
fn flags_changed_while_running_count() {
    let rig = Rig::start();
    rig.config();
    rig.osqueryd.options_set("config_tls_endpoint", "/elsewhere/config");
    rig.server.wait("the new endpoint", LIMIT, |server| {
        rig.config();
        server.requests_to(Endpoint::Config).iter().any(|request| request.target == "/elsewhere/config").then_some(())
    });
}

#[test]
fn a_configuration_can_set_our_safe_flags() {
    let rig = Setup::new()
        .server(|server| {
            server.config = json!({"schedule": {}, "options": {"custom_remote_tls_logger_max_request_bytes": "3000"}});
        })
        .start_daemon();
    rig.server.stop();
    for n in 0..10 {
        rig.log(&format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(1000)));
    }
    rig.server.resume().unwrap();
    rig.delivered(10);
    let largest = rig.server.requests_to(Endpoint::Log).iter().map(|request| request.body.len()).max();
    assert!(largest.unwrap() <= 3000, "{largest:?}");
}

#[test]
fn a_request_takes_no_longer_than_its_flag() {
    let trickle = Answer::trickle("{\"schedule\":{},\"a\":\"", std::time::Duration::from_millis(100));
    for answer in [Answer::hang(), trickle] {
        let rig = Setup::new().own_flag("--request_timeout=2").flag("config_tls_max_attempts", "1").start();
        rig.config();
        rig.server.script(Endpoint::Config, [answer]);
        let message = rig.gen_config().message;
        assert!(message.contains("timed out"), "{message}");
    }
}

#[test]
fn the_flags_of_the_log_line_s_size_and_the_buffer_s_place() {
    let setup = Setup::new();
    let elsewhere = setup.path().join("elsewhere");
    let rig = setup.own_flag(&format!("-buffer_path={}", elsewhere.display())).start();
    rig.log(&line(0));
    assert!(elsewhere.join("results/0000000000000000.ndjson").exists());
    assert!(!rig.directory.path().join("remote_tls").exists());
    assert_eq!(rig.delivered(1), [0]);
}
