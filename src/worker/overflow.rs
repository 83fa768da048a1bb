//! Result lines that wait in the front's memory, since the disk refuses them: reached over the control connection.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::control::{Report, Taken, ToOther};
use crate::journal::{Amount, Borrowed, Counts, Overflow};

/// A front answers at once; one that is about to be replaced may not.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The front's memory, as its worker sees it.
pub(super) struct FrontMemory {
    front: Arc<ToOther>,
    /// What was counted before this worker began.
    before: Taken,
}

impl FrontMemory {
    /// The front behind this connection, with what it had counted when it started this worker.
    pub(super) fn new(front: Arc<ToOther>, before: Taken) -> Self {
        Self { front, before }
    }

    /// What the front has taken since this worker began; `None` when it can't be asked.
    pub(super) fn counts(&self) -> Option<Counts> {
        let taken = self.taken().inspect_err(|error| log::debug!("the front can't be asked: {error}")).ok()?;
        Some(Counts {
            accepted: taken.accepted.saturating_sub(self.before.accepted),
            dropped: taken.dropped.saturating_sub(self.before.dropped),
            ..Counts::default()
        })
    }

    fn taken(&self) -> io::Result<Taken> {
        Ok(serde_json::from_slice(&self.ask(&Report::Taken {})?)?)
    }

    /// Everything that the front writes in answer to a report.
    fn ask(&self, report: &Report) -> io::Result<Vec<u8>> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ANSWER_LIMIT))?;
        self.front.send(report, Some(&theirs))?;
        drop(theirs);
        let mut answer = Vec::new();
        ours.read_to_end(&mut answer)?;
        Ok(answer)
    }

    fn tell(&self, report: &Report) {
        if let Err(error) = self.front.send(report, None) {
            log::debug!("the front can't be told: {error}");
        }
    }
}

impl Overflow for FrontMemory {
    fn peek(&self, max_bytes: usize) -> io::Result<Option<Borrowed>> {
        let answer = self.ask(&Report::PeekOverflow { most: max_bytes })?;
        let Some((through, bytes)) = answer.split_first_chunk() else { return Ok(None) };
        Ok(Some(Borrowed { through: u64::from_be_bytes(*through), bytes: bytes.to_vec() }))
    }

    fn remove(&self, through: u64) {
        self.tell(&Report::RemoveOverflow { through });
    }

    fn give_back(&self) {
        self.tell(&Report::GiveBackOverflow {});
    }

    fn held(&self) -> io::Result<Amount> {
        let taken = self.taken()?;
        Ok(Amount { lines: taken.held_lines, bytes: taken.held_bytes })
    }

    fn take_losses(&self) -> Vec<String> {
        let losses = self.ask(&Report::Losses {}).and_then(|answer| Ok(serde_json::from_slice(&answer)?));
        losses.unwrap_or_else(|error| {
            log::debug!("the front can't be asked for losses: {error}");
            Vec::new()
        })
    }
}
