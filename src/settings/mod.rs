//! osqueryd's flags and our own, made into one validated value.
//!
//! An unusable value must not take osqueryd down, so it never ends the process. Where a number or a truth value is
//! unusable its default stands in and the [`SettingError`] is logged. Where there is no sensible stand-in (which
//! server, which proxy, which client certificate, whose keys) the setting itself is the error, and every request that needs it
//! fails with that message, while log lines are kept.

mod address;
mod builder;
mod front;
pub mod live;
pub mod own;
mod pins;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use self::address::without_password;
pub use self::address::{HostPort, Proxy, Server};
pub use self::front::FrontSettings;
pub use self::own::{ExpandEvents, NodeKeys, OwnFlags, REMOTE_PREFIX};
pub use self::pins::Pin;
use crate::extension::registry::NAME;
use crate::journal::Limits;
pub use crate::logging::LogSettings;
use crate::platform::Places;

/// The bundle of public authorities that osquery's packages bring.
pub const DEFAULT_SERVER_CERTS: &str = Places::HERE.server_certs;

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
    pub allowed: Cow<'static, str>,
}

impl SettingError {
    pub(crate) fn new(flag: &str, value: impl Into<String>, allowed: impl Into<Cow<'static, str>>) -> Self {
        Self { flag: flag.to_owned(), value: value.into(), allowed: allowed.into() }
    }
}

/// Everything that decides what this extension does. Read again whenever osqueryd's flags may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the server is: `tls_hostname`.
    pub server: Result<Server, SettingError>,
    /// Which other servers there are.
    pub failover: FailoverSettings,
    /// The five endpoints' paths, each as its flag has it.
    pub endpoints: Endpoints,
    /// Trust, client authentication and connection reuse.
    pub tls: TlsSettings,
    /// Our `tls_headers_file`: more headers for each request.
    pub headers_file: Option<PathBuf>,
    /// `proxy_hostname`, when set.
    pub proxy: Result<Option<Proxy>, SettingError>,
    /// How and how often the host enrolls.
    pub enroll: EnrollSettings,
    /// The variants of the API that osquery's hidden flags ask for.
    pub api: ApiStyle,
    /// What `host_identifier` asks for.
    pub identity: HostIdentifier,
    /// `config_tls_max_attempts`, at least 1.
    pub config_max_attempts: u32,
    /// `config_tls_etag`, osqueryd's and ours: whether configurations that are here already need not be sent.
    pub config_etag: bool,
    /// `distributed_tls_max_attempts`, at least 1.
    pub distributed_max_attempts: u32,
    /// How lines are kept and sent.
    pub logger: LoggerSettings,
    /// `verbose`: whether our log has DEBUG lines too.
    pub verbose: bool,
    /// Where our own log goes, and how much of it.
    pub log: LogSettings,
    /// The directory of the buffers.
    pub buffer_path: PathBuf,
    /// Our `journal_sync_interval`: how often the journals are synced to the disk; `None` (0) is never.
    pub journal_sync_interval: Option<Duration>,
    /// Longest time for one request, connecting included.
    pub request_timeout: Duration,
    /// How long osqueryd is waited for when it has gone away. When its worker dies within 5 s of its start, the next
    /// one comes only 7 to 9 s later; the watcher's longest pause between two starts is a minute.
    pub return_timeout: Duration,
    /// Our `worker_max_memory`: bytes that a worker may have in memory.
    pub worker_max_memory: u64,
    /// Our `metrics_file`: where node_exporter finds our numbers.
    pub metrics_file: Option<PathBuf>,
    /// `logger_plugin`: the names of osqueryd's loggers, with commas between them.
    pub logger_plugin: String,
    /// Our `keep_plugins`: whether a configuration's options may not put the built-in plugins in our places.
    pub keep_plugins: bool,
}

/// Servers that are asked while the first one fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverSettings {
    /// Our `failover_hostnames`, in their order.
    pub servers: Vec<Server>,
    /// Our `failover_after`: how long a server must have failed.
    pub after: Duration,
    /// Our `failover_node_keys`: whether all servers know one node key, or each has its own.
    pub node_keys: NodeKeys,
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
    /// Our `tls_pins`: keys of which one must be in the server's chain; an empty list accepts every chain.
    pub pins: Result<Vec<Pin>, SettingError>,
    /// `tls_session_reuse`: whether connections are kept open.
    pub session_reuse: bool,
    /// `tls_session_timeout`: how old a connection may become that is kept.
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

/// How and how often the host enrolls: osquery's flags and ours for it.
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
    /// Our `reenroll_within`: another key in place of one that had worked is asked for within this time.
    pub reenroll_within: Duration,
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

/// How lines are kept and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggerSettings {
    /// `logger_tls_period`: between two flushes, at least a tenth of a second.
    pub period: Duration,
    /// `logger_tls_max_lines`: a request's, at least 1.
    pub max_lines: usize,
    /// `logger_tls_max_linesize`: longer lines are set aside.
    pub max_line_bytes: usize,
    /// `logger_tls_backoff_max`; `None` (0) means that a failed flush is tried again after the period.
    pub backoff_max: Option<Duration>,
    /// `logger_tls_compress`: gzip request bodies.
    pub compress: bool,
    /// `tls_disable_status_log`: status lines are not sent.
    pub status_disabled: bool,
    /// `decorations_top_level`: where status lines' decorations stand; `None` is `disable_decorators`.
    pub decorations: Option<Placement>,
    /// What each stream's buffer may take: `buffered_log_max` (0 is no limit), our `buffer_max_bytes` and
    /// `buffer_min_free_bytes`.
    pub limits: Limits,
    /// Our `logger_max_request_bytes`: a body's size before compression, unless one line alone is larger.
    pub max_request_bytes: usize,
    /// Our `logger_expand_events`: whether event lines are made by us.
    pub expand_events: ExpandEvents,
    /// Our `new_lines_first`: whether new result lines go before those that could not be sent for a minute.
    pub new_lines_first: bool,
    /// `logger_event_type` as osqueryd has it now: whether a query's difference comes in a line for each row. osquery's
    /// default is true. `plugins::config` knows whether its operator wants it so.
    pub event_type: bool,
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

impl Settings {
    /// The settings that `options` and our own flags make, and what was unusable in them.
    ///
    /// A flag that osqueryd doesn't know (an old version) has osquery's default.
    #[must_use]
    pub fn new(options: &Options, own: &OwnFlags) -> (Self, Vec<SettingError>) {
        builder::build(options, own)
    }

    /// These settings with the server of this number: 0 is the first one, then those of `failover` follow. The settings
    /// themselves where there is no other server of this number.
    #[must_use]
    pub fn with_server(&self, number: usize) -> Cow<'_, Self> {
        match self.other_server(number) {
            None => Cow::Borrowed(self),
            Some(server) => Cow::Owned(Self { server: Ok(server.clone()), ..self.clone() }),
        }
    }

    /// The server of this number, where it is one of `failover`.
    #[must_use]
    pub fn other_server(&self, number: usize) -> Option<&Server> {
        self.failover.servers.get(number.checked_sub(1)?)
    }

    /// How the server of this number is written; empty when it is unusable.
    #[must_use]
    pub fn server_name(&self, number: usize) -> String {
        let server = self.other_server(number).or(self.server.as_ref().ok());
        server.map(ToString::to_string).unwrap_or_default()
    }

    /// Whether osqueryd has this extension for a logger, and no other one.
    #[must_use]
    pub fn is_only_logger(&self) -> bool {
        let mut names = self.logger_plugin.split(',').map(str::trim).filter(|name| !name.is_empty()).peekable();
        names.peek().is_some() && names.all(|name| name == NAME)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use log::LevelFilter;

    use super::own::{AnyFlag, FLAGS, Setter, Stricter};
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
        assert_eq!(settings.tls.server_certs, Path::new(DEFAULT_SERVER_CERTS));
        assert_eq!(settings.tls.client, Ok(None));
        assert!(settings.tls.session_reuse && !settings.tls.accept_gzip);
        assert_eq!(settings.tls.session_timeout, Duration::from_secs(3600));
        assert_eq!(settings.proxy, Ok(None));
        assert_eq!(settings.enroll.secret, SecretSource::None);
        assert_eq!((settings.enroll.max_attempts, settings.enroll.max_interval.as_secs()), (Some(12), 600));
        assert_eq!((settings.config_max_attempts, settings.distributed_max_attempts), (3, 3));
        assert!(settings.config_etag);
        assert_eq!(settings.logger.period, Duration::from_secs(4));
        assert_eq!((settings.logger.max_lines, settings.logger.max_line_bytes), (1024, 1_048_576));
        assert_eq!(settings.logger.backoff_max, Some(Duration::from_secs(3600)));
        assert_eq!(settings.logger.limits.max_lines, Some(1_000_000));
        assert_eq!(settings.logger.max_request_bytes, 1_048_576);
        assert_eq!(settings.logger.expand_events, ExpandEvents::Auto);
        assert!(settings.logger.new_lines_first);
        assert_eq!((settings.enroll.max_per_hour, settings.enroll.reenroll_within.as_secs()), (60, 600));
        assert_eq!(settings.identity, HostIdentifier::Hostname);
        assert_eq!(settings.api.secret_name, "enroll_secret");
        assert_eq!(settings.buffer_path, Path::new("/var/osquery/remote_tls"));
        assert_eq!(settings.journal_sync_interval, Some(Duration::from_secs(5)));
        assert!(settings.logger.event_type);
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
        assert_eq!(settings.logger.limits.max_lines, None);
    }

    #[test]
    fn absurd_times_are_a_week() {
        let (settings, _) = settings(&[("logger_tls_period", "18446744073709551615")]);
        assert_eq!(settings.logger.period, Duration::from_secs(7 * 24 * 3600));
    }

    #[test]
    fn a_server_or_proxy_that_is_none_is_named_without_a_password() {
        let (settings, _) =
            settings(&[("tls_hostname", "https://fleet"), ("proxy_hostname", "me:hunter2@http://proxy")]);
        let message = settings.server.unwrap_err().to_string();
        assert!(message.contains("--tls_hostname=https://fleet") && message.contains("host:port"), "{message}");
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
        let nowhere = LogSettings::default();
        assert_eq!(log(&[], OwnFlags::default()), (nowhere.clone(), vec![]));
        let own = |level: &str, syslog: &str| {
            let own = OwnFlags::default().with(&own::LOG_LEVEL, level).with(&own::LOG_FILE, "/var/log/f");
            own.with(&own::LOG_SYSLOG, syslog)
        };
        let (settings, errors) = log(&[], own("warning", "true"));
        assert_eq!((settings.level, errors), (LevelFilter::Warn, vec![]));
        assert_eq!(settings.file.as_deref(), Some(Path::new("/var/log/f")));
        assert_eq!(settings.syslog.as_deref(), Some(Path::new(own::SYSLOG_SOCKET)));
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
        let own = OwnFlags::default().with(&own::BUFFER_PATH, "/local").with(&own::REQUEST_TIMEOUT, "9");
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

    #[test]
    fn ours_is_the_only_logger_when_no_other_one_is_named() {
        let only = |plugins: &str| settings(&[("logger_plugin", plugins)]).0.is_only_logger();
        assert!(only("remote_tls") && only(" remote_tls,"));
        assert!(!only("filesystem,remote_tls") && !only("tls") && !only(""));
        assert!(!settings(&[]).0.is_only_logger(), "osquery's default is the filesystem");
    }

    #[test]
    fn other_servers_are_listed_and_one_that_is_none_leaves_the_first_alone() {
        let with = |list| with(&own::FAILOVER_HOSTNAMES, Setter::Host, list);
        let (settings, errors) = with("b.example.com, c.example.com:8443/osquery");
        assert_eq!(errors, [""; 0]);
        let server = |number| settings.with_server(number).server.clone().map(|server| server.to_string());
        assert_eq!(server(1).unwrap(), "b.example.com");
        assert_eq!(server(2).unwrap(), "c.example.com:8443/osquery");
        assert_eq!((server(0), server(3)), (server(0), server(0)), "there is no other one");
        for list in ["https://b.example.com", "b,,c", "b:0"] {
            let (settings, errors) = with(list);
            assert!(settings.failover.servers.is_empty() && errors[0].contains("failover_hostnames"), "{errors:?}");
        }
    }

    /// The settings with one flag of ours, given on the host or by a configuration, and the errors' texts.
    fn with(flag: &AnyFlag, setter: Setter, text: &str) -> (Settings, Vec<String>) {
        let (settings, errors) = match setter {
            Setter::Host => Settings::new(&Options::new(), &OwnFlags::default().with(flag, text)),
            Setter::Server | Setter::Limit(_) => settings(&[(&format!("{REMOTE_PREFIX}{}", flag.name), text)]),
        };
        (settings, errors.iter().map(ToString::to_string).collect())
    }

    /// A value that is not the default.
    fn another(flag: &AnyFlag) -> String {
        // A flag of none of these values needs one here.
        let candidates = flag.kind.range().map_or_else(
            || ["error", "true", "false", "each", "/elsewhere", &Pin::of(b"").to_string()].map(str::to_owned).to_vec(),
            |range| vec![(range.start() + 2).to_string()],
        );
        let is_another = |text: &String| flag.kind.accepts(text) && flag.kind.default_text().as_ref() != Some(text);
        candidates
            .into_iter()
            .find(is_another)
            .unwrap_or_else(|| panic!("no candidate is another value of {}", flag.name))
    }

    #[test]
    fn every_flag_of_ours_changes_the_settings_and_only_those_who_may_set_it_can() {
        let defaults = settings(&[]).0;
        for flag in FLAGS {
            let text = another(flag);
            let (local, errors) = with(flag, Setter::Host, &text);
            assert_eq!(errors, [""; 0]);
            assert_ne!(local, defaults, "--{}={text} changes nothing", flag.name);
            let (remote, errors) = with(flag, Setter::Server, &text);
            assert_eq!(errors, [""; 0]);
            let expected = if flag.setter.is_server_too() { &local } else { &defaults };
            assert_eq!(&remote, expected, "custom_remote_tls_{}={text}", flag.name);
        }
    }

    #[test]
    fn a_server_can_only_tighten_a_limit_that_the_host_has_set() {
        let limits = FLAGS.iter().filter_map(|flag| match flag.setter {
            Setter::Limit(stricter) => Some((*flag, stricter)),
            Setter::Host | Setter::Server => None,
        });
        for (flag, stricter) in limits {
            let with = |host: &str, server: &str| {
                let options = options(&[(&format!("{REMOTE_PREFIX}{}", flag.name), server)]);
                let (settings, errors) = Settings::new(&options, &OwnFlags::default().with(flag, host));
                assert_eq!(errors, []);
                settings
            };
            let (strict, lax) = match stricter {
                Stricter::Less => ("1000", "2000"),
                Stricter::More => ("2000", "1000"),
            };
            for (host, server, counts) in [(strict, lax, strict), (lax, strict, strict), (lax, lax, lax)] {
                assert_eq!(with(host, server), with(counts, counts), "{}={host}, {server}", flag.name);
            }
            assert_ne!(with(strict, strict), with(lax, lax), "{}", flag.name);
            let is_0_allowed = flag.kind.accepts("0");
            assert!(stricter == Stricter::More || !is_0_allowed, "0 of {} would be taken for no limit", flag.name);
        }
        let (settings, _) = settings(&[("custom_remote_tls_buffer_max_bytes", "2000000000")]);
        assert_eq!(settings.logger.limits.max_bytes, 2_000_000_000, "the host has set nothing");
    }

    #[test]
    fn every_flag_of_ours_has_the_default_that_is_said() {
        let defaults = settings(&[]).0;
        for flag in FLAGS {
            let (settings, errors) = with(flag, Setter::Host, &flag.kind.default_text().unwrap_or_default());
            assert_eq!((settings, errors), (defaults.clone(), vec![]), "{}", flag.name);
        }
    }

    #[test]
    fn a_value_of_ours_that_can_not_be_used_is_named_with_what_is_allowed_and_counts_for_nothing() {
        let defaults = settings(&[]).0;
        for flag in FLAGS {
            // No value of any kind holds what stands for invalid UTF-8.
            let bad = "\u{fffd}";
            let (settings, errors) = with(flag, Setter::Host, bad);
            let allowed = flag.kind.allowed();
            let message = format!("--{}={bad} can't be used: {allowed} is needed", flag.name);
            assert_eq!(errors, std::slice::from_ref(&message));
            match &settings.tls.pins {
                // Nothing stands in for these.
                Err(error) => assert_eq!((flag.name, error.to_string()), (own::TLS_PINS.name, message)),
                Ok(_) => assert_eq!(settings, defaults, "{}", flag.name),
            }
            let (settings, errors) = with(flag, Setter::Server, bad);
            let expected = format!("--{REMOTE_PREFIX}{}={bad} can't be used: {allowed} is needed", flag.name);
            assert_eq!(errors, if flag.setter.is_server_too() { vec![expected] } else { vec![] });
            assert_eq!(settings, defaults, "{}", flag.name);
        }
    }

    #[test]
    fn every_number_of_ours_has_the_range_that_is_said() {
        let mut numbers = 0;
        for flag in FLAGS {
            let Some(range) = flag.kind.range() else { continue };
            let (least, most) = (*range.start(), *range.end());
            assert!(flag.kind.accepts(&least.to_string()) && flag.kind.accepts(&most.to_string()), "{}", flag.name);
            let said = flag.kind.allowed();
            let expected = match (least, most) {
                (0, u64::MAX) => String::new(),
                (least, u64::MAX) => format!(", at least {least}"),
                (least, most) => format!(" from {least} to {most}"),
            };
            assert!(said.ends_with(&expected) && said.contains(char::is_numeric) != expected.is_empty(), "{said}");
            for outside in [i128::from(least) - 1, i128::from(most) + 1] {
                let (_, errors) = with(flag, Setter::Host, &outside.to_string());
                assert_eq!(errors.len(), 1, "{}={outside}", flag.name);
            }
            numbers += 1;
        }
        assert!(numbers >= 8, "{numbers} numbers");
    }

    #[test]
    fn no_two_flags_of_ours_have_one_name_and_each_is_explained() {
        let mut names: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FLAGS.len());
        for flag in FLAGS {
            assert_eq!(own::named(flag.name).map(|found| found.help), Some(flag.help));
            assert!(!flag.help.is_empty() && !flag.help.contains(['\n', '|']), "{}", flag.name);
        }
    }

    #[test]
    fn osqueryd_s_flag_or_ours_switches_etags_off() {
        let is_on = |theirs: &str, ours: &str| {
            let own = OwnFlags::default().with(&own::CONFIG_TLS_ETAG, ours);
            Settings::new(&options(&[("config_tls_etag", theirs)]), &own).0.config_etag
        };
        let cases = [is_on("true", "true"), is_on("false", "true"), is_on("true", "false"), is_on("false", "false")];
        assert_eq!(cases, [true, false, false, false]);
    }

    #[test]
    fn zero_seconds_between_syncs_is_never() {
        let (settings, _) = with(&own::JOURNAL_SYNC_INTERVAL, Setter::Server, "0");
        assert_eq!(settings.journal_sync_interval, None);
        assert_eq!(with(&own::LOGGER_EXPAND_EVENTS, Setter::Host, "yes").0.logger.expand_events, ExpandEvents::Always);
        assert_eq!(with(&own::LOGGER_EXPAND_EVENTS, Setter::Host, "0").0.logger.expand_events, ExpandEvents::Never);
    }
}
