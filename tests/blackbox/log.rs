//! The extension's own log: how much is in it, and where it goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup};

const HANG_UP: i32 = 1;

/// A line of level WARN, then one of DEBUG; an ERROR is behind them, so that what is missing then is not there.
fn fail_in_every_way(rig: &Rig) {
    fail_twice(rig);
    rig.server.always(Endpoint::Config, Some(Answer::status(200, "{}")));
    assert_eq!(rig.gen_config().code, 1);
    rig.said("the server gives no configuration that osqueryd could use");
}

/// A line of level WARN, then one of DEBUG.
fn fail_twice(rig: &Rig) {
    // No sign of a server that is not well, which would be left alone after the first one.
    rig.server.always(Endpoint::DistributedRead, Some(Answer::empty(404)));
    for _ in 0..2 {
        assert_eq!(rig.call("distributed", &[("action", "getQueries")]).code, 1);
    }
}

fn setup() -> Setup {
    Setup::new().flag("distributed_tls_max_attempts", "1")
}

/// Waits until a line with this text has come with DEBUG: as each but the first of failures in a row does.
fn said_as_debug(rig: &Rig, text: &str) {
    let is_said = || rig.stderr().lines().any(|line| line.starts_with('D') && line.contains(text));
    rig.osqueryd.wait(&format!("{text:?} with DEBUG"), LIMIT, || is_said().then_some(()));
}

/// Waits until the file has this text.
fn written(rig: &Rig, path: &Path, text: &str) -> String {
    rig.osqueryd.wait(&format!("{text:?} in {}", path.display()), LIMIT, || {
        fs::read_to_string(path).ok().filter(|log| log.contains(text))
    })
}

/// Receives until a datagram has this text, and answers that one.
fn received(socket: &UnixDatagram, text: &str) -> String {
    let mut packet = [0; 2048];
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    loop {
        let length = socket.recv(&mut packet).unwrap_or_else(|error| panic!("no datagram with {text:?}: {error}"));
        let packet = String::from_utf8_lossy(&packet[..length]).into_owned();
        if packet.contains(text) {
            return packet;
        }
    }
}

#[test]
fn the_level_says_how_much_there_is() {
    for (level, warning, debug) in [("error", false, false), ("warning", true, false), ("debug", true, true)] {
        let rig = setup().own_flag(&format!("--log_level={level}")).flag("config_tls_max_attempts", "1").start();
        fail_in_every_way(&rig);
        assert_eq!(rig.stderr().contains("requests fail: distributed read"), warning, "{level}: {}", rig.stderr());
        let failures = rig.stderr().matches("requests fail: distributed read").count();
        assert_eq!(failures > 1, debug, "{level}: {}", rig.stderr());
        assert_eq!(rig.stderr().contains("registered with osqueryd"), debug, "{level}: {}", rig.stderr());
    }
}

#[test]
fn osqueryd_s_verbose_and_the_server_can_ask_for_more() {
    let rig = setup().own_flag("--log_level=error").flag("verbose", "true").start();
    fail_twice(&rig);
    said_as_debug(&rig, "requests fail: distributed read");
    let rig = setup()
        .own_flag("--log_level=error")
        .server(|server| server.config = json!({"schedule": {}, "options": {"custom_remote_tls_log_level": "debug"}}))
        .start_daemon();
    fail_twice(&rig);
    said_as_debug(&rig, "requests fail: distributed read");
}

#[test]
fn a_file_has_what_both_processes_say_and_can_be_rotated_away() {
    let setup = setup();
    let [path, rotated] = ["own.log", "own.log.old"].map(|name| setup.path().join(name));
    let rig = setup.own_flag(&format!("--log_file={}", path.display())).start();
    fail_twice(&rig);
    let log = written(&rig, &path, "requests fail: distributed read");
    assert!(log.contains(" mod.rs:") && log.contains("registered with osqueryd"), "{log}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    log.lines().for_each(|line| rig.said(line));
    fs::rename(&path, &rotated).unwrap();
    rig.server.always(Endpoint::DistributedRead, None);
    assert_eq!(rig.call("distributed", &[("action", "getQueries")]).code, 0);
    written(&rig, &path, "distributed read: works again");
    assert_eq!(fs::read_to_string(&rotated).unwrap(), log);
}

#[test]
fn a_file_that_is_full_becomes_the_one_before() {
    let setup = setup();
    let full = "x".repeat((10 << 20) - 10);
    let path = setup.file("own.log", &full);
    let rig = setup.own_flag(&format!("--log_file={}", path.display())).start();
    written(&rig, &path, "registered with osqueryd");
    assert!(fs::read_to_string(path.with_file_name("own.log.1")).unwrap() == full, "another file is there");
}

#[test]
fn a_hang_up_has_the_flags_of_the_log_read_again() {
    let setup = setup();
    let path = setup.path().join("own.log");
    let rig = setup.start();
    fs::write(rig.directory.path().join("remote_tls.flags"), format!("--log_file={}\n", path.display())).unwrap();
    rig.osqueryd.signal(rig.pid(), HANG_UP);
    written(&rig, &path, "has taken over");
    fail_twice(&rig);
    written(&rig, &path, "requests fail: distributed read");
}

#[test]
fn what_can_t_be_written_is_said_once_and_again_when_it_can() {
    let setup = setup();
    let directory = setup.path().join("missing");
    let [path, socket] = ["own.log", "syslog"].map(|name| directory.join(name));
    let rig = setup
        .own_flag(&format!("--log_file={}", path.display()))
        .own_flag(&format!("--log_syslog={}", socket.display()))
        .own_flag("--log_level=debug")
        .start();
    fail_twice(&rig);
    said_as_debug(&rig, "requests fail: distributed read");
    for place in [format!("log_file {}", path.display()), format!("log_syslog {}", socket.display())] {
        let said = format!("{place} can't be written, the log goes on without it: No such file or directory");
        // By each of the two processes.
        rig.osqueryd.wait(&said, LIMIT, || (rig.stderr().matches(&said).count() == 2).then_some(()));
    }
    fs::create_dir(&directory).unwrap();
    let receiver = UnixDatagram::bind(&socket).unwrap();
    fail_twice(&rig);
    rig.said(&format!("log_file {} is written again; missing there: ", path.display()));
    rig.said(&format!("log_syslog {} is written again; missing there: ", socket.display()));
    received(&receiver, "requests fail: distributed read");
    assert_eq!(rig.stderr().matches("the log goes on without it").count(), 4, "{}", rig.stderr());
}

#[test]
fn the_system_s_log_has_each_line_with_its_severity() {
    let setup = setup();
    let socket = setup.path().join("syslog");
    let receiver = UnixDatagram::bind(&socket).unwrap();
    let rig = setup.own_flag(&format!("--log_syslog={}", socket.display())).own_flag("--request_timeout=x").start();
    // The worker and the front don't wait for each other.
    let mut packets: Vec<String> = Vec::new();
    for _ in 0..2 {
        packets.push(received(&receiver, "remote_tls["));
    }
    packets.sort();
    assert_eq!(
        packets[1],
        format!("<30>remote_tls[{}]: registered with osqueryd as {}", rig.pid(), rig.wait_attached())
    );
    let worker = rig.worker_pid();
    let unusable = "--request_timeout=x can't be used: a whole number of seconds from 1 to 3600 is needed";
    assert_eq!(packets[0], format!("<27>remote_tls[{worker}]: {unusable}"));
    // A syslogd that was restarted listens on another socket.
    drop(receiver);
    fs::remove_file(&socket).unwrap();
    let receiver = UnixDatagram::bind(&socket).unwrap();
    fail_twice(&rig);
    let packet = received(&receiver, "requests fail");
    assert!(packet.starts_with(&format!("<28>remote_tls[{worker}]: requests fail: distributed read (")), "{packet}");
}

#[test]
fn what_fails_again_and_again_is_said_once_and_its_end_with_the_count() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    rig.config();
    rig.server.always(Endpoint::Config, Some(Answer::status(200, "{}")));
    for _ in 0..3 {
        assert_eq!(rig.gen_config().code, 1);
    }
    rig.server.always(Endpoint::Config, None);
    rig.config();
    rig.said("the server gives a usable configuration again, after 3 failures in ");
    let said = format!(
        "the server gives no configuration that osqueryd could use: config (https://{}/config): the answer is not a \
         configuration: an empty object",
        rig.server.hostname()
    );
    assert_eq!(rig.stderr().matches(&said).count(), 1, "{}", rig.stderr());
}
