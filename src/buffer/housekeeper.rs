//! The thread that does for the buffers what appends must not wait for.

use std::sync::Arc;

use super::Buffer;
use crate::shutdown::{Doorbell, Shutdown};

/// Tidies buffers when one of them asks for it. Sleeps without waking otherwise.
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
            self.bell.wait(None);
            for buffer in &self.buffers {
                buffer.tidy();
            }
        }
    }
}
