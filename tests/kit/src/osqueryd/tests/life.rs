//! How the stand-in comes up, runs its schedule, dies and comes back.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::extension::{Fake, client, usual};
use crate::osqueryd::thrift_api::{TExtensionManagerSyncClient, TExtensionSyncClient};
use crate::osqueryd::{CallOutcome, Options, Osqueryd};

const LIMIT: Duration = Duration::from_secs(10);
const CONFIG: &str = r#"{
    "decorators": {"load": ["select 'dv' as deco"]},
    "schedule": {
        "a_change": {"query": "select unix_time / 1000000 as x, 'k' as y from time", "interval": 1},
        "b_snap": {"query": "select 1 as one", "interval": 1, "snapshot": true},
        "c_bad": {"query": "select * from nosuch", "interval": 1}
    },
    "packs": {"p": {"queries": {"q": {"query": "select 2 as two", "interval": 1}}}}
}"#;

/// Options whose watcher has something to wait for: an extension that never registers.
pub(super) fn with_sleeper(dir: &std::path::Path) -> Options {
    let script = dir.join("sleeper.ext");
    fs::write(&script, "#!/bin/sh\necho \"own $OSQUERY_EXTENSION $$ $*\" >&2\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    Options::new(dir).extension(&script)
}

#[test]
fn a_worker_comes_up_in_osquerys_order_and_runs_the_schedule() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_sleeper(dir.path()).flag("config_refresh", "3600");
    options.scheduler = true;
    options.status_relay = true;
    options.relay_interval = Duration::from_millis(20);
    options.time_scale = 20;
    let daemon = Osqueryd::launch(options).unwrap();
    let fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
    daemon.wait("three runs", LIMIT, || (fake.values("snapshot").len() >= 3).then_some(()));
    assert_eq!(fake.calls()[..3], ["config genConfig", "logger init", "logger features"]);
    let lines: Vec<Value> = fake.values("string").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line["name"].as_str().unwrap()).collect();
    // Nothing changes, so that each is logged once.
    assert_eq!(names, ["a_change", "pack_p_q"]);
    assert_eq!(lines[0]["decorations"]["deco"], "dv");
    assert_eq!((&lines[0]["action"], &lines[0]["counter"]), (&"added".into(), &0.into()));
    assert!(daemon.wait("the error to be relayed", LIMIT, || {
        let relayed = fake.values("log");
        relayed.iter().any(|log| log.contains("Error executing scheduled query c_bad: no such table")).then_some(true)
    }));
    let report = daemon.stop();
    assert_eq!((fake.shutdowns(), daemon.exit_code()), (1, Some(0)));
    assert_eq!(report.worker.unwrap().status.unwrap().code(), Some(0));
    assert!(!fake.socket.exists() && !daemon.socket().exists() && report.sockets_left.is_empty());
}

#[test]
fn a_plugin_that_does_not_come_ends_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let error = Osqueryd::start(with_sleeper(dir.path()).flag("extensions_timeout", "0")).map(drop).unwrap_err();
    assert_eq!(error.code, 78);
    assert_eq!(error.message, "Cannot activate remote_tls config plugin: Unknown registry plugin: remote_tls");
}

#[test]
fn an_extension_is_given_its_arguments_and_its_own_process_id() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Osqueryd::start_bare(with_sleeper(dir.path()));
    let pid = daemon.wait("the child", LIMIT, || daemon.extension_pid("sleeper"));
    let expected = format!("own {pid} {pid} --socket {} --timeout 3 --interval 3\n", daemon.socket().display());
    daemon.wait("its line", LIMIT, || (daemon.stderr_of_extensions() == expected).then_some(()));
    daemon.signal(pid, 9);
    let next = daemon.wait("the next", LIMIT, || daemon.extension_pid("sleeper").filter(|next| *next != pid));
    assert_eq!(daemon.exits()[0].pid, pid);
    let report = daemon.stop();
    assert_eq!((report.extensions[0].pid, report.extensions[0].killed), (next, false));
    assert_eq!(report.exit_code(), None);
}

#[test]
fn a_refused_line_ends_the_daemon_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_sleeper(dir.path());
    options.scheduler = true;
    let daemon = Osqueryd::launch(options).unwrap();
    let refuses = usual(CONFIG);
    let fake = Fake::start(&daemon.socket(), move |registry, request| match request.contains_key("string") {
        true => CallOutcome { code: 1, ..CallOutcome::default() },
        false => refuses(registry, request),
    });
    let code = daemon.wait("the end", LIMIT, || daemon.exit_code());
    assert_eq!(code, 78);
    daemon.stop();
    assert_eq!(fake.unwrap().shutdowns(), 1);
    assert!(daemon.children().is_empty() && !daemon.socket().exists());
    // The difference was stored before it was logged: it is lost.
    assert!(daemon.store_get("queries", "a_change").is_some());
}

#[test]
fn a_killed_worker_cuts_connections_and_a_new_one_knows_only_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Osqueryd::start_bare(Options::new(dir.path()));
    let mut fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
    daemon.gen_config();
    daemon.store_put("configurations", "nodeKey", "k");
    assert_eq!(daemon.schedule().len(), 4);
    daemon.kill_worker();
    assert!(fake.manager.ping().is_err());
    assert!(daemon.socket().exists() && fake.socket.exists());
    assert_eq!(fake.shutdowns(), 0);
    assert!(daemon.call("logger", "remote_tls", &[("string", b"x")]).is_err());
    assert_eq!(daemon.exit_code(), None);
    daemon.start_worker().unwrap();
    assert!(!fake.socket.exists() && daemon.uuid("remote_tls").is_none() && daemon.schedule().is_empty());
    assert_eq!(daemon.store_get("configurations", "nodeKey").as_deref(), Some("k"));
    let again = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
    assert_eq!(daemon.wait_registered(LIMIT), again.uuid);
    assert_eq!(daemon.registrations().iter().map(|registration| registration.worker).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_hung_manager_accepts_and_answers_later() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Osqueryd::start_bare(Options::new(dir.path()));
    daemon.hang(true);
    let mut manager = client(&daemon.socket());
    let done = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&done);
    let thread = std::thread::spawn(move || {
        manager.options().unwrap();
        told.store(true, Ordering::SeqCst);
    });
    daemon.wait("the call", LIMIT, || daemon.transcript().contains("manager: options").then_some(()));
    assert!(!done.load(Ordering::SeqCst));
    daemon.hang(false);
    thread.join().unwrap();
}

#[test]
fn a_failed_refresh_is_followed_by_the_accelerated_interval() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path()).flag("config_refresh", "60").flag("config_accelerated_refresh", "7");
    let daemon = Osqueryd::start_bare(options);
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let _fake = Fake::start(&daemon.socket(), move |_, _| CallOutcome {
        code: failing.load(Ordering::SeqCst).into(),
        ..CallOutcome::default()
    });
    daemon.gen_config();
    assert_eq!(daemon.config_interval(), 60);
    fails.store(true, Ordering::SeqCst);
    daemon.gen_config();
    assert_eq!(daemon.config_interval(), 7);
    fails.store(false, Ordering::SeqCst);
    daemon.gen_config();
    assert_eq!(daemon.config_interval(), 60);
}
