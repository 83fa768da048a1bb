//! The worker behind the front: started, watched and replaced.

use std::ffi::OsString;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::Event;
use super::journals::Supply;
use super::relay::Relay;
use super::succession::Estate;
use super::worker_process::{Deaths, HUNG_LIMIT, Program, WorkerEvent, WorkerProcess};
use crate::cli::Cli;
use crate::control::{Attached, Listener, Order, Ready, Start};
use crate::platform::resident_bytes;
use crate::settings::Options;

/// A new worker beside an old one must take calls within this, or the old one stays.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// Between two workers that are replaced for their memory. What one has to have in memory, the next one may, too.
const MEMORY_PAUSE: Duration = Duration::from_secs(60);

/// The workers of a front.
pub(super) struct Workers {
    /// How many were started.
    pub(super) started: u64,
    /// A new binary's worker has taken over, and its front can go on in place.
    pub(super) has_new_binary: bool,
    /// The listening socket, which workers get for the time when the front is dead, and its private name.
    pub(super) listener: Option<UnixListener>,
    /// See [`Self::listener`].
    pub(super) private: PathBuf,
    /// osqueryd's flags, as of its registration.
    pub(super) flags: Options,
    program: Program,
    arguments: Vec<OsString>,
    attached: Option<Attached>,
    relay: Arc<Relay>,
    supply: Arc<Supply>,
    events: Sender<Event>,
    present: Option<WorkerProcess>,
    born: Instant,
    deaths: Deaths,
    /// When the next worker is due, after deaths.
    due: Option<Instant>,
    candidate: Option<Candidate>,
    /// Workers that finish their calls while another one serves already.
    retiring: Vec<WorkerProcess>,
    /// When one was last replaced for its memory.
    too_large: Option<Instant>,
}

/// Why a worker is brought in beside another one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Signal,
    NewBinary,
    Memory,
}

impl Cause {
    fn words(self) -> &'static str {
        match self {
            Self::Signal => "SIGHUP",
            Self::NewBinary => "another binary is there",
            Self::Memory => "the worker is too large",
        }
    }
}

/// A worker that is to take over from the present one.
struct Candidate {
    worker: WorkerProcess,
    deadline: Instant,
    is_new_binary: bool,
}

/// The one worker that is there, for a successor of this front.
pub(super) struct Alone {
    /// Its process id.
    pub(super) id: u32,
    /// The connection to it.
    pub(super) stream: UnixStream,
}

impl Workers {
    /// None is started yet.
    ///
    /// # Errors
    /// The system doesn't say where this program is.
    pub(super) fn new(
        cli: &Cli,
        flags: Options,
        relay: Arc<Relay>,
        supply: Arc<Supply>,
        events: Sender<Event>,
    ) -> anyhow::Result<Self> {
        let mut arguments = vec!["--socket".into(), cli.socket.clone().into()];
        if cli.verbose {
            arguments.push("--verbose".into());
        }
        arguments.extend(cli.own.to_arguments().into_iter().map(OsString::from));
        // What this version doesn't know may be of the next one.
        arguments.extend(cli.unknown.iter().cloned());
        Ok(Self {
            started: 0,
            has_new_binary: false,
            listener: None,
            private: PathBuf::new(),
            flags,
            program: Program::new()?,
            arguments,
            attached: None,
            relay,
            supply,
            events,
            present: None,
            born: Instant::now(),
            deaths: Deaths::default(),
            due: None,
            candidate: None,
            retiring: Vec::new(),
            too_large: None,
        })
    }

    /// The program that workers are started from.
    #[must_use]
    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    /// Goes on with the worker that the program before this one in the same process had.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn resume(&mut self, estate: &Estate, stream: Option<UnixStream>) -> anyhow::Result<()> {
        self.started = estate.workers_started;
        let pid = i32::try_from(estate.worker).ok().and_then(Pid::from_raw);
        let (Some(pid), Some(stream)) = (pid, stream) else {
            self.start_one();
            return Ok(());
        };
        let worker = WorkerProcess::adopt(self.started, pid, stream);
        self.watch(&worker)?;
        self.relay.use_worker(worker.number, Arc::clone(&worker.to));
        // What it had said to the other program may not have been heard.
        worker.to.tell(&Order::Lines {});
        self.present = Some(worker);
        self.born = Instant::now();
        Ok(())
    }

    /// Starts the worker that is due; when that fails, another attempt is due later.
    pub(super) fn start_one(&mut self) {
        match self.spawn(false) {
            Ok(worker) => {
                self.present = Some(worker);
                self.born = Instant::now();
                self.due = None;
            }
            Err(error) => {
                self.due = Some(Instant::now() + self.deaths.another(Duration::ZERO));
                log::log!(self.deaths.level(), "can't start a worker: {error:#}");
            }
        }
    }

    /// Whether osqueryd has registered the extension before.
    #[must_use]
    pub(super) fn has_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// osqueryd has registered the extension.
    pub(super) fn attached(&mut self, attached: Attached) {
        self.tell(&Order::Attached(attached.clone()));
        self.attached = Some(attached);
    }

    /// osqueryd's process is gone.
    pub(super) fn detached(&self) {
        self.tell(&Order::Detached {});
    }

    /// Tells the present worker, and the one that is to take over from it.
    fn tell(&self, order: &Order) {
        let present = self.present.iter().chain(self.candidate.as_ref().map(|candidate| &candidate.worker));
        present.for_each(|worker| worker.to.tell(order));
    }

    /// An operator wants a new worker: brings one in beside the present one.
    pub(super) fn renew(&mut self) {
        self.bring_in(Cause::Signal);
    }

    fn bring_in(&mut self, cause: Cause) {
        if self.candidate.is_some() {
            return;
        }
        log::info!("{}: starting a new worker", cause.words());
        let is_new_binary = cause == Cause::NewBinary;
        // One that is replaced for its memory must not begin with what may have filled it.
        match self.spawn(cause == Cause::Signal) {
            Ok(worker) => {
                let deadline = Instant::now() + READY_LIMIT;
                self.candidate = Some(Candidate { worker, deadline, is_new_binary });
            }
            Err(error) => log::error!("no new worker: {error:#}; the old one goes on"),
        }
    }

    /// With `refresh` it fetches the configuration by itself.
    fn spawn(&mut self, refresh: bool) -> anyhow::Result<WorkerProcess> {
        self.started += 1;
        let worker = WorkerProcess::start(self.started, &self.program, &self.arguments)?;
        worker.to.tell(&Order::Start(Start {
            options: self.flags.clone(),
            // One enrollment at the start of the extension, not one for each worker that replaces another.
            first: self.started == 1,
            refresh,
            number: self.started,
            parent: parent_id(),
            taken: self.supply.taken(),
            backlog_end: self.supply.backlog_end,
        }));
        if let Some(listener) = &self.listener {
            let order = Order::Listener(Listener { private: self.private.clone() });
            if let Err(error) = worker.to.send(&order, Some(listener)) {
                log::debug!("a worker can't be given the socket: {error}");
            }
        }
        if let Some(attached) = &self.attached {
            worker.to.tell(&Order::Attached(attached.clone()));
        }
        self.watch(&worker)?;
        Ok(worker)
    }

    fn watch(&self, worker: &WorkerProcess) -> anyhow::Result<()> {
        let (events, number) = (self.events.clone(), worker.number);
        let (supply, to) = (Arc::clone(&self.supply), Arc::clone(&worker.to));
        worker.watch(
            // The receiver is gone only when the process ends anyway.
            move |event| drop(events.send(Event::Worker(number, event))),
            move |report, descriptors| supply.serve(&to, report, descriptors),
        )
    }

    /// Acts on what a worker has said, or its end.
    pub(super) fn hear(&mut self, number: u64, event: WorkerEvent) {
        if let Some(index) = self.retiring.iter().position(|worker| worker.number == number) {
            if matches!(event, WorkerEvent::Ended) {
                let _ = self.retiring.swap_remove(index).end();
            }
        } else if self.candidate.as_ref().is_some_and(|candidate| candidate.worker.number == number) {
            match event {
                WorkerEvent::Ready(ready) => self.take_over(ready),
                WorkerEvent::Ended => self.give_candidate_up("it ended"),
                WorkerEvent::Pong(_) => {}
            }
        } else if let Some(worker) = self.present.as_mut().filter(|worker| worker.number == number) {
            match event {
                WorkerEvent::Ready(ready) => {
                    worker.ready = Some(ready);
                    self.relay.use_worker(number, Arc::clone(&worker.to));
                }
                WorkerEvent::Pong(ping) => worker.hear_pong(ping),
                WorkerEvent::Ended => self.bury(),
            }
        }
    }

    /// The present worker is dead, or will be in a moment: says so, and when the next one is due.
    fn bury(&mut self) {
        let Some(worker) = self.present.take() else { return };
        self.relay.forget_worker(worker.number);
        self.supply.forget_worker();
        let (id, how) = (worker.id(), worker.end());
        let pause = self.deaths.another(self.born.elapsed());
        log::log!(
            self.deaths.level(),
            "the worker {id} ended ({how}), {} in a row: starting another one after {} ms, calls wait for it",
            self.deaths.in_a_row(),
            pause.as_millis()
        );
        self.due = Some(Instant::now() + pause);
    }

    /// The candidate serves: calls go to it, and the old worker finishes what it has.
    fn take_over(&mut self, ready: Ready) {
        let Some(Candidate { mut worker, is_new_binary, .. }) = self.candidate.take() else { return };
        self.has_new_binary |= is_new_binary && ready.resumes;
        worker.ready = Some(ready);
        self.relay.use_worker(worker.number, Arc::clone(&worker.to));
        self.born = Instant::now();
        self.due = None;
        log::info!("the new worker {} has taken over", worker.id());
        if let Some(old) = self.present.replace(worker) {
            old.to.tell(&Order::HandOver {});
            self.retiring.push(old);
        }
    }

    fn give_candidate_up(&mut self, reason: &str) {
        if let Some(candidate) = self.candidate.take() {
            log::error!("the new worker is of no use ({reason}): the old one goes on");
            let _ = candidate.worker.end();
        }
    }

    /// Looks whether the worker hangs or has more than `max_memory` bytes in memory, and whether another binary is there. To
    /// be called every few seconds.
    pub(super) fn check(&mut self, max_memory: u64) {
        let has_calls = self.relay.in_flight() > 0;
        if self.present.as_mut().is_some_and(|worker| worker.is_hung(has_calls)) {
            log::error!("the worker has not answered for {} s: killing it", HUNG_LIMIT.as_secs());
            self.bury();
        }
        if self.program.is_replaced() {
            self.bring_in(Cause::NewBinary);
        }
        self.check_memory(max_memory);
    }

    fn check_memory(&mut self, most: u64) {
        let is_due = self.too_large.is_none_or(|at| at.elapsed() >= MEMORY_PAUSE);
        let Some(worker) = self.present.as_ref().filter(|_| is_due) else { return };
        if let Some(bytes) = resident_bytes(worker.id()).filter(|bytes| *bytes > most) {
            log::warn!("the worker has {} MiB in memory, more than worker_max_memory allows", bytes >> 20);
            self.too_large = Some(Instant::now());
            self.bring_in(Cause::Memory);
        }
    }

    /// Starts a worker that is due, and gives a candidate up that is not ready in time.
    pub(super) fn keep_deadlines(&mut self) {
        let now = Instant::now();
        if self.candidate.as_ref().is_some_and(|candidate| now >= candidate.deadline) {
            self.give_candidate_up("it was not ready in time");
        }
        if self.present.is_none() && self.due.is_some_and(|due| now >= due) {
            self.start_one();
        }
    }

    /// When [`Self::keep_deadlines`] has something to do.
    #[must_use]
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let candidate = self.candidate.as_ref().map(|candidate| candidate.deadline);
        self.due.filter(|_| self.present.is_none()).into_iter().chain(candidate).min()
    }

    /// The present worker, when it takes calls and no other one is there.
    #[must_use]
    pub(super) fn alone(&self) -> Option<Alone> {
        let worker = self.present.as_ref().filter(|worker| worker.ready.is_some())?;
        if !self.retiring.is_empty() || self.candidate.is_some() {
            return None;
        }
        Some(Alone { id: worker.id(), stream: worker.to.stream().ok()? })
    }

    /// osqueryd is gone: they finish their calls, send what can be sent in a moment, and end.
    pub(super) fn stop(&mut self) {
        self.due = None;
        if let Some(candidate) = self.candidate.take() {
            let _ = candidate.worker.end();
        }
        if let Some(worker) = self.present.take() {
            worker.to.tell(&Order::Stop {});
            self.retiring.push(worker);
        }
    }

    /// Whether workers are there that have been told to end.
    #[must_use]
    pub(super) fn are_left(&self) -> bool {
        !self.retiring.is_empty()
    }

    /// Ends those that did not end in time.
    pub(super) fn kill(&mut self) {
        for worker in self.retiring.drain(..) {
            log::warn!("the worker {} did not end in time", worker.id());
            let _ = worker.end();
        }
    }
}
