//! Workers as processes: started, heard, ended.

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

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use crate::control::{Descriptors, Ready, Receiver, Report, ToOther, WORKER_NAME};
use crate::files::{FileLook, open_program};
use crate::platform;

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
    pid: Pid,
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
        Self { number, to: Arc::new(ToOther::new(stream)), pid }
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
