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
        bigint("set_aside"),
        bigint("file_bytes"),
        bigint("max_lines"),
        bigint("max_bytes"),
        bigint("min_free_bytes"),
    ],
};

pub(super) fn rows(sources: &Sources) -> Rows {
    let settings = sources.node.flags.current();
    sources.streams.iter().map(|stream| row(stream, &limits(stream, &settings.logger))).collect()
}

fn row(stream: &Stream, limits: &Limits) -> Vec<Value> {
    // What exceeds the limits now would go at the next look of the thread `journals`; here it is gone already.
    stream.journal.keep_within(limits);
    let status = stream.journal.status();
    let counts = stream.counts(status.counts, status.waiting_lines);
    vec![
        stream.journal.name().into(),
        status.waiting_lines.into(),
        status.waiting_bytes.into(),
        status.oldest.as_ref().map_or(0, oldest_time).into(),
        counts.accepted.into(),
        counts.delivered.into(),
        counts.dropped.into(),
        counts.set_aside.into(),
        status.file_bytes.into(),
        limits.lines.unwrap_or(0).into(),
        limits.bytes.into(),
        limits.free_bytes.into(),
    ]
}

impl Stream {
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
