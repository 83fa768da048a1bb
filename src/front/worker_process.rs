//! Workers as processes: started, heard, pinged, replaced.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use crate::control::{Descriptors, Order, Ready, Receiver, Report, ToOther, WORKER_NAME};
use crate::files::{FileLook, open_program};
use crate::platform::{self, is_stopped};

/// A worker that doesn't answer a ping for this long is replaced.
pub(super) const HUNG_LIMIT: Duration = Duration::from_secs(5);

/// glibc's allocator keeps a heap for nearly each thread, and what was once needed for large buffers. A worker has many
/// threads and few of them work at a time: two heaps, and large buffers given back at once, halve its memory under load.
/// Other C libraries don't look at these.
const ALLOCATOR: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "2"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// The binary that workers are started from, and how it looked.
pub(super) struct Program {
    path: PathBuf,
    seen: Option<FileLook>,
    /// How it looked at the last check: only one that has stopped changing counts.
    before: Option<FileLook>,
}

impl Program {
    /// This program's own file.
    ///
    /// # Errors
    /// The system doesn't say where it is.
    pub(super) fn new() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("can't find this program's own file")?;
        let seen = FileLook::of(&path);
        Ok(Self { path, seen, before: seen })
    }

    /// What has its name now, if it may be run.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn judged(&self) -> Result<Judged, String> {
        open_program(&self.path).map(|file| Judged::new(&self.path, file))
    }

    /// What the next worker is started from: this front's own program when what has its name now may not be run.
    fn for_a_worker(&self) -> Judged {
        self.judged().unwrap_or_else(|_| Judged { path: platform::own_program(&self.path), _file: None })
    }

    /// Whether another binary has taken the place of the one seen, is whole, and may be run, by osqueryd's own rules.
    pub(super) fn is_replaced(&mut self) -> bool {
        let now = FileLook::of(&self.path);
        let settled = now == std::mem::replace(&mut self.before, now);
        if !settled || now.is_none() || now == self.seen {
            return false;
        }
        self.seen = now;
        let judged = self.judged();
        if let Err(reason) = &judged {
            log::error!("another binary is at {} and is not run: {reason}", self.path.display());
        }
        judged.is_ok()
    }
}

/// A program that may be run.
pub(super) struct Judged {
    /// By which it is run, while this lives.
    pub(super) path: PathBuf,
    _file: Option<File>,
}

impl Judged {
    /// Where the system lets an open file be run, it is that one, whatever has its name by then. A script's interpreter is
    /// given the name, and the descriptor is closed by then.
    fn new(path: &Path, file: File) -> Self {
        let mut head = [0; 2];
        let is_script = file.read_exact_at(&mut head, 0).is_ok() && head == *b"#!";
        let by_descriptor = if is_script { None } else { platform::path_of_open(&file) };
        Self { path: by_descriptor.unwrap_or_else(|| path.to_owned()), _file: Some(file) }
    }
}

/// What the front hears of a worker process.
pub(super) enum WorkerEvent {
    /// It takes calls.
    Ready(Ready),
    /// It has answered this ping.
    Pong(u64),
    /// The connection to it has ended, so the process is gone or will be.
    Ended,
}

/// A running worker.
pub(super) struct WorkerProcess {
    /// Counts the workers of this process.
    pub(super) number: u64,
    /// What it is told.
    pub(super) to: Arc<ToOther>,
    /// What it has said of itself, once it takes calls.
    pub(super) ready: Option<Ready>,
    pid: Pid,
    pings: u64,
    /// The ping on its way, and since when.
    unanswered: Option<Instant>,
}

impl WorkerProcess {
    /// Starts one.
    ///
    /// # Errors
    /// The program can't be started.
    pub(super) fn start(number: u64, program: &Program, arguments: &[OsString]) -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("can't make a socket pair")?;
        let judged = program.for_a_worker();
        let mut command = Command::new(&judged.path);
        command.arg0(format!("{WORKER_NAME}{number}")).arg("--worker").args(arguments);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        for (name, value) in ALLOCATOR {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        let child = command.spawn().with_context(|| format!("can't start {}", program.path.display()))?;
        let pid = Pid::from_child(&child);
        Ok(Self::adopt(number, pid, ours))
    }

    /// A worker that this process has started when it ran another program.
    #[must_use]
    pub(super) fn adopt(number: u64, pid: Pid, stream: UnixStream) -> Self {
        let to = Arc::new(ToOther::new(stream));
        Self { number, to, ready: None, pid, pings: 0, unanswered: None }
    }

    /// Its process id.
    #[must_use]
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Starts the thread that hears the worker and sees its end: `tell` gets its events, `serve` the rest.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn watch(
        &self,
        tell: impl Fn(WorkerEvent) + Send + 'static,
        serve: impl Fn(Report, Descriptors) + Send + 'static,
    ) -> anyhow::Result<()> {
        let mut reports = Receiver::new(self.to.stream()?);
        let hear = move || {
            while let Ok(Some((report, descriptors))) = reports.receive() {
                match report {
                    Report::Ready(ready) => tell(WorkerEvent::Ready(ready)),
                    Report::Pong { number } => tell(WorkerEvent::Pong(number)),
                    other => serve(other, descriptors),
                }
            }
            tell(WorkerEvent::Ended);
        };
        let name = format!("worker-{}", self.number);
        thread::Builder::new().name(name).spawn(hear).context("can't start a thread")?;
        Ok(())
    }

    /// Whether it has not answered a ping for [`HUNG_LIMIT`]. It is pinged when there is reason to: a call waits for it,
    /// or the process is stopped.
    pub(super) fn is_hung(&mut self, has_calls: bool) -> bool {
        match self.unanswered {
            Some(since) => since.elapsed() >= HUNG_LIMIT,
            None => {
                if has_calls || is_stopped(self.id()) {
                    self.pings += 1;
                    self.to.tell(&Order::Ping { number: self.pings });
                    self.unanswered = Some(Instant::now());
                }
                false
            }
        }
    }

    /// It has answered a ping.
    pub(super) fn hear_pong(&mut self, number: u64) {
        if number == self.pings {
            self.unanswered = None;
        }
    }

    /// Ends it at once: how it ended.
    #[must_use]
    pub(super) fn end(self) -> String {
        // An error says that it is dead already.
        let _ = kill_process(self.pid, Signal::KILL);
        match rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty())) {
            Ok(Some((_, status))) => describe(status),
            Ok(None) => "it goes on".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "it is stopped".to_owned(),
    }
}

/// When the next worker is due after deaths: at once after the first, then n² times [`PAUSE_STEP`], at most
/// [`LONGEST_PAUSE`], since calls wait. Pure.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    in_a_row: u32,
}

const PAUSE_STEP: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A worker that has lived this long was not to blame for its predecessors' deaths.
const LONG_LIFE: Duration = Duration::from_secs(5);

impl Deaths {
    /// A worker has died at this age, or could not be started: the pause before the next one.
    pub(super) fn another(&mut self, age: Duration) -> Duration {
        if age >= LONG_LIFE {
            self.in_a_row = 0;
        }
        let pause = PAUSE_STEP.saturating_mul(self.in_a_row.saturating_mul(self.in_a_row)).min(LONGEST_PAUSE);
        self.in_a_row = self.in_a_row.saturating_add(1);
        pause
    }

    /// How many there were in a row.
    #[must_use]
    pub(super) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Deaths in a row are said whenever their number has doubled.
    #[must_use]
    pub(super) fn level(&self) -> log::Level {
        if self.in_a_row.is_power_of_two() { log::Level::Error } else { log::Level::Debug }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_deaths_in_a_row_and_a_long_life_ends_the_row() {
        let mut deaths = Deaths::default();
        let pauses: Vec<u128> = (0..12).map(|_| deaths.another(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [0, 5, 20, 45, 80, 125, 180, 245, 320, 405, 500, 500]);
        assert_eq!(deaths.in_a_row(), 12);
        assert_eq!(deaths.another(LONG_LIFE), Duration::ZERO);
        assert_eq!((deaths.in_a_row(), deaths.level()), (1, log::Level::Error));
    }
}
