//! Status calls that came while no worker was there: the front has put them into a journal of their own, undecorated, as
//! osqueryd handed them over.

use std::sync::Arc;
use std::time::Duration;

use super::Logger;
use crate::journal::{OneLine, Reader, Waiting};
use crate::shutdown::{Doorbell, Shutdown};

/// Bytes that are read at once. A call of osqueryd's has some lines.
const AT_ONCE: usize = 1 << 20;

/// Between two looks while the journal can't be read.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Takes those calls as if they came now.
pub struct Pending {
    /// Where they wait.
    pub calls: Reader<OneLine>,
    /// Who takes them.
    pub logger: Arc<Logger>,
    /// Rung by the front when one comes, and at the end.
    pub bell: Arc<Doorbell>,
    /// Asks for the end.
    pub shutdown: Shutdown,
}

impl Pending {
    /// Works until the end is asked for.
    pub fn run(&self) {
        while !self.shutdown.requested() {
            match self.calls.peek(AT_ONCE) {
                Ok(Waiting::Nothing) => self.bell.wait(None),
                Ok(Waiting::Records(chunk)) => {
                    for record in chunk.records() {
                        self.logger.keep_statuses(&String::from_utf8_lossy(record.bytes));
                    }
                    self.calls.acknowledge(chunk.end());
                }
                // No call of osqueryd's is that large.
                Ok(Waiting::Large(record)) => {
                    self.calls.set_aside_large(&record, "a status call of absurd size");
                    self.calls.acknowledge(record.end());
                }
                Err(error) => {
                    log::debug!("{error}");
                    if self.shutdown.wait(RETRY_INTERVAL) {
                        return;
                    }
                }
            }
        }
    }
}
