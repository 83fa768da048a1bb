//! The extension manager: the Thrift service on osqueryd's socket.

use std::collections::BTreeMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use thrift::server::TProcessor;

use super::client::protocols;
use super::core::spawn;
use super::registry::{Broadcast, Extension, Registration};
use super::thrift_api::{
    ExtensionManagerSyncHandler, ExtensionManagerSyncProcessor, ExtensionResponse, ExtensionStatus,
    ExtensionSyncHandler, InternalExtensionInfo, InternalOptionInfo,
};
use super::transcript::cut;
use super::worker::{Worker, items};
use super::{CallOutcome, Row, lock, rows, tables};

/// A hung manager looks this often whether it still is to hang.
const HANG: Duration = Duration::from_millis(20);

/// Accepts until the worker ends. Connections are served on threads of their own, for as many calls as they carry.
pub(super) fn serve(worker: &Arc<Worker>, listener: &UnixListener) {
    while let Ok((stream, _)) = listener.accept() {
        if !worker.served.are_open() {
            return;
        }
        let worker = Arc::clone(worker);
        spawn("manager-connection", move || drop(converse(&worker, stream)));
    }
}

fn converse(worker: &Arc<Worker>, stream: UnixStream) -> thrift::Result<()> {
    let _kept = worker.served.keep(&stream)?;
    let peer = socket_peercred(&stream).ok().map(|credentials| credentials.pid.as_raw_nonzero().get() as u32);
    let processor = ExtensionManagerSyncProcessor::new(Manager { worker: Arc::clone(worker), peer });
    let (mut input, mut output) = protocols(stream)?;
    loop {
        processor.process(&mut input, &mut output)?;
    }
}

/// Columns that the tables' own code does not fill in; SQL answers them empty.
const NOT_FILLED_IN: [&str; 12] = [
    "build",
    "platform_like",
    "extra",
    "hardware_vendor",
    "hardware_version",
    "hardware_serial",
    "board_vendor",
    "board_model",
    "board_version",
    "board_serial",
    "emulated_cpu_type",
    "firmware_type",
];

/// The rows of a table as `action=generate` answers them: whatever `disable_tables` says, with what the table's own code
/// fills in, columns that SQL hides among it.
fn generated(worker: &Worker, table: &tables::Table) -> Vec<Row> {
    let columns: Vec<&str> = table.columns.split_whitespace().map(|column| column.trim_end_matches('#')).collect();
    let row = |values: Vec<String>| {
        let cells = columns.iter().zip(values).filter(|(column, _)| !NOT_FILLED_IN.contains(column));
        let mut row: Row = cells.map(|(column, value)| ((*column).to_owned(), value)).collect();
        if let Some(brand) = row.get_mut("cpu_brand") {
            brand.push_str("\0\0");
        }
        if table.name == "os_version" {
            row.insert("pid_with_namespace".to_owned(), "0".to_owned());
        }
        row
    };
    tables::rows(worker, table.name).into_iter().map(row).collect()
}

/// The manager as one connection sees it.
struct Manager {
    worker: Arc<Worker>,
    peer: Option<u32>,
}

impl Manager {
    /// Notes a call, and keeps it waiting while the manager is to hang.
    fn enter(&self, call: &str) -> thrift::Result<()> {
        self.worker.core.transcript.note(format!("manager: {call}"));
        while self.worker.core.hangs.load(Ordering::SeqCst) && self.worker.served.are_open() {
            self.worker.core.transcript.wait_for_change(HANG);
        }
        if self.worker.served.are_open() {
            return Ok(());
        }
        Err(thrift::Error::User("osqueryd's worker is gone".into()))
    }

    fn register(&self, info: InternalExtensionInfo, routes: Broadcast) -> ExtensionStatus {
        let text = Option::unwrap_or_default;
        let extension = Extension {
            name: text(info.name),
            version: text(info.version),
            sdk_version: text(info.sdk_version),
            min_sdk_version: text(info.min_sdk_version),
            routes,
        };
        let names = |plugins: &BTreeMap<String, Vec<Row>>| plugins.keys().cloned().collect();
        let plugins = extension.routes.iter().map(|(registry, plugins)| (registry.clone(), names(plugins))).collect();
        let (name, version, sdk) = (extension.name.clone(), extension.version.clone(), extension.sdk_version.clone());
        let added = lock(&self.worker.registry).add(extension, &tables::names());
        let uuid = match added {
            Ok(uuid) => uuid,
            Err(message) => {
                let shown = format!("Could not add extension {name}: {message}");
                self.worker.print(2, "interface.cpp", 142, &shown);
                return ExtensionStatus::new(1, message, None);
            }
        };
        let shown = format!("Registering extension ({name}, {uuid}, version={version}, sdk={sdk})");
        self.worker.print(0, "interface.cpp", 136, &shown);
        lock(&self.worker.core.registrations).push(Registration {
            uuid,
            name,
            version,
            sdk_version: sdk,
            at: Instant::now(),
            pid: self.peer,
            worker: self.worker.number,
            plugins,
        });
        self.worker.core.transcript.ring();
        ExtensionStatus::new(0, "OK".to_owned(), uuid)
    }

    /// osqueryd's `ExtensionInterface::call`: an empty item means the active plugin.
    fn route(&self, registry: &str, item: &str, request: &Row) -> CallOutcome {
        if registry == "table"
            && request.get("action").is_some_and(|action| action == "generate")
            && let Some(table) = tables::TABLES.iter().find(|table| table.name == item)
        {
            return CallOutcome { rows: generated(&self.worker, table), ..CallOutcome::default() };
        }
        let item = match (registry, item) {
            ("database", "") => "rocksdb".to_owned(),
            ("config" | "logger" | "distributed", "") => self.worker.plugin_of(registry),
            (_, item) => item.to_owned(),
        };
        let bytes: Vec<(&str, &[u8])> = request.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        match item.contains(',') {
            true => {
                items(&item).for_each(|item| drop(self.worker.registry_call(registry, item, &bytes)));
                CallOutcome::default()
            }
            false => self.worker.registry_call(registry, &item, &bytes),
        }
    }
}

impl ExtensionSyncHandler for Manager {
    fn handle_ping(&self) -> thrift::Result<ExtensionStatus> {
        self.enter("ping")?;
        Ok(ExtensionStatus::new(0, "pong".to_owned(), 0))
    }

    fn handle_call(&self, registry: String, item: String, request: Row) -> thrift::Result<ExtensionResponse> {
        self.enter(&format!("call {registry}/{item:?} {request:?}"))?;
        let outcome = self.route(&registry, &item, &request);
        if registry == "database" && outcome.message == "map::at" {
            let item = if item.is_empty() { "rocksdb" } else { &item };
            let message = format!("{registry} registry {item} plugin caused exception: map::at");
            self.worker.print(2, "registry_factory.cpp", 188, &message);
        }
        self.worker.core.transcript.note(format!("  -> {} {:?} {:?}", outcome.code, outcome.message, outcome.rows));
        let status = ExtensionStatus::new(outcome.code, outcome.message, 0);
        let rows = if outcome.code == 0 { outcome.rows } else { Vec::new() };
        Ok(ExtensionResponse::new(status, rows))
    }

    fn handle_shutdown(&self) -> thrift::Result<()> {
        // osqueryd's own handler is empty: the daemon can't be ended through its socket.
        self.enter("shutdown")
    }
}

impl ExtensionManagerSyncHandler for Manager {
    fn handle_extensions(&self) -> thrift::Result<BTreeMap<i64, InternalExtensionInfo>> {
        self.enter("extensions")?;
        let registry = lock(&self.worker.registry);
        let info = |extension: &Extension| {
            let Extension { name, version, sdk_version, min_sdk_version, .. } = extension.clone();
            InternalExtensionInfo::new(name, version, sdk_version, min_sdk_version)
        };
        Ok(registry.extensions().iter().map(|(uuid, extension)| (*uuid, info(extension))).collect())
    }

    fn handle_options(&self) -> thrift::Result<BTreeMap<String, InternalOptionInfo>> {
        self.enter("options")?;
        let listed = lock(&self.worker.flags).listed();
        let info = |(name, flag): (String, super::flags::Listed)| {
            (name, InternalOptionInfo::new(flag.value, flag.default_value, flag.kind))
        };
        Ok(listed.into_iter().map(info).collect())
    }

    fn handle_register_extension(
        &self,
        info: InternalExtensionInfo,
        registry: Broadcast,
    ) -> thrift::Result<ExtensionStatus> {
        self.enter(&format!("registerExtension {info:?} from process {:?}", self.peer))?;
        let status = self.register(info, registry);
        self.worker.core.transcript.note(format!("  -> {status:?}"));
        Ok(status)
    }

    fn handle_deregister_extension(&self, uuid: i64) -> thrift::Result<ExtensionStatus> {
        self.enter(&format!("deregisterExtension {uuid}"))?;
        Ok(match self.worker.forget(uuid) {
            true => ExtensionStatus::new(0, "OK".to_owned(), 0),
            false => ExtensionStatus::new(1, "No extension UUID found".to_owned(), None),
        })
    }

    fn handle_query(&self, sql: String) -> thrift::Result<ExtensionResponse> {
        self.enter(&format!("query {sql}"))?;
        if self.worker.core.remarks.load(Ordering::SeqCst) {
            self.worker.print(1, "sql.cpp", 1, &format!("Running for an extension: {sql}"));
        }
        let found = self.worker.query(&sql).map(|found| found.rows.iter().map(rows::plain).collect());
        Ok(self.response(found))
    }

    fn handle_get_query_columns(&self, sql: String) -> thrift::Result<ExtensionResponse> {
        self.enter(&format!("getQueryColumns {sql}"))?;
        let found = self.worker.query_columns(&sql);
        Ok(self.response(found))
    }
}

impl Manager {
    fn response(&self, found: Result<Vec<Row>, String>) -> ExtensionResponse {
        let shown = cut(&format!("  -> {found:?}"));
        self.worker.core.transcript.note(shown);
        match found {
            Ok(rows) => ExtensionResponse::new(ExtensionStatus::new(0, "OK".to_owned(), 0), rows),
            Err(message) => ExtensionResponse::new(ExtensionStatus::new(1, message, None), Vec::new()),
        }
    }
}
