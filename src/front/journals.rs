//! The front's journals, and what a worker asks of them: to be woken when lines come, and lines that the disk refuses.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::control::{Descriptors, JournalPosition, Order, Report, Taken, ToOther, as_stream};
use crate::journal::inspect;
use crate::journal::{OneLine, Overflow, Writer, WriterEvents};
use crate::line_count::LineCounter;
use crate::lock::Mutex;
use crate::logging::{self, Verbosity};
use crate::settings::FrontSettings;
use crate::shutdown::{Doorbell, Shutdown};

/// Between two attempts to write what waits in memory.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Between two looks whether a journal has outgrown its limits by far, while lines come.
const BACKSTOP_INTERVAL: Duration = Duration::from_secs(10);

/// The results journal, the one of status calls that no worker could take, and the thread that keeps both.
pub(super) struct Journals {
    /// Result lines.
    pub(super) results: Arc<Writer<LineCounter>>,
    /// Status calls that no worker could take in time.
    pub(super) pending: Arc<Writer<OneLine>>,
    supply: Arc<Supply>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    shutdown: Shutdown,
}

impl Journals {
    /// Journals in the directory of the buffers. The disk isn't touched before the first line.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn new(settings: &FrontSettings, verbosity: Verbosity) -> anyhow::Result<Self> {
        let wakeups = Arc::new(Wakeups::default());
        let directory = &settings.buffer_path;
        let results = Arc::new(Writer::new(directory.join("results"), "results", wakeups.clone()));
        let pending = Arc::new(Writer::new(directory.join("pending"), "pending", wakeups.clone()));
        let end = inspect::end(&directory.join("results"));
        let backlog_end = JournalPosition { file: end.file, offset: end.offset };
        let settings = Mutex::new(settings.clone());
        let supply = Arc::new(Supply {
            results: Arc::clone(&results),
            wakeups: Arc::clone(&wakeups),
            settings,
            verbosity,
            backlog_end,
        });
        let shutdown = Shutdown::default();
        let bell = Arc::clone(&wakeups);
        shutdown.on_request(move || bell.keeper.ring());
        let keeper = Keeper {
            results: Arc::clone(&results),
            pending: Arc::clone(&pending),
            supply: Arc::clone(&supply),
            shutdown: shutdown.clone(),
        };
        let thread = thread::Builder::new().name("journal".to_owned()).spawn(move || keeper.run());
        let keeper = Mutex::new(Some(thread.context("can't start a thread")?));
        Ok(Self { results, pending, supply, keeper, shutdown })
    }

    /// Goes by these settings from now on.
    pub(super) fn go_by(&self, settings: &FrontSettings) {
        *self.supply.settings.lock() = settings.clone();
    }

    /// What serves workers' reports.
    #[must_use]
    pub(super) fn supply(&self) -> Arc<Supply> {
        Arc::clone(&self.supply)
    }

    /// Whether lines wait in memory for the disk.
    #[must_use]
    pub(super) fn waits_for_disk(&self) -> bool {
        self.results.waits_for_disk() || self.pending.waits_for_disk()
    }

    /// The end, or a new program in this process: everything that was taken is in the files, which another process or
    /// program may write from now on.
    pub(super) fn close(&self) {
        self.shutdown.request();
        if let Some(keeper) = self.keeper.lock().take() {
            // It says itself what went wrong.
            let _ = keeper.join();
        }
        self.results.close();
        self.pending.close();
    }
}

/// Serves what a worker reports about the results journal.
pub(super) struct Supply {
    results: Arc<Writer<LineCounter>>,
    wakeups: Arc<Wakeups>,
    settings: Mutex<FrontSettings>,
    verbosity: Verbosity,
    /// Where the results journal ended when this front began.
    pub(super) backlog_end: JournalPosition,
}

impl Supply {
    /// Does what a worker, whom `to` leads to, reports.
    pub(super) fn serve(&self, to: &Arc<ToOther>, report: Report, descriptors: Descriptors) {
        match report {
            Report::WakeMe(seen) => self.wake_when_more_comes(to, seen),
            Report::PeekOverflow { most } => {
                if let Some(stream) = as_stream(descriptors) {
                    self.lend(&stream, most);
                }
            }
            Report::Taken {} => {
                if let Some(stream) = as_stream(descriptors) {
                    // A worker that is gone needs no answer.
                    let _ = serde_json::to_writer(stream, &self.taken());
                }
            }
            Report::Losses {} => {
                if let Some(stream) = as_stream(descriptors) {
                    let _ = serde_json::to_writer(stream, &self.results.take_losses());
                }
            }
            Report::RemoveOverflow { through } => self.results.remove(through),
            Report::GiveBackOverflow {} => self.results.give_back(),
            Report::Settings(settings) => {
                logging::configure(&settings.log, self.verbosity);
                *self.settings.lock() = settings;
            }
            Report::Ready(_) | Report::Pong { .. } => {}
        }
    }

    /// How the results journal's writing side stands.
    pub(super) fn taken(&self) -> Taken {
        let (counts, held) = (self.results.counts(), self.results.held().unwrap_or_default());
        Taken { accepted: counts.accepted, dropped: counts.dropped, held_lines: held.lines, held_bytes: held.bytes }
    }

    /// Lines that came while the worker's message was on its way wake it at once.
    fn wake_when_more_comes(&self, to: &Arc<ToOther>, seen: JournalPosition) {
        let before = self.wakeups.worker.lock().replace(Arc::clone(to));
        if !before.is_some_and(|before| Arc::ptr_eq(&before, to)) {
            *self.wakeups.was_news.lock() = None;
        }
        self.wakeups.is_awaited.store(true, Ordering::SeqCst);
        let end = self.results.end().map(|end| JournalPosition { file: end.file, offset: end.offset });
        if self.wakeups.is_news(end, seen) || self.results.waits_for_disk() {
            self.wakeups.wake();
        }
    }

    fn lend(&self, mut stream: &UnixStream, most: usize) {
        let lent = self.results.peek(most).and_then(|lent| match lent {
            Some(lent) => {
                stream.write_all(&lent.through.to_be_bytes())?;
                stream.write_all(&lent.bytes)
            }
            None => Ok(()),
        });
        if let Err(error) = lent {
            log::debug!("a worker could not be given lines from memory: {error}");
            self.results.give_back();
        }
    }

    /// The worker is gone: what it had peeked is not on its way any more.
    pub(super) fn forget_worker(&self) {
        self.results.give_back();
        *self.wakeups.worker.lock() = None;
    }
}

/// Wakes the worker and the keeper after an append. It costs no system call while the worker is awake and the keeper knows.
#[derive(Default)]
struct Wakeups {
    /// The worker sleeps until lines come.
    is_awaited: AtomicBool,
    worker: Mutex<Option<Arc<ToOther>>>,
    /// The journal's end, and what the worker had seen of it, when it was woken at once the last time.
    was_news: Mutex<Option<(JournalPosition, JournalPosition)>>,
    /// Something was written that is not synced.
    is_dirty: AtomicBool,
    keeper: Doorbell,
}

impl Wakeups {
    /// Whether a journal that ends here has more than a worker has seen, and the worker doesn't know that yet.
    ///
    /// A worker that was woken for the same end before, and has seen nothing more, is right: the rest is in a file that
    /// was deleted, or half a record. It would be woken for ever.
    fn is_news(&self, end: Option<JournalPosition>, seen: JournalPosition) -> bool {
        let Some(end) = end.filter(|end| *end != seen) else { return false };
        let news = Some((end, seen));
        std::mem::replace(&mut *self.was_news.lock(), news) != news
    }

    fn wake(&self) {
        if self.is_awaited.swap(false, Ordering::SeqCst)
            && let Some(worker) = self.worker.lock().as_ref()
        {
            worker.tell(&Order::Lines {});
        }
    }
}

impl WriterEvents for Wakeups {
    fn appended(&self) {
        if self.is_awaited.load(Ordering::SeqCst) {
            self.wake();
        }
        if !self.is_dirty.load(Ordering::Relaxed) && !self.is_dirty.swap(true, Ordering::SeqCst) {
            self.keeper.ring();
        }
    }
}

/// Does for the journals what appends must not wait for. Sleeps without waking while no lines come.
struct Keeper {
    results: Arc<Writer<LineCounter>>,
    pending: Arc<Writer<OneLine>>,
    supply: Arc<Supply>,
    shutdown: Shutdown,
}

impl Keeper {
    fn run(&self) {
        let mut backstop_due = Instant::now() + BACKSTOP_INTERVAL;
        while !self.shutdown.requested() {
            let has_overflow = self.results.waits_for_disk() || self.pending.waits_for_disk();
            if !has_overflow {
                self.supply.wakeups.keeper.wait(None);
            }
            let settings = self.supply.settings.lock().clone();
            let wait = if has_overflow { RETRY_INTERVAL } else { settings.sync_interval.unwrap_or(BACKSTOP_INTERVAL) };
            if self.shutdown.wait(wait) {
                return;
            }
            self.results.retry();
            self.pending.retry();
            self.supply.wakeups.is_dirty.store(false, Ordering::SeqCst);
            if settings.sync_interval.is_some() {
                self.results.sync();
                self.pending.sync();
            }
            if Instant::now() >= backstop_due {
                backstop_due = Instant::now() + BACKSTOP_INTERVAL;
                self.results.keep_backstop(&settings.limits);
                self.pending.keep_backstop(&settings.limits);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_finds_no_more_is_woken_once_for_the_same_end() {
        let wakeups = Wakeups::default();
        let at = |offset| JournalPosition { file: 7, offset };
        assert!(!wakeups.is_news(None, at(0)), "there is no journal");
        assert!(!wakeups.is_news(Some(at(10)), at(10)));
        assert!(wakeups.is_news(Some(at(20)), at(10)));
        assert!(!wakeups.is_news(Some(at(20)), at(10)), "it has looked");
        assert!(wakeups.is_news(Some(at(30)), at(10)));
        assert!(wakeups.is_news(Some(at(40)), at(30)));
    }
}
