//! Which cores threads may run on.
//!
//! A caller and its callee that wait for each other run twice as fast on one core as on two, and the kernel places them
//! now so, now so. A ratio of the one to the other says nothing; so both are measured, and the first is enforced.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where a measurement's threads run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// All of them on the first one.
    One,
    /// Where the kernel puts them.
    Any,
}

impl Cores {
    /// Puts a thread there; none is the calling one.
    pub(crate) fn put(self, thread: Option<u32>) {
        let thread = thread.and_then(|thread| Pid::from_raw(i32::try_from(thread).ok()?));
        let ours = ours();
        let cores = match self {
            Self::One => (0..CpuSet::MAX_CPU).find(|&core| ours.is_set(core)).map(only),
            Self::Any => Some(ours),
        };
        // One that has just ended can't be put anywhere.
        let _ = cores.map(|cores| sched_setaffinity(thread, &cores));
    }
}

/// All threads of this process from here on, on the last core.
pub(crate) fn keep_to_the_last() {
    let ours = ours();
    let last = (0..CpuSet::MAX_CPU).rev().find(|&core| ours.is_set(core)).map(only);
    // Without it the figures are better, not worse; and it is not everywhere allowed.
    let _ = last.map(|last| sched_setaffinity(None, &last));
}

/// Those that this process may have: its first thread is never put anywhere.
fn ours() -> CpuSet {
    sched_getaffinity(Some(rustix::process::getpid())).expect("the cores of this process")
}

fn only(core: usize) -> CpuSet {
    let mut cores = CpuSet::new();
    cores.set(core);
    cores
}
