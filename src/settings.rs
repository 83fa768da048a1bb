//! osqueryd's flags and our own, made into one validated value.
//!
//! An unusable value must not take osqueryd down, so it never ends the process. Where a number or a truth value is
//! unusable its default stands in and the [`SettingError`] is logged. Where there is no sensible stand-in (which
//! server, which proxy, which client certificate) the setting itself is the error, and every request that needs it
//! fails with that message, while log lines are kept.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::buffer::Limits;
use crate::cli::OwnFlags;
use crate::secret::Secret;

/// The prefix under which a configuration's `options` can set those flags of ours that are safe to set remotely.
pub const REMOTE_PREFIX: &str = "custom_remote_tls_";

/// The bundle of public authorities that osquery's packages bring.
pub const DEFAULT_SERVER_CERTS: &str = "/opt/osquery/share/osquery/certs/certs.pem";

/// Where the system's log listens.
pub const SYSLOG_SOCKET: &str = if cfg!(target_os = "macos") { "/var/run/syslog" } else { "/dev/log" };

/// No flag asks for a longer time than a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest that a full buffer takes to be sent after an outage, as far as our own pace goes.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// osqueryd's flags as [`ExtensionManager.options()`] hands them out: name to current value.
///
/// [`ExtensionManager.options()`]: crate::extension::manager::Manager::options
pub type Options = BTreeMap<String, String>;

/// A flag whose value can't be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag}={value} can't be used: {allowed}")]
pub struct SettingError {
    /// The flag's name, without dashes.
    pub flag: String,
    /// Its value as given; a password in it is masked.
    pub value: String,
    /// What would be allowed.
    pub allowed: &'static str,
}

/// Everything that decides what this extension does. Read again whenever osqueryd's flags may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the server is: `tls_hostname`.
    pub server: Result<HostPort, SettingError>,
    /// The five endpoints' paths, each as its flag has it.
    pub endpoints: Endpoints,
    /// Trust, client authentication and connection reuse.
    pub tls: TlsSettings,
    /// `proxy_hostname`, when set.
    pub proxy: Result<Option<Proxy>, SettingError>,
    /// Enrollment policy.
    pub enroll: EnrollSettings,
    /// The hidden customizations.
    pub api: ApiStyle,
    /// What `host_identifier` asks for.
    pub identity: HostIdentifier,
    /// `config_tls_max_attempts`, at least 1.
    pub config_max_attempts: u32,
    /// `distributed_tls_max_attempts`, at least 1.
    pub distributed_max_attempts: u32,
    /// How lines are kept and sent.
    pub logger: LoggerSettings,
    /// `verbose`.
    pub verbose: bool,
    /// Where our own log goes, and how much of it.
    pub log: LogSettings,
    /// The directory of the buffers.
    pub buffer_path: PathBuf,
    /// Longest time for one request, connecting included.
    pub request_timeout: Duration,
    /// How long osqueryd is waited for when it has gone away. When its worker dies within 5 s of its start, the next
    /// one comes only 7 to 9 s later; the watcher's longest pause between two starts is a minute.
    pub return_timeout: Duration,
}

/// A host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A DNS name, an IPv4 address or a bracketed IPv6 address.
    pub host: String,
    /// The port, when it was given.
    pub port: Option<u16>,
}

/// An HTTP proxy that is asked to CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Host and port (3128 unless given).
    pub address: HostPort,
    /// User name and password, when given before an `@`.
    pub credentials: Option<(String, Secret)>,
}

/// The endpoints' paths; an empty one isn't configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// `enroll_tls_endpoint`
    pub enroll: String,
    /// `config_tls_endpoint`
    pub config: String,
    /// `logger_tls_endpoint`
    pub logger: String,
    /// `distributed_tls_read_endpoint`
    pub distributed_read: String,
    /// `distributed_tls_write_endpoint`
    pub distributed_write: String,
}

/// Trust, client authentication and connection reuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// `tls_server_certs`: a PEM bundle or a directory of PEM files. Replaces the system's roots.
    pub server_certs: PathBuf,
    /// `tls_client_cert` and `tls_client_key`: both or neither.
    pub client: Result<Option<ClientIdentity>, SettingError>,
    /// `tls_session_reuse`: whether connections are kept open.
    pub session_reuse: bool,
    /// `tls_session_timeout`: how long an idle connection is kept.
    pub session_timeout: Duration,
    /// `tls_accept_gzip`: whether answers may be compressed.
    pub accept_gzip: bool,
}

/// The files of a client certificate and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// `tls_client_cert`
    pub cert: PathBuf,
    /// `tls_client_key`
    pub key: PathBuf,
}

/// Enrollment policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollSettings {
    /// Where the secret comes from.
    pub secret: SecretSource,
    /// `enroll_always`: one enrollment at start even when a node key is stored.
    pub always: bool,
    /// `disable_enrollment`: never enroll; the node key is blank.
    pub disabled: bool,
    /// `disable_reenrollment`: a rejected node key is kept.
    pub reenrollment_disabled: bool,
    /// `tls_enroll_max_attempts`; `None` (0) is for ever.
    pub max_attempts: Option<u32>,
    /// `tls_enroll_max_interval`
    pub max_interval: Duration,
    /// Our `enroll_max_per_hour`: enrollments that the server grants in any hour, at least 2.
    pub max_per_hour: u32,
}

/// Where the enroll secret comes from. `enroll_secret_path` wins over `enroll_secret_env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file's text, trimmed.
    File(PathBuf),
    /// The value of the environment variable of that name, trimmed.
    Environment(String),
    /// No secret: the empty one is sent.
    None,
}

/// The hidden customizations of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiStyle {
    /// `tls_secret_always`: every URL carries the secret.
    pub secret_always: bool,
    /// `tls_enroll_override`: the secret's name in bodies and URLs.
    pub secret_name: String,
    /// `tls_node_api`: the node key is the first path segment, the config is a GET.
    pub node_api: bool,
    /// `tls_dump` (with `verbose`): bodies are printed, masked.
    pub dump: bool,
}

/// What identifies the host at enrollment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostIdentifier {
    /// `system_info.hostname`, read afresh; also what an unknown value of the flag means.
    Hostname,
    /// `system_info.uuid`
    Uuid,
    /// `osquery_info.instance_id`
    Instance,
    /// A UUID made once a process.
    Ephemeral,
    /// `specified_identifier`, not empty.
    Specified(String),
}

/// Our own log, besides stderr, which always has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Our `log_level`; DEBUG with osqueryd's `verbose`.
    pub level: LevelFilter,
    /// Our `log_file`.
    pub file: Option<PathBuf>,
    /// Our `log_syslog`: the socket of the system's log.
    pub syslog: Option<PathBuf>,
}

/// How lines are kept and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggerSettings {
    /// `logger_tls_period`: between two flushes, at least a tenth of a second.
    pub period: Duration,
    /// `logger_tls_max_lines`: a request's, at least 1.
    pub max_lines: usize,
    /// `logger_tls_max_linesize`: longer lines are dropped with a warning.
    pub max_line_bytes: usize,
    /// `logger_tls_backoff_max`; `None` (0) means that a failed flush is tried again after the period.
    pub backoff_max: Option<Duration>,
    /// `logger_tls_compress`: gzip request bodies.
    pub compress: bool,
    /// `tls_disable_status_log`: status lines are not sent.
    pub status_disabled: bool,
    /// `decorations_top_level`: where status lines' decorations stand; `None` is `disable_decorators`.
    pub decorations: Option<Placement>,
    /// `buffered_log_max`: lines kept, of each kind; `None` (0) is no limit.
    pub max_kept: Option<u64>,
    /// Our `buffer_max_bytes`: what each stream's buffer may take.
    pub buffer_max_bytes: u64,
    /// Our `buffer_min_free_bytes`: what must stay free on its disk.
    pub buffer_min_free_bytes: u64,
    /// Our `logger_max_request_bytes`: a body's size before compression, unless one line alone is larger.
    pub max_request_bytes: usize,
    /// Our `logger_drain_bytes_per_second`: how fast a backlog is sent after an outage; `None` (0) is no limit.
    pub drain_pace: Option<u64>,
    /// Our `logger_expand_events`: each batch line becomes the event lines that it stands for.
    pub expand_events: bool,
}

/// Where the decorations of a line stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// In its member `decorations`.
    #[default]
    Member,
    /// Among its other members.
    TopLevel,
}

impl LoggerSettings {
    /// What each stream's buffer may take.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { lines: self.max_kept, bytes: self.buffer_max_bytes, free_bytes: self.buffer_min_free_bytes }
    }
}

impl Settings {
    /// The settings that `options` and our own flags make, and what was unusable in them.
    ///
    /// A flag that osqueryd doesn't know (an old version) has osquery's default.
    #[must_use]
    pub fn new(options: &Options, own: &OwnFlags) -> (Self, Vec<SettingError>) {
        let mut reader = Reader { options, errors: Vec::new() };
        let settings = reader.settings(own);
        (settings, reader.errors)
    }
}

/// Takes flags out of the options one by one, and keeps what was wrong with them.
struct Reader<'a> {
    options: &'a Options,
    errors: Vec<SettingError>,
}

impl Reader<'_> {
    fn settings(&mut self, own: &OwnFlags) -> Settings {
        Settings {
            server: self.server(),
            endpoints: Endpoints {
                enroll: self.text("enroll_tls_endpoint", ""),
                config: self.text("config_tls_endpoint", ""),
                logger: self.text("logger_tls_endpoint", ""),
                distributed_read: self.text("distributed_tls_read_endpoint", ""),
                distributed_write: self.text("distributed_tls_write_endpoint", ""),
            },
            tls: self.tls(),
            proxy: self.proxy(),
            enroll: self.enroll(own),
            api: ApiStyle {
                secret_always: self.truth("tls_secret_always", false),
                secret_name: non_empty(self.text("tls_enroll_override", "enroll_secret"), "enroll_secret"),
                node_api: self.truth("tls_node_api", false),
                dump: self.truth("tls_dump", false),
            },
            identity: self.identity(),
            config_max_attempts: self.attempts("config_tls_max_attempts"),
            distributed_max_attempts: self.attempts("distributed_tls_max_attempts"),
            logger: self.logger(own),
            verbose: self.truth("verbose", false),
            log: self.log(own),
            buffer_path: own.buffer_path.clone().unwrap_or_else(|| self.default_buffer_path()),
            request_timeout: self.own_seconds("request_timeout", own.request_timeout.as_deref(), 60),
            return_timeout: self.own_seconds("return_timeout", own.return_timeout.as_deref(), 60),
        }
    }

    fn server(&self) -> Result<HostPort, SettingError> {
        let value = self.text("tls_hostname", "");
        HostPort::parse(&value).ok_or_else(|| {
            setting_error("tls_hostname", value, "the server's host or host:port is needed, without a scheme or path")
        })
    }

    fn tls(&mut self) -> TlsSettings {
        TlsSettings {
            server_certs: self.text("tls_server_certs", DEFAULT_SERVER_CERTS).into(),
            client: self.client(),
            session_reuse: self.truth("tls_session_reuse", true),
            session_timeout: self.seconds("tls_session_timeout", 3600),
            accept_gzip: self.truth("tls_accept_gzip", false),
        }
    }

    fn client(&self) -> Result<Option<ClientIdentity>, SettingError> {
        let (cert, key) = (self.text("tls_client_cert", ""), self.text("tls_client_key", ""));
        match (cert.is_empty(), key.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some(ClientIdentity { cert: cert.into(), key: key.into() })),
            (false, true) => Err(setting_error("tls_client_key", key, "tls_client_cert is set: its key is needed too")),
            (true, false) => {
                Err(setting_error("tls_client_cert", cert, "tls_client_key is set: its certificate is needed too"))
            }
        }
    }

    fn proxy(&self) -> Result<Option<Proxy>, SettingError> {
        let value = self.text("proxy_hostname", "");
        if value.is_empty() {
            return Ok(None);
        }
        Proxy::parse(&value).map(Some).ok_or_else(|| {
            let shown = value.rsplit_once('@').map_or(value.clone(), |(_, address)| format!("<hidden>@{address}"));
            setting_error("proxy_hostname", shown, "host or host:port is needed, with user:password@ before it if any")
        })
    }

    fn enroll(&mut self, own: &OwnFlags) -> EnrollSettings {
        let (path, variable) = (self.text("enroll_secret_path", ""), self.text("enroll_secret_env", ""));
        EnrollSettings {
            secret: match (path.is_empty(), variable.is_empty()) {
                (false, _) => SecretSource::File(path.into()),
                (true, false) => SecretSource::Environment(variable),
                (true, true) => SecretSource::None,
            },
            always: self.truth("enroll_always", false),
            disabled: self.truth("disable_enrollment", false),
            reenrollment_disabled: self.truth("disable_reenrollment", false),
            max_attempts: u32::try_from(self.number("tls_enroll_max_attempts", 12)).ok().filter(|&most| most > 0),
            max_interval: self.seconds("tls_enroll_max_interval", 600),
            max_per_hour: self.own_number(
                "enroll_max_per_hour",
                own.enroll_max_per_hour.as_deref(),
                60,
                2..=3600,
                "a number from 2 to 3600 is needed",
            ) as u32,
        }
    }

    fn identity(&self) -> HostIdentifier {
        let specified = self.text("specified_identifier", "");
        match self.text("host_identifier", "hostname").as_str() {
            "uuid" => HostIdentifier::Uuid,
            "instance" => HostIdentifier::Instance,
            "ephemeral" => HostIdentifier::Ephemeral,
            "specified" if !specified.is_empty() => HostIdentifier::Specified(specified),
            _ => HostIdentifier::Hostname,
        }
    }

    fn logger(&mut self, own: &OwnFlags) -> LoggerSettings {
        let backoff_max = self.seconds("logger_tls_backoff_max", 3600);
        let max_kept = self.number("buffered_log_max", 1_000_000);
        let buffer_max_bytes = self.own_bytes("buffer_max_bytes", own.buffer_max_bytes.as_deref(), 1 << 30);
        LoggerSettings {
            period: self.seconds("logger_tls_period", 4).max(Duration::from_millis(100)),
            max_lines: self.size("logger_tls_max_lines", 1024).max(1),
            max_line_bytes: self.line_bytes(),
            backoff_max: Some(backoff_max).filter(|most| !most.is_zero()),
            compress: self.truth("logger_tls_compress", false),
            status_disabled: self.truth("tls_disable_status_log", false),
            decorations: self.decorations(),
            max_kept: Some(max_kept).filter(|&most| most > 0),
            buffer_max_bytes,
            drain_pace: self.drain_pace(own, buffer_max_bytes),
            expand_events: self.own_truth("logger_expand_events", own.logger_expand_events.as_deref()),
            buffer_min_free_bytes: self.own_bytes(
                "buffer_min_free_bytes",
                own.buffer_min_free_bytes.as_deref(),
                100 << 20,
            ),
            max_request_bytes: self.own_number(
                "logger_max_request_bytes",
                own.logger_max_request_bytes.as_deref(),
                1 << 20,
                1024..=1 << 30,
                "a number of bytes from 1024 to 1073741824 is needed",
            ) as usize,
        }
    }

    /// Never so slow that a full buffer takes longer than [`LONGEST_DRAIN`]: new lines would be behind old ones for hours.
    fn drain_pace(&mut self, own: &OwnFlags, buffer_max_bytes: u64) -> Option<u64> {
        let local = own.logger_drain_bytes_per_second.as_deref();
        let pace = self.own_bytes("logger_drain_bytes_per_second", local, 4 << 20);
        (pace > 0).then(|| pace.max(buffer_max_bytes / LONGEST_DRAIN.as_secs()).max(1))
    }

    fn log(&mut self, own: &OwnFlags) -> LogSettings {
        let level = self.log_level(own.log_level.as_deref());
        LogSettings {
            level: if self.truth("verbose", false) { LevelFilter::Debug } else { level },
            file: own.log_file.clone().filter(|path| !path.as_os_str().is_empty()),
            syslog: own.log_syslog.as_deref().and_then(|value| self.syslog(value)),
        }
    }

    fn log_level(&mut self, local: Option<&str>) -> LevelFilter {
        let Some((flag, value)) = self.own_value("log_level", local) else { return LevelFilter::Info };
        match value {
            "error" => LevelFilter::Error,
            "warning" => LevelFilter::Warn,
            "info" => LevelFilter::Info,
            "debug" => LevelFilter::Debug,
            _ => {
                self.errors.push(setting_error(&flag, value, "error, warning, info or debug is needed"));
                LevelFilter::Info
            }
        }
    }

    fn syslog(&mut self, value: &str) -> Option<PathBuf> {
        match value {
            "true" | "1" | "t" | "yes" | "y" => Some(SYSLOG_SOCKET.into()),
            "false" | "0" | "f" | "no" | "n" | "" => None,
            path if path.starts_with('/') => Some(path.into()),
            _ => {
                self.errors.push(setting_error("log_syslog", value, "true, false or a socket's path is needed"));
                None
            }
        }
    }

    fn decorations(&mut self) -> Option<Placement> {
        let top_level = self.truth("decorations_top_level", false);
        let disabled = self.truth("disable_decorators", false);
        let placement = if top_level { Placement::TopLevel } else { Placement::Member };
        (!disabled).then_some(placement)
    }

    /// `logger_tls_max` is the old name of `logger_tls_max_linesize`; osqueryd lists both with one value, an old
    /// one only the old name.
    fn line_bytes(&mut self) -> usize {
        let name =
            if self.options.contains_key("logger_tls_max_linesize") || !self.options.contains_key("logger_tls_max") {
                "logger_tls_max_linesize"
            } else {
                "logger_tls_max"
            };
        self.size(name, 1 << 20)
    }

    fn default_buffer_path(&self) -> PathBuf {
        let database = self.text("database_path", "/var/osquery/osquery.db");
        Path::new(&database).parent().unwrap_or(Path::new("/var/osquery")).join("remote_tls")
    }

    fn text(&self, flag: &str, default: &str) -> String {
        self.options.get(flag).map_or(default, String::as_str).to_owned()
    }

    fn truth(&mut self, flag: &str, default: bool) -> bool {
        let Some(value) = self.options.get(flag).cloned() else { return default };
        self.parse_truth(flag, &value).unwrap_or(default)
    }

    fn parse_truth(&mut self, flag: &str, value: &str) -> Option<bool> {
        match value {
            "true" | "1" | "t" | "yes" | "y" => Some(true),
            "false" | "0" | "f" | "no" | "n" => Some(false),
            _ => {
                self.errors.push(setting_error(flag, value, "true or false is needed"));
                None
            }
        }
    }

    fn number(&mut self, flag: &str, default: u64) -> u64 {
        let Some(value) = self.options.get(flag) else { return default };
        value.trim().parse().unwrap_or_else(|_| {
            self.errors.push(setting_error(flag, value, "a whole number, not negative, is needed"));
            default
        })
    }

    fn size(&mut self, flag: &str, default: u64) -> usize {
        usize::try_from(self.number(flag, default)).unwrap_or(usize::MAX)
    }

    /// At most [`LONGEST`]: nobody means more, and clocks overflow.
    fn seconds(&mut self, flag: &str, default: u64) -> Duration {
        Duration::from_secs(self.number(flag, default)).min(LONGEST)
    }

    fn attempts(&mut self, flag: &str) -> u32 {
        u32::try_from(self.number(flag, 3)).unwrap_or(u32::MAX).max(1)
    }

    /// A setting of ours, with the flag that has it: as a configuration set it (`custom_remote_tls_`), else as our flags
    /// have it.
    fn own_value<'b>(&self, name: &str, local: Option<&'b str>) -> Option<(String, &'b str)>
    where
        Self: 'b,
    {
        let remote = format!("{REMOTE_PREFIX}{name}");
        match self.options.get(&remote) {
            Some(value) => Some((remote, value.as_str())),
            None => Some((name.to_owned(), local?)),
        }
    }

    fn own_number(
        &mut self,
        name: &str,
        local: Option<&str>,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
        allowed: &'static str,
    ) -> u64 {
        let Some((flag, value)) = self.own_value(name, local) else { return default };
        match value.trim().parse() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.errors.push(setting_error(&flag, value, allowed));
                default
            }
        }
    }

    fn own_truth(&mut self, name: &str, local: Option<&str>) -> bool {
        let Some((flag, value)) = self.own_value(name, local) else { return false };
        self.parse_truth(&flag, value).unwrap_or(false)
    }

    fn own_bytes(&mut self, name: &str, local: Option<&str>, default: u64) -> u64 {
        self.own_number(name, local, default, 0..=u64::MAX, "a number of bytes is needed")
    }

    fn own_seconds(&mut self, name: &str, local: Option<&str>, default: u64) -> Duration {
        let allowed = "a whole number of seconds from 1 to 3600 is needed";
        Duration::from_secs(self.own_number(name, local, default, 1..=3600, allowed))
    }
}

impl HostPort {
    /// `host`, `host:port`, `[v6]` or `[v6]:port`; nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rfind(':') {
            Some(colon) if !text.ends_with(']') => (text.get(..colon)?, Some(text.get(colon + 1..)?.parse().ok()?)),
            _ => (text, None),
        };
        let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let valid = match address {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
        };
        (valid && port != Some(0)).then(|| Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Proxy {
    const DEFAULT_PORT: u16 = 3128;

    /// `[user:password@]host[:port]`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (credentials, address) = match text.rsplit_once('@') {
            Some((credentials, address)) => {
                let (user, password) = credentials.split_once(':').filter(|(_, rest)| !rest.starts_with("//"))?;
                (Some((user.to_owned(), Secret::new(password))), address)
            }
            None => (None, text),
        };
        let mut address = HostPort::parse(address)?;
        address.port.get_or_insert(Self::DEFAULT_PORT);
        Some(Self { address, credentials })
    }
}

fn setting_error(flag: &str, value: impl Into<String>, allowed: &'static str) -> SettingError {
    SettingError { flag: flag.to_owned(), value: value.into(), allowed }
}

fn non_empty(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn settings(pairs: &[(&str, &str)]) -> (Settings, Vec<SettingError>) {
        Settings::new(&options(pairs), &OwnFlags::default())
    }

    #[test]
    fn without_flags_everything_has_osquery_s_default() {
        let (settings, errors) = settings(&[]);
        assert_eq!(errors, []);
        assert_eq!(settings.tls.server_certs, Path::new("/opt/osquery/share/osquery/certs/certs.pem"));
        assert_eq!(settings.tls.client, Ok(None));
        assert!(settings.tls.session_reuse && !settings.tls.accept_gzip);
        assert_eq!(settings.tls.session_timeout, Duration::from_secs(3600));
        assert_eq!(settings.proxy, Ok(None));
        assert_eq!(settings.enroll.secret, SecretSource::None);
        assert_eq!((settings.enroll.max_attempts, settings.enroll.max_interval.as_secs()), (Some(12), 600));
        assert_eq!((settings.config_max_attempts, settings.distributed_max_attempts), (3, 3));
        assert_eq!(settings.logger.period, Duration::from_secs(4));
        assert_eq!((settings.logger.max_lines, settings.logger.max_line_bytes), (1024, 1_048_576));
        assert_eq!(settings.logger.backoff_max, Some(Duration::from_secs(3600)));
        assert_eq!(settings.logger.max_kept, Some(1_000_000));
        assert_eq!(settings.logger.max_request_bytes, 1_048_576);
        assert_eq!((settings.logger.drain_pace, settings.logger.expand_events), (Some(4 << 20), false));
        assert_eq!(settings.enroll.max_per_hour, 60);
        assert_eq!(settings.identity, HostIdentifier::Hostname);
        assert_eq!(settings.api.secret_name, "enroll_secret");
        assert_eq!(settings.buffer_path, Path::new("/var/osquery/remote_tls"));
    }

    #[test]
    fn an_unusable_number_is_named_and_its_default_stands_in() {
        let (settings, errors) = settings(&[("logger_tls_period", "soon"), ("tls_node_api", "maybe")]);
        assert_eq!(settings.logger.period, Duration::from_secs(4));
        let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "--tls_node_api=maybe can't be used: true or false is needed",
                "--logger_tls_period=soon can't be used: a whole number, not negative, is needed"
            ]
        );
    }

    #[test]
    fn zero_means_for_ever_no_back_off_and_no_limit() {
        let (settings, errors) =
            settings(&[("tls_enroll_max_attempts", "0"), ("logger_tls_backoff_max", "0"), ("buffered_log_max", "0")]);
        assert_eq!(errors, []);
        assert_eq!(settings.enroll.max_attempts, None);
        assert_eq!(settings.logger.backoff_max, None);
        assert_eq!(settings.logger.max_kept, None);
    }

    #[test]
    fn a_full_buffer_is_never_sent_slower_than_within_an_hour() {
        let pace = |pace: &str, bytes: &str| {
            let own = OwnFlags {
                logger_drain_bytes_per_second: Some(pace.to_owned()),
                buffer_max_bytes: Some(bytes.to_owned()),
                ..OwnFlags::default()
            };
            Settings::new(&Options::new(), &own).0.logger.drain_pace
        };
        assert_eq!(pace("5000", "3600000"), Some(5000));
        assert_eq!(pace("500", "3600000"), Some(1000));
        assert_eq!(pace("1", "0"), Some(1));
        assert_eq!(pace("0", "3600000"), None);
    }

    #[test]
    fn absurd_times_are_a_week() {
        let (settings, _) = settings(&[("logger_tls_period", "18446744073709551615")]);
        assert_eq!(settings.logger.period, LONGEST);
    }

    #[test]
    fn servers_are_hosts_with_or_without_a_port() {
        for good in ["localhost", "fleet.example.com:8080", "10.0.0.1:443", "[::1]:8443", "[::1]", "a_b"] {
            assert_eq!(HostPort::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", "https://host", "host:", "host:0", "host:99999", "host/path", "::1", "[::1", "ho st", "h@st"] {
            assert_eq!(HostPort::parse(bad), None, "{bad}");
        }
        let (settings, _) = settings(&[("tls_hostname", "https://fleet")]);
        let message = settings.server.unwrap_err().to_string();
        assert!(message.contains("--tls_hostname=https://fleet") && message.contains("host:port"), "{message}");
    }

    #[test]
    fn a_proxy_has_a_default_port_and_may_have_credentials() {
        assert_eq!(Proxy::parse("proxy").unwrap().address.to_string(), "proxy:3128");
        let proxy = Proxy::parse("me:p@ss@proxy:8080").unwrap();
        assert_eq!(proxy.address.to_string(), "proxy:8080");
        let (user, password) = proxy.credentials.unwrap();
        assert_eq!((user.as_str(), password.expose()), ("me", "p@ss"));
        assert_eq!(Proxy::parse("http://me:hunter2@proxy"), None);
        let (settings, _) = settings(&[("proxy_hostname", "me:hunter2@http://proxy")]);
        let message = settings.proxy.unwrap_err().to_string();
        assert!(!message.contains("hunter2") && message.contains("proxy_hostname"), "{message}");
    }

    #[test]
    fn half_a_client_certificate_is_an_error() {
        let (settings, _) = settings(&[("tls_client_cert", "/c.pem")]);
        assert_eq!(settings.tls.client.unwrap_err().flag, "tls_client_key");
    }

    #[test]
    fn the_secret_s_path_wins_over_its_variable() {
        let (settings, _) = settings(&[("enroll_secret_path", "/s"), ("enroll_secret_env", "SECRET")]);
        assert_eq!(settings.enroll.secret, SecretSource::File("/s".into()));
    }

    #[test]
    fn a_specified_identifier_that_is_empty_is_the_hostname() {
        let identity = |pairs| settings(pairs).0.identity;
        assert_eq!(identity(&[("host_identifier", "specified")]), HostIdentifier::Hostname);
        assert_eq!(identity(&[("host_identifier", "no such")]), HostIdentifier::Hostname);
        let specified = identity(&[("host_identifier", "specified"), ("specified_identifier", "me")]);
        assert_eq!(specified, HostIdentifier::Specified("me".into()));
    }

    #[test]
    fn the_old_name_of_the_line_size_counts_when_it_is_alone() {
        let bytes = |pairs| settings(pairs).0.logger.max_line_bytes;
        assert_eq!(bytes(&[("logger_tls_max", "100")]), 100);
        assert_eq!(bytes(&[("logger_tls_max", "100"), ("logger_tls_max_linesize", "200")]), 200);
    }

    #[test]
    fn the_log_has_a_level_and_places() {
        let log = |pairs: &[(&str, &str)], own: OwnFlags| {
            let (settings, errors) = Settings::new(&options(pairs), &own);
            (settings.log, errors.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let nowhere = LogSettings { level: LevelFilter::Info, file: None, syslog: None };
        assert_eq!(log(&[], OwnFlags::default()), (nowhere.clone(), vec![]));
        let own = |level: &str, syslog: &str| OwnFlags {
            log_level: Some(level.into()),
            log_file: Some("/var/log/f".into()),
            log_syslog: Some(syslog.into()),
            ..OwnFlags::default()
        };
        let (settings, errors) = log(&[], own("warning", "true"));
        assert_eq!((settings.level, errors), (LevelFilter::Warn, vec![]));
        assert_eq!(settings.file.as_deref(), Some(Path::new("/var/log/f")));
        assert_eq!(settings.syslog.as_deref(), Some(Path::new(SYSLOG_SOCKET)));
        assert_eq!(log(&[], own("error", "/run/s")).0.syslog.as_deref(), Some(Path::new("/run/s")));
        assert_eq!(log(&[], own("error", "false")).0.syslog, None);
        // The server may say how much is logged, and not where.
        let remote = [("custom_remote_tls_log_level", "debug"), ("custom_remote_tls_log_file", "/etc/passwd")];
        assert_eq!(log(&remote, OwnFlags::default()).0, LogSettings { level: LevelFilter::Debug, ..nowhere });
        assert_eq!(log(&[("verbose", "true")], own("error", "false")).0.level, LevelFilter::Debug);
        let (settings, errors) = log(&[], own("loud", "maybe"));
        assert_eq!((settings.level, settings.syslog), (LevelFilter::Info, None));
        assert_eq!(
            errors,
            [
                "--log_level=loud can't be used: error, warning, info or debug is needed",
                "--log_syslog=maybe can't be used: true, false or a socket's path is needed"
            ]
        );
    }

    #[test]
    fn a_configuration_can_set_what_is_safe_and_nothing_else() {
        let own =
            OwnFlags { buffer_path: Some("/local".into()), request_timeout: Some("9".into()), ..OwnFlags::default() };
        let pairs =
            options(&[("custom_remote_tls_request_timeout", "7"), ("custom_remote_tls_buffer_path", "/elsewhere")]);
        let (settings, errors) = Settings::new(&pairs, &own);
        assert_eq!(errors, []);
        assert_eq!(settings.request_timeout, Duration::from_secs(7));
        assert_eq!(settings.buffer_path, Path::new("/local"));
        let (settings, errors) = Settings::new(&options(&[("custom_remote_tls_request_timeout", "0")]), &own);
        assert_eq!(settings.request_timeout, Duration::from_secs(60));
        assert!(errors[0].to_string().starts_with("--custom_remote_tls_request_timeout=0 "), "{errors:?}");
    }
}
