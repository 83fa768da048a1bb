//! What a journal does when nothing goes wrong.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::*;

#[test]
fn records_come_out_in_the_order_they_went_in_until_they_are_acknowledged() {
    let rig = Rig::new();
    assert!(rig.reader.is_empty());
    rig.append(&lines(0..3));
    rig.writer.append_all(lines(3..5));
    assert!(!rig.reader.is_empty());
    let peeked = chunk(&rig.reader, ALL);
    assert_eq!(peeked.records().map(|record| text(record.bytes)).collect::<Vec<_>>(), lines(0..5));
    assert_eq!(chunk(&rig.reader, ALL), peeked);
    rig.reader.acknowledge(ends(&peeked)[3]);
    assert_eq!(rig.peek(), lines(4..5));
    assert_eq!(rig.reader.waiting_lines(), 1);
    rig.reader.acknowledge(peeked.end());
    assert!(rig.reader.is_empty());
    assert_eq!(rig.writer.counts(), Counts { accepted: 5, ..Counts::default() });
    assert_eq!(rig.reader.counts(), Counts { delivered: 5, ..Counts::default() });
}

#[test]
fn a_segment_is_a_file_that_a_person_can_read() {
    let rig = Rig::new();
    rig.writer.append(b"{\"a\":1}");
    rig.writer.append(b"two\nlines\n");
    rig.writer.append(b"\xff\0");
    rig.writer.append(b"");
    assert_eq!(fs::read(rig.segment(0)).unwrap(), b"{\"a\":1}\ntwo lines \n\xff\0\n\n");
    let peeked = chunk(&rig.reader, ALL);
    let records: Vec<&[u8]> = peeked.records().map(|record| record.bytes).collect();
    assert_eq!(records, [b"{\"a\":1}".as_slice(), b"two lines ", b"\xff\0", b""]);
}

#[test]
fn records_outlive_the_processes() {
    let rig = Rig::new();
    rig.append(&lines(0..10));
    rig.reader.acknowledge(ends(&chunk(&rig.reader, ALL))[2]);
    let rig = rig.restart();
    assert_eq!(rig.reader.found(), 0, "not open yet");
    assert_eq!(rig.peek(), lines(3..10));
    assert_eq!(rig.reader.found(), 7);
    rig.append(&lines(10..12));
    assert_eq!(rig.take_all(), lines(3..12));
    assert!(rig.restart().reader.is_empty());
}

#[test]
fn a_chunk_has_a_size_but_a_single_record_may_be_larger() {
    let rig = Rig::new();
    rig.append(&["1".repeat(10), "2".repeat(10), "3".repeat(100)]);
    assert_eq!(chunk(&rig.reader, 22).len(), 2);
    assert_eq!(chunk(&rig.reader, 22).bytes(), b"1111111111\n2222222222\n");
    assert_eq!(chunk(&rig.reader, 21).len(), 1);
    rig.reader.acknowledge(chunk(&rig.reader, 22).end());
    let Waiting::Large(mut record) = rig.reader.peek(22).unwrap() else { panic!("it is larger") };
    assert_eq!((record.len(), record.lines()), (100, 1));
    assert_eq!(text(&mut record), "3".repeat(100));
    rig.reader.acknowledge(record.end());
    assert!(rig.reader.is_empty());
}

#[test]
fn a_large_record_is_read_in_any_order_and_outlives_its_file() {
    let rig = Rig::with_segments_of(100);
    let large: String = (0..1000).map(|n| format!("{n},")).collect();
    rig.append(&[large.clone(), "next".to_owned()]);
    let Waiting::Large(mut record) = rig.reader.peek(100).unwrap() else { panic!("it is larger") };
    rig.reader.acknowledge(record.end());
    assert_eq!(rig.segments(), [1]);
    record.seek(SeekFrom::End(-10)).unwrap();
    let mut piece = [0; 5];
    record.read_exact(&mut piece).unwrap();
    assert_eq!(piece, large.as_bytes()[large.len() - 10..large.len() - 5]);
    assert_eq!(record.seek(SeekFrom::Current(-5)).unwrap(), large.len() as u64 - 10);
    assert_eq!(text(&mut record), large[large.len() - 10..]);
    record.rewind().unwrap();
    assert_eq!(text(&mut record), large);
    assert!(record.seek(SeekFrom::Current(-1 << 40)).is_err());
}

#[test]
fn segments_are_named_by_the_number_of_their_first_line() {
    let rig = Rig::with_segments_of(50);
    let batch = batch(7);
    rig.append(&[batch.clone(), "x".repeat(50), "y".to_owned()]);
    assert_eq!(rig.segments(), [0, 7, 8]);
    assert_eq!(rig.reader.waiting_lines(), 9);
    assert_eq!(rig.reader.end().unwrap(), Position { file: 8, offset: 2, lines_done: 0, line: 9 });
    assert_eq!(rig.writer.end(), Some(rig.reader.end().unwrap()));
    assert_eq!(rig.take_all(), [batch, "x".repeat(50), "y".to_owned()]);
    assert_eq!(rig.reader.counts().delivered, 9);
}

#[test]
fn segments_that_are_done_with_are_deleted_and_the_newest_stays() {
    let rig = Rig::with_segments_of(20);
    rig.append(&lines(0..10));
    assert_eq!(rig.segments(), [0, 3, 6, 9]);
    assert!(!chunk(&rig.reader, 8).is_followed(), "more waits in the same segment");
    let first = chunk(&rig.reader, ALL);
    assert!(first.is_followed());
    rig.reader.acknowledge(ends(&first)[1]);
    assert_eq!(rig.segments(), [0, 3, 6, 9], "one of its records waits");
    rig.reader.acknowledge(first.end());
    assert_eq!(rig.segments(), [3, 6, 9]);
    let [_, _, newest] = [(); 3].map(|()| {
        let next = chunk(&rig.reader, ALL);
        rig.reader.acknowledge(next.end());
        next
    });
    assert!(!newest.is_followed());
    assert_eq!(rig.segments(), [9]);
    rig.append(&lines(10..13));
    assert_eq!(rig.take_all(), lines(10..13));
    assert_eq!(rig.segments(), [12], "the one that was the newest goes when another one is");
}

#[test]
fn the_lines_of_a_batch_can_be_acknowledged_one_by_one() {
    let rig = Rig::new();
    rig.append(&[batch(5), batch(3)]);
    let start = chunk(&rig.reader, ALL).start();
    rig.reader.acknowledge(start.after_lines(2));
    assert_eq!(rig.reader.waiting_lines(), 6);
    let rig = rig.restart();
    let peeked = chunk(&rig.reader, ALL);
    assert_eq!(peeked.start(), start.after_lines(2));
    assert_eq!(peeked.records().map(|record| record.lines()).collect::<Vec<_>>(), [3, 3]);
    let Waiting::Large(record) = rig.reader.peek(10).unwrap() else { panic!("it is larger") };
    assert_eq!((record.start().lines_done, record.lines()), (2, 3));
    rig.reader.acknowledge(peeked.end());
    assert_eq!(rig.reader.counts().delivered, 6);
    assert!(rig.reader.is_empty());
}

#[test]
fn an_acknowledgement_of_what_is_done_with_does_nothing() {
    let rig = Rig::new();
    rig.append(&lines(0..4));
    let peeked = chunk(&rig.reader, ALL);
    rig.reader.acknowledge(ends(&peeked)[2]);
    rig.reader.acknowledge(ends(&peeked)[0]);
    rig.reader.acknowledge(ends(&peeked)[2]);
    assert_eq!(rig.peek(), lines(3..4));
    assert_eq!(rig.reader.counts().delivered, 3);
}

#[test]
fn what_is_discarded_or_set_aside_does_not_count_as_delivered() {
    let rig = Rig::new();
    rig.append(&lines(0..6));
    let ends = ends(&chunk(&rig.reader, ALL));
    rig.reader.remove_uncounted(ends[1]);
    rig.reader.set_aside(b"{\"n\":3}", 1, "it is the third");
    rig.reader.acknowledge(ends[3]);
    rig.reader.acknowledge(ends[5]);
    assert_eq!(rig.reader.counts(), Counts { delivered: 3, set_aside: 1, ..Counts::default() });
    assert_eq!(
        rig.reader.take_losses(),
        ["1 line of the results journal set aside so far; the last because it is the third"]
    );
    assert!(rig.reader.take_losses().is_empty());
}

#[test]
fn the_files_are_private() {
    let rig = Rig::new();
    rig.append(&lines(0..1));
    rig.reader.set_aside(b"x", 1, "it is no JSON");
    rig.take_all();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&rig.buffers()), mode(&rig.journal())), (0o700, 0o700));
    assert_eq!(rig.files(), ["0000000000000000.ndjson", "cursor", "reader.lock", "writer.lock"]);
    for name in rig.files() {
        assert_eq!(mode(&rig.journal().join(&name)), 0o600, "{name}");
    }
    assert_eq!(mode(&rig.buffers().join("rejected.ndjson")), 0o600);
}

#[test]
fn a_reader_makes_nothing_where_there_is_no_journal() {
    let rig = Rig::new();
    assert!(matches!(rig.reader.peek(ALL), Ok(Waiting::Nothing)));
    assert!(rig.reader.is_empty());
    assert_eq!(rig.reader.waiting_lines(), 0);
    assert!(!rig.buffers().exists());
}

#[test]
fn a_large_record_comes_in_pieces_and_becomes_a_segment_of_its_own() {
    let rig = Rig::new();
    rig.append(&lines(0..2));
    let large = batch(50_000);
    let mut incoming = Incoming::begin(&rig.writer);
    for piece in large.as_bytes().chunks(777) {
        incoming.write(piece);
    }
    // Others don't wait for it.
    rig.append(&lines(2..3));
    incoming.commit();
    rig.append(&lines(3..4));
    assert_eq!(rig.segments(), [0, 3, 50_003]);
    assert_eq!(rig.reader.waiting_lines(), 50_004);
    let expected: Vec<String> = [lines(0..3), vec![large], lines(3..4)].concat();
    assert_eq!(rig.take_all_in_pieces_of(1000), expected);
    assert_eq!(rig.segments(), [50_003], "the large one is deleted although little came behind it");
    assert_eq!(rig.writer.counts().accepted, 50_004);
}

#[test]
fn a_large_record_alone_does_not_stay_on_disk() {
    let rig = Rig::new();
    let mut incoming = Incoming::begin(&rig.writer);
    incoming.write(b"first line\nsecond line");
    incoming.commit();
    assert_eq!(rig.take_all(), ["first line second line"]);
    assert_eq!(rig.segments(), [1]);
    let mut incoming = Incoming::begin(&rig.writer);
    incoming.write(b"another one");
    incoming.commit();
    assert_eq!(rig.segments(), [1, 2], "it takes the place of an empty segment");
    assert_eq!(rig.take_all(), ["another one"]);
    assert!(rig.restart().reader.is_empty());
}

#[test]
fn a_large_record_without_an_end_leaves_nothing() {
    let rig = Rig::new();
    let mut incoming = Incoming::begin(&rig.writer);
    incoming.write("x".repeat(1_000_000).as_bytes());
    assert!(rig.files().contains(&"incoming-1".to_owned()));
    drop(incoming);
    assert_eq!(rig.files(), ["writer.lock"]);
    assert_eq!(rig.writer.counts(), Counts::default());
}

#[test]
fn large_records_of_a_dead_process_are_deleted() {
    let rig = Rig::new();
    rig.append(&lines(0..1));
    let mut incoming = Incoming::begin(&rig.writer);
    incoming.write("x".repeat(1_000_000).as_bytes());
    std::mem::forget(incoming);
    let rig = rig.restart();
    assert!(rig.files().contains(&"incoming-1".to_owned()));
    rig.append(&lines(1..2));
    assert!(!rig.files().contains(&"incoming-1".to_owned()));
    assert_eq!(rig.take_all(), lines(0..2));
}

#[test]
fn callers_append_at_once_while_a_reader_delivers() {
    const CALLERS: usize = 4;
    const EACH: usize = 2000;
    let rig = Rig::with_segments_of(10_000);
    let mut taken = Vec::new();
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let writer = &rig.writer;
            scope.spawn(move || {
                for n in 0..EACH {
                    if n % 100 == 0 {
                        let mut incoming = Incoming::begin(writer);
                        incoming.write(format!("{caller} {n}").as_bytes());
                        incoming.commit();
                    } else {
                        writer.append(format!("{caller} {n}").as_bytes());
                    }
                }
            });
        }
        while taken.len() < CALLERS * EACH {
            taken.extend(rig.take_all_in_pieces_of(1000));
        }
    });
    for caller in 0..CALLERS {
        let of_caller = |record: &&String| record.starts_with(&format!("{caller} "));
        let expected: Vec<String> = (0..EACH).map(|n| format!("{caller} {n}")).collect();
        assert_eq!(taken.iter().filter(of_caller).cloned().collect::<Vec<_>>(), expected);
    }
    assert_eq!(rig.reader.counts().delivered, (CALLERS * EACH) as u64);
}

#[test]
fn whoever_wants_to_know_is_told_of_appends() {
    #[derive(Default)]
    struct Bell(AtomicU64);
    impl WriterEvents for Bell {
        fn appended(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let root = tempfile::tempdir().unwrap();
    let bell = Arc::new(Bell::default());
    let writer: Writer<OneLine> =
        Writer::new(journal(root.path()), "results", Arc::clone(&bell) as Arc<dyn WriterEvents>);
    writer.append(b"one");
    writer.append_all([b"two", b"tri"]);
    writer.append_all(Vec::<Vec<u8>>::new());
    Incoming::begin(&writer).commit();
    assert_eq!(bell.0.load(Ordering::Relaxed), 3);
}

#[test]
fn a_closed_journal_is_free_for_a_successor() {
    let rig = Rig::new();
    rig.append(&lines(0..2));
    rig.reader.acknowledge(ends(&chunk(&rig.reader, ALL))[0]);
    rig.writer.close();
    rig.reader.close();
    let successor = writer(rig.root.path(), Tuning::default());
    successor.append(b"by the successor");
    assert!(!successor.waits_for_disk());
    let other = reader(rig.root.path(), &successor);
    assert_eq!(texts(&other.peek(ALL).unwrap()), [lines(1..2), vec!["by the successor".to_owned()]].concat());
    successor.close();
    other.close();
    rig.append(&lines(2..3));
    assert_eq!(rig.take_all(), [lines(1..2), vec!["by the successor".to_owned()], lines(2..3)].concat());
}

#[test]
fn syncing_is_possible_at_any_time() {
    let rig = Rig::with_segments_of(10);
    rig.writer.sync();
    rig.append(&lines(0..50));
    rig.writer.sync();
    rig.writer.sync();
    rig.append(&lines(50..51));
    rig.writer.close();
    rig.writer.sync();
    assert_eq!(rig.take_all(), lines(0..51));
}

#[test]
fn lines_that_can_t_be_kept_are_counted_by_their_owner() {
    let rig = Rig::new();
    rig.writer.refuse(3, "the call broke off");
    assert_eq!(rig.writer.counts(), Counts { accepted: 3, dropped: 3, ..Counts::default() });
    assert_eq!(
        rig.writer.take_losses(),
        ["3 lines of the results journal dropped so far; the last because the call broke off"]
    );
}
