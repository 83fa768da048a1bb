//! The reference server: osquery's remote API as a test sees it.
//!
//! In the spirit of `test_http_server.py` of osquery's documentation, and a library: a test starts it in its own
//! process, lays out answers and faults a request at a time, and reads back every request it got. All of it is on
//! loopback. A runtime of its own drives it, so that tests stay plain blocking code; its methods must not be called
//! from async code.

mod answer;
mod body;
mod connection;
mod keys;
mod masking;
mod misbehave;
mod options;
mod recorded;
mod respond;
mod state;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub use self::answer::Answer;
use self::answer::Content;
pub use self::masking::{Masking, Shown};
pub use self::misbehave::{Misbehaviour, ParseError};
pub use self::options::{Drain, Observer, Options, Taken, example_config};
pub use self::recorded::{Endpoint, Recorded};
use self::state::{Reply, Rules, State};
pub use self::tls::TlsVersions;
use crate::lock;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;
/// A waiting test looks again at least this often, for conditions that no request changes.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A running reference server. Dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    port: u16,
    listening: Mutex<Listening>,
    /// Last, so that everything above is gone when it is dropped.
    runtime: Runtime,
}

/// What the server's tasks and its owner both hold.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    rules: Rules,
    keep_alive: bool,
    acceptor: Option<TlsAcceptor>,
    observer: Option<Observer>,
    started: Instant,
}

enum Listening {
    Yes {
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    },
    /// The socket is bound and does not listen: clients are refused, and no other program is given the port meanwhile.
    No {
        reserved: Option<TcpSocket>,
    },
}

impl Server {
    /// Starts a server on 127.0.0.1. It accepts connections when this returns. Fails with `InvalidInput` on an
    /// unusable certificate or key, else with what binding the port failed with.
    pub fn start(options: Options) -> io::Result<Server> {
        let acceptor = if options.tls { Some(tls::acceptor(&options)?) } else { None };
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("server").enable_all().build()?;
        let socket = bound(options.port)?;
        let port = socket.local_addr()?.port();
        let shared = Arc::new(Shared {
            state: Mutex::new(State { config: options.config, ..State::default() }),
            changed: Condvar::new(),
            rules: Rules {
                enroll_secret: options.enroll_secret,
                secret_name: options.secret_name,
                require_gzip: options.require_gzip,
                invalid_every: options.invalid_every,
                etags: options.etags,
                drain: options.drain,
            },
            keep_alive: options.keep_alive,
            acceptor,
            observer: options.observer,
            started: Instant::now(),
        });
        let listening = Mutex::new(Listening::No { reserved: Some(socket) });
        let server = Server { shared, port, listening, runtime };
        server.resume()?;
        Ok(server)
    }

    /// The port it has, listening or not.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `localhost:PORT`, as `tls_hostname` wants it.
    pub fn hostname(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// osqueryd's flags that bring a host to this server, by the authority's certificate and the enroll secret that lie in
    /// the host's directory as `ca.pem` and `secret`.
    pub fn flags_of_a_host(&self, directory: &Path) -> [(&'static str, String); 8] {
        let file = |name: &str| directory.join(name).display().to_string();
        [
            ("tls_hostname", self.hostname()),
            ("tls_server_certs", file("ca.pem")),
            ("enroll_secret_path", file("secret")),
            ("enroll_tls_endpoint", "/enroll".to_owned()),
            ("config_tls_endpoint", "/config".to_owned()),
            ("logger_tls_endpoint", "/log".to_owned()),
            ("distributed_tls_read_endpoint", "/distributed_read".to_owned()),
            ("distributed_tls_write_endpoint", "/distributed_write".to_owned()),
        ]
    }

    /// Closes the listener and every connection before it returns; what the server knows is kept.
    pub fn stop(&self) {
        let mut listening = self.listening();
        // Bound before the port is free, so that no other process is given it in between.
        let reserved = bound(self.port).ok();
        if let Listening::Yes { stop, task } = std::mem::replace(&mut *listening, Listening::No { reserved: None }) {
            let _ = stop.send(());
            let _ = self.runtime.block_on(task);
            *listening = Listening::No { reserved };
        }
    }

    /// Listens again, on the same port. Does nothing when it listens already.
    pub fn resume(&self) -> io::Result<()> {
        let mut listening = self.listening();
        if let Listening::No { reserved } = &mut *listening {
            let socket = reserved.take().map_or_else(|| bound(self.port), Ok)?;
            let listener = self.listen(socket)?;
            let (stop, stopped) = oneshot::channel();
            let task = self.runtime.spawn(connection::accept(listener, Arc::clone(&self.shared), stopped));
            *listening = Listening::Yes { stop, task };
        }
        Ok(())
    }

    /// Changes the configuration it serves.
    pub fn set_config(&self, config: Value) {
        self.shared.change(|state| state.config = config);
    }

    /// Has the next `distributed_read` give out this query, once.
    pub fn add_query(&self, id: &str, sql: &str) {
        self.shared.change(|state| state.queries.push((id.to_owned(), sql.to_owned())));
    }

    /// The next enrollment is given this key, which may be blank, in place of `node-key-N`.
    pub fn set_next_node_key(&self, node_key: impl Into<String>) {
        self.shared.change(|state| state.next_node_key = Some(node_key.into()));
    }

    /// The next requests of this endpoint get these answers, one each; then it is as before.
    pub fn script(&self, endpoint: Endpoint, answers: impl IntoIterator<Item = Answer>) {
        let answers: Vec<Answer> = answers.into_iter().collect();
        self.shared.change(|state| state.scripts.entry(endpoint).or_default().extend(answers));
    }

    /// All requests of this endpoint that no script covers get this answer, until it is changed; `None` is the
    /// default behaviour again.
    pub fn always(&self, endpoint: Endpoint, answer: Option<Answer>) {
        self.shared.change(|state| match answer {
            Some(answer) => drop(state.always.insert(endpoint, answer)),
            None => drop(state.always.remove(&endpoint)),
        });
    }

    /// Bodies of up to `bytes` bytes are read when [`Answer::from_head`] is due, and answered as by default.
    pub fn set_body_limit(&self, bytes: u64) {
        self.shared.change(|state| state.body_limit = bytes);
    }

    /// Requests with log lines or distributed results that contain this text get this answer wherever they would get the
    /// default one; `None` ends it.
    pub fn refuse(&self, text: &str, answer: Option<Answer>) {
        self.shared.change(|state| state.refused = answer.map(|answer| (text.to_owned(), answer)));
    }

    /// Makes all node keys given out so far invalid.
    pub fn forget_nodes(&self) {
        self.shared.change(|state| state.known.clear());
    }

    /// Lets go of the requests, lines and distributed results recorded so far.
    pub fn forget_requests(&self) {
        self.shared.change(|state| {
            state.requests.clear();
            state.results.clear();
            state.statuses.clear();
            state.written.clear();
        });
    }

    /// All requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.clone()
    }

    /// The requests for one endpoint, in order of arrival.
    pub fn requests_to(&self, endpoint: Endpoint) -> Vec<Recorded> {
        self.shared.state().requests.iter().filter(|request| request.endpoint == endpoint).cloned().collect()
    }

    /// All result lines accepted by default behaviour, in order.
    pub fn results(&self) -> Vec<Value> {
        self.shared.state().results.clone()
    }

    /// How many result lines that is, without copying them.
    pub fn result_count(&self) -> usize {
        self.shared.state().results.len()
    }

    /// All status lines accepted by default behaviour, in order.
    pub fn statuses(&self) -> Vec<Value> {
        self.shared.state().statuses.clone()
    }

    /// The bodies of the `distributed_write` requests accepted by default behaviour, in order.
    pub fn written(&self) -> Vec<Value> {
        self.shared.state().written.clone()
    }

    /// The node keys given out by default behaviour, in order.
    pub fn node_keys(&self) -> Vec<String> {
        self.shared.state().given.clone()
    }

    /// How many connections have been made: TLS handshakes completed or, without TLS, connections accepted.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// What the handshakes that failed, failed with, in order.
    pub fn handshake_errors(&self) -> Vec<String> {
        self.shared.state().handshake_errors.clone()
    }

    /// Waits until `f` has an answer; it is asked again after each request and connection, and at least each 50 ms.
    /// Panics with `what` and the transcript when there is none within `limit`.
    pub fn wait<T>(&self, what: &str, limit: Duration, mut f: impl FnMut(&Server) -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.shared.state().changes;
            if let Some(found) = f(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "not within {limit:?}: {what}\n{}", self.transcript());
            let state = self.shared.state();
            let waited = self.shared.changed.wait_timeout_while(state, LOOK_AGAIN, |state| state.changes == seen);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The conversation so far, for a reader; long bodies are cut.
    pub fn transcript(&self) -> String {
        let state = self.shared.state();
        let mut text = format!("server on port {}: {} connections\n", self.port, state.connections);
        text.extend(state.handshake_errors.iter().map(|error| format!("handshake failed: {error}\n")));
        text.extend(state.requests.iter().map(|request| request.describe(self.shared.started)));
        text
    }

    fn listen(&self, socket: TcpSocket) -> io::Result<TcpListener> {
        let _context = self.runtime.enter();
        socket.listen(BACKLOG)
    }

    fn listening(&self) -> MutexGuard<'_, Listening> {
        lock(&self.listening)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned state is still what a failing test wants to see in its transcript.
        lock(&self.state)
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let outcome = f(&mut state);
        state.changes += 1;
        self.changed.notify_all();
        outcome
    }

    /// Whether a request's body is larger than is read of one.
    fn is_over_limit(&self, request: &Recorded) -> bool {
        let length = request.header("content-length").and_then(|length| length.parse::<u64>().ok());
        length.is_none_or(|length| length > self.state().body_limit)
    }

    /// Decides a request's answer and records both, as one step.
    fn decide(&self, answer: &Answer, mut request: Recorded) -> Reply {
        let mut state = self.state();
        let (status, body) = match &answer.content {
            Content::Default | Content::Lost | Content::FromHead { .. } => state.reply(&self.rules, &request),
            Content::Fixed { status, body, .. } => (*status, body.clone()),
            Content::Trickle { body, .. } => (200, format!("{body}(spaces, a byte at a time)")),
            Content::Truncated { body, declared } => (200, format!("{body}(cut off, of {declared} bytes)")),
            Content::Endless { total } => (200, format!("({total} bytes of spaces)")),
            Content::DropConnection | Content::DropMidRequest => (0, "(connection dropped)".to_owned()),
            Content::Hang => (0, "(no answer)".to_owned()),
        };
        let lost = matches!(answer.content, Content::Lost);
        request.answer_status = if lost { 0 } else { status };
        request.answer_body = if lost { format!("(lost: {body})") } else { body.clone() };
        self.record(state, request);
        (status, body)
    }

    fn record(&self, mut state: MutexGuard<'_, State>, request: Recorded) {
        let shown = if self.rules.drain.is_some() {
            Some(request)
        } else {
            let shown = self.observer.is_some().then(|| request.clone());
            state.requests.push(request);
            shown
        };
        state.changes += 1;
        drop(state);
        self.changed.notify_all();
        if let (Some(observer), Some(request)) = (&self.observer, &shown) {
            observer(request);
        }
    }
}

fn bound(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // Connections of the last listener that are in TIME_WAIT must not keep the port. On Windows this would share it.
    // A second socket may be bound while the first still listens.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    #[cfg(unix)]
    socket.set_reuseport(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}
