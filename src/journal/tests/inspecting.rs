//! Looks from outside, and lines that were set aside.

use super::inspect::{Look, look, rejected};
use super::rejected::{FILE, OLDER_FILE};
use super::*;

fn look_at(rig: &Rig) -> Look {
    let mut look = look::<LineCounter>(&rig.journal());
    assert_eq!(std::mem::take(&mut look.problems), Vec::<String>::new());
    look
}

#[test]
fn a_look_tells_what_waits_and_changes_nothing() {
    let rig = Rig::with_segments_of(100);
    assert_eq!(look::<LineCounter>(&rig.journal()), Look::default());
    rig.append(&[batch(10), batch(20)]);
    rig.append(&lines(0..30));
    let files =
        |rig: &Rig| rig.files().iter().map(|name| fs::read(rig.journal().join(name)).unwrap()).collect::<Vec<_>>();
    for _ in 0..2 {
        rig.reader.acknowledge(chunk(&rig.reader, ALL).start().after_lines(4));
        let before = files(&rig);
        let look = look_at(&rig);
        assert_eq!(files(&rig), before);
        assert_eq!(look.waiting.lines, rig.reader.waiting_lines());
        assert_eq!(look.segments, rig.segments().len());
        let on_disk: u64 = rig.segments().iter().map(|&n| fs::metadata(rig.segment(n)).unwrap().len()).sum();
        assert_eq!((look.waiting.bytes, look.file_bytes), (on_disk, on_disk));
        let oldest = look.oldest.unwrap();
        assert_eq!(oldest.beginning, oldest.ending);
        assert_eq!(oldest.length, oldest.beginning.len() as u64);
        assert_eq!(text(oldest.beginning.as_slice()), rig.peek()[0]);
        assert_eq!(look.position, chunk(&rig.reader, ALL).start());
    }
    rig.take_all();
    let look = look_at(&rig);
    assert_eq!((look.waiting.lines, look.waiting.bytes, look.oldest), (0, 0, None));
}

#[test]
fn of_a_long_record_both_ends_are_shown() {
    let rig = Rig::new();
    let long = format!("begins {} ends", "x".repeat(1 << 20));
    let mut incoming = Incoming::begin(&rig.writer);
    incoming.write(long.as_bytes());
    incoming.commit();
    let oldest = look_at(&rig).oldest.unwrap();
    assert_eq!((oldest.beginning.len(), oldest.ending.len(), oldest.length), (64 << 10, 4 << 10, long.len() as u64));
    assert!(oldest.beginning.starts_with(b"begins ") && oldest.ending.ends_with(b" ends"));
    rig.reader.acknowledge(end(&rig.reader.peek(100).unwrap()).unwrap());
    assert_eq!(look_at(&rig).oldest, None);
}

#[test]
fn a_status_counts_what_waits_in_memory_too() {
    let rig = Rig::blocked();
    rig.append(&[batch(10)]);
    let status = rig.reader.status();
    assert_eq!((status.waiting.lines, status.waiting.bytes), (10, batch(10).len() as u64 + 1));
    assert_eq!((status.file_bytes, status.oldest), (0, None));
}

#[test]
fn a_look_at_anything_says_what_is_wrong() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("results");
    fs::write(&path, "no directory").unwrap();
    assert_eq!(look::<OneLine>(&path).problems.len(), 1);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(look::<OneLine>(&path), Look { exists: true, ..Look::default() });
    fs::create_dir(segments::path(&path, 3)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", segments::path(&path, 4)).unwrap();
    fs::write(segments::path(&path, 5), "one\ntwo\nhalf").unwrap();
    fs::write(path.join("cursor"), "nonsense").unwrap();
    fs::write(path.join("0000000000000002.ndjson.damaged-17"), "").unwrap();
    fs::write(path.join("notes.txt"), "something else").unwrap();
    let found = look::<OneLine>(&path);
    assert_eq!((found.waiting.lines, found.segments, found.problems.len()), (2, 1, 2));
    assert_eq!(found.damaged, ["0000000000000002.ndjson.damaged-17"]);
    let mut records = String::new();
    let mut take = |file: &mut dyn std::io::Read| file.read_to_string(&mut records).map(|_| true);
    inspect::waiting::<OneLine>(&path, &mut take).unwrap();
    assert_eq!(records, "one\ntwo\n");
    assert_eq!(look::<OneLine>(&path), found, "looking changes nothing");
}

#[test]
fn rejected_lines_are_kept_with_their_reason_newest_first() {
    let rig = Rig::new();
    rig.append(&lines(0..1));
    assert_eq!(rejected(&rig.buffers(), 10, 10).unwrap(), []);
    rig.reader.set_aside(b"no \"JSON\"\n\xff", 1, "it is no JSON");
    rig.reader.set_aside("é".repeat(100_000).as_bytes(), 2, "it is too long");
    let kept = rejected(&rig.buffers(), 10, 8).unwrap();
    let told: Vec<_> = kept.iter().map(|line| (line.reason.as_str(), line.size, line.beginning.as_str())).collect();
    assert_eq!(told, [("it is too long", 200_000, "éééééééé"), ("it is no JSON", 11, "no \"JSON")]);
    assert!(kept.iter().all(|line| line.stream == "results" && line.time > 1_700_000_000));
    assert_eq!(rejected(&rig.buffers(), 1, 8).unwrap().len(), 1);
    let whole = rejected(&rig.buffers(), 10, ALL).unwrap();
    assert_eq!(whole[0].beginning, "é".repeat(32 << 10));
    assert_eq!(whole[1].beginning, "no \"JSON\"\n\u{fffd}");
    assert_eq!(rig.reader.counts().set_aside, 3);
}

#[test]
fn a_large_record_is_set_aside_by_its_beginning() {
    let rig = Rig::new();
    let large = batch(20_000);
    rig.append(std::slice::from_ref(&large));
    let Waiting::Large(record) = rig.reader.peek(1000).unwrap() else { panic!("it is larger") };
    rig.reader.set_aside_large(&record, "it is too long");
    rig.reader.acknowledge(record.end());
    assert_eq!(rig.reader.counts(), Counts { set_aside: 20_000, ..Counts::default() });
    let kept = rejected(&rig.buffers(), 10, ALL).unwrap();
    assert_eq!((kept[0].size, kept[0].beginning.as_str()), (large.len() as u64, &large[..64 << 10]));
}

#[test]
fn rejected_lines_are_bounded_and_survive_half_a_line() {
    let root = tempfile::tempdir().unwrap();
    let aside = Rejected::with_files_of(10_000, root.path().to_owned());
    for n in 0..1000 {
        aside.add("results", "it is no JSON", format!("line {n}").as_bytes(), 8);
    }
    let sizes = [OLDER_FILE, FILE].map(|name| fs::metadata(root.path().join(name)).unwrap().len());
    assert!(sizes[0] > 9_000 && sizes.iter().all(|&size| size <= 10_000), "{sizes:?}");
    let kept = rejected(root.path(), 1000, ALL).unwrap();
    let expected = (1000 - kept.len()..1000).rev().map(|n| format!("line {n}"));
    assert_eq!(kept.iter().map(|line| line.beginning.clone()).collect::<Vec<_>>(), expected.collect::<Vec<_>>());

    let path = root.path().join(FILE);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    aside.add("statuses", "it is too long", b"after half a line", 17);
    let after = rejected(root.path(), 1000, ALL).unwrap();
    assert_eq!((after[0].beginning.as_str(), after[0].stream.as_str()), ("after half a line", "statuses"));
    assert_eq!(after[1..], kept[1..], "only the half one is gone");
}

#[test]
fn lines_that_can_t_be_set_aside_do_no_harm() {
    let rig = Rig::new();
    rig.append(&lines(0..2));
    // As no file, it is in the way; as a directory with something in it, it can't be replaced either.
    fs::create_dir_all(rig.buffers().join(FILE).join("inside")).unwrap();
    fs::create_dir_all(rig.buffers().join(OLDER_FILE).join("inside")).unwrap();
    let peeked = chunk(&rig.reader, ALL);
    rig.reader.set_aside(b"first", 1, "it is no JSON");
    rig.reader.acknowledge(ends(&peeked)[0]);
    assert_eq!(rig.peek(), lines(1..2));
    assert_eq!(rig.reader.counts().set_aside, 1);
    assert!(rejected(&rig.buffers(), 10, 10).is_err(), "the older one is no file");
    let aside = names(&rig.buffers()).iter().any(|name| name.starts_with("rejected.ndjson.damaged-"));
    assert!(aside, "{:?}", names(&rig.buffers()));
}

#[test]
fn lines_that_are_the_same_in_all_are_forgotten_one_by_one() {
    let root = tempfile::tempdir().unwrap();
    let aside = Rejected::new(root.path().to_owned());
    let names = || rejected(root.path(), 10, 10).unwrap().into_iter().map(|line| line.id).collect::<Vec<_>>();
    // As one that is tried again and refused again at once: within one second.
    let name = loop {
        aside.add("results", "no", b"the same", 8);
        aside.add("results", "no", b"the same", 8);
        match &names()[..] {
            [one, other] if one == other => break one.clone(),
            _ => _ = aside.forget(&Which::All).unwrap(),
        }
    };
    assert_eq!(aside.forget(&Which::These(vec![name.clone()])).unwrap(), 1);
    assert_eq!(names(), std::slice::from_ref(&name));
    assert_eq!(aside.forget(&Which::These(vec![name.clone(), name])).unwrap(), 1);
    assert_eq!(names(), Vec::<String>::new());
}

#[test]
fn what_is_set_aside_while_others_are_forgotten_stays_also_where_two_workers_do_it() {
    let root = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| Rejected::new(root.path().to_owned()));
    let kept = || rejected(root.path(), 1000, 20).unwrap();
    (0..200).for_each(|n| one.add("results", "no", format!("old {n}").as_bytes(), 7));
    let old: Vec<String> = kept().into_iter().map(|line| line.id).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..200).for_each(|n| one.add("results", "no", format!("new {n}").as_bytes(), 7)));
        for names in old.chunks(5) {
            assert_eq!(other.forget(&Which::These(names.to_vec())).unwrap(), 5);
        }
    });
    let mut left: Vec<String> = kept().into_iter().map(|line| line.beginning).collect();
    left.reverse();
    assert_eq!(left, (0..200).map(|n| format!("new {n}")).collect::<Vec<_>>());
}
