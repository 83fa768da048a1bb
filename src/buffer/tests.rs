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
    buffer.acknowledge(batch.last).unwrap();
    assert_eq!(buffer.peek(4, ALL).unwrap().lines, lines(4..5));
    assert_eq!(buffer.counts(), Counts { accepted: 5, delivered: 4, dropped: 0 });
}

#[test]
fn lines_outlive_the_process() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..10), None);
    let batch = buffer.peek(3, ALL).unwrap();
    buffer.acknowledge(batch.last).unwrap();
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
    buffer.acknowledge(buffer.peek(2, ALL).unwrap().last).unwrap();
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
    buffer.acknowledge(sent.last).unwrap();
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

#[test]
fn lines_wait_in_memory_while_the_disk_refuses_them() {
    let directory = directory();
    // A file where the directory should be: nothing can be made there, whoever we are.
    let blocked = directory.path().join("remote_tls");
    fs::write(&blocked, "").unwrap();
    let buffer = open(directory.path());
    buffer.append(lines(0..3), None);
    assert!(!buffer.is_empty());
    assert!(buffer.peek(ALL, ALL).is_err());
    fs::remove_file(&blocked).unwrap();
    // The next attempt to open is due after a moment.
    let batch = loop {
        match buffer.peek(ALL, ALL) {
            Ok(batch) => break batch,
            Err(BufferError::NotYet { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(batch.lines, lines(0..3));
    assert_eq!(buffer.counts().dropped, 0);
}

#[test]
fn memory_for_refused_lines_is_bounded_and_losses_are_counted() {
    let directory = directory();
    fs::write(directory.path().join("remote_tls"), "").unwrap();
    let buffer = open(directory.path());
    let half = "x".repeat(MEMORY_LIMIT / 2);
    buffer.append(vec![half.clone(), half.clone(), half], None);
    assert_eq!(buffer.counts(), Counts { accepted: 3, delivered: 0, dropped: 1 });
}

#[test]
fn a_second_process_leaves_the_buffer_alone() {
    let directory = directory();
    let first = open(directory.path());
    first.append(lines(0..2), None);
    let second = open(directory.path());
    second.append(lines(5..6), None);
    assert!(matches!(second.peek(ALL, ALL), Err(BufferError::InUse { .. } | BufferError::NotYet { .. })));
    assert_eq!(first.peek(ALL, ALL).unwrap().lines, lines(0..2));
}
