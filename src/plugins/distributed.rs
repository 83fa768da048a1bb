//! The distributed plugin: ad-hoc queries in, their results out, both as osqueryd and the server write them.
//!
//! Results are sent at once. When that fails they are kept on disk and sent later, in order, until the server has
//! them or a day has passed (of the host's being up, since its clock may jump); osqueryd is answered 0 when they are
//! safe, since it would keep failed ones in memory without bound.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::isolation::{Step, Then};
use super::logger::{Batches, Bundler, Room, Snapshots, Window};
use crate::chain::chain;
use crate::clock::{BootInstant, unix_time};
use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::journal::{Limits, Reader, Writer};
use crate::line_count::LineCounter;
use crate::policy::{Backoff, Chance};
use crate::remote::api::{self, Payload};
use crate::remote::{Endpoint, Node, RemoteError};
use crate::settings::LoggerSettings;
use crate::shutdown::{Doorbell, Shutdown};
use crate::words::Span;

/// Results that the server has not taken within this time are given up: the operator who asked has stopped waiting.
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The name of the stream of kept results.
pub const STREAM: &str = "distributed";

/// Kept results are sent one by one, however large they are.
const ROOM: Room =
    Room { lines: 1, bytes: 1 << 20, line_bytes: usize::MAX, batches: Batches::Keep, snapshots: Snapshots::Send };

/// The room for those behind a result that the server refuses: how many of them are looked at.
const BEHIND: Room = Room { lines: 16, ..ROOM };

/// The most results that are kept; beyond that the oldest are dropped.
const MOST_KEPT: u64 = 1000;

/// What osqueryd is told while the server is left alone.
const NO_QUERIES: &str = r#"{"queries":{}}"#;

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
    /// Unix seconds, for a reader of the file only: the clock may jump.
    unix_time: i64,
    since: BootInstant,
    #[serde(borrow)]
    results: &'a RawValue,
}

/// How kept results are sent.
#[derive(Default)]
struct Sending {
    bundler: Bundler,
    window: Option<Window>,
    /// How many results were delivered since nothing waited.
    delivered: u64,
    has_taken: bool,
}

/// What follows from one step of sending.
enum Progress {
    GoesOn,
    /// Until others come, or for a while.
    Rests,
    NothingWaits,
}

/// What became of one of them.
enum Settled {
    Delivered,
    GivenUp(&'static str),
    Failed(RemoteError),
}

impl Distributed {
    /// Asks and answers as this node, and keeps results in the journal of this writer and reader, which rings this
    /// bell. [`Self::run`] must be running.
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
        let mut sending = Sending::default();
        let mut backoff = Backoff::new(RETRY_STEP, RETRY_MAX);
        while !self.shutdown.requested() {
            match self.step(&mut sending) {
                Ok(Progress::GoesOn) => {
                    if std::mem::take(&mut sending.has_taken) {
                        backoff.succeeded();
                    }
                    continue;
                }
                Ok(Progress::NothingWaits) => {
                    let delivered = std::mem::take(&mut sending.delivered);
                    if delivered > 0 {
                        log::info!("{delivered} results of distributed queries that were kept are delivered");
                    }
                    self.bell.wait(None);
                    continue;
                }
                Ok(Progress::Rests) => self.bell.wait(Some(Instant::now() + backoff.failed(&mut Chance::new()))),
                Err(error) => {
                    log::debug!("{}", chain(&*error));
                    if self.shutdown.wait(backoff.failed(&mut Chance::new())) {
                        break;
                    }
                }
            }
            let window = sending.window.take();
            sending.window = window.and_then(|mut window| window.waited(&self.kept).then_some(window));
        }
    }

    /// The next step with what is kept, oldest first, each result alone. One that the server refuses while it takes
    /// others is set aside: see [`isolation`](super::isolation).
    fn step(&self, sending: &mut Sending) -> Result<Progress, Box<dyn std::error::Error>> {
        let Some(window) = sending.window.as_mut() else {
            let Some(bundle) = sending.bundler.next(&self.kept, &ROOM)? else { return Ok(Progress::NothingWaits) };
            sending.window = Some(Window::new(bundle, ROOM.lines));
            return Ok(Progress::GoesOn);
        };
        match window.next(&ROOM) {
            Step::Send(line) => match self.settle(window.data(&line)) {
                Settled::Delivered => {
                    window.taken(line);
                    sending.delivered += 1;
                    sending.has_taken = true;
                }
                Settled::GivenUp(reason) => window.give_up(line.start, reason),
                Settled::Failed(error) => match window.failed(line, &error) {
                    Then::GoOn => {}
                    Then::Wait => return Err(error.into()),
                    Then::Rest => return Ok(Progress::Rests),
                },
            },
            Step::More => window.grow(&mut sending.bundler, &self.kept, &BEHIND)?,
            Step::Rest => return Ok(Progress::Rests),
            Step::SetAside(_) => {}
            Step::Over => {
                window.settle(&self.kept, None);
                sending.window = None;
                return Ok(Progress::GoesOn);
            }
        }
        window.settle(&self.kept, None);
        Ok(Progress::GoesOn)
    }

    /// Sends a kept result, or says why it is not to be sent.
    fn settle(&self, results: &str) -> Settled {
        let Ok(kept) = serde_json::from_str::<Kept<'_>>(results) else { return Settled::GivenUp("it is no JSON") };
        let age = BootInstant::now().since(&kept.since);
        if age > GIVE_UP_AFTER {
            return Settled::GivenUp("the server has not taken it for a day");
        }
        match self.node.send(Endpoint::DistributedWrite, Payload::Object(kept.results.get())) {
            Ok(_) => {
                log::debug!("results of distributed queries are delivered after {} s", age.as_secs());
                Settled::Delivered
            }
            Err(error) => Settled::Failed(error),
        }
    }

    fn get_queries(&self) -> Reply {
        // osqueryd itself interprets queries, discovery and accelerate.
        match self.node.ask(Endpoint::DistributedRead, Payload::None, |_, answer| Ok(answer)) {
            Ok(answer) => Reply::row("results", answer),
            Err(error @ RemoteError::BackingOff { .. }) => {
                log::debug!("there are no queries for now: {}", chain(&error));
                Reply::row("results", NO_QUERIES)
            }
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
            serde_json::to_string(&Kept { unix_time: unix_time(), since: BootInstant::now(), results: &results })
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
    Limits { max_lines: Some(MOST_KEPT), ..logger.limits }
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
            (other, _) => Reply::no_such_action("the distributed plugin", other),
        }
    }
}
