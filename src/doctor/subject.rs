//! What is examined: all that is read before the first check.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::answering::{Running, names};
use super::flagfile::{Flagfile, Source};
use super::report::About;
use super::told::{self, Told};
use super::{Occasion, running};
use crate::cli::{DEFAULT_SOCKET, DoctorFlags};
use crate::extension::manager::ManagerError;
use crate::extension::registry::NAME;
use crate::platform::ProcessInfo;
use crate::settings::own::{self, FlagfileError};
use crate::settings::{Options, OwnFlags, SettingError, Settings};

/// All checks together take this long at most: an operator who waits at a terminal gives up then.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// A server that takes longer is too slow, whatever comes of it.
const REQUEST_LIMIT: Duration = Duration::from_secs(8);

/// All that was read before the first check.
pub(crate) struct Subject {
    /// What osqueryd's next start reads.
    pub(super) source: Source,
    /// The flags of that source, and what is wrong with how they are written.
    pub(super) flagfile: Flagfile,
    /// The flag file's path, whether it was read or not.
    pub(crate) flagfile_path: PathBuf,
    /// Its flags by the names that osqueryd lists, with their values as osqueryd lists them.
    pub(super) file: Options,
    /// Our own flag file: its path, its flags, and what is wrong with it.
    pub(crate) own_path: PathBuf,
    pub(crate) own: OwnFlags,
    pub(super) own_errors: Vec<FlagfileError>,
    /// Where osqueryd's manager is, or should be.
    pub(crate) socket: PathBuf,
    /// Its process, when it was found by its command line.
    pub(crate) process: Option<u32>,
    /// Other osqueryds that run.
    pub(crate) others: Vec<String>,
    /// osqueryd, or why it can't be asked.
    pub(crate) running: Result<Running, ManagerError>,
    /// What the extension says of itself, or why it doesn't.
    pub(crate) told: Result<Told, String>,
    /// The extension's processes as they were at the beginning.
    pub(crate) workers: Vec<ProcessInfo>,
    /// The flags of the next start.
    pub(crate) options: Options,
    /// What they mean, and what is unusable in them.
    pub(crate) settings: Settings,
    pub(super) setting_errors: Vec<SettingError>,
    /// Whether an enrollment may be tried.
    pub(super) enroll: bool,
    /// Whether endpoints may be asked with an invalid node key.
    pub(super) deep: bool,
    /// What is asked about the host.
    pub(super) occasion: Occasion,
    /// When all must be done.
    pub(super) deadline: Instant,
}

impl Subject {
    pub(crate) fn find(given: &DoctorFlags) -> Self {
        let deadline = Instant::now() + TIME_LIMIT;
        let choice = running::choose(given.flagfile.as_deref(), given.socket.as_deref(), running::osqueryds());
        // Read twice: only with osqueryd's own list of flags is it known what is unknown.
        let first = Flagfile::read(&choice.source, &|_| false);
        let listed = first.values().remove("extensions_socket").unwrap_or(DEFAULT_SOCKET.into());
        let socket = given.socket.clone().or(choice.socket).unwrap_or_else(|| listed.into());
        let running = Running::ask(socket.clone());
        let flagfile = match &running {
            // What a configuration set under a custom_ name is listed too, and no flag for a file.
            Ok(running) => Flagfile::read(&choice.source, &|name| {
                running.options.contains_key(name) && !name.starts_with("custom_")
            }),
            Err(_) => first,
        };
        let file = flagfile.values();
        let mut options = running.as_ref().map(|running| running.options.clone()).unwrap_or_default();
        options.extend(file.clone());
        let own_path = given.own_flagfile.clone().unwrap_or_else(own::flagfile);
        let (own, own_errors) = OwnFlags::read_file(&own_path);
        let (mut settings, setting_errors) = Settings::new(&options, &own);
        settings.request_timeout = settings.request_timeout.min(REQUEST_LIMIT);
        let occasion = if given.before { Occasion::BeforeRestart } else { Occasion::Now };
        let (told, workers) = told::ask(running.as_ref().ok(), &socket, occasion);
        Self {
            source: choice.source,
            flagfile,
            flagfile_path: choice.flagfile,
            file,
            own_path,
            own,
            own_errors,
            socket,
            process: choice.process,
            others: choice.others,
            running,
            told,
            workers,
            options,
            settings,
            setting_errors,
            enroll: given.enroll,
            deep: given.deep,
            occasion,
            deadline,
        }
    }

    /// What the report's head says of the osqueryd that is examined.
    pub(super) fn about(&self) -> About {
        let running = self.running.as_ref().ok();
        About {
            flagfile: self.flagfile_path.display().to_string(),
            socket: self.socket.display().to_string(),
            process: self.process,
            osquery: running.and_then(|running| running.version.clone()),
            extension: running.and_then(Running::extension_version).map(str::to_owned),
        }
    }

    /// `most`, or what is left of [`TIME_LIMIT`] where that is less.
    pub(super) fn left(&self, most: Duration) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).min(most)
    }

    /// Whether osqueryd's state of now is what is asked about.
    pub(super) fn is_before(&self) -> bool {
        self.occasion == Occasion::BeforeRestart
    }

    /// Whether no flag is known at all: then nothing can be said of what they name.
    pub(super) fn knows_no_flag(&self) -> bool {
        self.flagfile.given.is_empty() && self.running.is_err()
    }

    /// A flag's value, or osquery's default.
    pub(super) fn text<'a>(&'a self, flag: &str, default: &'a str) -> &'a str {
        self.options.get(flag).map_or(default, String::as_str)
    }

    pub(super) fn is_set(&self, flag: &str) -> bool {
        self.is_set_or(flag, false)
    }

    /// Whether a flag is set, where osquery's default is `default`.
    pub(super) fn is_set_or(&self, flag: &str, default: bool) -> bool {
        self.text(flag, if default { "true" } else { "false" }) == "true"
    }

    /// The plugins of a registry, as the next start has them.
    pub(super) fn plugin_flag(&self, registry: &str) -> &str {
        self.text(&format!("{registry}_plugin"), if registry == "distributed" { "tls" } else { "filesystem" })
    }

    /// Whether one of osqueryd's plugins of this registry is ours.
    pub(crate) fn uses(&self, registry: &str) -> bool {
        names(self.plugin_flag(registry)).any(|name| name == NAME)
    }
}
