//! The suite on a real osqueryd: the real binary between the osqueryd that `OSQUERYD` names and the kit's reference
//! server, on loopback only.
//!
//! ```sh
//! OSQUERYD=/usr/bin/osqueryd cargo test --release --test real
//! ```
//!
//! Without `OSQUERYD` each test says on stderr that it is skipped, and passes. What the suite measures or counts it
//! prints on stderr as well, since numbers are to be read after a success, too.
//!
//! | variable | default | |
//! | --- | --- | --- |
//! | `OSQUERYD` | | the program; an osqueryd without any of its event tables will do |
//! | `REAL_EXTENSION` | the one just built | the extension's binary: that of a release, or of another version |
//! | `REAL_STOPS` | 3 | stops of osqueryd and of its worker; kills of our front, of osqueryd's worker, of everything |
//! | `REAL_KILLS` | 10 | kills of our worker |
//! | `REAL_INTAKE_RUNS` | 1 | runs of each logger when the intake is measured; the median is printed |
//! | `REAL_KEEP` | | when set, a failed test leaves its directory (logs, flag file, buffers) and says where it is |
//!
//! Each osqueryd lives in a temporary directory of its own, with its own socket, database, pidfile and flag file; an
//! osqueryd that the machine runs otherwise is not concerned. Every process that a test has started is ended by its
//! pid, also when the test fails.

// clippy.toml's allowances reach only the test functions themselves, not what they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod decorations;
mod distributed;
mod intake;
mod kills;
mod lines;
mod migration;
mod outage;
mod packs;
mod processes;
mod refresh;
mod rig;
mod stops;
mod tables;
mod walkthrough;
mod whole_queries;
