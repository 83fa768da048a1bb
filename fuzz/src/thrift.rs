//! What a local client says on the extension's socket, and what osqueryd answers on its own.
//!
//! Input that begins with a byte from 0x80 on, as every message does, is a conversation: the real reader, processor
//! and plugins hear it, and the readers of osqueryd's answers as well. All other input makes valid calls, whose
//! answers are checked against a model, and the lines that they leave in the real buffers as well.
//!
//! The plugins have no osqueryd and no server behind them, and the end has been asked for, so that nobody waits.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use osquery_remote_tls::buffer::Buffer;
use osquery_remote_tls::cli::OwnFlags;
use osquery_remote_tls::decorations::Decorations;
use osquery_remote_tls::extension::manager::Manager;
use osquery_remote_tls::extension::osquery::{
    ExtensionManagerSyncClient, ExtensionResponse, TExtensionManagerSyncClient, TExtensionSyncClient,
};
use osquery_remote_tls::extension::protocol::LossyInput;
use osquery_remote_tls::extension::registry::{NAME, Registry, StringMap, routes};
use osquery_remote_tls::extension::server::Service;
use osquery_remote_tls::flags::Flags;
use osquery_remote_tls::logging::Verbosity;
use osquery_remote_tls::plugins::config::Config;
use osquery_remote_tls::plugins::distributed::Distributed;
use osquery_remote_tls::plugins::logger::Logger;
use osquery_remote_tls::plugins::tables::tables;
use osquery_remote_tls::remote::api::{is_json, is_object, with_member};
use osquery_remote_tls::remote::enroll::Enrollment;
use osquery_remote_tls::remote::host::Host;
use osquery_remote_tls::remote::node::{Node, Outages};
use osquery_remote_tls::remote::status_line::StatusLine;
use osquery_remote_tls::remote::transport::Transport;
use osquery_remote_tls::secret::Secret;
use osquery_remote_tls::settings::Options;
use osquery_remote_tls::shutdown::{Doorbell, Shutdown};
use thrift::protocol::{TBinaryOutputProtocol, TInputProtocol, TMessageType, TSerializable, TType};

use crate::{many, wire};

/// What no answer may show.
pub const SECRET: &str = "fuzz/s3cret+\"1";

/// No conversation is answered by more than so many bytes a byte; the shortest call is a ping.
const MOST_ANSWERED: usize = 16;

/// Lines are looked at so many at a time.
const MANY: usize = 10_000;

/// Tries one input.
pub fn run(input: &[u8]) {
    match input.first() {
        Some(0x80..) => {
            converse(input);
            hear_answers(input);
        }
        _ => {
            check(&many(input));
        }
    }
}

/// The extension as the worker builds it, but for the socket and the threads.
struct Extension {
    service: Service,
    results: Arc<Buffer>,
    statuses: Arc<Buffer>,
    kept: Arc<Buffer>,
    _secret: Secret,
}

static EXTENSION: LazyLock<Extension> = LazyLock::new(Extension::new);

impl Extension {
    fn new() -> Self {
        // Whoever runs this sets TMPDIR, and clears it: a fuzzer ends in no orderly way.
        let directory = tempfile::tempdir().unwrap().keep();
        let manager = Arc::new(Manager::new(directory.join("no-osqueryd.em"), Arc::new(|| {})));
        let flags = Flags::new(Arc::clone(&manager), OwnFlags::default(), Verbosity::Normal, &Options::new());
        let (flags, shutdown) = (Arc::new(flags), Shutdown::default());
        let host = Arc::new(Host::new(Arc::clone(&manager)));
        let transport = Arc::new(Transport::new(shutdown.clone()));
        let enrollment = Enrollment::new(
            Arc::clone(&manager),
            Arc::clone(&host),
            Arc::clone(&flags),
            Arc::clone(&transport),
            shutdown.clone(),
        );
        let node = Arc::new(Node {
            enrollment,
            host: Arc::clone(&host),
            flags: Arc::clone(&flags),
            transport,
            shutdown: shutdown.clone(),
            outages: Outages::default(),
            gzip_refused: AtomicBool::new(false),
        });
        let bell = Arc::new(Doorbell::default());
        let [results, statuses, kept] = ["results", "statuses", "distributed"]
            .map(|name| Arc::new(Buffer::new(&directory, name, Arc::clone(&bell), Arc::default())));
        let querying = Manager::new(manager.socket().to_owned(), Arc::new(|| {}));
        let decorations = Decorations::new(querying, directory.join("config.json"), shutdown.clone());
        let registry = Registry::new(vec![
            Box::new(Config::new(Arc::clone(&node), manager, Arc::clone(&decorations), &directory, shutdown.clone())),
            Box::new(Logger::new(Arc::clone(&results), Arc::clone(&statuses), flags, host, decorations)),
            Box::new(Distributed::new(node, Arc::clone(&kept), bell, shutdown.clone())),
        ]);
        shutdown.request();
        let service = Service::new(Arc::new(registry), || {});
        Self { service, results, statuses, kept, _secret: Secret::new(SECRET) }
    }

    /// Everything that is answered to this conversation.
    fn answer(&self, conversation: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        // An error is the connection's end, as good as any.
        let _ = self.service.converse(conversation, &mut answers, || false);
        answers
    }
}

fn converse(input: &[u8]) {
    let answers = EXTENSION.answer(input);
    assert!(answers.len() <= MOST_ANSWERED * input.len() + 1024, "{} bytes answer {}", answers.len(), input.len());
    let mut left = answers.as_slice();
    while !left.is_empty() {
        let mut answer = LossyInput::new(&mut left).unwrap();
        let message = answer.read_message_begin().expect("answers are messages");
        assert!(matches!(message.message_type, TMessageType::Reply | TMessageType::Exception));
        answer.skip(TType::Struct).expect("answers are whole");
    }
    for buffer in [&EXTENSION.results, &EXTENSION.statuses, &EXTENSION.kept] {
        take(buffer);
    }
}

/// Every answer that is awaited from osqueryd's manager.
fn hear_answers(input: &[u8]) {
    type Client<'a> = ExtensionManagerSyncClient<LossyInput<&'a [u8]>, TBinaryOutputProtocol<io::Sink>>;
    let client = || Client::new(LossyInput::new(input).unwrap(), TBinaryOutputProtocol::new(io::sink(), true));
    // Errors are right answers to this input; it is the reading that is tried.
    let _ = client().options();
    let _ = client().extensions();
    let _ = client().query(String::new());
    let _ = client().call(String::new(), String::new(), StringMap::new());
    let _ = client().register_extension(Default::default(), routes(tables()));
    let _ = client().deregister_extension(1);
    let _ = client().ping();
}

/// A valid call.
#[derive(Arbitrary, Debug)]
struct Call {
    plugin: Plugin,
    request: Vec<(Word, Word)>,
    sequence: i32,
}

/// Whom a call is for.
#[derive(Arbitrary, Debug)]
enum Plugin {
    Logger,
    Distributed,
    Config,
    Other(Word, Word),
}

impl Plugin {
    /// Registry and item.
    fn names(&self) -> (Vec<u8>, Vec<u8>) {
        let ours = |registry: &str| (registry.into(), NAME.into());
        match self {
            Self::Logger => ours("logger"),
            Self::Distributed => ours("distributed"),
            Self::Config => ours("config"),
            Self::Other(registry, item) => (registry.bytes(), item.bytes()),
        }
    }
}

/// A string of a call: mostly one that means something.
#[derive(Arbitrary, Debug)]
enum Word {
    Known(u8),
    Lines(Vec<String>),
    Statuses(Vec<(u8, String)>),
    Object(BTreeMap<String, String>),
    Bytes(Vec<u8>),
}

/// osqueryd's words, and ours.
const KNOWN: [&str; 22] = [
    NAME,
    "logger",
    "config",
    "distributed",
    "action",
    "genConfig",
    "genPack",
    "getQueries",
    "writeResults",
    "results",
    "string",
    "snapshot",
    "event",
    "string_batch",
    "status",
    "true",
    "log",
    "init",
    "features",
    "name",
    "",
    SECRET,
];

impl Word {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Known(index) => KNOWN[usize::from(*index) % KNOWN.len()].as_bytes().to_vec(),
            Self::Lines(lines) => serde_json::to_vec(lines).unwrap(),
            Self::Statuses(lines) => {
                let line = |(severity, text): &(u8, String)| serde_json::json!({ "s": severity, "m": text, "i": "7" });
                serde_json::to_vec(&lines.iter().map(line).collect::<Vec<_>>()).unwrap()
            }
            Self::Object(members) => serde_json::to_vec(members).unwrap(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

impl Call {
    fn wire(&self) -> Vec<u8> {
        let request: Vec<_> = self.request.iter().map(|(name, value)| (name.bytes(), value.bytes())).collect();
        let (registry, item) = self.plugin.names();
        wire::call(&registry, &item, &request, self.sequence)
    }
}

/// What calls must be answered, and leave behind.
#[derive(Default)]
struct Model {
    results: Vec<String>,
    statuses: usize,
    kept: Vec<String>,
}

impl Model {
    /// The code of the answer.
    fn code(&mut self, call: &Call) -> i32 {
        let request: StringMap = call.request.iter().map(|(name, value)| (name.text(), value.text())).collect();
        let value = |name: &str| request.get(name).map(String::as_str);
        let (registry, item) = call.plugin.names();
        let words = call.request.iter().flat_map(|(name, value)| [name.bytes(), value.bytes()]);
        let repaired = words.chain([registry.clone(), item.clone()]).any(|bytes| str::from_utf8(&bytes).is_err());
        // A line says that it was repaired.
        let marked = |line: String| match repaired && line.contains(char::REPLACEMENT_CHARACTER) && is_object(&line) {
            true => with_member(&line, "invalid_utf8", "true"),
            false => line,
        };
        match (&*registry, item == NAME.as_bytes()) {
            (b"logger", true) => {
                let line = ["string", "snapshot", "event"].iter().find_map(|kind| value(kind));
                let log = |log: Option<&str>| serde_json::from_str::<Vec<StatusLine>>(log.unwrap_or("[]"));
                if let Some(line) = line {
                    self.results.push(marked(line.to_owned()));
                } else if let Some(batch) = value("string_batch") {
                    let lines: Vec<String> = serde_json::from_str(batch).unwrap_or_else(|_| vec![batch.to_owned()]);
                    self.results.extend(lines.into_iter().map(marked));
                } else if value("init").is_some() || value("status") == Some("true") {
                    self.statuses += log(value("log")).map_or(0, |lines| lines.len());
                } else {
                    // The features are 1, and so is a failure.
                    return 1;
                }
                0
            }
            (b"distributed", true) => match (value("action"), value("results")) {
                (Some("writeResults"), Some(results)) if is_object(results) => {
                    self.kept.push(results.trim().to_owned());
                    0
                }
                _ => 1,
            },
            // Without a server there is no configuration.
            _ => 1,
        }
    }
}

fn check(calls: &[Call]) {
    let mut model = Model::default();
    let conversation: Vec<u8> = calls.iter().flat_map(Call::wire).collect();
    let answers = EXTENSION.answer(&conversation);
    let mut left = answers.as_slice();
    for call in calls {
        let response = response(&mut left, call.sequence);
        let status = response.status.expect("every answer has a status");
        let message = status.message.unwrap_or_default();
        assert_eq!(status.code, Some(model.code(call)), "{call:?}: {message}");
        assert_eq!(status.uuid, Some(0));
        assert!(!message.is_empty() && !message.contains(SECRET), "{message}");
        assert_eq!(response.response, Some(Vec::new()), "no answer of these has rows");
    }
    assert!(left.is_empty(), "{} bytes follow the last answer", left.len());
    assert_eq!(take(&EXTENSION.results), model.results);
    let statuses = take(&EXTENSION.statuses);
    assert_eq!(statuses.len(), model.statuses);
    assert!(statuses.iter().all(|line| is_json(line) && !line.contains('\n')), "{statuses:?}");
    let kept = take(&EXTENSION.kept);
    assert_eq!(kept.len(), model.kept.len());
    for (kept, results) in kept.iter().zip(&model.kept) {
        assert!(is_object(kept) && kept.contains(results.as_str()), "{kept} is kept for {results}");
    }
}

fn response(left: &mut &[u8], sequence: i32) -> ExtensionResponse {
    let mut answer = LossyInput::new(left).unwrap();
    let message = answer.read_message_begin().expect("every call is answered");
    assert_eq!((&*message.name, message.message_type), ("call", TMessageType::Reply));
    assert_eq!(message.sequence_number, sequence);
    answer.read_struct_begin().unwrap();
    let field = answer.read_field_begin().unwrap();
    assert_eq!((field.field_type, field.id), (TType::Struct, Some(0)));
    let response = ExtensionResponse::read_from_in_protocol(&mut answer).expect("the response is whole");
    assert_eq!(answer.read_field_begin().unwrap().field_type, TType::Stop);
    response
}

/// The lines that wait; then none does.
fn take(buffer: &Buffer) -> Vec<String> {
    let mut lines = Vec::new();
    while !buffer.is_empty() {
        let batch = buffer.peek(MANY, usize::MAX).expect("the disk takes lines");
        buffer.discard(&batch);
        lines.extend(batch.lines);
    }
    lines
}
