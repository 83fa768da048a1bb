//! Faults of the disk and of the clock, and kills, while the real binary runs: what is promised of lines holds through
//! all of them. rig.log asserts in each of these that the logger call was answered 0.
//!
//! [`Faults`] has single calls of the extension's processes fail, and moves their wall clock. [`Tmpfs`] is a real file
//! system that becomes full or read-only.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use osquery_remote_tls::words::counted;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use serde_json::Value;
use tempfile::TempDir;

use crate::front::{all_delivered, load};
use crate::rig::{LIMIT, Rig, Setup, at_once, line, numbers, pass, set_aside_in, unix_time, waiting_in};

/// Kinds of calls that can fail, in the order of faults.c.
#[derive(Clone, Copy, Debug)]
enum Call {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Rename,
    MakeDirectory,
    Remove,
}

/// Every kind of them.
const ALL: [Call; 8] =
    [Call::Open, Call::Read, Call::Write, Call::Sync, Call::Truncate, Call::Rename, Call::MakeDirectory, Call::Remove];

/// The kinds that a disk refuses which can only be read.
const CHANGES: [Call; 7] =
    [Call::Open, Call::Write, Call::Sync, Call::Truncate, Call::Rename, Call::MakeDirectory, Call::Remove];

/// Where the fields of faults.c's `struct control` are, and its size.
const ERRORS: u64 = 8;
const FAILED: u64 = 40;
const ROOM: u64 = 104;
const PREFIX: u64 = 112;
const PREFIX_SIZE: usize = 256;

/// Faults for one extension's processes, at will.
struct Faults {
    control: File,
}

impl Faults {
    /// Gets them ready for the extension of this setup: they concern the directory of its buffers.
    fn of(setup: Setup) -> (Setup, Self) {
        let control = File::options().read(true).write(true).open(setup.file("faults", "")).unwrap();
        control.set_len(PREFIX + PREFIX_SIZE as u64).unwrap();
        let faults = Self { control };
        // Not those beside it whose names begin alike.
        faults.aim(&setup.path().join("remote_tls/"));
        let path = setup.path().join("faults");
        let setup = setup.osqueryd(|options| {
            options.env.push(("LD_PRELOAD".to_owned(), library().display().to_string()));
            options.env.push(("REMOTE_TLS_FAULTS".to_owned(), path.display().to_string()));
        });
        (setup, faults)
    }

    /// Only paths that begin with this one are concerned.
    fn aim(&self, prefix: &Path) {
        let mut bytes = [0; PREFIX_SIZE];
        let prefix = prefix.as_os_str().as_encoded_bytes();
        bytes[..prefix.len()].copy_from_slice(prefix);
        self.put(PREFIX, &bytes);
    }

    /// From now on these calls fail.
    fn fail(&self, calls: &[Call], error: Errno) {
        for &call in calls {
            self.put(ERRORS + 4 * call as u64, &error.raw_os_error().to_ne_bytes());
        }
    }

    /// Writes fail once `bytes` more bytes are written.
    fn fail_writes_after(&self, bytes: i64, error: Errno) {
        self.put(ROOM, &bytes.to_ne_bytes());
        self.fail(&[Call::Write], error);
    }

    /// From now on none fails.
    fn heal(&self) {
        for call in ALL {
            self.put(ERRORS + 4 * call as u64, &0_i32.to_ne_bytes());
        }
        self.put(ROOM, &0_i64.to_ne_bytes());
    }

    /// How many calls of a kind have failed so far.
    fn failed(&self, call: Call) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, FAILED + 8 * call as u64).unwrap();
        u64::from_ne_bytes(bytes)
    }

    /// The wall clock of the extension shows this Unix time now.
    fn set_clock(&self, seconds: i64) {
        self.put(0, &(seconds - unix_time()).to_ne_bytes());
    }

    /// The wall clock of the extension is right again.
    fn correct_clock(&self) {
        self.put(0, &0_i64.to_ne_bytes());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.control.write_all_at(bytes, at).unwrap();
    }
}

/// faults.c, built with the C compiler that `CC` names.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/blackbox/faults.c");
        // Under a name of this process's own at first: another one may be running these tests, too.
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let new = directory.join(format!("faults-{}.so", std::process::id()));
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&new).arg(source);
        assert!(compiler.status().unwrap().success(), "faults.c could not be built");
        let library = directory.join("faults.so");
        fs::rename(new, &library).unwrap();
        library
    })
}

/// A file system in memory, mounted as long as this lives.
pub(crate) struct Tmpfs(TempDir);

impl Tmpfs {
    /// A tmpfs of `size` bytes. `None`, and said, where we may not mount.
    pub(crate) fn mount(size: usize) -> Option<Self> {
        let tmpfs = Self(tempfile::tempdir().unwrap());
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        match mount("tmpfs", tmpfs.path(), "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(tmpfs),
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NODEV | Errno::NOSYS)) => {
                // Not by a macro: the harness would keep it to itself.
                let said =
                    format!("no file system may be mounted here ({error}): nothing was tested with a real one\n");
                std::io::stderr().write_all(said.as_bytes()).unwrap();
                None
            }
            Err(error) => panic!("no tmpfs: {error}"),
        }
    }

    pub(crate) fn remount(&self, flags: MountFlags) {
        mount_remount(self.path(), flags, c"").unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room that is left, until the file that is answered is removed.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        while file.write(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // It was not mounted when we may not.
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// The numbers of the lines that wait in this journal's files.
fn numbers_in(journal: &Path) -> BTreeSet<u64> {
    let lines: Vec<Value> = waiting_in(journal).iter().filter_map(|record| serde_json::from_str(record).ok()).collect();
    numbers(&lines).into_iter().collect()
}

/// The directory of the buffers, unless a test sets another one.
fn buffers(rig: &Rig) -> PathBuf {
    rig.directory.path().join("remote_tls")
}

fn results(rig: &Rig) -> PathBuf {
    buffers(rig).join("results")
}

/// Waits until `lines` result lines are in the files.
fn wait_on_disk(rig: &Rig, lines: usize) {
    rig.osqueryd
        .wait(&format!("{lines} lines on disk"), LIMIT, || (numbers_in(&results(rig)).len() == lines).then_some(()));
}

/// The names in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A journal's files with records, oldest first.
fn segments(journal: &Path) -> Vec<PathBuf> {
    names(journal).into_iter().filter(|name| name.ends_with(".ndjson")).map(|name| journal.join(name)).collect()
}

/// A line of exactly `bytes` bytes.
fn long_line(n: u64, bytes: usize) -> String {
    let (head, tail) = (format!("{{\"n\":{n},\"x\":\""), "\"}");
    format!("{head}{}{tail}", "x".repeat(bytes - head.len() - tail.len()))
}

fn nothing_was_lost(rig: &Rig) {
    assert!(!rig.stderr().contains("dropped") && !rig.stderr().contains("set aside"), "{}", rig.stderr());
}

/// The processor time that a process has taken, in hundredths of a second.
fn ticks_of(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn lines_are_taken_and_delivered_through_every_error_of_a_disk_that_runs() {
    let (setup, faults) = Faults::of(Setup::new());
    let rig = setup.start();
    rig.log(&line(0));
    let mut count = 1;
    let kinds: [(&[Call], Errno); 5] = [
        (&[Call::Write], Errno::IO),
        (&[Call::Write], Errno::NOSPC),
        (&CHANGES, Errno::ROFS),
        (&[Call::Read, Call::Write], Errno::IO),
        (&ALL, Errno::IO),
    ];
    for (round, (calls, error)) in kinds.into_iter().enumerate() {
        let failed = faults.failed(Call::Write);
        faults.fail(calls, error);
        (count..count + 3).for_each(|n| rig.log(&line(n)));
        count += 3;
        rig.delivered(count as usize);
        assert!(faults.failed(Call::Write) > failed, "{calls:?} {error:?}");
        rig.osqueryd.wait("the word on it", LIMIT, || {
            (rig.stderr().matches("lines of the results journal wait in memory until it can be written again").count()
                > round)
                .then_some(())
        });
        faults.heal();
        rig.osqueryd.wait("the word that it is over", LIMIT, || {
            rig.log(&line(count));
            count += 1;
            (rig.stderr().matches("results journal can be written again").count() > round).then_some(())
        });
        rig.delivered(count as usize);
        rig.settled();
    }
    assert_eq!(rig.delivered(count as usize), (0..count).collect::<Vec<u64>>(), "all in order, and each once");
    nothing_was_lost(&rig);
}

#[test]
fn a_disk_that_can_t_be_used_from_the_start_is_used_as_soon_as_it_can() {
    let kinds = [
        (Call::Open, Errno::IO),
        (Call::Open, Errno::ROFS),
        (Call::Write, Errno::NOSPC),
        (Call::MakeDirectory, Errno::NOSPC),
        (Call::MakeDirectory, Errno::ACCESS),
    ];
    at_once(kinds, |(call, error)| {
        let (setup, faults) = Faults::of(Setup::new());
        faults.fail(&[call], error);
        let rig = setup.flag("logger_tls_period", "3600").start();
        rig.server.stop();
        (0..3).for_each(|n| rig.log(&line(n)));
        rig.said("lines of the results journal wait in memory until it can be written again");
        assert!(faults.failed(call) > 0, "{call:?}");
        faults.heal();
        wait_on_disk(&rig, 3);
        nothing_was_lost(&rig);
    });
}

/// A disk that has become read-only lets files be opened for reading.
#[test]
fn each_file_of_a_journal_may_be_one_that_can_only_be_read() {
    at_once(["writer.lock", "reader.lock", "cursor", "0"], |name| {
        let (setup, faults) = Faults::of(Setup::new());
        let rig = setup.start();
        rig.server.stop();
        rig.log(&line(0));
        wait_on_disk(&rig, 1);
        // A journal that was never read can't be read here for the first time.
        rig.osqueryd.wait("the reader", LIMIT, || results(&rig).join("reader.lock").exists().then_some(()));
        faults.aim(&results(&rig).join(name));
        faults.fail(&[Call::Open], Errno::ROFS);
        rig.kill_both_and_wait();
        rig.log(&line(1));
        if name == "0" {
            rig.said("lines of the results journal wait in memory until it can be written again");
            faults.heal();
        }
        rig.server.resume().unwrap();
        // In either order: what waits in memory does not wait for the disk.
        assert_eq!(rig.delivered(2).into_iter().collect::<BTreeSet<u64>>(), (0..2).collect(), "{name}");
        // The cursor is written after the server's answer.
        rig.osqueryd.wait(&format!("a refusal of {name}"), LIMIT, || (faults.failed(Call::Open) > 0).then_some(()));
        if name == "cursor" {
            assert!(!results(&rig).join("cursor").exists(), "nothing was delivered before");
            rig.said("cursor can't be written, and lines may be sent again after a restart");
            assert!(!rig.waiting("results").is_empty(), "it was written");
        }
        faults.heal();
        rig.log(&line(2));
        rig.delivered(3);
        rig.settled();
        assert_eq!(rig.server.result_count(), 3, "{name}: each once");
        nothing_was_lost(&rig);
    });
}

/// No call of osqueryd's and no answer of the server's is needed for it.
#[test]
fn lines_in_memory_are_written_when_the_disk_accepts_them_whatever_the_server_does() {
    let (setup, faults) = Faults::of(Setup::new().flag("logger_tls_period", "3600"));
    let rig = setup.flag("distributed_tls_max_attempts", "1").start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();
    rig.server.stop();
    faults.fail(&[Call::Write], Errno::NOSPC);
    (1..4).for_each(|n| rig.log(&line(n)));
    assert_eq!(rig.call("distributed", &[("action", "writeResults"), ("results", "{\"queries\":{}}")]).code, 0);
    rig.said("lines of the results journal wait in memory until it can be written again");
    rig.said("lines of the distributed journal wait in memory until it can be written again");
    faults.heal();
    rig.said("the results journal can be written again, and has 3 lines from memory");
    rig.said("the distributed journal can be written again, and has 1 line from memory");
    assert_eq!(numbers_in(&results(&rig)), (1..4).collect());
}

#[test]
fn a_disk_that_can_t_be_read_loses_no_line_costs_no_processor_time_and_holds_up_no_other_line() {
    let (setup, faults) = Faults::of(Setup::new());
    let rig = setup.start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();
    rig.server.stop();
    (1..4).for_each(|n| rig.log(&line(n)));
    faults.fail(&[Call::Read, Call::Write], Errno::IO);
    rig.server.resume().unwrap();
    rig.osqueryd.wait("reads that fail", LIMIT, || (faults.failed(Call::Read) > 0).then_some(()));
    // What comes now waits in memory, and need not wait for what can't be read. Each line wakes the sender: there
    // is an attempt a period all the same, of a few reads.
    let failed = faults.failed(Call::Read);
    for n in 4..104 {
        rig.log(&line(n));
        pass(Duration::from_millis(20));
    }
    assert_eq!(rig.delivered(101)[1..], (4..104).collect::<Vec<u64>>());
    let failed = faults.failed(Call::Read) - failed;
    assert!(failed < 100, "{failed} reads in some seconds");
    faults.heal();
    assert_eq!(rig.delivered(104)[101..], [1, 2, 3]);
    rig.log(&line(104));
    assert_eq!(rig.delivered(105)[104..], [104]);
    nothing_was_lost(&rig);
}

#[test]
fn a_disk_that_can_be_written_and_not_read_delivers_all_in_order_when_it_can() {
    let (setup, faults) = Faults::of(Setup::new());
    let rig = setup.start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();
    faults.fail(&[Call::Read], Errno::IO);
    (1..50).for_each(|n| rig.log(&line(n)));
    rig.osqueryd.wait("reads that fail", LIMIT, || (faults.failed(Call::Read) > 0).then_some(()));
    assert_eq!(numbers_in(&results(&rig)), (1..50).collect());
    let failed = faults.failed(Call::Read);
    pass(Duration::from_secs(2));
    let failed = faults.failed(Call::Read) - failed;
    assert!(failed < 60, "{failed} reads in two seconds");
    assert_eq!(rig.server.result_count(), 1);
    faults.heal();
    // No further line is needed for it.
    assert_eq!(rig.delivered(50), (0..50).collect::<Vec<u64>>());
    nothing_was_lost(&rig);
}

#[test]
fn a_disk_that_can_neither_be_synced_nor_give_space_back_harms_no_line() {
    let (setup, faults) = Faults::of(Setup::new().own_flag("--journal_sync_interval=1"));
    let rig = setup.start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();
    rig.server.stop();
    faults.fail(&[Call::Sync, Call::Truncate, Call::Remove], Errno::IO);
    // Several segments.
    (1..20).for_each(|n| rig.log(&long_line(n, 900_000)));
    rig.said("results can't be synced, and a power cut may take lines: ");
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(20), (0..20).collect::<Vec<u64>>());
    rig.settled();
    assert!(faults.failed(Call::Remove) > 0 && segments(&results(&rig)).len() > 1, "all were removed");
    assert!(!rig.stderr().contains("wait in memory"), "{}", rig.stderr());
    faults.heal();
    rig.log(&line(20));
    assert_eq!(rig.delivered(21), (0..21).collect::<Vec<u64>>());
    rig.said("results can be synced again");
    // Killed before it has noted what the server has, a worker would send that again.
    rig.settled();
    // What could not be removed is, at the next start at the latest, and nothing of it is sent again.
    rig.kill_both_and_wait();
    rig.log(&line(21));
    rig.delivered(22);
    rig.settled();
    rig.osqueryd.wait("room on the disk", LIMIT, || (segments(&results(&rig)).len() == 1).then_some(()));
    assert_eq!(rig.server.result_count(), 22);
    nothing_was_lost(&rig);
}

#[test]
fn a_write_that_the_disk_ends_in_its_middle_leaves_no_half_line() {
    let (setup, faults) = Faults::of(Setup::new().flag("logger_tls_period", "3600"));
    let rig = setup.start();
    rig.server.stop();
    rig.log(&line(0));
    wait_on_disk(&rig, 1);
    faults.aim(&results(&rig).join("0"));
    faults.fail_writes_after(10, Errno::NOSPC);
    (1..3).for_each(|n| rig.log(&line(n)));
    rig.said("lines of the results journal wait in memory until it can be written again");
    assert_eq!(fs::read_to_string(&segments(&results(&rig))[0]).unwrap(), format!("{}\n", line(0)));
    faults.heal();
    wait_on_disk(&rig, 3);
    assert_eq!(rig.waiting("results"), [line(0), line(1), line(2)], "in one file, in order");
    nothing_was_lost(&rig);
}

#[test]
fn half_a_line_that_can_t_be_cut_off_is_set_aside_and_the_whole_one_delivered() {
    let (setup, faults) = Faults::of(Setup::new());
    let rig = setup.start();
    rig.server.stop();
    rig.log(&line(0));
    wait_on_disk(&rig, 1);
    faults.aim(&results(&rig).join("0"));
    faults.fail(&[Call::Truncate], Errno::IO);
    faults.fail_writes_after(10, Errno::NOSPC);
    rig.log(&line(1));
    rig.said("half a record can't be cut off segment 0: a new one begins");
    faults.heal();
    wait_on_disk(&rig, 2);
    rig.log(&line(2));
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(3), [0, 1, 2], "in order, and each once");
    rig.said("1 line of the results journal set aside so far");
    let aside: Vec<String> = set_aside_in(&buffers(&rig)).into_iter().map(|(line, _)| line).collect();
    assert_eq!(aside, [&line(1)[..10]]);
    assert!(!rig.stderr().contains("dropped"), "{}", rig.stderr());
}

/// Such a record is never in memory as a whole.
#[test]
fn a_large_record_that_the_disk_refuses_is_dropped_counted_said_and_told_to_the_server() {
    let (setup, faults) = Faults::of(Setup::new().flag("logger_tls_max_linesize", "8388608"));
    let rig = setup.start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();
    faults.aim(&results(&rig).join("incoming-"));
    faults.fail_writes_after(1 << 20, Errno::NOSPC);
    rig.log(&long_line(1, 3 << 20));
    let lost =
        "1 line of the results journal dropped so far; the last because the disk refuses a record of 3145728 bytes";
    rig.said(lost);
    assert!(!names(&results(&rig)).iter().any(|name| name.starts_with("incoming-")), "it takes room");
    rig.log(&line(2));
    faults.heal();
    rig.log(&long_line(3, 3 << 20));
    assert_eq!(rig.delivered(3), [0, 2, 3]);
    rig.server.wait("the word on it among the status lines", LIMIT, |server| {
        let told = |line: &Value| line["message"].as_str().is_some_and(|said| said.starts_with(lost));
        server.statuses().iter().any(told).then_some(())
    });
}

#[test]
fn what_exceeds_the_memory_is_dropped_counted_said_and_told_to_the_server() {
    let (setup, faults) = Faults::of(Setup::new());
    let rig = setup.start();
    rig.server.stop();
    faults.fail(&[Call::Write], Errno::NOSPC);
    // 64 of them, each with its newline, are the 32 MiB of the bound.
    (0..72).for_each(|n| rig.log(&long_line(n, (512 << 10) - 1)));
    let lost = "8 lines of the results journal dropped so far; the last because the disk refuses them and the memory for them is full";
    rig.said(lost);
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(64), (0..64).collect::<Vec<u64>>());
    rig.server.wait("the word on it among the status lines", LIMIT, |server| {
        let told = |line: &Value| line["severity"] == 2 && line["message"].as_str().is_some_and(|said| said == lost);
        server.statuses().iter().any(told).then_some(())
    });
    // Neither more nor less: what comes now is taken again.
    rig.log(&line(72));
    assert_eq!(rig.delivered(65).last(), Some(&72));
    assert_eq!(rig.stderr().matches("dropped so far").count(), 4, "said at 1, 2, 4 and 8");
}

#[test]
fn configurations_and_what_is_set_aside_are_not_kept_on_a_disk_that_refuses_and_all_goes_on() {
    let (setup, faults) = Faults::of(Setup::new());
    faults.fail(&CHANGES, Errno::NOSPC);
    let rig = setup.start();
    let (source, first) = rig.config();
    faults.heal();
    assert_eq!(rig.config(), (source, first.clone()));
    let path = buffers(&rig).join("config.json");
    let kept = rig.osqueryd.wait("the configuration on disk", LIMIT, || {
        rig.config();
        fs::read_to_string(&path).ok()
    });
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();

    // A configuration that can't be renamed into its place leaves the last one whole.
    faults.fail(&[Call::Rename], Errno::IO);
    rig.server.set_config(serde_json::json!({"schedule": {}}));
    assert_ne!(rig.config().1, first);
    rig.osqueryd.wait("the attempt to keep it", LIMIT, || (faults.failed(Call::Rename) > 0).then_some(()));
    assert_eq!(fs::read_to_string(&path).unwrap(), kept);

    // A line that can't be set aside holds up no other.
    rig.server.stop();
    rig.log(&line(1));
    rig.log("this is no JSON");
    faults.fail(&[Call::Write], Errno::IO);
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(2), [0, 1]);
    rig.said("lines can't be set aside in");
    rig.said("1 line of the results journal set aside so far; the last because it is no JSON");
}

#[test]
fn what_is_in_the_way_of_a_journal_and_can_t_be_moved_aside_is_moved_later() {
    let in_the_way: [fn(&Path); 3] = [
        |buffers| fs::write(buffers.join("results"), "a file in the journal's place").unwrap(),
        |buffers| fs::create_dir_all(buffers.join("results/0000000000000000.ndjson/with/content")).unwrap(),
        |buffers| fs::create_dir_all(buffers.join("results/writer.lock")).unwrap(),
    ];
    at_once(in_the_way.into_iter().enumerate(), |(case, make)| {
        let (setup, faults) = Faults::of(Setup::new());
        let buffers = setup.path().join("remote_tls");
        fs::create_dir(&buffers).unwrap();
        make(&buffers);
        faults.fail(&[Call::Rename], Errno::IO);
        let rig = setup.flag("logger_tls_period", "3600").start();
        rig.server.stop();
        rig.log(&line(0));
        rig.said("lines of the results journal wait in memory until it can be written again");
        let failed = faults.failed(Call::Rename);
        rig.osqueryd.wait("more attempts", LIMIT, || (faults.failed(Call::Rename) >= failed + 4).then_some(()));
        let journal = results(&rig).display().to_string();
        let errors = rig.stderr().lines().filter(|line| line.starts_with('E') && line.contains(&journal)).count();
        assert_eq!(errors, 1, "said once in case {case}: {}", rig.stderr());
        faults.heal();
        wait_on_disk(&rig, 1);
        rig.said("it is now ");
        let moved = |directory: &Path| names(directory).iter().any(|name| name.contains(".damaged-"));
        assert!(moved(&buffers) || moved(&results(&rig)), "case {case}");
        nothing_was_lost(&rig);
    });
}

/// What a kill, a power cut or an operator leaves behind.
struct Damage {
    what: &'static str,
    make: fn(&Path),
    said: &'static str,
    /// What of it is set aside.
    aside: &'static [&'static str],
    /// What is delivered of the four lines that wait, and the newer one.
    delivered: &'static [u64],
}

fn add(path: &Path, bytes: &[u8]) {
    File::options().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn cut(path: &Path, length: u64) {
    File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

const FIRST: &str = "0000000000000000.ndjson";

const DAMAGES: &[Damage] = &[
    Damage {
        what: "half a line at the end",
        make: |journal| add(&journal.join(FIRST), br#"{"n":"#),
        said: "ends in half a record of 5 bytes, which is cut off",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "the last line cut in its middle",
        make: |journal| {
            let path = journal.join(FIRST);
            cut(&path, fs::metadata(&path).unwrap().len() - 3);
        },
        said: "ends in half a record of ",
        aside: &[],
        delivered: &[0, 1, 2, 4],
    },
    Damage {
        what: "NULs and garbage at the end",
        make: |journal| add(&journal.join(FIRST), b"\0\0\0\nno line at all\n"),
        said: "2 lines of the results journal set aside so far",
        aside: &["\0\0\0", "no line at all"],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "garbage in the middle",
        make: |journal| {
            let file = File::options().write(true).open(journal.join(FIRST)).unwrap();
            file.write_all_at(b"\xff\xfe\0", line(0).len() as u64 + 1).unwrap();
        },
        said: "1 line of the results journal set aside so far",
        aside: &["\u{fffd}\u{fffd}\0ame\":\"q\",\"n\":1}"],
        delivered: &[0, 2, 3, 4],
    },
    Damage {
        what: "half a line in an older file",
        make: |journal| {
            add(&journal.join(FIRST), br#"{"n":"#);
            fs::write(journal.join("0000000000000005.ndjson"), "").unwrap();
        },
        said: "1 line of the results journal set aside so far",
        aside: &[r#"{"n":"#],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "a cursor of garbage",
        make: |journal| fs::write(journal.join("cursor"), "\0\0 garbage").unwrap(),
        said: "cursor makes no sense: lines may be sent again",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "a cursor in the middle of a line",
        make: |journal| {
            let cursor = format!("{:020} {:020} {:020} {:020}\n", 0, 7, 0, 1);
            fs::write(journal.join("cursor"), cursor).unwrap();
        },
        said: "points to no record: lines may be sent again",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "a cursor beyond the end",
        make: |journal| {
            let cursor = format!("{:020} {:020} {:020} {:020}\n", 0, 1 << 30, 0, 1000);
            fs::write(journal.join("cursor"), cursor).unwrap();
        },
        said: "points to no record: lines may be sent again",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "a directory in the cursor's place",
        make: |journal| {
            let _ = fs::remove_file(journal.join("cursor"));
            fs::create_dir_all(journal.join("cursor/with/content")).unwrap();
        },
        said: "cursor can't be used (",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "a link in the lock's place",
        make: |journal| {
            fs::remove_file(journal.join("writer.lock")).unwrap();
            std::os::unix::fs::symlink("/dev/null", journal.join("writer.lock")).unwrap();
        },
        said: "writer.lock can't be used (",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "a directory with a segment's name",
        make: |journal| fs::create_dir_all(journal.join("0000000000000002.ndjson/with/content")).unwrap(),
        said: "0000000000000002.ndjson can't be used (it is no regular file, or larger than any segment)",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "a large record of a dead process, and a foreign file",
        make: |journal| {
            fs::write(journal.join("incoming-7"), "half a large record").unwrap();
            fs::write(journal.join("notes.txt"), "an operator's").unwrap();
        },
        said: " waited in the results journal at the start",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
    Damage {
        what: "no locks and no cursor",
        make: |journal| {
            for name in ["writer.lock", "reader.lock", "cursor"] {
                let _ = fs::remove_file(journal.join(name));
            }
        },
        said: " waited in the results journal at the start",
        aside: &[],
        delivered: &[0, 1, 2, 3, 4],
    },
];

#[test]
fn damaged_and_foreign_files_stop_nothing_and_cost_no_other_line() {
    for damage in DAMAGES {
        println!("{}", damage.what);
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("results");
        let setup = || Setup::new().own_flag(&format!("--buffer_path={}", directory.path().display()));
        {
            let rig = setup().start();
            rig.server.stop();
            (0..4).for_each(|n| rig.log(&line(n)));
            rig.osqueryd.stop();
        }
        (damage.make)(&journal);
        let rig = setup().start();
        rig.log(&line(4));
        assert_eq!(rig.delivered(damage.delivered.len()), damage.delivered, "{}", damage.what);
        rig.said(damage.said);
        rig.osqueryd.wait("an empty journal", LIMIT, || waiting_in(&journal).is_empty().then_some(()));
        let aside: Vec<String> = set_aside_in(directory.path()).into_iter().map(|(line, _)| line).collect();
        assert_eq!(aside, damage.aside, "{}", damage.what);
        assert!(!names(&journal).iter().any(|name| name.starts_with("incoming-")), "{}", damage.what);
        assert_eq!(rig.server.result_count(), damage.delivered.len(), "{}: each once", damage.what);
        assert!(!rig.stderr().contains("dropped"), "{}: {}", damage.what, rig.stderr());
        let is_foreign = damage.what.contains("a foreign file");
        assert_eq!(journal.join("notes.txt").exists(), is_foreign, "it is not ours");
    }
}

#[test]
fn files_deleted_under_the_extension_cost_the_lines_in_them_and_no_others() {
    let rig = Setup::new().own_flag("--journal_sync_interval=1").start();
    rig.server.stop();
    (0..3).for_each(|n| rig.log(&line(n)));
    wait_on_disk(&rig, 3);
    segments(&results(&rig)).iter().for_each(|path| fs::remove_file(path).unwrap());
    // It goes into a file without a name, until the writer looks for its name.
    rig.log(&line(3));
    rig.said("the results journal's newest file was deleted by another program: a new one begins");
    let ticks = ticks_of(rig.worker_pid());
    pass(Duration::from_secs(1));
    let ticks = ticks_of(rig.worker_pid()) - ticks;
    assert!(ticks < 30, "the worker looks for the lines for {ticks} hundredths of a second");
    rig.log(&line(4));
    rig.server.resume().unwrap();
    let delivered = rig.server.wait("the line after that", LIMIT, |server| {
        let delivered = numbers(&server.results());
        delivered.contains(&4).then_some(delivered)
    });
    // A worker that got ready when the first ones were there already has read some of them: these are not lost.
    let read = delivered.len() as u64 - 1;
    assert_eq!(delivered, (0..read).chain([4]).collect::<Vec<_>>());
    assert!(read < 4, "the file was deleted before line 3: {delivered:?}");
    let dropped = counted(4 - read, "line");
    rig.said(&format!(
        "{dropped} of the results journal dropped so far; the last because their files are gone or damaged"
    ));

    // All of it, with its locks.
    rig.settled();
    fs::remove_dir_all(buffers(&rig)).unwrap();
    let mut count = 5;
    rig.osqueryd.wait("a new journal", LIMIT, || {
        rig.log(&line(count));
        count += 1;
        results(&rig).is_dir().then_some(())
    });
    rig.log(&line(count));
    rig.server.wait("the newest line", LIMIT, |server| numbers(&server.results()).contains(&count).then_some(()));
    rig.settled();
}

#[test]
fn lines_survive_when_both_processes_are_killed_at_random_moments() {
    let rig = Rig::start();
    let mut random = fastrand::Rng::with_seed(3);
    let calls = load(&rig, || {
        for _ in 0..3 {
            pass(Duration::from_micros(random.u64(..200_000)));
            rig.kill_both_and_wait();
        }
    });
    assert!(calls.taken.len() > 3, "{} lines", calls.taken.len());
    all_delivered(&rig, &calls.taken);
}

#[test]
fn what_is_on_disk_survives_kills_while_the_disk_refuses() {
    let (setup, faults) = Faults::of(Setup::new());
    let rig = setup.start();
    rig.server.stop();
    let mut random = fastrand::Rng::with_seed(4);
    let mut safe = BTreeSet::new();
    let calls = load(&rig, || {
        for error in [Errno::IO, Errno::NOSPC, Errno::IO, Errno::NOSPC] {
            let before = safe.len();
            rig.osqueryd.wait("lines on disk", LIMIT, || {
                safe.extend(numbers_in(&results(&rig)));
                (safe.len() > before).then_some(())
            });
            let failed = faults.failed(Call::Write);
            faults.fail(&[Call::Write, Call::Sync], error);
            rig.osqueryd.wait("a refusal", LIMIT, || (faults.failed(Call::Write) > failed).then_some(()));
            pass(Duration::from_micros(random.u64(..100_000)));
            safe.extend(numbers_in(&results(&rig)));
            rig.kill_both_and_wait();
            faults.heal();
        }
    });
    assert!(safe.len() >= 4 && safe.is_subset(&calls.taken.into_iter().collect()), "{} lines", safe.len());
    rig.server.resume().unwrap();
    all_delivered(&rig, &safe.into_iter().collect::<Vec<u64>>());
    assert!(!rig.stderr().contains("damaged"), "{}", rig.stderr());
}

#[test]
fn a_file_system_that_becomes_full_loses_no_line() {
    let Some(tmpfs) = Tmpfs::mount(8 << 20) else { return };
    let buffers = tmpfs.path().join("remote_tls");
    let results = buffers.join("results");
    let is_empty = || waiting_in(&results).is_empty().then_some(());
    let rig = Setup::new()
        .own_flag(&format!("--buffer_path={}", buffers.display()))
        .own_flag("--buffer_min_free_bytes=0")
        .start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.osqueryd.wait("an empty journal", LIMIT, is_empty);
    rig.server.stop();
    let ballast = tmpfs.fill();
    let mut count = 1;
    while !rig.stderr().contains("lines of the results journal wait in memory until it can be written again") {
        rig.log(&long_line(count, 2000));
        count += 1;
        assert!(count < 10_000, "the disk is not full");
    }
    (count..count + 20).for_each(|n| rig.log(&line(n)));
    count += 20;
    rig.server.resume().unwrap();
    assert_eq!(rig.delivered(count as usize), (0..count).collect::<Vec<u64>>(), "delivered while it is full");
    fs::remove_file(ballast).unwrap();
    rig.osqueryd.wait("the word that it is over", LIMIT, || {
        rig.log(&line(count));
        count += 1;
        rig.stderr().contains("the results journal can be written again").then_some(())
    });
    assert_eq!(rig.delivered(count as usize), (0..count).collect::<Vec<u64>>());
    rig.osqueryd.wait("an empty journal", LIMIT, is_empty);
    nothing_was_lost(&rig);
}

/// The kernel refuses to make a file system read-only while files on it are open for writing, so this one is at the
/// start; one that becomes it under way (after errors) is among the cases above.
#[test]
fn a_file_system_that_is_read_only_for_a_while_loses_no_line() {
    let Some(tmpfs) = Tmpfs::mount(8 << 20) else { return };
    let buffers = tmpfs.path().join("remote_tls");
    let setup = || Setup::new().own_flag(&format!("--buffer_path={}", buffers.display()));
    {
        let rig = setup().start();
        rig.server.stop();
        (0..3).for_each(|n| rig.log(&line(n)));
        rig.osqueryd.stop();
    }
    tmpfs.remount(MountFlags::RDONLY);
    let rig = setup().start();
    (3..6).for_each(|n| rig.log(&line(n)));
    rig.said("lines of the results journal wait in memory until it can be written again");
    assert_eq!(rig.delivered(6), [0, 1, 2, 3, 4, 5], "delivered all the same");
    rig.config();
    tmpfs.remount(MountFlags::empty());
    rig.log(&line(6));
    rig.delivered(7);
    rig.osqueryd.wait("an empty journal", LIMIT, || waiting_in(&buffers.join("results")).is_empty().then_some(()));
    assert_eq!(rig.server.result_count(), 7, "each once");
    nothing_was_lost(&rig);
}

/// 2040, and the first days of 1974 and 1970, before the certificate of the server is valid.
const LATER: i64 = 2_208_988_800;
const EARLIER: i64 = 126_230_400;
const EARLIEST: i64 = 86_400;

#[test]
fn lines_are_delivered_whatever_the_clock_does() {
    let (setup, faults) = Faults::of(Setup::new());
    let rig = setup.start();
    rig.log(&line(0));
    rig.delivered(1);
    rig.settled();
    faults.set_clock(LATER);
    // With all that depends on a clock: another enrollment, another connection, a line that is set aside, a word on it.
    rig.server.forget_nodes();
    rig.server.stop();
    rig.server.resume().unwrap();
    rig.log("this is no JSON");
    rig.log(&line(1));
    assert_eq!(rig.delivered(2), [0, 1]);
    rig.server.wait("the word on it", LIMIT, |server| {
        server.statuses().iter().any(|line| line["unixTime"].as_i64().is_some_and(|time| time >= LATER)).then_some(())
    });
    for (round, time) in [EARLIER, EARLIEST].into_iter().enumerate() {
        faults.set_clock(time);
        // A process that knows no session of before must look at the certificate.
        rig.settled();
        rig.kill_both_and_wait();
        rig.log(&line(2 + round as u64));
        rig.osqueryd.wait("the word on the certificate", LIMIT, || {
            (rig.stderr().matches("result lines can't be delivered and are kept").count() > round).then_some(())
        });
        faults.correct_clock();
        rig.delivered(3 + round);
    }
    assert_eq!(rig.delivered(4), [0, 1, 2, 3]);
    assert!(!rig.stderr().contains("panicked"), "{}", rig.stderr());
}

#[test]
fn a_clock_that_jumps_neither_gives_up_results_nor_keeps_them_back() {
    let (setup, faults) = Faults::of(Setup::new().flag("distributed_tls_max_attempts", "1"));
    let rig = setup.start();
    rig.config();
    let keep = |name: &str| {
        let results = format!("{{\"queries\":{{\"{name}\":[]}}}}");
        assert_eq!(rig.call("distributed", &[("action", "writeResults"), ("results", &results)]).code, 0);
    };
    rig.server.stop();
    keep("now");
    faults.set_clock(EARLIER);
    keep("earlier");
    faults.set_clock(LATER);
    keep("later");
    // Another process takes them over, to which all of them are years old.
    rig.kill_both();
    rig.server.resume().unwrap();
    let written =
        rig.server.wait("all of them", LIMIT, |server| Some(server.written()).filter(|written| written.len() == 3));
    let names: Vec<&String> =
        written.iter().map(|body| body["queries"].as_object().unwrap().keys().next().unwrap()).collect();
    assert_eq!(names, ["now", "earlier", "later"]);
    nothing_was_lost(&rig);
}
