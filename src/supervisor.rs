//! The supervisor: what osqueryd starts and watches. It registers, owns the listening socket, holds the manager
//! connection, and keeps a worker behind the socket; it does nothing else that could fail, since an extension that
//! dies under a call ends osqueryd.
//!
//! * A worker that died, or doesn't answer for [`HUNG_LIMIT`], is replaced at once; the next one serves the same
//!   listening socket, in whose backlog the connections wait meanwhile.
//! * SIGHUP, or another binary on disk, brings in a new worker beside the old one. It gets a socket of its own,
//!   which takes the name over when the worker is ready; the old one then finishes what it has and ends.
//! * When osqueryd's own worker is replaced, all of this happens under a new registration.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use log::Level;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::backoff::Backoff;
use crate::cli::{Cli, DEFAULT_FLAGFILE, FLAGFILE_VARIABLE, OwnFlags};
use crate::control::{self, Order, Report};
use crate::extension::lifecycle::{Lifecycle, LifecycleError};
use crate::extension::manager::Manager;
use crate::extension::ping::Ping;
use crate::extension::registry::routes;
use crate::extension::socket::Socket;
use crate::logging;
use crate::plugins::tables::tables;
use crate::settings::Options;
use crate::worker::settings_of;

/// A worker that doesn't answer a ping for so long is replaced. It is pinged and looked after at the checks of the
/// registration: with 3 s between two of them it is killed 6 to 9 s after it hung, before the 10 s after which osqueryd
/// takes the extension for dead.
pub const HUNG_LIMIT: Duration = Duration::from_secs(5);

/// A new worker beside an old one must serve within this, or the old one stays.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// Workers get so long to end before they are killed: under 3 s in all.
const END_LIMIT: Duration = Duration::from_millis(2400);

/// A worker that has lived so long was not to blame for its predecessors' deaths.
const LONG_LIFE: Duration = Duration::from_secs(5);

/// The pause before another worker is started when one dies after the other: n² times the first number, at most the
/// second one, since osqueryd's calls wait.
const PAUSE_STEP: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A worker killed in the middle of osqueryd's own ping is dropped by osqueryd: the registration is checked again so
/// soon after a worker's death.
const CHECK_AFTER_DEATH: Duration = Duration::from_millis(100);

/// The shortest time between two checks of the registration.
const CHECK_PAUSE: Duration = Duration::from_millis(50);

/// glibc's allocator keeps a heap for nearly each thread, and what was once needed for large buffers. A worker has many
/// threads and few of them work at a time: two heaps, and large buffers given back at once, halve its memory under load.
/// Other C libraries don't look at these.
const ALLOCATOR: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "2"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// What the supervisor waits for.
enum Event {
    /// The manager connection broke: osqueryd may be gone.
    HungUp,
    /// SIGTERM or SIGINT.
    Signal,
    /// SIGHUP: a new worker, please.
    Renew,
    /// A worker, by its number, has something to say.
    Worker(u64, News),
}

/// What a worker's watching thread sees.
enum News {
    Ready,
    AskedToEnd,
    Ended,
}

/// Runs until osqueryd is gone or the end is asked for.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let (sender, events) = mpsc::channel();
    let signals = watch_signals(sender.clone())?;
    let hung_up = Mutex::new(sender.clone());
    let manager = Arc::new(Manager::new(
        cli.socket.clone(),
        Arc::new(move || {
            // The receiver is gone only when the process ends anyway.
            let _ = hung_up.lock().unwrap_or_else(PoisonError::into_inner).send(Event::HungUp);
        }),
    ));
    let program = Program::new()?;
    let own = own_flags(&cli, &Options::new());
    let mut supervisor = Supervisor {
        lifecycle: Lifecycle { manager, routes: routes(tables()) },
        interval: cli.interval.max(Duration::from_millis(200)),
        cli,
        own,
        program,
        events,
        put_off: VecDeque::new(),
        sender,
        workers_started: 0,
        retiring: Vec::new(),
    };
    let ended = supervisor.run();
    signals.close();
    ended
}

struct Supervisor {
    lifecycle: Lifecycle,
    interval: Duration,
    cli: Cli,
    own: OwnFlags,
    program: Program,
    events: Receiver<Event>,
    /// Events that came while only the end was waited for.
    put_off: VecDeque<Event>,
    sender: Sender<Event>,
    workers_started: u64,
    /// Workers that finish their calls while others serve already.
    retiring: Vec<WorkerProcess>,
}

/// A registration, its socket, and the worker behind it.
struct Attachment {
    uuid: i64,
    options: Options,
    socket: Socket,
    worker: Option<WorkerProcess>,
    deaths: Backoff,
    born: Instant,
    /// When the next worker is due, after deaths.
    due: Option<Instant>,
    /// A worker that is to take over, with the socket that it has until then.
    candidate: Option<(Socket, WorkerProcess, Instant)>,
}

/// How a wait for events ended.
enum Outcome {
    End,
    Reattach,
}

impl Supervisor {
    fn run(&mut self) -> anyhow::Result<()> {
        let parent = parent_id();
        let lifecycle = self.lifecycle.clone();
        if !lifecycle.wait_for_manager(self.cli.timeout, |pause| self.stopped_within(pause))? {
            return Ok(());
        }
        let Some(mut attachment) = self.attach()? else { return Ok(()) };
        loop {
            match self.supervise(&mut attachment) {
                Outcome::End => {
                    self.end(attachment);
                    return Ok(());
                }
                Outcome::Reattach => {
                    log::info!("osqueryd is gone, or has forgotten this extension: registering again when it is there");
                    let settings = settings_of(&attachment.options, &self.own);
                    self.retire(attachment);
                    match self.reattach(parent, settings.return_timeout)? {
                        Some(next) => attachment = next,
                        None => {
                            self.end_retiring(Instant::now() + END_LIMIT);
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Keeps a worker behind the socket until the registration no longer holds, or the end is asked for.
    fn supervise(&mut self, attachment: &mut Attachment) -> Outcome {
        let mut last_check = Instant::now();
        let mut next_check = Instant::now() + self.interval;
        let mut hung_up = false;
        loop {
            let deadline = attachment.next_deadline().map_or(next_check, |at| at.min(next_check));
            match self.next_event(deadline) {
                Ok(Event::Signal) => {
                    self.lifecycle.manager.deregister(attachment.uuid);
                    return Outcome::End;
                }
                Ok(Event::Renew) => self.renew(attachment, "SIGHUP"),
                Ok(Event::Worker(number, news)) => {
                    if self.hear(attachment, number, &news) {
                        return Outcome::End;
                    }
                    if attachment.worker.is_none() {
                        next_check = next_check.min(Instant::now() + CHECK_AFTER_DEATH);
                    }
                }
                // Not at once again and again, should osqueryd accept connections only to close them.
                Ok(Event::HungUp) => {
                    hung_up = true;
                    next_check = next_check.min(last_check + CHECK_PAUSE);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Outcome::End,
            }
            self.keep_deadlines(attachment);
            if Instant::now() >= next_check {
                last_check = Instant::now();
                next_check = last_check + self.interval;
                if std::mem::take(&mut hung_up) {
                    // The connection whose end is noticed at once is needed again. This may still be the one who is
                    // ending, which says nothing any more: another look follows soon.
                    if self.lifecycle.manager.connect().is_err() {
                        return Outcome::Reattach;
                    }
                    next_check = last_check + CHECK_AFTER_DEATH;
                }
                if !self.lifecycle.is_known(attachment.uuid) {
                    return Outcome::Reattach;
                }
                if let Some(worker) = attachment.worker.take_if(|worker| worker.is_hung(&attachment.socket)) {
                    log::error!("the worker {} has not answered for {HUNG_LIMIT:?}: killing it", worker.child.id());
                    attachment.bury(worker);
                    next_check = next_check.min(Instant::now() + CHECK_AFTER_DEATH);
                }
                if self.program.is_replaced() {
                    self.renew(attachment, "another binary is there");
                }
            }
        }
    }

    /// Acts on what a worker's thread saw: whether osqueryd asks for the end.
    fn hear(&mut self, attachment: &mut Attachment, number: u64, news: &News) -> bool {
        if let Some(index) = self.retiring.iter().position(|worker| worker.number == number) {
            if matches!(news, News::Ended) {
                self.retiring.swap_remove(index).reap();
            }
            return false;
        }
        if attachment.candidate.as_ref().is_some_and(|(_, worker, _)| worker.number == number) {
            match news {
                News::Ready => self.take_over(attachment),
                News::Ended => attachment.give_candidate_up("it ended"),
                News::AskedToEnd => {}
            }
            return false;
        }
        let Some(worker) = attachment.worker.take_if(|worker| worker.number == number) else { return false };
        match news {
            News::AskedToEnd => {
                log::info!("osqueryd asks for the end");
                attachment.worker = Some(worker);
                return true;
            }
            News::Ready => attachment.worker = Some(worker),
            News::Ended => attachment.bury(worker),
        }
        false
    }

    /// Starts a worker that is due, and gives a candidate up that is not ready in time.
    fn keep_deadlines(&mut self, attachment: &mut Attachment) {
        let now = Instant::now();
        if attachment.candidate.as_ref().is_some_and(|(_, _, deadline)| now >= *deadline) {
            attachment.give_candidate_up("it was not ready in time");
        }
        if attachment.worker.is_none() && attachment.due.is_none_or(|due| now >= due) {
            match self.spawn(&attachment.socket, &attachment.options, Some(attachment.uuid)) {
                Ok(worker) => {
                    attachment.worker = Some(worker);
                    attachment.born = now;
                    attachment.due = None;
                }
                Err(error) => {
                    attachment.due = Some(now + attachment.deaths.failed());
                    let failures = attachment.deaths.failures();
                    log::log!(
                        loudness(failures),
                        "can't start a worker ({failures} times in a row without one): {error:#}"
                    );
                }
            }
        }
    }

    /// Brings in a new worker beside the old one.
    fn renew(&mut self, attachment: &mut Attachment, reason: &str) {
        if attachment.candidate.is_some() {
            return;
        }
        log::info!("{reason}: starting a new worker");
        self.own = own_flags(&self.cli, &attachment.options);
        let started = Socket::bind(&self.cli.socket).context("can't listen").and_then(|socket| {
            let worker = self.spawn(&socket, &attachment.options, Some(attachment.uuid))?;
            Ok((socket, worker, Instant::now() + READY_LIMIT))
        });
        match started {
            Ok(candidate) => attachment.candidate = Some(candidate),
            Err(error) => log::error!("no new worker: {error:#}; the old one goes on"),
        }
    }

    /// The candidate serves: it takes the name over, and the old worker finishes what it has.
    fn take_over(&mut self, attachment: &mut Attachment) {
        let Some((mut socket, worker, _)) = attachment.candidate.take() else { return };
        if let Err(error) = socket.publish(attachment.uuid) {
            log::error!("the new worker can't take over: {error}; the old one goes on");
            return worker.kill();
        }
        attachment.socket.forget_name();
        attachment.socket = socket;
        attachment.born = Instant::now();
        log::info!("the new worker {} has taken over", worker.child.id());
        if let Some(old) = attachment.worker.replace(worker) {
            self.retire_worker(old);
        }
    }

    /// Registers, with a worker behind the socket; `None` when the end was asked for meanwhile.
    fn attach(&mut self) -> anyhow::Result<Option<Attachment>> {
        let options = self.lifecycle.manager.options().map_err(LifecycleError::Refused)?;
        logging::configure(&settings_of(&options, &self.own).log, self.cli.verbosity());
        let mut socket = Socket::bind(&self.cli.socket)
            .with_context(|| format!("can't listen on a socket beside {}", self.cli.socket.display()))?;
        // Before the registration: it gets ready while osqueryd answers.
        let worker = self.spawn(&socket, &options, None)?;
        let lifecycle = self.lifecycle.clone();
        let registered = lifecycle.register(|pause| self.stopped_within(pause));
        let uuid = match registered {
            Ok(Some(uuid)) => uuid,
            other => {
                worker.kill();
                return Ok(other.map(|_| None)?);
            }
        };
        socket.publish(uuid).context("can't listen on the extension's socket")?;
        worker.tell(&Order::Attached(uuid));
        log::info!("registered with osqueryd as {uuid}, serving {}", socket.path().display());
        Ok(Some(Attachment {
            uuid,
            options,
            socket,
            worker: Some(worker),
            deaths: Backoff::new(PAUSE_STEP, LONGEST_PAUSE),
            born: Instant::now(),
            due: None,
            candidate: None,
        }))
    }

    /// Waits for a manager and registers with it; `None` when there will be none, or the end was asked for.
    fn reattach(&mut self, parent: u32, limit: Duration) -> anyhow::Result<Option<Attachment>> {
        // Started by osqueryd's watcher: when that is gone too, nobody will start another worker.
        let orphaned = || parent_id() != parent;
        let lifecycle = self.lifecycle.clone();
        let began = Instant::now();
        loop {
            if orphaned() {
                return Ok(None);
            }
            let left = limit.saturating_sub(began.elapsed());
            match lifecycle.wait_for_manager(left, |pause| orphaned() || self.stopped_within(pause)) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) => {
                    log::info!("osqueryd did not come back within {limit:?}: ending");
                    return Ok(None);
                }
            }
            match self.attach() {
                Err(error) if error.downcast_ref().is_some_and(LifecycleError::is_gone_again) => {}
                other => return other,
            }
        }
    }

    fn spawn(&mut self, socket: &Socket, options: &Options, uuid: Option<i64>) -> anyhow::Result<WorkerProcess> {
        self.workers_started += 1;
        let worker = WorkerProcess::start(self.workers_started, &self.program, &self.cli, &self.own, socket)?;
        let mut options = options.clone();
        if self.workers_started > 1 {
            // One enrollment at the start of the extension, not one for each worker that replaces another.
            options.insert("enroll_always".to_owned(), "false".to_owned());
        }
        worker.tell(&Order::Start(options));
        if let Some(uuid) = uuid {
            worker.tell(&Order::Attached(uuid));
        }
        worker.watch(self.sender.clone())?;
        Ok(worker)
    }

    fn retire(&mut self, attachment: Attachment) {
        if let Some((_, worker, _)) = attachment.candidate {
            worker.kill();
        }
        if let Some(worker) = attachment.worker {
            self.retire_worker(worker);
        }
    }

    fn retire_worker(&mut self, worker: WorkerProcess) {
        worker.tell(&Order::HandOver);
        self.retiring.push(worker);
    }

    fn end(&mut self, attachment: Attachment) {
        let deadline = Instant::now() + END_LIMIT;
        if let Some((_, worker, _)) = attachment.candidate {
            worker.kill();
        }
        if let Some(worker) = attachment.worker {
            worker.tell(&Order::Stop);
            self.retiring.push(worker);
        }
        self.end_retiring(deadline);
    }

    /// Waits for the workers that are ending, and kills those that don't in time.
    fn end_retiring(&mut self, deadline: Instant) {
        while !self.retiring.is_empty() {
            match self.next_event(deadline) {
                Ok(Event::Worker(number, News::Ended)) => {
                    let ended = self.retiring.iter().position(|worker| worker.number == number);
                    if let Some(index) = ended {
                        self.retiring.swap_remove(index).reap();
                    }
                }
                Ok(_) => {}
                Err(_) => {
                    log::warn!("a worker did not end in time");
                    self.retiring.drain(..).for_each(WorkerProcess::kill);
                }
            }
        }
    }

    /// The next event, at most until `deadline`.
    fn next_event(&mut self, deadline: Instant) -> Result<Event, RecvTimeoutError> {
        match self.put_off.pop_front() {
            Some(event) => Ok(event),
            None => self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        }
    }

    /// Waits a moment: whether the end was asked for meanwhile. What else happens is put off.
    fn stopped_within(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Signal | Event::Worker(_, News::AskedToEnd)) => return true,
                Ok(Event::HungUp) => {}
                Ok(event) => self.put_off.push_back(event),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }
}

impl Attachment {
    fn next_deadline(&self) -> Option<Instant> {
        let candidate = self.candidate.as_ref().map(|(_, _, deadline)| *deadline);
        self.due.into_iter().chain(candidate).min()
    }

    /// The worker is dead, or will be in a moment: says so, and when the next one is due. The first is due at once.
    fn bury(&mut self, worker: WorkerProcess) {
        let pid = worker.child.id();
        let end = worker.end();
        if self.born.elapsed() >= LONG_LIFE {
            self.deaths.succeeded();
        }
        let pause = if self.deaths.failures() == 0 { Duration::ZERO } else { self.deaths.failed() };
        if pause.is_zero() {
            self.deaths.failed();
        }
        let failures = self.deaths.failures();
        log::log!(
            loudness(failures),
            "the worker {pid} ended ({end}), {failures} in a row: starting another one after {pause:?}, osqueryd's calls wait"
        );
        self.due = Some(Instant::now() + pause);
    }

    fn give_candidate_up(&mut self, reason: &str) {
        if let Some((_, worker, _)) = self.candidate.take() {
            log::error!("the new worker is of no use ({reason}): the old one goes on");
            worker.kill();
        }
    }
}

/// Failures in a row are said whenever their number has doubled.
fn loudness(failures: u32) -> Level {
    if failures.is_power_of_two() { Level::Error } else { Level::Debug }
}

/// The binary that workers are started from, and how it looked.
struct Program {
    path: PathBuf,
    seen: Option<(u64, i64, i64, u64)>,
    /// How it looked at the last check: only one that has stopped changing counts.
    before: Option<(u64, i64, i64, u64)>,
}

impl Program {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("can't find this program's own file")?;
        let seen = look(&path);
        Ok(Self { path, seen, before: seen })
    }

    /// Whether another binary has taken the place of the one seen, and is whole.
    fn is_replaced(&mut self) -> bool {
        let now = look(&self.path);
        let settled = now == std::mem::replace(&mut self.before, now);
        let replaced = settled && now.is_some() && now != self.seen;
        if replaced {
            self.seen = now;
        }
        replaced
    }
}

fn look(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec(), file.size()))
}

/// A running worker.
struct WorkerProcess {
    number: u64,
    child: Child,
    control: UnixStream,
    /// On its way to it.
    ping: Option<Ping>,
}

impl WorkerProcess {
    /// Starts one on this socket.
    fn start(number: u64, program: &Program, cli: &Cli, own: &OwnFlags, socket: &Socket) -> anyhow::Result<Self> {
        let (control, theirs) = UnixStream::pair().context("can't make a socket pair")?;
        let mut command = Command::new(&program.path);
        command
            .arg0("remote_tls.ext: worker")
            .arg("--worker")
            .arg("--socket")
            .arg(&cli.socket)
            .stdin(Stdio::from(OwnedFd::from(socket.listener()?)))
            .stdout(Stdio::from(OwnedFd::from(theirs)));
        if cli.verbose {
            command.arg("--verbose");
        }
        command.args(own.to_arguments());
        for (name, value) in ALLOCATOR {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        let child = command.spawn().with_context(|| format!("can't start {}", program.path.display()))?;
        Ok(Self { number, child, control, ping: None })
    }

    /// A worker that is gone doesn't hear it; its end is noticed elsewhere.
    fn tell(&self, order: &Order) {
        if let Err(error) = control::send(&self.control, order) {
            log::debug!("the worker {} can't be told: {error}", self.child.id());
        }
    }

    /// Whether it has not answered a ping for [`HUNG_LIMIT`]. It is pinged when there is reason to: a connection waits
    /// to be accepted, or the process is stopped. One that can't be connected to is another matter: its socket was
    /// swept away, or it is dead, which is noticed elsewhere.
    fn is_hung(&mut self, socket: &Socket) -> bool {
        match self.ping.take_if(|ping| !ping.is_unanswered()) {
            None if self.ping.is_some() => {}
            _ if socket.is_waited_for() || !self.is_running() => self.ping = Ping::send(socket.path()).ok(),
            _ => {}
        }
        self.ping.as_ref().is_some_and(|ping| ping.sent().elapsed() >= HUNG_LIMIT)
    }

    /// Whether the kernel says that it runs or sleeps, and is not stopped; where it doesn't say, nobody knows.
    fn is_running(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // Behind the name, which can hold anything.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        state.is_some_and(|state| matches!(state, 'R' | 'S' | 'D'))
    }

    /// Starts the thread that hears the worker and sees its end.
    fn watch(&self, events: Sender<Event>) -> anyhow::Result<()> {
        let mut reports = control::Receiver::new(self.control.try_clone()?);
        let number = self.number;
        let hear = move || {
            // The receiver is gone only when the process ends anyway.
            let tell = |news| drop(events.send(Event::Worker(number, news)));
            while let Ok(Some(report)) = reports.receive() {
                match report {
                    Report::Ready => tell(News::Ready),
                    Report::AskedToEnd => tell(News::AskedToEnd),
                }
            }
            tell(News::Ended);
        };
        thread::Builder::new().name(format!("worker-{number}")).spawn(hear).context("can't start a thread")?;
        Ok(())
    }

    /// Ends it at once: how it ended.
    fn end(mut self) -> String {
        // An error says that it is dead already.
        let _ = self.child.kill();
        self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    fn kill(self) {
        self.end();
    }

    /// It has closed its end: waits for the rest of it.
    fn reap(self) {
        self.end();
    }
}

/// Our own flags: the command line's, and where it is silent those of our flag file. The log is as they say from then
/// on.
fn own_flags(cli: &Cli, options: &Options) -> OwnFlags {
    let path = std::env::var_os(FLAGFILE_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_FLAGFILE), PathBuf::from);
    let (file, errors) = OwnFlags::read(&path);
    let own = cli.own.clone().or(file);
    logging::configure(&settings_of(options, &own).log, cli.verbosity());
    for error in errors {
        log::error!("our flag file: {error}");
    }
    own
}

fn watch_signals(events: Sender<Event>) -> anyhow::Result<Handle> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("can't watch for signals")?;
    let handle = signals.handle();
    let watch = move || {
        for signal in &mut signals {
            let event = if signal == SIGHUP { Event::Renew } else { Event::Signal };
            let _ = events.send(event);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).context("can't start a thread")?;
    Ok(handle)
}
