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

/// The state of a stream, as the row of the table shows it.
#[derive(Clone, Debug)]
pub struct StreamStatus {
    /// The stream's name, which is also its journal's.
    pub name: &'static str,
    /// Lines that wait, on disk and in memory.
    pub waiting_lines: u64,
    /// Bytes of the records that these lines are in.
    pub waiting_bytes: u64,
    /// When the oldest of them on the disk was made, in Unix seconds; 0 without one, and when it doesn't say.
    pub oldest_time: i64,
    /// What became of lines since this worker began.
    pub counts: Counts,
    /// Bytes of the buffer's files.
    pub file_bytes: u64,
}

pub(super) fn rows(sources: &Sources) -> Rows {
    stream_statuses(sources).into_iter().map(|(status, limits)| row(&status, &limits)).collect()
}

/// How the streams stand now, and within which limits.
pub(super) fn stream_statuses(sources: &Sources) -> Vec<(StreamStatus, Limits)> {
    let settings = sources.node.flags.current();
    let status = |stream: &Stream| {
        let limits = limits(stream, &settings.logger);
        (stream.status(&limits), limits)
    };
    sources.streams.iter().map(status).collect()
}

fn row(status: &StreamStatus, limits: &Limits) -> Vec<Value> {
    vec![
        status.name.into(),
        status.waiting_lines.into(),
        status.waiting_bytes.into(),
        status.oldest_time.into(),
        status.counts.accepted.into(),
        status.counts.delivered.into(),
        status.counts.dropped.into(),
        status.counts.discarded.into(),
        status.counts.set_aside.into(),
        status.file_bytes.into(),
        limits.lines.unwrap_or(0).into(),
        limits.bytes.into(),
        limits.free_bytes.into(),
    ]
}

impl Stream {
    fn status(&self, limits: &Limits) -> StreamStatus {
        // What exceeds the limits now would go at the next look of the thread `journal-limits`; here it is gone already.
        let journal = match &self.backlog {
            Some(backlog) => {
                backlog.keep_within(&self.journal, limits);
                self.journal.status().behind(backlog.reader.status())
            }
            None => {
                self.journal.keep_within(limits);
                self.journal.status()
            }
        };
        StreamStatus {
            name: self.journal.name(),
            waiting_lines: journal.waiting_lines,
            waiting_bytes: journal.waiting_bytes,
            oldest_time: journal.oldest.as_ref().map_or(0, oldest_time),
            counts: self.counts(journal.counts, journal.waiting_lines),
            file_bytes: journal.file_bytes,
        }
    }

    /// What became of lines, on both sides. A line that was taken by another process is counted as taken when it is
    /// seen.
    fn counts(&self, read: Counts, waiting: u64) -> Counts {
        match (self.written)() {
            Some(written) => read + written,
            // While this worker stands in for its front: what was seen here.
            None => {
                let found = self.journal.found() + self.backlog.as_ref().map_or(0, |backlog| backlog.reader.found());
                let seen = read.delivered + read.set_aside + read.dropped + waiting;
                Counts { accepted: seen.saturating_sub(found), ..read }
            }
        }
    }
}

fn limits(stream: &Stream, logger: &LoggerSettings) -> Limits {
    if stream.journal.name() == distributed::STREAM { distributed::limits(logger) } else { logger.limits() }
}
