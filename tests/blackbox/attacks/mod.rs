//! Attacks: what a server, a man in the middle, a proxy, another user of the host, or a file left for us may try. Each is
//! a test that does it to the real binary; SECURITY.md says who is trusted with what.

mod answers;
mod clients;
mod keys;
mod places;
mod processes;
mod words;

use std::fs;
use std::path::Path;

/// What a process has in memory, in KiB: one of the fields `VmRSS` and `VmHWM` (the most since its start, or since
/// [`forget_peak`]).
fn memory_of(process: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The most that a process had in memory is what it has now.
fn forget_peak(process: u32) {
    fs::write(Path::new("/proc").join(process.to_string()).join("clear_refs"), "5").unwrap();
}
