//! On what it was measured.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::programs::run;

/// A sentence or two: cores, memory, kernel, the buffers' file system, compiler, revision, and how busy it was.
pub(crate) fn description(scratch: &Path) -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let model = member(&cpuinfo, "model name").unwrap_or("a processor");
    let memory = member(&read("/proc/meminfo"), "MemTotal").and_then(|size| size.trim_end_matches(" kB").parse().ok());
    let memory = memory.map_or(0.0, |kibibytes: f64| kibibytes / f64::from(1 << 20));
    let said = |program: &str, arguments: &[&str]| {
        run(Command::new(program).args(arguments)).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    };
    format!(
        "Measured at revision {} on {} cores ({model}), {memory:.0} GiB of memory, Linux {}, buffers on {}, {}. Load average \
         at the beginning: {}.{}",
        said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]),
        thread::available_parallelism().map_or(1, usize::from),
        read("/proc/sys/kernel/osrelease").trim(),
        file_system(&read("/proc/mounts"), scratch),
        said("rustc", &["--version"]),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        if cfg!(debug_assertions) { " **The load generator is a debug build: these figures say little.**" } else { "" },
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value behind `name :` in a file of `/proc`.
fn member<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

/// The type of the file system that a path is on: the mount with the longest matching path.
fn file_system(mounts: &str, path: &Path) -> String {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mount = |line: &str| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    let mounts = mounts.lines().filter_map(mount).filter(|(at, _)| path.starts_with(at));
    mounts.max_by_key(|(at, _)| at.len()).map_or_else(|| "an unknown file system".to_owned(), |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /no/such tmpfs rw 0 0\n";
        let found = ["/no/such/place", "/no/suchlike"].map(|path| file_system(mounts, Path::new(path)));
        assert_eq!(found, ["tmpfs", "ext4"]);
    }
}
