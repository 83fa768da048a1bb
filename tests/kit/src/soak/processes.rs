//! What the kernel says of a process.

use std::collections::HashMap;
use std::fs;

/// A process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident memory, in KiB.
    pub(crate) rss: u64,
    /// The same, with shared pages divided among those who share them.
    pub(crate) pss: u64,
    pub(crate) threads: u64,
    /// Open file descriptors.
    pub(crate) descriptors: u64,
}

impl Usage {
    /// What a process takes now; `None` when there is no such process any more.
    pub(crate) fn of(process: u32) -> Option<Usage> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{process}/{name}")).ok();
        let memory = read("smaps_rollup")?;
        Some(Usage {
            rss: number(&memory, "Rss:")?,
            pss: number(&memory, "Pss:")?,
            threads: number(&read("status")?, "Threads:")?,
            descriptors: fs::read_dir(format!("/proc/{process}/fd")).ok()?.count() as u64,
        })
    }
}

/// The processes whose parent `parent` is.
pub(super) fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |process: &u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        number(&status, "PPid:") == Some(u64::from(parent)) && !status.contains("\nState:\tZ")
    };
    processes.filter(is_child).collect()
}

/// What the extensions with these first processes take, each with its workers: the processes are looked through once for
/// all of them.
pub(crate) fn families(fronts: &[u32]) -> Vec<Usage> {
    let mut families: HashMap<u32, Usage> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let front = if fronts.contains(&process) { Some(process) } else { parent_of(process) };
        let Some(front) = front.filter(|front| fronts.contains(front)) else { continue };
        let Some(usage) = Usage::of(process) else { continue };
        let family = families.entry(front).or_default();
        *family = Usage {
            rss: family.rss + usage.rss,
            pss: family.pss + usage.pss,
            threads: family.threads + usage.threads,
            descriptors: family.descriptors + usage.descriptors,
        };
    }
    families.into_values().collect()
}

/// Its name may have blanks and brackets.
fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The number behind a name at the beginning of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn numbers_are_found_by_the_whole_name() {
        let text = "55 [rollup]\nRss:        4004 kB\nPss:        1234 kB\nPss_Dirty:   88 kB\n";
        assert_eq!((number(text, "Rss:"), number(text, "Pss:"), number(text, "Swap:")), (Some(4004), Some(1234), None));
    }

    #[test]
    fn a_child_is_found_and_measured_and_gone_when_it_is_gone() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let process = child.id();
        assert!(children_of(std::process::id()).contains(&process));
        let own = Usage::of(std::process::id()).unwrap();
        assert!(own.rss >= own.pss && own.pss > 0 && own.threads > 0 && own.descriptors >= 3, "{own:?}");
        let family = families(&[std::process::id()]);
        assert!(family.len() == 1 && family[0].rss > own.rss / 2 && family[0].threads > 1, "{family:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children_of(std::process::id()).contains(&process));
        assert_eq!(Usage::of(process), None);
    }
}
