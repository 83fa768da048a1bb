//! From the built-in `tls` plugins to ours and back (docs/migrate.md): the host stays enrolled, and no line is missing.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testkit::server::Endpoint;

use crate::rig::{Host, Real, real, say};

#[test]
fn moving_over_and_back_keeps_the_node_key_and_every_line() {
    let Some(real) = real() else { return };
    let query = json!({"query": "SELECT random() AS r", "interval": 1, "removed": false});
    let host = Host::new(&real, json!({"schedule": {"clock": query}}));
    let mut ends = Vec::new();
    for plugins in ["tls", "remote_tls", "tls", "remote_tls"] {
        host.plugins(plugins);
        let requests = host.server.requests().len();
        host.start();
        host.more_results(4);
        let of_extension = || {
            let rows = host.try_sql("SELECT delivered FROM remote_tls_buffer WHERE stream = 'results'").ok()?;
            rows.first()?["delivered"].as_str()?.parse::<u64>().ok()
        };
        // The extension is there in both cases, and has work only when it is named.
        let delivered = host.wait("the extension's tables", of_extension);
        assert_eq!(
            delivered > 0,
            plugins == "remote_tls",
            "{delivered} lines delivered by the extension, with {plugins}"
        );
        // The built-in logger keeps what it can't send any more in osqueryd's database, for its next time.
        ends.push(host.stop().code());
        let enrollments = host.server.requests_to(Endpoint::Enroll).len();
        assert_eq!(enrollments, 1, "with {plugins}");
        let keys: BTreeSet<_> = host.server.requests()[requests..].iter().filter_map(|sent| sent.node_key()).collect();
        assert_eq!(keys, BTreeSet::from([host.server.node_keys()[0].clone()]), "with {plugins}");
    }
    assert_eq!(ends, [Some(0); 4]);
    drains(&host);
    let runs: BTreeSet<u64> = host.server.results().iter().filter_map(|line| line["counter"].as_u64()).collect();
    assert!(runs.iter().copied().eq(0..runs.len() as u64), "runs are missing: {runs:?}");
    say(&format!("{} runs over four starts, one enrollment, none missing", runs.len()));
}

/// Each logger is given a last time without a schedule, to send what it had left.
fn drains(host: &Host) {
    host.server.set_config(json!({"schedule": {}}));
    for plugins in ["tls", "remote_tls"] {
        host.plugins(plugins);
        host.start();
        host.settled(|| false);
        host.stop();
    }
}

/// The answers of servers whose stock options name `tls` for the loggers and the distributed queries, which osqueryd applies
/// at once: Fleet's default agent options, and Zentral's.
const STOCK: [&str; 2] = [
    include_str!("../blackbox/samples/04_config_response_fleet.json"),
    include_str!("../blackbox/samples/04e_config_response_zentral.json"),
];

#[test]
fn configurations_that_name_tls_leave_the_distributed_queries_with_ours() {
    let Some(real) = real() else { return };
    for stock in STOCK {
        let mut options = serde_json::from_str::<Value>(stock).unwrap()["options"].take();
        assert_eq!(options["distributed_plugin"], "tls");
        // Of this server, and without a minute between two periods.
        options["logger_tls_endpoint"] = "/log".into();
        ["logger_tls_period", "distributed_interval"].iter().for_each(|&period| options[period] = 1.into());
        names_tls(&real, &options);
    }
}

fn names_tls(real: &Real, options: &Value) {
    let query = json!({"query": "SELECT 1 AS one", "interval": 1, "snapshot": true});
    let host = Host::new(real, json!({"options": options, "schedule": {"clock": query}}));
    host.start();
    host.server.add_query("who", "SELECT 1 AS one");
    host.wait("the answer", || host.server.written().into_iter().next());
    host.more_results(2);
    let rows = host.sql("SELECT requests FROM remote_tls_endpoints WHERE name = 'distributed write'");
    assert_ne!(rows[0]["requests"], Value::from("0"), "the built-in plugin has answered");
    let rows = host.sql("SELECT registry, name FROM osquery_registry WHERE active = 1 AND registry IN ('config', 'logger', 'distributed')");
    assert!(rows.iter().all(|row| row["name"] == "remote_tls") && rows.len() == 3, "{rows:?}");
    host.stop();
}
