//! The worker: answers osqueryd's calls on the listening socket that the supervisor handed over, and talks to the
//! server. It may die at any moment: the supervisor starts another one while connections wait in the backlog.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

use crate::buffer::{Buffer, Housekeeper};
use crate::cli::{Cli, OwnFlags};
use crate::control::{self, Order, Report};
use crate::decorations::Decorations;
use crate::extension::manager::Manager;
use crate::extension::registry::{Plugin, Registry};
use crate::extension::server::{Server, ThreadCount};
use crate::flags::Flags;
use crate::forwarder::{Forwarder, LastFlush};
use crate::plugins::config::{self, Config};
use crate::plugins::distributed::{self, Distributed};
use crate::plugins::logger::Logger;
use crate::plugins::tables::{self, Sources};
use crate::remote::api::LogType;
use crate::remote::enroll::Enrollment;
use crate::remote::host::Host;
use crate::remote::node::{Node, Outages};
use crate::remote::transport::Transport;
use crate::settings::Options;
use crate::shutdown::{Doorbell, Shutdown};

/// Requests in flight at the end get so long; then they are broken off.
const GRACE: Duration = Duration::from_millis(1600);

/// After that, threads have so long to notice. The process ends then, whatever they do: under 3 s in all.
const LAST_LIMIT: Duration = Duration::from_millis(500);

/// Between two looks whether a thread has ended; std has no join with a deadline.
const JOIN_PAUSE: Duration = Duration::from_millis(2);

/// Works until the supervisor asks for the end, or is gone.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    // The supervisor decides when a worker ends; a terminal's or a service manager's signals reach both.
    let ignored = Arc::new(AtomicBool::new(false));
    // A limit on the size of files must be an error like any other, and not the end.
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGXFSZ] {
        signal_hook::flag::register(signal, Arc::clone(&ignored)).context("can't ignore signals")?;
    }
    let (listener, stream) = handed_over().context("a worker is started by a supervisor, not by hand")?;
    let mut orders = control::Receiver::new(stream.try_clone()?);
    let Some(Order::Start(options)) = orders.receive()? else { bail!("the supervisor gave no flags") };

    let verbose = cli.verbosity();
    let manager = Arc::new(Manager::new(cli.socket, Arc::new(|| {})));
    let flags = Arc::new(Flags::new(Arc::clone(&manager), cli.own, verbose, &options));
    let mut worker = Worker::start(Arc::clone(&manager), flags)?;
    let serving = ThreadCount::default();
    let reports = stream.try_clone()?;
    let asked_to_end = move || {
        // A supervisor that is gone has ended already.
        let _ = control::send(&reports, &Report::AskedToEnd);
    };
    let server = Server::start(listener, Arc::clone(&worker.registry), asked_to_end, serving.clone())?;
    control::send(&stream, &Report::Ready)?;

    let mut registered = None;
    let last_flush = loop {
        match orders.receive() {
            Ok(Some(Order::Attached(uuid))) => {
                server.set_uuid(uuid);
                registered = Some(uuid);
            }
            Ok(Some(Order::HandOver)) => break LastFlush::Skip,
            Ok(Some(Order::Stop)) => break LastFlush::Try,
            Ok(Some(Order::Start(_))) => {}
            Ok(None) | Err(_) => {
                // The supervisor is dead, and its successor can't register as long as osqueryd knows us.
                log::warn!("the supervisor is gone: ending");
                if let Some(uuid) = registered {
                    manager.deregister(uuid);
                }
                break LastFlush::Skip;
            }
        }
    };
    server.close();
    worker.stop(&serving, last_flush);
    Ok(())
}

/// The listening socket is the standard input, the connection to the supervisor the standard output.
fn handed_over() -> io::Result<(UnixListener, UnixStream)> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let stream = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    // Neither is what it should be when started by hand.
    listener.local_addr()?;
    stream.peer_addr()?;
    Ok((listener, stream))
}

/// Everything behind the socket, running.
struct Worker {
    registry: Arc<Registry>,
    manager: Arc<Manager>,
    transport: Arc<Transport>,
    shutdown: Shutdown,
    last_flush: Arc<AtomicBool>,
    threads: Threads,
}

impl Worker {
    fn start(manager: Arc<Manager>, flags: Arc<Flags>) -> anyhow::Result<Self> {
        let mut threads = Threads::default();
        let shutdown = Shutdown::default();
        let host = Arc::new(Host::new(Arc::clone(&manager)));
        let transport = Arc::new(Transport::new(shutdown.clone()));
        let enrollment = Enrollment::new(
            Arc::clone(&manager),
            Arc::clone(&host),
            Arc::clone(&flags),
            Arc::clone(&transport),
            shutdown.clone(),
        );
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
        let last_flush = Arc::new(AtomicBool::new(false));
        let directory = flags.current().buffer_path.clone();
        let housekeeper_bell = Arc::new(Doorbell::default());
        let ring = Arc::clone(&housekeeper_bell);
        shutdown.on_request(move || ring.ring());
        let buffer = |name: &'static str| {
            let bell = Arc::new(Doorbell::default());
            let ring = Arc::clone(&bell);
            shutdown.on_request(move || ring.ring());
            (Arc::new(Buffer::new(&directory, name, Arc::clone(&bell), Arc::clone(&housekeeper_bell))), bell)
        };
        // A connection of their own: no other call waits for a decorator's query.
        let querying = Manager::new(manager.socket().to_owned(), Arc::new(|| {}));
        let decorations = Decorations::new(querying, directory.join(config::FILE), shutdown.clone());
        let decorating = Arc::clone(&decorations);
        threads.spawn("decorations", move || decorating.run())?;
        let (results, results_bell) = buffer("results");
        let (statuses, statuses_bell) = buffer("statuses");
        for (name, log_type, buffer, bell) in [
            ("results", LogType::Result, &results, results_bell),
            ("statuses", LogType::Status, &statuses, statuses_bell),
        ] {
            let forwarder = Forwarder {
                log_type,
                buffer: Arc::clone(buffer),
                statuses: Arc::clone(&statuses),
                decorations: Arc::clone(&decorations),
                node: Arc::clone(&node),
                bell,
                shutdown: shutdown.clone(),
                last_flush: Arc::clone(&last_flush),
            };
            threads.spawn(name, move || forwarder.run())?;
        }
        let (kept, bell) = buffer(distributed::STREAM);
        let buffers = vec![Arc::clone(&results), Arc::clone(&statuses), Arc::clone(&kept)];
        let housekeeper =
            Housekeeper { buffers: buffers.clone(), bell: Arc::clone(&housekeeper_bell), shutdown: shutdown.clone() };
        threads.spawn("buffers", move || housekeeper.run())?;
        let distributed = Distributed::new(Arc::clone(&node), kept, bell, shutdown.clone());
        let sending = Arc::clone(&distributed);
        threads.spawn("distributed", move || sending.run())?;
        let tables = tables::plugins(Sources { node: Arc::clone(&node), buffers });
        let config = Config::new(node, Arc::clone(&manager), Arc::clone(&decorations), &directory, shutdown.clone());
        let fetching = Arc::clone(&config);
        threads.spawn("config", move || fetching.run())?;
        let mut plugins: Vec<Box<dyn Plugin>> = vec![
            Box::new(config),
            Box::new(Logger::new(results, statuses, Arc::clone(&flags), host, decorations)),
            Box::new(distributed),
        ];
        plugins.extend(tables);
        Ok(Self { registry: Arc::new(Registry::new(plugins)), manager, transport, shutdown, last_flush, threads })
    }

    /// Lets calls and flushes in flight finish within their grace, then breaks them off.
    fn stop(&mut self, serving: &ThreadCount, last_flush: LastFlush) {
        self.last_flush.store(last_flush == LastFlush::Try, std::sync::atomic::Ordering::SeqCst);
        self.shutdown.request();
        // What is known of osqueryd's flags and of the node key is good enough for the last requests.
        self.manager.close();
        let grace = Instant::now() + GRACE;
        let answered = serving.wait(GRACE);
        self.threads.join(grace);
        self.transport.abort();
        // A call that was broken off answers at once now.
        let last = Instant::now() + LAST_LIMIT;
        if !answered && !serving.wait(LAST_LIMIT) {
            log::warn!("a call of osqueryd could not be ended in time");
        }
        self.threads.join(last);
        self.threads.name_the_late();
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

    /// Joins those that end before `deadline`.
    fn join(&mut self, deadline: Instant) {
        while !self.0.is_empty() {
            for (name, thread) in self.0.extract_if(.., |(_, thread)| thread.is_finished()) {
                if thread.join().is_err() {
                    log::error!("the thread {name} panicked; please report it with the lines above");
                }
            }
            if self.0.is_empty() || Instant::now() >= deadline {
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

/// The flags that decide what the supervisor does, of all that osqueryd has.
#[must_use]
pub fn settings_of(options: &Options, own: &OwnFlags) -> crate::settings::Settings {
    crate::settings::Settings::new(options, own).0
}
