//! Our own flags: what osquery has no flag for.
//!
//! [`FLAGS`] is the one list of them. The command line's definition, the flag file's reader, what a server may set,
//! the man page, the packaged flag file and the table in docs/flags.md are made of it, or compared with it by a test.

mod given;
mod kinds;

use log::LevelFilter;

use crate::platform::Places;
use crate::policy::Reenrollment;

pub use self::given::{FlagfileError, Given, Origin, OwnFlags, flagfile, read};
pub use self::kinds::{FALSE, Kind, Number, OptionalPath, Parse, PublicKeys, Servers, SystemLog, TRUE, Unit, Words};

/// Where our own flags are, unless [`FLAGFILE_VARIABLE`] names another file: beside osquery's own flag file.
pub const DEFAULT_FLAGFILE: &str = Places::HERE.own_flagfile;

/// The environment variable that names another flag file of ours.
pub const FLAGFILE_VARIABLE: &str = "REMOTE_TLS_FLAGFILE";

/// The prefix under which a configuration's `options` can set those flags of ours that are safe to set remotely.
pub const REMOTE_PREFIX: &str = "custom_remote_tls_";

/// Where the system's log listens.
pub const SYSLOG_SOCKET: &str = Places::HERE.syslog;

/// A flag of ours, and what its values are.
#[derive(Debug)]
pub struct Flag<K: ?Sized> {
    /// Its name, without dashes.
    pub name: &'static str,
    /// Who can set it.
    pub setter: Setter,
    /// What it is, in a line of Markdown.
    pub help: &'static str,
    /// What else the documentation says of it, in Markdown; empty where `help` says all.
    pub more: &'static str,
    /// What can be given, and what counts when nothing is.
    pub kind: K,
}

/// A flag whose values are of any type.
pub type AnyFlag = Flag<dyn Kind>;

/// Who can set a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setter {
    /// Only the host's administrator: on the command line, or in our flag file.
    Host,
    /// The server too, as `custom_remote_tls_<name>` in the `options` of a configuration, which wins.
    Server,
    /// The server too. It is a limit that protects the host: where the host's administrator has set it, the stricter of both
    /// counts.
    Limit(Stricter),
}

/// Which of two values of a limit is the stricter one. Where it is the smaller one 0 is no value: it would be the strictest
/// one, and people mean no limit by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stricter {
    /// The smaller one.
    Less,
    /// The larger one.
    More,
}

impl Setter {
    /// Whether the server can set it, too.
    #[must_use]
    pub fn is_server_too(self) -> bool {
        self != Self::Host
    }
}

/// When the event lines of a query come to be made by us, and not by osqueryd: a whole query's difference then comes in
/// one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpandEvents {
    /// Where osqueryd has no other logger, and neither the server nor the host sets `logger_event_type`, osqueryd is
    /// asked for whole differences, and their event lines are made.
    #[default]
    Auto,
    /// Event lines are made of each difference that comes.
    Always,
    /// A difference is sent as it comes.
    Never,
}

/// By which node keys the servers know a host that has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeKeys {
    /// All by the same one.
    #[default]
    Shared,
    /// Each by one of its own.
    Each,
}

impl<K: Kind + ?Sized> Flag<K> {
    /// [`Self::help`] as a terminal shows it, and the default.
    #[must_use]
    pub fn plain_help(&self) -> String {
        let help = self.help.replace('`', "");
        match self.kind.default_text() {
            Some(default) => format!("{help} [default: {default}]"),
            None => help,
        }
    }
}

/// The flag of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static AnyFlag> {
    FLAGS.iter().copied().find(|flag| flag.name == name)
}

/// Makes a constant of each flag, and the list of all.
macro_rules! table {
    ($($constant:ident: $kind:ty = $flag:expr;)*) => {
        $(
            #[doc = concat!("A flag of ours; [`Flag::help`] says what it is and what its values mean (`", stringify!($constant), "`).")]
            pub static $constant: Flag<$kind> = $flag;
        )*

        /// All of our flags, in the order in which they are shown.
        pub static FLAGS: &[&AnyFlag] = &[$(&$constant),*];
    };
}

table! {
    BUFFER_PATH: OptionalPath = Flag {
        name: "buffer_path",
        setter: Setter::Host,
        help: "Directory of the buffers; `remote_tls` beside osquery's `database_path` when not set",
        more: "",
        kind: OptionalPath,
    };
    BUFFER_MAX_BYTES: Number = Flag {
        name: "buffer_max_bytes",
        setter: Setter::Limit(Stricter::Less),
        help: "Bytes of lines that may wait in each buffer (results with their backlog, statuses, distributed); the oldest go first",
        more: "",
        kind: Number { unit: Unit::Bytes, range: 1..=u64::MAX, default: 1 << 30 },
    };
    BUFFER_MIN_FREE_BYTES: Number = Flag {
        name: "buffer_min_free_bytes",
        setter: Setter::Limit(Stricter::More),
        help: "Bytes that must stay free on the buffers' disk: below this they don't grow",
        more: "",
        kind: Number { unit: Unit::Bytes, range: 0..=u64::MAX, default: 100 << 20 },
    };
    JOURNAL_SYNC_INTERVAL: Number = Flag {
        name: "journal_sync_interval",
        setter: Setter::Server,
        help: "Seconds after which new lines are also safe from a power cut: how often they are synced to the disk; \
               0 is never",
        more: "No call waits for it. A crash of a process loses no line whatever this is.",
        kind: Number { unit: Unit::Seconds, range: 0..=3600, default: 5 },
    };
    LOGGER_MAX_REQUEST_BYTES: Number = Flag {
        name: "logger_max_request_bytes",
        setter: Setter::Server,
        help: "Bytes that the body of a log request may have before compression, unless one line alone has more",
        more: "",
        kind: Number { unit: Unit::Bytes, range: 1024..=1 << 30, default: 1 << 20 },
    };
    LOGGER_EXPAND_EVENTS: Words<ExpandEvents> = Flag {
        name: "logger_expand_events",
        setter: Setter::Server,
        help: "Whether osqueryd hands over whole queries, in a call each, and the extension makes the event lines",
        more: "The server gets the lines that it would have got otherwise, and osqueryd does much less \
               ([performance.md](performance.md)). `auto`: where `logger_plugin` names no other logger, and neither the \
               server's configuration nor osqueryd's flags say anything of `logger_event_type`. `true`: of each \
               difference that comes (osqueryd's `--logger_event_type=false`) event lines are made. `false`: osqueryd's \
               lines are sent as they come.",
        kind: Words {
            placeholder: "auto|BOOL",
            words: &[
                (&["auto"], ExpandEvents::Auto),
                (TRUE, ExpandEvents::Always),
                (FALSE, ExpandEvents::Never),
            ],
            default: ExpandEvents::Auto,
        },
    };
    NEW_LINES_FIRST: Words<bool> = Flag {
        name: "new_lines_first",
        setter: Setter::Host,
        help: "Whether new result lines go before those that could not be sent for a minute",
        more: "What waits counts as such when a flush has failed and for a minute not everything could be sent. The older ones go behind them, at their pace ([fleet.md](fleet.md)), and so do new snapshots while older ones \
               may wait. `false`: all lines go in the order in which they came.",
        kind: Words { placeholder: "BOOL", words: &[(TRUE, true), (FALSE, false)], default: true },
    };
    KEEP_PLUGINS: Words<bool> = Flag {
        name: "keep_plugins",
        setter: Setter::Host,
        help: "Whether osqueryd is given `remote_tls` where a configuration's `options` name `tls` for a plugin whose \
               flag names `remote_tls`",
        more: "Many servers say `\"distributed_plugin\": \"tls\"` to every host, Fleet's default agent options and Zentral \
               among them, and osqueryd applies it over its flag file. Only these values are changed. `false`: the \
               server's word counts.",
        kind: Words { placeholder: "BOOL", words: &[(TRUE, true), (FALSE, false)], default: true },
    };
    CONFIG_TLS_ETAG: Words<bool> = Flag {
        name: "config_tls_etag",
        setter: Setter::Host,
        help: "Whether the server is told, by an `etag`, which configuration this host has, so that it need not send it again",
        more: "Servers that don't know this pass it over. osqueryd after 5.23 has a flag of this name; `false` in either \
               counts. For a server that refuses what it doesn't know.",
        kind: Words { placeholder: "BOOL", words: &[(TRUE, true), (FALSE, false)], default: true },
    };
    ENROLL_MAX_PER_HOUR: Number = Flag {
        name: "enroll_max_per_hour",
        setter: Setter::Limit(Stricter::Less),
        help: "Enrollments that the server grants in any hour, at most",
        more: "Half of them at once, the rest evenly.",
        kind: Number { unit: Unit::Pieces, range: 2..=3600, default: 60 },
    };
    REENROLL_WITHIN: Number = Flag {
        name: "reenroll_within",
        setter: Setter::Host,
        help: "Seconds within which this host asks for another node key when one that had worked is not accepted any more",
        more: "Each host waits for a part of it that chance decides, since a server that has lost one key may have lost those \
               of a whole fleet ([fleet.md](fleet.md)). 0 is at once. A host that never had a key enrolls at once.",
        kind: Number { unit: Unit::Seconds, range: 0..=86400, default: Reenrollment::WITHIN.as_secs() },
    };
    TLS_HEADERS_FILE: OptionalPath = Flag {
        name: "tls_headers_file",
        setter: Setter::Host,
        help: "A file of headers that every request to the server has besides its own, `Name: value` a line",
        more: "For an access proxy's tokens. Only its owner, who must be osqueryd's user, may be able to read it (chmod \
               0600). Its values are masked wherever secrets are ([tls.md](tls.md)).",
        kind: OptionalPath,
    };
    TLS_PINS: PublicKeys = Flag {
        name: "tls_pins",
        setter: Setter::Host,
        help: "Public keys of which the server's certificate, or an issuer of it, must have one, besides all that is asked of \
               it otherwise",
        more: "Give a spare one too ([tls.md](tls.md)). Where one can't be used, no request is made.",
        kind: PublicKeys,
    };
    FAILOVER_HOSTNAMES: Servers = Flag {
        name: "failover_hostnames",
        setter: Setter::Host,
        help: "Servers that are asked in this order while `tls_hostname` fails",
        more: "`host[:port][/path]`, as in `tls_hostname`; trust, certificates, endpoints and proxy are the same for all. Now and \
               then a request is tried with an earlier one, which is in use again when it works \
               ([fleet.md](fleet.md#another-server)).",
        kind: Servers,
    };
    FAILOVER_AFTER: Number = Flag {
        name: "failover_after",
        setter: Setter::Host,
        help: "Seconds for which every request to a server must have failed before the next of `failover_hostnames` is asked",
        more: "It fails when it can't be reached, when there is no TLS connection, and when it answers 500 or more without a \
               `Retry-After`.",
        kind: Number { unit: Unit::Seconds, range: 1..=86400, default: 60 },
    };
    FAILOVER_NODE_KEYS: Words<NodeKeys> = Flag {
        name: "failover_node_keys",
        setter: Setter::Host,
        help: "Whether the servers of `failover_hostnames` know this host by the node key of `tls_hostname`, or by one for each",
        more: "`shared`: they have one list of nodes. `each`: this host enrolls with each one that it comes to use, and keeps \
               the key for the next time.",
        kind: Words {
            placeholder: "shared|each",
            words: &[(&["shared"], NodeKeys::Shared), (&["each"], NodeKeys::Each)],
            default: NodeKeys::Shared,
        },
    };
    REQUEST_TIMEOUT: Number = Flag {
        name: "request_timeout",
        setter: Setter::Server,
        help: "Seconds that a request may take, from connecting to the last byte of its answer",
        more: "",
        kind: Number { unit: Unit::Seconds, range: 1..=3600, default: 60 },
    };
    RETURN_TIMEOUT: Number = Flag {
        name: "return_timeout",
        setter: Setter::Server,
        help: "Seconds to wait for osqueryd when it has gone away; then the extension ends",
        more: "",
        kind: Number { unit: Unit::Seconds, range: 1..=3600, default: 60 },
    };
    WORKER_MAX_MEMORY: Number = Flag {
        name: "worker_max_memory",
        setter: Setter::Host,
        help: "Bytes that a worker may have in memory; another one takes its place when it has more",
        more: "osqueryd's watchdog doesn't see our processes. The calls that it is at are finished, and at most one worker \
               a minute is replaced for this.",
        kind: Number { unit: Unit::Bytes, range: 48 << 20..=u64::MAX, default: 256 << 20 },
    };
    METRICS_FILE: OptionalPath = Flag {
        name: "metrics_file",
        setter: Setter::Host,
        help: "A file for the textfile collector of Prometheus' node_exporter, written every 15 s; none when not set",
        more: "The collector reads names that end in `.prom`. Only osqueryd's user may be able to write in its directory \
               ([operations.md](operations.md#metrics)).",
        kind: OptionalPath,
    };
    LOG_LEVEL: Words<LevelFilter> = Flag {
        name: "log_level",
        setter: Setter::Server,
        help: "What is logged, at least; osqueryd's `verbose` means `debug`",
        more: "",
        kind: Words {
            placeholder: "LEVEL",
            words: &[
                (&["error"], LevelFilter::Error),
                (&["warning"], LevelFilter::Warn),
                (&["info"], LevelFilter::Info),
                (&["debug"], LevelFilter::Debug),
            ],
            default: LevelFilter::Info,
        },
    };
    LOG_FILE: OptionalPath = Flag {
        name: "log_file",
        setter: Setter::Host,
        help: "A file that the log goes to besides stderr",
        more: "At 10 MiB it becomes `<log_file>.1`.",
        kind: OptionalPath,
    };
    LOG_SYSLOG: SystemLog = Flag {
        name: "log_syslog",
        setter: Setter::Host,
        help: "Whether the log goes to the system's log too; the path of its socket means yes",
        more: "",
        kind: SystemLog,
    };
}
