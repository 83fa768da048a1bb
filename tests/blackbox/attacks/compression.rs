//! Who can have lines logged and sees how large requests are must not learn the node key from that.

use testkit::server::Endpoint;

use crate::rig::{LIMIT, Rig, Setup};

/// How many bytes a compressed request with this line takes.
fn size_with(rig: &Rig, guess: &str) -> usize {
    rig.server.forget_requests();
    rig.log(&format!("{{\"name\":\"a\",\"guess\":\"{guess}\"}}"));
    rig.server.wait("the line's request", LIMIT, |server| {
        let requests = server.requests_to(Endpoint::Log);
        let request = requests.into_iter().find(|request| {
            request.body.windows(guess.len()).any(|part| part == guess.as_bytes())
                && request.json.as_ref().is_some_and(|json| json["log_type"] == "result")
        })?;
        assert_eq!(request.header("content-encoding"), Some("gzip"));
        Some(request.wire_bytes)
    })
}

/// Issue 15: with `logger_tls_compress` the right guess made 115 bytes, wrong ones 134.
#[test]
fn a_guess_of_the_node_key_makes_no_request_smaller() {
    let rig = Setup::new().flag("logger_tls_compress", "true").start();
    // Like no other word of the request, or a guess would be smaller for that one's sake.
    let key = "Qw7x-Zp3k-Jf9u";
    rig.server.set_next_node_key(key);
    rig.config();
    assert_eq!(rig.stored_key().as_deref(), Some(key));
    // Of the same characters, so that the guess itself is as hard to compress.
    let wrong: String = key.chars().rev().collect();
    let guessed = size_with(&rig, &format!("\\\"node_key\\\":\\\"{key}"));
    assert_eq!(guessed, size_with(&rig, &format!("\\\"node_key\\\":\\\"{wrong}")));
    assert_eq!(size_with(&rig, key), size_with(&rig, &wrong));
}
