//! The distributed plugin.

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup};

fn get_queries(rig: &Rig) -> testkit::osqueryd::CallOutcome {
    rig.call("distributed", &[("action", "getQueries")])
}

#[test]
fn what_the_server_asks_is_handed_on_as_it_came() {
    let rig = Rig::start();
    for text in [
        include_str!("samples/10_distributed_read_response_discovery_accelerate.json"),
        include_str!("samples/10c_distributed_read_response_empty.json"),
        include_str!("samples/10d_distributed_read_response_string_flag.json"),
        include_str!("samples/10e_distributed_read_response_accelerate_string.json"),
        include_str!("samples/10g_distributed_read_response_error_no_flag.json"),
    ] {
        rig.server.script(Endpoint::DistributedRead, [Answer::status(200, text)]);
        let outcome = get_queries(&rig);
        assert_eq!(outcome.code, 0, "{}", outcome.message);
        assert_eq!(outcome.rows[0]["results"], text.trim());
    }
    rig.server.script(Endpoint::DistributedRead, [Answer::empty(200)]);
    assert_eq!(get_queries(&rig).rows[0]["results"], "{}");
}

#[test]
fn a_failed_read_says_why_and_asks_nothing_of_osqueryd() {
    let rig = Setup::new().flag("distributed_tls_max_attempts", "1").start();
    rig.server.always(Endpoint::DistributedRead, Some(Answer::html(502)));
    let outcome = get_queries(&rig);
    assert_eq!((outcome.code, outcome.rows.len()), (1, 0));
    assert!(outcome.message.contains("distributed read") && outcome.message.contains("502"), "{}", outcome.message);
}

#[test]
fn results_are_passed_on_byte_by_byte_with_the_node_key_added() {
    let rig = Rig::start();
    let results =
        "{ \"queries\":{\"q\":[{\"n\":1.50e1,\"path\":\"\\u00e9\"}]} ,\n\"statuses\":{\"q\":0},\"queries2\":{} }";
    let outcome = rig.call("distributed", &[("action", "writeResults"), ("results", results)]);
    assert_eq!(outcome.code, 0, "{}", outcome.message);
    let request = rig.server.requests_to(Endpoint::DistributedWrite).pop().unwrap();
    let body = String::from_utf8(request.body).unwrap();
    assert_eq!(body, results.replace(" }", &format!(" ,\"node_key\":\"{}\"}}", rig.stored_key().unwrap())));
}

#[test]
fn results_that_the_server_does_not_take_stay_with_osqueryd() {
    let rig = Setup::new().flag("distributed_tls_max_attempts", "2").start();
    let answers = [Answer::status(500, include_str!("samples/12b_distributed_write_response_retry_http500.json"))];
    rig.server.script(Endpoint::DistributedWrite, answers.iter().cloned().cycle().take(2));
    let write = || rig.call("distributed", &[("action", "writeResults"), ("results", "{\"queries\":{}}")]);
    let outcome = write();
    assert_eq!(outcome.code, 1);
    assert!(outcome.message.contains("campaign waiting for listener"), "{}", outcome.message);
    assert_eq!(rig.server.requests_to(Endpoint::DistributedWrite).len(), 2);
    assert_eq!(write().code, 0);
}

#[test]
fn a_daemon_answers_what_the_server_asks() {
    let rig = Setup::new()
        .flag("disable_distributed", "false")
        .flag("distributed_interval", "1")
        .osqueryd(|options| options.distributed = true)
        .start_daemon();
    rig.server.add_query("version", "select version from osquery_info");
    let written = rig.server.wait("the results", LIMIT, |server| server.written().into_iter().next());
    assert_eq!(written["queries"]["version"], json!([{"version": "5.23.0"}]));
    assert_eq!(written["statuses"]["version"], 0);
}
