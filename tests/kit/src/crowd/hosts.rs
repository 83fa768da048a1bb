//! The hosts: a stand-in osqueryd and a real extension each, and the lines that they log.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::books::Books;
use super::measure::Minute;
use super::{SECRET, lock};
use crate::certs::default_authority;
use crate::osqueryd::{Options, Osqueryd, StopReport};
use crate::server::Server;
use crate::soak::processes::{Usage, families};

/// Mean lines a second of a host, and how much hosts differ: the standard deviation of their rates' logarithm.
const MEAN_LINES: f64 = 0.5;
const SIGMA: f64 = 1.5;

/// Between the starts of two hosts: 300 are spread over the minute in which each asks for its configuration once.
const APART: Duration = Duration::from_millis(200);

/// The number of hosts that start, or end, at the same time.
const AT_ONCE: usize = 4;

/// A thread that logs needs little.
const STACK: usize = 256 << 10;

/// A host.
pub(super) struct Host {
    pub(super) directory: PathBuf,
    /// Lines a second.
    pub(super) rate: f64,
    osqueryd: Osqueryd,
}

/// All hosts of a crowd.
pub(super) struct Hosts {
    pub(super) all: Vec<Host>,
    /// Lines that an extension did not take.
    pub(super) refused: AtomicU64,
    is_over: Mutex<bool>,
    bell: Condvar,
}

/// What a host's extension says of its requests so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    requests: u64,
    failures: u64,
    longest: Duration,
}

impl Hosts {
    /// Starts `count` hosts; each is up when this returns.
    pub(super) fn start(
        count: usize,
        extension: &Path,
        directory: &Path,
        server: &Server,
        random: &mut Rng,
        interrupted: &AtomicBool,
    ) -> io::Result<Hosts> {
        let binary = directory.join("remote_tls.ext");
        fs::copy(extension, &binary)?;
        fs::write(directory.join("ca.pem"), default_authority().cert_pem())?;
        fs::write(directory.join("secret"), SECRET)?;
        fs::write(directory.join("remote_tls.flags"), "")?;
        let rates: Vec<f64> = (0..count).map(|_| rate(random)).collect();
        let (next, began) = (Mutex::new(0..count), Instant::now());
        let started = Mutex::new(Ok(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some(id) = { lock(&next).next() } {
                        if interrupted.load(Ordering::Relaxed) || lock(&started).is_err() {
                            return;
                        }
                        thread::sleep((APART * id as u32).saturating_sub(began.elapsed()));
                        let host = Osqueryd::start(options(directory, id, server, &binary));
                        let mut started = lock(&started);
                        match (host, &mut *started) {
                            (Ok(osqueryd), Ok(all)) => {
                                let directory = directory.join(id.to_string());
                                all.push((id, Host { directory, rate: rates[id], osqueryd }));
                            }
                            (Err(error), _) => *started = Err(io::Error::other(format!("host {id}: {error:?}"))),
                            (Ok(_), Err(_)) => {}
                        }
                    }
                });
            }
        });
        let mut all = started.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        all.sort_unstable_by_key(|(id, _)| *id);
        let all = all.into_iter().map(|(_, host)| host).collect();
        let refused = AtomicU64::new(0);
        Ok(Hosts { all, refused, is_over: Mutex::new(false), bell: Condvar::new() })
    }

    /// Has every host log its lines, each in a thread, until the end.
    pub(super) fn log<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        books: &'scope Arc<Books>,
        random: &mut Rng,
    ) -> io::Result<()> {
        for id in 0..self.all.len() {
            let phase = random.f64();
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || self.log_of(id, books, phase))?;
        }
        Ok(())
    }

    /// Lines come at an even rate.
    fn log_of(&self, id: usize, books: &Books, phase: f64) {
        let host = &self.all[id];
        let gap = 1.0 / host.rate;
        let began = Instant::now();
        for line in 0.. {
            if self.pause(began + Duration::from_secs_f64(gap * (phase + f64::from(line)))) {
                return;
            }
            let (n, line) = books.log(id);
            if host.osqueryd.log_string(line).is_ok() {
                books.take(id, n);
            } else {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits until then; whether it is the end.
    fn pause(&self, until: Instant) -> bool {
        let is_over = lock(&self.is_over);
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.bell.wait_timeout_while(is_over, left, |is_over| !*is_over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// No more lines.
    pub(super) fn finish(&self) {
        *lock(&self.is_over) = true;
        self.bell.notify_all();
    }

    pub(super) fn rates(&self) -> Vec<f64> {
        self.all.iter().map(|host| host.rate).collect()
    }

    /// What each of the extensions takes, with both of its processes.
    pub(super) fn usage(&self) -> Vec<Usage> {
        let fronts: Vec<u32> = self.all.iter().filter_map(|host| host.osqueryd.extension_pid("remote_tls")).collect();
        families(&fronts)
    }

    /// What the extensions say of their requests, host by host.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.all.iter().map(|host| Asked::of(&host.osqueryd)).collect()
    }

    /// Extensions that ended by themselves.
    pub(super) fn exits(&self) -> Vec<String> {
        let of = |(id, host): (usize, &Host)| {
            let exits = host.osqueryd.exits();
            exits.into_iter().map(move |exit| format!("host {id}: the extension {} ended: {}", exit.pid, exit.status))
        };
        self.all.iter().enumerate().flat_map(of).collect()
    }

    /// Ends all of them: what did not end well.
    pub(super) fn stop(&self) -> Vec<String> {
        let next = Mutex::new(self.all.iter().enumerate());
        let faults = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..AT_ONCE * 4 {
                scope.spawn(|| {
                    while let Some((id, host)) = { lock(&next).next() } {
                        let report = host.osqueryd.stop();
                        if !ended_well(&report) {
                            lock(&faults).push(format!("host {id} did not end well: {report:?}"));
                        }
                    }
                });
            }
        });
        faults.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    fn of(osqueryd: &Osqueryd) -> Asked {
        let request: [(&str, &[u8]); 2] = [("action", b"generate"), ("context", b"{}")];
        let rows = osqueryd.call("table", "remote_tls_endpoints", &request).map(|outcome| outcome.rows);
        let mut asked = Asked::default();
        for row in rows.unwrap_or_default() {
            let number = |name: &str| row.get(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
            asked.requests += number("requests");
            asked.failures += number("failures");
            asked.longest = asked.longest.max(Duration::from_millis(number("latency_ms")));
        }
        asked
    }

    /// What came since then, of all hosts.
    pub(super) fn since(before: &[Asked], now: &[Asked]) -> Minute {
        let mut minute = Minute::default();
        for (before, now) in before.iter().zip(now) {
            minute.requests += now.requests.saturating_sub(before.requests);
            minute.failures += now.failures.saturating_sub(before.failures);
            minute.longest = minute.longest.max(now.longest);
        }
        minute
    }
}

fn ended_well(report: &StopReport) -> bool {
    report.exit_code() == Some(0) && report.extensions.iter().all(|extension| !extension.killed)
}

/// The intervals of tests/fleet.
fn options(directory: &Path, id: usize, server: &Server, binary: &Path) -> Options {
    let mut options = Options::new(&directory.join(id.to_string())).extension(binary);
    options.distributed = true;
    // osqueryd's own.
    options.watch_interval = Duration::from_secs(3);
    options.env.push(("REMOTE_TLS_FLAGFILE".to_owned(), directory.join("remote_tls.flags").display().to_string()));
    let flags = [
        ("host_identifier", "specified".to_owned()),
        ("specified_identifier", format!("crowd-{id}")),
        ("logger_tls_period", "10".to_owned()),
        ("distributed_interval", "10".to_owned()),
        ("config_refresh", "60".to_owned()),
        // Many start at once, on few cores.
        ("extensions_timeout", "60".to_owned()),
    ];
    let flags = flags.into_iter().chain(server.flags_of_a_host(directory));
    options.flags.extend(flags.map(|(name, value)| (name.to_owned(), value)));
    options
}

/// Log-normal, as rates of hosts are.
fn rate(random: &mut Rng) -> f64 {
    let (one, other) = (1.0 - random.f64(), random.f64());
    let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
    MEAN_LINES * (SIGMA * normal - SIGMA * SIGMA / 2.0).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_the_mean_and_the_median_that_they_are_to_have() {
        let mut random = Rng::with_seed(1);
        let mut rates: Vec<f64> = (0..100_000).map(|_| rate(&mut random)).collect();
        rates.sort_unstable_by(f64::total_cmp);
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        assert!((mean - MEAN_LINES).abs() < 0.05, "{mean}");
        let median = rates[rates.len() / 2];
        assert!((median - MEAN_LINES * (-SIGMA * SIGMA / 2.0).exp()).abs() < 0.01, "{median}");
    }
}
