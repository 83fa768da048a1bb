//! What the long trials, soak and crowd, are as programs: they take minutes or hours, can be interrupted, and end with a
//! verdict that is their exit code.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};

const EXIT_INTERRUPTED: u8 = 130;

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing speaks against the extension.
    Fine,
    /// Something does, and was said.
    Faulty,
    /// It was broken off before there was a verdict.
    Interrupted,
}

/// Runs a trial of this name, which is told when it is to be broken off, and makes an exit code of its end: 0 is "fine",
/// 1 a fault or an error, 130 an interruption.
pub fn main(name: &str, run: impl FnOnce(&Arc<AtomicBool>) -> io::Result<Outcome>) -> ExitCode {
    let interrupted = Arc::new(AtomicBool::new(false));
    let register = |signal| signal_hook::flag::register(signal, Arc::clone(&interrupted)).map(drop);
    match [SIGINT, SIGTERM].into_iter().try_for_each(register).and_then(|()| run(&interrupted)) {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Faulty) => ExitCode::FAILURE,
        Ok(Outcome::Interrupted) => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Any seed, of few digits, since it is to be typed again.
#[must_use]
pub fn any_seed() -> u64 {
    RandomState::new().hash_one(0) % 1_000_000
}

/// Writes a line at once. A reader that has gone is no reason to stop: the processes are to be ended in order.
pub fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
