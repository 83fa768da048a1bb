//! Faults that only the running osqueryd and the running extension know.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use super::{NO_SUCH, examine, look};
use crate::rig::{BINARY, LIMIT, Rig, Setup, child_of, line, mode, program, unix_time};

/// A fault of a host where everything runs.
pub(super) struct Fault {
    check: &'static str,
    level: &'static str,
    message: &'static str,
    remedy: &'static str,
    setup: fn(Setup) -> Setup,
    plant: fn(&Rig),
}

const fn fault(
    check: &'static str,
    level: &'static str,
    message: &'static str,
    remedy: &'static str,
    setup: fn(Setup) -> Setup,
    plant: fn(&Rig),
) -> Fault {
    Fault { check, level, message, remedy, setup, plant }
}

#[rustfmt::skip]
pub(super) const FAULTS: &[Fault] = &[
    fault("enroll endpoint", "failure", "as many as --tls_enroll_max_attempts=2 allows", "the secret is the first guess: compare --enroll_secret_path=",
        |setup| { secret(&setup, "another"); setup.flag("tls_enroll_max_attempts", "2") }, |rig| drop(rig.gen_config())),
    fault("enroll endpoint", "failure", "not enrolled after 1 attempt: ", "the secret is the first guess",
        |setup| { secret(&setup, "\u{201c}another\u{201d}"); setup.flag("tls_enroll_max_attempts", "1") }, |rig| drop(rig.gen_config())),
    fault("enroll endpoint", "failure", "HTTP 403", "the secret is the first guess",
        |setup| setup.flag("tls_enroll_max_attempts", "1"), |rig| { always(rig, Endpoint::Enroll, Answer::empty(403)); rig.gen_config(); }),
    fault("enroll endpoint", "failure", "HTTP 404", "--enroll_tls_endpoint=/enroll is not this server's path",
        |setup| setup.flag("tls_enroll_max_attempts", "1"), |rig| { always(rig, Endpoint::Enroll, Answer::empty(404)); rig.gen_config(); }),
    fault("enroll endpoint", "failure", "does not accept the node key that it gave", "why it gives up this host's keys",
        |setup| setup.flag("tls_enroll_max_attempts", "2"), |rig| {
            always(rig, Endpoint::Config, Answer::json(json!({"node_invalid": true})));
            rig.gen_config();
        }),
    fault("enroll endpoint", "warning", "another one is asked for in ", "it waits on purpose, and asks by itself; `osquery-remote-tls refresh`",
        |setup| setup.own_flag("--reenroll_within=80000"), |rig| { rig.config(); rig.server.forget_nodes(); rig.gen_config(); }),
    fault("config endpoint", "failure", "not a configuration: it has none of a configuration's members", "correct this host's configuration",
        as_it_is, |rig| { rig.config(); always(rig, Endpoint::Config, Answer::json(json!({"foo": "bar"}))); }),
    fault("config endpoint", "failure", "not a configuration: an empty object", "correct this host's configuration",
        as_it_is, |rig| { rig.config(); always(rig, Endpoint::Config, Answer::json(json!({}))); }),
    fault("config endpoint", "failure", "HTTP 404", "--config_tls_endpoint=/config is not this server's path",
        as_it_is, |rig| { rig.config(); always(rig, Endpoint::Config, Answer::empty(404)); }),
    fault("logger endpoint", "failure", "HTTP 413; 1 line waits, the oldest since ", "--logger_max_request_bytes below it in ",
        as_it_is, |rig| fail(rig, Answer::empty(413))),
    fault("logger endpoint", "failure", "HTTP 404", "--logger_tls_endpoint=/log is not this server's path",
        as_it_is, |rig| fail(rig, Answer::empty(404))),
    fault("logger endpoint", "failure", "in a row, never a success since the worker began", "look at the server's log",
        as_it_is, |rig| fail(rig, Answer::status(500, json!({"error": "disk full"}).to_string()))),
    fault("distributed read endpoint", "failure", "HTTP 404", "--distributed_tls_read_endpoint=/distributed_read is not",
        |setup| setup.flag("distributed_tls_max_attempts", "1"), |rig| {
            rig.config();
            always(rig, Endpoint::DistributedRead, Answer::empty(404));
            for _ in 0..2 { rig.call("distributed", &[("action", "getQueries")]); }
        }),
    fault("delivery", "warning", "the server takes no compressed requests", "set --logger_tls_compress=false",
        |setup| setup.flag("logger_tls_compress", "true"), |rig| {
            rig.config();
            rig.server.script(Endpoint::Log, [Answer::status(400, "no gzip")]);
            rig.log(&line(0));
            rig.settled();
        }),
    fault("buffers", "warning", "the newest one, of results: it has more than 1000 bytes (logger_tls_max_linesize)", "osquery-remote-tls rejected list",
        |setup| setup.flag("logger_tls_max_linesize", "1000"), |rig| {
            rig.config();
            rig.log(&json!({"name": "x".repeat(2000)}).to_string());
            rig.settled();
        }),
    fault("buffers", "warning", "lines were set aside and never sent; the newest one, of results: ", "osquery-remote-tls rejected list",
        as_it_is, |rig| { rig.config(); rig.log("no JSON"); rig.settled(); }),
    // Case plugin-options: what a configuration's options can do to a plugin's flag.
    fault("active plugins", "failure", "--distributed_plugin=remote_tls is set, and osqueryd uses tls", "Fleet: agent options",
        as_it_is, |rig| { rig.config(); rig.osqueryd.options_set("distributed_plugin", "tls"); }),
    fault("active plugins", "failure", "--distributed_plugin=remote_tls is set, and osqueryd uses tls", "take --keep_plugins=false out of ",
        |setup| setup.own_flag("--keep_plugins=false"), |rig| { rig.config(); rig.osqueryd.options_set("distributed_plugin", "tls"); }),
];

fn as_it_is(setup: Setup) -> Setup {
    setup
}

fn secret(setup: &Setup, text: &str) {
    mode(&setup.file("secret", text), 0o600);
}

fn always(rig: &Rig, endpoint: Endpoint, answer: Answer) {
    rig.server.always(endpoint, Some(answer));
}

/// Log requests fail, again and again.
fn fail(rig: &Rig, answer: Answer) {
    rig.config();
    always(rig, Endpoint::Log, answer);
    rig.log(&json!({"name": "q", "n": 0, "unixTime": unix_time()}).to_string());
    // The extension knows of the second failure when it makes the third request.
    rig.server.wait("three log requests", LIMIT, |server| (server.requests_to(Endpoint::Log).len() >= 3).then_some(()));
}

/// A host that the doctor has nothing to say against.
pub(super) fn well(setup: Setup) -> Setup {
    mode(&setup.path().join("secret"), 0o600);
    setup.flag("config_refresh", "60").flag("extensions_timeout", "10").osqueryd(|options| options.allow_unsafe = false)
}

/// Starts it, and writes the flag file that its osqueryd would have been started with.
pub(super) fn start(setup: Setup) -> (Rig, PathBuf) {
    let mut flags = setup.osqueryd.flags.clone();
    let rig = setup.start();
    flags.insert("tls_hostname".to_owned(), rig.server.hostname());
    let flagfile = rig.directory.path().join("osquery.flags");
    fs::write(&flagfile, flags.iter().map(|(name, value)| format!("--{name}={value}\n")).collect::<String>()).unwrap();
    (rig, flagfile)
}

fn own_flagfile(rig: &Rig) -> PathBuf {
    rig.directory.path().join("remote_tls.flags")
}

#[test]
fn what_only_the_running_extension_knows_is_said() {
    let mut wrong = Vec::new();
    for fault in FAULTS {
        let (rig, flagfile) = start((fault.setup)(well(Setup::new())));
        (fault.plant)(&rig);
        let examined = look(&flagfile, &own_flagfile(&rig), &[]);
        wrong.extend(examined.says_only(fault.check, fault.level, fault.message, fault.remedy).err());
    }
    assert!(wrong.is_empty(), "{} of {} are not found:\n{}", wrong.len(), FAULTS.len(), wrong.join("\n"));
}

#[test]
fn a_worker_that_dies_again_and_again_is_said() {
    let (rig, flagfile) = start(well(Setup::new()));
    rig.config();
    let (front, over) = (rig.pid(), Arc::new(AtomicBool::new(false)));
    let killer = thread::spawn({
        let over = Arc::clone(&over);
        move || {
            while !over.load(Ordering::SeqCst) {
                if let Some(pid) = child_of(front) {
                    let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
                }
                thread::sleep(Duration::from_millis(300));
            }
        }
    });
    // A worker that came with its front is nothing to wonder about.
    let born = Instant::now();
    rig.osqueryd.wait("a front of some age", LIMIT, || (born.elapsed() > Duration::from_secs(5)).then_some(()));
    let examined = look(&flagfile, &own_flagfile(&rig), &[]);
    over.store(true, Ordering::SeqCst);
    killer.join().unwrap();
    let message = "the worker dies again and again: processes ";
    examined.must_say_only("worker", "failure", message, "\"the worker ... ended\" says how");
}

/// An osqueryd that was stopped for 5 s before it opened its socket: the doctor said that the worker had been replaced.
#[test]
fn a_worker_that_came_late_since_osqueryd_did_is_nothing_to_wonder_about() {
    let (_server, mut options, directory) = well(Setup::new()).finish();
    options.extensions.clear();
    let socket = directory.path().join("osquery.em");
    let log = directory.path().join("log");
    let mut extension = Command::new(BINARY)
        // The stand-in may have to be built first, which takes minutes on a busy machine.
        .args(["--timeout=900", "--socket"])
        .arg(&socket)
        .envs(options.env.clone())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let born = Instant::now();
    while born.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(100));
    }
    let flagfile = directory.path().join("osquery.flags");
    options.flags.insert("extensions_socket".to_owned(), socket.display().to_string());
    fs::write(&flagfile, options.flags.iter().map(|(name, value)| format!("--{name}={value}\n")).collect::<String>())
        .unwrap();
    let osqueryd = testkit::osqueryd::Osqueryd::start_bare(options);
    let examined = osqueryd.wait("the extension", LIMIT, || {
        let end = extension.try_wait().unwrap();
        assert!(end.is_none(), "it has ended, {end:?}: {}", fs::read_to_string(&log).unwrap());
        let examined = look(&flagfile, &directory.path().join("remote_tls.flags"), &[]);
        (examined.of("worker")[0]["level"] != "skipped").then_some(examined)
    });
    extension.kill().unwrap();
    extension.wait().unwrap();
    examined.must_say("worker", "ok", "the extension answers; its worker runs for ", "");
}

/// Fleet's agent gives its osqueryd flags and socket on the command line: the first version said that no osqueryd runs.
#[test]
fn an_osqueryd_whose_command_line_has_flags_and_socket_is_found() {
    let setup = well(Setup::new());
    let bytes = fs::read(program("osqueryd-standin")).unwrap();
    let (binary, extension) = (setup.path().join("osqueryd"), setup.path().join("remote_tls.ext"));
    fs::write(&binary, bytes).unwrap();
    mode(&binary, 0o755);
    fs::copy(BINARY, &extension).unwrap();
    let list = setup.file("extensions.load", &format!("{}\n", extension.display()));
    mode(&list, 0o600);
    let (server, mut options, directory) = setup.finish();
    let mut flags = std::mem::take(&mut options.flags);
    let socket = directory.path().join("orbit-osquery.em");
    flags.remove("extensions_socket");
    let server_flag = format!("--tls_hostname={}", flags.remove("tls_hostname").unwrap());
    let flagfile = directory.path().join("osquery.flags");
    fs::write(&flagfile, flags.iter().map(|(name, value)| format!("--{name}={value}\n")).collect::<String>()).unwrap();
    let mut osqueryd = Command::new(&binary)
        .args(["--flagfile", "osquery.flags", &server_flag, "--extensions_socket", socket.to_str().unwrap()])
        .current_dir(directory.path())
        .envs(options.env)
        .stdin(Stdio::null())
        .stderr(fs::File::create(directory.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    server.wait("the enrollment", LIMIT, |server| (!server.node_keys().is_empty()).then_some(()));
    let own = directory.path().join("remote_tls.flags");
    let by_file = look(&flagfile, &own, &[]);
    let by_socket = Command::new(BINARY)
        .args(["doctor", "--json", "--socket"])
        .arg(&socket)
        .arg("--own_flagfile")
        .arg(&own)
        .output()
        .unwrap();
    osqueryd.kill().unwrap();
    osqueryd.wait().unwrap();
    let message = format!("process {}, flags on its command line and in ", osqueryd.id());
    by_file.must_say("socket", "ok", &message, "");
    by_file.must_say("tcp connection", "ok", &server.hostname(), "");
    assert_eq!(by_file.problems().len(), 0, "{:#?}", by_file.problems());
    let json: serde_json::Value = serde_json::from_slice(&by_socket.stdout).unwrap();
    assert_eq!((&json["flagfile"], &json["process"]), (&json!(flagfile), &json!(osqueryd.id())), "{json}");
}

#[test]
fn the_running_osqueryd_is_compared() {
    let setup = Setup::new().osqueryd(|options| options.extensions.clear());
    let flags = setup.osqueryd.flags.clone();
    let (secret, bundle) = (flags["enroll_secret_path"].clone(), flags["tls_server_certs"].clone());
    let (server, options, directory) = setup.finish();
    let osqueryd = testkit::osqueryd::Osqueryd::start_bare(options);
    osqueryd.wait("osqueryd's socket", LIMIT, || osqueryd.socket().exists().then_some(()));
    let file = |lines: &str| {
        let path = directory.path().join("osquery.flags");
        let socket = osqueryd.socket().display().to_string();
        fs::write(&path, format!("--extensions_socket={socket}\n{lines}")).unwrap();
        path
    };
    let own = directory.path().join("remote_tls.flags");
    osqueryd.options_set("custom_remote_tls_request_timeout", "9");
    let lines = format!(
        "--tls_hostname=localhost:1\n--logger_tls_period=77\n--enroll_secret_path={secret}\n\
         --custom_remote_tls_request_timeout=8\n"
    );
    let examined = examine(&file(&lines), &own, &[]);
    examined.must_say(
        "flag names",
        "warning",
        "no flag --custom_remote_tls_request_timeout",
        "--request_timeout=VALUE",
    );
    let check = "running osqueryd";
    examined.must_say(check, "warning", "other values than the flag file has: --tls_hostname", "restart osqueryd");
    examined.must_say(check, "ok", "changed in the flag file since the start: --logger_tls_period", "");
    examined.must_say(check, "skipped", "osqueryd runs without the extension: see autoload file", "");
    assert!(!examined.text.contains("--enroll_secret_path,"), "{}", examined.text);
    examined.must_say(
        check,
        "warning",
        "flags that the flag file doesn't give: --enroll_tls_endpoint, --config_tls_endpoint",
        "gone at its next start",
    );
    // What the flag file leaves out comes from osqueryd.
    examined.must_say("server trust", "ok", &bundle, "");
    osqueryd.store_put("configurations", "nodeKey", "a-key-of-no-server");
    let examined = examine(&file(""), &own, &[]);
    examined.must_say(
        "config endpoint",
        "warning",
        "does not accept the node key that this host has",
        "asks for another one within",
    );
    assert!(!examined.text.contains("a-key-of-no-server"), "{}", examined.text);
    assert_eq!(osqueryd.store_get("configurations", "nodeKey").as_deref(), Some("a-key-of-no-server"));
    let examined = examine(&file("--disable_reenrollment\n"), &own, &[]);
    examined.must_say("config endpoint", "failure", "does not accept the node key", "enroll it anew");
    server.always(Endpoint::Config, Some(Answer::json(json!({}))));
    let examined = examine(&file(""), &own, &[]);
    examined.must_say("config endpoint", "failure", "not a configuration: an empty object", "correct this host's");
}

#[test]
fn an_extension_that_osqueryd_does_not_use_is_said() {
    let mut setup = Setup::new();
    for registry in ["config", "logger", "distributed"] {
        setup = setup.flag(&format!("{registry}_plugin"), "filesystem");
    }
    let rig = setup.start();
    let flagfile = rig.directory.path().join("osquery.flags");
    let flags = format!("--extensions_socket={}\n--config_plugin=remote_tls\n", rig.osqueryd.socket().display());
    fs::write(&flagfile, flags).unwrap();
    let examined = examine(&flagfile, &rig.directory.path().join("remote_tls.flags"), &[]);
    let message = "--config_plugin=remote_tls is set, and osqueryd uses filesystem";
    examined.must_say("active plugins", "failure", message, "restart osqueryd");
}

#[test]
fn an_osqueryd_that_hangs_is_said() {
    let rig = Setup::new().start();
    let flagfile = rig.directory.path().join("osquery.flags");
    fs::write(&flagfile, format!("--extensions_socket={}\n", rig.osqueryd.socket().display())).unwrap();
    rig.osqueryd.hang(true);
    let examined = examine(&flagfile, Path::new(NO_SUCH), &[]);
    examined.must_say("socket", "failure", "did not answer options at ", "osqueryd hangs");
    rig.osqueryd.hang(false);
}
