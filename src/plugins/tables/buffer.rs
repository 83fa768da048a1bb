//! `remote_tls_buffer`: the lines that wait and what became of the others, a row a stream.

use super::record_time::oldest_time;
use super::{Rows, Sources, Stream, Value, bigint, text};
use crate::extension::registry::Table;
use crate::journal::{Counts, Limits};
use crate::plugins::distributed;
use crate::settings::LoggerSettings;

pub(super) const TABLE: Table = Table {
    name: "remote_tls_buffer",
    columns: &[
        text("stream"),
        bigint("waiting_lines"),
        bigint("waiting_bytes"),
        bigint("oldest_time"),
        bigint("accepted"),
        bigint("delivered"),
        bigint("dropped"),
        bigint("discarded"),
        bigint("set_aside"),
        bigint("file_bytes"),
        bigint("max_lines"),
        bigint("max_bytes"),
        bigint("min_free_bytes"),
    ],
};

/// How a stream stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its name.
    pub name: &'static str,
    /// Lines that wait.
    pub waiting_lines: u64,
    /// Bytes of their records.
    pub waiting_bytes: u64,
    /// When the oldest of them on the disk was made, in Unix seconds; 0 without one, and when it doesn't say.
    pub oldest_time: i64,
    /// What became of lines since this worker began.
    pub counts: Counts,
    /// Bytes of the buffer's files.
    pub file_bytes: u64,
}

pub(super) fn rows(sources: &Sources) -> Rows {
    standings(sources).into_iter().map(|(standing, limits)| row(&standing, &limits)).collect()
}

/// How the streams stand now, and within which limits.
pub(super) fn standings(sources: &Sources) -> Vec<(Standing, Limits)> {
    let settings = sources.node.flags.current();
    let standing = |stream: &Stream| {
        let limits = limits(stream, &settings.logger);
        (stream.standing(&limits), limits)
    };
    sources.streams.iter().map(standing).collect()
}

fn row(standing: &Standing, limits: &Limits) -> Vec<Value> {
    vec![
        standing.name.into(),
        standing.waiting_lines.into(),
        standing.waiting_bytes.into(),
        standing.oldest_time.into(),
        standing.counts.accepted.into(),
        standing.counts.delivered.into(),
        standing.counts.dropped.into(),
        standing.counts.discarded.into(),
        standing.counts.set_aside.into(),
        standing.file_bytes.into(),
        limits.lines.unwrap_or(0).into(),
        limits.bytes.into(),
        limits.free_bytes.into(),
    ]
}

impl Stream {
    fn standing(&self, limits: &Limits) -> Standing {
        // What exceeds the limits now would go at the next look of the thread `journals`; here it is gone already.
        self.journal.keep_within(limits);
        let status = self.journal.status();
        Standing {
            name: self.journal.name(),
            waiting_lines: status.waiting_lines,
            waiting_bytes: status.waiting_bytes,
            oldest_time: status.oldest.as_ref().map_or(0, oldest_time),
            counts: self.counts(status.counts, status.waiting_lines),
            file_bytes: status.file_bytes,
        }
    }

    /// What became of lines, on both sides. A line that was taken by another process is counted as taken when it is
    /// seen.
    fn counts(&self, read: Counts, waiting: u64) -> Counts {
        match (self.written)() {
            Some(written) => read + written,
            // While this worker stands in for its front: what was seen here.
            None => {
                let found = self.journal.found();
                let seen = read.delivered + read.set_aside + read.dropped + waiting;
                Counts { accepted: seen.saturating_sub(found), ..read }
            }
        }
    }
}

fn limits(stream: &Stream, logger: &LoggerSettings) -> Limits {
    if stream.journal.name() == distributed::STREAM { distributed::limits(logger) } else { logger.limits() }
}
