//! `failover_hostnames`: other servers are asked while the first one fails.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use testkit::server::{Answer, Endpoint, Options, Server};

use crate::rig::{BINARY, LIMIT, Rig, SECRET, Setup, line, numbers, pass};

/// A second server, with its own list of nodes, and a setup that names it.
fn two_servers(node_keys: &str) -> (Setup, Server) {
    let second = Server::start(Options { enroll_secret: Some(SECRET.to_owned()), ..Options::default() }).unwrap();
    let setup = Setup::new()
        .own_flag(&format!("--failover_hostnames={}", second.hostname()))
        .own_flag("--failover_after=1")
        .own_flag(&format!("--failover_node_keys={node_keys}"));
    (setup, second)
}

/// Logs lines until a server has one of them.
fn log_until(rig: &Rig, server: &Server, logged: &mut u64, what: &str) {
    let known = server.result_count();
    server.wait(what, LIMIT, |server| {
        *logged += 1;
        rig.log(&line(*logged));
        // osqueryd asks at its intervals; here they are short.
        rig.gen_config();
        (server.result_count() > known).then_some(())
    });
}

fn row_of_enrollment(rig: &Rig) -> (String, String) {
    let rows = rig.osqueryd.query("SELECT * FROM remote_tls_enrollment").unwrap();
    (rows[0]["server_name"].clone(), rows[0]["enrolled"].clone())
}

#[test]
fn the_next_server_is_asked_while_the_first_one_is_away_and_no_line_is_lost() {
    let (setup, second) = two_servers("each");
    let rig = setup.start();
    let mut logged = 0;
    log_until(&rig, &rig.server, &mut logged, "a line at the first server");
    assert_eq!(second.requests().len(), 0, "the first one works");

    rig.server.stop();
    log_until(&rig, &second, &mut logged, "a line at the second server");
    rig.said(&format!("{} is asked from now on (failover_hostnames)", second.hostname()));
    assert_eq!(row_of_enrollment(&rig), (second.hostname(), "1".to_owned()));
    let keys = (rig.server.node_keys(), second.node_keys());
    let kept = format!("nodeKey.{}", second.hostname());
    assert_eq!(rig.osqueryd.store_get("configurations", &kept), Some(keys.1[0].clone()));
    assert_eq!(rig.stored_key(), Some(keys.0[0].clone()), "the first one's key is kept");
    // Both are masked in every command that shows lines.
    rig.log(&format!("no JSON: {}, {}", keys.0[0], keys.1[0]));
    rig.osqueryd.wait("a line that is set aside", LIMIT, || (!rig.set_aside().is_empty()).then_some(()));
    let mut list = Command::new(BINARY);
    list.args(["rejected", "list", "--json", "--socket"]).arg(rig.osqueryd.socket());
    let output = list.arg("--own_flagfile").arg(rig.directory.path().join("remote_tls.flags")).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(listed.contains("no JSON: <hidden>, <hidden>"), "{listed}");

    rig.server.resume().unwrap();
    log_until(&rig, &rig.server, &mut logged, "a line at the first server again");
    rig.said(&format!("the server {} works again, and is asked from now on", rig.server.hostname()));
    rig.settled();
    assert_eq!((rig.server.node_keys(), second.node_keys()), keys, "one enrollment each");
    let delivered = [numbers(&rig.server.results()), numbers(&second.results())].concat();
    assert_eq!(delivered.into_iter().collect::<BTreeSet<_>>(), (1..=logged).collect());
}

#[test]
fn a_shared_node_key_is_shown_to_the_next_server_first() {
    let (setup, second) = two_servers("shared");
    let rig = setup.start();
    let mut logged = 0;
    log_until(&rig, &rig.server, &mut logged, "a line at the first server");
    let key = rig.stored_key().unwrap();
    rig.server.always(Endpoint::Config, Some(Answer::html(502)));
    rig.server.always(Endpoint::Log, Some(Answer::html(502)));
    log_until(&rig, &second, &mut logged, "a line at the second server");
    assert_eq!(second.requests()[0].node_key(), Some(key));
    assert_eq!(rig.stored_key(), second.node_keys().pop(), "it has another list of nodes, and gave another key");
}

#[test]
fn a_host_without_a_key_enrolls_with_the_server_that_works() {
    let (setup, second) = two_servers("shared");
    let rig = setup.flag("tls_enroll_max_attempts", "0").start();
    rig.server.stop();
    let mut logged = 0;
    log_until(&rig, &second, &mut logged, "a line at the second server");
    assert_eq!(rig.server.node_keys(), [""; 0]);
}

#[test]
fn a_server_that_asks_to_be_left_alone_or_fails_for_one_endpoint_is_not_left() {
    let (setup, second) = two_servers("shared");
    let rig = setup.start();
    rig.config();
    rig.server.always(Endpoint::Log, Some(Answer::html(503)));
    for n in 1..=8 {
        rig.log(&line(n));
        pass(Duration::from_millis(400));
        assert_eq!(rig.call("distributed", &[("action", "getQueries")]).code, 0);
    }
    rig.server.always(Endpoint::Config, Some(Answer::html(503).header("Retry-After", "1")));
    rig.server.always(Endpoint::DistributedRead, Some(Answer::html(503).header("Retry-After", "1")));
    rig.server.always(Endpoint::Log, Some(Answer::html(503).header("Retry-After", "1")));
    for _ in 0..8 {
        pass(Duration::from_millis(400));
        rig.gen_config();
    }
    assert_eq!(second.requests().len(), 0);
}
