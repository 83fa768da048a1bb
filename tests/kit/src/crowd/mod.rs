//! The crowd: hundreds of real extensions against one real server, an outage, and what the return is like.
//!
//! What tests/fleet simulates for a hundred thousand hosts is done here for some hundreds: each is a stand-in osqueryd
//! with the extension's two processes, all of them ask the reference server over TLS on loopback, at the intervals and the
//! rates of the simulation, and the same figures are measured. The server is far from its limits: it is the hosts'
//! behaviour that is looked at.

mod books;
mod hosts;
mod measure;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use tempfile::TempDir;

use self::books::{Books, Sums};
use self::hosts::{Asked, Hosts};
use self::measure::{Figures, Record};
use crate::lock;
use crate::server::{self, Server};
use crate::soak::journals;
use crate::trial::Outcome;

const SECRET: &str = "crowd-secret";

/// Hosts that log so often count for freshness: of others nothing new may have come.
const OFTEN: f64 = 0.1;

/// Between the start of the last host and what counts as usual.
const SETTLING: Duration = Duration::from_secs(30);

/// Between two looks at the lines that wait; the backlog is gone when this many looks in a row find nothing.
const LOOK: Duration = Duration::from_secs(10);
const CALM: usize = 6;

const MINUTE: Duration = Duration::from_secs(60);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The extension's binary. It is copied: what becomes of the file later doesn't matter.
    pub extension: PathBuf,
    /// How many hosts.
    pub hosts: usize,
    /// How long the usual load is watched, before the outage.
    pub usual: Duration,
    /// How long no host reaches the server.
    pub outage: Duration,
    /// The longest that the return is watched.
    pub watch: Duration,
    /// Draws the hosts' rates.
    pub seed: u64,
    /// Between two rows of the table.
    pub report_every: Duration,
}

/// Runs a crowd, which says what it sees a line at a time. Every process that it starts has ended when it returns.
///
/// An error is one of starting: a port, a file, an extension.
pub fn run(plan: &Plan, interrupted: &AtomicBool, say: &dyn Fn(&str)) -> io::Result<Outcome> {
    let books = Arc::new(Books::new(plan.hosts));
    let server = Server::start(server_options(&books))?;
    let directory = TempDir::with_prefix("crowd-")?;
    let mut random = Rng::with_seed(plan.seed);
    say(&format!("{} hosts, seed {}, process {}: starting", plan.hosts, plan.seed, std::process::id()));
    let began = Instant::now();
    let hosts = Hosts::start(plan.hosts, &plan.extension, directory.path(), &server, &mut random, interrupted)?;
    say(&format!("all are up after {:.0?}, and log {:.1} lines/s", began.elapsed(), hosts.rates().iter().sum::<f64>()));
    thread::scope(|scope| {
        // Also when this thread panics: the scope waits for the others.
        let _finish = Finish(&hosts);
        hosts.log(scope, &books, &mut random)?;
        let mut crowd = Crowd::new(plan, interrupted, say, &server, &hosts, &books);
        crowd.run();
        Ok(crowd.judge())
    })
}

/// Ends the load when it goes.
struct Finish<'a>(&'a Hosts);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// A run, as its one directing thread sees it.
struct Crowd<'a> {
    plan: &'a Plan,
    interrupted: &'a AtomicBool,
    say: &'a dyn Fn(&str),
    server: &'a Server,
    hosts: &'a Hosts,
    books: &'a Books,
    began: Instant,
    phase: &'static str,
    /// Connections that were counted already.
    connections: usize,
    next_second: Instant,
    next_report: Instant,
    /// The second of the last row, and the most memory that all took together, in KiB.
    reported: usize,
    largest: u64,
    record: Record,
}

impl<'a> Crowd<'a> {
    fn new(
        plan: &'a Plan,
        interrupted: &'a AtomicBool,
        say: &'a dyn Fn(&str),
        server: &'a Server,
        hosts: &'a Hosts,
        books: &'a Books,
    ) -> Self {
        let now = Instant::now();
        Self {
            plan,
            interrupted,
            say,
            server,
            hosts,
            books,
            began: now,
            phase: "settling",
            connections: server.connections(),
            next_second: now,
            next_report: now + plan.report_every,
            reported: books.second(),
            largest: 0,
            record: Record::default(),
        }
    }

    fn run(&mut self) {
        (self.say)(HEADER);
        self.pass(SETTLING);
        self.phase = "usual";
        let from = self.books.second() + 1;
        self.pass(self.plan.usual);
        self.record.usual = from..self.books.second();
        self.phase = "outage";
        self.server.stop();
        self.pass(self.plan.outage);
        self.phase = "return";
        self.record.most = self.books.sums().backlog;
        if let Err(error) = self.server.resume() {
            (self.say)(&format!("the reference server can't listen again: {error}"));
            return;
        }
        self.books.outage_is_over(&self.hosts.rates(), OFTEN);
        self.record.over_at = self.books.second() + 1;
        self.record.often = self.hosts.rates().iter().filter(|rate| **rate >= OFTEN).count();
        self.watch();
    }

    /// Watches the return until all is as before, or the time is over.
    fn watch(&mut self) {
        let over_at = Instant::now();
        let mut asked = self.hosts.asked();
        let mut next_minute = over_at + MINUTE;
        while over_at.elapsed() < self.plan.watch && !self.is_interrupted() && !self.is_calm() {
            self.pass(LOOK);
            self.record.backlog.push((over_at.elapsed(), self.books.sums().backlog));
            if Instant::now() >= next_minute {
                next_minute += MINUTE;
                let now = self.hosts.asked();
                self.record.minutes.push(Asked::since(&asked, &now));
                asked = now;
            }
        }
        self.record.fresh = self.books.fresh();
        self.record.seconds = self.books.seconds();
    }

    fn is_calm(&self) -> bool {
        self.record.is_calm(CALM) && self.books.fresh().len() >= self.record.often
    }

    /// Lets time pass, and counts and reports when it is due.
    fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.is_interrupted() {
            thread::sleep(self.next_second.min(until).saturating_duration_since(Instant::now()));
            if Instant::now() < self.next_second {
                continue;
            }
            self.next_second += Duration::from_secs(1);
            let connections = self.server.connections();
            self.books.count_handshakes((connections - self.connections) as u32);
            self.connections = connections;
            if Instant::now() >= self.next_report {
                self.next_report += self.plan.report_every;
                self.report();
            }
        }
    }

    /// A row of the table.
    fn report(&mut self) {
        let seconds = self.books.seconds();
        let since = &seconds[self.reported.min(seconds.len())..];
        self.reported = seconds.len();
        let mean = |sum: f64| sum / since.len().max(1) as f64;
        let requests = mean(since.iter().map(|second| f64::from(second.requests)).sum());
        let bytes = mean(since.iter().map(|second| second.bytes as f64).sum());
        let handshakes = mean(since.iter().map(|second| f64::from(second.handshakes)).sum());
        let usage = self.hosts.usage();
        let memory: u64 = usage.iter().map(|usage| usage.pss).sum();
        self.largest = self.largest.max(memory);
        let most = usage.iter().map(|usage| usage.pss).max().unwrap_or(0);
        let pairs = usage.len().max(1) as f64;
        let mib = |kib: f64| kib / 1024.0;
        let Sums { taken, received, owed, backlog, .. } = self.books.sums();
        (self.say)(&format!(
            "| {:>4} s | {:>8} | {taken:>7} | {received:>8} | {owed:>7} | {backlog:>7} | {requests:>10.1} | {:>7.1} | \
             {handshakes:>12.1} | {:>7.2} | {:>7.2} | {:>9.0} | {:>7.1} |",
            self.began.elapsed().as_secs(),
            self.phase,
            bytes / 1024.0,
            mib(memory as f64 / pairs),
            mib(most as f64),
            mib(memory as f64),
            usage.iter().map(|usage| usage.threads as f64).sum::<f64>() / pairs,
        ));
    }

    /// Ends everything, and says what the run has shown.
    fn judge(&mut self) -> Outcome {
        self.hosts.finish();
        let mut problems = self.hosts.exits();
        problems.extend(self.hosts.stop());
        if self.is_interrupted() {
            (self.say)("interrupted: no verdict");
            return Outcome::Interrupted;
        }
        let (waiting, lost) = self.waiting_and_lost(&mut problems);
        let refused = self.hosts.refused.load(Ordering::Relaxed);
        let (again, foreign) = self.books.again_and_foreign();
        let Sums { logged, taken, received, .. } = self.books.sums();
        (self.say)(&format!(
            "\n{logged} lines logged, {refused} refused; {taken} taken = {received} received + {waiting} waiting on disk \
             + {lost} lost; {again} received again\n"
        ));
        let figures = self.record.figures();
        (self.say)(&table(self.plan, &figures, lost));
        (self.say)(&format!(
            "\nusual: {:.1} requests/s, {:.1} KiB/s; {} lines of backlog at the end of the outage; {} of {} hosts that log \
             often fresh again; most memory of all pairs together: {} MiB",
            figures.usual[0],
            figures.usual[1] / 1024.0,
            self.record.most,
            self.record.fresh.len(),
            self.record.often,
            self.largest / 1024
        ));
        problems.extend(self.books.losses().into_iter().map(|loss| format!("an extension says: {loss}")));
        for (count, what) in
            [(refused, "lines were refused"), (lost, "lines are lost"), (foreign, "lines came from nowhere")]
        {
            problems.extend((count > 0).then(|| format!("{count} {what}")));
        }
        problems.iter().for_each(|problem| (self.say)(&format!("PROBLEM: {problem}")));
        (self.say)(if problems.is_empty() { "verdict: ok" } else { "verdict: NOT ok" });
        if problems.is_empty() { Outcome::Fine } else { Outcome::Faulty }
    }

    /// Reads what waits from the hosts' disks; their extensions have ended.
    fn waiting_and_lost(&self, problems: &mut Vec<String>) -> (u64, u64) {
        let mut sums = (0, 0);
        for (id, host) in self.hosts.all.iter().enumerate() {
            let waiting = journals::waiting(&host.directory.join("remote_tls")).unwrap_or_else(|error| {
                problems.push(format!("what waits at host {id} can't be read: {error}"));
                journals::Waiting::default()
            });
            let (waiting, lost) = self.books.waiting_and_lost(id, &waiting.numbers[0]);
            sums = (sums.0 + waiting, sums.1 + lost);
        }
        sums
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// What the columns of the rows are called. Memory is PSS, of both processes of an extension.
const HEADER: &str = "\
|   time |    phase |   taken | received | waiting | backlog | requests/s |   KiB/s | handshakes/s | MiB/ext | largest | MiB (all) | threads |\n\
| -----: | -------: | ------: | -------: | ------: | ------: | ---------: | ------: | -----------: | ------: | ------: | --------: | ------: |";

/// The figures, in the columns of tests/fleet.
fn table(plan: &Plan, figures: &Figures, lost: u64) -> String {
    let seconds = |time: Option<Duration>| time.map_or("not within the run".to_owned(), |time| format!("{time:.0?}"));
    format!(
        "| hosts | outage | peak bytes | peak requests | handshakes/s | overloaded, minutes | fresh, median | fresh, p99 | \
         backlog gone | lines lost |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n\
         | {} | {:.0?} | {:.2} × | {:.2} × | {:.1} | {} of {} | {} | {} | {} | {lost} |",
        plan.hosts,
        plan.outage,
        figures.peak_bytes,
        figures.peak_requests,
        figures.handshakes,
        figures.overloaded,
        figures.watched,
        seconds(figures.fresh_median),
        seconds(figures.fresh_most),
        seconds(figures.gone),
    )
}

/// A server that counts and keeps nothing.
fn server_options(books: &Arc<Books>) -> server::Options {
    let (requests, lines) = (Arc::clone(books), Arc::clone(books));
    server::Options {
        enroll_secret: Some(SECRET.to_owned()),
        config: json!({"schedule": {}}),
        observer: Some(Arc::new(move |request| requests.count(request))),
        drain: Some(Arc::new(move |taken| lines.receive(taken))),
        ..server::Options::default()
    }
}
