//! The endpoints of the API. Pure.

use std::fmt;

use crate::settings::{Endpoints, SettingError, Settings};

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
    /// Every endpoint, in the order in which they are shown.
    pub const ALL: [Self; 5] =
        [Self::Enroll, Self::Config, Self::Logger, Self::DistributedRead, Self::DistributedWrite];

    /// The flag that names its path.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            Self::Enroll => "enroll_tls_endpoint",
            Self::Config => "config_tls_endpoint",
            Self::Logger => "logger_tls_endpoint",
            Self::DistributedRead => "distributed_tls_read_endpoint",
            Self::DistributedWrite => "distributed_tls_write_endpoint",
        }
    }

    /// Its path, as its flag has it; an empty one is an error that names the flag.
    pub fn path(self, endpoints: &Endpoints) -> Result<&str, SettingError> {
        let path = match self {
            Self::Enroll => &endpoints.enroll,
            Self::Config => &endpoints.config,
            Self::Logger => &endpoints.logger,
            Self::DistributedRead => &endpoints.distributed_read,
            Self::DistributedWrite => &endpoints.distributed_write,
        };
        if path.starts_with('/') {
            return Ok(path);
        }
        let allowed = "the endpoint's path is needed, beginning with /";
        Err(SettingError { flag: self.flag().to_owned(), value: path.clone(), allowed: allowed.into() })
    }

    /// The largest answer that is read, in bytes after decompression. osqueryd takes configurations of 4 MiB, which
    /// `tls_node_api` wraps into a string; other answers say little.
    #[must_use]
    pub fn largest_answer(self) -> u64 {
        match self {
            Self::Config | Self::DistributedRead => 16 << 20,
            Self::Enroll | Self::Logger | Self::DistributedWrite => 1 << 20,
        }
    }

    /// How many attempts a request to it has in a row, where a caller waits for its success.
    #[must_use]
    pub fn attempts(self, settings: &Settings) -> u32 {
        match self {
            Self::Config => settings.config_max_attempts,
            Self::DistributedRead | Self::DistributedWrite => settings.distributed_max_attempts,
            Self::Enroll | Self::Logger => 1,
        }
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
