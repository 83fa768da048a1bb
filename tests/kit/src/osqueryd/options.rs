//! How a stand-in is to be, and what it says when it cannot start.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a stand-in is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where `osquery.em`, `osquery.db` (a JSON file here) and `extensions.load` are, unless flags say otherwise.
    pub dir: PathBuf,
    /// Flags as if given on the command line, over their defaults. Names that osqueryd does not know are refused,
    /// but for `custom_*`.
    pub flags: BTreeMap<String, String>,
    /// Binaries to autoload: one whose name does not end in `.ext` is linked or copied into the directory with that
    /// ending. Their paths are written to `extensions.load`; when there are none, that file is left as it is.
    pub extensions: Vec<PathBuf>,
    /// Environment for the extensions, over that of this process.
    pub env: Vec<(String, String)>,
    /// Adds `--verbose`, for osqueryd and its extensions.
    pub verbose: bool,
    /// Runs the delivered schedule. Not in [`super::Osqueryd::start_bare`].
    pub scheduler: bool,
    /// Relays osqueryd's own log to the logger every [`Options::relay_interval`]. Not in
    /// [`super::Osqueryd::start_bare`].
    pub status_relay: bool,
    /// osqueryd's own is 3 s, which is the default.
    pub relay_interval: Duration,
    /// Polls for distributed queries. Not in [`super::Osqueryd::start_bare`].
    pub distributed: bool,
    /// How many times faster than a clock the schedule, the config refresh and the distributed poll go.
    pub time_scale: u32,
    /// Autoload extensions from anywhere and with any permissions.
    pub allow_unsafe: bool,
    /// osqueryd's version.
    pub version: String,
    /// Whether the table `platform_info` has its row.
    pub platform_info: bool,
    /// How often the watcher looks at its children: osqueryd's every 3 s. What has exited is started again at the next
    /// look, so that an extension comes back after 0 to 3 s. A third of it is a second of the watcher's clock, by which
    /// a worker's death is early, and by which the next worker is delayed then.
    pub watch_interval: Duration,
    /// The watcher starts another worker when one has died, as osqueryd's does, and gives up after four early deaths.
    /// Otherwise a test does, by [`super::Osqueryd::start_worker`].
    pub restarts_worker: bool,
    /// How long after SIGTERM the watcher sends SIGKILL; as in osqueryd, `alarm_timeout` less 4 s, when it is none.
    pub kill_after: Option<Duration>,
    /// Prints osqueryd's log to standard error, and what is captured of the extensions.
    pub echo: bool,
    /// Captures what extensions write. Without it they inherit standard output and error, as osqueryd's do.
    pub capture: bool,
}

impl Options {
    /// Everything in `dir`, plugins of `remote_tls` throughout, distributed queries enabled; what costs time or
    /// calls on its own account (scheduler, status relay, distributed poll) is off.
    pub fn new(dir: &Path) -> Options {
        let mut flags = BTreeMap::new();
        for (name, file) in [
            ("extensions_socket", "osquery.em"),
            ("database_path", "osquery.db"),
            ("extensions_autoload", "extensions.load"),
            ("config_path", "osquery.conf"),
            ("pidfile", "osqueryd.pidfile"),
        ] {
            flags.insert(name.to_owned(), dir.join(file).display().to_string());
        }
        for registry in ["config", "logger", "distributed"] {
            flags.insert(format!("{registry}_plugin"), "remote_tls".to_owned());
        }
        flags.insert("disable_distributed".to_owned(), "false".to_owned());
        Options {
            dir: dir.to_owned(),
            flags,
            extensions: Vec::new(),
            env: Vec::new(),
            verbose: false,
            scheduler: false,
            status_relay: false,
            relay_interval: Duration::from_secs(3),
            distributed: false,
            time_scale: 1,
            allow_unsafe: true,
            version: "5.23.0".to_owned(),
            platform_info: true,
            watch_interval: Duration::from_millis(100),
            restarts_worker: false,
            kill_after: None,
            echo: false,
            capture: true,
        }
    }

    /// Sets a flag.
    pub fn flag(mut self, name: &str, value: &str) -> Options {
        self.flags.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Autoloads a binary.
    pub fn extension(mut self, binary: &Path) -> Options {
        self.extensions.push(binary.to_owned());
        self
    }
}

/// Why osqueryd ended before it was up.
pub struct StartError {
    /// osqueryd's exit code.
    pub code: i32,
    /// What it printed last.
    pub message: String,
    /// What happened until then.
    pub transcript: String,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "osqueryd ended with exit code {}: {}", self.code, self.message)
    }
}

impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}\n{}", self.transcript)
    }
}

impl std::error::Error for StartError {}
