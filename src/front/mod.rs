//! The front: what osqueryd starts and watches. It registers, owns the listening socket, and takes result lines into the
//! journal; every other call it hands to a worker, a process of its own that may die at any moment. It contains nothing
//! that could fail for reasons from outside: no network, no TLS, no answer of a server.
//!
//! * A worker that died, or doesn't answer for some seconds, is replaced at once, and the calls that it was at are
//!   repeated with the next one ([`relay`]).
//! * SIGHUP, or another binary on disk, brings in a new worker beside the old one. Once a new binary's worker serves, its
//!   front takes this one's place in the same process ([`succession`]).
//! * While osqueryd's process lives, its lines are taken ([`attachment`]).

pub mod attachment;
mod events;
pub mod intake;
mod journals;
pub mod relay;
pub mod succession;
mod supervision;
mod worker_process;
mod workers;

use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::SIGXFSZ;

use self::attachment::{AttachmentState, Observation, Why};
use self::events::{Event, Events};
use self::intake::Intake;
use self::journals::Journals;
use self::relay::Relay;
use self::succession::{Estate, Inherited, Predecessor};
use self::workers::Workers;
use crate::cli::Cli;
use crate::control::{Attached, Order};
use crate::extension::hold::Hold;
use crate::extension::lifecycle::{Lifecycle, LifecycleError};
use crate::extension::manager::Manager;
use crate::extension::registry::Routes;
use crate::extension::server::Server;
use crate::extension::socket::Socket;
use crate::extension::sweep;
use crate::lock::Mutex;
use crate::logging;
use crate::platform::Process;
use crate::settings::{FrontSettings, Options, Settings, own};

/// Workers get this long to end before they are killed: under 3 s in all, 2 s after osqueryd.
const END_LIMIT: Duration = Duration::from_millis(1900);

/// Calls in flight at the end get this long.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// Between two looks at an osqueryd that is ending.
const SHORT_LOOK: Duration = Duration::from_millis(10);

/// Between two looks for the next one.
const LOOK_FOR_MANAGER: Duration = Duration::from_millis(50);

/// The shortest time between two checks of the registration.
const CHECK_PAUSE: Duration = Duration::from_millis(50);

/// How long osqueryd may take to tell its flags while calls are to be answered.
const FLAGS_LIMIT: Duration = Duration::from_secs(1);

/// Between two attempts to go on with a new binary.
const RESUME_PAUSE: Duration = Duration::from_secs(1);

/// Calls in flight may take this long before such an attempt is given up.
const RESUME_LIMIT: Duration = Duration::from_secs(1);

/// Runs until osqueryd is gone or the end is asked for. `routes` are the plugins of this extension.
///
/// # Errors
/// The extension can't be registered, or its socket can't be made.
pub fn run(cli: Cli, routes: Routes) -> anyhow::Result<()> {
    let inherited = cli.resume.then(succession::resume).transpose().context("nothing to resume")?;
    let (sender, receiver) = mpsc::channel();
    let events = Events::new(receiver);
    let hold = Arc::<Hold>::default();
    let ending = Arc::clone(&hold);
    let signals = events::watch_signals(sender.clone(), Arc::clone(&hold))?;
    // A limit on the size of files must be an error like any other, and not the end.
    signal_hook::flag::register(SIGXFSZ, Arc::<AtomicBool>::default()).context("can't ignore a signal")?;
    let hung_up = Mutex::new(sender.clone());
    let manager = Arc::new(Manager::new(
        cli.socket.clone(),
        // The receiver is gone only when the process ends anyway.
        Arc::new(move || {
            ending.begin();
            drop(hung_up.lock().send(Event::HungUp));
        }),
    ));
    let ended = Front::start(cli, Lifecycle { manager, routes }, events, sender, inherited, hold);
    let ended = ended.and_then(|front| front.map_or(Ok(()), Front::run));
    signals.close();
    ended
}

struct Front {
    lifecycle: Lifecycle,
    cli: Cli,
    settings: FrontSettings,
    events: Events,
    journals: Journals,
    socket: Arc<Socket>,
    server: Server<Intake>,
    relay: Arc<Relay>,
    workers: Workers,
    attachment: AttachmentState,
    uuid: i64,
    osqueryd: Option<Arc<Process>>,
    parent: u32,
    asked_to_end: bool,
    /// The manager connection broke since the last look.
    hung_up: bool,
    last_check: Instant,
    next_check: Instant,
    /// When a new binary's front may take this one's place.
    resume_at: Option<Instant>,
    /// When the calls that an ending osqueryd waits for are broken off.
    break_off_at: Option<Instant>,
}

impl Front {
    /// Waits for osqueryd's manager and is registered with it; `None` when the end was asked for before that.
    fn start(
        cli: Cli,
        lifecycle: Lifecycle,
        mut events: Events,
        sender: Sender<Event>,
        inherited: Option<Inherited>,
        hold: Arc<Hold>,
    ) -> anyhow::Result<Option<Self>> {
        if !lifecycle.wait_for_manager(cli.timeout, |pause| events.has_end_within(pause))? {
            return Ok(None);
        }
        let flags = lifecycle.manager.options().map_err(LifecycleError::Refused)?;
        let settings = settings_of(&cli, &flags);
        let resumed = inherited.is_some();
        let look = || succession::predecessor(&cli.socket, &lifecycle, &mut events);
        let inherited = match inherited.map_or_else(look, |left| Ok(Predecessor::Left(left)))? {
            Predecessor::Left(left) => Some(left),
            Predecessor::None => None,
            Predecessor::EndFirst => return Ok(None),
        };
        let journals = Journals::new(&settings, cli.verbosity())?;
        let relay = Arc::new(Relay::default());
        let intake = intake(&journals, &relay, sender.clone(), Arc::clone(&hold));
        let (estate, socket, worker) = match inherited {
            Some(Inherited { estate, listener, worker }) => {
                let socket = Socket::adopt(&cli.socket, estate.private.clone(), listener, hold);
                (Some(estate), socket, worker)
            }
            None => (None, Socket::bind(&cli.socket, hold).with_context(|| listening(&cli))?, None),
        };
        let socket = Arc::new(socket);
        let server = Server::start(&socket, intake).with_context(|| listening(&cli))?;
        let now = Instant::now();
        let workers = Workers::new(&cli, flags, Arc::clone(&relay), journals.supply(), sender)?;
        let mut front = Self {
            lifecycle,
            settings,
            events,
            journals,
            socket,
            server,
            relay,
            workers,
            attachment: AttachmentState::Attached,
            uuid: 0,
            osqueryd: None,
            parent: parent_id(),
            asked_to_end: false,
            hung_up: false,
            last_check: now,
            next_check: now + cli.interval,
            resume_at: None,
            break_off_at: None,
            cli,
        };
        let estate = estate.unwrap_or_default();
        front.begin(&estate, resumed, worker)?;
        Ok(front.attach(estate.uuid)?.then_some(front))
    }

    /// Goes on with the worker that was left, or starts one.
    fn begin(&mut self, estate: &Estate, resumed: bool, worker: Option<UnixStream>) -> anyhow::Result<()> {
        if let Err(error) = sweep::watch(&self.socket) {
            log::warn!("the socket's name can't be watched, and is put back a moment later: {error}");
        }
        self.workers.listener = Some(self.socket.listener()?);
        self.workers.private = self.socket.private().to_owned();
        if resumed {
            self.workers.resume(estate, worker)?;
        } else {
            // Before the registration: it gets ready while osqueryd answers.
            self.workers.start_one();
        }
        Ok(())
    }

    /// Has osqueryd call us: goes on with an earlier registration where osqueryd knows it, else registers. False when
    /// the end was asked for before that.
    fn attach(&mut self, inherited: i64) -> anyhow::Result<bool> {
        self.osqueryd = self.lifecycle.manager.peer().map(Arc::new);
        let uuid = if inherited != 0 && self.lifecycle.is_known(inherited) {
            log::info!("going on as {inherited}, as which osqueryd has registered this extension");
            inherited
        } else {
            match self.register()? {
                Some(uuid) => uuid,
                None => return Ok(false),
            }
        };
        self.server.conversing().uuid.store(uuid, Ordering::Relaxed);
        self.socket.publish(uuid, self.osqueryd.clone()).context("can't listen on the extension's socket")?;
        self.uuid = uuid;
        self.attachment = AttachmentState::Attached;
        self.relay.take_time();
        self.hung_up = false;
        self.next_check = Instant::now() + self.cli.interval;
        let osqueryd = self.osqueryd.as_ref().map_or(0, |process| process.id());
        if self.workers.has_attached() {
            // Another osqueryd, or another registration: the flags of the first one were read a moment ago.
            self.reload();
        }
        self.workers.attached(Attached { uuid, osqueryd });
        Ok(true)
    }

    /// Reads osqueryd's flags and our flag file again. The directory of the journals stays.
    fn reload(&mut self) {
        if let Ok(flags) = self.lifecycle.manager.options_within(FLAGS_LIMIT) {
            self.settings = settings_of(&self.cli, &flags);
            self.journals.go_by(&self.settings);
            self.workers.flags = flags;
        }
    }

    /// Registers: the uuid; `None` when the end was asked for meanwhile. An entry of our name in osqueryd can be the one of
    /// a predecessor whose worker stands in for it, which has only now noticed its end.
    fn register(&mut self) -> anyhow::Result<Option<i64>> {
        let events = &mut self.events;
        let uuid = self.lifecycle.register(|pause| events.has_end_within(pause))?;
        if let Some(uuid) = uuid {
            log::info!("registered with osqueryd as {uuid}");
        }
        Ok(uuid)
    }

    fn run(mut self) -> anyhow::Result<()> {
        loop {
            let deadline = self.next_look();
            match self.events.next(deadline) {
                Ok(Event::End) => self.asked_to_end = true,
                Ok(Event::HungUp) => {
                    self.hung_up = true;
                    // Not at once again and again, should osqueryd accept connections only to close them.
                    self.next_check = self.next_check.min(self.last_check + CHECK_PAUSE);
                }
                Ok(Event::Renew) => {
                    self.reload();
                    self.workers.renew();
                }
                Ok(Event::Worker(number, event)) => self.workers.hear(number, event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.workers.keep_deadlines();
            if let AttachmentState::Over(why) = self.look() {
                self.end(why);
                return Ok(());
            }
            if let AttachmentState::Away(_) = self.attachment {
                self.come_back()?;
            }
            self.go_on_with_new_binary();
        }
    }

    fn next_look(&self) -> Instant {
        let look = match self.attachment {
            AttachmentState::Attached => self.next_check,
            AttachmentState::Away(_) => Instant::now() + LOOK_FOR_MANAGER,
            _ => Instant::now() + SHORT_LOOK,
        };
        self.workers.supervision.next_deadline().into_iter().chain(self.resume_at).fold(look, Instant::min)
    }

    /// Looks at osqueryd, as far as that is due, and at what follows.
    fn look(&mut self) -> AttachmentState {
        let is_attached = matches!(self.attachment, AttachmentState::Attached | AttachmentState::Asked(_));
        let manager_is_gone = match is_attached && Instant::now() >= self.next_check {
            true => self.check(),
            false => !is_attached,
        };
        let seen = Observation {
            now: Instant::now(),
            asked_to_end: self.asked_to_end,
            manager_is_gone,
            osqueryd_lives: self.osqueryd.as_ref().is_some_and(|process| process.is_alive()),
            parent_lives: parent_id() == self.parent,
            return_limit: self.settings.return_timeout,
        };
        let before = self.attachment;
        self.attachment = before.next(&seen);
        if self.attachment != before {
            self.act_on_change();
        }
        if self.attachment == AttachmentState::Ending {
            self.socket.put_back_missing();
            if self.break_off_at.take_if(|at| seen.now >= *at).is_some() {
                self.relay.break_off();
            }
        }
        self.attachment
    }

    /// Checks the registration and the worker: whether osqueryd's manager is gone. Registers again where osqueryd has
    /// forgotten us.
    fn check(&mut self) -> bool {
        self.last_check = Instant::now();
        self.next_check = self.last_check + self.cli.interval;
        self.server.end_idle();
        self.workers.check(self.settings.worker_max_memory);
        if self.workers.supervision.has_new_binary {
            self.resume_at.get_or_insert(Instant::now());
        }
        if std::mem::take(&mut self.hung_up) {
            // The connection whose end is noticed at once is needed again.
            if self.lifecycle.manager.connect().is_err() {
                return true;
            }
            self.next_check = self.last_check + 2 * CHECK_PAUSE;
        }
        if self.asked_to_end || self.lifecycle.is_known(self.uuid) {
            return false;
        }
        if self.lifecycle.manager.connect().is_err() {
            return true;
        }
        log::warn!("osqueryd has dropped this extension, whose ping had failed: registering again");
        if let Err(error) = self.attach(0) {
            log::error!("can't be registered again: {error:#}");
        }
        false
    }

    fn act_on_change(&mut self) {
        match self.attachment {
            AttachmentState::Ending => {
                log::info!("osqueryd is ending: its lines are taken until its process is gone");
                self.relay.hurry();
                self.break_off_at = Some(Instant::now() + relay::LAST_CALL_LIMIT);
            }
            AttachmentState::Away(_) => {
                self.socket.hide();
                self.workers.detached();
                self.relay.break_off();
                log::info!("osqueryd's process is gone: waiting for the next one");
            }
            AttachmentState::Asked(_) => log::info!("asked to end: looking whether osqueryd ends, too"),
            AttachmentState::Over(Why::WithOsqueryd) => log::info!("osqueryd's process is gone: ending"),
            AttachmentState::Over(Why::Alone) => log::info!("osqueryd goes on: ending alone"),
            AttachmentState::Over(Why::NoReturn) => {
                let limit = self.settings.return_timeout.as_secs();
                log::info!("osqueryd did not come back within {limit} s: ending");
            }
            AttachmentState::Attached => {}
        }
    }

    /// Registers with the next osqueryd when it is there.
    fn come_back(&mut self) -> anyhow::Result<()> {
        if self.lifecycle.manager.connect().is_err() {
            return Ok(());
        }
        match self.attach(0) {
            // It is gone again.
            Err(error) if error.downcast_ref().is_some_and(LifecycleError::is_gone_again) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Lets a new binary's front take this one's place, once its worker serves and no call is in flight.
    fn go_on_with_new_binary(&mut self) {
        let is_due = self.resume_at.is_some_and(|at| Instant::now() >= at);
        if !is_due || self.attachment != AttachmentState::Attached {
            return;
        }
        self.resume_at = Some(Instant::now() + RESUME_PAUSE);
        let Some(worker) = self.workers.alone() else { return };
        if self.relay.in_flight() > 0 || self.journals.waits_for_disk() {
            return;
        }
        if self.server.stop(RESUME_LIMIT) {
            let error = self.exec(&worker);
            log::error!("the new binary can't be run: {error:#}; the present one goes on");
            self.resume_at = None;
            self.workers.supervision.has_new_binary = false;
        }
        if let Err(error) = self.server.resume() {
            log::error!("can't take connections again: {error}");
        }
    }

    fn exec(&self, worker: &workers::Alone) -> anyhow::Error {
        let estate = Estate {
            uuid: self.uuid,
            private: self.socket.private().to_owned(),
            osqueryd: self.osqueryd.as_ref().map_or(0, |process| process.id()),
            worker: worker.id,
            workers_started: self.workers.supervision.started,
        };
        let listener = match self.socket.listener() {
            Ok(listener) => listener,
            Err(error) => return error.into(),
        };
        // It may be another one than that which was judged when it came.
        let judged = match self.workers.program().judged() {
            Ok(judged) => judged,
            Err(reason) => return anyhow::anyhow!(reason),
        };
        log::info!("going on with the new binary");
        self.journals.close();
        succession::exec(&judged.path, &estate, &listener, &worker.stream).into()
    }

    /// Takes what has been connected by now, has the worker send what can be sent in a moment, and ends it.
    fn end(mut self, why: Why) {
        let deadline = Instant::now() + END_LIMIT;
        if why == Why::Alone {
            self.lifecycle.manager.deregister(self.uuid);
        }
        self.workers.stop();
        self.server.stop(LAST_CALLS);
        self.server.drain();
        self.socket.remove();
        self.journals.close();
        while self.workers.supervision.are_left() && Instant::now() < deadline {
            match self.events.next(deadline) {
                Ok(Event::Worker(number, event)) => self.workers.hear(number, event),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.workers.kill();
    }
}

fn intake(journals: &Journals, relay: &Arc<Relay>, events: Sender<Event>, hold: Arc<Hold>) -> Intake {
    let (pending, events) = (Arc::clone(relay), Mutex::new(events));
    Intake {
        uuid: Default::default(),
        hold,
        results: Arc::clone(&journals.results),
        pending: Arc::clone(&journals.pending),
        elsewhere: Arc::clone(relay) as Arc<dyn relay::Elsewhere>,
        on_pending: Box::new(move || pending.tell(&Order::Pending {})),
        // osqueryd calls it whenever a worker of its own ends, and then finishes what it is at.
        on_shutdown: Box::new(move || drop(events.lock().send(Event::HungUp))),
    }
}

fn listening(cli: &Cli) -> String {
    format!("can't listen on a socket beside {}", cli.socket.display())
}

/// What the front goes by, of osqueryd's flags and ours. The log is as they say from then on.
fn settings_of(cli: &Cli, flags: &Options) -> FrontSettings {
    let (own, _) = own::read(&cli.own);
    let (settings, _) = Settings::new(flags, &own);
    logging::configure(&settings.log, cli.verbosity());
    FrontSettings::from(&settings)
}
