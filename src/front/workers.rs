//! The worker behind the front: started, watched and replaced. [`supervision`](super::supervision) decides, and here is what
//! does it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::journals::Supply;
use super::relay::Relay;
use super::succession::Estate;
use super::supervision::{Action, Cause, Event, HUNG_LIMIT, Supervision};
use super::worker_process::{Program, WorkerEvent, WorkerProcess};
use crate::cli::Cli;
use crate::control::{Attached, Listener, Order, Start};
use crate::platform::{is_stopped, resident_bytes};
use crate::settings::Options;

/// The workers of a front.
pub(super) struct Workers {
    /// Which there are, and what follows.
    pub(super) supervision: Supervision,
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
    events: Sender<super::Event>,
    /// Those that have not been ended, by number.
    processes: BTreeMap<u64, WorkerProcess>,
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
        events: Sender<super::Event>,
    ) -> anyhow::Result<Self> {
        let mut arguments = vec!["--socket".into(), cli.socket.clone().into()];
        if cli.verbose {
            arguments.push("--verbose".into());
        }
        arguments.extend(cli.own.to_arguments().into_iter().map(OsString::from));
        // What this version doesn't know may be of the next one.
        arguments.extend(cli.unknown.iter().cloned());
        Ok(Self {
            supervision: Supervision::default(),
            listener: None,
            private: PathBuf::new(),
            flags,
            program: Program::new()?,
            arguments,
            attached: None,
            relay,
            supply,
            events,
            processes: BTreeMap::new(),
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
        self.supervision.started = estate.workers_started;
        let pid = i32::try_from(estate.worker).ok().and_then(Pid::from_raw);
        let (Some(pid), Some(stream)) = (pid, stream) else {
            self.start_one();
            return Ok(());
        };
        let number = estate.workers_started;
        let worker = WorkerProcess::adopt(number, pid, stream);
        self.watch(&worker)?;
        self.processes.insert(number, worker);
        self.on(Event::Adopted(number));
        // What it had said to the other program may not have been heard.
        self.tell([number], &Order::Lines {});
        Ok(())
    }

    /// Starts the first worker; when that fails, another attempt is due later.
    pub(super) fn start_one(&mut self) {
        self.on(Event::Needed);
    }

    /// Whether osqueryd has registered the extension before.
    #[must_use]
    pub(super) fn has_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// osqueryd has registered the extension.
    pub(super) fn attached(&mut self, attached: Attached) {
        self.tell_present(&Order::Attached(attached.clone()));
        self.attached = Some(attached);
    }

    /// osqueryd's process is gone.
    pub(super) fn detached(&self) {
        self.tell_present(&Order::Detached {});
    }

    /// Tells the present worker, and the one that is to take over from it.
    fn tell_present(&self, order: &Order) {
        self.tell(self.supervision.present().into_iter().chain(self.supervision.candidate()), order);
    }

    fn tell(&self, numbers: impl IntoIterator<Item = u64>, order: &Order) {
        let workers = numbers.into_iter().filter_map(|number| self.processes.get(&number));
        workers.for_each(|worker| worker.to.tell(order));
    }

    /// An operator wants a new worker: brings one in beside the present one.
    pub(super) fn renew(&mut self) {
        self.on(Event::Renew);
    }

    fn on(&mut self, event: Event) {
        for action in self.supervision.on(event, Instant::now()) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Start { number, beside } => self.start(number, beside),
            Action::Use(number) => self.use_worker(number),
            Action::TakeOver { number, from } => {
                self.use_worker(number);
                log::info!("the new worker {} has taken over", self.id(number));
                self.tell(from, &Order::HandOver {});
            }
            Action::Ping { number, ping } => self.tell([number], &Order::Ping { number: ping }),
            Action::SayHung => log::error!("the worker has not answered for {} s: killing it", HUNG_LIMIT.as_secs()),
            Action::SayTooLarge(bytes) => {
                log::warn!("the worker has {} MiB in memory, more than worker_max_memory allows", bytes >> 20);
            }
            Action::Bury { number, pause } => self.bury(number, pause),
            Action::GiveUp { number, reason } => {
                log::error!("the new worker is of no use ({reason}): the old one goes on");
                self.end(number);
            }
            Action::End(number) => {
                self.end(number);
            }
            Action::Stop(number) => self.tell([number], &Order::Stop {}),
            Action::Kill(number) => {
                log::warn!("the worker {} did not end in time", self.id(number));
                self.end(number);
            }
        }
    }

    /// The process id of a worker that is there.
    fn id(&self, number: u64) -> u32 {
        self.processes.get(&number).map_or(0, WorkerProcess::id)
    }

    fn use_worker(&self, number: u64) {
        if let Some(worker) = self.processes.get(&number) {
            self.relay.use_worker(number, Arc::clone(&worker.to));
        }
    }

    fn start(&mut self, number: u64, beside: Option<Cause>) {
        if let Some(cause) = beside {
            log::info!("{}: starting a new worker", cause.words());
        }
        // One that is replaced for its memory must not begin with what may have filled it.
        match self.spawn(number, beside == Some(Cause::Signal)) {
            Ok(worker) => {
                self.processes.insert(number, worker);
                self.on(Event::Started { number, beside });
            }
            Err(error) if beside.is_some() => log::error!("no new worker: {error:#}; the old one goes on"),
            Err(error) => {
                self.on(Event::NotStarted);
                log::log!(self.supervision.deaths().level(), "can't start a worker: {error:#}");
            }
        }
    }

    /// With `refresh` it fetches the configuration by itself.
    fn spawn(&self, number: u64, refresh: bool) -> anyhow::Result<WorkerProcess> {
        let worker = WorkerProcess::start(number, &self.program, &self.arguments)?;
        worker.to.tell(&Order::Start(Start {
            options: self.flags.clone(),
            // One enrollment at the start of the extension, not one for each worker that replaces another.
            first: number == 1,
            refresh,
            number,
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
            move |event| drop(events.send(super::Event::Worker(number, event))),
            move |report, descriptors| supply.serve(&to, report, descriptors),
        )
    }

    /// Ends a worker's process: how it ended.
    fn end(&mut self, number: u64) -> String {
        self.processes.remove(&number).map(WorkerProcess::end).unwrap_or_default()
    }

    /// Has calls wait, ends the process, and says when the next one is due.
    fn bury(&mut self, number: u64, pause: Duration) {
        self.relay.forget_worker(number);
        self.supply.forget_worker();
        let (id, how, deaths) = (self.id(number), self.end(number), self.supervision.deaths());
        log::log!(
            deaths.level(),
            "the worker {id} ended ({how}), {} in a row: starting another one after {} ms, calls wait for it",
            deaths.in_a_row(),
            pause.as_millis()
        );
    }

    /// Acts on what a worker has said, or its end.
    pub(super) fn hear(&mut self, number: u64, event: WorkerEvent) {
        self.on(Event::Heard(number, event));
    }

    /// Looks whether the worker hangs or has more than `max_memory` bytes in memory, and whether another binary is there. To
    /// be called every few seconds.
    pub(super) fn check(&mut self, max_memory: u64) {
        if let Some(number) = self.supervision.present() {
            let is_needed = self.relay.in_flight() > 0 || is_stopped(self.id(number));
            self.on(Event::Looked { is_needed });
        }
        // While one is brought in, it is not asked: the answer is given once for each binary, and would be for nothing.
        if self.supervision.candidate().is_none() && self.program.is_replaced() {
            self.on(Event::NewBinary);
        }
        // Asked anew: one that hung is gone by now.
        if let Some(bytes) = self.supervision.present().and_then(|number| resident_bytes(self.id(number))) {
            self.on(Event::Memory { bytes, most: max_memory });
        }
    }

    /// Starts a worker that is due, and gives a candidate up that is not ready in time.
    pub(super) fn keep_deadlines(&mut self) {
        self.on(Event::Time);
    }

    /// The present worker, when it takes calls and no other one is there.
    #[must_use]
    pub(super) fn alone(&self) -> Option<Alone> {
        let worker = self.processes.get(&self.supervision.alone()?)?;
        Some(Alone { id: worker.id(), stream: worker.to.stream().ok()? })
    }

    /// osqueryd is gone: they finish their calls, send what can be sent in a moment, and end.
    pub(super) fn stop(&mut self) {
        self.on(Event::Stop);
    }

    /// Ends those that did not end in time.
    pub(super) fn kill(&mut self) {
        self.on(Event::TimeOver);
    }
}
