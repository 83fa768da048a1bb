//! What the stand-in does to a configuration, a logger and a distributed plugin.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::extension::{Fake, answered, client, info, routes, row, usual};
use crate::osqueryd::thrift_api::{TExtensionManagerSyncClient, TExtensionSyncClient};
use crate::osqueryd::{CallOutcome, Options, Osqueryd, StatusLine};

const LIMIT: Duration = Duration::from_secs(10);
const CONFIG: &str = r#"{"schedule": {"q": {"query": "select 1 as x", "interval": 1}}}"#;

fn bare() -> (TempDir, Osqueryd) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Osqueryd::start_bare(Options::new(dir.path()));
    (dir, daemon)
}

#[test]
fn every_call_is_two_connections() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Osqueryd::start_bare(Options::new(dir.path()).flag("extensions_interval", "3600"));
    let fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
    let mut made: Vec<usize> = (0..3)
        .map(|_| {
            let before = fake.connections();
            assert!(daemon.log_string("{}").is_ok());
            fake.connections() - before
        })
        .collect();
    // The manager's own first ping may come late, and in between: once.
    made.sort_unstable();
    assert!(made[..2] == [2, 2] && made[2] <= 3, "{made:?}");
    assert_eq!(fake.calls(), ["logger string"; 3]);
    assert!(daemon.log_status(&[StatusLine::new(2, "a.cpp", 1, "m")]).is_ok());
    let status: Value = serde_json::from_str(&fake.values("log")[0]).unwrap();
    assert_eq!(status[0]["m"], "m");
}

#[test]
fn a_line_need_not_be_utf8() {
    let (_dir, daemon) = bare();
    let mut manager = client(&daemon.socket());
    let uuid = manager.register_extension(info("remote_tls"), routes()).unwrap().uuid.unwrap();
    let listener = UnixListener::bind(format!("{}.{uuid}", daemon.socket().display())).unwrap();
    let seen = thread::spawn(move || {
        // Whatever comes first is a ping, and is answered as one: strict binary, a reply, field 0, code 0.
        let mut bytes = vec![0; 4096];
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let length = stream.read(&mut bytes).unwrap();
            if bytes[8..12] == *b"call" {
                return bytes[..length].to_vec();
            }
            let sequence: [u8; 4] = bytes[12..16].try_into().unwrap();
            let head = [&[0x80, 1, 0, 2, 0, 0, 0, 4][..], b"ping", &sequence].concat();
            stream.write_all(&[&head[..], &[12, 0, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0]].concat()).unwrap();
        }
    });
    let request: [(&str, &[u8]); 1] = [("string", b"a\xff\xfeb")];
    assert!(daemon.call("logger", "remote_tls", &request).is_err());
    let seen = seen.join().unwrap();
    assert!(seen.windows(8).any(|window| window == b"\0\0\0\x04a\xff\xfeb"), "{seen:?}");
}

#[test]
fn what_an_answer_does_to_the_schedule() {
    let (_dir, daemon) = bare();
    let answer = Arc::new(Mutex::new(answered(&[("s", CONFIG)])));
    let given = Arc::clone(&answer);
    let _fake = Fake::start(&daemon.socket(), move |registry, _| match registry {
        "config" => given.lock().unwrap().clone(),
        _ => CallOutcome::default(),
    });
    let after = |outcome: CallOutcome| {
        *answer.lock().unwrap() = outcome;
        daemon.gen_config();
        daemon.schedule().len()
    };
    let config = || answered(&[("s", CONFIG)]);
    assert_eq!(after(config()), 1);
    assert_eq!(after(CallOutcome { code: 1, ..config() }), 1);
    assert_eq!(after(answered(&[])), 1);
    assert_eq!(after(CallOutcome::default()), 1);
    for text in ["<html>", "", "{\"schedule\": {", "[]", "{}", "{\"schedule\": null}"] {
        assert_eq!(after(answered(&[("s", text)])), 0, "{text}");
        assert_eq!(daemon.query("select config_valid from osquery_info").unwrap()[0]["config_valid"], "1");
        assert_eq!(after(config()), 1);
    }
}

#[test]
fn a_push_replaces_its_source_and_empties_it_when_it_does_not_parse() {
    let (_dir, daemon) = bare();
    let mut fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
    daemon.gen_config();
    let mut push = |source: &str, data: &str| {
        let request = row(&[("action", "update"), ("source", source), ("data", data)]);
        let status = fake.manager.call("config".into(), "update".into(), request).unwrap().status.unwrap();
        (status.code.unwrap(), daemon.schedule().len())
    };
    assert_eq!(push("s", &CONFIG.replace("\"q\"", "\"p\"")), (0, 1));
    assert_eq!(push("other", CONFIG), (0, 2));
    assert_eq!(push("s", "<html>"), (1, 1));
    assert_eq!(daemon.configs().len(), 4);
}

#[test]
fn options_of_a_configuration_become_flags() {
    let (_dir, daemon) = bare();
    let options = r#"{"options": {"logger_tls_period": 9, "custom_x": true, "tls_hostname": "no", "nonsense": 1}}"#;
    let mut fake = Fake::start(&daemon.socket(), usual(options)).unwrap();
    daemon.gen_config();
    let listed = fake.manager.options().unwrap();
    assert_eq!(listed["logger_tls_period"].value.as_deref(), Some("9"));
    assert_eq!(listed["custom_x"].value.as_deref(), Some("true"));
    assert_eq!(listed["tls_hostname"].value.as_deref(), Some(""));
    assert!(daemon.transcript().contains("CLI only flag --tls_hostname"));
}

#[test]
fn the_manager_answers_sql_the_store_and_lists() {
    let (_dir, daemon) = bare();
    let mut fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
    let manager = &mut fake.manager;
    let rows = manager.query("select n, t, null as e from fake_table".into()).unwrap().response.unwrap();
    assert_eq!(rows, [row(&[("n", "7"), ("t", "seven"), ("e", "")])]);
    let failed = manager.query("select * from nosuch".into()).unwrap().status.unwrap();
    assert_eq!((failed.code, failed.message.as_deref()), (Some(1), Some("no such table: nosuch")));
    let columns = manager.get_query_columns("select n, t from fake_table;".into()).unwrap().response.unwrap();
    assert_eq!(columns, [row(&[("n", "INTEGER")]), row(&[("t", "TEXT")])]);
    let rows = manager.query("select * from osquery_extensions where name = 'remote_tls'".into()).unwrap();
    assert_eq!(rows.response.unwrap()[0]["uuid"], fake.uuid.to_string());
    for table in crate::osqueryd::tables::names() {
        daemon.query(&format!("select * from {table}")).unwrap_or_else(|error| panic!("{table}: {error}"));
    }
    let mut store = |fields: &[(&str, &str)]| {
        let answer = fake.manager.call("database".into(), String::new(), row(fields)).unwrap();
        (answer.status.unwrap().code.unwrap(), answer.response.unwrap())
    };
    assert_eq!(store(&[("action", "get"), ("domain", "configurations"), ("key", "nodeKey")]).0, 1);
    daemon.store_put("configurations", "nodeKey", "k");
    let (code, rows) = store(&[("action", "get"), ("domain", "configurations"), ("key", "nodeKey")]);
    assert_eq!((code, rows[0]["v"].as_str()), (0, "k"));
    assert_eq!(store(&[("action", "scan"), ("domain", "configurations")]).0, 1);
    assert_eq!(fake.manager.extensions().unwrap().keys().collect::<Vec<_>>(), [&fake.uuid]);
}

#[test]
fn a_disabled_table_is_gone_from_sql_and_answers_calls() {
    for (flag, gone, there) in [
        ("disable_tables", vec!["uptime", "fake_table"], vec!["time", "users"]),
        ("enable_tables", vec!["time", "users"], vec!["uptime", "fake_table"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Osqueryd::start_bare(Options::new(dir.path()).flag(flag, "uptime,fake_table"));
        let mut fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
        for table in &there {
            assert!(daemon.query(&format!("select * from {table}")).is_ok(), "{flag} {table}");
        }
        for table in &gone {
            let error = daemon.query(&format!("select * from {table}")).unwrap_err();
            assert_eq!(error, format!("no such table: {table}"), "{flag}");
        }
        let mut call = |table: &str, action: &str| {
            let request = row(&[("action", action), ("context", "{}")]);
            let answer = fake.manager.call("table".into(), table.into(), request).unwrap();
            (answer.status.unwrap(), answer.response.unwrap())
        };
        for table in gone.iter().chain(&there) {
            let (status, rows) = call(table, "generate");
            assert!(status.code == Some(0) && !rows.is_empty(), "{flag} {table}: {status:?}");
        }
        assert!(call("uptime", "generate").1[0].contains_key("total_seconds"));
        let column = row(&[("id", "column"), ("name", "days"), ("type", "BIGINT"), ("op", "0")]);
        assert_eq!(call("uptime", "columns").1[0], column);
        let (status, _) = call("nosuch", "generate");
        assert_eq!((status.code, status.message.as_deref()), (Some(1), Some("Cannot call registry item: nosuch")));
    }
}

#[test]
fn a_server_s_first_configuration_chooses_the_distributed_plugin_and_a_later_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("sleeper.ext");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let daemon = Osqueryd::launch(Options::new(dir.path()).extension(&script)).unwrap();
    let taken = r#"{"options": {"distributed_plugin": "tls", "logger_event_type": false}}"#;
    let mut fake = Fake::start(&daemon.socket(), usual(taken)).unwrap();
    daemon.wait("the way up", LIMIT, || daemon.is_up().then_some(()));
    let listed = fake.manager.options().unwrap();
    assert_eq!(listed["distributed_plugin"].value.as_deref(), Some("tls"));
    assert_eq!(listed["distributed_plugin"].default_value.as_deref(), Some("tls"));
    assert_eq!(listed["logger_event_type"].value.as_deref(), Some("false"));
    assert!(daemon.poll_distributed().is_err());
    assert!(!fake.calls().iter().any(|call| call.starts_with("distributed")), "{:?}", fake.calls());
    // What was activated stays active, whatever is in the flag from now on.
    let given = taken.replace("\"tls\"", "\"remote_tls\"");
    let request = row(&[("action", "update"), ("source", "s"), ("data", &given)]);
    assert_eq!(fake.manager.call("config".into(), "update".into(), request).unwrap().status.unwrap().code, Some(0));
    assert_eq!(daemon.option("distributed_plugin"), "remote_tls");
    assert!(daemon.poll_distributed().is_err());
    assert!(!fake.calls().iter().any(|call| call.starts_with("distributed")), "{:?}", fake.calls());
}

#[test]
fn a_distributed_plugin_that_is_not_registered_ends_osqueryd() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("osquery.conf");
    std::fs::write(&config, r#"{"options": {"distributed_plugin": "nosuch"}}"#).unwrap();
    let options = Options::new(dir.path()).flag("config_plugin", "filesystem").flag("logger_plugin", "filesystem");
    let error = Osqueryd::start(options).map(drop).unwrap_err();
    assert_eq!(error.code, 78);
    assert_eq!(error.message, "Cannot activate nosuch distributed plugin: Unknown registry plugin: nosuch");
}

#[test]
fn registering_twice_is_refused_until_the_first_is_forgotten() {
    let (_dir, daemon) = bare();
    let mut fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
    let again = |daemon: &Osqueryd| Fake::start(&daemon.socket(), usual(CONFIG)).map(|fake| fake.uuid);
    assert_eq!(again(&daemon).unwrap_err(), "Duplicate extension registered");
    let taken = fake.manager.register_extension(info("other"), routes()).unwrap();
    assert!(taken.message.unwrap().starts_with("Failed adding registry: Registry item"));
    daemon.drop_extension(fake.uuid);
    again(&daemon).unwrap();
    assert_eq!(daemon.registrations().len(), 2);
}

#[test]
fn a_single_failed_ping_drops_an_extension() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Osqueryd::start_bare(Options::new(dir.path()).flag("extensions_interval", "0"));
    let mut fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
    daemon.wait("the first ping", LIMIT, || (fake.connections() > 0).then_some(()));
    fake.vanish();
    daemon.wait("the extension to be dropped", LIMIT, || daemon.uuid("remote_tls").is_none().then_some(()));
    assert!(fake.manager.ping().is_ok() && fake.manager.extensions().unwrap().is_empty());
}

#[test]
fn distributed_queries_are_run_and_kept_until_they_are_taken() {
    let (_dir, daemon) = bare();
    let refuses = Arc::new(AtomicBool::new(true));
    let refusing = Arc::clone(&refuses);
    let work = r#"{"queries": {"good": "select 'a' as s, 1 as i", "bad": "select * from nosuch", "skipped": "select 1"},
        "discovery": {"skipped": "select 1 where 0", "good": "select 1"}, "accelerate": 10}"#;
    let fake = Fake::start(&daemon.socket(), move |_, request| match request["action"].as_str() {
        "getQueries" => answered(&[("results", work)]),
        _ => CallOutcome { code: refusing.load(Ordering::SeqCst).into(), ..CallOutcome::default() },
    });
    let fake = fake.unwrap();
    assert!(daemon.poll_distributed().is_err());
    assert_eq!(daemon.distributed_pending(), 2);
    refuses.store(false, Ordering::SeqCst);
    daemon.poll_distributed().unwrap();
    assert_eq!(daemon.distributed_pending(), 0);
    let sent: Value = serde_json::from_str(&fake.values("results")[0]).unwrap();
    assert_eq!(sent["queries"].to_string(), r#"{"bad":[],"good":[{"s":"a","i":"1"}]}"#);
    assert_eq!(sent["messages"]["bad"], "no such table: nosuch");
    assert!(daemon.store_get("configurations", "distributed_accelerate_checkins_expire").is_some());
}
