//! `remote_tls_endpoints`: what became of requests, a row an endpoint.

use super::{Sources, TableOf, bigint, integer, text};
use crate::remote::{Endpoint, EndpointStats, shown_url};

pub(super) static TABLE: TableOf<Row> = TableOf {
    name: "remote_tls_endpoints",
    columns: &[
        text("name", |row| row.endpoint.to_string().into()),
        text("url", |row| (&row.url).into()),
        bigint("requests", |row| row.stats.requests.into()),
        bigint("failures", |row| row.stats.failures.into()),
        bigint("consecutive_failures", |row| row.stats.consecutive_failures.into()),
        bigint("last_success", |row| row.stats.last_success.into()),
        bigint("last_failure", |row| row.stats.last_failure.into()),
        integer("last_status", |row| i64::from(row.stats.last_status.unwrap_or_default()).into()),
        text("last_error", |row| (&row.stats.last_error).into()),
        bigint("latency_ms", |row| u64::try_from(row.stats.latency.as_millis()).unwrap_or(u64::MAX).into()),
        bigint("bytes_out", |row| row.stats.traffic.sent.into()),
        bigint("bytes_in", |row| row.stats.traffic.received.into()),
        bigint("backoff_until", |row| row.stats.backing_off_until().into()),
        integer("compressed", |row| i64::from(row.is_compressed).into()),
    ],
    rows,
};

/// How an endpoint fares.
pub(super) struct Row {
    endpoint: Endpoint,
    url: String,
    stats: EndpointStats,
    is_compressed: bool,
}

fn rows(sources: &Sources) -> Vec<Row> {
    let node = &sources.node;
    let settings = node.flags.current();
    let row = |endpoint| Row {
        endpoint,
        url: shown_url(&settings, endpoint).unwrap_or_default(),
        stats: node.requests.stats.of(endpoint),
        is_compressed: node.compresses(&settings, endpoint),
    };
    Endpoint::ALL.into_iter().map(row).collect()
}
