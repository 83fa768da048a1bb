//! Answers calls from the plugins, whatever the calls come over: the generated processor, with strings repaired instead
//! of refused.

use std::io::BufWriter;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use thrift::protocol::TBinaryOutputProtocol;
use thrift::server::TProcessor;

use super::osquery::{ExtensionResponse, ExtensionStatus, ExtensionSyncHandler, ExtensionSyncProcessor};
use super::protocol::LossyInput;
use super::registry::{Registry, RegistryName, Reply, StringMap};
use crate::shown::{MESSAGE, shown};

const INTERNAL_ERROR: &str = "internal error of the extension";

/// The answers to osqueryd's calls.
pub struct Service {
    uuid: Arc<AtomicI64>,
    processor: ExtensionSyncProcessor<Handler>,
}

impl Service {
    /// Answers calls by the plugins of `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        let uuid = Arc::new(AtomicI64::new(0));
        let handler = Handler { uuid: Arc::clone(&uuid), registry };
        Self { uuid, processor: ExtensionSyncProcessor::new(handler) }
    }

    /// The uuid under which osqueryd has registered the extension, which each answer carries.
    pub fn set_uuid(&self, uuid: i64) {
        self.uuid.store(uuid, Ordering::SeqCst);
    }

    /// Answers one Thrift message: the bytes of the answer.
    ///
    /// # Errors
    /// It is no message of Thrift's binary protocol.
    pub fn answer(&self, frame: &[u8]) -> thrift::Result<Vec<u8>> {
        let mut answer = Vec::new();
        let mut output = TBinaryOutputProtocol::new(BufWriter::new(&mut answer), true);
        self.processor.process(&mut LossyInput::new(frame)?, &mut output)?;
        drop(output);
        Ok(answer)
    }
}

/// Answers the methods of the `Extension` service.
struct Handler {
    uuid: Arc<AtomicI64>,
    registry: Arc<Registry>,
}

impl Handler {
    fn uuid(&self) -> i64 {
        self.uuid.load(Ordering::SeqCst)
    }
}

impl ExtensionSyncHandler for Handler {
    fn handle_ping(&self) -> thrift::Result<ExtensionStatus> {
        Ok(ExtensionStatus::new(0, "pong".to_owned(), self.uuid()))
    }

    fn handle_call(&self, registry: String, item: String, request: StringMap) -> thrift::Result<ExtensionResponse> {
        let call = AssertUnwindSafe(|| self.registry.call(&registry, &item, request));
        let reply = panic::catch_unwind(call).unwrap_or_else(|_| {
            log::error!("a call of the {registry} plugin panicked; please report it with the lines above");
            // A line is lost by this one panic; a failure would end osqueryd.
            if registry == RegistryName::Logger.as_str() { Reply::ok() } else { Reply::failed(INTERNAL_ERROR) }
        });
        let status = ExtensionStatus::new(reply.code, shown(&reply.message, MESSAGE), self.uuid());
        Ok(ExtensionResponse::new(status, reply.rows))
    }

    /// Never called by osqueryd: the front answers its `shutdown`.
    fn handle_shutdown(&self) -> thrift::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use thrift::protocol::{TBinaryInputProtocol, TBinaryOutputProtocol};

    use super::*;
    use crate::extension::osquery::{ExtensionSyncClient, TExtensionSyncClient};
    use crate::extension::registry::Plugin;

    /// Panics when asked to.
    struct Panicking;

    impl Plugin for Panicking {
        fn registry(&self) -> RegistryName {
            RegistryName::Config
        }

        fn call(&self, request: StringMap) -> Reply {
            assert!(!request.contains_key("panic"), "on purpose");
            Reply::ok()
        }
    }

    fn call(service: &Service, name: &str) -> ExtensionResponse {
        let request = StringMap::from([(name.to_owned(), String::new())]);
        let mut wire = Vec::new();
        let output = TBinaryOutputProtocol::new(&mut wire, true);
        let mut client = ExtensionSyncClient::new(TBinaryInputProtocol::new(io::empty(), true), output);
        assert!(client.call("config".to_owned(), "remote_tls".to_owned(), request).is_err());
        let answer = service.answer(&wire).unwrap();
        let input = TBinaryInputProtocol::new(answer.as_slice(), true);
        let mut client = ExtensionSyncClient::new(input, TBinaryOutputProtocol::new(io::sink(), true));
        client.call(String::new(), String::new(), StringMap::new()).unwrap()
    }

    #[test]
    fn a_panic_stays_in_its_call() {
        let service = Service::new(Arc::new(Registry::new(vec![Box::new(Panicking)])));
        service.set_uuid(7);
        let status = call(&service, "panic").status.unwrap();
        assert_eq!((status.code, status.message.as_deref()), (Some(1), Some(INTERNAL_ERROR)));
        let status = call(&service, "calm").status.unwrap();
        assert_eq!((status.code, status.uuid), (Some(0), Some(7)));
    }
}
