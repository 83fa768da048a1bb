//! An answer's cost is not its size: bodies that are small on the wire, or in bytes, and grow in the reader's hands.

use serde_json::Value;
use testkit::server::{Answer, Endpoint};

use super::forget_peak;
use crate::rig::{LIMIT, Rig, Setup, line, memory_of};

/// What an answer may cost each of our processes at its peak, in KiB.
const PEAK: u64 = 64 << 10;

/// What may be left of that when the answer is dealt with.
const KEPT: u64 = 24 << 10;

/// The largest answer that is read of configurations and queries, and of the others.
const LARGEST: usize = 16 << 20;
const LARGEST_OF_OTHERS: usize = 1 << 20;

/// The largest configuration that the newest osqueryd takes.
const LARGEST_CONFIGURATION: usize = (4 << 20) - 100;

/// `piece` again and again between `head` and `tail`, with commas: at most `bytes` bytes.
fn flood(head: &str, piece: &str, tail: &str, bytes: usize) -> String {
    let count = (bytes - head.len() - tail.len() - piece.len()) / (piece.len() + 1);
    format!("{head}{}{piece}{tail}", format!("{piece},").repeat(count))
}

/// An array of many objects: a tree of it takes some fifty times its size.
fn tree(head: &str, tail: &str, bytes: usize) -> String {
    flood(&format!("{head}["), r#"{"a":1}"#, &format!("]{tail}"), bytes)
}

/// An object with one string, `piece` again and again: at most `bytes` bytes.
fn one_string(piece: &str, bytes: usize) -> String {
    format!("{{\"a\":\"{}\"}}", piece.repeat((bytes - 10) / piece.len()))
}

/// A host that takes compressed answers and is not enrolled yet; every failure ends the attempt.
fn host(setup: Setup) -> Rig {
    setup
        .flag("tls_accept_gzip", "true")
        .flag("tls_enroll_max_attempts", "1")
        .flag("config_tls_max_attempts", "1")
        .flag("distributed_tls_max_attempts", "1")
        .osqueryd(|options| options.version = "5.24.0".to_owned())
        .start()
}

/// Has the host ask this endpoint once, and deal with the answer.
fn ask(rig: &Rig, endpoint: Endpoint) {
    let _ = match endpoint {
        Endpoint::Enroll | Endpoint::Config => rig.gen_config(),
        Endpoint::DistributedRead => rig.call("distributed", &[("action", "getQueries")]),
        Endpoint::DistributedWrite => rig.call("distributed", &[("action", "writeResults"), ("results", "{}")]),
        Endpoint::Log | Endpoint::Other => {
            // The second request begins when the first one's answer was dealt with: as a failure, or as a success.
            for request in 0..2 {
                rig.log(&line(request));
                rig.server.wait("a log request", LIMIT, |server| {
                    (server.requests_to(Endpoint::Log).len() as u64 > request).then_some(())
                });
            }
            return;
        }
    };
}

/// Answers `endpoint` once by this body, compressed: what it costs the front and the worker has a limit.
fn is_cheap(endpoint: Endpoint, body: String) {
    are_cheap(Setup::new(), [(endpoint, Answer::status(200, body))]);
}

/// The same for several endpoints, asked at the same moment.
fn are_cheap<const N: usize>(setup: Setup, answers: [(Endpoint, Answer); N]) {
    let rig = host(setup);
    if answers.iter().all(|(endpoint, _)| *endpoint != Endpoint::Enroll) {
        rig.config();
    }
    let processes = [("front", rig.pid()), ("worker", rig.worker_pid())];
    let idle = processes.map(|(_, process)| memory_of(process, "VmRSS:"));
    processes.iter().for_each(|(_, process)| forget_peak(*process));
    let endpoints = answers.each_ref().map(|(endpoint, _)| *endpoint);
    for (endpoint, answer) in answers {
        rig.server.script(endpoint, [answer.gzip()]);
    }
    std::thread::scope(|scope| {
        for endpoint in endpoints {
            let rig = &rig;
            scope.spawn(move || ask(rig, endpoint));
        }
    });
    assert_eq!(processes[1].1, rig.worker_pid(), "the worker died of it");
    for ((name, process), idle) in processes.into_iter().zip(idle) {
        let peak = memory_of(process, "VmHWM:").saturating_sub(idle);
        assert!(peak <= PEAK, "{name}: {peak} KiB over idle at its peak");
        rig.osqueryd.wait(&format!("the {name} to give memory back"), LIMIT, || {
            (memory_of(process, "VmRSS:").saturating_sub(idle) <= KEPT).then_some(())
        });
    }
    // Whatever was answered: the host goes on.
    rig.osqueryd.wait("a configuration", LIMIT, || (rig.gen_config().code == 0).then_some(()));
}

/// Each is an attack, by its name: where, and what is answered.
macro_rules! cheap {
    ($($name:ident: $endpoint:ident, $body:expr;)*) => {
        $(#[test]
        fn $name() {
            is_cheap(Endpoint::$endpoint, $body);
        })*
    };
}

cheap! {
    an_error_that_is_a_tree_for_an_enrollment: Enroll, tree(r#"{"error":"#, "}", LARGEST_OF_OTHERS);
    an_error_that_is_a_tree_for_a_configuration: Config, tree(r#"{"error":"#, "}", LARGEST);
    an_error_that_is_a_tree_for_log_lines: Log, tree(r#"{"error":"#, "}", LARGEST_OF_OTHERS);
    an_error_that_is_a_tree_for_queries: DistributedRead, tree(r#"{"error":"#, "}", LARGEST);
    an_error_that_is_a_tree_for_results: DistributedWrite, tree(r#"{"error":"#, "}", LARGEST_OF_OTHERS);
    a_node_invalid_that_is_a_tree: Log, tree(r#"{"node_invalid":"#, "}", LARGEST_OF_OTHERS);
    a_status_that_is_a_tree: Config, tree(r#"{"status":"#, "}", LARGEST);
    a_message_that_is_a_tree: DistributedWrite, tree(r#"{"status":"error","message":"#, "}", LARGEST_OF_OTHERS);
    a_node_key_that_is_a_tree: Enroll, tree(r#"{"node_key":"#, "}", LARGEST_OF_OTHERS);
    an_id_that_is_a_tree: Enroll, tree(r#"{"id":"#, "}", LARGEST_OF_OTHERS);
    a_node_key_of_megabytes: Enroll, format!(r#"{{"node_key":"{}"}}"#, "k".repeat(LARGEST_OF_OTHERS - 100));
    an_error_of_escapes: Config, format!(r#"{{"error":"{}"}}"#, "\\u0041".repeat(LARGEST / 6 - 10));
    an_error_of_backslashes: Log, format!(r#"{{"error":"{}"}}"#, "\\\\".repeat(LARGEST_OF_OTHERS / 2 - 10));
    an_error_of_brackets: DistributedWrite, format!(r#"{{"error":"{}"}}"#, "[".repeat(LARGEST_OF_OTHERS - 100));
    a_flood_of_members_for_a_configuration: Config, flood("{", r#""":1"#, "}", LARGEST_CONFIGURATION);
    a_flood_of_members_for_queries: DistributedRead, flood("{", r#""":1"#, "}", LARGEST);
    a_flood_of_members_for_log_lines: Log, flood("{", r#""":1"#, "}", LARGEST_OF_OTHERS);
    many_queries: DistributedRead, flood(r#"{"queries":{"#, r#""a":"b""#, "}}", LARGEST);
    a_schedule_that_is_a_tree: Config, tree(r#"{"schedule":"#, "}", LARGEST_CONFIGURATION);
    decorators_that_are_a_tree: Config, tree(r#"{"decorators":"#, "}", LARGEST_CONFIGURATION);
    decorators_that_are_no_queries: Config, tree(r#"{"decorators":{"load":"#, "}}", LARGEST_CONFIGURATION);
    decorators_without_number: Config, flood(r#"{"decorators":{"load":["#, r#""""#, "]}}", LARGEST_CONFIGURATION);
    intervals_without_number: Config,
        flood(r#"{"decorators":{"interval":{"#, r#""7":[]"#, "}}}", LARGEST_CONFIGURATION);
    a_flood_of_options: Config, flood(r#"{"options":{"#, r#""":1"#, "}}", LARGEST_CONFIGURATION);
    options_again_and_again: Config, flood("{", r#""options":{}"#, "}", LARGEST_CONFIGURATION);
    an_option_that_is_a_tree: Config, tree(r#"{"options":{"logger_event_type":"#, "}}", LARGEST_CONFIGURATION);
    a_text_that_is_no_json: Config, "x".repeat(LARGEST);
    a_text_of_characters_that_grow_when_escaped: Config, "\u{1}".repeat(LARGEST);
    a_configuration_that_is_too_large: Config, one_string("x", LARGEST);
    a_configuration_of_lines_that_are_joined: Config, one_string("x\\\n", LARGEST);
    a_configuration_of_comments: Config, format!("{}\n{{\"schedule\":{{}}}}", "#".repeat(LARGEST - 100));
}

/// Issue 15: answers of 16 MiB cost 80 to 318 MiB where they were dumped, no UTF-8, or wrapped in a string as here.
#[test]
fn a_configuration_in_a_string() {
    let wrapped = Value::String(one_string("x\\\n", LARGEST / 2)).to_string();
    let body = format!("{{\"config\":{wrapped}}}");
    are_cheap(Setup::new().flag("tls_node_api", "true"), [(Endpoint::Config, Answer::status(200, body))]);
    let wrapped = Value::String(one_string("x", LARGEST - 100)).to_string();
    let body = format!("{{\"config\":{wrapped}}}");
    are_cheap(Setup::new().flag("tls_node_api", "true"), [(Endpoint::Config, Answer::status(200, body))]);
}

/// With `tls_dump` and `verbose`, both of which a server can set.
fn dumping() -> Setup {
    Setup::new().flag("tls_dump", "true").flag("verbose", "true")
}

/// Bytes that are no UTF-8, at most.
fn no_text() -> Answer {
    Answer::status(200, "\u{ff}".repeat(LARGEST)).latin1()
}

/// Issue 15, the same answers, here of bytes that are no UTF-8.
#[test]
fn bytes_that_are_no_text() {
    are_cheap(Setup::new(), [(Endpoint::Config, no_text()), (Endpoint::DistributedRead, no_text())]);
}

#[test]
fn bytes_that_are_no_text_and_dumped() {
    are_cheap(dumping(), [(Endpoint::Config, no_text())]);
}

#[test]
fn a_text_that_is_dumped() {
    for body in ["x".repeat(LARGEST), one_string("x", LARGEST), tree(r#"{"error":"#, "}", LARGEST)] {
        are_cheap(dumping(), [(Endpoint::Config, Answer::status(200, body))]);
    }
}

/// Issue 15: each alone was bounded, and four at once were not tried.
#[test]
fn the_largest_answers_of_four_endpoints_at_the_same_moment() {
    let of = |bytes| Answer::status(200, one_string("x", bytes));
    let refused = Answer::status(500, one_string("x", LARGEST_OF_OTHERS));
    are_cheap(
        dumping(),
        [
            (Endpoint::Config, of(LARGEST)),
            (Endpoint::DistributedRead, of(LARGEST)),
            (Endpoint::DistributedWrite, of(LARGEST_OF_OTHERS)),
            (Endpoint::Log, refused),
        ],
    );
}

/// Issue 15: 24 KB of gzip that was not asked for cost a worker a gigabyte.
#[test]
fn a_content_encoding_that_was_not_asked_for_is_refused() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    rig.config();
    for answer in [
        Answer::default_behaviour().gzip(),
        Answer::default_behaviour().header("Content-Encoding", "br"),
        Answer::default_behaviour().header("Content-Encoding", "gzip, gzip"),
        Answer::default_behaviour().header("Content-Encoding", "\u{e9}"),
    ] {
        rig.server.script(Endpoint::Config, [answer]);
        let outcome = rig.gen_config();
        assert_eq!(outcome.code, 1, "{:?}", outcome.rows);
        assert!(outcome.message.contains("encoded in a way that was not asked for"), "{}", outcome.message);
    }
    rig.server.script(Endpoint::Config, [Answer::default_behaviour().header("Content-Encoding", "identity")]);
    rig.config();
}

/// Issue 15, beside the gzip that was not asked for.
#[test]
fn a_body_that_is_no_gzip_although_it_says_so_is_a_failure() {
    let rig = Setup::new().flag("tls_accept_gzip", "true").flag("config_tls_max_attempts", "1").start();
    rig.config();
    let answer = Answer::default_behaviour().header("Content-Encoding", "gzip");
    rig.server.script(Endpoint::Config, [answer]);
    assert_eq!(rig.gen_config().code, 1);
    // One compressed by another server, in capitals.
    let answer = Answer::default_behaviour().gzip().header("Content-Encoding", "GZIP");
    rig.server.script(Endpoint::Config, [answer]);
    rig.config();
}

/// Issue 15: a worker kept most of a gigabyte for ever.
#[test]
fn a_worker_that_is_too_large_is_replaced_and_its_call_is_answered() {
    let rig = Setup::new().flag("extensions_interval", "1").own_flag("--worker_max_memory=50331648").start();
    rig.config();
    let before = rig.worker_pid();
    rig.server.script(Endpoint::DistributedWrite, [Answer::hang()]);
    let results = format!("{{\"queries\":\"{}\"}}", "x".repeat(24 << 20));
    std::thread::scope(|scope| {
        let call = scope.spawn(|| rig.call("distributed", &[("action", "writeResults"), ("results", &results)]));
        rig.said("MiB in memory, more than worker_max_memory allows");
        rig.said("has taken over");
        rig.server.stop();
        assert_eq!(call.join().unwrap().code, 0);
    });
    rig.osqueryd.wait("another worker alone", LIMIT, || (rig.worker_pid() != before).then_some(()));
}
