//! The tables that the stand-in has: those about the host and osqueryd itself, and a few to query in tests.

use std::fs;
use std::sync::atomic::Ordering;

use super::registry::built_in;
use super::worker::Worker;
use super::{CallOutcome, Row, calendar, lock};

/// A table: its name, and its columns with their types.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static str,
}

const fn table(name: &'static str, columns: &'static str) -> Table {
    Table { name, columns }
}

/// Columns are text, with `#` behind their name an integer.
pub(super) const TABLES: &[Table] = &[
    table("os_version", "name version major# minor# patch# build platform platform_like codename arch extra"),
    table(
        "osquery_info",
        "pid# uuid instance_id version config_hash config_valid# extensions build_platform build_distro start_time# \
         watcher# platform_mask#",
    ),
    table(
        "system_info",
        "hostname uuid cpu_type cpu_subtype cpu_brand cpu_physical_cores# cpu_logical_cores# cpu_sockets# \
         cpu_microcode physical_memory# hardware_vendor hardware_model hardware_version hardware_serial board_vendor \
         board_model board_version board_serial computer_name local_hostname emulated_cpu_type",
    ),
    table("platform_info", "vendor version date revision extra firmware_type"),
    table("osquery_flags", "name type description default_value value shell_only#"),
    table("osquery_extensions", "uuid# name version sdk_version path type"),
    table("osquery_registry", "registry name owner_uuid# internal# active#"),
    table(
        "osquery_schedule",
        "name query interval# executions# last_executed# denylisted# output_size# wall_time# wall_time_ms# \
         last_wall_time_ms# user_time# last_user_time# system_time# last_system_time# average_memory# last_memory#",
    ),
    table("osquery_packs", "name platform version shard# discovery_cache_hits# discovery_executions# active#"),
    table("time", "weekday year# month# day# hour# minutes# seconds# timezone unix_time# timestamp datetime iso_8601"),
    table("processes", "pid# name path cmdline state parent# resident_size# user_time# system_time#"),
    table("users", "uid# gid# username description directory shell"),
    table("listening_ports", "pid# port# protocol# family# address path"),
    table("uptime", "days# hours# minutes# seconds# total_seconds#"),
];

/// The names of all tables that are built in.
pub(super) fn names() -> Vec<&'static str> {
    TABLES.iter().map(|table| table.name).collect()
}

/// Whether the flags keep a table out of SQL. It can be called all the same.
pub(super) fn is_disabled(worker: &Worker, table: &str) -> bool {
    let (disabled, enabled) = {
        let flags = lock(&worker.flags);
        (flags.value("disable_tables"), flags.value("enable_tables"))
    };
    let lists = |list: &str| list.split(',').any(|name| name == table);
    lists(&disabled) || (!enabled.is_empty() && !lists(&enabled))
}

/// A call of a built-in table. The context's constraints are not looked at.
pub(super) fn call(worker: &Worker, table: &str, request: &Row) -> CallOutcome {
    let columns = TABLES.iter().find(|known| known.name == table).map_or("", |known| known.columns);
    let columns = columns.split_whitespace().map(|column| match column.strip_suffix('#') {
        Some(name) => (name, "BIGINT"),
        None => (column, "TEXT"),
    });
    let described = |(name, kind): (&str, &str)| {
        let fields = [("id", "column"), ("name", name), ("type", kind), ("op", "0")];
        fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    };
    let rows: Vec<Row> = match request.get("action").map(String::as_str) {
        Some("columns") => columns.map(described).collect(),
        Some("generate") => {
            let names: Vec<&str> = columns.map(|(name, _)| name).collect();
            let row = |values: Vec<String>| names.iter().map(|name| (*name).to_owned()).zip(values).collect();
            rows(worker, table).into_iter().map(row).collect()
        }
        Some(action) => return CallOutcome::failed(&format!("Unknown table plugin action: {action}")),
        None => return CallOutcome::failed("Table plugins must include a request action"),
    };
    CallOutcome { rows, ..CallOutcome::default() }
}

/// A table's rows now, their values in the order of its columns.
pub(super) fn rows(worker: &Worker, table: &str) -> Vec<Vec<String>> {
    match table {
        "os_version" => vec![texts(&[
            "Debian GNU/Linux",
            "12 (bookworm)",
            "12",
            "0",
            "0",
            "",
            "debian",
            "",
            "bookworm",
            "x86_64",
            "",
        ])],
        "osquery_info" => vec![osquery_info(worker)],
        "system_info" => vec![system_info(worker)],
        "platform_info" if !worker.core.options.platform_info => Vec::new(),
        "platform_info" => vec![texts(&["EFI Stand-in", "1.0", "04/01/2026", "1.0", "", "uefi"])],
        "osquery_flags" => osquery_flags(worker),
        "osquery_extensions" => osquery_extensions(worker),
        "osquery_registry" => osquery_registry(worker),
        "osquery_schedule" => osquery_schedule(worker),
        "osquery_packs" => osquery_packs(worker),
        "time" => vec![time()],
        "processes" => processes(),
        "users" => users(),
        "listening_ports" => {
            vec![texts(&["812", "5432", "6", "2", "127.0.0.1", ""]), texts(&["640", "22", "6", "2", "0.0.0.0", ""])]
        }
        "uptime" => vec![uptime()],
        _ => Vec::new(),
    }
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn osquery_info(worker: &Worker) -> Vec<String> {
    let valid = if lock(&worker.config).valid { "1" } else { "0" };
    let (pid, watcher) = (worker.process.id().to_string(), std::process::id().to_string());
    let started = worker.core.started.to_string();
    let (uuid, instance) = (worker.core.host_uuid(), worker.core.instance_uuid());
    let version = &worker.core.options.version;
    let extensions = if worker.served.are_open() { "active" } else { "inactive" };
    texts(&[&pid, &uuid, &instance, version, "", valid, extensions, "linux", "centos7", &started, &watcher, "9"])
}

fn system_info(worker: &Worker) -> Vec<String> {
    let (host, uuid) = (hostname(), worker.core.host_uuid());
    texts(&[
        &host,
        &uuid,
        "x86_64",
        "167",
        "Stand-in(R) Processor",
        "2",
        "2",
        "1",
        "0x1",
        "25276502016",
        "Stand-in",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        &host,
        &host,
        "",
    ])
}

fn osquery_flags(worker: &Worker) -> Vec<Vec<String>> {
    let listed = lock(&worker.flags).listed();
    let row = |(name, flag): (String, super::flags::Listed)| {
        vec![name, flag.kind, String::new(), flag.default_value, flag.value, "0".to_owned()]
    };
    listed.into_iter().map(row).collect()
}

fn osquery_extensions(worker: &Worker) -> Vec<Vec<String>> {
    let socket = worker.socket.display().to_string();
    let version = &worker.core.options.version;
    let mut rows = vec![texts(&["0", "core", version, version, &socket, "core"])];
    for (uuid, extension) in lock(&worker.registry).extensions() {
        let (uuid, path) = (uuid.to_string(), format!("{socket}.{uuid}"));
        rows.push(texts(&[&uuid, &extension.name, &extension.version, &extension.sdk_version, &path, "extension"]));
    }
    rows
}

fn osquery_registry(worker: &Worker) -> Vec<Vec<String>> {
    let active = |registry: &str, plugin: &str| -> &'static str {
        let flag = match registry {
            "table" => return "1",
            "logger" | "distributed" if worker.core.undecided.load(Ordering::SeqCst) => return "1",
            "config" | "logger" | "distributed" => worker.plugin_of(registry),
            _ => return "0",
        };
        if flag.split(',').any(|active| active == plugin) { "1" } else { "0" }
    };
    let mut rows = Vec::new();
    let tables = TABLES.iter().map(|table| ("table", table.name));
    for (registry, plugin) in built_in().chain(tables) {
        rows.push(texts(&[registry, plugin, "0", "0", active(registry, plugin)]));
    }
    let registry = lock(&worker.registry);
    for (uuid, extension) in registry.extensions() {
        for (kind, plugins) in &extension.routes {
            let row = |plugin: &String| texts(&[kind, plugin, &uuid.to_string(), "0", active(kind, plugin)]);
            rows.extend(plugins.keys().map(row));
        }
    }
    rows
}

fn osquery_schedule(worker: &Worker) -> Vec<Vec<String>> {
    let config = lock(&worker.config);
    let runs = lock(&worker.runs);
    let row = |query: &super::config::Scheduled| {
        let (count, last) = runs.get(&query.name).copied().unwrap_or_default();
        let mut row = vec![query.name.clone(), query.sql.clone(), query.interval.to_string()];
        row.extend([count.to_string(), last.to_string()]);
        row.resize(16, "0".to_owned());
        row
    };
    config.schedule().map(row).collect()
}

fn osquery_packs(worker: &Worker) -> Vec<Vec<String>> {
    let config = lock(&worker.config);
    let row =
        |pack: &super::config::Pack| texts(&[&pack.name, "", "", "0", "0", "0", if pack.active { "1" } else { "0" }]);
    config.packs.iter().filter(|pack| pack.name != "main").map(row).collect()
}

fn time() -> Vec<String> {
    let now = calendar::unix_time();
    let text = calendar::calendar_time(now);
    let (seconds, minutes, hours) = (now % 60, now / 60 % 60, now / 3600 % 24);
    let parts: Vec<&str> = text.split_whitespace().collect();
    let date = time::OffsetDateTime::from_unix_timestamp(now as i64).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let iso = format!("{year}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z");
    let numbers = [year.to_string(), month.to_string(), day.to_string(), hours.to_string(), minutes.to_string()];
    let mut row = vec![parts.first().copied().unwrap_or_default().to_owned()];
    row.extend(numbers);
    row.extend([seconds.to_string(), "UTC".to_owned(), now.to_string(), text.clone(), iso.clone(), iso]);
    row
}

fn processes() -> Vec<Vec<String>> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?)).collect()
}

fn process(pid: &str) -> Option<Vec<String>> {
    pid.parse::<u32>().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or("0");
    let path = fs::read_link(format!("/proc/{pid}/exe")).map(|path| path.display().to_string()).unwrap_or_default();
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
    let pages: u64 = field(21).parse().unwrap_or(0);
    let (resident, user, system) = ((pages * 4096).to_string(), field(11), field(12));
    Some(texts(&[pid, name, &path, cmdline.trim_end(), field(0), field(1), &resident, user, system]))
}

fn users() -> Vec<Vec<String>> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, description, directory, shell] = fields[..] else { return None };
        Some(texts(&[uid, gid, name, description, directory, shell]))
    };
    text.lines().filter_map(row).collect()
}

fn uptime() -> Vec<String> {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let total: u64 = text.split('.').next().and_then(|whole| whole.parse().ok()).unwrap_or(0);
    [total / 86_400, total / 3600 % 24, total / 60 % 60, total % 60, total].map(|part| part.to_string()).to_vec()
}

/// The kernel's host name.
pub(super) fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}
