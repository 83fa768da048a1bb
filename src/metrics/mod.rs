//! `metrics_file`: what the tables know as a file for the textfile collector of Prometheus' node_exporter, written anew
//! every 15 s while the setting is there. docs/operations.md is what operators read.
//!
//! Counts begin anew with each worker, as Prometheus expects of a counter whose process is another one.

mod exposition;

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::Level;

use self::exposition::{Exposition, Kind};
use crate::clock::unix_time;
use crate::files;
use crate::logging::Streak;
use crate::plugins::tables::{Sources, StreamStatus};
use crate::remote::{Endpoint, EndpointStats};
use crate::settings::Settings;
use crate::shutdown::Shutdown;

/// Between two writings: as often as Prometheus asks by default.
const INTERVAL: Duration = Duration::from_secs(15);

/// The collector runs as another user. No number of ours is a secret.
const MODE: u32 = 0o644;

/// Writes `metrics_file` in a fixed interval, as long as the worker runs.
pub struct Metrics {
    path: PathBuf,
    sources: Arc<Sources>,
    /// Workers that the front has started.
    workers: u64,
    /// When this one began, in Unix seconds.
    began: i64,
    failures: Streak,
    shutdown: Shutdown,
}

impl Metrics {
    /// Writes to this path; `workers` is how many the front has started, this one among them.
    #[must_use]
    pub fn new(path: PathBuf, sources: Arc<Sources>, workers: u64, shutdown: Shutdown) -> Self {
        Self { path, sources, workers, began: unix_time(), failures: Streak::default(), shutdown }
    }

    /// Writes the file until the end is asked for.
    pub fn run(&self) {
        loop {
            self.write_or_say();
            if self.shutdown.wait(INTERVAL) {
                return;
            }
        }
    }

    fn write_or_say(&self) {
        match write(&self.path, &self.text()) {
            Ok(()) => {
                if let Some(failures) = self.failures.succeeded() {
                    log::info!("metrics are written again, {failures}");
                }
            }
            Err(error) => {
                let failed = self.failures.failed(Level::Warn);
                log::log!(failed.level, "metrics can't be written to {}: {error}{failed}", self.path.display());
            }
        }
    }

    fn text(&self) -> String {
        let settings = self.sources.node.flags.current();
        let mut exposition = Exposition::default();
        self.process(&mut exposition);
        streams(&mut exposition, &self.sources.stream_statuses());
        self.requests(&mut exposition);
        self.enrollment(&mut exposition, &settings);
        exposition.into_text()
    }

    fn process(&self, to: &mut Exposition) {
        to.family("osquery_remote_tls_build_info", Kind::Gauge, "The extension's version.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        to.family("osquery_remote_tls_worker_start_time_seconds", Kind::Gauge, "When the worker began, in Unix time.")
            .sample(&[], self.began);
        to.family(
            "osquery_remote_tls_workers_started_total",
            Kind::Counter,
            "Workers that were started since the extension's first process began.",
        )
        .sample(&[], self.workers);
    }

    fn requests(&self, to: &mut Exposition) {
        let stats = Endpoint::ALL
            .map(|endpoint| (endpoint.to_string().replace(' ', "_"), self.sources.node.requests.stats.of(endpoint)));
        to.family("osquery_remote_tls_requests_total", Kind::Counter, "Requests to the server, by their outcome.");
        for (endpoint, stats) in &stats {
            let successes = stats.requests.saturating_sub(stats.failures);
            to.sample(&[("endpoint", endpoint), ("outcome", "success")], successes)
                .sample(&[("endpoint", endpoint), ("outcome", "failure")], stats.failures);
        }
        for (name, kind, help, value) in REQUESTS {
            to.family(name, kind, help);
            for (endpoint, stats) in &stats {
                if let Some(value) = value(stats) {
                    to.sample(&[("endpoint", endpoint)], value);
                }
            }
        }
    }

    fn enrollment(&self, to: &mut Exposition, settings: &Settings) {
        let node = &self.sources.node;
        let status = node.enrollment().status();
        let identifier = node.host.known_identifier(&settings.identity).unwrap_or_default();
        let server = settings.server_name(node.servers.number());
        let enrolled = status.enrolled && !settings.enroll.disabled;
        to.family("osquery_remote_tls_enrolled", Kind::Gauge, "Whether this host has a node key.")
            .sample(&[], u8::from(enrolled));
        to.family("osquery_remote_tls_enrollment_info", Kind::Gauge, "Who this host is, and where.")
            .sample(&[("host_identifier", &identifier), ("server", &server)], 1);
        to.family("osquery_remote_tls_enrollment_attempts_total", Kind::Counter, "Enrollments that were asked for.")
            .sample(&[], status.attempts);
        to.family(
            "osquery_remote_tls_certificate_expiry_timestamp_seconds",
            Kind::Gauge,
            "Until when a certificate is good, in Unix time.",
        );
        let expiries = &node.requests.transport.expiries;
        for (of, time) in [("server", &expiries.server), ("client", &expiries.client)] {
            let time = time.load(Ordering::Relaxed);
            if time > 0 {
                to.sample(&[("certificate", of)], time);
            }
        }
    }
}

/// A family with a sample an endpoint: its name, kind and help, and the value; `None` writes no sample.
type OfEndpoint = (&'static str, Kind, &'static str, fn(&EndpointStats) -> Option<String>);

const REQUESTS: [OfEndpoint; 6] = [
    (
        "osquery_remote_tls_consecutive_failures",
        Kind::Gauge,
        "Requests that failed since the last one that succeeded.",
        |stats| Some(stats.consecutive_failures.to_string()),
    ),
    (
        "osquery_remote_tls_last_success_timestamp_seconds",
        Kind::Gauge,
        "When a request last succeeded, in Unix time; missing before the first.",
        |stats| (stats.last_success > 0).then(|| stats.last_success.to_string()),
    ),
    (
        "osquery_remote_tls_last_failure_timestamp_seconds",
        Kind::Gauge,
        "When a request last failed, in Unix time; missing before the first.",
        |stats| (stats.last_failure > 0).then(|| stats.last_failure.to_string()),
    ),
    ("osquery_remote_tls_last_request_duration_seconds", Kind::Gauge, "How long the last request took.", |stats| {
        (stats.requests > 0).then(|| stats.latency.as_secs_f64().to_string())
    }),
    ("osquery_remote_tls_sent_bytes_total", Kind::Counter, "Bytes that were sent, within TLS.", |stats| {
        Some(stats.traffic.sent.to_string())
    }),
    ("osquery_remote_tls_received_bytes_total", Kind::Counter, "Bytes that were received, within TLS.", |stats| {
        Some(stats.traffic.received.to_string())
    }),
];

/// A family with a sample a stream.
type OfStream = (&'static str, Kind, &'static str, fn(&StreamStatus) -> i64);

const STREAMS: [OfStream; 8] = [
    ("osquery_remote_tls_lines_accepted_total", Kind::Counter, "Lines taken from osqueryd.", |stream| {
        signed(stream.journal.counts.accepted)
    }),
    ("osquery_remote_tls_lines_delivered_total", Kind::Counter, "Lines that the server has taken.", |stream| {
        signed(stream.journal.counts.delivered)
    }),
    (
        "osquery_remote_tls_lines_dropped_total",
        Kind::Counter,
        "Lines given up: over a limit, or with no room.",
        |stream| signed(stream.journal.counts.dropped),
    ),
    ("osquery_remote_tls_lines_set_aside_total", Kind::Counter, "Lines that no server takes.", |stream| {
        signed(stream.journal.counts.set_aside)
    }),
    ("osquery_remote_tls_waiting_lines", Kind::Gauge, "Lines that wait for the server.", |stream| {
        signed(stream.journal.waiting.lines)
    }),
    ("osquery_remote_tls_waiting_bytes", Kind::Gauge, "Bytes of the records that wait.", |stream| {
        signed(stream.journal.waiting.bytes)
    }),
    ("osquery_remote_tls_buffer_file_bytes", Kind::Gauge, "Bytes of the buffer's files.", |stream| {
        signed(stream.journal.file_bytes)
    }),
    (
        "osquery_remote_tls_oldest_waiting_line_age_seconds",
        Kind::Gauge,
        "How old the oldest line is that waits on the disk; 0 without one, and where it doesn't say.",
        |stream| match stream.oldest_time() {
            time @ 1.. => (unix_time() - time).max(0),
            _ => 0,
        },
    ),
];

fn streams(to: &mut Exposition, streams: &[StreamStatus]) {
    for (name, kind, help, value) in STREAMS {
        to.family(name, kind, help);
        for stream in streams {
            to.sample(&[("stream", stream.name)], value(stream));
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The collector looks at names that end in `.prom`.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let Some(directory) = path.parent().filter(|_| path.is_absolute()) else {
        return Err(io::Error::other("a path that begins with / is needed"));
    };
    files::trust_in(directory)?;
    let readable = |file: &File| file.set_permissions(Permissions::from_mode(MODE));
    files::replace(path, text.as_bytes(), readable)
}
