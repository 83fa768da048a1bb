//! What waits on the disk, and what is wrong with it.

use std::fs;

use rustix::mount::MountFlags;
use serde_json::json;

use super::{Fault, Host, fault, find, lines, look, state};
use crate::faults::Tmpfs;
use crate::rig::{mode, unix_time};

#[rustfmt::skip]
pub(super) const FAULTS: &[Fault] = &[
    fault(BUFFERS, "failure", "remote_tls is no directory", "move it away", |host| drop(host.file("remote_tls", ""))),
    fault(BUFFERS, "failure", "remote_tls/results can't be read: Not a directory", "look at the disk's health",
        |host| drop(host.file("remote_tls/results", "no directory"))),
    fault(BUFFERS, "failure", "0000000000000000.ndjson is no regular file", "look at the disk's health",
        |host| fs::create_dir_all(host.path(FIRST)).unwrap()),
    fault(BUFFERS, "warning", "remote_tls/results: 0000000000000000.ndjson.damaged-1", "they are text, a line each",
        |host| drop(host.file("remote_tls/results/0000000000000000.ndjson.damaged-1", ""))),
    fault(BUFFERS, "warning", "foreign or damaged files were moved aside in ", "read them, or delete them",
        |host| drop(host.file("remote_tls/statuses.damaged-1", ""))),
    fault(BUFFERS, "warning", "lines were set aside and never sent; the newest one, of results: it is no JSON",
        "osquery-remote-tls rejected list", |host| {
            let text = set_aside(2, "it is the first") + &set_aside(1, "it is no JSON");
            host.file("remote_tls/rejected.ndjson", &(text + "{\"time\":half a line"));
        }),
    fault(BUFFERS, "failure", "the lines that were set aside in ", "run the doctor as root",
        |host| fs::create_dir_all(host.path("remote_tls/rejected.ndjson")).unwrap()),
    fault(BUFFERS, "warning", "an earlier version has left its buffers in ", "read them with sqlite3",
        |host| drop(host.file("remote_tls/results.sqlite", ""))),
    fault(BUFFERS, "warning", "less than buffer_min_free_bytes", "make space", |host| {
        host.file(FIRST, &lines(1));
        host.file("remote_tls.flags", &format!("--buffer_min_free_bytes={}\n", u64::MAX));
    }),
    fault(BUFFERS, "warning", "6 result lines wait: more than half of --buffered_log_max",
        "see why they are not delivered", |host| { host.flag("buffered_log_max", "10"); host.file(FIRST, &lines(6)); }),
    fault(BUFFERS, "failure", "/proc/nope can't be made: /proc is no disk", "set --buffer_path in the extension's own flags",
        |host| drop(host.file("remote_tls.flags", "--buffer_path=/proc/nope\n"))),
    fault(BUFFERS, "failure", "secret is no directory", "set --buffer_path", |host| {
        let path = host.path("secret/below");
        host.file("remote_tls.flags", &format!("--buffer_path={}\n", path.display()));
    }),
    fault(BUFFERS, "warning", "remote_tls is writable by others", "chmod 0700 ", |host| {
        host.file(FIRST, &lines(1));
        mode(&host.path("remote_tls"), 0o777);
    }),
];

/// An entry of the file of lines that were set aside, `days` days old.
fn set_aside(days: i64, reason: &str) -> String {
    let now = unix_time();
    let time = now - days * 24 * 3600;
    json!({"time": time, "stream": "results", "reason": reason, "size": 3, "line": "x y"}).to_string() + "\n"
}

const BUFFERS: &str = "buffers";
const FIRST: &str = "remote_tls/results/0000000000000000.ndjson";

#[test]
fn what_is_wrong_with_the_buffers_is_said() {
    find(FAULTS);
}

#[test]
fn what_waits_in_the_buffers_is_said() {
    let host = Host::new();
    host.examine(&[]).must_say(BUFFERS, "ok", "is not there: the first line makes it", "");
    host.file(FIRST, &lines(7));
    host.examine(&[]).must_say(BUFFERS, "ok", "remote_tls: 7 result lines wait", "");
    // Another file, a whole query of two lines, and what is still being written.
    host.file(
        "remote_tls/results/0000000000000007.ndjson",
        "{\"diffResults\":{\"removed\":[],\"added\":[{},{}]}}\n{\"n",
    );
    // Three are done with.
    let offset = lines(3).len();
    host.file("remote_tls/results/cursor", &format!("{:020} {offset:020} {:020} {:020}\n", 0, 0, 3));
    host.file("remote_tls/statuses/0000000000000000.ndjson", &lines(1));
    host.file("remote_tls/distributed/0000000000000000.ndjson", &lines(2));
    host.file("remote_tls/pending/0000000000000000.ndjson", &lines(3));
    let before = state(&host.path("remote_tls"));
    let all = "remote_tls: 6 result lines wait, 1 status line waits, 2 results of distributed queries wait, 3 status calls \
               that no worker has taken wait";
    host.examine(&[]).must_say(BUFFERS, "ok", all, "");
    assert!(before == state(&host.path("remote_tls")), "something changed");
}

#[test]
fn what_is_old_or_mended_is_no_fault() {
    let host = Host::new();
    host.file(FIRST, &lines(2));
    host.file("remote_tls/results/cursor", "\0\0\0 garbage");
    host.file("remote_tls/rejected.ndjson", &set_aside(8, "it is old"));
    host.examine(&[]).must_say(BUFFERS, "ok", "2 result lines wait", "");
}

#[test]
fn a_disk_that_takes_nothing_is_a_failure() {
    let host = Host::new();
    let Some(tmpfs) = Tmpfs::mount(1 << 20) else { return };
    let buffers = tmpfs.path().join("buffers");
    fs::create_dir(&buffers).unwrap();
    mode(&buffers, 0o700);
    host.file("remote_tls.flags", &format!("--buffer_path={}\n", buffers.display()));
    let ballast = tmpfs.fill();
    let examine = || look(&host.flagfile(), &host.path("remote_tls.flags"), &[]);
    examine().must_say_only(BUFFERS, "failure", "is full: lines are kept in memory", "df -h ");
    fs::remove_file(ballast).unwrap();
    tmpfs.remount(MountFlags::RDONLY);
    examine().must_say_only(BUFFERS, "failure", "is mounted read-only", "mount it for writing");
}
