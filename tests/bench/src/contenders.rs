//! Who is measured: the floor, this extension, and loggers that others would write.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testkit::osqueryd::{Options, Osqueryd};

use crate::load::Caller;
use crate::processes::Processes;
use crate::programs::{self, Programs};
use crate::sink::SinkSetup;
use crate::thrift;

/// No start takes longer, not even Python's.
const LIMIT: Duration = Duration::from_secs(20);

/// The environment variable that names our own flag file.
pub(crate) const FLAGFILE_VARIABLE: &str = "REMOTE_TLS_FLAGFILE";

/// An extension that is running.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    plugin: &'static str,
    pub(crate) socket: PathBuf,
    pub(crate) processes: Processes,
    /// In the order in which they are to end.
    _running: Running,
    _directories: Vec<TempDir>,
}

/// What keeps it running.
enum Running {
    Floor(#[expect(dead_code, reason = "it is kept for its drop")] Killed),
    StandIn(#[expect(dead_code, reason = "it is kept for its drop")] Osqueryd),
}

/// A process that is killed at the end, however the end comes.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Contender {
    /// (a) A server that keeps nothing.
    pub(crate) fn floor() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("floor.em");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("floor").arg(&socket).stdin(Stdio::piped());
        let child = Killed(command.spawn().expect("the floor starts"));
        wait_for("the floor", || Caller::new(&socket).pings().then_some(()));
        Self {
            name: "(a) floor",
            plugin: "floor",
            processes: Processes::family(child.0.id()),
            socket,
            _running: Running::Floor(child),
            _directories: vec![directory],
        }
    }

    /// (b) This extension, with a sink of this setup, or none.
    pub(crate) fn ours(programs: &Programs, setup: &SinkSetup, flags: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir_in(&programs.scratch).expect("a directory on disk");
        let options = our_options(directory.path(), setup, flags);
        let ours = Self::start("(b) ours", "remote_tls", &programs.extension, options, directory);
        // The front answers before its worker is there.
        let processes = wait_for("our worker", || {
            Some(Processes::family(ours.processes.first())).filter(|processes| processes.count() == 2)
        });
        Self { processes, ..ours }
    }

    /// The same under another name.
    pub(crate) fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// (c) A logger on `osquery-rust-ng` that appends to a file.
    pub(crate) fn neighbour(programs: &Programs) -> Self {
        let directory = tempfile::tempdir_in(&programs.scratch).expect("a directory on disk");
        let mut options = Options::new(directory.path());
        options.env.push(("NEIGHBOUR_LOG".to_owned(), directory.path().join("lines").display().to_string()));
        Self::start("(c) osquery-rust-ng", "neighbour_logger", &programs.neighbour, options, directory)
    }

    /// (d) A logger on the PyPI bindings that appends to a file.
    pub(crate) fn python(programs: &Programs, python: &Path) -> Self {
        let directory = tempfile::tempdir_in(&programs.scratch).expect("a directory on disk");
        let mut options = Options::new(directory.path());
        options.env.push(("BENCH_LOG".to_owned(), directory.path().join("lines").display().to_string()));
        let program = directory.path().join("python_logger.ext");
        let script =
            format!("#!/bin/sh\nexec '{}' '{}' \"$@\"\n", python.display(), programs::python_logger().display());
        write_executable(&program, &script);
        Self::start("(d) PyPI osquery", "python_logger", &program, options, directory)
    }

    fn start(name: &'static str, plugin: &'static str, program: &Path, options: Options, directory: TempDir) -> Self {
        // A socket's path must be short, and the scratch directory's may not be.
        let sockets = tempfile::tempdir().expect("a temporary directory");
        let socket = sockets.path().join("osquery.em");
        let options = options.flag("extensions_socket", &socket.display().to_string()).extension(program);
        let osqueryd = Osqueryd::start_bare(options);
        // The key is as good as any to the sink, and no enrollment is in what is measured.
        osqueryd.store_put("configurations", "nodeKey", "bench-node-key-1");
        let uuid = osqueryd.wait_extension(plugin, LIMIT);
        let socket = PathBuf::from(format!("{}.{uuid}", socket.display()));
        wait_for(name, || Caller::new(&socket).pings().then_some(()));
        let [(_, pid)] = osqueryd.children()[..] else { panic!("{name} is not running") };
        Self {
            name,
            plugin,
            socket,
            processes: Processes::family(pid),
            _running: Running::StandIn(osqueryd),
            _directories: vec![directory, sockets],
        }
    }

    /// The process that takes lines: of ours the front, of others the only one.
    pub(crate) fn taking(&self) -> u32 {
        self.processes.first()
    }

    /// The process that delivers lines: our worker.
    pub(crate) fn delivering(&self) -> u32 {
        self.processes.youngest()
    }

    /// The call that logs this line.
    pub(crate) fn log(&self, line: &str) -> Vec<u8> {
        thrift::call("logger", self.plugin, &[("category", b"event"), ("string", line.as_bytes())])
    }

    /// Puts `count` lines of a size into ours, a call each, over one connection: osqueryd's habit would take longer.
    ///
    /// # Panics
    /// When a call fails.
    pub(crate) fn fill(&self, count: u64, size: usize) {
        let mut stream = UnixStream::connect(&self.socket).expect("the extension listens");
        let mut answer = Vec::new();
        for n in 0..count {
            let call = self.log(&crate::lines::line(n, size));
            stream.write_all(&call).expect("the extension reads");
            let length = thrift::read(&mut stream, &mut answer).expect("an answer").expect("an answer");
            assert_eq!(thrift::code(&answer[..length]), Some(0), "a line is taken");
        }
    }
}

/// An osqueryd that has all that ours needs, and keeps everything in `directory`.
pub(crate) fn our_options(directory: &Path, setup: &SinkSetup, flags: &[(&str, &str)]) -> Options {
    let own_flags = directory.join("remote_tls.flags");
    // A binary that doesn't know one of them says so and goes on.
    std::fs::write(&own_flags, "--logger_expand_events=true\n").expect("flags");
    let mut options = Options::new(directory);
    for (name, value) in [
        ("tls_hostname", format!("localhost:{}", setup.port).as_str()),
        ("tls_server_certs", &setup.authority.display().to_string()),
        ("enroll_tls_endpoint", "/enroll"),
        ("config_tls_endpoint", "/config"),
        ("logger_tls_endpoint", "/log"),
        // What is measured is delivery, and not how long after a failure it begins.
        ("logger_tls_period", "1"),
        ("logger_tls_backoff_max", "1"),
    ] {
        options = options.flag(name, value);
    }
    for (name, value) in flags {
        options = options.flag(name, value);
    }
    options.env.push((FLAGFILE_VARIABLE.to_owned(), own_flags.display().to_string()));
    options
}

/// Waits until something is there; a look costs little.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not start");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn write_executable(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("a script");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
}
