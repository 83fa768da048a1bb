//! Disks that refuse, and what others do to the files.

use std::os::unix::fs::symlink;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

#[test]
fn lines_wait_in_memory_while_the_disk_refuses_them() {
    let rig = Rig::blocked();
    rig.append(&lines(0..3));
    assert!(rig.writer.retry() && rig.writer.waits_for_disk() && !rig.reader.is_empty());
    assert_eq!(rig.writer.end(), None);
    rig.unblock();
    rig.append(&lines(3..4));
    assert!(!rig.writer.waits_for_disk());
    assert_eq!(rig.restart().take_all(), lines(0..4));
}

#[test]
fn a_disk_that_refuses_is_tried_again_once_a_second() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("remote_tls"), "").unwrap();
    let rig = Rig::at(root, Tuning::default());
    let began = std::time::Instant::now();
    rig.append(&lines(0..1));
    rig.unblock();
    while rig.writer.retry() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(999) && waited < Duration::from_secs(30), "{waited:?}");
    assert_eq!(rig.take_all(), lines(0..1));
}

#[test]
fn lines_are_delivered_from_memory_while_the_disk_refuses_them() {
    let rig = Rig::blocked();
    rig.append(&lines(0..5));
    let lent = chunk(&rig.reader, 24);
    assert_eq!(lent.bytes(), b"{\"n\":0}\n{\"n\":1}\n{\"n\":2}\n");
    assert!(lent.start().is_in_memory());
    rig.append(&lines(5..6));
    rig.reader.acknowledge(ends(&lent)[1]);
    rig.reader.acknowledge(lent.end());
    assert_eq!(chunk(&rig.reader, 1).len(), 1, "one is handed out, however large");
    assert_eq!(rig.peek(), lines(3..6));
    assert_eq!(rig.reader.counts(), Counts { delivered: 3, ..Counts::default() });
    rig.writer.close();
    assert_eq!(
        rig.writer.counts(),
        Counts { accepted: 6, dropped: 3, ..Counts::default() },
        "lost at the end, and counted"
    );
    assert_eq!(rig.reader.waiting_lines(), 0);
    assert!(!rig.reader.is_empty(), "whether lines wait on a disk that can't be read isn't known");
}

#[test]
fn lines_that_are_lent_are_not_written_before_they_are_given_back() {
    let rig = Rig::blocked();
    rig.append(&lines(0..3));
    let lent = chunk(&rig.reader, 16);
    rig.unblock();
    rig.append(&lines(3..4));
    assert!(rig.writer.retry(), "two are lent, and the others must not overtake them");
    rig.reader.take_back();
    assert!(!rig.writer.retry());
    // The server has got them for all that; they come twice, and this takes no others.
    rig.reader.acknowledge(lent.end());
    assert_eq!(rig.take_all(), lines(0..4));
}

#[test]
fn a_peek_writes_what_waits_in_memory_when_the_disk_accepts_it() {
    let rig = Rig::blocked();
    rig.append(&lines(0..3));
    assert_eq!(rig.peek(), lines(0..3));
    rig.unblock();
    assert!(!chunk(&rig.reader, ALL).start().is_in_memory());
    assert_eq!(rig.restart().take_all(), lines(0..3));
}

#[test]
fn a_batch_in_memory_can_be_acknowledged_line_by_line() {
    let rig = Rig::blocked();
    rig.append(&[batch(5), batch(2)]);
    let start = chunk(&rig.reader, ALL).start();
    rig.reader.acknowledge(start.after_lines(3));
    rig.append(&[batch(4)]);
    let peeked = chunk(&rig.reader, ALL);
    assert_eq!(peeked.start(), start.after_lines(3));
    assert_eq!(peeked.records().map(|record| record.lines()).collect::<Vec<_>>(), [2, 2, 4]);
    rig.reader.acknowledge(ends(&peeked)[1]);
    assert_eq!(rig.reader.counts().delivered, 7);
    assert_eq!(chunk(&rig.reader, ALL).len(), 1);
}

#[test]
fn what_is_said_of_another_process_s_memory_removes_nothing() {
    let rig = Rig::blocked();
    rig.append(&lines(0..3));
    let lent = rig.writer.peek(ALL).unwrap().unwrap();
    for through in [0, 1, lent.through - 3, lent.through + 1, u64::MAX] {
        rig.writer.remove(through);
    }
    assert_eq!(held(&rig.writer), Amount { lines: 3, bytes: lent.bytes.len() as u64 });
    rig.writer.remove(lent.through - 1);
    assert_eq!(held(&rig.writer).lines, 1);
}

#[test]
fn memory_that_is_full_is_written_before_more_is_dropped() {
    let rig = Rig::blocked();
    rig.append(&["x".repeat(MEMORY_LIMIT - 1)]);
    rig.unblock();
    rig.append(&lines(0..1));
    assert_eq!(rig.writer.counts().dropped, 0);
    assert_eq!(rig.take_all().len(), 2);
}

#[test]
fn a_large_record_that_the_disk_refuses_is_dropped_counted_and_said() {
    let rig = Rig::blocked();
    let mut incoming = Incoming::begin(&rig.writer);
    batch(3000).as_bytes().chunks(1000).for_each(|piece| incoming.write(piece));
    incoming.commit();
    assert_eq!(rig.writer.counts(), Counts { accepted: 3000, dropped: 3000, ..Counts::default() });
    let losses = rig.writer.take_losses();
    assert!(losses[0].starts_with(
        "3000 lines of the results journal dropped so far; the last because the disk refuses a record of"
    ));
    assert!(losses[0].contains("can't use the journal's directory"), "{losses:?}");
}

#[test]
fn a_directory_that_somebody_removes_is_made_again() {
    let rig = Rig::with_segments_of(30);
    rig.append(&lines(0..10));
    rig.reader.acknowledge(end(&rig.reader.peek(ALL).unwrap()).unwrap());
    let gone = rig.reader.waiting_lines();
    assert!(gone > 0);
    fs::remove_dir_all(rig.buffers()).unwrap();
    assert!(matches!(rig.reader.peek(ALL), Ok(Waiting::Nothing)));
    assert!(rig.reader.is_empty());
    let mut n = 10;
    while !rig.journal().exists() {
        rig.append(&lines(n..n + 1));
        n += 1;
        rig.writer.retry();
    }
    // Those in the removed files are lost, and those after are not.
    rig.append(&lines(n..n + 5));
    let taken = rig.take_all();
    assert!(taken.ends_with(&lines(n..n + 5)), "{taken:?}");
    assert!(rig.segments()[0] >= 10, "no number is used twice: {:?}", rig.segments());
}

#[test]
fn a_segment_that_somebody_deletes_is_noticed() {
    let rig = Rig::new();
    rig.append(&lines(0..3));
    fs::remove_file(rig.segment(0)).unwrap();
    assert!(!rig.writer.retry());
    rig.append(&lines(3..5));
    assert_eq!(rig.segments(), [3]);
    assert_eq!(rig.take_all(), lines(3..5));
    assert_eq!(rig.reader.counts().delivered, 2);
}

#[test]
fn a_cursor_that_somebody_deletes_is_written_anew() {
    let rig = Rig::new();
    rig.append(&lines(0..2));
    assert_eq!(rig.take_all(), lines(0..2));
    fs::remove_file(rig.journal().join("cursor")).unwrap();
    rig.append(&lines(2..4));
    assert_eq!(rig.take_all(), lines(2..4));
    let rig = rig.restart();
    assert!(rig.peek().is_empty(), "they come again");
}

#[test]
fn files_that_somebody_replaces_by_older_ones_are_read() {
    let rig = Rig::with_segments_of(20);
    rig.append(&lines(0..20));
    rig.take_all();
    rig.writer.close();
    for name in rig.files() {
        fs::remove_file(rig.journal().join(name)).unwrap();
    }
    let other = writer(rig.root.path(), rig.tuning);
    other.append(b"a new beginning");
    assert_eq!(rig.segments(), [0]);
    assert_eq!(rig.take_all(), ["a new beginning"]);
}

#[test]
fn a_second_process_leaves_the_journal_alone() {
    let rig = Rig::new();
    rig.append(&lines(0..2));
    assert_eq!(rig.peek(), lines(0..2));
    let second = writer(rig.root.path(), rig.tuning);
    second.append(b"by the second");
    assert!(second.waits_for_disk());
    let reader = reader(rig.root.path(), &second);
    // It can't read the disk, and what it has in memory need not wait for that.
    assert_eq!(texts(&reader.peek(ALL).unwrap()), ["by the second"]);
    reader.acknowledge(end(&reader.peek(ALL).unwrap()).unwrap());
    assert!(matches!(reader.peek(ALL), Err(JournalError::InUse { .. })));
    assert!(!reader.is_empty(), "it isn't known");
    reader.acknowledge(Position { file: 5, offset: 5, lines_done: 0, line: 5 });
    assert_eq!(reader.keep_within(&most(0)), 0);
    assert_eq!(rig.take_all(), lines(0..2));
}

#[test]
fn what_waits_in_memory_need_not_wait_for_a_disk_that_can_t_be_read() {
    let rig = Rig::with_segments_of(20);
    rig.append(&lines(0..3));
    assert_eq!(rig.peek(), lines(0..3));
    let hidden = rig.root.path().join("hidden");
    fs::rename(rig.buffers(), &hidden).unwrap();
    fs::write(rig.buffers(), "").unwrap();
    rig.append(&lines(3..5));
    assert_eq!(rig.take_all_from_memory(), lines(3..5));
    fs::remove_file(rig.buffers()).unwrap();
    fs::rename(&hidden, rig.buffers()).unwrap();
    assert_eq!(rig.take_all(), lines(0..3));
    assert_eq!(rig.reader.counts(), Counts { delivered: 5, ..Counts::default() });
}

impl Rig {
    fn take_all_from_memory(&self) -> Vec<String> {
        let mut taken = Vec::new();
        while let Ok(waiting) = self.reader.peek(ALL) {
            taken.extend(texts(&waiting));
            self.reader.acknowledge(end(&waiting).unwrap());
        }
        taken
    }
}

/// The names beside which a moved-aside file is.
fn moved_aside(names: &[String]) -> Vec<&str> {
    names.iter().filter_map(|name| name.split_once(".damaged-")).map(|(name, _)| name).collect()
}

#[test]
fn foreign_things_are_moved_aside_and_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let path = journal(root.path());
    fs::create_dir_all(&path).unwrap();
    let outside = root.path().join("outside");
    fs::write(&outside, "not ours\n").unwrap();
    fs::create_dir(segments::path(&path, 3)).unwrap();
    symlink(&outside, segments::path(&path, 7)).unwrap();
    // A hole that takes no room.
    fs::File::create(segments::path(&path, 9)).unwrap().set_len(segments::LARGEST + 1).unwrap();
    symlink(&outside, path.join("cursor")).unwrap();
    symlink(&outside, path.join("reader.lock")).unwrap();
    fs::create_dir(path.join("writer.lock")).unwrap();
    symlink(&outside, segments::path(&path, 0)).unwrap();
    let rig = Rig::at(root, Tuning::default());
    rig.append(&lines(0..2));
    assert!(!rig.writer.waits_for_disk());
    assert_eq!(rig.take_all(), lines(0..2));
    let names = rig.files();
    let expected = [0, 3, 7, 9].map(|number| format!("{number:016}.ndjson"));
    let expected: Vec<&str> =
        expected.iter().map(String::as_str).chain(["cursor", "reader.lock", "writer.lock"]).collect();
    assert_eq!(moved_aside(&names), expected);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "not ours\n");
    assert_eq!(rig.restart().reader.waiting_lines(), 0);
}

#[test]
fn a_foreign_thing_that_has_the_next_segment_s_name_is_moved_aside() {
    let rig = Rig::with_segments_of(10);
    rig.append(&lines(0..2));
    fs::create_dir(rig.segment(2)).unwrap();
    rig.append(&lines(2..3));
    assert!(!rig.writer.waits_for_disk());
    let large = |number: u64| {
        fs::create_dir_all(rig.segment(number).join("inside")).unwrap();
        let mut incoming = Incoming::begin(&rig.writer);
        incoming.write(b"a large one");
        incoming.commit();
    };
    large(3);
    assert_eq!(rig.writer.counts().dropped, 0);
    assert_eq!(rig.take_all(), [lines(0..3), vec!["a large one".to_owned()]].concat());
    assert_eq!(moved_aside(&rig.files()).len(), 2);
}

#[test]
fn a_file_in_the_directory_s_place_is_moved_aside() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("remote_tls")).unwrap();
    fs::write(journal(root.path()), "a file").unwrap();
    let rig = Rig::at(root, Tuning::default());
    assert!(rig.reader.peek(ALL).is_err(), "it is no directory, and the writer's to judge");
    rig.append(&lines(0..1));
    assert_eq!(rig.take_all(), lines(0..1));
    assert_eq!(moved_aside(&names(&rig.buffers())), ["results"]);
}

#[test]
fn a_directory_may_be_a_link() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), root.path().join("remote_tls")).unwrap();
    let rig = Rig::at(root, Tuning::default());
    rig.append(&lines(0..1));
    assert!(elsewhere.path().join("results/0000000000000000.ndjson").exists());
    assert_eq!(rig.restart().take_all(), lines(0..1));
}

/// A small file system in memory, mounted as long as this lives. None, and said, where we may not mount.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(size: usize) -> Option<Self> {
        let tmpfs = Self(tempfile::tempdir().unwrap());
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        match mount("tmpfs", tmpfs.0.path(), "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(tmpfs),
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NODEV | Errno::NOSYS)) => {
                say(&format!("no file system may be mounted here ({error}): nothing was tested with a full one"));
                None
            }
            Err(error) => panic!("no tmpfs: {error}"),
        }
    }

    fn rig(&self, tuning: Tuning) -> Rig {
        // The directory is the mount's to remove.
        Rig::at(tempfile::Builder::new().tempdir_in(self.0.path()).unwrap(), tuning)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // It was not mounted when we may not.
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// Not by a macro: the harness would keep it to itself.
fn say(text: &str) {
    use std::io::Write;
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// Lines of 500 bytes.
fn long_lines(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{n:04}{}", "x".repeat(495))).collect()
}

/// Their numbers, and their lengths where these are wrong: an assertion's message stays readable.
fn heads(lines: &[String]) -> Vec<String> {
    let head = |line: &String| match (line.len(), line.get(..4)) {
        (499, Some(number)) => number.to_owned(),
        (length, number) => format!("{number:?} of {length}"),
    };
    lines.iter().map(head).collect()
}

const RETRIED_AT_ONCE: Tuning = Tuning { segment_bytes: 20_000, retry_interval: Duration::ZERO };

#[test]
fn a_full_disk_loses_no_line_and_leaves_no_half_one() {
    let Some(tmpfs) = Tmpfs::mount(64 << 10) else { return };
    let rig = tmpfs.rig(RETRIED_AT_ONCE);
    rig.append(&long_lines(0..200));
    assert!(rig.writer.waits_for_disk());
    let on_disk: Vec<u8> = rig.segments().iter().flat_map(|&n| fs::read(rig.segment(n)).unwrap()).collect();
    assert!(on_disk.len() > 60_000 && on_disk.ends_with(b"\n"), "{}", on_disk.len());
    assert_eq!(on_disk.len() / 500 + held(&rig.writer).lines as usize, 200);
    // A batch that is written in part stays in part.
    rig.writer.append_all(long_lines(200..210));
    // Not even the cursor can be written.
    assert_eq!(heads(&rig.take_all_in_pieces_of(3000)), heads(&long_lines(0..210)));
    assert!(!rig.writer.waits_for_disk());
    rig.append(&long_lines(210..220));
    assert_eq!(heads(&rig.restart().take_all()), heads(&long_lines(210..220)));
}

#[test]
fn lines_written_at_once_on_a_disk_that_becomes_full_stay_in_order() {
    let Some(tmpfs) = Tmpfs::mount(64 << 10) else { return };
    let rig = tmpfs.rig(Tuning { segment_bytes: 1 << 20, ..RETRIED_AT_ONCE });
    rig.writer.append_all(long_lines(0..200));
    let on_disk = fs::read(rig.segment(0)).unwrap();
    assert!(on_disk.len() > 55_000 && on_disk.len() % 500 == 0, "{}", on_disk.len());
    assert_eq!(rig.reader.waiting_lines(), 200);
    assert_eq!(heads(&rig.take_all()), heads(&long_lines(0..200)));
    assert_eq!(rig.reader.counts(), Counts { delivered: 200, ..Counts::default() });
}

#[test]
fn a_large_record_on_a_disk_that_becomes_full_is_dropped_and_leaves_no_file() {
    let Some(tmpfs) = Tmpfs::mount(512 << 10) else { return };
    let rig = tmpfs.rig(RETRIED_AT_ONCE);
    rig.append(&lines(0..1));
    let mut incoming = Incoming::begin(&rig.writer);
    let record = batch(100_000);
    record.as_bytes().chunks(10_000).for_each(|piece| incoming.write(piece));
    assert!(!rig.files().contains(&"incoming-1".to_owned()));
    incoming.commit();
    assert_eq!(rig.writer.counts(), Counts { accepted: 100_001, dropped: 100_000, ..Counts::default() });
    rig.append(&lines(1..2));
    assert_eq!(rig.take_all(), lines(0..2));
}

#[test]
fn half_a_record_that_can_t_be_cut_off_is_handed_out_like_one() {
    let Some(tmpfs) = Tmpfs::mount(64 << 10) else { return };
    let rig = tmpfs.rig(Tuning { segment_bytes: 1 << 20, ..RETRIED_AT_ONCE });
    rig.append(&long_lines(0..1));
    let segment = fs::File::open(rig.segment(0)).unwrap();
    let flags = ioctl_getflags(&segment).unwrap_or(IFlags::empty());
    // A file that can only be appended to.
    if let Err(error) = ioctl_setflags(&segment, flags | IFlags::APPEND) {
        return say(&format!("no file can be made append-only here ({error}): nothing was tested with one"));
    }
    let ballast = rig.root.path().join("ballast");
    fs::write(&ballast, vec![0; 32 << 10]).unwrap();
    rig.append(&long_lines(1..100));
    assert!(rig.writer.waits_for_disk());
    let on_disk = fs::read(rig.segment(0)).unwrap();
    let (whole, half) = (on_disk.len() / 500, on_disk.len() % 500);
    assert_ne!(half, 0);
    fs::remove_file(ballast).unwrap();
    while rig.writer.retry() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(rig.segments(), [0, whole as u64 + 1], "the half one counts as a line");
    ioctl_setflags(&segment, flags).unwrap();
    let mut expected = long_lines(0..100);
    expected.insert(whole, expected[whole][..half].to_owned());
    assert_eq!(heads(&rig.take_all()), heads(&expected));
    assert_eq!(rig.reader.counts(), Counts { delivered: 101, ..Counts::default() });
}
