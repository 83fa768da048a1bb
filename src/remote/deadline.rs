//! When a connection must have been made, its handshakes included.
//!
//! ureq tells each part of the chain the time that was left when the attempt began. Each would take as much once more,
//! and a peer that sends a byte now and then would keep a part for ever.

use std::time::Instant;

use ureq::Timeout;
use ureq::unversioned::transport::time::{self, Duration};
use ureq::unversioned::transport::{ConnectionDetails, NextTimeout};

#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    /// `None` is far away.
    at: Option<Instant>,
    reason: Timeout,
}

impl Deadline {
    pub(super) fn of(details: &ConnectionDetails<'_>) -> Self {
        let began = if let time::Instant::Exact(began) = details.now { began } else { Instant::now() };
        Self { at: began.checked_add(*details.timeout.after), reason: details.timeout.reason }
    }

    /// What is left of the time; an error when that is nothing.
    pub(super) fn left(self) -> Result<NextTimeout, ureq::Error> {
        let Some(at) = self.at else { return Ok(NextTimeout { reason: self.reason, ..NextTimeout::default() }) };
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ureq::Error::Timeout(self.reason));
        }
        Ok(NextTimeout { after: Duration::Exact(left), reason: self.reason, ..NextTimeout::default() })
    }
}
