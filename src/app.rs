//! The program: builds everything from osqueryd's flags, starts the named threads, waits for the end, and stops in
//! order within a deadline.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::buffer::Buffer;
use crate::cli::{Cli, DEFAULT_FLAGFILE, FLAGFILE_VARIABLE, OwnFlags};
use crate::extension::lifecycle::{Event, Lifecycle, stopped_within, wait_for_manager};
use crate::extension::manager::Manager;
use crate::extension::registry::Registry;
use crate::extension::server::ThreadCount;
use crate::flags::Flags;
use crate::forwarder::Forwarder;
use crate::logging::{self, Verbosity};
use crate::plugins::config::Config;
use crate::plugins::distributed::Distributed;
use crate::plugins::logger::Logger;
use crate::remote::api::LogType;
use crate::remote::enroll::Enrollment;
use crate::remote::host::Host;
use crate::remote::node::{Node, Outages};
use crate::remote::transport::Transport;
use crate::shutdown::{Doorbell, Shutdown};

/// Requests in flight at the end get so long; then they are broken off.
const GRACE: Duration = Duration::from_millis(1800);

/// After that, threads have so long to notice. The process ends then, whatever they do: under 3 s in all.
const LAST_LIMIT: Duration = Duration::from_millis(700);

/// Between two looks whether a thread has ended; std has no join with a deadline.
const JOIN_PAUSE: Duration = Duration::from_millis(2);

/// Runs the extension until osqueryd is gone or the end is asked for.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let verbose = if cli.verbose { Verbosity::Verbose } else { Verbosity::Normal };
    logging::start(verbose);
    let own = own_flags(cli.own);

    let (sender, events) = mpsc::channel();
    let mut threads = Threads::default();
    let signals = threads.watch_signals(sender.clone())?;

    let manager = Arc::new(Manager::new(cli.socket, sender.clone()));
    if !wait_for_manager(&manager, cli.timeout, |pause| stopped_within(&events, pause))? {
        return Ok(());
    }
    let flags = Flags::read(Arc::clone(&manager), own, verbose).context("can't read osqueryd's flags")?;
    let worker = Worker::start(Arc::clone(&manager), Arc::new(flags), &mut threads)?;

    let serving = ThreadCount::default();
    let lifecycle = Lifecycle {
        manager,
        registry: Arc::clone(&worker.registry),
        events,
        sender,
        threads: serving.clone(),
        interval: cli.interval.max(Duration::from_millis(200)),
        return_timeout: worker.flags.current().return_timeout,
        attached: worker.attached(),
    };
    let ended = lifecycle.run();
    signals.close();
    worker.shutdown.request();
    stop(&worker.transport, &serving, threads);
    Ok(ended?)
}

/// Lets calls and flushes in flight finish within their grace, then breaks them off.
fn stop(transport: &Transport, serving: &ThreadCount, mut threads: Threads) {
    let grace = Instant::now() + GRACE;
    let answered = serving.wait(GRACE);
    threads.join(grace);
    transport.abort();
    // A call that was broken off answers at once now.
    let last = Instant::now() + LAST_LIMIT;
    if !answered && !serving.wait(LAST_LIMIT) {
        log::warn!("a call of osqueryd could not be ended in time");
    }
    threads.join(last);
    threads.name_the_late();
}

/// Our own flags: the command line's, and where it is silent those of our flag file.
fn own_flags(command_line: OwnFlags) -> OwnFlags {
    let path = std::env::var_os(FLAGFILE_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_FLAGFILE), PathBuf::from);
    let (file, errors) = OwnFlags::read(&path);
    for error in errors {
        log::error!("{error}");
    }
    command_line.or(file)
}

/// What answers osqueryd's calls and talks to the server: everything but the attachment to osqueryd.
struct Worker {
    registry: Arc<Registry>,
    flags: Arc<Flags>,
    host: Arc<Host>,
    transport: Arc<Transport>,
    shutdown: Shutdown,
}

impl Worker {
    fn start(manager: Arc<Manager>, flags: Arc<Flags>, threads: &mut Threads) -> anyhow::Result<Self> {
        let shutdown = Shutdown::default();
        let host = Arc::new(Host::new(Arc::clone(&manager)));
        let transport = Arc::new(Transport::new(shutdown.clone()));
        let enrollment =
            Enrollment::new(manager, Arc::clone(&host), Arc::clone(&flags), Arc::clone(&transport), shutdown.clone());
        let node = Arc::new(Node {
            enrollment: Arc::clone(&enrollment),
            host: Arc::clone(&host),
            flags: Arc::clone(&flags),
            transport: Arc::clone(&transport),
            shutdown: shutdown.clone(),
            outages: Outages::default(),
            gzip_refused: AtomicBool::new(false),
        });
        threads.spawn("enroll", move || enrollment.run())?;
        let directory = flags.current().buffer_path.clone();
        let mut stream = |name: &'static str, log_type| -> anyhow::Result<Arc<Buffer>> {
            let bell = Arc::new(Doorbell::default());
            let buffer = Arc::new(Buffer::new(&directory, name, Arc::clone(&bell)));
            let ring = Arc::clone(&bell);
            shutdown.on_request(move || ring.ring());
            let forwarder = Forwarder {
                log_type,
                buffer: Arc::clone(&buffer),
                node: Arc::clone(&node),
                bell,
                shutdown: shutdown.clone(),
            };
            threads.spawn(name, move || forwarder.run())?;
            Ok(buffer)
        };
        let (results, statuses) = (stream("results", LogType::Result)?, stream("statuses", LogType::Status)?);
        let registry = Registry::new(vec![
            Box::new(Config::new(Arc::clone(&node))),
            Box::new(Logger::new(results, statuses, Arc::clone(&flags), Arc::clone(&host))),
            Box::new(Distributed::new(node)),
        ]);
        Ok(Self { registry: Arc::new(registry), flags, host, transport, shutdown })
    }

    /// What a registration with another osqueryd changes.
    fn attached(&self) -> Box<dyn Fn()> {
        let (flags, host) = (Arc::clone(&self.flags), Arc::clone(&self.host));
        Box::new(move || {
            host.forget_version();
            flags.refresh();
        })
    }
}

/// The threads that were started, by name, and how they are waited for.
#[derive(Default)]
struct Threads(Vec<(&'static str, JoinHandle<()>)>);

impl Threads {
    fn spawn(&mut self, name: &'static str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).context("can't start a thread")?;
        self.0.push((name, thread));
        Ok(())
    }

    fn watch_signals(&mut self, events: Sender<Event>) -> anyhow::Result<Handle> {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("can't watch for signals")?;
        let handle = signals.handle();
        self.spawn("signals", move || {
            for _ in &mut signals {
                // The receiver is gone only when the end has begun.
                let _ = events.send(Event::Signal);
            }
        })?;
        Ok(handle)
    }

    /// Joins those that end before `deadline`.
    fn join(&mut self, deadline: Instant) {
        while !self.0.is_empty() {
            for (name, thread) in self.0.extract_if(.., |(_, thread)| thread.is_finished()) {
                if thread.join().is_err() {
                    log::error!("the thread {name} panicked; please report it with the lines above");
                }
            }
            if Instant::now() >= deadline {
                return;
            }
            thread::sleep(JOIN_PAUSE);
        }
    }

    /// Those left end with the process.
    fn name_the_late(&self) {
        for (name, _) in &self.0 {
            log::warn!("the thread {name} did not end in time");
        }
    }
}
