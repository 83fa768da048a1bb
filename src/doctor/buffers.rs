//! The journals on disk: whether they can be read, and what waits in them. They are looked at without a lock and without
//! a trace, also while the extension writes and reads them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::subject::Subject;
use super::{Check, Report};
use crate::clock::unix_time;
use crate::journal::inspect::{self, Look};
use crate::line_count::LineCounter;

/// The streams, by their directories, and what waits in each: one, and more.
const STREAMS: [(&str, [&str; 2]); 5] = [
    ("results", ["result line waits", "result lines wait"]),
    ("backlog", ["result line waits behind new ones", "result lines wait behind new ones"]),
    ("statuses", ["status line waits", "status lines wait"]),
    ("distributed", ["result of a distributed query waits", "results of distributed queries wait"]),
    ("pending", ["status call that no worker has taken waits", "status calls that no worker has taken wait"]),
];

/// What earlier versions kept lines in.
const EARLIER: [&str; 3] = ["results.sqlite", "statuses.sqlite", "distributed.sqlite"];

/// Set-aside lines younger than this are worth a warning, in seconds.
const YOUNG: i64 = 7 * 24 * 3600;

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::Buffers;
    let directory = &subject.settings.buffer_path;
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return report.fail(CHECK, format!("{} is no directory", directory.display()), "move it away"),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return to_be_made(directory, subject, report);
        }
        Err(error) => {
            return report.fail(CHECK, format!("{}: {error}", directory.display()), "run the doctor as root");
        }
    }
    others_write(directory, report);
    let found: Vec<String> =
        STREAMS.into_iter().filter_map(|(name, what)| stream(&directory.join(name), what, subject, report)).collect();
    set_aside(directory, report);
    damaged(directory, report);
    left_by_earlier_versions(directory, report);
    free_space(directory, subject, report);
    if report.is_clean(CHECK) {
        let found = if found.is_empty() { "empty".to_owned() } else { found.join(", ") };
        report.ok(CHECK, format!("{}: {found}", directory.display()));
    }
}

/// The first line makes the directory, where it can be made.
fn to_be_made(directory: &Path, subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::Buffers;
    let shown = directory.display();
    let remedy = "set --buffer_path in the extension's own flags to a directory on a disk, or leave it out";
    let above = directory.ancestors().skip(1).find_map(|above| Some((above, fs::metadata(above).ok()?)));
    match above {
        Some((above, found)) if !found.is_dir() => {
            report.fail(CHECK, format!("{shown} can't be made: {} is no directory", above.display()), remedy);
        }
        Some((above, _)) if is_of_the_kernel(above) => {
            report.fail(CHECK, format!("{shown} can't be made: {} is no disk", above.display()), remedy);
        }
        Some((above, _)) => {
            free_space(above, subject, report);
            if report.is_clean(CHECK) {
                report.ok(CHECK, format!("{shown} is not there: the first line makes it"));
            }
        }
        None => report.fail(CHECK, format!("{shown} can't be made"), remedy),
    }
}

/// `/proc`, `/sys`: no directory can be made there.
fn is_of_the_kernel(path: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|path| path.starts_with("/proc") || path.starts_with("/sys"))
}

fn others_write(directory: &Path, report: &mut Report<'_>) {
    if fs::metadata(directory).is_ok_and(|found| found.mode() & 0o022 != 0) {
        report.warn(
            Check::Buffers,
            format!("{} is writable by others: who writes there takes lines away, or makes some", directory.display()),
            format!("chmod 0700 {}", directory.display()),
        );
    }
}

/// Looks at one journal: how much waits in it.
fn stream(path: &Path, [one, more]: [&str; 2], subject: &Subject, report: &mut Report<'_>) -> Option<String> {
    const CHECK: Check = Check::Buffers;
    let look = inspect::look::<LineCounter>(path);
    if !look.exists {
        return None;
    }
    for problem in &look.problems {
        report.fail(CHECK, problem.clone(), "run the doctor as root; look at the disk's health");
    }
    say_damaged(&look, path, report);
    let limit = subject.settings.logger.limits.max_lines.filter(|_| !path.ends_with("distributed"));
    if limit.is_some_and(|limit| look.waiting.lines.saturating_mul(2) > limit) {
        report.warn(
            CHECK,
            format!("{} {more}: more than half of --buffered_log_max, beyond which the oldest go", look.waiting.lines),
            "see why they are not delivered (the checks above), or raise --buffered_log_max",
        );
    }
    match look.waiting.lines {
        0 => None,
        1 => Some(format!("1 {one}")),
        lines => Some(format!("{lines} {more}")),
    }
}

fn say_damaged(look: &Look, path: &Path, report: &mut Report<'_>) {
    if !look.damaged.is_empty() {
        report.warn(
            Check::Buffers,
            format!("damaged files were moved aside in {}: {}", path.display(), look.damaged.join(", ")),
            "look at the disk's health; they are text, a line each: read them, or delete them",
        );
    }
}

/// Lines that no server took.
fn set_aside(directory: &Path, report: &mut Report<'_>) {
    let newest = match inspect::rejected(directory, 1, 200) {
        Ok(newest) => newest,
        Err(error) => {
            let message = format!("the lines that were set aside in {} can't be read: {error}", directory.display());
            return report.fail(Check::Buffers, message, "run the doctor as root");
        }
    };
    if let Some(line) = newest.first().filter(|line| line.time + YOUNG > unix_time()) {
        report.warn(
            Check::Buffers,
            format!("lines were set aside and never sent; the newest one, of {}: {}", line.stream, line.reason),
            "see them: `osquery-remote-tls rejected list`; then `rejected retry` or `rejected discard`",
        );
    }
}

/// What was moved aside beside the journals.
fn damaged(directory: &Path, report: &mut Report<'_>) {
    let names: Vec<String> = names_in(directory).filter(|name| name.contains(".damaged-")).collect();
    if !names.is_empty() {
        report.warn(
            Check::Buffers,
            format!("foreign or damaged files were moved aside in {}: {}", directory.display(), names.join(", ")),
            "look at the disk's health; read them, or delete them",
        );
    }
}

fn left_by_earlier_versions(directory: &Path, report: &mut Report<'_>) {
    let names: Vec<String> = names_in(directory).filter(|name| EARLIER.contains(&name.as_str())).collect();
    if !names.is_empty() {
        report.warn(
            Check::Buffers,
            format!("an earlier version has left its buffers in {}: {}", directory.display(), names.join(", ")),
            "their lines are not sent by this version: read them with sqlite3 (table lines), then delete them",
        );
    }
}

fn names_in(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn free_space(directory: &Path, subject: &Subject, report: &mut Report<'_>) {
    let least = subject.settings.logger.limits.min_free_bytes;
    let Ok(disk) = statvfs(directory) else { return };
    let (free, shown) = (disk.f_bavail.saturating_mul(disk.f_frsize), directory.display());
    if disk.f_flag.contains(StatVfsMountFlags::RDONLY) {
        report.fail(
            Check::Buffers,
            format!("the disk of {shown} is mounted read-only: lines are kept in memory, and lost with the process"),
            "mount it for writing: the kernel does this after errors (dmesg)",
        );
    } else if free == 0 || disk.f_favail == 0 && disk.f_files > 0 {
        report.fail(
            Check::Buffers,
            format!("the disk of {shown} is full: lines are kept in memory, and lost with the process"),
            format!("make space: df -h {shown}; df -i {shown}"),
        );
    } else if free < least {
        report.warn(
            Check::Buffers,
            format!(
                "{free} bytes are free on the disk, less than buffer_min_free_bytes ({least}): the oldest lines go"
            ),
            "make space, or set buffer_min_free_bytes among the extension's own flags",
        );
    }
}
