//! What processes use, from `/proc`: their own time and memory, and not those of their callers.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::cores::Cores;

/// The processes of one contender.
#[derive(Clone)]
pub(crate) struct Processes(Vec<u32>);

/// Memory, in bytes, of all the processes together.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// What is resident; pages that two of them share count twice.
    pub(crate) resident: u64,
    /// The same with each page shared out among the processes that have it.
    pub(crate) proportional: u64,
}

/// The time that threads have used. One that has ended since is not seen any more: where that may be, it is
/// [`Processes::cpu`] that counts.
pub(crate) struct ThreadTimes(BTreeMap<PathBuf, Duration>);

impl ThreadTimes {
    /// All together.
    pub(crate) fn sum(&self) -> Duration {
        self.0.values().sum()
    }

    /// What they have used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Duration {
        self.0.iter().map(|(task, time)| *time - before.0.get(task).copied().unwrap_or_default()).sum()
    }
}

impl Processes {
    /// One process.
    pub(crate) fn alone(process: u32) -> Self {
        Self(vec![process])
    }

    /// A process and its children.
    pub(crate) fn family(process: u32) -> Self {
        let mut all = vec![process];
        all.extend(children(process));
        Self(all)
    }

    /// Puts all their threads there, and with them those that they will start.
    pub(crate) fn put(&self, cores: Cores) {
        for task in self.tasks() {
            cores.put(task.file_name().and_then(|name| name.to_str()?.parse().ok()));
        }
    }

    /// The first process.
    ///
    /// # Panics
    /// Never: there is one at least.
    pub(crate) fn first(&self) -> u32 {
        *self.0.first().expect("a process")
    }

    /// The child that came last, or the process itself.
    ///
    /// # Panics
    /// Never: there is one at least.
    pub(crate) fn youngest(&self) -> u32 {
        *self.0.last().expect("a process")
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// User and system time so far, threads that have ended included. The kernel says it in steps of 10 ms.
    pub(crate) fn cpu(&self) -> Duration {
        let ticks: u64 = self.0.iter().map(|process| ticks(&read(&proc(*process).join("stat")))).sum();
        Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).expect("some hundred")
    }

    /// The time of each thread that runs now, to the nanosecond.
    pub(crate) fn threads(&self) -> ThreadTimes {
        let time = |task: &PathBuf| read(&task.join("schedstat")).split(' ').next().and_then(|time| time.parse().ok());
        let times = self.tasks().into_iter().filter_map(|task| Some((time(&task)?, task)));
        ThreadTimes(times.map(|(time, task)| (task, Duration::from_nanos(time))).collect())
    }

    /// How often threads that run now have gone to sleep, and so have woken, by thread: of ours, whose first process is
    /// the front.
    pub(crate) fn wake_ups(&self) -> BTreeMap<String, u64> {
        let mut wake_ups = BTreeMap::new();
        for task in self.tasks() {
            let status = read(&task.join("status"));
            let name = status.lines().find_map(|line| line.strip_prefix("Name:")).unwrap_or_default().trim();
            let process = member(&status, "Tgid:");
            let role =
                if self.0.first().is_some_and(|first| u64::from(*first) == process) { "front" } else { "worker" };
            *wake_ups.entry(format!("{role}, {name}")).or_default() += member(&status, "voluntary_ctxt_switches:");
        }
        wake_ups
    }

    pub(crate) fn memory(&self) -> Memory {
        let rollups: Vec<String> = self.0.iter().map(|process| read(&proc(*process).join("smaps_rollup"))).collect();
        let sum = |name| 1024 * rollups.iter().map(|rollup| member(rollup, name)).sum::<u64>();
        Memory { resident: sum("Rss:"), proportional: sum("Pss:") }
    }

    fn tasks(&self) -> Vec<PathBuf> {
        let tasks = |process: &u32| fs::read_dir(proc(*process).join("task")).into_iter().flatten().flatten();
        self.0.iter().flat_map(tasks).map(|task| task.path()).collect()
    }
}

/// The processes whose parent this one is.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|process| member(&read(&proc(*process).join("status")), "PPid:") == u64::from(parent)).collect()
}

fn proc(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}"))
}

/// A process can end at any moment; its files are empty then.
fn read(path: &PathBuf) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The 14th and 15th member; the second is a name in parentheses that may hold anything.
fn ticks(stat: &str) -> u64 {
    let behind_name = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    behind_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// The number behind a name at the beginning of a line.
fn member(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_stat_may_hold_anything() {
        assert_eq!(ticks("7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 30 12 99 99 20"), 42);
    }

    #[test]
    fn this_process_uses_something() {
        let own = Processes::family(std::process::id());
        let memory = own.memory();
        assert!(memory.proportional > 0 && memory.proportional <= memory.resident);
        let before = own.threads();
        let sum: u64 = (0..100_000u64).map(std::hint::black_box).sum();
        let after = own.threads();
        assert!(sum > 0 && after.sum() > Duration::ZERO && after.since(&before) <= after.sum());
    }
}
