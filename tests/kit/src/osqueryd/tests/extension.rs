//! A fake extension in this process: it registers over Thrift, serves its socket, and records its calls.

use std::collections::BTreeMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use thrift::server::TProcessor;

use crate::osqueryd::client::{Input, Output, protocols};
use crate::osqueryd::thrift_api::{
    ExtensionManagerSyncClient, ExtensionResponse, ExtensionStatus, ExtensionSyncHandler, ExtensionSyncProcessor,
    InternalExtensionInfo, TExtensionManagerSyncClient,
};
use crate::osqueryd::{CallOutcome, Row, lock};

pub(super) type Client = ExtensionManagerSyncClient<Input, Output>;
type Answer = dyn Fn(&str, &Row) -> CallOutcome + Send + Sync;

/// A fake extension with the plugins of `remote_tls` and a table `fake_table`.
pub(super) struct Fake {
    pub(super) uuid: i64,
    pub(super) manager: Client,
    pub(super) socket: PathBuf,
    served: Arc<Served>,
}

struct Served {
    answer: Box<Answer>,
    calls: Mutex<Vec<(String, Row)>>,
    connections: AtomicUsize,
    shutdowns: AtomicUsize,
}

impl Fake {
    /// Registers and serves; `answer` gets the registry and the request.
    pub(super) fn start(
        manager: &Path,
        answer: impl Fn(&str, &Row) -> CallOutcome + Send + Sync + 'static,
    ) -> Result<Fake, String> {
        let mut client = client(manager);
        let mut attempts = 0..5;
        let (uuid, socket, listener) = loop {
            attempts.next().ok_or("the manager forgets it each time")?;
            let status = client.register_extension(info("remote_tls"), routes()).unwrap();
            if status.code != Some(0) {
                return Err(status.message.unwrap());
            }
            let uuid = status.uuid.unwrap();
            let socket = PathBuf::from(format!("{}.{uuid}", manager.display()));
            let listener = UnixListener::bind(&socket).unwrap();
            // The socket's name is known after the registration only. A ping in between has failed, and the manager has
            // forgotten the extension.
            if client.extensions().unwrap().contains_key(&uuid) {
                break (uuid, socket, listener);
            }
        };
        let served = Served {
            answer: Box::new(answer),
            calls: Mutex::default(),
            connections: AtomicUsize::new(0),
            shutdowns: AtomicUsize::new(0),
        };
        let served = Arc::new(served);
        let accepting = Arc::clone(&served);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let served = Arc::clone(&accepting);
                thread::spawn(move || serve(served, stream));
            }
        });
        Ok(Fake { uuid, manager: client, socket, served })
    }

    /// The calls so far, as `registry action`, the action being the key where there is no `action`.
    pub(super) fn calls(&self) -> Vec<String> {
        let names = ["action", "init", "string", "snapshot", "status"];
        let name = |request: &Row| {
            let key = names.iter().find(|name| request.contains_key(**name)).unwrap();
            if *key == "action" { request["action"].clone() } else { (*key).to_owned() }
        };
        lock(&self.served.calls).iter().map(|(registry, request)| format!("{registry} {}", name(request))).collect()
    }

    /// The values that calls had under a key.
    pub(super) fn values(&self, key: &str) -> Vec<String> {
        lock(&self.served.calls).iter().filter_map(|(_, request)| request.get(key).cloned()).collect()
    }

    pub(super) fn connections(&self) -> usize {
        self.served.connections.load(Ordering::SeqCst)
    }

    pub(super) fn shutdowns(&self) -> usize {
        self.served.shutdowns.load(Ordering::SeqCst)
    }

    /// The socket's file goes, as with a crash that took the listener along.
    pub(super) fn vanish(&self) {
        fs::remove_file(&self.socket).unwrap();
    }
}

/// A connection to a manager.
pub(super) fn client(manager: &Path) -> Client {
    let (input, output) = protocols(UnixStream::connect(manager).unwrap()).unwrap();
    ExtensionManagerSyncClient::new(input, output)
}

pub(super) fn info(name: &str) -> InternalExtensionInfo {
    InternalExtensionInfo::new(name.to_owned(), "0.1".to_owned(), "5.0.0".to_owned(), "0.0.0".to_owned())
}

/// The routes that a fake registers.
pub(super) fn routes() -> BTreeMap<String, BTreeMap<String, Vec<Row>>> {
    let plugin = |name: &str, routes| BTreeMap::from([(name.to_owned(), routes)]);
    let column = |name: &str, kind: &str| row(&[("id", "column"), ("name", name), ("type", kind), ("op", "0")]);
    let columns = vec![column("n", "INTEGER"), column("t", "TEXT")];
    let mut routes: BTreeMap<_, _> =
        ["config", "logger", "distributed"].map(|name| (name.to_owned(), plugin("remote_tls", Vec::new()))).into();
    routes.insert("table".to_owned(), plugin("fake_table", columns));
    routes
}

pub(super) fn row(fields: &[(&str, &str)]) -> Row {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Code 0 and one row.
pub(super) fn answered(fields: &[(&str, &str)]) -> CallOutcome {
    CallOutcome { rows: vec![row(fields)], ..CallOutcome::default() }
}

/// A configuration under the source `s`, a logger that takes everything, no distributed queries.
pub(super) fn usual(config: &str) -> impl Fn(&str, &Row) -> CallOutcome + Send + Sync + 'static {
    let config = config.to_owned();
    move |registry, request| match (registry, request.get("action").map(String::as_str)) {
        ("config", Some("genConfig")) => answered(&[("s", &config)]),
        ("logger", Some("features")) => CallOutcome { code: 1, ..CallOutcome::default() },
        ("table", Some("generate")) => answered(&[("n", "7"), ("t", "seven")]),
        _ => CallOutcome::default(),
    }
}

fn serve(served: Arc<Served>, stream: UnixStream) {
    let (mut input, mut output) = protocols(stream).unwrap();
    let processor = ExtensionSyncProcessor::new(Handler(served));
    while processor.process(&mut input, &mut output).is_ok() {}
}

struct Handler(Arc<Served>);

impl ExtensionSyncHandler for Handler {
    fn handle_ping(&self) -> thrift::Result<ExtensionStatus> {
        Ok(ExtensionStatus::new(0, "pong".to_owned(), 1))
    }

    fn handle_call(&self, registry: String, _item: String, request: Row) -> thrift::Result<ExtensionResponse> {
        let outcome = (self.0.answer)(&registry, &request);
        lock(&self.0.calls).push((registry, request));
        let status = ExtensionStatus::new(outcome.code, outcome.message, 1);
        Ok(ExtensionResponse::new(status, outcome.rows))
    }

    fn handle_shutdown(&self) -> thrift::Result<()> {
        self.0.shutdowns.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
