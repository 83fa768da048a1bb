//! The distributed plugin: ad-hoc queries in, their results out, both as osqueryd and the server write them.
//!
//! Results are sent at once. When that fails they are kept on disk and sent later, in order, until the server has
//! them or a day has passed (of the host's being up, since its clock may jump); osqueryd is answered 0 when they are
//! safe, since it would keep failed ones in memory without bound.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::backoff::Backoff;
use crate::chain::chain;
use crate::clock::{Moment, unix_time};
use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::journal::{JournalError, Limits, Position, Reader, Waiting, Writer};
use crate::line_count::LineCounter;
use crate::remote::api::{self, Payload};
use crate::remote::{Endpoint, Node};
use crate::settings::LoggerSettings;
use crate::shutdown::{Doorbell, Shutdown};
use crate::words::Span;

/// Results that the server has not taken for so long are given up: whoever asked has gone.
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The name of the stream of kept results.
pub const STREAM: &str = "distributed";

/// Bytes of kept results that are looked at at once.
const AT_ONCE: usize = 1 << 20;

/// As many results are kept; the oldest go first.
const MOST_KEPT: u64 = 1000;

/// Waits between attempts at kept results.
const RETRY_STEP: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Carries ad-hoc queries and their results.
pub struct Distributed {
    node: Arc<Node>,
    keeping: Arc<Writer<LineCounter>>,
    kept: Arc<Reader<LineCounter>>,
    bell: Arc<Doorbell>,
    shutdown: Shutdown,
}

/// Results as they are kept.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Kept<'a> {
    /// For whoever looks; the clock may jump.
    unix_time: i64,
    since: Moment,
    #[serde(borrow)]
    results: &'a RawValue,
}

impl Distributed {
    /// Asks and answers as this node, and keeps results in the journal of this writer and reader, which rings this bell.
    /// [`Self::run`] must be running.
    #[must_use]
    pub fn new(
        node: Arc<Node>,
        keeping: Arc<Writer<LineCounter>>,
        kept: Arc<Reader<LineCounter>>,
        bell: Arc<Doorbell>,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        Arc::new(Self { node, keeping, kept, bell, shutdown })
    }

    /// Sends kept results, until the end is asked for.
    pub fn run(&self) {
        let mut backoff = Backoff::new(RETRY_STEP, RETRY_MAX);
        let mut delivered = 0u64;
        while !self.shutdown.requested() {
            match self.oldest() {
                Ok(None) => {
                    if delivered > 0 {
                        log::info!("{delivered} results of distributed queries that were kept are delivered");
                        delivered = 0;
                    }
                    self.bell.wait(None);
                }
                Ok(Some((results, end))) if self.settle(&results, end, &mut delivered) => {
                    backoff.succeeded();
                }
                outcome => {
                    let wait = backoff.failed_in_a_fleet();
                    if let Err(error) = outcome {
                        log::debug!("{error}");
                    }
                    if self.shutdown.wait(wait) {
                        break;
                    }
                }
            }
        }
    }

    /// The oldest kept results, and where those behind them begin.
    fn oldest(&self) -> Result<Option<(String, Position)>, JournalError> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(match self.kept.peek(AT_ONCE)? {
            Waiting::Nothing => None,
            Waiting::Records(chunk) => chunk.records().next().map(|record| (text(record.bytes), record.end)),
            Waiting::Large(mut record) => {
                let mut bytes = Vec::new();
                record.read_to_end(&mut bytes).map_err(JournalError::unreadable)?;
                Some((text(&bytes), record.end()))
            }
        })
    }

    /// Sends the oldest kept results, which counts, or gives them up: whether they are dealt with.
    fn settle(&self, results: &str, end: Position, delivered: &mut u64) -> bool {
        let Ok(kept) = serde_json::from_str::<Kept<'_>>(results) else {
            return self.set_aside(results, end, "it is no JSON");
        };
        let age = Moment::now().since(&kept.since);
        if age > GIVE_UP_AFTER {
            return self.set_aside(results, end, "the server has not taken it for a day");
        }
        match self.node.send(Endpoint::DistributedWrite, Payload::Object(kept.results.get())) {
            Ok(_) => {
                log::debug!("results of distributed queries are delivered after {} s", age.as_secs());
                self.kept.acknowledge(end);
                *delivered += 1;
                true
            }
            Err(error) => {
                log::debug!("{}", chain(&error));
                false
            }
        }
    }

    fn set_aside(&self, results: &str, end: Position, reason: &str) -> bool {
        self.kept.set_aside(results.as_bytes(), 1, reason);
        self.kept.acknowledge(end);
        true
    }

    fn get_queries(&self) -> Reply {
        // osqueryd itself interprets queries, discovery and accelerate.
        match self.node.send_with_attempts(Endpoint::DistributedRead, Payload::None, |_, answer| Ok(answer)) {
            Ok(answer) => Reply::row("results", answer),
            Err(error) => Reply::failed(chain(&error).to_string()),
        }
    }

    fn write_results(&self, results: &str) -> Reply {
        if !api::is_object(results) {
            return Reply::failed("the results of distributed queries are not a JSON object");
        }
        let began = Instant::now();
        match self.node.send_with_attempts(Endpoint::DistributedWrite, Payload::Object(results), |_, _| Ok(())) {
            Ok(()) => Reply::ok(),
            Err(error) => self.keep(results, began.elapsed(), &chain(&error).to_string()),
        }
    }

    fn keep(&self, results: &str, after: Duration, error: &str) -> Reply {
        let line = RawValue::from_string(results.to_owned()).and_then(|results| {
            serde_json::to_string(&Kept { unix_time: unix_time(), since: Moment::now(), results: &results })
        });
        match line {
            Ok(line) => {
                log::debug!("results of distributed queries are kept for later, after {}: {error}", Span(after));
                self.keeping.append(line.as_bytes());
                Reply::ok()
            }
            Err(_) => Reply::failed(error),
        }
    }
}

/// What kept results may take.
#[must_use]
pub fn limits(logger: &LoggerSettings) -> Limits {
    Limits { lines: Some(MOST_KEPT), ..logger.limits() }
}

impl Plugin for Arc<Distributed> {
    fn registry(&self) -> RegistryName {
        RegistryName::Distributed
    }

    fn call(&self, request: StringMap) -> Reply {
        match (request.get("action").map(String::as_str), request.get("results")) {
            (Some("getQueries"), _) => self.get_queries(),
            (Some("writeResults"), Some(results)) => self.write_results(results),
            (Some("writeResults"), None) => Reply::failed("writeResults needs results"),
            (other, _) => Reply::failed(format!("the distributed plugin has no action {other:?}")),
        }
    }
}
