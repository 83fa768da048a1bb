//! What every test needs: an osqueryd stand-in that autoloads the real binary, and a server that it talks to.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use testkit::certs::default_authority;
use testkit::osqueryd::{self, CallOutcome, Osqueryd};
use testkit::server::{self, Endpoint, Recorded, Server};

/// No condition takes longer on a machine that works; a loaded one gets its time.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The enroll secret of all tests, unlike anything else that they print.
pub(crate) const SECRET: &str = "s3cret-of-the-tests";

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_osquery-remote-tls");

/// Another key is asked for at once, and not within ten minutes; a test that says otherwise comes behind it.
const OWN_FLAGS: &str = "--reenroll_within=0\n";

/// What a test asks for before it starts.
pub(crate) struct Setup {
    pub(crate) server: server::Options,
    pub(crate) osqueryd: osqueryd::Options,
    own_flags: String,
    address: Option<String>,
    /// What stands behind the server's name in `tls_hostname`.
    server_path: String,
    directory: TempDir,
}

/// Both sides, running.
pub(crate) struct Rig {
    pub(crate) osqueryd: Osqueryd,
    pub(crate) server: Server,
    pub(crate) directory: TempDir,
}

impl Setup {
    /// A server that wants the secret, and an osqueryd with the flags that go with it; fast periods.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut osqueryd = osqueryd::Options::new(directory.path());
        osqueryd.extensions = vec![PathBuf::from(BINARY)];
        let server = server::Options { enroll_secret: Some(SECRET.to_owned()), ..server::Options::default() };
        let own_flags = OWN_FLAGS.to_owned();
        let setup = Self { server, osqueryd, own_flags, address: None, server_path: String::new(), directory };
        let authority = setup.file("ca.pem", &default_authority().cert_pem());
        let secret = setup.file("secret", &format!("  {SECRET}\n"));
        setup
            .flag("tls_server_certs", &authority.display().to_string())
            .flag("enroll_secret_path", &secret.display().to_string())
            .flag("enroll_tls_endpoint", "/enroll")
            .flag("config_tls_endpoint", "/config")
            .flag("logger_tls_endpoint", "/log")
            .flag("distributed_tls_read_endpoint", "/distributed_read")
            .flag("distributed_tls_write_endpoint", "/distributed_write")
            .flag("config_plugin", "remote_tls")
            .flag("logger_plugin", "remote_tls")
            .flag("distributed_plugin", "remote_tls")
            .flag("logger_tls_period", "1")
            .flag("logger_tls_backoff_max", "1")
            .flag("tls_enroll_max_interval", "1")
    }

    pub(crate) fn flag(mut self, name: &str, value: &str) -> Self {
        self.osqueryd.flags.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The host has this client certificate and its key.
    pub(crate) fn client_certificate(self, cert: &Path, key: &Path) -> Self {
        self.flag("tls_client_cert", cert.to_str().unwrap()).flag("tls_client_key", key.to_str().unwrap())
    }

    pub(crate) fn without_flag(mut self, name: &str) -> Self {
        self.osqueryd.flags.remove(name);
        self
    }

    /// A line of our own flag file.
    pub(crate) fn own_flag(mut self, line: &str) -> Self {
        self.own_flags.push_str(line);
        self.own_flags.push('\n');
        self
    }

    pub(crate) fn server(mut self, change: impl FnOnce(&mut server::Options)) -> Self {
        change(&mut self.server);
        self
    }

    pub(crate) fn osqueryd(mut self, change: impl FnOnce(&mut osqueryd::Options)) -> Self {
        change(&mut self.osqueryd);
        self
    }

    /// The server is asked by this address in place of its name.
    pub(crate) fn address(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    /// The server is named with this path.
    pub(crate) fn server_path(mut self, path: &str) -> Self {
        self.server_path = path.to_owned();
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file beside osqueryd's.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn finish(mut self) -> (Server, osqueryd::Options, TempDir) {
        let server = Server::start(self.server.clone()).unwrap();
        self.osqueryd.flags.entry("tls_hostname".to_owned()).or_insert_with(|| match &self.address {
            Some(address) => format!("{address}:{}{}", server.port(), self.server_path),
            None => format!("{}{}", server.hostname(), self.server_path),
        });
        let own_flags = self.file("remote_tls.flags", &self.own_flags);
        self.osqueryd.env.push(("REMOTE_TLS_FLAGFILE".to_owned(), own_flags.display().to_string()));
        (server, self.osqueryd, self.directory)
    }

    /// Starts both; osqueryd does nothing by itself but serve its manager. Waits for the registration.
    pub(crate) fn start(self) -> Rig {
        let (server, options, directory) = self.finish();
        let osqueryd = Osqueryd::start_bare(options);
        let rig = Rig { osqueryd, server, directory };
        rig.wait_attached();
        rig
    }

    /// Starts both; osqueryd does all that the real one does.
    pub(crate) fn start_daemon(self) -> Rig {
        let (server, options, directory) = self.finish();
        let osqueryd = Osqueryd::start(options).unwrap_or_else(|error| panic!("osqueryd did not start: {error:?}"));
        Rig { osqueryd, server, directory }
    }
}

impl Rig {
    /// Both sides with nothing special.
    pub(crate) fn start() -> Self {
        Setup::new().start()
    }

    /// Waits until the extension is registered and its socket is there, as osqueryd's own 20 ms between two looks
    /// make it wait, and answers its uuid.
    pub(crate) fn wait_attached(&self) -> i64 {
        self.attached().0
    }

    /// The socket by which osqueryd calls the extension, which is there.
    pub(crate) fn extension_socket(&self) -> PathBuf {
        self.attached().1
    }

    fn attached(&self) -> (i64, PathBuf) {
        self.osqueryd.wait("the extension's socket", LIMIT, || {
            let uuid = self.osqueryd.uuid("remote_tls")?;
            let socket = PathBuf::from(format!("{}.{uuid}", self.osqueryd.socket().display()));
            socket.exists().then_some((uuid, socket))
        })
    }

    /// What genConfig says where it fails.
    pub(crate) fn refusal(&self) -> String {
        let outcome = self.gen_config();
        assert_eq!(outcome.code, 1, "it was taken: {:?}", outcome.rows);
        outcome.message
    }

    /// Log requests with result lines.
    pub(crate) fn result_requests(&self) -> Vec<Recorded> {
        let of_results = |json: &Option<Value>| json.as_ref().is_some_and(|body| body["log_type"] == "result");
        self.server.requests_to(Endpoint::Log).into_iter().filter(|request| of_results(&request.json)).collect()
    }

    /// The lines that were set aside, with their reasons.
    pub(crate) fn set_aside(&self) -> Vec<(String, String)> {
        set_aside_in(&self.directory.path().join("remote_tls"))
    }

    /// SIGKILL for both processes: front first, so that no other worker is started, and no stand-in has its moment.
    pub(crate) fn kill_both(&self) {
        for process in [self.pid(), self.worker_pid()] {
            // The worker may have ended by itself a moment ago, now that the front is gone.
            let _ = kill_process(pid(process), Signal::KILL);
        }
    }

    /// The same, and waits until osqueryd has another pair.
    pub(crate) fn kill_both_and_wait(&self) {
        let known = self.osqueryd.registrations().len();
        self.kill_both();
        let is_another = || self.osqueryd.registrations().iter().skip(known).any(|one| one.name == "remote_tls");
        self.osqueryd.wait("another pair", LIMIT, || is_another().then_some(()));
        self.wait_attached();
    }

    /// A call with osqueryd's habit; the values are text.
    pub(crate) fn call(&self, registry: &str, request: &[(&str, &str)]) -> CallOutcome {
        let request: Vec<(&str, &[u8])> = request.iter().map(|&(name, value)| (name, value.as_bytes())).collect();
        self.osqueryd.call(registry, "remote_tls", &request).unwrap()
    }

    /// Logs one result line, which must be taken.
    pub(crate) fn log(&self, line: &str) {
        assert_eq!(self.call("logger", &[("string", line)]).code, 0, "the logger refused {line}");
    }

    /// Asks for the configuration.
    pub(crate) fn gen_config(&self) -> CallOutcome {
        self.call("config", &[("action", "genConfig")])
    }

    /// The configuration's one source and its text, which must be there.
    pub(crate) fn config(&self) -> (String, String) {
        let outcome = self.gen_config();
        assert_eq!(outcome.code, 0, "{}", outcome.message);
        outcome.rows.into_iter().next().unwrap().into_iter().next().unwrap()
    }

    /// Waits until the server has accepted `count` result lines, and answers their `n` members in order.
    pub(crate) fn delivered(&self, count: usize) -> Vec<u64> {
        self.server.wait(&format!("{count} result lines"), LIMIT, |server| {
            (server.result_count() >= count).then(|| numbers(&server.results()))
        })
    }

    /// Waits until no result line is in the journal: the extension knows that the server has them all.
    pub(crate) fn settled(&self) {
        self.osqueryd.wait("an empty journal", LIMIT, || self.waiting("results").is_empty().then_some(()));
    }

    /// The records of a journal that wait, as they lie on the disk, oldest first.
    pub(crate) fn waiting(&self, journal: &str) -> Vec<String> {
        waiting_in(&self.directory.path().join("remote_tls").join(journal))
    }

    /// Waits until the extension has written a line with this text on its stderr.
    pub(crate) fn said(&self, text: &str) {
        self.osqueryd.wait(&format!("the extension to say {text:?}"), LIMIT, || {
            self.osqueryd.stderr_of_extensions().contains(text).then_some(())
        });
    }

    /// Runs the command `refresh`: its exit code, and what it says.
    pub(crate) fn refresh(&self) -> (Option<i32>, String) {
        let mut command = std::process::Command::new(BINARY);
        let output = command.args(["refresh", "--socket"]).arg(self.osqueryd.socket()).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    pub(crate) fn stderr(&self) -> String {
        self.osqueryd.stderr_of_extensions()
    }

    /// The node key in osqueryd's store.
    pub(crate) fn stored_key(&self) -> Option<String> {
        self.osqueryd.store_get("configurations", "nodeKey")
    }

    /// The front's child.
    pub(crate) fn worker_pid(&self) -> u32 {
        self.osqueryd.wait("a worker", LIMIT, || child_of(self.pid()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.osqueryd.extension_pid("osquery-remote-tls").unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("==== osqueryd\n{}\n==== server\n{}", self.osqueryd.transcript(), self.server.transcript());
        }
    }
}

/// A process whose parent `parent` is.
pub(crate) fn child_of(parent: u32) -> Option<u32> {
    children_of(parent).into_iter().next()
}

/// The extension that an osqueryd of another process has started: its other child is its worker.
pub(crate) fn extension_of(osqueryd: u32) -> Option<u32> {
    let is_extension = |process: &u32| {
        let command = std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
        command.contains("remote_tls.ext")
    };
    children_of(osqueryd).into_iter().find(is_extension)
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |process: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{parent}"))
    };
    processes.filter(is_child).collect()
}

/// The lines' `n` members.
pub(crate) fn numbers(lines: &[serde_json::Value]) -> Vec<u64> {
    lines.iter().filter_map(|line| line["n"].as_u64()).collect()
}

/// A result line with a number to know it by.
pub(crate) fn line(n: u64) -> String {
    format!("{{\"name\":\"q\",\"n\":{n}}}")
}

/// A program of another member of the workspace, built when it isn't yet.
pub(crate) fn program(name: &str) -> PathBuf {
    testkit::programs::program(name).unwrap()
}

/// The records that wait in a journal's directory: those behind its cursor, read as plain files.
pub(crate) fn waiting_in(directory: &Path) -> Vec<String> {
    let mut segments: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ndjson"))
        .collect();
    segments.sort();
    let cursor = std::fs::read_to_string(directory.join("cursor")).unwrap_or_default();
    // A damaged one means nothing.
    let mut cursor = cursor.split_ascii_whitespace().map_while(|number| number.parse::<u64>().ok());
    let (file, offset) = (cursor.next().unwrap_or(0), cursor.next().unwrap_or(0));
    let number = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let mut waiting = Vec::new();
    for segment in segments.into_iter().filter(|segment| number(segment) >= file) {
        // One that is gone by now has nothing that waits.
        let bytes = std::fs::read(&segment).unwrap_or_default();
        let skipped = if number(&segment) == file { usize::try_from(offset).unwrap_or(usize::MAX) } else { 0 };
        let text = String::from_utf8_lossy(bytes.get(skipped..).unwrap_or_default()).into_owned();
        waiting.extend(text.lines().map(str::to_owned));
    }
    waiting
}

/// The lines that were set aside in this directory of buffers, with their reasons.
pub(crate) fn set_aside_in(buffers: &Path) -> Vec<(String, String)> {
    let mut text = fs::read_to_string(buffers.join("rejected.ndjson")).unwrap_or_default();
    // A line is written while this reads: where it crosses a page, its first half may be seen alone.
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    let entry = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        (entry["line"].as_str().unwrap().to_owned(), entry["reason"].as_str().unwrap().to_owned())
    };
    text.lines().map(entry).collect()
}

/// What a process has in memory, in KiB: one of the fields `VmRSS:` and `VmHWM:` (the most since its start).
pub(crate) fn memory_of(process: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(i32::try_from(process).unwrap()).unwrap()
}

pub(crate) fn signal(process: u32, signal: Signal) {
    kill_process(pid(process), signal).unwrap();
}

/// Whether the process is there, be it as a zombie.
pub(crate) fn is_alive(process: u32) -> bool {
    test_kill_process(pid(process)).is_ok()
}

/// The seconds since 1970, as lines and osqueryd's store have them.
pub(crate) fn unix_time() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

/// Runs the cases of a test at the same time, each on a host of its own: they wait for periods and back-offs to pass.
pub(crate) fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, run: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            let run = &run;
            scope.spawn(move || run(case));
        }
    });
}

/// Returns after this time: for what must not happen meanwhile.
pub(crate) fn pass(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(1)));
    }
}

pub(crate) fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}
