//! The buffer's rules, on real files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const ALL: usize = usize::MAX;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(directory: &Path) -> Buffer {
    Buffer::new(&directory.join("remote_tls"), "results", Arc::default())
}

fn lines(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{{\"n\":{n}}}")).collect()
}

#[test]
fn lines_come_out_in_the_order_they_went_in_until_they_are_acknowledged() {
    let directory = directory();
    let buffer = open(directory.path());
    assert!(buffer.is_empty());
    buffer.append(lines(0..3), None);
    buffer.append(lines(3..5), None);
    let batch = buffer.peek(4, ALL).unwrap();
    assert_eq!(batch.lines, lines(0..4));
    assert_eq!(buffer.peek(4, ALL).unwrap(), batch);
    buffer.acknowledge(&batch, &[]);
    assert_eq!(buffer.peek(4, ALL).unwrap().lines, lines(4..5));
    assert_eq!(buffer.counts(), Counts { accepted: 5, delivered: 4, set_aside: 0, dropped: 0 });
}

#[test]
fn lines_outlive_the_process() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..10), None);
    let batch = buffer.peek(3, ALL).unwrap();
    buffer.acknowledge(&batch, &[]);
    drop(buffer);
    assert_eq!(open(directory.path()).peek(ALL, ALL).unwrap().lines, lines(3..10));
}

#[test]
fn a_batch_has_a_size_but_a_single_line_may_be_larger() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(vec!["1".repeat(10), "2".repeat(10), "3".repeat(100)], None);
    assert_eq!(buffer.peek(ALL, 22).unwrap().lines.len(), 2);
    assert_eq!(buffer.peek(ALL, 21).unwrap().lines.len(), 1);
    buffer.acknowledge(&buffer.peek(2, ALL).unwrap(), &[]);
    assert_eq!(buffer.peek(ALL, 22).unwrap().lines, ["3".repeat(100)]);
}

#[test]
fn the_oldest_go_first_when_there_are_too_many() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..8), Some(5));
    buffer.append(lines(8..10), Some(5));
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(5..10));
    assert_eq!(buffer.counts().dropped, 5);
}

#[test]
fn an_acknowledgement_of_lines_dropped_meanwhile_takes_no_others() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..4), None);
    let sent = buffer.peek(ALL, ALL).unwrap();
    buffer.append(lines(4..9), Some(2));
    buffer.acknowledge(&sent, &[]);
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(7..9));
}

#[test]
fn the_files_are_private() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..1), None);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let inside = directory.path().join("remote_tls");
    assert_eq!(mode(&inside), 0o700);
    for entry in fs::read_dir(&inside).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_foreign_file_is_moved_aside() {
    let directory = directory();
    let inside = directory.path().join("remote_tls");
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("results.sqlite"), "this is no database, and long enough to be sure of that".repeat(50))
        .unwrap();
    let buffer = open(directory.path());
    buffer.append(lines(0..2), None);
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(0..2));
    let aside = fs::read_dir(&inside)
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with("results.sqlite.damaged-"));
    assert!(aside);
}

/// A buffer whose directory can't be made, whoever we are: a file is in its place.
fn blocked(directory: &Path) -> (Buffer, std::path::PathBuf) {
    let obstacle = directory.join("remote_tls");
    fs::write(&obstacle, "").unwrap();
    (open(directory), obstacle)
}

#[test]
fn lines_wait_in_memory_while_the_disk_refuses_them() {
    let directory = directory();
    let (buffer, obstacle) = blocked(directory.path());
    buffer.append(lines(0..3), None);
    assert!(!buffer.is_empty());
    fs::remove_file(&obstacle).unwrap();
    // The next attempt to write is due after a moment.
    let batch = loop {
        let batch = buffer.peek(ALL, ALL).unwrap();
        if matches!(batch.place, Place::Disk(..)) {
            break batch;
        }
        std::thread::yield_now();
    };
    assert_eq!(batch.lines, lines(0..3));
    drop(buffer);
    assert_eq!(open(directory.path()).peek(ALL, ALL).unwrap().lines, lines(0..3));
}

#[test]
fn lines_are_delivered_from_memory_while_the_disk_refuses_them() {
    let directory = directory();
    let (buffer, _obstacle) = blocked(directory.path());
    buffer.append(lines(0..5), None);
    let batch = buffer.peek(3, ALL).unwrap();
    assert_eq!((batch.lines.clone(), batch.place), (lines(0..3), Place::Memory(3)));
    buffer.append(lines(5..6), None);
    buffer.acknowledge(&batch, &[]);
    assert_eq!(buffer.peek(ALL, 14).unwrap().lines, lines(3..4));
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(3..6));
    assert_eq!(buffer.counts(), Counts { accepted: 6, delivered: 3, set_aside: 0, dropped: 0 });
    buffer.close();
    assert_eq!(buffer.counts().dropped, 3, "lost at the end, and counted");
}

#[test]
fn a_file_damaged_while_it_is_used_is_moved_aside() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..2000), None);
    let path = directory.path().join("remote_tls/results.sqlite");
    // Everything into the file, then damage to all of its pages but the first.
    rusqlite::Connection::open(&path).unwrap().pragma(None, "wal_checkpoint", "TRUNCATE", |_| Ok(())).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
    while buffer.peek(ALL, ALL).map_or(true, |batch| !batch.lines.is_empty()) {
        buffer.append(lines(0..0), None);
        std::thread::yield_now();
    }
    buffer.append(lines(5..7), None);
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(5..7));
    assert_eq!(buffer.counts().dropped, 2000);
}

#[test]
fn the_file_shrinks_when_a_backlog_is_gone() {
    let directory = directory();
    let buffer = open(directory.path());
    let line = "x".repeat(1000);
    for _ in 0..20 {
        buffer.append(vec![line.clone(); 1000], None);
    }
    let path = directory.path().join("remote_tls/results.sqlite");
    let size = |suffix: &str| fs::metadata(format!("{}{suffix}", path.display())).map_or(0, |file| file.len());
    assert!(size("") + size("-wal") > 20_000_000);
    buffer.acknowledge(&buffer.peek(ALL, ALL).unwrap(), &[]);
    buffer.shrink();
    assert!(size("") + size("-wal") < 2_000_000, "{} and {}", size(""), size("-wal"));
    buffer.append(lines(0..1), None);
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(0..1));
}

#[test]
fn memory_for_refused_lines_is_bounded_and_losses_are_counted() {
    let directory = directory();
    fs::write(directory.path().join("remote_tls"), "").unwrap();
    let buffer = open(directory.path());
    let half = "x".repeat(MEMORY_LIMIT / 2);
    buffer.append(vec![half.clone(), half.clone(), half], None);
    assert_eq!(buffer.counts(), Counts { accepted: 3, delivered: 0, set_aside: 0, dropped: 1 });
}

#[test]
fn a_second_process_leaves_the_buffer_alone() {
    let directory = directory();
    let first = open(directory.path());
    first.append(lines(0..2), None);
    let second = open(directory.path());
    second.append(lines(5..6), None);
    assert_eq!(second.peek(ALL, ALL).unwrap().place, Place::Memory(1));
    assert_eq!(first.peek(ALL, ALL).unwrap().lines, lines(0..2));
}

#[test]
fn rejected_lines_are_set_aside_with_their_reason_the_newest_within_bounds() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..3), None);
    let rejected = Rejected { index: 1, reason: "it is the second".to_owned() };
    buffer.acknowledge(&buffer.peek(ALL, ALL).unwrap(), &[rejected]);
    assert_eq!(buffer.counts(), Counts { accepted: 3, delivered: 2, set_aside: 1, dropped: 0 });
    assert_eq!(buffer.take_losses(), ["1 results lines set aside so far; the last because it is the second"]);
    let database = rusqlite::Connection::open(directory.path().join("remote_tls/results.sqlite")).unwrap();
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let kept: (String, i64, String) = database.query_row("SELECT reason, size, line FROM rejected", [], row).unwrap();
    assert_eq!(kept, ("it is the second".to_owned(), 7, lines(1..2).remove(0)));

    for _ in 0..6 {
        buffer.append(vec!["x".repeat(REJECTED_BYTES as usize / 4); 1], None);
        let rejected = Rejected { index: 0, reason: "large".to_owned() };
        buffer.acknowledge(&buffer.peek(ALL, ALL).unwrap(), &[rejected]);
    }
    let count = || database.query_row("SELECT count(*) FROM rejected", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 4, "bounded by bytes");
    buffer.append(lines(0..1500), None);
    let all = (0..1500).map(|index| Rejected { index, reason: "many".to_owned() }).collect::<Vec<_>>();
    buffer.acknowledge(&buffer.peek(ALL, ALL).unwrap(), &all);
    assert_eq!(count(), REJECTED_LINES, "bounded by number");
}
