//! The worker: answers the calls that the front relays, and talks to the server. It may die at any moment: the front
//! starts another one, and repeats the calls that it was at. When the front itself is gone, it stands in for it (`stand_in`).

pub mod assembly;
mod overflow;
mod stand_in;
mod threads;

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

use self::assembly::{Assembly, Setup};
use self::overflow::FrontMemory;
use self::threads::Threads;
use crate::cli::Cli;
use crate::control::{
    self, Attached, Descriptors, JournalPosition, Listener, Order, Ready, Receiver, Report, Start, ToOther, as_stream,
};
use crate::extension::manager::Manager;
use crate::extension::service::Service;
use crate::journal::Position;
use crate::platform;
use crate::plugins::logger::LastFlush;
use crate::settings::{Settings, own};

/// Calls and requests in flight at the end get this long; then they are broken off.
const GRACE: Duration = Duration::from_millis(1400);

/// After that, threads have this long to notice. The process ends then, whatever they do: under 2 s in all.
const LAST_LIMIT: Duration = Duration::from_millis(300);

/// Works until the front asks for the end, or nothing is left to work for.
///
/// # Errors
/// It was not started by a front, or no thread can be started.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    // The front decides when a worker ends; a terminal's or a service manager's signals reach both.
    let ignored = Arc::new(AtomicBool::new(false));
    // A limit on the size of files must be an error like any other, and not the end.
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGXFSZ] {
        signal_hook::flag::register(signal, Arc::clone(&ignored)).context("can't ignore signals")?;
    }
    let stream = control::on_standard_input().context("a worker is started by a front, not by hand")?;
    let mut orders = Receiver::new(stream.try_clone()?);
    let Some((Order::Start(start), _)) = orders.receive()? else { bail!("the front gave no flags") };
    let worker = Worker::start(&cli, &start, stream)?;
    worker.to_front.tell(&Report::Ready(Ready { version: env!("CARGO_PKG_VERSION").to_owned(), resumes: true }));
    worker.work(&mut orders);
    Ok(())
}

/// A worker at work.
struct Worker {
    assembly: Assembly,
    service: Arc<Service>,
    to_front: Arc<ToOther>,
    threads: Threads,
    calls: Threads,
    inheritance: Inheritance,
    /// The front has said that osqueryd is gone, and not yet that there is another one.
    is_detached: bool,
}

/// What a worker needs to stand in for its front.
#[derive(Default)]
struct Inheritance {
    listener: Option<(UnixListener, Listener)>,
    attached: Option<Attached>,
}

/// Why a worker no longer hears its front.
enum Silence {
    /// The front has told it to end, in this way.
    Ended(LastFlush),
    /// The front is gone.
    FrontGone,
}

impl Worker {
    fn start(cli: &Cli, start: &Start, stream: UnixStream) -> anyhow::Result<Self> {
        let to_front = Arc::new(ToOther::new(stream));
        let (own, errors) = own::read(&cli.own);
        for error in errors {
            log::error!("our flag file: {error}");
        }
        let mut options = start.options.clone();
        if !start.first {
            options.insert("enroll_always".to_owned(), "false".to_owned());
        }
        let front = Arc::clone(&to_front);
        let memory = Arc::new(FrontMemory::new(Arc::clone(&to_front), start.taken.clone()));
        let counting = Arc::clone(&memory);
        let assembly = Assembly::new(Setup {
            manager: Arc::new(Manager::new(cli.socket.clone(), Arc::new(|| {}))),
            own,
            verbosity: cli.verbosity(),
            options,
            command_line: platform::arguments_of(start.parent),
            counts: Box::new(move || counting.counts()),
            overflow: Some(memory),
            number: start.number,
            backlog_end: Position {
                file: start.backlog_end.file,
                offset: start.backlog_end.offset,
                ..Position::default()
            },
            ask_to_be_woken: Box::new(move |seen: Position| {
                front.tell(&Report::WakeMe(JournalPosition { file: seen.file, offset: seen.offset }));
            }),
        });
        let front = Arc::clone(&to_front);
        let tell = move |settings: &Settings| front.tell(&Report::Settings(settings.into()));
        assembly.flags.tell_of_changes(Box::new(tell));
        let mut threads = Threads::default();
        assembly.start(&mut threads)?;
        if start.refresh {
            assembly.refresh_configuration();
        }
        let service = Arc::new(Service::new(Arc::clone(&assembly.registry)));
        let inheritance = Inheritance::default();
        Ok(Self { assembly, service, to_front, threads, calls: Threads::default(), inheritance, is_detached: false })
    }

    fn work(mut self, orders: &mut Receiver) {
        match self.hear(orders) {
            Silence::Ended(last_flush) => self.end(last_flush),
            Silence::FrontGone => {
                let inheritance = std::mem::take(&mut self.inheritance);
                let last_flush = stand_in::run(&self.assembly, &self.service, inheritance);
                self.end(last_flush);
            }
        }
    }

    fn hear(&mut self, orders: &mut Receiver) -> Silence {
        loop {
            match orders.receive() {
                Ok(Some((Order::HandOver {}, _))) => return Silence::Ended(LastFlush::Skip),
                Ok(Some((Order::Stop {}, _))) => return Silence::Ended(LastFlush::Try),
                Ok(Some((order, descriptors))) => self.obey(order, descriptors),
                Ok(None) => return Silence::FrontGone,
                Err(error) => {
                    log::warn!("the front can't be heard: {error}");
                    return Silence::FrontGone;
                }
            }
        }
    }

    fn obey(&mut self, order: Order, descriptors: Descriptors) {
        match order {
            Order::Call {} => self.call(as_stream(descriptors)),
            Order::Ping { number } => self.to_front.tell(&Report::Pong { number }),
            Order::Lines {} => self.assembly.results_bell.ring(),
            Order::Pending {} => self.assembly.pending_bell.ring(),
            Order::Listener(listener) => {
                let received = descriptors.into_iter().next().map(UnixListener::from);
                self.inheritance.listener = received.map(|socket| (socket, listener));
            }
            Order::Attached(attached) => {
                self.service.set_uuid(attached.uuid);
                let before = self.inheritance.attached.replace(attached.clone());
                let is_known = std::mem::take(&mut self.is_detached);
                if before.is_some_and(|before| before.osqueryd != attached.osqueryd) {
                    if !is_known {
                        // An older front says nothing of osqueryd's end.
                        self.assembly.osqueryd_is_gone();
                    }
                    self.assembly.osqueryd_was_replaced();
                }
            }
            Order::Detached {} => {
                self.is_detached = true;
                self.assembly.osqueryd_is_gone();
            }
            Order::Start(_) | Order::HandOver {} | Order::Stop {} => {}
        }
    }

    /// Answers a call on a thread of its own, since it may wait for the server.
    fn call(&mut self, stream: Option<UnixStream>) {
        let Some(stream) = stream else { return };
        let service = Arc::clone(&self.service);
        let answer = move || {
            let answered = control::hear(&stream).and_then(|frame| {
                let answer = service.answer(&frame).map_err(std::io::Error::other)?;
                control::reply(&stream, &answer)
            });
            if let Err(error) = answered {
                log::debug!("a call that was relayed could not be answered: {error}");
            }
        };
        self.calls.join_ended();
        if let Err(error) = self.calls.spawn("call", answer) {
            // The front repeats it.
            log::error!("a call can't be answered now: {error:#}");
        }
    }

    /// Lets calls and flushes in flight finish within their grace, then breaks them off.
    fn end(mut self, last_flush: LastFlush) {
        self.assembly.request_end(last_flush);
        let grace = Instant::now() + GRACE;
        let answered = self.calls.join(grace);
        self.threads.join(grace);
        self.assembly.break_off();
        // A call that was broken off answers at once now.
        let last = Instant::now() + LAST_LIMIT;
        if !answered && !self.calls.join(last) {
            log::warn!("a call of osqueryd could not be ended in time");
        }
        self.threads.join(last);
        self.threads.name_the_late();
    }
}
