//! The remote TLS API: what is sent where, how the answer is judged, and who this node is.
//!
//! Pure: [`url`] (endpoints, and the customizations that change them) and [`api`] (bodies and answers). With a
//! network: [`tls`] (trust) below [`transport`] (HTTP) below [`node`] (one request with the node key, judged).
//! [`enroll`] alone touches the node key; [`host`] asks osqueryd about this host. [`stats`] is what became of requests,
//! [`look`] connects for the doctor's sake.

use std::fmt;

use crate::settings::{Endpoints, SettingError};

pub mod api;
pub mod enroll;
pub mod event_lines;
pub mod host;
pub mod look;
pub mod node;
pub mod stats;
pub mod status_line;
pub mod tls;
pub mod transport;
pub mod trust;
pub mod url;

/// The five endpoints of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Trades the secret for a node key.
    Enroll,
    /// Gives the configuration.
    Config,
    /// Takes log lines.
    Logger,
    /// Gives ad-hoc queries.
    DistributedRead,
    /// Takes their results.
    DistributedWrite,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Enroll, Self::Config, Self::Logger, Self::DistributedRead, Self::DistributedWrite];

    /// Its path, as its flag has it; an empty one is an error that names the flag.
    pub fn path(self, endpoints: &Endpoints) -> Result<&str, SettingError> {
        let (flag, path) = match self {
            Self::Enroll => ("enroll_tls_endpoint", &endpoints.enroll),
            Self::Config => ("config_tls_endpoint", &endpoints.config),
            Self::Logger => ("logger_tls_endpoint", &endpoints.logger),
            Self::DistributedRead => ("distributed_tls_read_endpoint", &endpoints.distributed_read),
            Self::DistributedWrite => ("distributed_tls_write_endpoint", &endpoints.distributed_write),
        };
        if path.starts_with('/') {
            return Ok(path);
        }
        let allowed = "the endpoint's path is needed, beginning with /";
        Err(SettingError { flag: flag.to_owned(), value: path.clone(), allowed })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enroll => "enroll",
            Self::Config => "config",
            Self::Logger => "logger",
            Self::DistributedRead => "distributed read",
            Self::DistributedWrite => "distributed write",
        })
    }
}

/// Why a request had no success. Display names the endpoint and never a secret's place in a URL.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A flag that the request needs is unusable.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// There is no node key, so nothing but enrollment can be asked for.
    #[error("{endpoint}: not enrolled: {reason}")]
    NotEnrolled {
        /// What was asked for.
        endpoint: Endpoint,
        /// The last enrollment's error.
        reason: String,
    },
    /// No answer was got.
    #[error("{endpoint} ({url}): {source}")]
    Transport {
        /// What was asked for.
        endpoint: Endpoint,
        /// Where, without any secret.
        url: String,
        /// What happened.
        source: transport::TransportError,
    },
    /// The server has asked to be left alone for a while.
    #[error("{endpoint}: the server asked to be left alone for another {left:?}")]
    Patience {
        /// What was asked for.
        endpoint: Endpoint,
        /// How long that still is.
        left: std::time::Duration,
    },
    /// The answer says no.
    #[error("{endpoint} ({url}): {source}")]
    Answer {
        /// What was asked for.
        endpoint: Endpoint,
        /// Where, without any secret.
        url: String,
        /// In what way.
        source: api::AnswerError,
    },
}

impl RemoteError {
    /// Whether the server rejected the node key.
    #[must_use]
    pub fn is_node_invalid(&self) -> bool {
        matches!(self, Self::Answer { source: api::AnswerError::NodeInvalid { .. }, .. })
    }

    /// Whether another attempt within seconds can help: not when a flag or the enrollment is in the way.
    #[must_use]
    pub fn is_worth_another_attempt(&self) -> bool {
        matches!(self, Self::Transport { .. } | Self::Answer { .. })
    }

    /// Whether the request took too long, by the server's clock or ours: a smaller one may not.
    #[must_use]
    pub fn says_too_slow(&self) -> bool {
        self.status() == Some(408)
            || matches!(self, Self::Transport { source: transport::TransportError::Timeout(step), .. } if !step.is_connecting())
    }

    /// Whether a compressed body may be the reason: servers that don't take one answer 400 or 415, or hang up.
    #[must_use]
    pub fn may_be_the_compression(&self) -> bool {
        matches!(self.status(), Some(400 | 415))
            || matches!(self, Self::Transport { source: transport::TransportError::Broken(_), .. })
    }

    /// How long the server asks to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Answer { source, .. } => source.retry_after(),
            Self::Patience { left, .. } => Some(*left),
            _ => None,
        }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answer { source, .. } => source.status(),
            _ => None,
        }
    }
}
