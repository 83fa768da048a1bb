//! `osquery-remote-tls doctor`: checks, by hand and on the host itself, all that must be right for the extension to
//! work, in the order in which it goes wrong, and says what to do. docs/doctor.md is its manual.
//!
//! It changes nothing: no file is written, created or kept locked, nothing is put into osqueryd's store, and no
//! request to the server has an effect there. The exception is an enrollment, when `--enroll` asks for it.
//!
//! The values that are checked are those of osqueryd's next start: what the flag file gives, and for the rest what
//! the running osqueryd has (its command line, its configuration), or osquery's default.

mod autoload;
mod buffers;
mod certificates;
mod connection;
mod endpoints;
mod files;
mod flagfile;
mod flags;
mod osquery_flags;
mod osqueryd;
mod report;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub use report::{Finding, Form, Level, Report};

use crate::cli::{DEFAULT_SOCKET, DoctorFlags};
use crate::extension::manager::{Manager, ManagerError};
use crate::settings::own::{self, FlagfileError};
use crate::settings::{Options, OwnFlags, SettingError, Settings};
use flagfile::Flagfile;

/// Nobody who waits before a terminal wants to wait longer for one answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// The checks, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// osqueryd's flag file can be read, and nothing in it is lost.
    FlagFile,
    /// osquery knows the names in it.
    FlagNames,
    /// The values can be used.
    FlagValues,
    /// The values go together.
    FlagCombinations,
    /// Our own flag file.
    OwnFlags,
    /// The list of extensions names ours.
    AutoloadFile,
    /// osqueryd's rules for the extension's file and directory.
    ExtensionFile,
    /// osqueryd answers on its socket.
    Socket,
    /// osqueryd runs with these flags and with our extension.
    RunningOsqueryd,
    /// How long osqueryd waits for its extensions.
    ExtensionsTimeout,
    /// The enroll secret.
    EnrollSecret,
    /// Whom `tls_server_certs` trusts.
    ServerTrust,
    /// The client certificate and its key.
    ClientCertificate,
    /// The server's name has addresses, or the proxy's.
    NameResolution,
    /// The proxy makes a connection.
    Proxy,
    /// The server's port is open.
    TcpConnection,
    /// Both sides agree, and the server's certificate is trusted.
    TlsHandshake,
    /// This host's clock and the server's.
    Clock,
    /// What answers at `enroll_tls_endpoint`.
    EnrollEndpoint,
    /// What answers at `config_tls_endpoint`.
    ConfigEndpoint,
    /// What answers at `logger_tls_endpoint`.
    LoggerEndpoint,
    /// What answers at `distributed_tls_read_endpoint`.
    DistributedReadEndpoint,
    /// What answers at `distributed_tls_write_endpoint`.
    DistributedWriteEndpoint,
    /// The lines and results that wait on disk.
    Buffers,
}

impl Check {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FlagFile => "flag file",
            Self::FlagNames => "flag names",
            Self::FlagValues => "flag values",
            Self::FlagCombinations => "flag combinations",
            Self::OwnFlags => "own flags",
            Self::AutoloadFile => "autoload file",
            Self::ExtensionFile => "extension file",
            Self::Socket => "socket",
            Self::RunningOsqueryd => "running osqueryd",
            Self::ExtensionsTimeout => "extensions timeout",
            Self::EnrollSecret => "enroll secret",
            Self::ServerTrust => "server trust",
            Self::ClientCertificate => "client certificate",
            Self::NameResolution => "name resolution",
            Self::Proxy => "proxy",
            Self::TcpConnection => "tcp connection",
            Self::TlsHandshake => "tls handshake",
            Self::Clock => "clock",
            Self::EnrollEndpoint => "enroll endpoint",
            Self::ConfigEndpoint => "config endpoint",
            Self::LoggerEndpoint => "logger endpoint",
            Self::DistributedReadEndpoint => "distributed read endpoint",
            Self::DistributedWriteEndpoint => "distributed write endpoint",
            Self::Buffers => "buffers",
        }
    }
}

/// What the doctor's exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// 0: all is well.
    Well = 0,
    /// 1: something failed.
    Failed = 1,
    /// 2: nothing failed, and somebody should look at the warnings.
    Warned = 2,
}

impl Verdict {
    fn of(findings: &[Finding]) -> Self {
        let has = |level| findings.iter().any(|finding| finding.level == level);
        match (has(Level::Failure), has(Level::Warning)) {
            (true, _) => Self::Failed,
            (false, true) => Self::Warned,
            (false, false) => Self::Well,
        }
    }
}

/// Checks this host and reports on the standard output.
#[must_use]
pub fn run(flags: &DoctorFlags) -> ExitCode {
    let stdout = io::stdout();
    let colours = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let form = match (flags.json, colours) {
        (true, _) => Form::Json,
        (false, true) => Form::Coloured,
        (false, false) => Form::Plain,
    };
    match examine(flags, form, &mut stdout.lock()) {
        Ok(verdict) => ExitCode::from(verdict as u8),
        Err(error) => {
            log::error!("the report can't be written: {error}");
            ExitCode::from(Verdict::Failed as u8)
        }
    }
}

/// All checks, in order.
pub fn examine(flags: &DoctorFlags, form: Form, out: &mut dyn Write) -> io::Result<Verdict> {
    let subject = Subject::find(flags);
    let mut report = Report::new(out, form);
    flags::check(&subject, &mut report);
    autoload::check(&subject, &mut report);
    osqueryd::check(&subject, &mut report);
    files::check(&subject, &mut report);
    connection::check(&subject, &mut report);
    endpoints::check(&subject, &mut report);
    buffers::check(&subject, &mut report);
    let findings = report.finish(&flags.flagfile.display().to_string())?;
    Ok(Verdict::of(&findings))
}

/// What is examined: all that was read before the first check.
struct Subject {
    /// osqueryd's flag file.
    flagfile: Flagfile,
    /// Its flags by the names that osqueryd lists, with their values as osqueryd lists them.
    file: Options,
    /// Our own flag file: its path, its flags, and what is wrong with it.
    own_path: PathBuf,
    own: OwnFlags,
    own_errors: Vec<FlagfileError>,
    /// Where osqueryd's manager is, or should be.
    socket: PathBuf,
    /// osqueryd, or why it can't be asked.
    running: Result<Running, ManagerError>,
    /// The flags of the next start.
    options: Options,
    /// What they mean, and what is unusable in them.
    settings: Settings,
    setting_errors: Vec<SettingError>,
    /// Whether an enrollment may be tried.
    enroll: bool,
}

/// An osqueryd that answers.
struct Running {
    manager: Arc<Manager>,
    /// Its flags as they are now.
    options: Options,
}

impl Running {
    /// The names of the plugins in a registry, those of extensions too; none when osqueryd doesn't say.
    fn plugins(&self, registry: &str) -> BTreeSet<String> {
        let sql = format!("SELECT name FROM osquery_registry WHERE registry = '{registry}'");
        let rows = self.manager.query(&sql).unwrap_or_default();
        rows.into_iter().filter_map(|mut row| row.remove("name")).collect()
    }
}

impl Subject {
    fn find(flags: &DoctorFlags) -> Self {
        // Read twice: only with osqueryd's own list of flags is it known what is unknown.
        let first = Flagfile::read(&flags.flagfile, &|_| false);
        let socket = PathBuf::from(flags::values(&first).remove("extensions_socket").unwrap_or(DEFAULT_SOCKET.into()));
        let manager = Arc::new(Manager::new(socket.clone(), Arc::new(|| {})));
        let running = manager.options().map(|options| Running { manager, options });
        let flagfile = match &running {
            // What a configuration set under a custom_ name is listed too, and no flag for a file.
            Ok(running) => Flagfile::read(&flags.flagfile, &|name| {
                running.options.contains_key(name) && !name.starts_with("custom_")
            }),
            Err(_) => first,
        };
        let file = flags::values(&flagfile);
        let mut options = running.as_ref().map(|running| running.options.clone()).unwrap_or_default();
        options.extend(file.clone());
        let own_path = flags.own_flagfile.clone().unwrap_or_else(own::flagfile);
        let (own, own_errors) = OwnFlags::read_file(&own_path);
        let (mut settings, setting_errors) = Settings::new(&options, &own);
        settings.request_timeout = settings.request_timeout.min(REQUEST_LIMIT);
        Self {
            flagfile,
            file,
            own_path,
            own,
            own_errors,
            socket,
            running,
            options,
            settings,
            setting_errors,
            enroll: flags.enroll,
        }
    }

    /// A flag's value, or osquery's default.
    fn text<'a>(&'a self, flag: &str, default: &'a str) -> &'a str {
        self.options.get(flag).map_or(default, String::as_str)
    }

    fn is_set(&self, flag: &str) -> bool {
        self.text(flag, "false") == "true"
    }

    /// Whether one of osqueryd's plugins of this registry is ours.
    fn uses(&self, registry: &str) -> bool {
        let default = if registry == "distributed" { "tls" } else { "filesystem" };
        plugins(self.text(&format!("{registry}_plugin"), default)).any(|name| name == crate::extension::registry::NAME)
    }
}

/// The plugins that a flag names.
fn plugins(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|name| !name.is_empty())
}
