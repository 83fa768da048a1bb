//! Why there is no node key.

use std::time::Duration;

use crate::remote::host::HostError;
use crate::remote::request::RequestError;

/// Why there is no node key.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// osqueryd did not say what an enrollment needs to know of this host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The request to enroll had no success.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The very next request with a key was rejected.
    #[error("the server does not accept the node key that it gave")]
    KeyRefused,
    /// The server has granted as many as are allowed.
    #[error(
        "so many node keys were rejected that the next one waits for {} s (enroll_max_per_hour={most_an_hour})",
        .wait.as_secs_f64().ceil()
    )]
    Throttled {
        /// How long that still is.
        wait: Duration,
        /// The value of `enroll_max_per_hour`.
        most_an_hour: u32,
    },
    /// A key that had worked is not accepted any more, perhaps no host's is.
    #[error(
        "the node key is not accepted any more; another one is asked for in {} s (reenroll_within), \
         or at once by the command refresh",
        .0.as_secs_f64().ceil()
    )]
    Spread(Duration),
    /// The attempt is still under way.
    #[error("no answer yet")]
    NoAnswerYet,
}

impl EnrollError {
    /// How long the server asks to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Request(error) => error.retry_after(),
            _ => None,
        }
    }
}
