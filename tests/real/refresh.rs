//! The configuration is fetched now, and not at osqueryd's next refresh.

use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::processes::signal;
use crate::rig::{BINARY, Host, real};

fn config(name: &str) -> Value {
    json!({"schedule": {name: {"query": "SELECT 1 AS one", "interval": 1, "snapshot": true}}})
}

#[test]
fn the_command_and_sighup_bring_the_configuration_at_once() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, config("first"));
    host.flag("config_refresh", "3600");
    host.start();
    let runs = |name: &str| {
        host.wait(name, || host.server.results().iter().any(|line| line["name"] == name).then_some(()));
    };
    runs("first");
    host.server.set_config(config("second"));
    let output = Command::new(BINARY).args(["refresh", "--socket"]).arg(host.path("osquery.em")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    runs("second");
    host.server.set_config(config("third"));
    signal(host.wait("our first process", || host.roles().front), Signal::HUP);
    runs("third");
    host.stop();
}
