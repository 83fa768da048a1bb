//! What a local client says on the extension's socket, and what osqueryd answers on its own.
//!
//! Input that begins with a byte from 0x80 on, as every message does, is a conversation: the front hears and answers it,
//! with the worker's plugins behind it, and the readers of osqueryd's answers hear it as well. All other input makes valid
//! calls, whose answers are checked against a model. Either way exactly the lines that were brought must be in the
//! journals.
//!
//! The plugins have no osqueryd and no server behind them, and the end has been asked for, so that no call waits.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::Arbitrary;
use osquery_remote_tls::extension::manager::Manager;
use osquery_remote_tls::extension::osquery::{
    ExtensionManagerSyncClient, ExtensionResponse, TExtensionManagerSyncClient, TExtensionSyncClient,
};
use osquery_remote_tls::extension::protocol::LossyInput;
use osquery_remote_tls::extension::registry::{NAME, StringMap, routes};
use osquery_remote_tls::extension::service::Service;
use osquery_remote_tls::extension::wire::{Conversation, Message, Method};
use osquery_remote_tls::front::intake::Intake;
use osquery_remote_tls::front::relay::{Elsewhere, Unanswered};
use osquery_remote_tls::journal::{Position, Reader, Rejected, Waiting, Writer};
use osquery_remote_tls::line_count::LineCounter;
use osquery_remote_tls::logging::Verbosity;
use osquery_remote_tls::plugins::logger::{LastFlush, StatusLine};
use osquery_remote_tls::plugins::tables::tables;
use osquery_remote_tls::remote::api::{is_json, is_object};
use osquery_remote_tls::secret::Secret;
use osquery_remote_tls::settings::{Options, OwnFlags, own};
use osquery_remote_tls::worker::assembly::{Assembly, Setup};
use thrift::protocol::{TBinaryOutputProtocol, TInputProtocol, TMessageType, TSerializable, TType};

use crate::{many, wire};

/// What no answer may show.
pub const SECRET: &str = "fuzz/s3cret+\"1";

/// The most bytes of answers for each byte of a conversation; the shortest call is a ping.
const MOST_ANSWERED: usize = 16;

/// More than any input leaves in a journal.
const MANY_BYTES: usize = 16 << 20;

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

/// Front and worker as they are built, but for the sockets and the threads.
struct Extension {
    intake: Intake,
    service: Arc<Service>,
    results: Reader<LineCounter>,
    statuses: Reader<LineCounter>,
    kept: Reader<LineCounter>,
    _worker: Assembly,
    _secret: Secret,
}

static EXTENSION: LazyLock<Extension> = LazyLock::new(Extension::new);

/// The worker behind the front, without the processes.
struct Behind(Arc<Service>);

impl Elsewhere for Behind {
    fn answer(&self, frame: &[u8], _: Duration) -> Result<Vec<u8>, Unanswered> {
        self.0.answer(frame).map_err(|_| Unanswered::NoWorker)
    }
}

impl Extension {
    fn new() -> Self {
        // The script that runs this sets TMPDIR, and clears it: a fuzzer ends in no orderly way.
        let directory = tempfile::tempdir().unwrap().keep();
        let worker = Assembly::new(Setup {
            manager: Arc::new(Manager::new(directory.join("no-osqueryd.em"), Arc::new(|| {}))),
            own: OwnFlags::default().with(&own::BUFFER_PATH, directory.to_str().unwrap()),
            verbosity: Verbosity::Normal,
            options: Options::new(),
            command_line: None,
            overflow: None,
            counts: Box::new(|| None),
            number: 1,
            backlog_end: Position::default(),
            ask_to_be_woken: Box::new(|_| {}),
        });
        assert_eq!(worker.directory, directory);
        worker.request_end(LastFlush::Skip);
        let service = Arc::new(Service::new(Arc::clone(&worker.registry)));
        let intake = Intake {
            uuid: AtomicI64::new(0),
            hold: Arc::default(),
            results: Arc::new(Writer::new(directory.join("results"), "results", Arc::new(()))),
            pending: Arc::new(Writer::new(directory.join("pending"), "pending", Arc::new(()))),
            elsewhere: Arc::new(Behind(Arc::clone(&service))),
            on_pending: Box::new(|| {}),
            on_shutdown: Box::new(|| {}),
        };
        let [results, statuses, kept] = ["results", "statuses", "distributed"].map(|name| reader(&directory, name));
        Self { intake, service, results, statuses, kept, _worker: worker, _secret: Secret::new(SECRET) }
    }

    /// Everything that is answered to this conversation, and the result lines that it brought.
    fn answer(&self, conversation: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let (mut answers, mut brought, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
        let mut conversation = Conversation::new(conversation, &mut buffer);
        // An error is the connection's end, as good as any.
        while let Ok(Some(message)) = self.intake.hear(&mut conversation) {
            answers.extend(self.intake.answer(&conversation, &message));
            let text = |range: &Range<usize>| conversation.bytes(range).to_vec();
            let call = &message.call;
            let entries: Vec<_> = call.entries.iter().map(|(name, value)| (text(name), text(value))).collect();
            if message.method == Method::Call {
                brought.extend(record(&text(&call.registry), &text(&call.item), &entries));
            }
        }
        (answers, brought)
    }
}

fn reader(directory: &Path, name: &'static str) -> Reader<LineCounter> {
    let rejected = Arc::new(Rejected::new(directory.to_owned()));
    Reader::new(directory.join(name), name, rejected, None)
}

/// What a call must leave in the journal of results: the first value that is lines, byte for byte, on one line.
fn record(registry: &[u8], item: &[u8], entries: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    if registry != b"logger" || item != NAME.as_bytes() {
        return None;
    }
    let names: [&[u8]; 4] = [b"string", b"snapshot", b"event", b"string_batch"];
    let (name, value) = entries.iter().find(|(name, _)| names.contains(&name.as_slice()))?;
    let record = match name == b"string_batch" && value.starts_with(b"[") {
        true => [b"{\"string_batch\":", value.as_slice(), b"}"].concat(),
        false => value.clone(),
    };
    Some(on_one_line(record))
}

fn on_one_line(mut text: Vec<u8>) -> Vec<u8> {
    text.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    text
}

fn converse(input: &[u8]) {
    let (answers, brought) = EXTENSION.answer(input);
    assert!(answers.len() <= MOST_ANSWERED * input.len() + 1024, "{} bytes answer {}", answers.len(), input.len());
    let mut left = answers.as_slice();
    while !left.is_empty() {
        let mut answer = LossyInput::new(&mut left).unwrap();
        let message = answer.read_message_begin().expect("answers are messages");
        assert!(matches!(message.message_type, TMessageType::Reply | TMessageType::Exception));
        answer.skip(TType::Struct).expect("answers are whole");
    }
    assert_eq!(take(&EXTENSION.results), brought);
    // The front hands on only what it could read itself; the worker's own reader must stand anything, too.
    let _ = EXTENSION.service.answer(input);
    for journal in [&EXTENSION.statuses, &EXTENSION.kept] {
        take(journal);
    }
    check_pieces(input);
}

/// However the bytes come in, the same messages are read.
fn check_pieces(input: &[u8]) {
    fn told(reader: impl Read) -> Vec<(Message, Vec<u8>)> {
        let (mut buffer, mut told) = (Vec::new(), Vec::new());
        let mut conversation = Conversation::new(reader, &mut buffer);
        while let Ok(Some(message)) = conversation.next(&|_, _, _, _| None) {
            let frame = conversation.bytes(&message.frame).to_vec();
            told.push((message, frame));
        }
        told
    }
    struct ByteByByte<'a>(&'a [u8]);
    impl Read for ByteByByte<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(1);
            self.0.read(&mut buffer[..most])
        }
    }
    let whole = told(input);
    assert_eq!(format!("{whole:?}"), format!("{:?}", told(ByteByByte(input))));
    assert!(input.starts_with(&whole.into_iter().flat_map(|(_, frame)| frame).collect::<Vec<u8>>()));
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
    results: Vec<Vec<u8>>,
    statuses: usize,
    kept: Vec<String>,
}

impl Model {
    /// The code of the answer.
    fn code(&mut self, call: &Call) -> i32 {
        let entries: Vec<_> = call.request.iter().map(|(name, value)| (name.bytes(), value.bytes())).collect();
        let request: StringMap = call.request.iter().map(|(name, value)| (name.text(), value.text())).collect();
        let value = |name: &str| request.get(name).map(String::as_str);
        let (registry, item) = call.plugin.names();
        if let Some(record) = record(&registry, &item, &entries) {
            self.results.push(record);
            return 0;
        }
        match (&*registry, item == NAME.as_bytes()) {
            (b"logger", true) if value("init").is_some() || value("status") == Some("true") => {
                let log = serde_json::from_str::<Vec<StatusLine>>(value("log").unwrap_or("[]"));
                self.statuses += log.map_or(0, |lines| lines.len());
                0
            }
            (b"distributed", true) => match (value("action"), value("results")) {
                (Some("writeResults"), Some(results)) if is_object(results) => {
                    self.kept.push(results.trim().replace('\n', " "));
                    0
                }
                _ => 1,
            },
            // Without a server there is no configuration. The logger's features are 1, and so is a failure.
            _ => 1,
        }
    }
}

fn check(calls: &[Call]) {
    let mut model = Model::default();
    let conversation: Vec<u8> = calls.iter().flat_map(Call::wire).collect();
    let (answers, brought) = EXTENSION.answer(&conversation);
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
    assert_eq!(brought, model.results);
    assert_eq!(take(&EXTENSION.results), model.results);
    let text = |line: Vec<u8>| String::from_utf8(line).expect("what the worker keeps is UTF-8");
    let statuses: Vec<String> = take(&EXTENSION.statuses).into_iter().map(text).collect();
    assert_eq!(statuses.len(), model.statuses);
    assert!(statuses.iter().all(|line| is_json(line)), "{statuses:?}");
    let kept: Vec<String> = take(&EXTENSION.kept).into_iter().map(text).collect();
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

/// The records that wait; then none does.
fn take(journal: &Reader<LineCounter>) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    loop {
        match journal.peek(MANY_BYTES).expect("the disk is there") {
            Waiting::Nothing => return records,
            Waiting::Records(chunk) => {
                records.extend(chunk.records().map(|record| record.bytes.to_vec()));
                journal.acknowledge(chunk.end());
            }
            Waiting::Large(record) => panic!("{} bytes wait in one record", record.len()),
        }
    }
}
