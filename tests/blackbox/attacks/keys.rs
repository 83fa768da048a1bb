//! Node keys that a server should not be able to give, and stored ones that no server gave.

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup, line};

/// Asks for the configuration once; the enrollment gives `key`, which must not be taken, and the next one a good one.
fn is_no_key(key: &str) {
    let rig = Setup::new().start();
    rig.server.script(Endpoint::Enroll, [Answer::json(json!({"node_key": key}))]);
    rig.config();
    assert_eq!(rig.server.requests_to(Endpoint::Enroll).len(), 2, "the first key was taken");
    rig.said("the answer has a node key that can't be used");
    assert_ne!(rig.stored_key().as_deref(), Some(key));
    goes_on(&rig);
}

fn goes_on(rig: &Rig) {
    rig.config();
    rig.log(&line(7));
    assert_eq!(rig.delivered(1), [7]);
}

/// Issue 15: a node key of any size was kept, sent and masked.
#[test]
fn a_key_of_more_than_four_kibibytes_is_a_failed_enrollment() {
    is_no_key(&"k".repeat(4097));
}

#[test]
fn a_key_with_control_characters_is_a_failed_enrollment() {
    for key in ["line\nbreak-1", "esc\u{1b}[2Jape-1", "\u{0}nul-and-more-1"] {
        is_no_key(key);
    }
}

/// Issue 15: the node key "error" hid that word in every message.
#[test]
fn a_word_is_no_key_since_masking_would_hide_it_everywhere() {
    for word in ["error", "osqueryd", "the server", "://"] {
        is_no_key(word);
    }
}

#[test]
fn the_longest_key_works_wherever_it_is_sent() {
    for (node_api, key) in [("false", "k/".repeat(2048)), ("true", "k/".repeat(2048)), ("true", "é1".repeat(1365))] {
        let rig = Setup::new().flag("tls_node_api", node_api).start();
        rig.server.set_next_node_key(&*key);
        goes_on(&rig);
        assert_eq!(rig.stored_key(), Some(key));
    }
}

/// Issue 15: a key that was put into the store kept the host from enrolling.
#[test]
fn a_stored_key_that_no_server_could_have_given_counts_as_none() {
    for key in ["k".repeat(5 << 20), "\u{1b}]0;title\u{7}".to_owned(), "a\nb".to_owned()] {
        let rig = Setup::new().flag("tls_node_api", "true").start();
        rig.osqueryd.store_put("configurations", "nodeKey", &key);
        goes_on(&rig);
        rig.osqueryd.wait("another key", LIMIT, || (rig.stored_key()? != key).then_some(()));
    }
}
