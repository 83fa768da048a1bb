//! The thread that does for the buffers what appends must not wait for.

use std::sync::Arc;
use std::time::Instant;

use super::{Buffer, RETRY_INTERVAL};
use crate::shutdown::{Doorbell, Shutdown};

/// Tidies buffers when one of them asks for it, and once a second while the disk refuses lines. Sleeps without waking
/// otherwise.
pub struct Housekeeper {
    /// The buffers.
    pub buffers: Vec<Arc<Buffer>>,
    /// Rung by the buffers, and at the end.
    pub bell: Arc<Doorbell>,
    /// Asks for the end.
    pub shutdown: Shutdown,
}

impl Housekeeper {
    /// Works until the end is asked for.
    pub fn run(&self) {
        while !self.shutdown.requested() {
            let refused = self.buffers.iter().any(|buffer| buffer.waits_for_disk());
            self.bell.wait(refused.then(|| Instant::now() + RETRY_INTERVAL));
            for buffer in &self.buffers {
                buffer.tidy();
            }
        }
    }
}
