//! The backlog: result lines that could not be sent for a minute. They lie in a journal of their own, so that new lines
//! can go first, and the backlog behind them, at its pace ([`Pace`](super::pace::Pace)).
//!
//! They come there from the journal that the front writes, as they are and in order: first they are on the disk in the
//! backlog, synced, then they leave that journal. A process that dies in between leaves them in both, and they are sent
//! twice; none is lost. The same goes for snapshots that come while a backlog waits.

use std::sync::Arc;

use log::Level;

use super::queue::Queue;
use crate::chain::chain;
use crate::journal::{Chunk, JournalError, Limits, Reader, Waiting, Writer};
use crate::line_count::LineCounter;
use crate::lock::Mutex;
use crate::logging::Streak;
use crate::shutdown::Shutdown;
use crate::words::counted;

/// Bytes of records that are taken over at once.
const AT_ONCE: usize = 1 << 20;

/// A record that is larger than this stays where it is, and all behind it: it is not read into memory for being moved.
const LARGEST: u64 = 16 << 20;

/// The journal of the backlog.
pub struct Backlog {
    /// What waits in it.
    pub reader: Arc<Reader<LineCounter>>,
    /// What puts lines into it.
    pub writer: Arc<Writer<LineCounter>>,
    refused: Mutex<Streak>,
}

impl Backlog {
    /// The journal that these read and write.
    #[must_use]
    pub fn new(reader: Arc<Reader<LineCounter>>, writer: Arc<Writer<LineCounter>>) -> Self {
        Self { reader, writer, refused: Mutex::default() }
    }

    /// Drops the oldest lines of both journals that exceed the limits, which hold for both together: the backlog's are the
    /// older ones.
    pub fn keep_within(&self, live: &Reader<LineCounter>, limits: &Limits) {
        live.keep_within(limits);
        if !self.reader.is_empty() {
            let (lines, bytes) = live.waits_on_disk();
            self.reader.keep_within(&limits.without(lines, bytes));
        }
    }

    /// Takes the lines of `live` over that should have been sent more than a minute ago.
    pub(super) fn take_over(&self, live: &mut Queue, backlog: &mut Queue, shutdown: &Shutdown) {
        // Lines in the middle of a search may be sent already.
        if !live.is_old() || live.window.is_some() {
            return;
        }
        let was_empty = backlog.journal.is_empty();
        let mut lines = 0;
        while !shutdown.requested() {
            let Some(chunk) = next(&live.journal) else { break };
            let sent = chunk.start().part;
            if sent > 0 && !(was_empty && lines == 0) {
                break;
            }
            match self.keep(&chunk) {
                Ok(()) => {
                    if sent > 0 {
                        pass(&self.reader, sent);
                    }
                    live.journal.discard(chunk.end());
                    lines += chunk.end().line.saturating_sub(chunk.start().line);
                }
                Err(error) => {
                    let failed = self.refused.lock().failed(Level::Warn);
                    let error = chain(&error);
                    log::log!(failed.level, "lines can't be put behind new ones, and go before them: {error}{failed}");
                    break;
                }
            }
        }
        if lines == 0 {
            return;
        }
        self.refused.lock().succeeded();
        if was_empty {
            backlog.begin_with_those_of(live);
            log::info!(
                "{} could not be sent for a minute: new ones go before them from now on",
                counted(lines, "line")
            );
        }
        if live.journal.is_empty() {
            live.is_empty_now();
        }
    }

    fn keep(&self, chunk: &Chunk) -> Result<(), JournalError> {
        match chunk.bytes().ends_with(b"\n") {
            true => self.writer.take_over(chunk.bytes()),
            false => self.writer.take_over(&[chunk.bytes(), b"\n"].concat()),
        }
    }
}

/// The first record that waits was sent in part: so many of its lines.
fn pass(journal: &Reader<LineCounter>, sent: u64) {
    if let Ok(Some(start)) = journal.peek(1).map(|waiting| waiting.start()) {
        journal.discard(start.after_lines(sent));
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
    use std::path::Path;
    use std::time::Duration;

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
            let backlog = Backlog::new(reader(root.path(), "backlog"), Arc::new(writer(root.path(), "backlog")));
            let step = Duration::from_secs(1);
            let live = Queue::new(reader(root.path(), "results"), step);
            let older = Queue::new(Arc::clone(&backlog.reader), step);
            let writer = writer(root.path(), "results");
            Self { root, writer, live, backlog, older }
        }

        fn take_over(&mut self) {
            self.backlog.take_over(&mut self.live, &mut self.older, &Shutdown::default());
        }
    }

    /// The records that wait, and how many lines of the first one are done with.
    fn waiting(journal: &Reader<LineCounter>) -> (Vec<String>, u64) {
        match journal.peek(usize::MAX >> 1).unwrap() {
            Waiting::Records(chunk) => {
                let records = chunk.records().map(|record| String::from_utf8(record.bytes.to_vec()).unwrap());
                (records.collect(), chunk.start().part)
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
        rig.live.failed();
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
        // Behind others there is no place for a part: it is sent first.
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
        rig.backlog = Backlog::new(reader(&blocked, "backlog"), Arc::new(writer(&blocked, "backlog")));
        rig.older = Queue::new(Arc::clone(&rig.backlog.reader), MINUTES);
        rig.take_over();
        assert_eq!(waiting(&rig.live.journal).0, ["1", "2"]);
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
        let limits = |lines| Limits { lines: Some(lines), bytes: u64::MAX, free_bytes: 0 };
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
