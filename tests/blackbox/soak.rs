//! The soak command in its quick form: the same phases, but short ones.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{BINARY, LIMIT, child_of, extension_of, is_alive, program};

fn soak(minutes: &str) -> Command {
    let mut soak = Command::new(program("soak"));
    soak.args(["--minutes", minutes, "--seed", "1", "--report-every", "5", "--extension", BINARY]);
    soak
}

#[test]
fn a_short_soak_loses_nothing() {
    let output = soak("0.35").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.ends_with("verdict: ok\n"), "{}: {said}", output.status);
    // The verdict is about something: lines were taken, worker and front were killed, faults were there.
    for nothing in ["results: 0 sent", "done: 0 kills", " 0 kills of the front", " 0 faults of the server"] {
        assert!(!said.contains(nothing), "{nothing} is in {said}");
    }
}

#[test]
fn an_interrupted_soak_ends_what_it_has_started() {
    let mut soak = soak("60").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(soak.stdout.take().unwrap()).lines();
    // The first row of the table comes when the extension is up.
    let first = lines.find(|line| line.as_ref().unwrap().contains("| start |"));
    assert!(first.is_some(), "no row");
    let front = extension_of(soak.id()).unwrap();
    let worker = child_of(front).unwrap();
    kill_process(Pid::from_child(&soak), Signal::INT).unwrap();
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(soak.wait().unwrap().code(), Some(130), "{said:?}");
    assert!(said.last().unwrap().starts_with("interrupted after"), "{said:?}");
    let deadline = Instant::now() + LIMIT;
    for process in [front, worker] {
        while is_alive(process) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!is_alive(process), "{process} is still there");
    }
}
