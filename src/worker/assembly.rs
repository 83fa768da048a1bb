//! Everything behind the calls and the journals, put together in one place; the fuzz targets use it, too.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::threads::Threads;
use crate::extension::manager::Manager;
use crate::extension::registry::{Plugin, Registry};
use crate::journal::{Overflow, Position, Reader, Rejected, Writer, WriterEvents, inspect};
use crate::line_count::LineCounter;
use crate::lock::Mutex;
use crate::logging::Verbosity;
use crate::metrics::Metrics;
use crate::plugins::config::{self, ActivePlugins, Config, WholeQueries};
use crate::plugins::distributed::{self, Distributed};
use crate::plugins::logger::{
    AskToBeWoken, Backlog, Decorations, Forwarder, Keeping, LARGEST_FINDING, LastFlush, Logger, Pending,
};
use crate::plugins::tables::{self, CountWritten, Sources, Stream};
use crate::remote::Node;
use crate::remote::api::LogType;
use crate::settings::live::Flags;
use crate::settings::{Options, OwnFlags};
use crate::shutdown::{Doorbell, Shutdown};

/// Between two looks at journals that hold lines: whether they keep within their limits, whether they can be written again
/// or are to be synced.
const KEEPER_INTERVAL: Duration = Duration::from_secs(1);

/// What a worker is made of.
pub struct Setup {
    /// osqueryd's manager.
    pub manager: Arc<Manager>,
    /// Our own flags.
    pub own: OwnFlags,
    /// How much is logged at least.
    pub verbosity: Verbosity,
    /// osqueryd's flags.
    pub options: Options,
    /// osqueryd's command line, where it is known.
    pub command_line: Option<Vec<String>>,
    /// Result lines in the front's memory.
    pub overflow: Option<Arc<dyn Overflow>>,
    /// What the front has taken since this worker began.
    pub counts: CountWritten,
    /// How many workers the front has started, this one among them.
    pub number: u64,
    /// Where the results journal ended when the front began.
    pub backlog_end: Position,
    /// Asks the front to ring when result lines come.
    pub ask_to_be_woken: AskToBeWoken,
}

/// What a thread does.
type Work = Box<dyn FnOnce() + Send>;

/// A worker's parts.
pub struct Assembly {
    /// osqueryd's manager.
    pub manager: Arc<Manager>,
    /// The flags of now.
    pub flags: Arc<Flags>,
    /// The directory of the journals.
    pub directory: PathBuf,
    /// The plugins.
    pub registry: Arc<Registry>,
    /// Rung when result lines come.
    pub results_bell: Arc<Doorbell>,
    /// Rung when a status call waits in the journal `pending`.
    pub pending_bell: Arc<Doorbell>,
    config: Arc<Config>,
    whole_queries: Arc<WholeQueries>,
    active_plugins: Arc<ActivePlugins>,
    command_line: Option<Vec<String>>,
    node: Arc<Node>,
    shutdown: Shutdown,
    last_flush: Arc<AtomicBool>,
    work: Mutex<Vec<(&'static str, Work)>>,
}

/// A journal that the worker both writes and reads.
struct Own {
    writer: Arc<Writer<LineCounter>>,
    reader: Arc<Reader<LineCounter>>,
    bell: Arc<Doorbell>,
}

/// An append wakes who sends, and the keeper.
struct Rings {
    sender: Arc<Doorbell>,
    keeper: Arc<Doorbell>,
    is_dirty: Arc<AtomicBool>,
}

impl WriterEvents for Rings {
    fn appended(&self) {
        self.sender.ring();
        if !self.is_dirty.swap(true, Ordering::SeqCst) {
            self.keeper.ring();
        }
    }
}

impl Assembly {
    /// Puts a worker together. Nothing runs before `start`. It is long, and nothing in it is decided: one part after the
    /// other, each given those that it needs.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let shutdown = Shutdown::default();
        let manager = setup.manager;
        let flags = Arc::new(Flags::new(Arc::clone(&manager), setup.own, setup.verbosity, &setup.options));
        let directory = flags.current().buffer_path.clone();
        let node = Node::new(Arc::clone(&manager), Arc::clone(&flags), &shutdown);
        let mut work: Vec<(&'static str, Work)> = Vec::new();
        for enrollment in node.enrollments.each().map(Arc::clone) {
            work.push(("enroll", Box::new(move || enrollment.run())));
        }

        let keeper_bell = bell(&shutdown);
        let is_dirty = Arc::new(AtomicBool::new(false));
        let rejected = Arc::new(Rejected::new(directory.clone()));
        let own = |folder: &str, name: &'static str| {
            let bell = bell(&shutdown);
            let rings =
                Rings { sender: Arc::clone(&bell), keeper: Arc::clone(&keeper_bell), is_dirty: Arc::clone(&is_dirty) };
            let writer: Arc<Writer<LineCounter>> = Arc::new(Writer::new(directory.join(folder), name, Arc::new(rings)));
            let memory = Arc::clone(&writer) as Arc<dyn Overflow>;
            let reader = Arc::new(Reader::new(directory.join(folder), name, Arc::clone(&rejected), Some(memory)));
            Own { writer, reader, bell }
        };
        let (statuses, kept) = (own("statuses", "statuses"), own(distributed::STREAM, distributed::STREAM));
        let results =
            Arc::new(Reader::new(directory.join("results"), "results", Arc::clone(&rejected), setup.overflow));
        let older = own("backlog", "results");
        let backlog =
            Arc::new(Backlog::new(directory.join("backlog"), Arc::clone(&older.reader), Arc::clone(&older.writer)));
        let (results_bell, pending_bell) = (bell(&shutdown), bell(&shutdown));

        // A connection of their own: no other call waits for a decorator's query.
        let querying = Manager::new(manager.socket().to_owned(), Arc::new(|| {})).reading(LARGEST_FINDING);
        let decorations = Decorations::new(querying, directory.join(config::FILE), &shutdown);
        let decorating = Arc::clone(&decorations);
        work.push(("decorations", Box::new(move || decorating.run())));

        let command_line = setup.command_line.as_deref();
        let whole_queries = Arc::new(WholeQueries::new(&setup.options, command_line, directory.join(config::FILE)));
        let active_plugins = Arc::new(ActivePlugins::new(&setup.options, command_line));
        let configured = Arc::clone(&decorations);
        let config = Config::new(
            Arc::clone(&node),
            Arc::clone(&manager),
            Arc::clone(&whole_queries),
            Arc::clone(&active_plugins),
            Box::new(move |document| configured.configure(document)),
            &directory,
            &shutdown,
        );
        let fetching = Arc::clone(&config);
        work.push(("config", Box::new(move || fetching.run())));

        let last_flush = Arc::new(AtomicBool::new(false));
        let statuses_end = inspect::end(&directory.join("statuses"));
        let recovery = || {
            let recovery = bell(&shutdown);
            node.ring_at_recoveries(Arc::clone(&recovery));
            recovery
        };
        let forwarder = |log_type, journal: &Arc<Reader<LineCounter>>, bell: &Arc<Doorbell>, backlog_end| Forwarder {
            log_type,
            journal: Arc::clone(journal),
            backlog: None,
            node: Arc::clone(&node),
            bell: Arc::clone(bell),
            recovery: recovery(),
            backlog_end,
            ask_to_be_woken: Box::new(|_| {}),
            keeper: Arc::clone(&keeper_bell),
            shutdown: shutdown.clone(),
            statuses: Arc::clone(&statuses.writer),
            decorations: Arc::clone(&decorations),
            whole_queries: Arc::clone(&whole_queries),
            last_flush: Arc::clone(&last_flush),
        };
        let sending_results = Forwarder {
            ask_to_be_woken: setup.ask_to_be_woken,
            backlog: Some(Arc::clone(&backlog)),
            ..forwarder(LogType::Result, &results, &results_bell, setup.backlog_end)
        };
        work.push(("results", Box::new(move || sending_results.run())));
        let sending_statuses = forwarder(LogType::Status, &statuses.reader, &statuses.bell, statuses_end);
        work.push(("statuses", Box::new(move || sending_statuses.run())));

        let host = Arc::clone(&node.host);
        let keeping = Keeping {
            journals: [&results, &older.reader, &statuses.reader, &kept.reader].map(Arc::clone).into(),
            writers: vec![("statuses", Arc::clone(&statuses.writer)), (distributed::STREAM, Arc::clone(&kept.writer))],
            rejected: Arc::clone(&rejected),
        };
        let logger =
            Logger::new(Arc::clone(&statuses.writer), Arc::clone(&flags), host, Arc::clone(&decorations), keeping);
        let pending = Pending {
            calls: Reader::new(directory.join("pending"), "pending", Arc::clone(&rejected), None),
            logger: Arc::clone(&logger),
            bell: Arc::clone(&pending_bell),
            shutdown: shutdown.clone(),
        };
        work.push(("pending", Box::new(move || pending.run())));

        let distributed = Distributed::new(
            Arc::clone(&node),
            Arc::clone(&kept.writer),
            Arc::clone(&kept.reader),
            kept.bell,
            shutdown.clone(),
        );
        let sending_kept = Arc::clone(&distributed);
        work.push(("distributed", Box::new(move || sending_kept.run())));

        let keeper = Keeper {
            writers: vec![Arc::clone(&older.writer), Arc::clone(&statuses.writer), Arc::clone(&kept.writer)],
            streams: [Arc::clone(&results), Arc::clone(&statuses.reader), Arc::clone(&kept.reader)],
            backlog: Arc::clone(&backlog),
            flags: Arc::clone(&flags),
            bell: keeper_bell,
            is_dirty,
            shutdown: shutdown.clone(),
        };
        work.push(("journal-limits", Box::new(move || keeper.run())));

        let streams = vec![
            Stream { journal: results, backlog: Some(backlog), written: setup.counts },
            Stream {
                journal: statuses.reader,
                backlog: None,
                written: Box::new(move || Some(statuses.writer.counts())),
            },
            Stream { journal: kept.reader, backlog: None, written: Box::new(move || Some(kept.writer.counts())) },
        ];
        let sources = Arc::new(Sources { node: Arc::clone(&node), streams, directory: directory.clone() });
        if let Some(path) = flags.current().metrics_file.clone() {
            let metrics = Metrics::new(path, Arc::clone(&sources), setup.number, shutdown.clone());
            work.push(("metrics", Box::new(move || metrics.run())));
        }
        let tables = tables::plugins(&sources);
        let mut plugins: Vec<Box<dyn Plugin>> =
            vec![Box::new(Arc::clone(&config)), Box::new(logger), Box::new(distributed)];
        plugins.extend(tables);
        Self {
            manager,
            flags,
            directory,
            registry: Arc::new(Registry::new(plugins)),
            results_bell,
            pending_bell,
            config,
            whole_queries,
            active_plugins,
            command_line: setup.command_line,
            node,
            shutdown,
            last_flush,
            work: Mutex::new(work),
        }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// One can't be started.
    pub(super) fn start(&self, threads: &mut Threads) -> anyhow::Result<()> {
        let work = std::mem::take(&mut *self.work.lock());
        work.into_iter().try_for_each(|(name, work)| threads.spawn(name, work))
    }

    /// osqueryd's process is gone: the next one has no configuration.
    pub fn osqueryd_is_gone(&self) {
        self.config.osqueryd_is_gone();
    }

    /// Another osqueryd has registered the extension: nothing of what was known of the one before counts.
    pub fn osqueryd_was_replaced(&self) {
        self.node.osqueryd_was_replaced();
        self.flags.refresh();
        if let Ok(options) = self.manager.options() {
            let command_line = self.command_line.as_deref();
            self.whole_queries.osqueryd_was_replaced(&options, command_line);
            self.active_plugins.osqueryd_was_replaced(&options, command_line);
        }
    }

    /// Fetches the configuration now, and pushes it.
    pub(super) fn refresh_configuration(&self) {
        self.config.refresh();
    }

    /// Asks the threads to end, and ends all waits but for the requests in flight.
    pub fn request_end(&self, last_flush: LastFlush) {
        self.last_flush.store(last_flush == LastFlush::Try, Ordering::SeqCst);
        self.shutdown.request();
        // What is known of osqueryd's flags and of the node key is good enough for the last requests.
        self.manager.close();
    }

    /// Breaks off the requests in flight.
    pub fn break_off(&self) {
        self.node.abort();
    }
}

/// A doorbell that is rung at the end, too.
fn bell(shutdown: &Shutdown) -> Arc<Doorbell> {
    let bell = Arc::new(Doorbell::default());
    let ring = Arc::clone(&bell);
    shutdown.on_request(move || ring.ring());
    bell
}

/// Does for the journals what appends and requests must not wait for. Sleeps without waking while nothing waits.
struct Keeper {
    writers: Vec<Arc<Writer<LineCounter>>>,
    /// Results, statuses, kept results of distributed queries.
    streams: [Arc<Reader<LineCounter>>; 3],
    /// Behind the results.
    backlog: Arc<Backlog>,
    flags: Arc<Flags>,
    bell: Arc<Doorbell>,
    is_dirty: Arc<AtomicBool>,
    shutdown: Shutdown,
}

impl Keeper {
    fn run(&self) {
        while !self.shutdown.requested() {
            let is_busy = self.writers.iter().any(|writer| writer.waits_for_disk())
                || self.streams.iter().any(|stream| !stream.is_empty())
                || !self.backlog.reader.is_empty();
            if !is_busy && !self.is_dirty.load(Ordering::SeqCst) {
                self.bell.wait(None);
            }
            if self.shutdown.wait(KEEPER_INTERVAL) {
                break;
            }
            self.is_dirty.store(false, Ordering::SeqCst);
            let logger = self.flags.current().logger.clone();
            let [results, statuses, kept] = &self.streams;
            self.backlog.keep_within(results, &logger.limits);
            statuses.keep_within(&logger.limits);
            kept.keep_within(&distributed::limits(&logger));
            for writer in &self.writers {
                writer.retry();
                writer.sync();
            }
        }
        self.writers.iter().for_each(|writer| writer.close());
    }
}
