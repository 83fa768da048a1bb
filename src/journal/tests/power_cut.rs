//! What a power cut, or a death in mid-write, leaves behind.

use super::*;

fn set_cursor(rig: &Rig, text: &[u8]) {
    fs::write(rig.journal().join("cursor"), text).unwrap();
}

fn cursor_text(position: [u64; 4]) -> Vec<u8> {
    format!("{:020} {:020} {:020} {:020}\n", position[0], position[1], position[2], position[3]).into_bytes()
}

#[test]
fn half_a_record_is_not_handed_out_and_the_next_writer_cuts_it_off() {
    for half in [b"{\"n\":2".as_slice(), b"\0", &[0; 100_000], b"\xff\xfe\xfd"] {
        let rig = Rig::new();
        rig.append(&lines(0..2));
        rig.scribble(0, half);
        let rig = rig.restart();
        assert_eq!(rig.peek(), lines(0..2));
        assert_eq!(rig.reader.waiting_lines(), 2);
        rig.reader.acknowledge(chunk(&rig.reader, ALL).end());
        assert!(rig.reader.is_empty() && texts(&rig.reader.peek(1).unwrap()).is_empty());
        rig.append(&lines(2..3));
        assert_eq!(rig.take_all(), lines(2..3));
        assert_eq!(rig.segments(), [0]);
        assert_eq!(rig.reader.counts().delivered, 3);
    }
}

#[test]
fn garbage_is_handed_out_record_by_record_and_stops_nobody() {
    let rig = Rig::new();
    rig.append(&lines(0..2));
    rig.scribble(0, b"\0\0\0\n\xff\xff\n\n{\"n\":");
    let rig = rig.restart();
    rig.append(&lines(2..4));
    let garbage = ["\0\0\0", "\u{fffd}\u{fffd}", ""].map(str::to_owned).to_vec();
    assert_eq!(rig.reader.waiting_lines(), 7);
    assert_eq!(rig.take_all(), [lines(0..2), garbage, lines(2..4)].concat());
}

#[test]
fn a_tail_in_an_older_segment_is_handed_out_like_a_record() {
    for (tail, max_bytes) in [("half a record", ALL), ("half a record", 5), ("", ALL)] {
        let rig = Rig::with_segments_of(20);
        rig.append(&lines(0..6));
        rig.scribble(0, tail.as_bytes());
        let expected: Vec<String> = lines(0..3)
            .into_iter()
            .chain([tail.to_owned()].into_iter().filter(|tail| !tail.is_empty()))
            .chain(lines(3..6))
            .collect();
        assert_eq!(rig.take_all_in_pieces_of(max_bytes), expected);
        assert_eq!(rig.segments(), [3]);
    }
}

#[test]
fn a_cursor_that_makes_no_sense_goes_back_to_the_oldest_segment() {
    for text in [b"".as_slice(), b"nonsense\n", &[0; 84], &cursor_text([7, 0, 0, 3]), b"00000000000000000003 0"] {
        let rig = Rig::with_segments_of(20);
        rig.append(&lines(0..9));
        rig.reader.acknowledge(chunk(&rig.reader, ALL).end());
        rig.reader.acknowledge(ends(&chunk(&rig.reader, ALL))[1]);
        set_cursor(&rig, text);
        let rig = rig.restart();
        assert_eq!(rig.reader.waiting_lines(), 6, "{text:?}");
        assert_eq!(rig.take_all(), lines(3..9), "{text:?}");
        assert_eq!(rig.reader.counts(), Counts { delivered: 6, ..Counts::default() });
    }
    let rig = Rig::new();
    rig.append(&lines(0..3));
    rig.take_all();
    fs::remove_file(rig.journal().join("cursor")).unwrap();
    assert_eq!(rig.restart().take_all(), lines(0..3));
}

#[test]
fn a_cursor_that_points_to_no_record_s_beginning_goes_back_to_its_segment_s() {
    for place in [[3, 1, 0, 4], [3, 9, 0, 4], [3, 25, 0, 6], [3, 1_000_000, 0, 6]] {
        let rig = Rig::with_segments_of(20);
        rig.append(&lines(0..9));
        set_cursor(&rig, &cursor_text(place));
        assert_eq!(rig.restart().take_all(), lines(3..9), "{place:?}");
    }
}

#[test]
fn a_cursor_s_line_is_counted_anew_and_its_part_must_be_in_the_record() {
    for (place, waiting) in [([0, 0, 4, 9], 10), ([0, 0, 9, 0], 5), ([0, 0, 10, 0], 14), ([0, 0, u64::MAX, 0], 14)] {
        let rig = Rig::new();
        rig.append(&[batch(10), batch(4)]);
        set_cursor(&rig, &cursor_text(place));
        assert_eq!(rig.restart().reader.waiting_lines(), waiting, "{place:?}");
    }
}

#[test]
fn a_cursor_whose_segment_is_gone_goes_on_with_the_next_one() {
    let rig = Rig::with_segments_of(20);
    rig.append(&lines(0..9));
    rig.reader.acknowledge(chunk(&rig.reader, ALL).end());
    rig.reader.acknowledge(ends(&chunk(&rig.reader, ALL))[1]);
    fs::remove_file(rig.segment(3)).unwrap();
    let rig = rig.restart();
    assert_eq!(rig.take_all(), lines(6..9));
    assert_eq!(rig.reader.counts(), Counts { delivered: 3, dropped: 1, ..Counts::default() });
}

#[test]
fn segments_whose_deletion_was_undone_are_deleted_again() {
    let rig = Rig::with_segments_of(20);
    rig.append(&lines(0..9));
    let undone = fs::read(rig.segment(0)).unwrap();
    rig.reader.acknowledge(chunk(&rig.reader, ALL).end());
    fs::write(rig.segment(0), undone).unwrap();
    let rig = rig.restart();
    assert_eq!(rig.take_all(), lines(3..9));
    assert_eq!(rig.segments(), [6]);
}

#[test]
fn new_records_never_lie_before_an_old_cursor() {
    // The newest segment became shorter than the cursor says: lines come twice, and the new ones come.
    let rig = Rig::new();
    rig.append(&lines(0..10));
    rig.take_all();
    let newest = fs::OpenOptions::new().write(true).open(rig.segment(0)).unwrap();
    newest.set_len(20).unwrap();
    let rig = rig.restart();
    rig.append(&lines(10..30));
    assert_eq!(rig.segments(), [0, 10]);
    assert_eq!(rig.take_all(), [lines(0..2), lines(10..30)].concat());
    assert_eq!(rig.reader.counts(), Counts { delivered: 22, ..Counts::default() }, "what was delivered is not missing");

    // The newest segment is gone, and the one before it is there again.
    let rig = Rig::with_segments_of(20);
    rig.append(&lines(0..5));
    let undone = fs::read(rig.segment(0)).unwrap();
    rig.take_all();
    fs::remove_file(rig.segment(3)).unwrap();
    fs::write(rig.segment(0), undone).unwrap();
    let rig = rig.restart();
    rig.append(&lines(5..9));
    assert_eq!(rig.segments(), [0, 5, 8]);
    assert_eq!(rig.take_all(), lines(5..9));
    assert_eq!(rig.reader.counts(), Counts { delivered: 4, ..Counts::default() });

    // All of them are gone.
    let rig = Rig::new();
    rig.append(&lines(0..5));
    rig.take_all();
    fs::remove_file(rig.segment(0)).unwrap();
    let rig = rig.restart();
    rig.append(&lines(5..6));
    assert_eq!(rig.segments(), [5]);
    assert_eq!(rig.take_all(), lines(5..6));
    assert_eq!(rig.reader.counts(), Counts { delivered: 1, ..Counts::default() });
}

#[test]
fn lines_of_a_segment_that_became_shorter_are_counted_as_dropped() {
    let rig = Rig::with_segments_of(20);
    rig.append(&lines(0..9));
    let middle = fs::OpenOptions::new().write(true).open(rig.segment(3)).unwrap();
    middle.set_len(8).unwrap();
    assert_eq!(rig.take_all(), [lines(0..4), lines(6..9)].concat());
    assert_eq!(rig.reader.counts(), Counts { delivered: 7, dropped: 2, ..Counts::default() });
    assert_eq!(
        rig.reader.take_losses(),
        ["2 lines of the results journal dropped so far; the last because their files are gone or damaged"]
    );
}

#[test]
fn a_segment_that_becomes_shorter_under_its_reader_is_read_again() {
    let rig = Rig::new();
    rig.append(&lines(0..10));
    rig.reader.acknowledge(ends(&chunk(&rig.reader, ALL))[5]);
    fs::OpenOptions::new().write(true).open(rig.segment(0)).unwrap().set_len(24).unwrap();
    assert_eq!(rig.take_all(), lines(0..3));
}
