//! What a local client says on the extension's socket, and what osqueryd answers on its own.
//!
//! Input that begins with a byte from 0x80 on, as every message does, is a conversation: the front hears and answers it,
//! with the worker's plugins behind it, and the readers of osqueryd's answers hear it as well. All other input makes valid
//! calls, whose answers are checked against a model. Either way exactly the lines that were brought must be in the
//! journals.
//!
//! [`Inflated`] input is either: a conversation ([`CONVERSATION`]), in whose head [`TIMES`] and [`LENGTH`] stand for what a
//! list's or a string's length has to say, or a valid call with a large value ([`VALUES`]).
//!
//! The plugins have no osqueryd and no server behind them, and the end has been asked for, so that no call waits.

use std::collections::BTreeMap;
use std::fs;
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
use osquery_remote_tls::extension::registry::{NAME, Reply, StringMap, routes};
use osquery_remote_tls::extension::service::Service;
use osquery_remote_tls::extension::wire::{Conversation, Message, Method};
use osquery_remote_tls::front::intake::Intake;
use osquery_remote_tls::front::relay::{Elsewhere, Unanswered};
use osquery_remote_tls::journal::{Position, Reader, Rejected, Waiting, Writer};
use osquery_remote_tls::line_count::LineCounter;
use osquery_remote_tls::logging::Verbosity;
use osquery_remote_tls::plugins::config;
use osquery_remote_tls::plugins::logger::{LastFlush, StatusLine};
use osquery_remote_tls::plugins::tables::tables;
use osquery_remote_tls::remote::api::{is_json, is_object};
use osquery_remote_tls::secret::Secret;
use osquery_remote_tls::settings::{Options, OwnFlags, own};
use osquery_remote_tls::worker::assembly::{Assembly, Setup};
use thrift::protocol::{TBinaryOutputProtocol, TInputProtocol, TMessageType, TSerializable, TType};

use crate::inflated::{Inflated, scaled};
use crate::memory::{Bound, within};
use crate::{many, wire};

/// What no answer may show.
pub const SECRET: &str = "fuzz/s3cret+\"1";

/// The most bytes of answers for each byte of a conversation; the shortest call is a ping.
const MOST_ANSWERED: usize = 16;

/// More than any input leaves in a journal.
const MANY_BYTES: usize = 16 << 20;

/// The form of inflated input that is a conversation. Others are those of [`VALUES`].
pub const CONVERSATION: u8 = 0;

/// In the head of a conversation: how often the piece is repeated, in four bytes.
pub const TIMES: [u8; 4] = [0xfd; 4];

/// In the head of a conversation: how long all of the pieces are, in four bytes.
pub const LENGTH: [u8; 4] = [0xfc; 4];

/// A large value of a call: whom the call is for, what its request has before the value, and the value's name.
type Large = (Plugin, &'static [(&'static str, &'static str)], &'static str);

/// Those of inflated input, by its form.
static VALUES: [Large; 8] = [
    (Plugin::Logger, &[("action", "features")], "no such"),
    (Plugin::Logger, &[], "string"),
    (Plugin::Logger, &[], "string_batch"),
    (Plugin::Logger, &[("status", "true")], "log"),
    (Plugin::Logger, &[("init", NAME)], "log"),
    (Plugin::Distributed, &[("action", "writeResults")], "results"),
    (Plugin::Distributed, &[], "action"),
    (Plugin::Config, &[("action", "genPack")], "name"),
];

/// The largest inflated input.
const MOST: usize = scaled(256 << 10);

/// The largest that is a result line: the front keeps a megabyte of one in memory, and more is written aside.
const MOST_OF_A_LINE: usize = scaled(5 << 18);

/// The largest that is status lines, of which the shortest has three bytes and becomes one of more than a hundred.
const MOST_OF_STATUSES: usize = if cfg!(fuzzing) { 1 << 10 } else { 64 << 10 };

/// The most bytes of input that are tried byte by byte, too.
const SMALL: usize = 4096;

/// What the front has of a conversation: the message, and where the entries of its request lie, which takes 32 bytes for
/// eight. Both grow.
const HEARING: Bound = Bound { each: 16, always: 256 << 10 };

/// What front and worker need for an answer: the request, which is a map for the worker, and where the lines of it begin,
/// which takes 16 bytes for three. All of it grows.
const ANSWERING: Bound = Bound { each: 24, always: 256 << 10 };

/// The same, and the records of status lines, a megabyte at a time, which grows.
const LOGGING: Bound = Bound { each: 24, always: 4 << 20 };

/// What osqueryd answers to us is a list of maps. The smallest that isn't empty has 14 bytes, and takes 568, since a map has
/// room for eleven entries. For as many rows as are claimed, 65,536 at most, 24 bytes each are reserved. Only osqueryd is
/// asked, for a row or a few.
const ASKING: Bound = Bound { each: 48, always: (64 << 10) * 25 };

/// Tries one input.
pub fn run(input: &[u8]) {
    let most = match input.get(1).map(|&form| (form, VALUES[usize::from(form) % VALUES.len()].2)) {
        Some((CONVERSATION, _)) | None => MOST,
        Some((_, "string" | "string_batch")) => MOST_OF_A_LINE,
        Some((_, "log")) => MOST_OF_STATUSES,
        Some(_) => MOST,
    };
    if let Some(inflated) = Inflated::of(input, most) {
        return run_inflated(&inflated);
    }
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

fn run_inflated(inflated: &Inflated<'_>) {
    if inflated.form == CONVERSATION {
        let length = inflated.piece.len() * inflated.times;
        let head = replaced(inflated.head, TIMES, inflated.times);
        let head = replaced(&head, LENGTH, length);
        let input = Inflated { head: &head, ..*inflated }.whole();
        converse(&input);
        hear_answers(&input);
        return;
    }
    let (plugin, before, name) = &VALUES[usize::from(inflated.form) % VALUES.len()];
    let word = |text: &str| Word::Bytes(text.as_bytes().to_vec());
    let mut request: Vec<_> = before.iter().map(|(name, value)| (word(name), word(value))).collect();
    request.push((word(name), Word::Bytes(inflated.whole())));
    check(&[Call { plugin: plugin.clone(), request, sequence: 1 }]);
}

/// With a length in place of the first of these marks.
fn replaced(text: &[u8], mark: [u8; 4], length: usize) -> Vec<u8> {
    let mut text = text.to_vec();
    if let Some(at) = text.windows(4).position(|four| four == mark) {
        text[at..at + 4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }
    text
}

/// Front and worker as they are built, but for the sockets and the threads.
pub(crate) struct Extension {
    intake: Intake,
    service: Arc<Service>,
    results: Reader<LineCounter>,
    statuses: Reader<LineCounter>,
    kept: Reader<LineCounter>,
    worker: Assembly,
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
    pub(crate) fn new() -> Self {
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
        Self { intake, service, results, statuses, kept, worker, _secret: Secret::new(SECRET) }
    }

    /// Puts a configuration where the last one that the server gave lies.
    pub(crate) fn keep(&self, document: &str) {
        fs::write(self.worker.directory.join(config::FILE), document).expect("the disk is there");
    }

    /// What osqueryd gets for its configuration.
    pub(crate) fn gen_config(&self) -> Reply {
        let request = StringMap::from([("action".to_owned(), "genConfig".to_owned())]);
        self.worker.registry.call("config", NAME, request)
    }

    /// Everything that is answered to this conversation, and the result lines that it brought; `None` for one that was
    /// written aside as it came.
    fn answer(&self, conversation: &[u8]) -> (Vec<u8>, Vec<Option<Vec<u8>>>) {
        let weight = conversation.len();
        let (mut answers, mut brought, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
        let mut conversation = Conversation::new(conversation, &mut buffer);
        // An error is the connection's end, as good as any.
        while let Ok(Some(message)) = within(HEARING, weight, "hearing", || self.intake.hear(&mut conversation)) {
            let is_logger = conversation.bytes(&message.call.registry) == b"logger";
            let bound = if is_logger { LOGGING } else { ANSWERING };
            answers.extend(within(bound, weight, "answering", || self.intake.answer(&conversation, &message)));
            let text = |range: &Range<usize>| conversation.bytes(range).to_vec();
            let call = &message.call;
            let entries: Vec<_> = call.entries.iter().map(|(name, value)| (text(name), text(value))).collect();
            if call.streamed {
                brought.push(None);
            } else if message.method == Method::Call {
                brought.extend(record(&text(&call.registry), &text(&call.item), &entries).map(Some));
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

/// What was brought is what is kept, as far as it is known.
fn assert_kept(brought: Vec<Option<Vec<u8>>>, kept: &[Vec<u8>]) {
    assert_eq!(brought.len(), kept.len());
    for (brought, kept) in brought.iter().zip(kept) {
        let text = String::from_utf8_lossy;
        assert!(brought.as_ref().is_none_or(|brought| brought == kept), "{brought:?} is kept as {}", text(kept));
    }
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
    assert_kept(brought, &take(&EXTENSION.results));
    // The front hands on only what it could read itself; the worker's own reader must stand anything, too.
    let _ = within(LOGGING, input.len(), "the worker", || EXTENSION.service.answer(input));
    for journal in [&EXTENSION.statuses, &EXTENSION.kept] {
        take(journal);
    }
    if input.len() <= SMALL {
        check_pieces(input);
    }
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
    fn ask<T>(input: &[u8], method: &str, read: impl FnOnce() -> thrift::Result<T>) {
        let _ = within(ASKING, input.len(), method, read);
    }
    ask(input, "options", || client().options());
    ask(input, "extensions", || client().extensions());
    ask(input, "query", || client().query(String::new()));
    ask(input, "call", || client().call(String::new(), String::new(), StringMap::new()));
    ask(input, "register", || client().register_extension(Default::default(), routes(tables())));
    ask(input, "deregister", || client().deregister_extension(1));
    ask(input, "ping", || client().ping());
}

/// A valid call.
#[derive(Arbitrary, Debug)]
struct Call {
    plugin: Plugin,
    request: Vec<(Word, Word)>,
    sequence: i32,
}

/// Whom a call is for.
#[derive(Arbitrary, Clone, Debug)]
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
#[derive(Arbitrary, Clone, Debug)]
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
    let conversation = calls.iter().map(Call::wire).collect::<Vec<_>>().concat();
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
    assert_kept(brought, &model.results);
    assert_kept(model.results.into_iter().map(Some).collect(), &take(&EXTENSION.results));
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
