//! A host where all is well: nothing is wrong, nothing is changed, and how it is shown.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::server::Endpoint;

use super::running::{start, well};
use super::{Host, examine, look, run_doctor, state};
use crate::rig::{BINARY, Setup, line};

#[test]
fn a_host_where_all_is_well() {
    let (rig, flagfile) = start(well(Setup::new()));
    rig.config();
    rig.log(&line(0));
    rig.settled();
    rig.server.add_query("q", "SELECT 1");
    let key = rig.stored_key().unwrap();
    let before = rig.server.requests().len();

    let own = rig.directory.path().join("remote_tls.flags");
    let examined = examine(&flagfile, &own, &["--deep"]);
    assert_eq!(examined.code, 0, "{}", examined.text);
    assert!(!examined.text.contains(&key), "{}", examined.text);
    examined.must_say("socket", "ok", "osqueryd 5.23.0, flag file ", "");
    examined.must_say("running osqueryd", "ok", "is registered", "");
    examined.must_say("active plugins", "ok", "active as config, logger, distributed", "");
    examined.must_say("worker", "ok", "the extension answers; its worker runs for ", "");
    examined.must_say("enroll endpoint", "ok", "enrolled as ", "");
    examined.must_say("config endpoint", "ok", "a configuration of ", "");
    examined.must_say("tls handshake", "ok", "TLS 1.3, ", "");
    assert!(examined.text.contains("       CN=localhost for localhost, 127.0.0.1, ::1, issued by CN=testkit"));
    examined.must_say("logger endpoint", "ok", "/log: works, last ", "");
    for check in ["distributed read endpoint", "distributed write endpoint"] {
        examined.must_say(check, "ok", "rejects a node key that is invalid", "");
    }
    examined.must_say("delivery", "ok", "0 lines wait, none was dropped", "");
    examined.must_say("buffers", "ok", "remote_tls: empty", "");

    // Every check has its say, once, in the order of the documentation, which has a section for each.
    let said: Vec<&str> = examined.findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    let documentation = include_str!("../../../docs/doctor.md");
    let documented: Vec<&str> = documentation.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(said, documented);
    assert_eq!(said, osquery_remote_tls::doctor::Check::ALL.map(|check| check.name()));

    // It left no trace: not with the server, not with osqueryd.
    assert_eq!(rig.server.node_keys().len(), 1);
    assert_eq!(rig.stored_key().as_deref(), Some(key.as_str()));
    assert_eq!((rig.server.result_count(), rig.server.statuses().len(), rig.server.written().len()), (1, 0, 0));
    let read = rig.call("distributed", &[("action", "getQueries")]);
    assert!(read.rows[0]["results"].contains("SELECT 1"), "{read:?}");
    rig.log(&line(1));
    rig.delivered(2);

    // Without --deep nothing is asked but the configuration.
    let asked = rig.server.requests().len();
    assert!(asked > before);
    rig.server.forget_requests();
    assert_eq!(look(&flagfile, &own, &[]).code, 0);
    let requests = rig.server.requests();
    assert!(requests.iter().all(|request| request.endpoint == Endpoint::Config), "{}", rig.server.transcript());
}

#[test]
fn it_changes_nothing_on_a_host_without_osqueryd() {
    let rig = Setup::new().start();
    rig.server.stop();
    rig.log(&line(0));
    rig.osqueryd.stop();
    let host = Host::new();
    copy(&rig.directory.path().join("remote_tls"), &host.path("remote_tls"));
    let before = state(host.directory.path());
    let examined = host.examine(&["--deep"]);
    examined.must_say("buffers", "ok", "1 result line waits", "");
    examined.must_say("socket", "warning", "osqueryd does not run: no process listens at", "start osqueryd");
    examined.must_say("running osqueryd", "skipped", "osqueryd can't be asked", "");
    let mut after = state(host.directory.path());
    // The test's own.
    after.retain(|(path, ..)| *path != host.path("osquery.flags"));
    assert!(before == after, "something changed");
    assert_eq!(host.server.node_keys().len(), 0);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn what_is_not_well_stands_again_at_the_end_and_alone_when_it_is_quiet() {
    let mut host = Host::new();
    host.flag("config_refresh", "0");
    let (flagfile, own) = (host.flagfile(), host.path("remote_tls.flags"));
    let (_, text) = run_doctor(&flagfile, &own, &[]);
    let problem = "warn flag combinations: --config_refresh is 0 (osquery's default): a new configuration comes only when \
                   osqueryd starts\n     -> set --config_refresh=300, or how many seconds it may take\n";
    let (lines, ending) = text.split_once("\nWhat is not well:\n").unwrap_or_else(|| panic!("{text}"));
    assert!(lines.contains(problem) && ending.starts_with(problem), "{text}");
    let (code, quiet) = run_doctor(&flagfile, &own, &["--quiet"]);
    assert_eq!(code, 2);
    assert!(quiet.starts_with(problem) && !quiet.contains("ok  "), "{quiet}");
    let (_, json) = run_doctor(&flagfile, &own, &["--quiet", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let levels: Vec<&str> =
        json["findings"].as_array().unwrap().iter().map(|finding| finding["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["warning", "warning"]);
    assert!(json["host"].is_string() && json["time"].is_i64(), "{json}");
    assert_eq!(json["versions"]["doctor"], env!("CARGO_PKG_VERSION"));
}

/// For roll-outs: osqueryd still runs the built-in plugins, and is restarted when this answers 0.
#[test]
fn before_a_restart_only_what_the_next_start_finds_counts() {
    let mut setup = well(Setup::new()).osqueryd(|options| options.extensions.clear());
    for registry in ["config", "logger", "distributed"] {
        setup = setup.flag(&format!("{registry}_plugin"), "filesystem");
    }
    let mut host = Host::new();
    let (_server, options, directory) = setup.finish();
    let osqueryd = testkit::osqueryd::Osqueryd::start_bare(options);
    osqueryd.wait("osqueryd's socket", crate::rig::LIMIT, || osqueryd.socket().exists().then_some(()));
    host.flag("extensions_socket", osqueryd.socket().to_str().unwrap());
    host.flag("config_refresh", "0");
    let (flagfile, own) = (host.flagfile(), host.path("remote_tls.flags"));
    assert_eq!(look(&flagfile, &own, &[]).code, 1, "osqueryd runs without the extension");
    let examined = look(&flagfile, &own, &["--before"]);
    assert_eq!(examined.code, 0, "{}", examined.text);
    examined.must_say("running osqueryd", "skipped", "what runs until the restart doesn't matter (--before)", "");
    examined.must_say("flag combinations", "warning", "--config_refresh is 0", "");
    osqueryd.stop();
    assert_eq!(look(&flagfile, &own, &["--before"]).code, 0);
    // What would go wrong at the restart counts.
    fs::remove_file(host.path("remote_tls.ext")).unwrap();
    assert_eq!(look(&flagfile, &own, &["--before"]).code, 1);
    drop(directory);
}

#[test]
fn its_help_has_every_option_and_its_manual_too() {
    let help = String::from_utf8(Command::new(BINARY).args(["doctor", "--help"]).output().unwrap().stdout).unwrap();
    let manual = include_str!("../../../docs/doctor.md");
    let options = help.split_whitespace().filter_map(|word| word.strip_prefix("--"));
    let mut options: Vec<&str> =
        options.filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')).collect();
    options.sort_unstable();
    options.dedup();
    assert!(options.len() >= 8, "{help}");
    for option in options.into_iter().filter(|option| *option != "help") {
        assert!(manual.contains(&format!("`--{option}")), "docs/doctor.md does not explain --{option}");
    }
}
