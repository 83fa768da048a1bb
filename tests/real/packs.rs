//! Packs that a configuration names by a string: osqueryd asks the plugin for them, and ours has none to give.

use serde_json::json;

use crate::rig::{Host, real};

#[test]
fn a_pack_named_by_a_string_is_no_pack_and_the_others_go_on() {
    let Some(real) = real() else { return };
    let pack = json!({"queries": {"two": {"query": "SELECT random() AS two", "interval": 1}}});
    let host = Host::new(
        &real,
        json!({
            "packs": {"a_by_name": "https://localhost/pack", "b_inline": pack, "c_by_name": "another"},
            "schedule": {"one": {"query": "SELECT random() AS one", "interval": 1}}
        }),
    );
    host.start();
    for name in ["one", "pack_b_inline_two"] {
        host.wait(name, || host.server.results().iter().any(|line| line["name"] == name).then_some(()));
    }
    let packs = host.sql("SELECT name FROM osquery_packs WHERE name != 'main' ORDER BY name");
    assert_eq!(packs.len(), 1, "{packs:?}");
    assert_eq!(packs[0]["name"], "b_inline");
    assert_eq!(host.stop().code(), Some(0));
}
