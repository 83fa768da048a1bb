//! The config plugin: what the server gives, when it is a configuration.

use std::sync::Arc;

use crate::extension::registry::{Plugin, RegistryName, Reply, StringMap};
use crate::remote::Endpoint;
use crate::remote::RemoteError;
use crate::remote::api::{self, AnswerError, ConfigLimits, Payload};
use crate::remote::node::{Node, key_place};

/// The name that the built-in plugin gives its one source; another one would be a second configuration.
const SOURCE: &str = "tls_plugin";

/// Gives osqueryd its configuration.
pub struct Config {
    node: Arc<Node>,
}

impl Config {
    /// Asks as this node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn gen_config(&self) -> Reply {
        match self.fetch() {
            Ok(document) => Reply::row(SOURCE, document),
            // With code 1 the running schedule stays.
            Err(error) => Reply::failed(error.to_string()),
        }
    }

    fn fetch(&self) -> Result<String, FetchError> {
        let settings = self.node.flags.fresh();
        let answer = self.node.send_with_attempts(Endpoint::Config, Payload::None, settings.config_max_attempts)?;
        let limits = ConfigLimits::of_version(self.node.host.version().as_deref());
        Ok(api::configuration(answer, key_place(&settings), limits)
            .inspect_err(|error| log::error!("config: {error}"))?)
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("config: {0}")]
    Answer(#[from] AnswerError),
}

impl Plugin for Config {
    fn registry(&self) -> RegistryName {
        RegistryName::Config
    }

    fn call(&self, request: StringMap) -> Reply {
        match request.get("action").map(String::as_str) {
            Some("genConfig") => self.gen_config(),
            Some("genPack") => {
                let name = request.get("name").map_or("", String::as_str);
                Reply::failed(format!(
                    "the pack {name} is only named in the configuration: the remote API has no packs to fetch, give it inline"
                ))
            }
            other => Reply::failed(format!("the config plugin has no action {other:?}")),
        }
    }
}
