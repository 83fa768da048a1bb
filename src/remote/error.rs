//! Why a request as this node had no success.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::enroll::error::EnrollError;
use super::request::{Blame, RequestError};
use crate::words::Span;

/// Why a request as this node had no success.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It was made, or could not be built.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no node key, so nothing but enrollment can be asked for.
    #[error("{endpoint}: not enrolled")]
    NotEnrolled {
        /// What was asked for.
        endpoint: Endpoint,
        /// The last enrollment's error.
        source: Arc<EnrollError>,
    },
    /// The server is not well, or has asked to be left alone for a while: what was asked for is to be answered from
    /// what is at hand.
    #[error("{endpoint}: the server is left alone for another {}", Span(*.left))]
    BackingOff {
        /// What was asked for.
        endpoint: Endpoint,
        /// How long that still is.
        left: Duration,
    },
}

impl RemoteError {
    /// The request's own error, when there was a request.
    #[must_use]
    pub fn request(&self) -> Option<&RequestError> {
        match self {
            Self::Request(error) => Some(error),
            _ => None,
        }
    }

    /// Whether all is well but for the configuration itself.
    #[must_use]
    pub fn is_unusable_configuration(&self) -> bool {
        self.request().is_some_and(RequestError::is_unusable_configuration)
    }

    /// Whether another attempt within seconds can help: not when a flag or the enrollment is in the way.
    #[must_use]
    pub fn is_worth_another_attempt(&self) -> bool {
        self.request().is_some_and(RequestError::is_worth_another_attempt)
    }

    /// What about the request may be why it had no success.
    #[must_use]
    pub fn blame(&self) -> Blame {
        self.request().map_or(Blame::Nothing, RequestError::blame)
    }

    /// Whether the server is not well, or can't be reached: more requests would make it worse.
    #[must_use]
    pub fn says_unwell(&self) -> bool {
        self.request().is_some_and(RequestError::says_unwell)
    }

    /// How long the server asks to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Request(error) => error.retry_after(),
            Self::BackingOff { left, .. } => Some(*left),
            Self::NotEnrolled { .. } => None,
        }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.request().and_then(RequestError::status)
    }
}
