//! Bounds of lines, bytes and disk space.

use super::*;

#[test]
fn the_oldest_go_first_when_there_are_too_many() {
    let rig = Rig::with_segments_of(40);
    rig.append(&lines(0..8));
    assert_eq!(rig.reader.keep_within(&most(8)), 0);
    assert_eq!(rig.reader.keep_within(&most(5)), 3);
    rig.append(&lines(8..10));
    assert_eq!(rig.reader.keep_within(&most(5)), 2);
    assert_eq!(rig.reader.counts().dropped, 5);
    assert_eq!(
        rig.reader.take_losses(),
        [3, 5].map(|n| format!(
            "{n} lines of the results journal dropped so far; the last because more of them wait than buffered_log_max allows"
        ))
    );
    assert_eq!(rig.take_all(), lines(5..10));
    assert_eq!(rig.restart().reader.keep_within(&most(0)), 0);
}

#[test]
fn a_batch_is_entered_in_its_middle() {
    let rig = Rig::new();
    rig.append(&[batch(10), batch(20), batch(30)]);
    assert_eq!(rig.reader.keep_within(&most(35)), 25);
    let peeked = chunk(&rig.reader, ALL);
    assert_eq!((peeked.start().lines_done, peeked.start().line), (15, 25));
    assert_eq!(peeked.records().map(|record| record.lines()).collect::<Vec<_>>(), [5, 30]);
    assert_eq!(rig.reader.keep_within(&most(33)), 2);
    assert_eq!(rig.reader.keep_within(&most(30)), 3);
    assert_eq!(chunk(&rig.reader, ALL).start().lines_done, 0);
    let rig = rig.restart();
    assert_eq!(rig.reader.keep_within(&most(1)), 29);
    assert_eq!(chunk(&rig.reader, ALL).start().lines_done, 29);
    assert_eq!(rig.reader.keep_within(&most(0)), 1);
    assert!(rig.reader.is_empty());
}

#[test]
fn an_acknowledgement_of_lines_dropped_meanwhile_takes_no_others() {
    let rig = Rig::with_segments_of(40);
    rig.append(&lines(0..4));
    let sent = chunk(&rig.reader, ALL);
    rig.append(&lines(4..9));
    rig.reader.keep_within(&most(2));
    rig.reader.acknowledge(sent.end());
    assert_eq!(rig.reader.counts(), Counts { dropped: 7, ..Counts::default() });
    assert_eq!(rig.take_all(), lines(7..9));
}

#[test]
fn an_acknowledgement_of_lines_of_which_some_were_dropped_counts_the_others() {
    let rig = Rig::new();
    rig.append(&[batch(10)]);
    let sent = chunk(&rig.reader, ALL);
    rig.reader.keep_within(&most(4));
    rig.reader.set_aside(b"one of them", 1, "it is too long");
    rig.reader.acknowledge(sent.end());
    assert_eq!(rig.reader.counts(), Counts { delivered: 3, set_aside: 1, dropped: 6, ..Counts::default() });
    // More set aside than is left: nothing wraps.
    rig.append(&[batch(2)]);
    let sent = chunk(&rig.reader, ALL);
    rig.reader.keep_within(&most(1));
    rig.reader.set_aside(b"both", 2, "they are too long");
    rig.reader.acknowledge(sent.end());
    assert_eq!(rig.reader.counts(), Counts { delivered: 3, set_aside: 3, dropped: 7, ..Counts::default() });
}

#[test]
fn bytes_are_bounded_and_the_oldest_go_first() {
    const BYTES: u64 = 300_000;
    let rig = Rig::with_segments_of(100_000);
    let limits = Limits { max_bytes: BYTES, ..Limits::NONE };
    for n in 0..1000 {
        rig.writer.append(format!("{n:04}{}", "x".repeat(995)).as_bytes());
        rig.reader.keep_within(&limits);
        assert!(rig.reader.status().waiting.bytes <= BYTES);
        let on_disk: u64 = rig.segments().iter().map(|&n| fs::metadata(rig.segment(n)).unwrap().len()).sum();
        assert!(on_disk <= BYTES + 100_000, "{on_disk}");
    }
    let left = rig.take_all();
    assert_eq!((left.len(), &left[0][..4]), (300, "0700"));
    assert_eq!(rig.reader.counts().dropped, 700);
}

#[test]
fn a_record_that_alone_exceeds_the_bytes_is_dropped() {
    let rig = Rig::new();
    rig.append(&["x".repeat(10_000)]);
    rig.append(&lines(0..1));
    assert_eq!(rig.reader.keep_within(&Limits { max_bytes: 100, ..Limits::NONE }), 1);
    assert_eq!(rig.take_all(), lines(0..1));
}

#[test]
fn a_disk_that_is_short_of_space_is_not_filled() {
    let rig = Rig::new();
    // No disk has so much free.
    let limits = Limits { min_free_bytes: u64::MAX, ..Limits::NONE };
    let record = "x".repeat(1000);
    for _ in 0..30_000 {
        rig.writer.append(record.as_bytes());
        rig.reader.keep_within(&limits);
    }
    let on_disk: u64 = rig.segments().iter().map(|&n| fs::metadata(rig.segment(n)).unwrap().len()).sum();
    assert!(on_disk < 3 * SEGMENT_BYTES, "{on_disk}");
    assert!(rig.reader.counts().dropped > 20_000 && !rig.reader.is_empty());
    let losses = rig.reader.take_losses();
    assert!(losses[0].ends_with("the last because less of the disk is free than buffer_min_free_bytes"), "{losses:?}");
    // What doesn't grow gives up nothing.
    let dropped = rig.reader.counts().dropped;
    for _ in 0..10 {
        rig.reader.keep_within(&limits);
    }
    assert_eq!(rig.reader.counts().dropped, dropped);
}

#[test]
fn memory_for_refused_lines_is_bounded_and_losses_are_counted() {
    let rig = Rig::blocked();
    let half = "x".repeat(MEMORY_LIMIT / 2 - 1);
    rig.append(&[half.clone(), half, batch(7)]);
    assert_eq!(rig.writer.counts(), Counts { accepted: 9, dropped: 7, ..Counts::default() });
    assert_eq!(
        rig.reader.take_losses(),
        [
            "7 lines of the results journal dropped so far; the last because the disk refuses them and the memory for them is full"
        ]
    );
    assert_eq!(rig.reader.waiting_lines(), 2);
}

#[test]
fn the_backstop_deletes_the_oldest_segments_and_the_reader_counts_their_lines() {
    let rig = Rig::with_segments_of(1000);
    let limits = Limits { max_bytes: 10_000, ..Limits::NONE };
    let line = "x".repeat(99);
    let peeked = {
        rig.writer.append(line.as_bytes());
        let peeked = chunk(&rig.reader, ALL);
        for _ in 0..999 {
            rig.writer.append(line.as_bytes());
            rig.writer.keep_backstop(&limits);
        }
        peeked
    };
    let segments = rig.segments();
    assert!((16..19).contains(&segments.len()), "{segments:?}");
    // What was on its way is acknowledged although its file is gone.
    rig.reader.acknowledge(peeked.end());
    let left = rig.take_all().len() as u64;
    assert_eq!(left, 1000 - segments[0]);
    assert_eq!(rig.reader.counts(), Counts { delivered: 1 + left, dropped: segments[0] - 1, ..Counts::default() });
    let losses = rig.reader.take_losses();
    assert!(losses[0].ends_with("the last because their files are gone or damaged"), "{losses:?}");
}

#[test]
fn the_backstop_leaves_what_a_reader_keeps_within_the_limits() {
    let rig = Rig::with_segments_of(1000);
    let limits = Limits { max_bytes: 10_000, ..Limits::NONE };
    for _ in 0..500 {
        rig.append(&["x".repeat(99)]);
        rig.reader.keep_within(&limits);
        rig.writer.keep_backstop(&limits);
    }
    assert_eq!(rig.take_all().len(), 100);
    assert_eq!(rig.reader.counts().dropped, 400);
}

#[test]
fn the_backstop_leaves_some_segments_on_a_disk_that_is_short_of_space() {
    let rig = Rig::with_segments_of(1000);
    for _ in 0..500 {
        rig.append(&["x".repeat(99)]);
        rig.writer.keep_backstop(&Limits { min_free_bytes: u64::MAX, ..Limits::NONE });
    }
    assert_eq!(rig.segments().len(), 4);
}
