//! What every test needs: a real osqueryd with the extension in its list, and a server that it talks to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::certs::default_authority;
use testkit::server::{self, Server};

use crate::processes::{self, MARK, Roles, is_alive, signal};

/// No condition takes longer on a machine that works; a loaded one gets its time.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The enroll secret of all tests.
pub(crate) const SECRET: &str = "s3cret-of-the-tests";

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_osquery-remote-tls");

/// A waiting test looks again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Our processes are gone this long after osqueryd's: 2 s are promised.
const GONE_WITHIN: Duration = Duration::from_secs(4);

/// The end of each log that a failed test shows, in bytes.
const SHOWN: usize = 6_000;

/// The osqueryd to be tried, and a place among the tests that run at the same time.
pub(crate) struct Real {
    program: PathBuf,
    _turn: Turn,
}

/// Some tests measure, and want the machine for themselves.
enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

static TURNS: RwLock<()> = RwLock::new(());

/// The osqueryd that `OSQUERYD` names. `None`, and a word on stderr, when it names none: the test is skipped.
pub(crate) fn real() -> Option<Real> {
    let program = program()?;
    let guard = TURNS.read().unwrap_or_else(PoisonError::into_inner);
    Some(Real { program, _turn: Turn::Shared { _guard: guard } })
}

/// The same, while no other test of this suite runs.
pub(crate) fn real_alone() -> Option<Real> {
    let program = program()?;
    let guard = TURNS.write().unwrap_or_else(PoisonError::into_inner);
    Some(Real { program, _turn: Turn::Alone { _guard: guard } })
}

fn program() -> Option<PathBuf> {
    let Some(program) = std::env::var_os("OSQUERYD").filter(|program| !program.is_empty()) else {
        say("skipped, it needs a real osqueryd: OSQUERYD=/path/to/osqueryd names one");
        return None;
    };
    let program = PathBuf::from(program);
    assert!(program.is_file(), "OSQUERYD names no file: {}", program.display());
    Some(program)
}

/// Says something on stderr that the test harness doesn't keep to itself, with the test's name before it.
pub(crate) fn say(text: &str) {
    let thread = thread::current();
    let _ = writeln!(io::stderr(), "real: {}: {text}", thread.name().unwrap_or("?"));
}

/// A number that the environment may set.
pub(crate) fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// Lets a random moment come: where in the load a kill hits is what such a test is about.
pub(crate) fn random_moment(from: Duration, to: Duration) {
    thread::sleep(from + (to - from).mul_f64(fastrand::f64()));
}

/// A host: a directory, a server, and osqueryd while it is started.
pub(crate) struct Host {
    pub(crate) server: Server,
    program: PathBuf,
    flags: RefCell<BTreeMap<String, String>>,
    daemon: RefCell<Option<Child>>,
    /// The watcher's, also when it has ended by itself.
    watcher: Cell<Option<Pid>>,
    directory: TempDir,
}

impl Host {
    /// A host that isn't started yet, whose server gives out this configuration.
    pub(crate) fn new(real: &Real, config: Value) -> Self {
        let options = server::Options { enroll_secret: Some(SECRET.to_owned()), config, ..server::Options::default() };
        let server = Server::start(options).unwrap();
        let directory = tempfile::Builder::new().prefix("osqueryd-").tempdir().unwrap();
        let host = Self {
            server,
            program: real.program.clone(),
            flags: RefCell::default(),
            daemon: RefCell::default(),
            watcher: Cell::new(None),
            directory,
        };
        host.lay_out();
        host.plugins("remote_tls");
        host
    }

    /// The files that an operator would put there, and the flags that name them.
    fn lay_out(&self) {
        self.file("ca.pem", &default_authority().cert_pem());
        self.file("secret", &format!("{SECRET}\n"));
        // A fleet's hosts would take up to ten minutes to enroll again.
        self.file("remote_tls.flags", "--reenroll_within=0\n");
        let extension = self.path("remote_tls.ext");
        let binary = std::env::var_os("REAL_EXTENSION").unwrap_or_else(|| BINARY.into());
        fs::copy(binary, &extension).unwrap();
        // osqueryd starts what root or its own user owns, what others can't write, and what isn't in a directory
        // like /tmp itself: the sticky bit of the file's own directory decides.
        fs::set_permissions(&extension, fs::Permissions::from_mode(0o755)).unwrap();
        self.file("extensions.load", &format!("{}\n", extension.display()));
        fs::create_dir(self.path("logs")).unwrap();
        let file = |name: &str| self.path(name).display().to_string();
        for (name, value) in [
            ("tls_hostname", self.server.hostname()),
            ("tls_server_certs", file("ca.pem")),
            ("enroll_secret_path", file("secret")),
            ("extensions_autoload", file("extensions.load")),
            ("extensions_socket", file("osquery.em")),
            ("database_path", file("osquery.db")),
            ("pidfile", file("osqueryd.pid")),
            ("logger_path", file("logs")),
        ] {
            self.flag(name, &value);
        }
        for (name, value) in [
            ("enroll_tls_endpoint", "/enroll"),
            ("config_tls_endpoint", "/config"),
            ("logger_tls_endpoint", "/log"),
            ("distributed_tls_read_endpoint", "/distributed_read"),
            ("distributed_tls_write_endpoint", "/distributed_write"),
            ("disable_distributed", "false"),
            ("distributed_interval", "1"),
            ("config_refresh", "2"),
            ("logger_tls_period", "1"),
            ("logger_tls_backoff_max", "1"),
            ("tls_enroll_max_interval", "1"),
            ("schedule_splay_percent", "0"),
            ("disable_events", "true"),
            // A busy machine starts a process more slowly than in 3 s now and then; docs/migrate.md advises this.
            ("extensions_timeout", "10"),
            // Its lines tell when a query was logged, and keep status lines coming.
            ("verbose", "true"),
            ("utc", "true"),
            // Queries that log all the time are what these tests are made of.
            ("watchdog_utilization_limit", "100"),
        ] {
            self.flag(name, value);
        }
    }

    /// A flag of osqueryd's flag file, from the next start on.
    pub(crate) fn flag(&self, name: &str, value: &str) {
        self.flags.borrow_mut().insert(name.to_owned(), value.to_owned());
    }

    /// The three lines that docs/migrate.md is about.
    pub(crate) fn plugins(&self, name: &str) {
        for flag in ["config_plugin", "logger_plugin", "distributed_plugin"] {
            self.flag(flag, name);
        }
    }

    /// The content of our own flag file, from the next start on.
    pub(crate) fn own_flags(&self, content: &str) {
        self.file("remote_tls.flags", content);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file beside osqueryd's.
    pub(crate) fn file(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn mark(&self) -> PathBuf {
        self.path("remote_tls.flags")
    }

    /// Starts osqueryd, which starts its worker and the extension. It must not run.
    pub(crate) fn start(&self) {
        assert!(self.daemon.borrow().is_none(), "osqueryd runs already");
        let flags: String = self.flags.borrow().iter().map(|(name, value)| format!("--{name}={value}\n")).collect();
        self.file("osquery.flags", &flags);
        let log = OpenOptions::new().create(true).append(true).open(self.path("osqueryd.log")).unwrap();
        let child = Command::new(&self.program)
            .arg(format!("--flagfile={}", self.path("osquery.flags").display()))
            .env(MARK, self.mark())
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.watcher.set(Some(Pid::from_child(&child)));
        *self.daemon.borrow_mut() = Some(child);
    }

    /// The process that the test has started: osqueryd's watcher.
    pub(crate) fn watcher(&self) -> Pid {
        self.watcher.get().expect("osqueryd has been started")
    }

    /// Whether the watcher lives.
    pub(crate) fn runs(&self) -> bool {
        self.daemon.borrow().is_some() && is_alive(self.watcher())
    }

    /// Which process has which role now.
    pub(crate) fn roles(&self) -> Roles {
        processes::roles(&self.mark(), self.watcher())
    }

    /// Every process of this host, the watcher among them.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        processes::pids(&self.mark())
    }

    /// Stops osqueryd as a service manager does, and answers how it ended. Our processes must be gone then, too.
    pub(crate) fn stop(&self) -> ExitStatus {
        signal(self.watcher(), Signal::TERM);
        let status = self.ended();
        self.nothing_is_left();
        status
    }

    /// Waits for osqueryd's end, which something has brought about.
    pub(crate) fn ended(&self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.daemon.borrow_mut().as_mut().expect("osqueryd runs").try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "osqueryd does not end");
            thread::sleep(LOOK_AGAIN);
        };
        *self.daemon.borrow_mut() = None;
        status
    }

    /// Waits until no process has the lock on the pid file any more, without which no osqueryd starts. A killed one looks
    /// dead while one of its threads still waits for the disk, and holds it until then.
    pub(crate) fn unlocked(&self) {
        let path = self.path("osqueryd.pid");
        let unlocked = || File::open(&path).unwrap().try_lock().ok();
        assert!(self.look_for(GONE_WITHIN, unlocked).is_some(), "{} is still locked", path.display());
    }

    /// Waits until our processes are gone, as osqueryd is.
    pub(crate) fn nothing_is_left(&self) {
        let gone = || self.processes().is_empty().then_some(());
        assert!(self.look_for(GONE_WITHIN, gone).is_some(), "processes of ours outlive osqueryd by {GONE_WITHIN:?}");
    }

    /// Waits until `f` has an answer. osqueryd must not end meanwhile.
    pub(crate) fn wait<T>(&self, what: &str, f: impl FnMut() -> Option<T>) -> T {
        self.wait_unless_it_ends(what, f)
            .unwrap_or_else(|| panic!("osqueryd has ended, while this was waited for: {what}"))
    }

    /// The same; `None` when osqueryd has ended.
    pub(crate) fn wait_unless_it_ends<T>(&self, what: &str, mut f: impl FnMut() -> Option<T>) -> Option<T> {
        let answer = self.look_for(LIMIT, || f().map(Some).or_else(|| (!self.runs()).then_some(None)));
        answer.unwrap_or_else(|| panic!("not within {LIMIT:?}: {what}"))
    }

    fn look_for<T>(&self, limit: Duration, mut f: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        loop {
            let found = f();
            if found.is_some() || Instant::now() > deadline {
                return found;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until the server has this many result lines more than now.
    pub(crate) fn more_results(&self, more: usize) {
        let wanted = self.server.result_count() + more;
        self.wait(&format!("{more} more result lines"), || (self.server.result_count() >= wanted).then_some(()));
    }

    /// Waits until all has come, or no result line any more for some seconds. `is_complete` may take its time: it is
    /// asked in pauses only.
    pub(crate) fn settled(&self, mut is_complete: impl FnMut() -> bool) {
        let (pause, quiet) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut last = (self.server.result_count(), Instant::now());
        let mut asked = false;
        while last.1.elapsed() < quiet {
            let count = self.server.result_count();
            if count != last.0 {
                last = (count, Instant::now());
                asked = false;
            } else if !asked && last.1.elapsed() > pause {
                if is_complete() {
                    return;
                }
                // What it took is no quiet of the server's, since it may have kept it from taking lines.
                last.1 = Instant::now();
                asked = true;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What osqueryd's and our processes have written on stderr, over all starts.
    pub(crate) fn log(&self) -> String {
        fs::read(self.path("osqueryd.log"))
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// How long that is now: what comes behind it is [`Host::log_since`].
    pub(crate) fn log_length(&self) -> u64 {
        fs::metadata(self.path("osqueryd.log")).map_or(0, |metadata| metadata.len())
    }

    pub(crate) fn log_since(&self, length: u64) -> String {
        let mut text = Vec::new();
        let mut file = File::open(self.path("osqueryd.log")).unwrap();
        file.seek(SeekFrom::Start(length)).unwrap();
        file.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The rows of a query that osqueryd's shell asks the running osqueryd, or what went wrong.
    pub(crate) fn try_sql(&self, sql: &str) -> Result<Vec<Map<String, Value>>, String> {
        let output = Command::new(&self.program)
            .args(["-S", "--json", "--connect"])
            .arg(self.path("osquery.em"))
            .arg(sql)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let rows = text.find('[').and_then(|start| serde_json::from_str(&text[start..]).ok());
        rows.ok_or_else(|| format!("{sql}: {text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The same, which must succeed: with a table of ours it does as soon as the extension is registered.
    pub(crate) fn sql(&self, sql: &str) -> Vec<Map<String, Value>> {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Has the schedule emptied, and waits until osqueryd runs no query any more.
    pub(crate) fn end_schedule(&self) {
        self.end_schedule_within(LIMIT);
    }

    /// The same, where the configuration may be asked for only then.
    pub(crate) fn end_schedule_within(&self, limit: Duration) {
        self.server.set_config(json!({"schedule": {}}));
        let is_empty = || {
            let rows = self.try_sql("SELECT count(*) AS n FROM osquery_schedule").ok()?;
            (rows.first()?.get("n")?.as_str()? == "0").then_some(())
        };
        assert!(self.look_for(limit, is_empty).is_some(), "the schedule is not empty within {limit:?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show();
        }
        // The watcher first: it would start others.
        if let Some(child) = self.daemon.borrow_mut().as_mut() {
            let _ = child.kill();
        }
        self.processes().into_iter().for_each(|pid| signal(pid, Signal::KILL));
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            let _ = child.wait();
        }
        // One that was being started meanwhile.
        self.processes().into_iter().for_each(|pid| signal(pid, Signal::KILL));
    }
}

impl Host {
    fn show(&mut self) {
        let _ = writeln!(
            io::stderr(),
            "==== osqueryd and the extension\n{}\n==== server\n{}",
            last(&self.log()),
            last(&self.server.transcript())
        );
        if std::env::var_os("REAL_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            say(&format!("its directory is kept: {}", self.directory.path().display()));
        }
    }
}

/// The last lines of a text.
fn last(text: &str) -> &str {
    let mut start = text.len().saturating_sub(SHOWN);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The lines of a file that a logger of osqueryd's writes; one that is cut off is left out.
pub(crate) fn logged(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
