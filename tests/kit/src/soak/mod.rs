//! The soak: hours of mixed load, faults, kills and restarts, and a verdict.
//!
//! The real extension runs between the stand-in osqueryd and the reference server of this kit. Every line has a
//! number, and the books say of each what became of it; what the server has taken is counted and forgotten, so that
//! the soak's own memory stays small. Faults, disturbances and quiet moments follow a schedule drawn from a seed.

mod buffers;
mod disturb;
mod findings;
mod gate;
pub(crate) mod journals;
mod least_pace;
mod ledger;
pub(crate) mod lines;
mod load;
pub(crate) mod numbers;
pub(crate) mod processes;
mod report;
mod schedule;
mod setup;
mod verdict;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tempfile::TempDir;

use self::buffers::Buffers;
use self::gate::Gate;
use self::least_pace::LeastPace;
use self::ledger::{Books, Ledger};
use self::processes::Usage;
use self::schedule::{Disturbance, Mood, Pace, Phase, Schedule};
use self::verdict::QuietMoment;
use crate::lock;
use crate::osqueryd::{self, Osqueryd};
use crate::server::{Endpoint, Misbehaviour, Server};
use crate::trial::Outcome;

/// How soon an interruption is noticed.
const NOTICE: Duration = Duration::from_millis(100);

/// Between two looks at processes and lines set aside. These make room for newer ones, so it must not be long.
const LOOK: Duration = Duration::from_millis(500);

/// No process takes longer to be replaced, on a machine that works.
const PROCESS_LIMIT: Duration = Duration::from_secs(30);

/// No call takes longer once the server is healthy.
const CALL_LIMIT: Duration = Duration::from_secs(90);

/// A quiet moment lasts until nothing waits, but no longer than this when something has come: a backlog goes slowly.
const MOMENT: Duration = Duration::from_secs(30);

/// The last one. Distributed results are no backlog, and must have come by then: their attempts are up to 300 s apart.
const LAST_MOMENT: Duration = Duration::from_secs(420);

/// While more lines wait a quiet moment goes on, or those of a long run would exceed `buffer_max_bytes` at last.
const MOST_OWED: u64 = 40_000;

/// Between the last delivery and a measurement: spare threads end.
const SETTLING: Duration = Duration::from_secs(2);

const STREAMS: [&str; 3] = ["results", "statuses", "distributed"];

/// Those of the logger come first.
const LOGGED: usize = 2;
const ENDPOINTS: [Endpoint; 5] =
    [Endpoint::Enroll, Endpoint::Config, Endpoint::Log, Endpoint::DistributedRead, Endpoint::DistributedWrite];

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The extension's binary. It is copied: what becomes of the file later doesn't matter.
    pub extension: PathBuf,
    /// How long there are load and faults; the last backlog's delivery comes on top.
    pub length: Duration,
    /// The same seed draws the same phases. When they end depends on the machine.
    pub seed: u64,
    /// Between two rows of the table.
    pub report_every: Duration,
    /// What the extension writes to its standard error is added to this file, each time that osqueryd has ended.
    pub log: Option<PathBuf>,
}

/// Runs a soak, which says what it sees a line at a time. Every process that it starts has ended when it returns.
///
/// An error is one of starting: a port, a file, the extension.
pub fn run(plan: &Plan, interrupted: &AtomicBool, say: &dyn Fn(&str)) -> io::Result<Outcome> {
    let books = Arc::new(Books::default());
    let gate = Gate::new();
    let server = Server::start(setup::server_options(&books))?;
    let mut soak = Soak::start(plan, interrupted, say, &server, &gate, &books)?;
    let outcome = thread::scope(|scope| {
        // Also when this thread panics: the scope waits for the others.
        let _finish = Finish(&gate);
        let mut random = Rng::with_seed(plan.seed);
        for _ in 0..3 {
            let random = random.fork();
            scope.spawn(|| load::log_results(&gate, &books, random));
        }
        let [of_statuses, of_distributed, of_config] = std::array::from_fn(|_| random.fork());
        scope.spawn(|| load::log_statuses(&gate, &books, of_statuses));
        scope.spawn(|| load::run_distributed(&gate, &books, &server, of_distributed));
        scope.spawn(|| load::refresh_config(&gate, &books, of_config));
        soak.run()
    });
    Ok(outcome)
}

/// Ends the load when it goes.
struct Finish<'a>(&'a Gate);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    front_kills: u32,
    worker_kills: u32,
    renewals: u32,
    osqueryd_worker_kills: u32,
    osqueryd_restarts: u32,
    outages: u32,
    faults: u32,
}

/// A run, as its one directing thread sees it.
struct Soak<'a> {
    plan: &'a Plan,
    interrupted: &'a AtomicBool,
    say: &'a dyn Fn(&str),
    server: &'a Server,
    gate: &'a Gate,
    books: &'a Books,
    began: Instant,
    schedule: Schedule,
    options: osqueryd::Options,
    buffers: Buffers,
    /// The worker that serves, as far as is known; only what happens here may replace it.
    worker: Option<u32>,
    phase: String,
    next_report: Instant,
    next_look: Instant,
    quiet: Vec<QuietMoment>,
    /// When nothing was owed last, a stream.
    paid: [Instant; STREAMS.len()],
    troubles: Vec<String>,
    done: Done,
    /// The front processes that were killed here.
    killed_fronts: Vec<u32>,
    /// The largest number of result lines that waited, and bytes of the journals.
    largest_backlog: (u64, u64),
    random: Rng,
    /// Last: the processes that use it are gone when it is removed.
    _directory: TempDir,
}

impl<'a> Soak<'a> {
    /// Starts osqueryd, and with it the extension.
    fn start(
        plan: &'a Plan,
        interrupted: &'a AtomicBool,
        say: &'a dyn Fn(&str),
        server: &'a Server,
        gate: &'a Gate,
        books: &'a Books,
    ) -> io::Result<Self> {
        let directory = TempDir::with_prefix("soak-")?;
        let schedule = Schedule::new(plan.seed, plan.length);
        let options = setup::osqueryd_options(plan, directory.path().to_owned(), server, schedule.unit())?;
        let osqueryd = Osqueryd::start(options.clone()).map_err(io::Error::other)?;
        gate.open(Arc::new(osqueryd));
        let now = Instant::now();
        let buffers = Buffers::new(&directory.path().join("remote_tls"));
        let mut soak = Self {
            plan,
            interrupted,
            say,
            server,
            gate,
            books,
            began: now,
            schedule,
            options,
            buffers,
            worker: None,
            phase: "start".to_owned(),
            next_report: now + plan.report_every,
            next_look: now,
            quiet: Vec::new(),
            paid: [now; STREAMS.len()],
            troubles: Vec::new(),
            done: Done::default(),
            killed_fronts: Vec::new(),
            largest_backlog: (0, 0),
            random: Rng::with_seed(!plan.seed),
            _directory: directory,
        };
        soak.worker = soak.other_worker_than(None);
        Ok(soak)
    }

    fn run(&mut self) -> Outcome {
        (self.say)(&format!(
            "soak of {}, seed {}, process {}: a row each {} s; the first is at the start",
            report::clock(self.plan.length),
            self.plan.seed,
            std::process::id(),
            self.plan.report_every.as_secs()
        ));
        (self.say)(report::HEADER);
        self.report();
        while self.began.elapsed() < self.plan.length && self.goes_on() {
            match self.schedule.next(self.began.elapsed()) {
                Phase::Quiet => self.be_quiet("quiet", LOGGED, MOMENT),
                Phase::Load { mood, pace, disturbance, length } => self.load(mood, pace, disturbance, length),
            }
        }
        if self.goes_on() {
            self.be_quiet("end", STREAMS.len(), LAST_MOMENT);
            self.report();
        }
        self.gate.finish();
        self.end_osqueryd();
        if self.interrupted() {
            (self.say)(&format!("interrupted after {}: no verdict", report::clock(self.began.elapsed())));
            return Outcome::Interrupted;
        }
        self.judge()
    }

    /// A phase of load.
    fn load(&mut self, mood: Mood, pace: Pace, disturbance: Option<Disturbance>, length: Duration) {
        self.phase = findings::phase_name(mood, pace, disturbance);
        let until = Instant::now() + length;
        match mood {
            Mood::Healthy => {}
            Mood::Forgetful => self.server.forget_nodes(),
            Mood::Outage => {
                self.done.outages += 1;
                self.server.stop();
            }
            Mood::Fault(fault) => {
                self.done.faults += 1;
                if let Ok(misbehaviour) = fault.parse::<Misbehaviour>() {
                    misbehaviour.apply(self.server);
                }
            }
        }
        self.gate.set_pace(pace);
        if let Some(disturbance) = disturbance {
            self.disturb(disturbance);
        }
        self.pass(until);
        self.heal();
    }

    /// No load and no fault, until nothing is owed of the first `streams`, or for `length` at most; then everything is measured.
    fn be_quiet(&mut self, name: &str, streams: usize, length: Duration) {
        name.clone_into(&mut self.phase);
        self.gate.set_pace(Pace::Off);
        let emptied = |soak: &Self| soak.gate.wait_empty(Duration::ZERO);
        if !self.wait(CALL_LIMIT, emptied) {
            return self.trouble(format!("a call took more than {CALL_LIMIT:?} with a healthy server"));
        }
        self.wait_for_lines(streams, length);
        self.pass(Instant::now() + SETTLING.min(self.schedule.unit()));
        self.measure();
    }

    /// Waits for what is owed, as patiently as the extension's own pace asks for.
    fn wait_for_lines(&mut self, streams: usize, length: Duration) {
        let (began, owed) = (Instant::now(), self.owed());
        let mut least_pace: [LeastPace; LOGGED] =
            std::array::from_fn(|stream| LeastPace::new(owed[stream], began - self.paid[stream], began));
        loop {
            let (now, owed) = (Instant::now(), self.owed());
            for (stream, least_pace) in least_pace.iter_mut().enumerate() {
                if let Some(wrong) = least_pace.look(owed[stream], now) {
                    return self.trouble(format!("{}: {wrong}", STREAMS[stream]));
                }
            }
            if self.interrupted() || owed[..streams].iter().sum::<u64>() == 0 {
                return;
            }
            if now - began >= length && least_pace.iter().all(LeastPace::is_content) && owed[0] <= MOST_OWED {
                break;
            }
            self.tick();
            thread::sleep(NOTICE);
        }
        for (stream, owed) in STREAMS.into_iter().zip(self.owed()).take(streams).skip(LOGGED) {
            if owed > 0 {
                self.trouble(format!("{owed} {stream} lines still wait after {length:?} without a fault"));
            }
        }
    }

    fn measure(&mut self) {
        let (Some(front), Some(worker)) = (self.usage(self.front()), self.usage(self.worker)) else {
            return;
        };
        let part = self.schedule.part(self.began.elapsed());
        self.quiet.push(QuietMoment { part, front, worker });
    }

    /// Lines that were taken and have not come to anything yet, a stream.
    fn owed(&self) -> [u64; STREAMS.len()] {
        self.ledgers().map(|ledger| lock(ledger).owed())
    }

    /// The server is healthy from now on.
    fn heal(&mut self) {
        for endpoint in ENDPOINTS {
            self.server.always(endpoint, None);
        }
        if let Err(error) = self.server.resume() {
            self.trouble(format!("the reference server can't listen again: {error}"));
        }
    }

    /// Lets time pass, and looks and reports when it is due.
    fn pass(&mut self, until: Instant) {
        while Instant::now() < until && self.goes_on() {
            self.tick();
            thread::sleep(until.saturating_duration_since(Instant::now()).min(NOTICE));
        }
    }

    /// Waits for a condition meanwhile: whether it came true.
    fn wait(&mut self, limit: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        while !condition(self) {
            if Instant::now() >= deadline || self.interrupted() {
                return self.interrupted();
            }
            self.tick();
            thread::sleep(NOTICE);
        }
        true
    }

    /// What is due now.
    fn tick(&mut self) {
        let now = Instant::now();
        if now >= self.next_look {
            self.look();
            self.next_look = now + LOOK;
        }
        if now >= self.next_report {
            self.report();
            self.next_report = now + self.plan.report_every;
        }
    }

    /// What changes without being asked for, and what doesn't stay.
    fn look(&mut self) {
        self.enter_set_aside();
        let (now, owed) = (Instant::now(), self.owed());
        self.paid.iter_mut().zip(owed).filter(|(_, owed)| *owed == 0).for_each(|(paid, _)| *paid = now);
        let backlog = (owed[0], self.buffers.journals().1);
        self.largest_backlog = (self.largest_backlog.0.max(backlog.0), self.largest_backlog.1.max(backlog.1));
        let Some(osqueryd) = self.gate.osqueryd() else { return };
        self.look_at_exits(&osqueryd);
        if let (Some(worker), Some(front)) = (self.worker, self.front())
            && !processes::children_of(front).contains(&worker)
        {
            self.worker = self.other_worker_than(Some(worker));
            self.trouble(format!("the worker {worker} was replaced by {:?} without being asked for", self.worker));
        }
    }

    /// Lines that the extension has set aside since the last time.
    fn enter_set_aside(&mut self) {
        let set_aside = self.buffers.newly_set_aside();
        set_aside.into_iter().for_each(|n| lock(&self.books.results).set_aside(n));
    }

    fn look_at_exits(&mut self, osqueryd: &Osqueryd) {
        for exit in osqueryd.exits() {
            if self.killed_fronts.contains(&exit.pid) {
                continue;
            }
            let text = format!("the extension {} ended by itself: {}", exit.pid, exit.status);
            if !self.troubles.contains(&text) {
                self.trouble(text);
            }
        }
    }

    /// The process that osqueryd has started.
    fn front(&self) -> Option<u32> {
        self.gate.osqueryd()?.extension_pid("remote_tls")
    }

    fn usage(&self, process: Option<u32>) -> Option<Usage> {
        process.and_then(Usage::of)
    }

    fn ledgers(&self) -> [&'a Mutex<Ledger>; 3] {
        [&self.books.results, &self.books.statuses, &self.books.distributed]
    }

    /// Without an osqueryd nothing goes on.
    fn goes_on(&self) -> bool {
        !self.interrupted() && self.gate.osqueryd().is_some()
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Speaks against the extension, unless all was broken off: a terminal's interruption reaches the extension, too.
    fn trouble(&mut self, text: String) {
        if self.interrupted() {
            return;
        }
        (self.say)(&format!("PROBLEM at {}: {text}", report::clock(self.began.elapsed())));
        self.troubles.push(text);
    }
}

impl Drop for Soak<'_> {
    fn drop(&mut self) {
        if let Some(osqueryd) = self.gate.shut() {
            osqueryd.stop();
        }
    }
}
