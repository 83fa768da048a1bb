//! Front and worker: what happens when one of them dies, hangs or is replaced, and that osqueryd doesn't notice.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use osquery_remote_tls::control::{self, Order};
use osquery_remote_tls::extension::registry::{Plugin, Registry, RegistryName, Reply, StringMap};
use osquery_remote_tls::extension::service::Service;
use rustix::process::Signal;
use testkit::server::{Answer, Endpoint};

use serde_json::json;

use crate::rig::{BINARY, LIMIT, Rig, Setup, child_of, is_alive, line, pass, signal};

/// Kills of the worker in the quick form of the crash test; `CRASH_KILLS` sets another number.
const KILLS: u32 = 25;

/// Waits until another worker than this one is there.
fn successor(rig: &Rig, predecessor: u32) -> u32 {
    rig.osqueryd.wait("another worker", LIMIT, || child_of(rig.pid()).filter(|&worker| worker != predecessor))
}

/// What became of the calls of a load.
#[derive(Default)]
pub(crate) struct Calls {
    /// The numbers of the lines that were taken.
    pub(crate) taken: Vec<u64>,
    /// Calls that failed since no process listened.
    pub(crate) refused: Vec<String>,
    /// Calls that failed in the middle.
    pub(crate) broken: usize,
}

/// Logs lines from several threads while `disturb` does what it does.
pub(crate) fn load(rig: &Rig, disturb: impl FnOnce()) -> Calls {
    let next = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let log = || {
        let mut calls = Calls::default();
        while !over.load(Ordering::SeqCst) {
            let n = next.fetch_add(1, Ordering::SeqCst);
            match rig.osqueryd.call("logger", "remote_tls", &[("string", line(n).as_bytes())]) {
                Ok(outcome) if outcome.code == 0 => calls.taken.push(n),
                Ok(outcome) => calls.refused.push(outcome.message),
                Err(error) if error.contains("cannot connect") => calls.refused.push(error),
                Err(_) => calls.broken += 1,
            }
        }
        calls
    };
    std::thread::scope(|scope| {
        let loggers: Vec<_> = (0..4).map(|_| scope.spawn(log)).collect();
        disturb();
        over.store(true, Ordering::SeqCst);
        let mut all = Calls::default();
        for logger in loggers {
            let calls = logger.join().unwrap();
            all.taken.extend(calls.taken);
            all.refused.extend(calls.refused);
            all.broken += calls.broken;
        }
        all
    })
}

/// Every line that was taken is delivered, at least once.
pub(crate) fn all_delivered(rig: &Rig, taken: &[u64]) {
    // Hundreds of kills take minutes, and hundreds of thousands of lines meanwhile.
    let limit = LIMIT + Duration::from_millis(taken.len() as u64 / 2);
    rig.server.wait("every line that was taken", limit, |server| (server.result_count() >= taken.len()).then_some(()));
    rig.settled();
    let delivered: std::collections::BTreeSet<u64> = crate::rig::numbers(&rig.server.results()).into_iter().collect();
    let lost: Vec<&u64> = taken.iter().filter(|n| !delivered.contains(n)).collect();
    assert!(lost.is_empty(), "{} of {} lines are lost: {lost:?}", lost.len(), taken.len());
}

#[test]
fn a_worker_killed_again_and_again_costs_no_call_and_no_line() {
    let kills = std::env::var("CRASH_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let rig = Rig::start();
    let mut random = fastrand::Rng::with_seed(1);
    let calls = load(&rig, || {
        let mut worker = rig.worker_pid();
        for _ in 0..kills {
            pass(Duration::from_micros(random.u64(..40_000)));
            signal(worker, Signal::KILL);
            worker = successor(&rig, worker);
        }
    });
    println!("{kills} kills, {} lines taken, {} calls broken in the middle", calls.taken.len(), calls.broken);
    assert_eq!((calls.refused, calls.broken), (Vec::new(), 0));
    assert!(calls.taken.len() > kills as usize, "{} lines", calls.taken.len());
    assert_eq!(rig.osqueryd.registrations().len(), 1, "osqueryd has not noticed");
    all_delivered(&rig, &calls.taken);
}

/// Every kind of call that is relayed.
#[test]
fn calls_that_a_killed_worker_was_at_are_answered_by_the_next_one() {
    let rig = Rig::start();
    rig.config();
    let log = r#"[{"s":1,"f":"a.cpp","i":1,"m":"said once","h":"h","c":"Mon","u":1}]"#;
    type Request = (&'static str, &'static str, Vec<(&'static str, &'static str)>);
    let requests: [Request; 5] = [
        ("config", "remote_tls", vec![("action", "genConfig")]),
        ("distributed", "remote_tls", vec![("action", "getQueries")]),
        ("distributed", "remote_tls", vec![("action", "writeResults"), ("results", "{\"queries\":{}}")]),
        ("logger", "remote_tls", vec![("status", "true"), ("log", log)]),
        ("table", "remote_tls_buffer", vec![("action", "generate"), ("context", "{}")]),
    ];
    let over = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        let callers: Vec<_> = requests
            .into_iter()
            .map(|(registry, plugin, request)| {
                let (rig, over) = (&rig, &over);
                scope.spawn(move || {
                    let request: Vec<(&str, &[u8])> =
                        request.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
                    let mut failed = Vec::new();
                    while !over.load(Ordering::SeqCst) {
                        match rig.osqueryd.call(registry, plugin, &request) {
                            Ok(outcome) if outcome.is_ok() => {}
                            other => failed.push(format!("{registry}: {other:?}")),
                        }
                    }
                    failed
                })
            })
            .collect();
        let mut random = fastrand::Rng::with_seed(2);
        let mut worker = rig.worker_pid();
        for _ in 0..15 {
            pass(Duration::from_micros(random.u64(..60_000)));
            signal(worker, Signal::KILL);
            worker = successor(&rig, worker);
        }
        over.store(true, Ordering::SeqCst);
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(failed, Vec::<String>::new());
}

#[test]
fn sighup_brings_in_a_new_worker_without_a_lost_call() {
    let rig = Rig::start();
    let front = rig.pid();
    let calls = load(&rig, || {
        for _ in 0..3 {
            let worker = rig.worker_pid();
            let renewals = rig.stderr().matches("has taken over").count();
            signal(front, Signal::HUP);
            rig.osqueryd.wait("the new worker", LIMIT, || {
                (rig.stderr().matches("has taken over").count() > renewals && !is_alive(worker)).then_some(())
            });
        }
    });
    assert_eq!((calls.refused, calls.broken), (Vec::new(), 0));
    all_delivered(&rig, &calls.taken);
    assert_eq!(rig.pid(), front);
    assert_eq!(rig.osqueryd.registrations().len(), 1);
}

/// Puts another program in the extension's place, as package managers do.
fn replace(rig: &Rig, content: &[u8]) {
    let new = rig.directory.path().join("upgrade");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, rig.directory.path().join("osquery-remote-tls.ext")).unwrap();
}

/// The file that a process runs, unless it is gone from the disk.
fn runs_what_is_installed(rig: &Rig, process: u32) -> bool {
    let installed = fs::canonicalize(rig.directory.path().join("osquery-remote-tls.ext")).unwrap();
    fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|path| path == installed)
}

#[test]
fn another_binary_on_disk_replaces_worker_and_front_without_a_refused_call() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    let (front, first) = (rig.pid(), rig.worker_pid());
    let calls = load(&rig, || {
        replace(&rig, &fs::read(BINARY).unwrap());
        rig.said("another binary is there: starting a new worker");
        rig.said("has taken over");
        rig.said("going on with the new binary");
        rig.osqueryd
            .wait("the new front", LIMIT, || (runs_what_is_installed(&rig, front) && !is_alive(first)).then_some(()));
        rig.said("as which osqueryd has registered this extension");
    });
    assert_eq!((calls.refused, calls.broken), (Vec::new(), 0));
    assert_eq!(rig.pid(), front, "the same process");
    assert_eq!(rig.osqueryd.registrations().len(), 1, "the same registration");
    all_delivered(&rig, &calls.taken);
    // What the new front has got works: its worker can be killed, and so can it.
    let worker = rig.worker_pid();
    signal(worker, Signal::KILL);
    successor(&rig, worker);
    rig.log(&line(1_000_000));
    assert_eq!(rig.config().0, "tls_plugin");
    let report = rig.osqueryd.stop();
    assert_eq!(report.exit_code(), Some(0), "{report:?}");
}

#[test]
fn a_binary_that_is_of_no_use_is_not_taken_into_use() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    let (front, worker) = (rig.pid(), rig.worker_pid());
    replace(&rig, b"#!/bin/sh\nexit 1\n");
    rig.said("the new worker is of no use");
    rig.log(&line(1));
    assert_eq!(rig.delivered(2), [0, 1]);
    assert_eq!((rig.pid(), rig.worker_pid()), (front, worker));
}

/// From the soak beside six busy loops: the next front had knocked before the worker stood in, and then waited for it to go.
#[test]
fn a_front_takes_over_from_a_worker_that_notices_late_that_its_own_is_gone() {
    let rig = Rig::start();
    rig.log(&line(0));
    let (front, worker) = (rig.pid(), rig.worker_pid());
    signal(worker, Signal::STOP);
    signal(front, Signal::KILL);
    let before = rig.osqueryd.transcript().len();
    rig.osqueryd.wait("the next front, which has found no worker to take over from", LIMIT, || {
        rig.osqueryd.transcript().get(before..)?.contains("manager: extensions").then_some(())
    });
    signal(worker, Signal::CONT);
    rig.said("another front has taken over");
    rig.said("as which osqueryd has registered this extension");
    assert_eq!(rig.osqueryd.registrations().len(), 1);
    rig.log(&line(1));
    assert_eq!(rig.delivered(2), [0, 1]);
    assert_ne!(rig.pid(), front);
}

/// From the soak beside two busy loops: a call that a stand-in was at with the server was cut off, with no answer.
#[test]
fn a_call_that_a_stand_in_is_at_is_answered_when_the_next_front_takes_over() {
    let rig = Setup::new().osqueryd(|options| options.watch_interval = Duration::from_secs(4)).start();
    rig.config();
    let first = rig.pid();
    signal(first, Signal::KILL);
    // osqueryd's watcher has just looked: it looks again after four seconds.
    rig.said("as which osqueryd has registered this extension");
    // Its worker answers.
    rig.config();
    rig.server.always(Endpoint::DistributedRead, Some(Answer::hang()));
    let second = rig.pid();
    assert_ne!(first, second);
    signal(second, Signal::KILL);
    let stand_ins = || rig.stderr().matches("this worker answers osqueryd until there is another one").count();
    rig.osqueryd.wait("another stand-in", LIMIT, || (stand_ins() == 2).then_some(()));
    let outcome = rig.call("distributed", &[("action", "getQueries")]);
    assert!(!outcome.message.contains("Extension call failed"), "{outcome:?}");
    let successors = || rig.stderr().matches("another front has taken over").count();
    rig.osqueryd.wait("the third front", LIMIT, || (successors() == 2).then_some(()));
}

/// From a review of the supervision: the second binary was seen while the first one's worker was tried, and never tried itself.
#[test]
fn a_binary_that_comes_while_another_one_is_tried_is_taken_into_use() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    replace(&rig, b"#!/bin/sh\nsleep 5\n");
    rig.said("another binary is there: starting a new worker");
    replace(&rig, &fs::read(BINARY).unwrap());
    rig.said("the new worker is of no use (it ended)");
    rig.said("going on with the new binary");
    rig.log(&line(1));
    assert_eq!(rig.delivered(2), [0, 1]);
}

#[test]
fn a_worker_that_hangs_is_replaced_and_its_calls_are_answered() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    let worker = rig.worker_pid();
    signal(worker, Signal::STOP);
    // Result lines don't need it.
    let began = Instant::now();
    (1..9).for_each(|n| rig.log(&line(n)));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(rig.config().0, "tls_plugin", "answered by the next one");
    rig.said("has not answered for 5 s: killing it");
    assert_ne!(rig.worker_pid(), worker);
    assert_eq!(rig.delivered(9), (0..9).collect::<Vec<u64>>());
}

#[test]
fn a_worker_stands_in_for_a_front_that_was_killed_until_the_next_one_takes_over() {
    let rig = Rig::start();
    rig.config();
    let uuid = rig.wait_attached();
    for round in 1..=3 {
        let front = rig.pid();
        let calls = load(&rig, || {
            pass(Duration::from_millis(200));
            signal(front, Signal::KILL);
            rig.osqueryd.wait("the next front", LIMIT, || {
                (rig.stderr().matches("another front has taken over").count() == round).then_some(())
            });
        });
        // A call that the front was at when it was killed is lost with it: at most one a caller.
        assert!(calls.refused.is_empty() && calls.broken <= 4, "{:?}, {} broken", calls.refused, calls.broken);
        all_delivered(&rig, &calls.taken);
        assert_ne!(rig.pid(), front);
    }
    assert_eq!(rig.osqueryd.registrations().len(), 1, "osqueryd has not noticed");
    assert_eq!(rig.wait_attached(), uuid);
    assert_eq!(rig.config().0, "tls_plugin");
}

#[test]
fn a_stand_in_answers_every_kind_of_call() {
    let rig = Rig::start();
    let uuid = rig.wait_attached();
    let (front, worker) = (rig.pid(), rig.worker_pid());
    rig.server.stop();
    // The watcher can't start another one.
    fs::remove_file(rig.directory.path().join("osquery-remote-tls.ext")).unwrap();
    signal(front, Signal::KILL);
    rig.said("this worker answers osqueryd until there is another one");
    rig.log(&line(0));
    let log = r#"[{"s":1,"f":"a.cpp","i":1,"m":"while it stands in","h":"h","c":"Mon","u":1}]"#;
    assert_eq!(rig.call("logger", &[("status", "true"), ("log", log)]).code, 0);
    let rows = rig.osqueryd.call("table", "remote_tls_buffer", &[("action", b"generate")]).unwrap().rows;
    assert_eq!(rows.len(), 3);
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(1), [0]);
    assert_eq!(rig.config().0, "tls_plugin");
    assert_eq!(rig.osqueryd.uuid("remote_tls"), Some(uuid));
    assert!(is_alive(worker));
    rig.osqueryd.kill_worker();
    rig.osqueryd.wait("the end with osqueryd", LIMIT, || (!is_alive(worker)).then_some(()));
}

#[test]
fn both_processes_are_known_by_name() {
    let rig = Rig::start();
    let command = |process: u32| fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
    assert!(command(rig.pid()).contains("osquery-remote-tls.ext"), "{}", command(rig.pid()));
    assert!(command(rig.worker_pid()).starts_with("remote_tls.ext: worker 1\0"), "{}", command(rig.worker_pid()));
}

#[test]
fn a_worker_is_not_to_be_started_by_hand() {
    let output =
        std::process::Command::new(BINARY).arg("--worker").stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("started by a front, not by hand"), "{message}");
}

#[test]
fn an_osqueryd_that_hangs_does_not_delay_the_end() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    let process = rig.pid();
    rig.osqueryd.hang(true);
    rig.osqueryd.wait("a check of the registration that hangs", LIMIT, || {
        let transcript = rig.osqueryd.transcript();
        let (_, since) = transcript.rsplit_once("the manager hangs: true")?;
        since.contains("manager: extensions").then_some(())
    });
    let asked = Instant::now();
    signal(process, Signal::TERM);
    let exit =
        rig.osqueryd.wait("the end", LIMIT, || rig.osqueryd.exits().into_iter().find(|exit| exit.pid == process));
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
    // Waiting for its answer would take 10 s; ending takes 2 s, and a busy machine its time.
    assert!(exit.at.duration_since(asked) < Duration::from_secs(8), "{exit:?}");
    rig.osqueryd.hang(false);
}

/// Set for a worker of another version, which [`be_a_worker_of_another_version`] is.
const OTHER_VERSION: &str = "REMOTE_TLS_OTHER_VERSION";

/// Answers each genConfig.
struct OtherConfig;

impl Plugin for OtherConfig {
    fn registry(&self) -> RegistryName {
        RegistryName::Config
    }

    fn call(&self, _: StringMap) -> Reply {
        Reply::row("tls_plugin", "{\"schedule\":{\"of_another_version\":{}}}")
    }
}

/// No test by itself: a front under test starts this program as its worker. It says what no front of this version knows,
/// and leaves out what it may.
#[test]
fn be_a_worker_of_another_version() {
    if std::env::var_os(OTHER_VERSION).is_none() {
        return;
    }
    let stream = control::on_standard_input().unwrap();
    let mut orders = control::Receiver::new(stream.try_clone().unwrap());
    let service = Service::new(Arc::new(Registry::new(vec![Box::new(OtherConfig)])));
    let say = |message: serde_json::Value| control::send(&stream, &message, &[]).unwrap();
    control::send(&stream, &json!({"sings": {"song": 7}}), &[stream.as_fd()]).unwrap();
    say(json!("hums"));
    say(json!({"ready": {"version": "99.0", "mood": ["good"]}}));
    say(json!({"wake_me": {"file": 0, "offset": 0, "softly": true}}));
    while let Some((order, descriptors)) = orders.receive::<Order>().unwrap() {
        match order {
            Order::Call {} => {
                let call = control::as_stream(descriptors).unwrap();
                let frame = control::hear(&call).unwrap();
                control::reply(&call, &service.answer(&frame).unwrap()).unwrap();
            }
            Order::Ping { number } => say(json!({"pong": {"number": number, "loudness": 11}})),
            Order::HandOver {} | Order::Stop {} => break,
            _ => {}
        }
    }
}

#[test]
fn a_front_gets_along_with_a_worker_of_another_version() {
    let rig = Setup::new().flag("extensions_interval", "1").start();
    rig.log(&line(0));
    rig.delivered(1);
    let test = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\n{OTHER_VERSION}=1 exec '{}' --exact front::be_a_worker_of_another_version --nocapture\n",
        test.display()
    );
    replace(&rig, script.as_bytes());
    rig.said("has taken over");
    assert!(rig.config().1.contains("of_another_version"));
    // Its lines are taken, although no worker sends them.
    (1..20).for_each(|n| rig.log(&line(n)));
    assert!(rig.osqueryd.call("distributed", "remote_tls", &[("action", b"getQueries")]).unwrap().code != 0);
    // And back.
    replace(&rig, &fs::read(BINARY).unwrap());
    rig.osqueryd.wait("the real worker", LIMIT, || (rig.stderr().matches("has taken over").count() == 2).then_some(()));
    assert_eq!(rig.delivered(20), (0..20).collect::<Vec<u64>>());
    assert_eq!(rig.osqueryd.registrations().len(), 1);
}

#[test]
fn a_worker_gets_along_with_a_front_of_another_version() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    // osqueryd itself is not there, and switches and flags of another version are.
    let mut worker = std::process::Command::new(BINARY)
        .args(["--worker", "--switch_of_another_version", "--flag_of_another_version=7", "--socket"])
        .arg(directory.path().join("osquery.em"))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    let say = |message: serde_json::Value| control::send(&ours, &message, &[ours.as_fd()]).unwrap();
    let database = directory.path().join("osquery.db").display().to_string();
    say(json!({"start": {"options": {"database_path": database, "tls_hostname": "localhost:1"}, "tempo": 3}}));
    say(json!({"dances": {"how": "well"}}));
    say(json!({"attached": {"uuid": 7, "since": "yesterday"}}));
    let mut reports = control::Receiver::new(ours.try_clone().unwrap());
    loop {
        match reports.receive::<control::Report>().unwrap().expect("it goes on").0 {
            control::Report::Ready(ready) => break assert!(ready.resumes, "{ready:?}"),
            _ => continue,
        }
    }
    let (call, asked) = UnixStream::pair().unwrap();
    control::send(&ours, &json!({"call": {"urgent": true}}), &[asked.as_fd()]).unwrap();
    drop(asked);
    let ping = b"\x80\x01\x00\x01\x00\x00\x00\x04ping\x00\x00\x00\x01\x00";
    let pong = control::ask(&call, ping).unwrap();
    assert!(pong.windows(4).any(|four| four == b"pong"), "{pong:?}");
    say(json!({"stop": {"reason": "it is late"}}));
    assert_eq!(worker.wait().unwrap().code(), Some(0));
}
