//! The client of osqueryd's extension manager: one connection, kept open.
//!
//! A thread of its own always reads from that connection, so that osqueryd's end is noticed the moment its socket
//! hangs up, without polling: an extension that notices later loses the race for the restarted worker
//! (docs/architecture.md, "Decisions"). What it reads is handed to the thread that is in a call.

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use thrift::protocol::{TBinaryOutputProtocol, TOutputProtocol};

use super::osquery::{
    ExtensionManagerSyncClient, ExtensionResponse, ExtensionStatus, InternalExtensionInfo, TExtensionManagerSyncClient,
    TExtensionSyncClient,
};
use super::protocol::LossyInput;
use super::registry::{NAME, Routes, StringMap, string_map};
use crate::lock::{Mutex, MutexGuard};
use crate::platform::Process;

/// How long osqueryd may take for any one answer. Its own are there in milliseconds.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// How long osqueryd may take to answer whether it still knows us.
const CHECK_LIMIT: Duration = Duration::from_millis(300);

/// How long the last call of all may take: the end must not wait for an osqueryd that is ending too.
const LAST_CALL_LIMIT: Duration = Duration::from_millis(300);

/// The SDK that this extension claims to be written for; osqueryd refuses those below 1.7.7.
const SDK_VERSION: &str = "5.0.0";

/// The domain of osqueryd's backing store that holds its settings, the node key among them.
const SETTINGS_DOMAIN: &str = "configurations";

/// Why a call to osqueryd's manager failed.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// No process listens on the socket, or it may not be used.
    #[error("can't connect to osqueryd's extension manager at {path}", path = .path.display())]
    Unreachable {
        /// The path of the manager's socket.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The connection broke, or no answer came in time.
    #[error("osqueryd's extension manager did not answer {method}")]
    Broken {
        /// The Thrift method.
        method: &'static str,
        /// How the connection or the message broke.
        source: thrift::Error,
    },
    /// The answer is larger than it may be.
    #[error("osqueryd's answer to {method} is larger than {most} bytes")]
    TooLarge {
        /// The Thrift method.
        method: &'static str,
        /// What it may have.
        most: u64,
    },
    /// osqueryd answered that it won't.
    #[error("osqueryd refused {method}: {message}")]
    Refused {
        /// The Thrift method.
        method: &'static str,
        /// The message in osqueryd's answer.
        message: String,
    },
}

type Client = ExtensionManagerSyncClient<LossyInput<BufReader<Incoming>>, Box<dyn TOutputProtocol + Send>>;
type Result<T> = std::result::Result<T, ManagerError>;

/// osqueryd's extension manager, reached over its socket. Calls are made one at a time.
pub struct Manager {
    socket: PathBuf,
    hung_up: HangUp,
    /// How long any one call may take.
    limit: Duration,
    /// How many bytes any one answer may have.
    largest_answer: u64,
    link: Mutex<Option<Link>>,
    end: Mutex<End>,
}

/// What [`Manager::close`] needs while a call holds the link.
#[derive(Default)]
struct End {
    closed: bool,
    stream: Option<UnixStream>,
}

/// What is done when the kept connection is lost: osqueryd has hung up, or a call has failed and the connection was dropped.
pub type HangUp = Arc<dyn Fn() + Send + Sync>;

impl Manager {
    /// The manager that listens, or will listen, at `socket`. `hung_up` is called the moment that the kept connection is
    /// lost.
    #[must_use]
    pub fn new(socket: PathBuf, hung_up: HangUp) -> Self {
        Self {
            socket,
            hung_up,
            limit: CALL_LIMIT,
            largest_answer: u64::MAX,
            link: Mutex::new(None),
            end: Mutex::default(),
        }
    }

    /// This manager, with each answer waited for for `limit` at most.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// This manager, with `bytes` of an answer read at most: for SQL that others wrote, such as decorators.
    #[must_use]
    pub fn reading(mut self, bytes: u64) -> Self {
        self.largest_answer = bytes;
        self
    }

    /// The manager's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process that the kept connection leads to: osqueryd's worker. `None` without a connection, or where the
    /// kernel doesn't say.
    #[must_use]
    pub fn peer(&self) -> Option<Process> {
        self.lock().as_ref().and_then(|link| Process::of_peer(&link.stream))
    }

    /// Connects to the manager again, in place of the connection that was made before.
    pub fn connect(&self) -> Result<()> {
        let mut link = self.lock();
        *link = None;
        *link = Some(self.dial()?);
        Ok(())
    }

    /// Every flag of osqueryd with its current value.
    pub fn options(&self) -> Result<BTreeMap<String, String>> {
        self.options_within(self.limit)
    }

    /// Every flag of osqueryd with its current value, for a thread that can wait for `limit` only.
    pub fn options_within(&self, limit: Duration) -> Result<BTreeMap<String, String>> {
        let options = self.call_within(limit, "options", TExtensionManagerSyncClient::options)?;
        Ok(options.into_iter().map(|(name, info)| (name, info.value.unwrap_or_default())).collect())
    }

    /// Registers this extension with its plugins: answers the uuid given to it.
    pub fn register(&self, routes: &Routes) -> Result<i64> {
        let info = InternalExtensionInfo::new(
            NAME.to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
            SDK_VERSION.to_owned(),
            SDK_VERSION.to_owned(),
        );
        let status =
            self.call("registerExtension", |client| client.register_extension(info.clone(), routes.clone()))?;
        let uuid = status.uuid.unwrap_or_default();
        accepted("registerExtension", status)?;
        Ok(uuid)
    }

    /// The end is near: breaks a call in flight off, and makes no more. An osqueryd that is ending too may not answer.
    pub fn close(&self) {
        let mut end = self.end.lock();
        end.closed = true;
        if let Some(stream) = end.stream.take() {
            // An error says that it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Takes this extension out of osqueryd's registry, if that can be done in a moment.
    pub fn deregister(&self, uuid: i64) {
        let Some(mut link) = self.link.try_lock() else { return };
        let Some(connected) = link.as_mut() else { return };
        connected.deadline.set(Instant::now() + LAST_CALL_LIMIT);
        if let Err(error) = connected.client.deregister_extension(uuid) {
            log::debug!("osqueryd was not told of the end: {error}");
            *link = None;
        }
    }

    /// Whether osqueryd still knows the extension with this uuid. Asked every few seconds, by a thread that must not
    /// wait for long: over a connection of its own, since the kept one's reader would wake for the answer, too.
    pub fn knows(&self, uuid: i64) -> Result<bool> {
        let unreachable = |source| ManagerError::Unreachable { path: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).map_err(unreachable)?;
        let ask = || -> thrift::Result<bool> {
            stream.set_read_timeout(Some(CHECK_LIMIT))?;
            stream.set_write_timeout(Some(CHECK_LIMIT))?;
            let input = LossyInput::new(BufReader::new(&stream))?;
            let output = TBinaryOutputProtocol::new(BufWriter::new(&stream), true);
            Ok(ExtensionManagerSyncClient::new(input, output).extensions()?.contains_key(&uuid))
        };
        ask().map_err(|source| ManagerError::Broken { method: "extensions", source })
    }

    /// The names and versions of the extensions that osqueryd knows, by their uuids.
    pub fn extensions(&self) -> Result<BTreeMap<i64, (String, String)>> {
        let extensions = self.call("extensions", TExtensionManagerSyncClient::extensions)?;
        let named = |info: InternalExtensionInfo| (info.name.unwrap_or_default(), info.version.unwrap_or_default());
        Ok(extensions.into_iter().map(|(uuid, info)| (uuid, named(info))).collect())
    }

    /// The rows of an SQL statement.
    pub fn query(&self, sql: &str) -> Result<Vec<StringMap>> {
        rows("query", self.call("query", |client| client.query(sql.to_owned()))?)
    }

    /// The rows of a table, as osqueryd's own plugins ask for them: without SQL, so that tables which `disable_tables`
    /// or `enable_tables` keep from it answer too, with the columns that the table itself fills in.
    pub fn table(&self, name: &str) -> Result<Vec<StringMap>> {
        let request = string_map(&[("action", "generate"), ("context", "{}")]);
        rows("table", self.call_plugin("table", name, request)?)
    }

    /// A value of osqueryd's settings in its backing store; `None` when it has none.
    pub fn setting(&self, key: &str) -> Result<Option<String>> {
        let request = database_request("get", key);
        match rows("database get", self.call_plugin("database", "", request)?) {
            Ok(rows) => Ok(rows.into_iter().next().and_then(|mut row| row.remove("v"))),
            // A missing key is answered by code 1, with a message that depends on the store.
            Err(ManagerError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a value among osqueryd's settings.
    pub fn put_setting(&self, key: &str, value: &str) -> Result<()> {
        let mut request = database_request("put", key);
        request.insert("value".to_owned(), value.to_owned());
        rows("database put", self.call_plugin("database", "", request)?).map(drop)
    }

    /// Removes a value from osqueryd's settings.
    pub fn remove_setting(&self, key: &str) -> Result<()> {
        rows("database remove", self.call_plugin("database", "", database_request("remove", key))?).map(drop)
    }

    /// Replaces the configuration of `source` now, without waiting for osqueryd's own refresh.
    pub fn push_config(&self, source: &str, document: &str) -> Result<()> {
        let request = string_map(&[("action", "update"), ("source", source), ("data", document)]);
        // The item must be this one: one's own name loops back into the extension.
        rows("config update", self.call_plugin("config", "update", request)?).map(drop)
    }

    /// Has our own plugin in osqueryd fetch the configuration and push it: what it says of that.
    pub fn refresh_config(&self) -> Result<String> {
        let request = string_map(&[("action", "refresh")]);
        let rows = rows("refresh", self.call_plugin("config", NAME, request)?)?;
        Ok(rows.into_iter().flatten().map(|(_, outcome)| outcome).collect())
    }

    /// Asks our own logger plugin in osqueryd: what it says.
    pub fn ask_logger(&self, request: &[(&str, &str)]) -> Result<String> {
        let rows = rows("call", self.call_plugin("logger", NAME, string_map(request))?)?;
        Ok(rows.into_iter().flatten().map(|(_, outcome)| outcome).collect())
    }

    fn call_plugin(&self, registry: &str, item: &str, request: StringMap) -> Result<ExtensionResponse> {
        self.call("call", |client| client.call(registry.to_owned(), item.to_owned(), request))
    }

    fn call<T>(&self, method: &'static str, call: impl FnOnce(&mut Client) -> thrift::Result<T>) -> Result<T> {
        self.call_within(self.limit, method, call)
    }

    fn call_within<T>(
        &self,
        limit: Duration,
        method: &'static str,
        call: impl FnOnce(&mut Client) -> thrift::Result<T>,
    ) -> Result<T> {
        let mut link = self.lock();
        // One that osqueryd has ended, when its worker was replaced perhaps, would fail the call.
        let _ = link.take_if(|connected| connected.has_ended.load(Ordering::SeqCst));
        let connected = match link.as_mut() {
            Some(connected) => connected,
            None => link.insert(self.dial()?),
        };
        connected.deadline.set(Instant::now() + limit);
        connected.allowance.begin();
        let allowance = Arc::clone(&connected.allowance);
        call(&mut connected.client).map_err(|source| {
            // What is left of this answer would be taken for the next one's: begin again with a new connection.
            *link = None;
            // The reader of a connection that is dropped here tells nobody: the loss is told from here.
            (self.hung_up)();
            match allowance.is_spent() {
                true => ManagerError::TooLarge { method, most: allowance.most },
                false => ManagerError::Broken { method, source },
            }
        })
    }

    fn dial(&self) -> Result<Link> {
        let unreachable = |source| ManagerError::Unreachable { path: self.socket.clone(), source };
        let mut end = self.end.lock();
        if end.closed {
            return Err(unreachable(io::ErrorKind::NotConnected.into()));
        }
        let link = Link::open(&self.socket, Arc::clone(&self.hung_up), self.largest_answer).map_err(unreachable)?;
        end.stream = link.stream.try_clone().ok();
        Ok(link)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock()
    }
}

fn database_request(action: &str, key: &str) -> StringMap {
    string_map(&[("action", action), ("domain", SETTINGS_DOMAIN), ("key", key)])
}

fn accepted(method: &'static str, status: ExtensionStatus) -> Result<()> {
    match status.code {
        Some(0) => Ok(()),
        _ => Err(ManagerError::Refused { method, message: status.message.unwrap_or_default() }),
    }
}

fn rows(method: &'static str, response: ExtensionResponse) -> Result<Vec<StringMap>> {
    accepted(method, response.status.unwrap_or_default())?;
    Ok(response.response.unwrap_or_default())
}

/// One open connection and the thread that reads from it.
struct Link {
    client: Client,
    stream: UnixStream,
    deadline: Arc<Deadline>,
    allowance: Arc<Allowance>,
    closing: Arc<AtomicBool>,
    /// osqueryd has hung up.
    has_ended: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Link {
    fn open(socket: &Path, hung_up: HangUp, largest_answer: u64) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(CALL_LIMIT))?;
        let (closing, has_ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let deadline = Arc::new(Deadline::default());
        let allowance = Arc::new(Allowance { most: largest_answer, read: AtomicU64::new(0) });
        let (chunks, incoming) = mpsc::channel();
        let mut reading = stream.try_clone()?;
        let reader = thread::Builder::new().name("manager".to_owned()).spawn({
            let (closing, has_ended) = (Arc::clone(&closing), Arc::clone(&has_ended));
            let allowance = Arc::clone(&allowance);
            move || {
                forward(&mut reading, &chunks, &allowance);
                has_ended.store(true, Ordering::SeqCst);
                if !closing.load(Ordering::SeqCst) {
                    hung_up();
                }
            }
        })?;
        let incoming = Incoming { chunks: incoming, chunk: io::Cursor::default(), deadline: Arc::clone(&deadline) };
        let input = LossyInput::new(BufReader::new(incoming)).map_err(io::Error::other)?;
        let writing = BufWriter::new(stream.try_clone()?);
        let output: Box<dyn TOutputProtocol + Send> = Box::new(TBinaryOutputProtocol::new(writing, true));
        let client = ExtensionManagerSyncClient::new(input, output);
        Ok(Self { client, stream, deadline, allowance, closing, has_ended, reader: Some(reader) })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // Ends the reader's read; an error says that the connection is closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Hands on what comes until the other side hangs up, or says too much.
fn forward(stream: &mut UnixStream, chunks: &Sender<Vec<u8>>, allowance: &Allowance) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(count) => {
                allowance.read.fetch_add(count as u64, Ordering::SeqCst);
                if allowance.is_spent() || chunks.send(buffer.get(..count).unwrap_or_default().to_vec()).is_err() {
                    return;
                }
            }
        }
    }
}

/// How many bytes the answer to the call in progress may have. They are counted as they come: the reading thread doesn't
/// wait for the caller.
struct Allowance {
    most: u64,
    read: AtomicU64,
}

impl Allowance {
    fn begin(&self) {
        self.read.store(0, Ordering::SeqCst);
    }

    fn is_spent(&self) -> bool {
        self.read.load(Ordering::SeqCst) > self.most
    }
}

/// When the call in progress must be answered.
#[derive(Default)]
struct Deadline(Mutex<Option<Instant>>);

impl Deadline {
    fn set(&self, at: Instant) {
        *self.0.lock() = Some(at);
    }

    fn left(&self) -> Duration {
        let at = *self.0.lock();
        at.map_or(CALL_LIMIT, |at| at.saturating_duration_since(Instant::now()))
    }
}

/// What the reading thread has read, as a reader with a deadline.
struct Incoming {
    chunks: Receiver<Vec<u8>>,
    chunk: io::Cursor<Vec<u8>>,
    deadline: Arc<Deadline>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.chunk.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.chunks.recv_timeout(self.deadline.left()) {
                Ok(chunk) => self.chunk = io::Cursor::new(chunk),
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
    }
}
