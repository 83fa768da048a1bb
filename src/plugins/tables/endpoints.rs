//! `remote_tls_endpoints`: what became of requests, a row an endpoint.

use super::{Rows, Sources, Value, bigint, integer, text};
use crate::extension::registry::Table;
use crate::remote::{Endpoint, shown_url};
use crate::settings::Settings;

pub(super) const TABLE: Table = Table {
    name: "remote_tls_endpoints",
    columns: &[
        text("name"),
        text("url"),
        bigint("requests"),
        bigint("failures"),
        bigint("consecutive_failures"),
        bigint("last_success"),
        bigint("last_failure"),
        integer("last_status"),
        text("last_error"),
        bigint("latency_ms"),
        bigint("bytes_out"),
        bigint("bytes_in"),
        bigint("backoff_until"),
        integer("compressed"),
    ],
};

pub(super) fn rows(sources: &Sources) -> Rows {
    let settings = sources.node.flags.current();
    Endpoint::ALL.into_iter().map(|endpoint| row(sources, &settings, endpoint)).collect()
}

fn row(sources: &Sources, settings: &Settings, endpoint: Endpoint) -> Vec<Value> {
    let stats = sources.node.requests.stats.of(endpoint);
    let backoff_until = stats.backing_off_until();
    vec![
        endpoint.to_string().into(),
        shown_url(settings, endpoint).unwrap_or_default().into(),
        stats.requests.into(),
        stats.failures.into(),
        stats.consecutive_failures.into(),
        stats.last_success.into(),
        stats.last_failure.into(),
        u64::from(stats.last_status.unwrap_or_default()).into(),
        stats.last_error.into(),
        u64::try_from(stats.latency.as_millis()).unwrap_or(u64::MAX).into(),
        stats.traffic.sent.into(),
        stats.traffic.received.into(),
        backoff_until.into(),
        i64::from(sources.node.compresses(settings, endpoint)).into(),
    ]
}
