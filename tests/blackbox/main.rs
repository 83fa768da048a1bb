//! Black-box tests: the real binary between a stand-in osqueryd and a real TLS server, on loopback only.
//!
//! One module a subject. Nothing here sleeps for luck: each test waits for a condition with a deadline, and prints
//! both sides' transcripts when it fails.

// clippy.toml's allowances reach only the test functions themselves, not what they share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout
)]

mod answers;
mod attacks;
mod backlog;
mod boundary;
mod cli;
mod commands;
mod config;
mod customizations;
mod decorations;
mod distributed;
mod doctor;
mod documentation;
mod ending;
mod enroll;
mod etag;
mod failover;
mod faults;
mod front;
mod headers;
mod isolation;
mod lifecycle;
mod log;
mod logger;
mod metrics;
mod neighbour;
mod otherwise;
mod pins;
mod proxy;
mod rig;
mod secrets;
mod settings;
mod soak;
mod tables;
mod tls;
mod trust;
