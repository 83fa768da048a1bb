//! Attacks: what a server, a man in the middle, a proxy, another user of the host, or a file left for us may try. Each is
//! a test that does it to the real binary; docs/security.md says who is trusted with what.

mod answers;
mod clients;
mod compression;
mod decorations;
mod keys;
mod places;
mod processes;
mod words;

use std::fs;
use std::path::Path;

/// The most that a process had in memory is what it has now.
fn forget_peak(process: u32) {
    fs::write(Path::new("/proc").join(process.to_string()).join("clear_refs"), "5").unwrap();
}
