//! The documentation's walk-through: everything that a host does in its first minute.

use serde_json::{Value, json};
use testkit::server::Endpoint;

use crate::rig::{Host, SECRET, real, say};

const CLOCK: &str = "SELECT unix_time AS now, random() AS r FROM time";

#[test]
fn a_host_enrolls_is_configured_logs_answers_and_enrolls_again() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, json!({"schedule": {"clock": {"query": CLOCK, "interval": 1}}}));
    host.start();
    enrolls(&host);
    logs(&host);
    answers_a_distributed_query(&host);
    enrolls_again(&host);
    host.end_schedule();
    host.settled(|| false);
    let status = host.stop();
    assert_eq!(status.code(), Some(0));
    // The runs of the query are numbered: none is missing, the re-enrollment included.
    let mut runs: Vec<u64> = added(&host).iter().filter_map(|line| line["counter"].as_u64()).collect();
    runs.sort_unstable();
    runs.dedup();
    assert!(runs.iter().copied().eq(0..runs.len() as u64), "runs are missing: {runs:?}");
    say(&format!("{} runs of the query, none missing; enrollments: {}", runs.len(), host.server.node_keys().len()));
}

fn added(host: &Host) -> Vec<Value> {
    host.server.results().into_iter().filter(|line| line["action"] == "added").collect()
}

fn enrolls(host: &Host) {
    let request = host.wait("an enrollment", || host.server.requests_to(Endpoint::Enroll).into_iter().next());
    let body = request.json.unwrap();
    assert_eq!(body["enroll_secret"], SECRET);
    assert!(body["host_identifier"].as_str().is_some_and(|name| !name.is_empty()), "{body}");
    assert!(body["host_details"]["osquery_info"]["version"].is_string(), "{body}");
    assert!(body["host_details"]["system_info"].is_object(), "{body}");
    let request = host.wait("a configuration request", || host.server.requests_to(Endpoint::Config).into_iter().next());
    assert_eq!(request.node_key(), host.server.node_keys().first().cloned());
}

fn logs(host: &Host) {
    let line = host.wait("a result line", || host.server.results().into_iter().next());
    assert_eq!(line["name"], "clock");
    assert!(line["columns"]["now"].as_str().is_some_and(|now| now.parse::<u64>().is_ok()), "{line}");
    let status = host.wait("a status line of osqueryd's", || {
        host.server
            .statuses()
            .into_iter()
            .find(|line| line["filename"].as_str().is_some_and(|name| name.ends_with(".cpp")))
    });
    for member in ["hostIdentifier", "calendarTime", "unixTime", "severity", "line", "message", "version"] {
        assert!(!status[member].is_null(), "no {member} in {status}");
    }
}

fn answers_a_distributed_query(host: &Host) {
    host.server.add_query("who", "SELECT version FROM osquery_info");
    let body = host.wait("a distributed query's result", || host.server.written().into_iter().next());
    assert!(body["queries"]["who"][0]["version"].as_str().is_some_and(|version| version.contains('.')), "{body}");
    assert_eq!(body["statuses"]["who"], 0, "{body}");
}

fn enrolls_again(host: &Host) {
    host.server.forget_nodes();
    let keys = host.wait("a second node key", || Some(host.server.node_keys()).filter(|keys| keys.len() == 2));
    host.wait("a log request with it", || {
        let requests = host.server.requests_to(Endpoint::Log);
        requests.iter().any(|request| request.node_key().as_ref() == Some(&keys[1])).then_some(())
    });
    host.more_results(2);
    assert_eq!(host.server.node_keys().len(), 2);
}
