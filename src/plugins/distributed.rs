//! The distributed plugin: ad-hoc queries in, their results out, both as osqueryd and the server write them.

use std::sync::Arc;

use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::remote::Endpoint;
use crate::remote::api::{self, Payload};
use crate::remote::node::Node;

/// Carries ad-hoc queries and their results.
pub struct Distributed {
    node: Arc<Node>,
}

impl Distributed {
    /// Asks and answers as this node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn get_queries(&self) -> Reply {
        // osqueryd itself interprets queries, discovery and accelerate.
        match self.send(Endpoint::DistributedRead, Payload::None) {
            Ok(answer) => Reply::row("results", answer),
            Err(failed) => failed,
        }
    }

    fn write_results(&self, results: &str) -> Reply {
        if !api::is_object(results) {
            return Reply::failed("the results of distributed queries are not a JSON object");
        }
        match self.send(Endpoint::DistributedWrite, Payload::Object(results)) {
            Ok(_) => Reply::ok(),
            Err(failed) => failed,
        }
    }

    fn send(&self, endpoint: Endpoint, payload: Payload<'_>) -> Result<String, Reply> {
        let attempts = self.node.flags.fresh().distributed_max_attempts;
        self.node.send_with_attempts(endpoint, payload, attempts).map_err(|error| Reply::failed(error.to_string()))
    }
}

impl Plugin for Distributed {
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
