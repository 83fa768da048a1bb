//! Registration, attachment and the end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::server::{Answer, Endpoint};

use crate::rig::{BINARY, LIMIT, Rig, Setup, extension_of, is_alive, line, pass, program, signal};

/// The end takes less than this, as the invariant has it.
const END_LIMIT: Duration = Duration::from_secs(3);

fn wait_until_gone(process: u32, limit: Duration) {
    let deadline = Instant::now() + limit;
    while is_alive(process) && Instant::now() < deadline {
        pass(Duration::from_millis(1));
    }
    assert!(!is_alive(process), "process {process} is still there after {limit:?}");
}

#[test]
fn it_registers_three_plugins_and_serves_a_private_socket() {
    let rig = Rig::start();
    let registration = rig.osqueryd.registrations().remove(0);
    assert_eq!(registration.name, "remote_tls");
    for registry in ["config", "logger", "distributed"] {
        assert_eq!(registration.plugins[registry], ["remote_tls"]);
    }
    rig.log(&line(0));
    let socket = rig.directory.path().join(format!("osquery.em.{}", registration.uuid));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let left: Vec<_> = fs::read_dir(rig.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".new"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn it_registers_and_takes_lines_while_the_server_can_t_be_reached() {
    let setup = Setup::new().flag("tls_hostname", "localhost:1");
    let rig = setup.start();
    rig.log(&line(0));
}

#[test]
fn it_registers_and_takes_lines_with_settings_that_make_no_request_possible() {
    let rig = Setup::new().flag("tls_hostname", "https://wrong").start();
    rig.log(&line(0));
    let outcome = rig.gen_config();
    assert_eq!(outcome.code, 1);
    assert!(outcome.message.contains("--tls_hostname=https://wrong"), "{}", outcome.message);
}

#[test]
fn every_way_to_end_is_clean_and_quick() {
    for ending in [Some(Signal::TERM), Some(Signal::INT), None] {
        let rig = Rig::start();
        rig.log(&line(0));
        let uuid = rig.wait_attached();
        let socket = rig.directory.path().join(format!("osquery.em.{uuid}"));
        let process = rig.pid();
        match ending {
            Some(by_signal) => {
                let asked = Instant::now();
                signal(process, by_signal);
                let exit = rig
                    .osqueryd
                    .wait("the end", LIMIT, || rig.osqueryd.exits().into_iter().find(|exit| exit.pid == process));
                assert!(exit.at.duration_since(asked) < END_LIMIT, "{exit:?}");
                assert_eq!(exit.status.code(), Some(0), "{exit:?}");
            }
            None => {
                let report = rig.osqueryd.stop();
                assert_eq!(report.exit_code(), Some(0), "{report:?}");
                assert!(report.extensions[0].took < END_LIMIT, "{report:?}");
                assert_eq!(report.sockets_left, Vec::<std::path::PathBuf>::new());
            }
        }
        assert!(!socket.exists(), "the socket is left behind after {ending:?}");
    }
}

#[test]
fn a_hanging_server_does_not_delay_the_end() {
    let rig = Rig::start();
    rig.config();
    rig.server.always(Endpoint::Config, Some(Answer::hang()));
    rig.server.always(Endpoint::Log, Some(Answer::hang()));
    rig.log(&line(0));
    std::thread::scope(|scope| {
        let call = scope.spawn(|| rig.osqueryd.call("config", "remote_tls", &[("action", b"genConfig")]));
        rig.server.wait("both requests", LIMIT, |server| {
            (server.requests_to(Endpoint::Log).len() == 1 && server.requests_to(Endpoint::Config).len() == 2)
                .then_some(())
        });
        let report = rig.osqueryd.stop();
        assert_eq!(report.exit_code(), Some(0), "{report:?}");
        assert!(report.extensions[0].took < END_LIMIT, "{report:?}");
        // The call in flight was answered, with a failure, and not cut off.
        let outcome = call.join().unwrap().unwrap();
        assert_eq!(outcome.code, 1, "{outcome:?}");
    });
}

#[test]
fn what_waits_at_the_end_is_sent_within_a_moment() {
    let rig = Setup::new().flag("logger_tls_period", "3600").start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.log(&line(1));
    assert_eq!(rig.osqueryd.stop().exit_code(), Some(0));
    assert_eq!(rig.delivered(2), [0, 1]);
}

#[test]
fn a_restarted_worker_is_joined_within_a_second() {
    let rig = Rig::start();
    rig.log(&line(0));
    let process = rig.pid();
    for round in 1..=3 {
        let known = rig.osqueryd.registrations().len();
        rig.osqueryd.kill_worker();
        let began = Instant::now();
        rig.osqueryd.start_worker().unwrap();
        rig.wait_attached();
        let joined = rig.osqueryd.registrations()[known].at.duration_since(began);
        assert!(joined < Duration::from_secs(1), "joined after {joined:?}");
        rig.log(&line(round));
    }
    assert_eq!(rig.pid(), process, "the same process");
    assert_eq!(rig.delivered(4), [0, 1, 2, 3]);
}

#[test]
fn a_worker_that_stays_away_for_seconds_is_waited_for() {
    let rig = Rig::start();
    let process = rig.pid();
    rig.osqueryd.kill_worker();
    rig.said("osqueryd's process is gone: waiting for the next one");
    // osqueryd's own timeouts are longer; a test of that length would show no more.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        assert!(is_alive(process));
        pass(Duration::from_millis(10));
    }
    rig.osqueryd.start_worker().unwrap();
    rig.wait_attached();
    assert_eq!(rig.pid(), process);
    rig.log(&line(0));
}

#[test]
fn it_ends_when_no_worker_comes_back() {
    let rig = Setup::new().own_flag("--return_timeout=2").start();
    let process = rig.pid();
    rig.osqueryd.kill_worker();
    let gone = Instant::now();
    let exit =
        rig.osqueryd.wait("the end", LIMIT, || rig.osqueryd.exits().into_iter().find(|exit| exit.pid == process));
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
    assert!(exit.at.duration_since(gone) >= Duration::from_secs(2), "{exit:?}");
    rig.said("osqueryd did not come back within 2 s: ending");
}

#[test]
fn an_extension_that_osqueryd_has_dropped_registers_again() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    let first = rig.wait_attached();
    rig.osqueryd.drop_extension(first);
    rig.osqueryd.wait("another registration", LIMIT, || (rig.osqueryd.registrations().len() == 2).then_some(()));
    rig.wait_attached();
    rig.log(&line(0));
    assert_eq!(rig.delivered(1), [0]);
}

#[test]
fn it_ends_with_osqueryd() {
    let setup = Setup::new();
    let standin = program("osqueryd-standin");
    let extension = setup.path().join("remote_tls.ext");
    fs::copy(BINARY, &extension).unwrap();
    let load = setup.file("extensions.load", &format!("{}\n", extension.display()));
    let socket = setup.path().join("osquery.em");
    let flagfile = setup.file(
        "osquery.flags",
        &format!(
            "--extensions_autoload={}\n--extensions_socket={}\n--database_path={}\n--tls_hostname=localhost:1\n\
             --logger_plugin=remote_tls\n--verbose\n",
            load.display(),
            socket.display(),
            setup.path().join("osquery.db").display()
        ),
    );
    let log = fs::File::create(setup.path().join("log")).unwrap();
    let mut osqueryd = Command::new(standin)
        .args(["--flagfile", flagfile.to_str().unwrap(), "--allow_unsafe"])
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let extension = wait_for_child(osqueryd.id(), setup.path());
    osqueryd.kill().unwrap();
    osqueryd.wait().unwrap();
    wait_until_gone(extension, Duration::from_secs(5));
}

/// The process that `parent` has started, once it serves its socket.
fn wait_for_child(parent: u32, directory: &Path) -> u32 {
    let deadline = Instant::now() + LIMIT;
    loop {
        let serves = fs::read_dir(directory).unwrap().flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_prefix("osquery.em.").is_some_and(|uuid| uuid.parse::<u16>().is_ok())
        });
        match extension_of(parent) {
            Some(child) if serves => return child,
            _ if Instant::now() > deadline => {
                panic!("no extension:\n{}", fs::read_to_string(directory.join("log")).unwrap_or_default())
            }
            _ => pass(Duration::from_millis(1)),
        }
    }
}

/// Issue 12: with two lines in extensions.load, the second copy filled osqueryd's log with refusals.
#[test]
fn a_second_copy_says_so_once_and_leaves_the_first_alone() {
    let rig = Rig::start();
    rig.log(&line(0));
    let socket = rig.directory.path().join("osquery.em");
    let mut second = Command::new(BINARY).arg("--socket").arg(&socket).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(second.stderr.take().unwrap()).lines();
    let message = said.next().unwrap().unwrap();
    assert!(message.contains("osqueryd has another extension remote_tls already"), "{message}");
    rig.log(&line(1));
    assert_eq!(rig.delivered(2), [0, 1]);
    assert!(second.try_wait().unwrap().is_none(), "osqueryd would start it again and again");
    signal(second.id(), Signal::TERM);
    assert_eq!(second.wait().unwrap().code(), Some(0));
    assert!(said.next().is_none(), "once");
}
