//! `remote_tls_buffer`: the lines that wait and what became of the others, a row a stream.

use super::record_time::oldest_time;
use super::{Sources, Stream, TableOf, bigint, text};
use crate::journal::{Counts, Limits, Status};
use crate::plugins::distributed;
use crate::settings::LoggerSettings;

pub(super) static TABLE: TableOf<StreamStatus> = TableOf {
    name: "remote_tls_buffer",
    columns: &[
        text("stream", |stream| stream.name.into()),
        bigint("waiting_lines", |stream| stream.journal.waiting.lines.into()),
        bigint("waiting_bytes", |stream| stream.journal.waiting.bytes.into()),
        bigint("oldest_time", |stream| stream.oldest_time().into()),
        bigint("accepted", |stream| stream.journal.counts.accepted.into()),
        bigint("delivered", |stream| stream.journal.counts.delivered.into()),
        bigint("dropped", |stream| stream.journal.counts.dropped.into()),
        bigint("discarded", |stream| stream.journal.counts.discarded.into()),
        bigint("set_aside", |stream| stream.journal.counts.set_aside.into()),
        bigint("file_bytes", |stream| stream.journal.file_bytes.into()),
        bigint("max_lines", |stream| stream.limits.max_lines.unwrap_or(0).into()),
        bigint("max_bytes", |stream| stream.limits.max_bytes.into()),
        bigint("min_free_bytes", |stream| stream.limits.min_free_bytes.into()),
    ],
    rows: Sources::stream_statuses,
};

/// How a stream stands. The metrics show it, too.
#[derive(Clone, Debug)]
pub struct StreamStatus {
    /// The stream's name, which is also its journal's.
    pub name: &'static str,
    /// Its journal with the backlog's. The counts are those of both sides, since this worker began.
    pub journal: Status,
    /// What it may take.
    pub limits: Limits,
}

impl StreamStatus {
    /// When the oldest line on the disk was made, in Unix seconds; 0 without one, and when it doesn't say.
    #[must_use]
    pub fn oldest_time(&self) -> i64 {
        self.journal.oldest.as_ref().map_or(0, oldest_time)
    }
}

impl Sources {
    /// How every stream stands now.
    #[must_use]
    pub fn stream_statuses(&self) -> Vec<StreamStatus> {
        let settings = self.node.flags.current();
        self.streams.iter().map(|stream| stream.status(limits(stream, &settings.logger))).collect()
    }
}

impl Stream {
    fn status(&self, limits: Limits) -> StreamStatus {
        // What exceeds the limits now would go at the next look of the thread `journal-limits`; here it is gone already.
        let read = match &self.backlog {
            Some(backlog) => {
                backlog.keep_within(&self.journal, &limits);
                self.journal.status().behind(backlog.reader.status())
            }
            None => {
                self.journal.keep_within(&limits);
                self.journal.status()
            }
        };
        let journal = Status { counts: self.counts(read.counts, read.waiting.lines), ..read };
        StreamStatus { name: self.journal.name(), journal, limits }
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
    if stream.journal.name() == distributed::STREAM { distributed::limits(logger) } else { logger.limits }
}
