//! What operators run by hand, on a host where everything runs, and where it doesn't.

mod buffer;
mod flare;
mod logger;
mod rejected;
mod status;

use std::process::Command;

use serde_json::Value;

use crate::rig::{BINARY, Rig, SECRET};

/// What a command said: its exit code and both of its outputs.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

/// Runs a command of ours against a rig's osqueryd, with its flags.
fn run(rig: &Rig, arguments: &[&str]) -> Said {
    let output = Command::new(BINARY)
        .args(arguments)
        .arg("--socket")
        .arg(rig.osqueryd.socket())
        .arg("--own_flagfile")
        .arg(rig.directory.path().join("remote_tls.flags"))
        .output()
        .unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(!out.contains(SECRET) && !err.contains(SECRET), "the secret is shown:\n{out}{err}");
    Said { code: output.status.code().unwrap(), out, err }
}
