//! The buffer's rules, on real files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const ALL: usize = usize::MAX;

const UNLIMITED: Limits = Limits { lines: None, bytes: u64::MAX, free_bytes: 0 };

/// So many lines, and no other limit.
fn most(lines: u64) -> Limits {
    Limits { lines: Some(lines), ..UNLIMITED }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(directory: &Path) -> Buffer {
    Buffer::new(&directory.join("remote_tls"), "results", Arc::default(), Arc::default())
}

fn lines(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{{\"n\":{n}}}")).collect()
}

#[test]
fn lines_come_out_in_the_order_they_went_in_until_they_are_acknowledged() {
    let directory = directory();
    let buffer = open(directory.path());
    assert!(buffer.is_empty());
    buffer.append(lines(0..3).as_slice(), &UNLIMITED);
    buffer.append(lines(3..5).as_slice(), &UNLIMITED);
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
    buffer.append(lines(0..10).as_slice(), &UNLIMITED);
    let batch = buffer.peek(3, ALL).unwrap();
    buffer.acknowledge(&batch, &[]);
    drop(buffer);
    assert_eq!(open(directory.path()).peek(ALL, ALL).unwrap().lines, lines(3..10));
}

#[test]
fn a_batch_has_a_size_but_a_single_line_may_be_larger() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(vec!["1".repeat(10), "2".repeat(10), "3".repeat(100)].as_slice(), &UNLIMITED);
    assert_eq!(buffer.peek(ALL, 22).unwrap().lines.len(), 2);
    assert_eq!(buffer.peek(ALL, 21).unwrap().lines.len(), 1);
    buffer.acknowledge(&buffer.peek(2, ALL).unwrap(), &[]);
    assert_eq!(buffer.peek(ALL, 22).unwrap().lines, ["3".repeat(100)]);
}

#[test]
fn the_oldest_go_first_when_there_are_too_many() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..8).as_slice(), &most(5));
    buffer.append(lines(8..10).as_slice(), &most(5));
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(5..10));
    assert_eq!(buffer.counts().dropped, 5);
}

#[test]
fn an_acknowledgement_of_lines_dropped_meanwhile_takes_no_others() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..4).as_slice(), &UNLIMITED);
    let sent = buffer.peek(ALL, ALL).unwrap();
    buffer.append(lines(4..9).as_slice(), &most(2));
    buffer.acknowledge(&sent, &[]);
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(7..9));
}

#[test]
fn the_files_are_private() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..1).as_slice(), &UNLIMITED);
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
    buffer.append(lines(0..2).as_slice(), &UNLIMITED);
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
    buffer.append(lines(0..3).as_slice(), &UNLIMITED);
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
    buffer.append(lines(0..5).as_slice(), &UNLIMITED);
    let batch = buffer.peek(3, ALL).unwrap();
    assert_eq!((batch.lines.clone(), batch.place), (lines(0..3), Place::Memory(3)));
    buffer.append(lines(5..6).as_slice(), &UNLIMITED);
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
    buffer.append(lines(0..2000).as_slice(), &UNLIMITED);
    damage(directory.path());
    wait_until_empty(&buffer);
    buffer.append(lines(5..7).as_slice(), &UNLIMITED);
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(5..7));
    assert_eq!(buffer.counts().dropped, 2000);
}

#[test]
fn an_acknowledgement_of_lines_moved_aside_takes_no_others() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..2000).as_slice(), &UNLIMITED);
    let sent = buffer.peek(100, ALL).unwrap();
    damage(directory.path());
    wait_until_empty(&buffer);
    buffer.append(lines(5..7).as_slice(), &UNLIMITED);
    buffer.acknowledge(&sent, &[]);
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(5..7));
}

/// Everything into the database's file, then damage to all of its pages but the first.
fn damage(directory: &Path) {
    let path = directory.join("remote_tls/results.sqlite");
    rusqlite::Connection::open(&path).unwrap().pragma(None, "wal_checkpoint", "TRUNCATE", |_| Ok(())).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
}

fn wait_until_empty(buffer: &Buffer) {
    while buffer.peek(ALL, ALL).map_or(true, |batch| !batch.lines.is_empty()) {
        std::thread::yield_now();
    }
}

#[test]
fn the_file_shrinks_when_a_backlog_is_gone() {
    let directory = directory();
    let buffer = open(directory.path());
    let line = "x".repeat(1000);
    for _ in 0..20 {
        buffer.append(vec![line.clone(); 1000].as_slice(), &UNLIMITED);
    }
    let path = directory.path().join("remote_tls/results.sqlite");
    let size = |suffix: &str| fs::metadata(format!("{}{suffix}", path.display())).map_or(0, |file| file.len());
    assert!(size("") + size("-wal") > 20_000_000);
    buffer.acknowledge(&buffer.peek(ALL, ALL).unwrap(), &[]);
    buffer.shrink();
    assert!(size("") + size("-wal") < 2_000_000, "{} and {}", size(""), size("-wal"));
    buffer.append(lines(0..1).as_slice(), &UNLIMITED);
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, lines(0..1));
}

#[test]
fn memory_for_refused_lines_is_bounded_and_losses_are_counted() {
    let directory = directory();
    fs::write(directory.path().join("remote_tls"), "").unwrap();
    let buffer = open(directory.path());
    let half = "x".repeat(MEMORY_LIMIT / 2);
    buffer.append(vec![half.clone(), half.clone(), half].as_slice(), &UNLIMITED);
    assert_eq!(buffer.counts(), Counts { accepted: 3, delivered: 0, set_aside: 0, dropped: 1 });
}

#[test]
fn memory_that_is_full_is_written_before_more_is_dropped() {
    let directory = directory();
    let (buffer, obstacle) = blocked(directory.path());
    buffer.append(["x".repeat(MEMORY_LIMIT)].as_slice(), &UNLIMITED);
    fs::remove_file(&obstacle).unwrap();
    // The next attempt is due then.
    std::thread::sleep(RETRY_INTERVAL);
    buffer.append(lines(0..1).as_slice(), &UNLIMITED);
    assert_eq!(buffer.counts().dropped, 0);
}

#[test]
fn a_second_process_leaves_the_buffer_alone() {
    let directory = directory();
    let first = open(directory.path());
    first.append(lines(0..2).as_slice(), &UNLIMITED);
    let second = open(directory.path());
    second.append(lines(5..6).as_slice(), &UNLIMITED);
    assert_eq!(second.peek(ALL, ALL).unwrap().place, Place::Memory(1));
    assert_eq!(first.peek(ALL, ALL).unwrap().lines, lines(0..2));
}

#[test]
fn rejected_lines_are_set_aside_with_their_reason_the_newest_within_bounds() {
    let directory = directory();
    let buffer = open(directory.path());
    buffer.append(lines(0..3).as_slice(), &UNLIMITED);
    let rejected = Rejected { index: 1, reason: "it is the second".to_owned() };
    buffer.acknowledge(&buffer.peek(ALL, ALL).unwrap(), &[rejected]);
    assert_eq!(buffer.counts(), Counts { accepted: 3, delivered: 2, set_aside: 1, dropped: 0 });
    assert_eq!(buffer.take_losses(), ["1 results lines set aside so far; the last because it is the second"]);
    let database = rusqlite::Connection::open(directory.path().join("remote_tls/results.sqlite")).unwrap();
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let kept: (String, i64, String) = database.query_row("SELECT reason, size, line FROM rejected", [], row).unwrap();
    assert_eq!(kept, ("it is the second".to_owned(), 7, lines(1..2).remove(0)));

    for _ in 0..6 {
        buffer.append(vec!["x".repeat(REJECTED_BYTES as usize / 4); 1].as_slice(), &UNLIMITED);
        let rejected = Rejected { index: 0, reason: "large".to_owned() };
        buffer.acknowledge(&buffer.peek(ALL, ALL).unwrap(), &[rejected]);
    }
    let count = || database.query_row("SELECT count(*) FROM rejected", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 4, "bounded by bytes");
    buffer.append(lines(0..1500).as_slice(), &UNLIMITED);
    let all = (0..1500).map(|index| Rejected { index, reason: "many".to_owned() }).collect::<Vec<_>>();
    buffer.acknowledge(&buffer.peek(ALL, ALL).unwrap(), &all);
    assert_eq!(count(), REJECTED_LINES, "bounded by number");
}

#[test]
fn bytes_are_bounded_and_the_oldest_go_first() {
    let directory = directory();
    let buffer = open(directory.path());
    let limits = Limits { bytes: 3 << 20, ..UNLIMITED };
    for n in 0..10_000 {
        buffer.append([format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(1000))].as_slice(), &limits);
        buffer.tidy();
    }
    let left = buffer.peek(ALL, ALL).unwrap().lines;
    assert!(left.last().unwrap().starts_with("{\"n\":9999,"));
    assert!((2000..3300).contains(&left.len()), "{}", left.len());
    assert_eq!(buffer.counts().dropped, 10_000 - left.len() as u64);
    let size = fs::metadata(directory.path().join("remote_tls/results.sqlite")).unwrap().len();
    assert!(size < 5 << 20, "{size}");
}

#[test]
fn a_disk_that_is_short_of_space_is_not_filled() {
    let directory = directory();
    let buffer = open(directory.path());
    // No disk has so much free.
    let limits = Limits { free_bytes: u64::MAX, ..UNLIMITED };
    for n in 0..5_000 {
        buffer.append([format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(1000))].as_slice(), &limits);
        buffer.tidy();
    }
    let size = fs::metadata(directory.path().join("remote_tls/results.sqlite")).unwrap().len();
    assert!(size < 4 << 20, "{size}");
    assert!(buffer.counts().dropped > 1000 && !buffer.is_empty());
}

/// A model of the buffer: what should wait, in order.
#[derive(Default)]
struct Model {
    waiting: VecDeque<String>,
    written: u64,
}

/// Random appends, peeks, acknowledgements, drops, reopenings and damage, against memory.
#[test]
fn the_buffer_does_what_a_queue_in_memory_does() {
    let seed = std::env::var("MODEL_SEED").map_or(0x9e37_79b9_7f4a_7c15, |seed| seed.parse().unwrap());
    let steps = std::env::var("MODEL_STEPS").map_or(3_000, |steps| steps.parse().unwrap());
    let mut random = Random(seed);
    let directory = directory();
    let mut buffer = open(directory.path());
    let mut model = Model::default();
    for step in 0..steps {
        let what = format!("seed {seed}, step {step}");
        match random.below(100) {
            0..50 => {
                let count = random.below(5) as usize;
                let new: Vec<String> = (0..count).map(|_| model.next_line(&mut random)).collect();
                let limits = if random.below(10) == 0 { most(200) } else { UNLIMITED };
                model.waiting.extend(new.iter().cloned());
                buffer.append(new.as_slice(), &limits);
                if let Some(lines) = limits.lines.filter(|_| count > 0) {
                    while model.waiting.len() as u64 > lines {
                        model.waiting.pop_front();
                    }
                }
            }
            50..95 => {
                let max = 1 + random.below(50) as usize;
                let batch = buffer.peek(max, ALL).unwrap();
                let expected: Vec<&String> = model.waiting.iter().take(max).collect();
                assert_eq!(batch.lines.iter().collect::<Vec<_>>(), expected, "{what}");
                // Whatever comes between, an acknowledgement removes these and no others.
                let dropped = if random.below(4) == 0 { model.waiting.len().min(random.below(20) as usize) } else { 0 };
                if dropped > 0 {
                    let left = (model.waiting.len() - dropped) as u64;
                    let line = model.next_line(&mut random);
                    model.waiting.push_back(line.clone());
                    buffer.append(vec![line].as_slice(), &most(left + 1));
                    model.waiting.drain(..dropped);
                }
                if random.below(5) > 0 {
                    buffer.acknowledge(&batch, &[]);
                    let gone = batch.lines.len().saturating_sub(dropped).min(model.waiting.len());
                    model.waiting.drain(..gone);
                }
            }
            95..99 => {
                buffer.close();
                drop(buffer);
                buffer = open(directory.path());
            }
            _ => buffer.shrink(),
        }
    }
    assert_eq!(buffer.peek(ALL, ALL).unwrap().lines, Vec::from(model.waiting));
}

impl Model {
    fn next_line(&mut self, random: &mut Random) -> String {
        self.written += 1;
        format!("{{\"n\":{},\"x\":\"{}\"}}", self.written, "x".repeat(random.below(300) as usize))
    }
}

/// xorshift64: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
