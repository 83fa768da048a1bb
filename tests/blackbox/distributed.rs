//! The distributed plugin.

use rustix::process::Signal;
use serde_json::json;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup, signal};

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

fn write(rig: &Rig, results: &str) -> testkit::osqueryd::CallOutcome {
    rig.call("distributed", &[("action", "writeResults"), ("results", results)])
}

#[test]
fn results_that_the_server_does_not_take_are_tried_as_often_as_the_flag_says_and_kept_for_later() {
    let rig = Setup::new().flag("distributed_tls_max_attempts", "2").start();
    let answers = [Answer::status(500, include_str!("samples/12b_distributed_write_response_retry_http500.json"))];
    rig.server.script(Endpoint::DistributedWrite, answers.iter().cloned().cycle().take(2));
    let results = "{\"queries\":{\"q\":[{\"n\":1.50e1}]}}";
    assert_eq!(write(&rig, results).code, 0);
    rig.server.wait("the results", LIMIT, |server| (server.written().len() == 1).then_some(()));
    let bodies = rig.server.requests_to(Endpoint::DistributedWrite);
    assert_eq!(bodies.len(), 3);
    // The same bytes each time.
    assert!(bodies.iter().all(|request| request.body.starts_with(results.trim_end_matches('}').as_bytes())));
    rig.said("results of distributed queries that were kept");
}

#[test]
fn results_survive_an_outage_and_a_restart() {
    let rig = Setup::new().flag("distributed_tls_max_attempts", "1").start();
    rig.config();
    rig.server.stop();
    for n in 0..3 {
        assert_eq!(write(&rig, &format!("{{\"queries\":{{\"q{n}\":[]}}}}")).code, 0);
    }
    signal(rig.worker_pid(), Signal::KILL);
    rig.server.resume().unwrap();
    let written =
        rig.server.wait("all results", LIMIT, |server| Some(server.written()).filter(|written| written.len() == 3));
    let names: Vec<String> =
        written.iter().map(|body| body["queries"].as_object().unwrap().keys().next().unwrap().clone()).collect();
    assert_eq!(names, ["q0", "q1", "q2"]);
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
