//! Flags made into settings: one method a part.
//!
//! A flag that osqueryd doesn't know (an old version) has osquery's default.

use std::path::Path;
use std::time::Duration;

use log::LevelFilter;

use super::address::without_password;
use super::own::{self, Flag, Kind, Number, OwnFlags, Parse, REMOTE_PREFIX, Setter, Stricter};
use super::{
    ApiStyle, ClientIdentity, DEFAULT_SERVER_CERTS, Endpoints, EnrollSettings, FailoverSettings, HostIdentifier,
    LogSettings, LoggerSettings, Options, Pin, Placement, Proxy, SecretSource, Server, SettingError, Settings,
    TlsSettings,
};
use crate::journal::Limits;

/// No flag asks for a longer time than a week.
pub(super) const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Takes flags out of osqueryd's options and our own flags one by one, and keeps what was wrong with them.
pub(super) struct SettingsBuilder<'a> {
    options: &'a Options,
    given: &'a OwnFlags,
    errors: Vec<SettingError>,
}

/// The settings that these flags make, and what was unusable in them.
pub(super) fn build(options: &Options, given: &OwnFlags) -> (Settings, Vec<SettingError>) {
    let mut builder = SettingsBuilder { options, given, errors: Vec::new() };
    let settings = builder.settings();
    (settings, builder.errors)
}

impl SettingsBuilder<'_> {
    fn settings(&mut self) -> Settings {
        Settings {
            server: self.server(),
            failover: FailoverSettings {
                servers: self.own(&own::FAILOVER_HOSTNAMES),
                after: Duration::from_secs(self.own(&own::FAILOVER_AFTER)),
                node_keys: self.own(&own::FAILOVER_NODE_KEYS),
            },
            endpoints: Endpoints {
                enroll: self.text("enroll_tls_endpoint", ""),
                config: self.text("config_tls_endpoint", ""),
                logger: self.text("logger_tls_endpoint", ""),
                distributed_read: self.text("distributed_tls_read_endpoint", ""),
                distributed_write: self.text("distributed_tls_write_endpoint", ""),
            },
            tls: self.tls(),
            headers_file: self.own(&own::TLS_HEADERS_FILE),
            proxy: self.proxy(),
            enroll: self.enroll(),
            api: ApiStyle {
                secret_always: self.truth("tls_secret_always", false),
                secret_name: non_empty(self.text("tls_enroll_override", "enroll_secret"), "enroll_secret"),
                node_api: self.truth("tls_node_api", false),
                dump: self.truth("tls_dump", false),
            },
            identity: self.identity(),
            config_max_attempts: self.attempts("config_tls_max_attempts"),
            // osqueryd has such a flag after 5.23. Either can switch it off.
            config_etag: self.truth("config_tls_etag", true) & self.own(&own::CONFIG_TLS_ETAG),
            distributed_max_attempts: self.attempts("distributed_tls_max_attempts"),
            logger: self.logger(),
            verbose: self.truth("verbose", false),
            log: self.log(),
            buffer_path: self.own(&own::BUFFER_PATH).unwrap_or_else(|| self.default_buffer_path()),
            journal_sync_interval: some_time(self.own(&own::JOURNAL_SYNC_INTERVAL)),
            request_timeout: Duration::from_secs(self.own(&own::REQUEST_TIMEOUT)),
            return_timeout: Duration::from_secs(self.own(&own::RETURN_TIMEOUT)),
            worker_max_memory: self.own(&own::WORKER_MAX_MEMORY),
            metrics_file: self.own(&own::METRICS_FILE),
            logger_plugin: self.text("logger_plugin", "filesystem"),
            keep_plugins: self.own(&own::KEEP_PLUGINS),
        }
    }

    fn server(&self) -> Result<Server, SettingError> {
        let value = self.text("tls_hostname", "");
        Server::parse(&value).ok_or_else(|| {
            let value = without_password(&value);
            SettingError::new("tls_hostname", value, "the server's host or host:port is needed, without a scheme")
        })
    }

    fn tls(&mut self) -> TlsSettings {
        TlsSettings {
            server_certs: self.text("tls_server_certs", DEFAULT_SERVER_CERTS).into(),
            client: self.client(),
            pins: self.pins(),
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
            (false, true) => {
                Err(SettingError::new("tls_client_key", key, "tls_client_cert is set: its key is needed too"))
            }
            (true, false) => {
                Err(SettingError::new("tls_client_cert", cert, "tls_client_key is set: its certificate is needed too"))
            }
        }
    }

    fn pins(&mut self) -> Result<Vec<Pin>, SettingError> {
        let flag = &own::TLS_PINS;
        let given = self.given.text(flag.name).unwrap_or_default();
        Pin::parse_all(given).map_err(|pin| {
            let error = SettingError::new(flag.name, pin, format!("{} is needed", flag.kind.allowed()));
            self.errors.push(error.clone());
            error
        })
    }

    fn proxy(&self) -> Result<Option<Proxy>, SettingError> {
        let value = self.text("proxy_hostname", "");
        if value.is_empty() {
            return Ok(None);
        }
        Proxy::parse(&value).map(Some).ok_or_else(|| {
            SettingError::new(
                "proxy_hostname",
                without_password(&value),
                "host or host:port is needed, with user:password@ before it if any",
            )
        })
    }

    fn enroll(&mut self) -> EnrollSettings {
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
            max_per_hour: u32::try_from(self.limit(&own::ENROLL_MAX_PER_HOUR)).unwrap_or(u32::MAX),
            reenroll_within: Duration::from_secs(self.own(&own::REENROLL_WITHIN)),
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

    fn logger(&mut self) -> LoggerSettings {
        LoggerSettings {
            period: self.seconds("logger_tls_period", 4).max(Duration::from_millis(100)),
            max_lines: self.size("logger_tls_max_lines", 1024).max(1),
            max_line_bytes: self.line_bytes(),
            backoff_max: Some(self.seconds("logger_tls_backoff_max", 3600)).filter(|most| !most.is_zero()),
            compress: self.truth("logger_tls_compress", false),
            status_disabled: self.truth("tls_disable_status_log", false),
            decorations: self.decorations(),
            limits: Limits {
                max_lines: Some(self.number("buffered_log_max", 1_000_000)).filter(|&most| most > 0),
                max_bytes: self.limit(&own::BUFFER_MAX_BYTES),
                min_free_bytes: self.limit(&own::BUFFER_MIN_FREE_BYTES),
            },
            max_request_bytes: usize::try_from(self.own(&own::LOGGER_MAX_REQUEST_BYTES)).unwrap_or(usize::MAX),
            expand_events: self.own(&own::LOGGER_EXPAND_EVENTS),
            new_lines_first: self.own(&own::NEW_LINES_FIRST),
            event_type: self.truth("logger_event_type", true),
        }
    }

    fn log(&mut self) -> LogSettings {
        let level = self.own(&own::LOG_LEVEL);
        LogSettings {
            level: if self.truth("verbose", false) { LevelFilter::Debug } else { level },
            file: self.own(&own::LOG_FILE),
            syslog: self.own(&own::LOG_SYSLOG),
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

    fn default_buffer_path(&self) -> std::path::PathBuf {
        let database = self.text("database_path", "/var/osquery/osquery.db");
        Path::new(&database).parent().unwrap_or(Path::new("/var/osquery")).join("remote_tls")
    }

    fn text(&self, flag: &str, default: &str) -> String {
        self.options.get(flag).map_or(default, String::as_str).to_owned()
    }

    fn truth(&mut self, flag: &str, default: bool) -> bool {
        match self.options.get(flag) {
            None => default,
            Some(value) if own::TRUE.contains(&value.as_str()) => true,
            Some(value) if own::FALSE.contains(&value.as_str()) => false,
            Some(value) => {
                self.errors.push(SettingError::new(flag, value, "true or false is needed"));
                default
            }
        }
    }

    fn number(&mut self, flag: &str, default: u64) -> u64 {
        let Some(value) = self.options.get(flag) else { return default };
        value.trim().parse().unwrap_or_else(|_| {
            self.errors.push(SettingError::new(flag, value, "a whole number, not negative, is needed"));
            default
        })
    }

    fn size(&mut self, flag: &str, default: u64) -> usize {
        usize::try_from(self.number(flag, default)).unwrap_or(usize::MAX)
    }

    /// At most [`LONGEST`]: a larger number is a mistake, and clocks overflow.
    fn seconds(&mut self, flag: &str, default: u64) -> Duration {
        Duration::from_secs(self.number(flag, default)).min(LONGEST)
    }

    fn attempts(&mut self, flag: &str) -> u32 {
        u32::try_from(self.number(flag, 3)).unwrap_or(u32::MAX).max(1)
    }

    /// What a flag of ours means: as a configuration sets it, where that is allowed, else as it was given on the host.
    fn own<K: Parse>(&mut self, flag: &Flag<K>) -> K::Value {
        let remote = format!("{REMOTE_PREFIX}{}", flag.name);
        let (name, text) = match (flag.setter, self.options.get(&remote), self.given.text(flag.name)) {
            (Setter::Server | Setter::Limit(_), Some(text), _) => (remote.as_str(), text.as_str()),
            (_, _, Some(text)) => (flag.name, text),
            (_, _, None) => return flag.kind.default(),
        };
        flag.kind.parse(text).unwrap_or_else(|| {
            self.errors.push(SettingError::new(name, text, format!("{} is needed", flag.kind.allowed())));
            flag.kind.default()
        })
    }

    /// What a [`Setter::Limit`] comes to.
    fn limit(&mut self, flag: &Flag<Number>) -> u64 {
        let value = self.own(flag);
        let of_host = self.given.text(flag.name).and_then(|text| flag.kind.parse(text)).unwrap_or(value);
        match flag.setter {
            Setter::Limit(Stricter::Less) => value.min(of_host),
            Setter::Limit(Stricter::More) => value.max(of_host),
            Setter::Host | Setter::Server => value,
        }
    }
}

/// A length of time in seconds; `None` for 0.
fn some_time(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn non_empty(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}
