//! The backlog: result lines that could not be sent for a minute. They lie in a journal of their own, so that new lines
//! can go first, and the backlog behind them, at its pace ([`Pace`](super::pace::Pace)).
//!
//! They come there from the journal that the front writes, as they are and in order: first they are on the disk in the
//! backlog, synced, then they leave that journal. A process that dies in between leaves them in both, and they are sent
//! twice; none is lost. The same goes for snapshots that come while a backlog waits.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::Level;

use crate::chain::chain;
use crate::clock::unix_time;
use crate::files;
use crate::journal::{Chunk, JournalError, Limits, Position, Reader, Record, Waiting, Writer};
use crate::line_count::LineCounter;
use crate::lock::Mutex;
use crate::logging::Streak;
use crate::shutdown::Shutdown;

/// Bytes of records that are taken over at once.
const AT_ONCE: usize = 1 << 20;

/// A record that is larger than this stays where it is, and all behind it: it is not read into memory for being moved.
const LARGEST: u64 = 16 << 20;

/// When the backlog began, in seconds since 1970: the file of that name in its directory.
const BEGAN: &str = "began";

/// No time has more digits, and a newline.
const LONGEST_TIME: u64 = 21;

/// What becomes of a query's snapshot: of two, a server may take the one that comes last for the newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Snapshots {
    /// It goes with the lines around it.
    Send,
    /// It goes behind the backlog, where an older one of the same query may wait.
    Defer,
    /// It would go behind the backlog, whose journal can't be written: it waits, with all lines behind it.
    Wait,
}

/// The journal of the backlog.
pub struct Backlog {
    /// What waits in it.
    pub reader: Arc<Reader<LineCounter>>,
    /// What puts lines into it.
    pub writer: Arc<Writer<LineCounter>>,
    directory: PathBuf,
    /// While lines change places they are in both journals: nothing is counted or dropped then.
    moving: Mutex<()>,
    refused: Mutex<Streak>,
    is_refused: AtomicBool,
}

impl Backlog {
    /// The journal in this directory, which these read and write.
    #[must_use]
    pub fn new(directory: PathBuf, reader: Arc<Reader<LineCounter>>, writer: Arc<Writer<LineCounter>>) -> Self {
        let (moving, refused, is_refused) = (Mutex::default(), Mutex::default(), AtomicBool::default());
        Self { reader, writer, directory, moving, refused, is_refused }
    }

    /// Drops the oldest lines of both journals that exceed the limits, which hold for both together: the backlog's are the
    /// older ones.
    pub fn keep_within(&self, live: &Reader<LineCounter>, limits: &Limits) {
        let _not_moving = self.moving.lock();
        if !self.reader.is_empty() {
            self.reader.keep_within(&limits.without(live.waits_on_disk()));
        }
        live.keep_within(limits);
    }

    /// For how long its oldest lines have waited, as far as that is known.
    pub(super) fn age(&self) -> Duration {
        let noted = || {
            let began: i64 = files::read_ours(&self.directory.join(BEGAN), LONGEST_TIME).ok()?.trim().parse().ok()?;
            Some(Duration::from_secs(unix_time().saturating_sub(began).try_into().unwrap_or_default()))
        };
        let of_the_file = || self.reader.oldest_made()?.elapsed().ok();
        noted().or_else(of_the_file).unwrap_or_default()
    }

    /// What becomes of new snapshots while lines wait here.
    pub(super) fn for_snapshots(&self) -> Snapshots {
        if self.is_refused.load(Ordering::Relaxed) { Snapshots::Wait } else { Snapshots::Defer }
    }

    /// Puts snapshots behind it, each with its newline: whether the disk has them.
    pub(super) fn defer(&self, records: &[u8]) -> bool {
        self.note(self.writer.take_over(records).map_err(|(_, error)| error))
    }

    /// Takes the records of `live` over that lie before `goal`, as far as the disk and `shutdown` let it: how many lines.
    pub(super) fn take_over(&self, live: &Reader<LineCounter>, goal: Position, shutdown: &Shutdown) -> u64 {
        let was_empty = self.reader.is_empty();
        let mut lines = 0;
        while !shutdown.requested() {
            let _moving = self.moving.lock();
            let Some(chunk) = next(live).filter(|chunk| chunk.start() < goal) else { break };
            let sent = chunk.start().lines_done;
            // Behind others there is no place to say that a part of a record is sent.
            if sent > 0 && !(was_empty && lines == 0) {
                break;
            }
            let (kept, written) = self.keep(&chunk);
            if kept > chunk.start() {
                if sent > 0 {
                    pass(&self.reader, sent);
                }
                live.remove_uncounted(kept);
                lines += kept.line.saturating_sub(chunk.start().line);
            }
            if !self.note(written) {
                break;
            }
        }
        lines
    }

    /// Keeps a chunk: up to where it is kept, and why not all of it.
    fn keep(&self, chunk: &Chunk) -> (Position, Result<(), JournalError>) {
        let whole = if chunk.bytes().ends_with(b"\n") {
            self.writer.take_over(chunk.bytes())
        } else {
            self.writer.take_over(&[chunk.bytes(), b"\n"].concat())
        };
        let Err((kept, error)) = whole else { return (chunk.end(), Ok(())) };
        let mut bytes = 0;
        let is_kept = |record: &Record<'_>| {
            bytes += record.bytes.len() + 1;
            bytes <= kept
        };
        let last = chunk.records().take_while(is_kept).last();
        (last.map_or(chunk.start(), |record| record.end), Err(error))
    }

    /// Says what the disk refuses, and whether it doesn't.
    fn note(&self, written: Result<(), JournalError>) -> bool {
        self.is_refused.store(written.is_err(), Ordering::Relaxed);
        let refused = self.refused.lock();
        match &written {
            Ok(()) => drop(refused.succeeded()),
            Err(error) => {
                let failed = refused.failed(Level::Warn);
                let error = chain(error);
                log::log!(failed.level, "lines can't be put behind new ones, and go before them: {error}{failed}");
            }
        }
        written.is_ok()
    }

    /// Its first lines have waited for `age`: kept for the next worker.
    pub(super) fn note_beginning(&self, age: Duration) {
        let began = unix_time().saturating_sub(age.as_secs().try_into().unwrap_or(i64::MAX));
        let path = self.directory.join(BEGAN);
        if let Err(error) = files::replace(&path, format!("{began}\n").as_bytes(), File::sync_all) {
            log::debug!("{} can't be written: {error}", path.display());
        }
    }
}

/// Passes over the first `sent` lines of the first record that waits: they are done with already.
fn pass(journal: &Reader<LineCounter>, sent: u64) {
    if let Ok(Some(start)) = journal.peek(1).map(|waiting| waiting.start()) {
        journal.remove_uncounted(start.after_lines(sent));
    }
}

/// The next lines to be taken over; none where the first record is too large or in memory.
fn next(journal: &Reader<LineCounter>) -> Option<Chunk> {
    let mut waiting = journal.peek(AT_ONCE).ok()?;
    if let Waiting::Large(record) = &waiting
        && record.len() < LARGEST
    {
        let most = usize::try_from(record.len()).ok()? + 1;
        waiting = journal.peek(most).ok()?;
    }
    match waiting {
        Waiting::Records(chunk) if !chunk.start().is_in_memory() => Some(chunk),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use std::path::Path;

    use super::super::bundle::{Batches, Bundler, Room};
    use super::super::queue::Queue;
    use super::super::window::Window;
    use super::*;
    use crate::journal::Rejected;

    const MINUTES: Duration = Duration::from_secs(90);

    struct Rig {
        root: tempfile::TempDir,
        writer: Writer<LineCounter>,
        live: Queue,
        backlog: Backlog,
        older: Queue,
    }

    fn reader(root: &Path, name: &str) -> Arc<Reader<LineCounter>> {
        let rejected = Arc::new(Rejected::new(root.to_owned()));
        Arc::new(Reader::new(root.join(name), "results", rejected, None))
    }

    fn writer(root: &Path, name: &str) -> Writer<LineCounter> {
        Writer::new(root.join(name), "results", Arc::new(()))
    }

    impl Rig {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let (old, into) = (reader(root.path(), "backlog"), Arc::new(writer(root.path(), "backlog")));
            let backlog = Backlog::new(root.path().join("backlog"), old, into);
            let step = Duration::from_secs(1);
            let live = Queue::new(reader(root.path(), "results"), step, Instant::now());
            let older = Queue::new(Arc::clone(&backlog.reader), step, Instant::now());
            let writer = writer(root.path(), "results");
            Self { root, writer, live, backlog, older }
        }

        fn take_over(&mut self) {
            self.live.put_behind(&mut self.older, &self.backlog, &Shutdown::default());
        }
    }

    /// The records that wait, and how many lines of the first one are done with.
    fn waiting(journal: &Reader<LineCounter>) -> (Vec<String>, u64) {
        match journal.peek(usize::MAX >> 1).unwrap() {
            Waiting::Records(chunk) => {
                let records = chunk.records().map(|record| String::from_utf8(record.bytes.to_vec()).unwrap());
                (records.collect(), chunk.start().lines_done)
            }
            _ => (Vec::new(), 0),
        }
    }

    #[test]
    fn what_is_recent_stays_and_what_is_old_goes_behind() {
        let mut rig = Rig::new();
        rig.writer.append_all(["1", "2"]);
        rig.take_over();
        assert_eq!(waiting(&rig.live.journal).0, ["1", "2"]);
        rig.live.resume(MINUTES);
        rig.take_over();
        assert_eq!(
            (waiting(&rig.live.journal).0, waiting(&rig.backlog.reader).0),
            (vec![], vec!["1".into(), "2".into()])
        );
        // These are new.
        rig.writer.append_all(["3"]);
        rig.live.failed(Instant::now());
        rig.take_over();
        assert_eq!(waiting(&rig.live.journal).0, ["3"]);
        rig.live.resume(MINUTES);
        rig.take_over();
        assert_eq!(waiting(&rig.backlog.reader).0, ["1", "2", "3"]);
        // Nothing of it counts as delivered, or as found at the start.
        let counts = rig.live.journal.counts() + rig.backlog.reader.counts();
        assert_eq!((counts, rig.backlog.reader.found()), (Default::default(), 0));
    }

    #[test]
    fn a_batch_that_was_sent_in_part_is_not_sent_again() {
        let batch =
            "{\"diffResults\":{\"removed\":[],\"added\":[{\"a\":\"1\"},{\"a\":\"2\"},{\"a\":\"3\"}]},\"name\":\"q\"}";
        let mut rig = Rig::new();
        rig.writer.append_all([batch, "x"]);
        let start = rig.live.journal.peek(1).unwrap().start().unwrap();
        rig.live.journal.acknowledge(start.after_lines(2));
        rig.live.resume(MINUTES);
        rig.take_over();
        assert_eq!(waiting(&rig.backlog.reader), (vec![batch.to_owned(), "x".to_owned()], 2));
        assert_eq!(rig.backlog.reader.waiting_lines(), 2);
        // Behind others there is no place for a lines_done: it is sent first.
        rig.writer.append_all([batch]);
        let start = rig.live.journal.peek(1).unwrap().start().unwrap();
        rig.live.journal.acknowledge(start.after_lines(1));
        rig.live.resume(MINUTES);
        rig.take_over();
        assert_eq!(waiting(&rig.live.journal), (vec![batch.to_owned()], 1));
    }

    #[test]
    fn what_the_disk_does_not_take_stays_where_it_is() {
        let mut rig = Rig::new();
        rig.writer.append_all(["1", "2"]);
        rig.live.resume(MINUTES);
        // A place where no directory can be made.
        std::fs::write(rig.root.path().join("file"), "").unwrap();
        let blocked = rig.root.path().join("file");
        rig.backlog =
            Backlog::new(blocked.join("backlog"), reader(&blocked, "backlog"), Arc::new(writer(&blocked, "backlog")));
        rig.older = Queue::new(Arc::clone(&rig.backlog.reader), MINUTES, Instant::now());
        rig.take_over();
        assert_eq!(waiting(&rig.live.journal).0, ["1", "2"]);
    }

    fn room(snapshots: Snapshots) -> Room {
        Room { lines: 100, bytes: 1 << 20, line_bytes: 1 << 20, batches: Batches::Keep, snapshots }
    }

    const SNAPSHOT: &str = "{\"snapshot\":[],\"action\":\"snapshot\"}";

    #[test]
    fn snapshots_go_behind_or_wait_for_it() {
        let rig = Rig::new();
        rig.writer.append_all(["{\"n\":1}", SNAPSHOT, "{\"n\":2}"]);
        let bundle = |snapshots| Bundler::default().next(&rig.live.journal, &room(snapshots)).unwrap();
        let waits = bundle(Snapshots::Wait).unwrap();
        assert_eq!((&*waits.data, waits.left_out.len()), ("{\"n\":1}", 0));
        let deferred = bundle(Snapshots::Defer).unwrap();
        assert_eq!(&*deferred.data, "{\"n\":1},{\"n\":2}");
        // A disk that refuses them: they and what is behind them stay.
        let blocked = rig.root.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let refused = Backlog::new(blocked.clone(), reader(&blocked, "b"), Arc::new(writer(&blocked, "b")));
        let until = deferred.settle(&rig.live.journal, Some(&refused));
        assert_eq!((until.line, refused.for_snapshots()), (1, Snapshots::Wait));
        rig.live.journal.acknowledge(until);
        assert!(bundle(Snapshots::Wait).is_none());
        let deferred = bundle(Snapshots::Defer).unwrap();
        let until = deferred.settle(&rig.live.journal, Some(&rig.backlog));
        rig.live.journal.acknowledge(until);
        assert_eq!(waiting(&rig.backlog.reader).0, [SNAPSHOT]);
        assert_eq!((rig.live.journal.waiting_lines(), rig.live.journal.counts().delivered), (0, 2));
    }

    /// One that was begun while snapshots were deferred once compared its lines with others, and rested for ever.
    #[test]
    fn a_search_goes_on_when_the_backlog_is_empty_meanwhile() {
        let rig = Rig::new();
        rig.writer.append_all([SNAPSHOT, "{\"n\":1}"]);
        let mut bundler = Bundler::default();
        let bundle = bundler.next(&rig.live.journal, &room(Snapshots::Defer)).unwrap().unwrap();
        let mut window = Window::new(bundle, 100);
        rig.writer.append_all(["{\"n\":2}", "{\"n\":3}"]);
        assert!(window.waited(&rig.live.journal));
        window.grow(&mut bundler, &rig.live.journal, &room(Snapshots::Send)).unwrap();
        assert_eq!(window.data(&(0..3)), "{\"n\":1},{\"n\":2},{\"n\":3}");
    }

    #[test]
    fn its_age_outlives_a_restart() {
        let mut rig = Rig::new();
        rig.writer.append_all(["1"]);
        rig.live.resume(20 * MINUTES);
        rig.take_over();
        let age = rig.backlog.age();
        assert!(age >= 20 * MINUTES - Duration::from_secs(1) && age < 21 * MINUTES, "{age:?}");
    }

    #[test]
    fn large_records_are_taken_over_and_huge_ones_are_not() {
        let mut rig = Rig::new();
        let [large, huge] = [3 << 20, LARGEST as usize + 1].map(|length| "x".repeat(length));
        rig.writer.append_all([&*large, "1", &*huge, "2"]);
        rig.live.resume(MINUTES);
        rig.take_over();
        let lengths = |journal| waiting(journal).0.iter().map(String::len).collect::<Vec<_>>();
        assert_eq!(lengths(&rig.backlog.reader), [large.len(), 1]);
        // The one behind it is in the next file.
        assert_eq!(lengths(&rig.live.journal), [huge.len()]);
        assert_eq!(rig.live.journal.waiting_lines(), 2);
    }

    #[test]
    fn limits_hold_for_both_journals_together_and_the_oldest_go() {
        let mut rig = Rig::new();
        rig.writer.append_all(["1", "2", "3"]);
        rig.live.resume(MINUTES);
        rig.take_over();
        rig.writer.append_all(["4", "5"]);
        let limits = |lines| Limits { max_lines: Some(lines), ..Limits::NONE };
        rig.backlog.keep_within(&rig.live.journal, &limits(4));
        assert_eq!(
            (waiting(&rig.backlog.reader).0, waiting(&rig.live.journal).0),
            (vec!["2".into(), "3".into()], vec!["4".into(), "5".into()])
        );
        rig.backlog.keep_within(&rig.live.journal, &limits(1));
        assert_eq!(
            (waiting(&rig.backlog.reader).0, waiting(&rig.live.journal).0),
            (Vec::<String>::new(), vec!["5".into()])
        );
        assert_eq!(rig.backlog.reader.counts().dropped + rig.live.journal.counts().dropped, 4);
    }
}
