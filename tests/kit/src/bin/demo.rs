//! The demonstration: osqueryd (the stand-in, or the real one that `OSQUERYD` names) autoloads the extension, which
//! enrolls with a reference server, gets a configuration, forwards log lines and carries a distributed query; then
//! the server goes away and comes back, and nothing is lost. Ends by itself.

use std::collections::BTreeSet;
use std::fs;
use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::certs::default_authority;
use testkit::server::{Endpoint, Options, Server};

/// No step takes longer on a machine that works.
const STEP_LIMIT: Duration = Duration::from_secs(20);

const QUERY: &str = "SELECT unix_time AS now FROM time";

/// Columns of a terminal by default.
const COLUMNS: usize = 80;

/// What stands before each line: `[ 12.3 s] `.
const MARGIN: usize = 10;

/// Characters of a value that are shown.
const SHOWN: usize = 160;

fn main() -> ExitCode {
    if let Some(osqueryd) = std::env::var_os("OSQUERYD").map(PathBuf::from).filter(|path| !path.is_file()) {
        eprintln!("demo: OSQUERYD={} is no program: give the path of an osqueryd, or none", osqueryd.display());
        return ExitCode::FAILURE;
    }
    println!("Building the extension and what goes with it: some minutes the first time.");
    let Some(programs) = Programs::build() else {
        eprintln!("demo: the extension could not be built");
        return ExitCode::FAILURE;
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    Demo::run(&programs, directory.path());
    ExitCode::SUCCESS
}

/// What is to be run.
struct Programs {
    extension: PathBuf,
    osqueryd: PathBuf,
    real: bool,
}

impl Programs {
    /// Builds the extension and the stand-in beside this program, with dependencies as `cargo test --workspace` needs them.
    fn build() -> Option<Self> {
        let here = std::env::current_exe().ok()?;
        let directory = here.parent()?;
        let mut build = testkit::programs::cargo();
        build.args(["build", "--quiet", "--locked", "--workspace"]);
        build.args(["--bin", "osquery-remote-tls", "--bin", "osqueryd-standin"]);
        build.arg("--target-dir").arg(directory.parent()?);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        if !build.status().ok()?.success() {
            return None;
        }
        let real = std::env::var_os("OSQUERYD").map(PathBuf::from);
        Some(Self {
            extension: directory.join("osquery-remote-tls"),
            real: real.is_some(),
            osqueryd: real.unwrap_or_else(|| directory.join("osqueryd-standin")),
        })
    }
}

struct Demo {
    began: Instant,
    server: Server,
    osqueryd: Osqueryd,
}

/// The daemon, ended when the demonstration is, however it ends.
struct Osqueryd(Child);

impl Drop for Osqueryd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Demo {
    fn run(programs: &Programs, directory: &Path) {
        let began = Instant::now();
        let options = Options {
            enroll_secret: Some("demo-secret".to_owned()),
            config: json!({"schedule": {"clock": {"query": QUERY, "interval": 1}}}),
            ..Options::default()
        };
        let server = Server::start(options).expect("the reference server");
        say(
            began,
            &format!("a reference server listens on https://{}, with a certificate of its own", server.hostname()),
        );
        let flagfile = write_files(directory, &server, &programs.extension);
        let name = if programs.real { "osqueryd" } else { "a stand-in for osqueryd (OSQUERYD=path takes a real one)" };
        say(began, &format!("starting {name} with this flag file:"));
        for line in fs::read_to_string(&flagfile).expect("the flag file").lines() {
            println!("{:MARGIN$}{line}", "");
        }
        let osqueryd = Osqueryd(start(&programs.osqueryd, &flagfile, directory));
        let mut demo = Self { began, server, osqueryd };
        demo.main_job();
        demo.outage();
        demo.end();
        let seen = "The extension enrolled this host with the server, gave osqueryd the server's configuration, delivered the \
                    lines of its query, answered a question that the server asked right then, kept the lines that came while \
                    the server was away, and delivered all of them when it was back.";
        println!("\n{}", wrapped(seen, COLUMNS).join("\n"));
        println!("{}", coloured("32", "Nothing was lost, and everything has ended cleanly."));
    }

    fn main_job(&self) {
        let enrolled = self.wait("an enrollment", |server| server.requests_to(Endpoint::Enroll).into_iter().next());
        let identifier = enrolled.json.as_ref().map(|body| body["host_identifier"].to_string()).unwrap_or_default();
        self.say(&format!("registered and enrolled: host_identifier {identifier}, a node key in osqueryd's own store"));
        self.wait("a configuration request", |server| server.requests_to(Endpoint::Config).into_iter().next());
        self.say("configuration delivered: one query a second");
        let line = self.wait("a result", |server| server.results().into_iter().next());
        self.say(&format!("first line logged and received: {}", beginning(&line)));
        self.server.add_query("who", "SELECT version FROM osquery_info");
        let written = self.wait("a distributed query's result", |server| server.written().into_iter().next());
        self.say(&format!("distributed query answered: {}", beginning(&written["queries"])));
    }

    fn outage(&self) {
        let before = self.counters().len();
        self.server.stop();
        let times = if before == 1 { "once".to_owned() } else { format!("{before} times") };
        self.say(&format!("the query has run {times}; the server is stopped, and osqueryd goes on logging"));
        self.pass_time(Duration::from_secs(5));
        self.server.resume().expect("the server's port");
        self.say("the server is there again");
        let counters =
            self.wait("the lines of the outage", |_| Some(self.counters()).filter(|all| all.len() >= before + 4));
        let whole = counters.iter().copied().eq(0..counters.len() as u64);
        assert!(whole, "runs are missing among {counters:?}");
        self.say(&format!("all {} runs of the query are there, each in its place: nothing is lost", counters.len()));
    }

    fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.osqueryd.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal to osqueryd");
        let status = self.osqueryd.0.wait().expect("osqueryd's end");
        self.say(&format!("osqueryd was asked to end, and with it the extension: {status}"));
        assert!(status.success(), "osqueryd ended with {status}");
    }

    /// The runs of the query that the server has lines of: osquery counts them.
    fn counters(&self) -> BTreeSet<u64> {
        self.server.results().iter().filter_map(|line: &Value| line["counter"].as_u64()).collect()
    }

    /// The one wait here that is for time to pass: the outage's length.
    fn pass_time(&self, length: Duration) {
        std::thread::sleep(length);
    }

    fn wait<T>(&self, what: &str, f: impl FnMut(&Server) -> Option<T>) -> T {
        self.server.wait(what, STEP_LIMIT, f)
    }

    fn say(&self, text: &str) {
        say(self.began, text);
    }
}

fn say(began: Instant, text: &str) {
    let mut time = coloured("2", &format!("[{:5.1} s]", began.elapsed().as_secs_f32()));
    for line in wrapped(text, COLUMNS - MARGIN) {
        println!("{time} {line}");
        time = " ".repeat(MARGIN - 1);
    }
}

/// A value's JSON, or its beginning.
fn beginning(value: &Value) -> String {
    let text = value.to_string();
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// The text in lines of at most `columns` characters; a word that is longer is cut.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for piece in letters.chunks(columns) {
            let piece: String = piece.iter().collect();
            match lines.last_mut() {
                Some(line) if line.is_empty() => *line = piece,
                Some(line) if line.chars().count() + 1 + piece.chars().count() <= columns => {
                    line.push(' ');
                    line.push_str(&piece);
                }
                _ => lines.push(piece),
            }
        }
    }
    lines
}

/// In a colour (SGR's number) on a terminal, unless `NO_COLOR` asks for none.
fn coloured(colour: &str, text: &str) -> String {
    let wanted = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Everything that an operator would set up, in `directory`: answers the flag file's path.
fn write_files(directory: &Path, server: &Server, extension: &Path) -> PathBuf {
    let path = |name: &str| directory.join(name);
    fs::write(path("ca.pem"), default_authority().cert_pem()).expect("the CA's certificate");
    fs::write(path("secret"), "demo-secret\n").expect("the secret");
    fs::copy(extension, path("remote_tls.ext")).expect("the extension");
    fs::write(path("extensions.load"), format!("{}\n", path("remote_tls.ext").display())).expect("extensions.load");
    let file = |name: &str| path(name).display().to_string();
    let flags = [
        ("config_plugin", "remote_tls".to_owned()),
        ("logger_plugin", "remote_tls".to_owned()),
        ("distributed_plugin", "remote_tls".to_owned()),
        ("logger_tls_period", "1".to_owned()),
        ("logger_tls_backoff_max", "2".to_owned()),
        ("disable_distributed", "false".to_owned()),
        ("distributed_interval", "2".to_owned()),
        ("schedule_splay_percent", "0".to_owned()),
        ("extensions_autoload", file("extensions.load")),
        ("extensions_socket", file("osquery.em")),
        ("extensions_timeout", "10".to_owned()),
        ("database_path", file("osquery.db")),
        ("pidfile", file("osqueryd.pid")),
    ];
    let flags = flags.into_iter().chain(server.flags_of_a_host(directory));
    let text: String = flags.map(|(name, value)| format!("--{name}={value}\n")).collect();
    fs::write(path("osquery.flags"), text).expect("the flag file");
    path("osquery.flags")
}

/// Everything lies in a temporary directory, which only `--allow_unsafe` lets osqueryd autoload from.
fn start(osqueryd: &Path, flagfile: &Path, directory: &Path) -> Child {
    let log = fs::File::create(directory.join("osqueryd.log")).expect("a log file");
    Command::new(osqueryd)
        .arg(format!("--flagfile={}", flagfile.display()))
        .arg("--allow_unsafe")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("osqueryd")
}
