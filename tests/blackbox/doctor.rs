//! `osquery-remote-tls doctor`: a host where all is well, and each check made to fail.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::certs::{Authority, CertificateKind, default_authority};
use testkit::proxy::{Behaviour, Proxy};
use testkit::server::{self, Answer, Endpoint, Server};

use crate::rig::{BINARY, LIMIT, SECRET, Setup, line};

const NO_SUCH: &str = "/no/such";

/// A host with a server and without osqueryd: what a check sees can be changed before the doctor looks.
struct Host {
    directory: TempDir,
    server: Server,
    flags: BTreeMap<String, String>,
    /// More lines of osqueryd's flag file.
    lines: String,
}

/// What the doctor said.
struct Examined {
    code: i32,
    text: String,
    findings: Vec<Value>,
}

impl Host {
    fn new() -> Self {
        Self::with_server(|_| {})
    }

    fn with_server(change: impl FnOnce(&mut server::Options)) -> Self {
        let mut options = server::Options { enroll_secret: Some(SECRET.to_owned()), ..server::Options::default() };
        change(&mut options);
        let server = Server::start(options).unwrap();
        let mut host =
            Self { directory: tempfile::tempdir().unwrap(), flags: BTreeMap::new(), lines: String::new(), server };
        let authority = host.file("ca.pem", &default_authority().cert_pem());
        let secret = host.file("secret", SECRET);
        let extension = host.path("remote_tls.ext");
        if fs::hard_link(BINARY, &extension).is_err() {
            fs::copy(BINARY, &extension).unwrap();
        }
        let list = host.file("extensions.load", &format!("# ours\n{}\n", extension.display()));
        let hostname = host.server.hostname();
        for (name, value) in [
            ("tls_hostname", hostname.as_str()),
            ("tls_server_certs", authority.to_str().unwrap()),
            ("enroll_secret_path", secret.to_str().unwrap()),
            ("extensions_autoload", list.to_str().unwrap()),
            ("extensions_socket", host.path("osquery.em").to_str().unwrap()),
            ("database_path", host.path("osquery.db").to_str().unwrap()),
            ("enroll_tls_endpoint", "/enroll"),
            ("config_tls_endpoint", "/config"),
            ("logger_tls_endpoint", "/log"),
            ("distributed_tls_read_endpoint", "/distributed_read"),
            ("distributed_tls_write_endpoint", "/distributed_write"),
            ("config_plugin", "remote_tls"),
            ("logger_plugin", "remote_tls"),
            ("distributed_plugin", "remote_tls"),
            ("disable_distributed", "false"),
            ("config_refresh", "60"),
        ] {
            host.flag(name, value);
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file that only its owner reads.
    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        mode(&path, 0o600);
        path
    }

    fn flag(&mut self, name: &str, value: &str) {
        self.flags.insert(name.to_owned(), value.to_owned());
    }

    fn examine(&self, arguments: &[&str]) -> Examined {
        let lines: String = self.flags.iter().map(|(name, value)| format!("--{name}={value}\n")).collect();
        let flagfile = self.file("osquery.flags", &format!("{lines}{}", self.lines));
        examine(&flagfile, &self.path("remote_tls.flags"), arguments)
    }
}

fn examine(flagfile: &Path, own: &Path, arguments: &[&str]) -> Examined {
    let run = |form: &[&str]| {
        let mut doctor = Command::new(BINARY);
        doctor.args(["doctor", "--flagfile"]).arg(flagfile).arg("--own_flagfile").arg(own);
        let output = doctor.args(arguments).args(form).output().unwrap();
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(stderr, "", "{stdout}");
        assert!(!stdout.contains(SECRET), "the secret is shown:\n{stdout}");
        (output.status.code().unwrap(), stdout)
    };
    let (code, json) = run(&["--json"]);
    let (_, text) = run(&[]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let findings = json["findings"].as_array().unwrap().clone();
    let count = |level: &str| findings.iter().filter(|finding| finding["level"] == level).count();
    let counts = [count("ok"), count("skipped"), count("warning"), count("failure")];
    assert_eq!(
        json["counts"],
        json!({"ok": counts[0], "skipped": counts[1], "warnings": counts[2], "failures": counts[3]})
    );
    let expected = if counts[3] > 0 {
        1
    } else if counts[2] > 0 {
        2
    } else {
        0
    };
    assert_eq!(code, expected, "{text}");
    Examined { code, text, findings }
}

impl Examined {
    fn of(&self, check: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["check"] == check).collect()
    }

    /// A finding of this check and level with these words in its message and its remedy, and its line in the text.
    fn must_say(&self, check: &str, level: &str, message: &str, remedy: &str) {
        let is_it = |finding: &&&Value| {
            let has = |name: &str, words: &str| finding[name].as_str().unwrap_or_default().contains(words);
            finding["level"] == level && has("message", message) && has("remedy", remedy)
        };
        let found = self.of(check);
        assert!(
            found.iter().any(|finding| is_it(&finding)),
            "no {level} {check:?} with {message:?} and {remedy:?} in\n{}",
            self.text
        );
        let word = match level {
            "ok" => "ok  ",
            "skipped" => "skip",
            "warning" => "warn",
            _ => "FAIL",
        };
        assert!(self.text.contains(&format!("{word} {check}: ")), "{}", self.text);
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A copy of the extension, whose mode and owner others don't see.
fn own_copy(host: &Host) -> PathBuf {
    let path = host.path("remote_tls.ext");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    mode(&path, 0o755);
    path
}

/// All that is in a directory: names, modes, sizes, times, contents.
fn state(directory: &Path) -> Vec<(PathBuf, u32, u64, i64, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let (path, file) = (entry.path(), entry.metadata().unwrap());
        if file.is_dir() {
            found.extend(state(&path));
        }
        let content = if file.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        found.push((path, file.mode(), file.size(), file.mtime_nsec(), content));
    }
    found.sort();
    found
}

#[test]
fn a_host_where_all_is_well() {
    let setup = Setup::new()
        .flag("config_refresh", "60")
        .flag("extensions_timeout", "10")
        .osqueryd(|options| options.allow_unsafe = false);
    mode(&setup.path().join("secret"), 0o600);
    let mut flags = setup.osqueryd.flags.clone();
    let rig = setup.start();
    flags.insert("tls_hostname".to_owned(), rig.server.hostname());
    let flagfile = rig.directory.path().join("osquery.flags");
    fs::write(&flagfile, flags.iter().map(|(name, value)| format!("--{name}={value}\n")).collect::<String>()).unwrap();
    rig.config();
    rig.log(&line(0));
    rig.settled();
    rig.server.add_query("q", "SELECT 1");
    let key = rig.stored_key().unwrap();

    let own = rig.directory.path().join("remote_tls.flags");
    let examined = examine(&flagfile, &own, &[]);
    assert_eq!(examined.code, 0, "{}", examined.text);
    assert!(!examined.text.contains(&key), "{}", examined.text);
    examined.must_say("running osqueryd", "ok", "registered and active as config, logger, distributed", "");
    examined.must_say("config endpoint", "ok", "a configuration of ", "");
    examined.must_say("tls handshake", "ok", "TLS 1.3, ", "");
    assert!(examined.text.contains("       CN=localhost for localhost, 127.0.0.1, ::1, issued by CN=testkit"));
    for check in ["logger endpoint", "distributed read endpoint", "distributed write endpoint"] {
        examined.must_say(check, "ok", "rejects a node key that is invalid", "");
    }
    examined.must_say("buffers", "ok", "remote_tls: empty", "");

    // Every check has its say, once, in the order of the documentation, which has a section for each.
    let said: Vec<&str> = examined.findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    let documentation = include_str!("../../docs/doctor.md");
    let documented: Vec<&str> = documentation.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(said, documented);

    // It left no trace: not with the server, not with osqueryd.
    assert_eq!(rig.server.node_keys().len(), 1);
    assert_eq!(rig.stored_key().as_deref(), Some(key.as_str()));
    assert_eq!((rig.server.result_count(), rig.server.statuses().len(), rig.server.written().len()), (1, 0, 0));
    let read = rig.call("distributed", &[("action", "getQueries")]);
    assert!(read.rows[0]["results"].contains("SELECT 1"), "{read:?}");
    rig.log(&line(1));
    rig.delivered(2);
}

#[test]
fn it_changes_nothing_on_a_host_without_osqueryd() {
    let rig = Setup::new().start();
    rig.server.stop();
    rig.log(&line(0));
    rig.osqueryd.stop();
    let host = Host::new();
    copy(&rig.directory.path().join("remote_tls"), &host.path("remote_tls"));
    let before = state(host.directory.path());
    let examined = host.examine(&[]);
    examined.must_say("buffers", "ok", "1 result lines wait", "");
    examined.must_say("socket", "warning", "osqueryd does not run: nobody listens at", "start osqueryd");
    examined.must_say("running osqueryd", "skipped", "osqueryd can't be asked", "");
    let mut after = state(host.directory.path());
    // The test's own.
    after.retain(|(path, ..)| *path != host.path("osquery.flags"));
    assert!(before == after, "something changed");
    assert_eq!(host.server.node_keys().len(), 0);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// How one check is made to fail, and what is said then.
struct Case {
    check: &'static str,
    level: &'static str,
    message: &'static str,
    remedy: &'static str,
    spoil: fn(&mut Host),
}

const fn case(
    check: &'static str,
    level: &'static str,
    message: &'static str,
    remedy: &'static str,
    spoil: fn(&mut Host),
) -> Case {
    Case { check, level, message, remedy, spoil }
}

#[rustfmt::skip]
const FLAG_CASES: &[Case] = &[
    case("flag file", "failure", "/no/such can't be read: No such file",
        "as root", |host| host.lines.push_str("--flagfile=/no/such\n")),
    case("flag file", "failure", "takes it for another program's name and leaves out all that is behind it (1 flags)",
        "put -- before", |host| host.lines.push_str("tls_hostname=x\n--verbose\n")),
    case("flag file", "failure", "--utc has its value behind a space",
        "--utc=VALUE", |host| host.lines.push_str("--utc false\n")),
    case("flag file", "failure", "--proxy_hostname has no value",
        "--proxy_hostname=VALUE", |host| host.lines.push_str("--proxy_hostname\n")),
    case("flag file", "warning", "quotes around the value of --host_identifier",
        "remove", |host| host.lines.push_str("--host_identifier=\"uuid\"\n")),
    case("flag file", "failure", "line ends of both kinds", "sed -i", |host| host.lines.push_str("--verbose\r\n")),
    case("flag names", "warning", "osqueryd has no flag --tls_hostnam and drops",
        "is --tls_hostname meant?", |host| host.lines.push_str("--tls_hostnam=x\n")),
    case("flag names", "warning", "no flag --buffer_path",
        "put --buffer_path=VALUE into ", |host| host.lines.push_str("--buffer_path=/x\n")),
    case("flag names", "warning", "no flag --custom_remote_tls_request_timeout",
        "put --request_timeout=VALUE into ", |host| host.lines.push_str("--custom_remote_tls_request_timeout=9\n")),
    case("flag names", "warning", "no flag --custom_of_others",
        "only a configuration's \"options\"", |host| host.lines.push_str("--custom_of_others=9\n")),
    case("flag values", "failure", "--logger_tls_period=soon ends osqueryd",
        "correct", |host| host.flag("logger_tls_period", "soon")),
    case("flag values", "failure", "--tls_hostname=https://fleet can't be used",
        "correct --tls_hostname", |host| host.flag("tls_hostname", "https://fleet")),
    case("flag values", "failure", "--proxy_hostname=<hidden>@http://p can't be used",
        "correct", |host| host.flag("proxy_hostname", "me:hunter2@http://p")),
    case("flag values", "warning", "--host_identifier=name means hostname",
        "choose one of hostname, uuid", |host| host.flag("host_identifier", "name")),
    case("flag values", "warning", "without --specified_identifier",
        "set --specified_identifier", |host| host.flag("host_identifier", "specified")),
    case("flag combinations", "failure", "no plugin of osqueryd is this extension's",
        "--logger_plugin=remote_tls", |host| {
        for registry in ["config", "logger", "distributed"] { host.flag(&format!("{registry}_plugin"), "filesystem"); }
    }),
    case("flag combinations", "warning", "--logger_plugin=remote_tls,tls: the server gets everything twice",
        "without tls", |host| host.flag("logger_plugin", "remote_tls,tls")),
    case("flag combinations", "warning", "--config_plugin=tls: osqueryd itself does this",
        "--config_plugin=remote_tls", |host| host.flag("config_plugin", "tls")),
    case("flag combinations", "warning", "osquery has no logger plugin remote_tls.ext, and does not start without it",
        "is remote_tls meant?", |host| host.flag("logger_plugin", "remote_tls.ext")),
    case("flag combinations", "failure", "--config_tls_endpoint= can't be used",
        "set --config_tls_endpoint", |host| host.flag("config_tls_endpoint", "")),
    case("flag combinations", "failure", "--disable_extensions=true",
        "remove --disable_extensions", |host| host.flag("disable_extensions", "true")),
    case("flag combinations", "failure", "--extensions_require=remote_tls.ext",
        "the extension's name is remote_tls", |host| host.flag("extensions_require", "remote_tls.ext")),
    case("flag combinations", "warning", "--disable_distributed is true",
        "--disable_distributed=false", |host| host.flag("disable_distributed", "true")),
    case("flag combinations", "warning", "--config_refresh is 0",
        "--config_refresh=300", |host| host.flag("config_refresh", "0")),
    case("flag combinations", "warning", "--allow_unsafe=true",
        "remove --allow_unsafe", |host| host.lines.push_str("--allow_unsafe\n")),
    case("flag combinations", "warning", "--ephemeral=true: osqueryd keeps no node key",
        "remove --ephemeral", |host| host.flag("ephemeral", "true")),
    case("own flags", "failure", "remote_tls.flags:1: there is no flag --no_such",
        "correct the line", |host| drop(host.file("remote_tls.flags", "--no_such=1\n"))),
    case("own flags", "failure", "--request_timeout=0 can't be used",
        "correct the value", |host| drop(host.file("remote_tls.flags", "--request_timeout=0\n"))),
];

#[rustfmt::skip]
const FILE_CASES: &[Case] = &[
    case("autoload file", "failure", "/no/such can't be read",
        "make it, with one line: ", |host| host.flag("extensions_autoload", NO_SUCH)),
    case("autoload file", "failure", "does not name the extension",
        "add the line ", |host| drop(host.file("extensions.load", "# /x/remote_tls.ext\n/other.ext\n"))),
    case("autoload file", "failure", "names the extension twice", "remove one", |host| {
        let path = host.path("remote_tls.ext");
        host.file("extensions.load", &format!("{}\n/usr/lib/osquery-remote-tls.ext\n", path.display()));
    }),
    case("autoload file", "warning", "remote_tls.ext is relative",
        "write the whole path", |host| drop(host.file("extensions.load", "remote_tls.ext\n"))),
    case("autoload file", "warning", "extensions.load is writable by everybody",
        "chmod go-w ", |host| mode(&host.path("extensions.load"), 0o646)),
    case("autoload file", "warning", "is writable by everybody: whoever adds a line",
        "chmod go-w ", |host| mode(host.directory.path(), 0o757)),
    case("extension file", "failure", "remote_tls.ext: No such file",
        "install -o root -m 0755", |host| drop(host.file("extensions.load", "/no/such/remote_tls.ext\n"))),
    case("extension file", "failure", "does not end in .ext", "rename it to ", |host| {
        let path = host.path("remote_tls.bin");
        fs::rename(own_copy(host), &path).unwrap();
        host.file("extensions.load", path.to_str().unwrap());
    }),
    case("extension file", "failure", "is writable by everybody: osqueryd does not start it",
        "chmod o-w ", |host| mode(&own_copy(host), 0o757)),
    case("extension file", "failure", "is not executable by its owner",
        "chmod 0755 ", |host| mode(&own_copy(host), 0o655)),
    case("extension file", "failure", "sticky bit",
        "install it into a directory of root's", |host| mode(host.directory.path(), 0o1700)),
    case("extension file", "warning", "writable by everybody; only --allow_unsafe", "chmod o-w ", |host| {
        mode(&own_copy(host), 0o757);
        host.lines.push_str("--allow_unsafe\n");
    }),
    case("extension file", "warning", "is writable by everybody, who can so",
        "chmod go-w ", |host| mode(host.directory.path(), 0o777)),
    case("socket", "failure", "is too long for a socket",
        "shorter",
        |host| { let long = host.path(&"x".repeat(100)); host.flag("extensions_socket", long.to_str().unwrap()); }),
    case("socket", "failure", "the directory of /no/such/osquery.em is not there",
        "make it", |host| host.flag("extensions_socket", "/no/such/osquery.em")),
    case("extensions timeout", "failure", "--extensions_timeout=0",
        "=10", |host| host.flag("extensions_timeout", "0")),
    case("extensions timeout", "warning", "--extensions_timeout=1: a busy host",
        "=10", |host| host.flag("extensions_timeout", "1")),
    case("extensions timeout", "failure", "--extensions_timeout=3s is no whole number",
        "=3", |host| host.flag("extensions_timeout", "3s")),
    case("extensions timeout", "failure", "--extensions_interval=0.5 is no whole number",
        "=3", |host| host.flag("extensions_interval", "0.5")),
    case("enroll secret", "failure", "--enroll_secret_path=/no/such can't be read",
        "make the file", |host| host.flag("enroll_secret_path", NO_SUCH)),
    case("enroll secret", "failure", "the secret is empty",
        "put your server's enroll secret", |host| drop(host.file("secret", " \n"))),
    case("enroll secret", "warning", "the secret has 2 lines",
        "leave the one line", |host| drop(host.file("secret", "a-secret\nanother\n"))),
    case("enroll secret", "warning", "is readable by everybody",
        "chmod o-r ", |host| mode(&host.path("secret"), 0o644)),
    case("enroll secret", "warning", "--enroll_secret_env=NO_SUCH_VARIABLE",
        "service sets it",
        |host| { host.flags.remove("enroll_secret_path"); host.flag("enroll_secret_env", "NO_SUCH_VARIABLE"); }),
    case("enroll secret", "warning", "the empty secret is sent",
        "set --enroll_secret_path", |host| drop(host.flags.remove("enroll_secret_path"))),
    case("server trust", "failure", "--tls_server_certs=/no/such can't be used: No such file",
        "name the PEM file", |host| host.flag("tls_server_certs", NO_SUCH)),
    case("server trust", "failure", "it holds no certificate in PEM",
        "name the PEM file", |host| drop(host.file("ca.pem", "nothing"))),
    case("server trust", "failure", "no certificate in it is valid today",
        "anew",
        |host| drop(host.file("ca.pem", &expired_authority()))),
    case("server trust", "warning", "a certificate ended on 2021-01-01: CN=old",
        "replace",
        |host| drop(host.file("ca.pem", &format!("{}{}", default_authority().cert_pem(), expired_authority())))),
    case("client certificate", "failure", "--tls_client_key= can't be used: tls_client_cert is set",
        "set both", |host| host.flag("tls_client_cert", "/c.pem")),
    case("client certificate", "failure", "--tls_client_cert=/no/such can't be used",
        "put the certificate there",
        |host| { host.flag("tls_client_cert", NO_SUCH); host.flag("tls_client_key", NO_SUCH); }),
    case("client certificate", "failure", "no unencrypted private key",
        "not encrypted", |host| client(host, |cert, _| (cert, "nothing".to_owned()))),
    case("client certificate", "failure", "don't belong together",
        "its own key", |host| client(host, |cert, _| (cert, Authority::new("x").issue_client("y").key_pem))),
    case("client certificate", "warning", "is readable by everybody",
        "chmod o-r ", |host| { client(host, |cert, key| (cert, key)); mode(&host.path("client.key"), 0o644); }),
];

/// Gives a host a client certificate and a key after `change`.
fn client(host: &mut Host, change: fn(String, String) -> (String, String)) {
    let identity = default_authority().issue_client("node");
    let (cert, key) = change(identity.cert_pem, identity.key_pem);
    let (cert, key) = (host.file("client.pem", &cert), host.file("client.key", &key));
    host.flag("tls_client_cert", cert.to_str().unwrap());
    host.flag("tls_client_key", key.to_str().unwrap());
}

fn expired_authority() -> String {
    testkit::certs::self_signed(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "old");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    })
    .cert_pem
}

fn always(host: &Host, endpoint: Endpoint, answer: Answer) {
    host.server.always(endpoint, Some(answer));
}

#[rustfmt::skip]
const SERVER_CASES: &[Case] = &[
    case("name resolution", "failure", "the name no-such-host.invalid can't be resolved",
        "--tls_hostname is right", |host| host.flag("tls_hostname", "no-such-host.invalid")),
    case("tcp connection", "failure", "can't connect: Connection refused",
        "see that the server listens on port", |host| host.server.stop()),
    case("clock", "warning", "s behind the server's", "NTP", |host| always(host, Endpoint::Enroll, dated(600))),
    case("clock", "failure", "s ahead of the server's", "NTP", |host| always(host, Endpoint::Enroll, dated(-7200))),
    case("enroll endpoint", "warning", "by HTTP 404",
        "--enroll_tls_endpoint is right", |host| always(host, Endpoint::Enroll, Answer::empty(404))),
    case("enroll endpoint", "failure", "HTTP 502",
        "server's log", |host| always(host, Endpoint::Enroll, Answer::html(502))),
    case("config endpoint", "failure", "HTTP 404",
        "the endpoint's flag is the server's path", |host| always(host, Endpoint::Config, Answer::empty(404))),
    case("config endpoint", "warning", "takes a node key that is invalid",
        "the path is the server's", |host| always(host, Endpoint::Config, Answer::json(json!({"schedule": {}})))),
    case("config endpoint", "failure", "the connection broke",
        "what is between", |host| always(host, Endpoint::Config, Answer::drop_connection())),
    case("logger endpoint", "warning", "without \"node_invalid\"",
        "what the server's log says", |host| always(host, Endpoint::Log, Answer::status(401, "no"))),
    case("distributed read endpoint", "failure", "not a JSON object",
        "something else answers here", |host| always(host, Endpoint::DistributedRead, Answer::html(200))),
    case("distributed write endpoint", "failure", "redirected to another host",
        "what is between",
        |host| {
            let answer = Answer::empty(302).header("Location", "https://elsewhere.example/");
            always(host, Endpoint::DistributedWrite, answer);
        }),
    case("logger endpoint", "skipped", "its flag is not set", "", |host| host.flag("logger_tls_endpoint", "")),
];

/// The usual answer with a clock that is ahead by so many seconds.
fn dated(seconds: i64) -> Answer {
    let now = SystemTime::now();
    let skew = Duration::from_secs(seconds.unsigned_abs());
    let date = if seconds > 0 { now + skew } else { now - skew };
    Answer::default_behaviour().header("Date", &httpdate::fmt_http_date(date))
}

fn run(cases: &[Case]) {
    for case in cases {
        let mut host = Host::new();
        (case.spoil)(&mut host);
        host.examine(&[]).must_say(case.check, case.level, case.message, case.remedy);
    }
}

#[test]
fn what_is_wrong_with_flags_is_said() {
    run(FLAG_CASES);
}

#[test]
fn what_is_wrong_with_files_is_said() {
    run(FILE_CASES);
}

#[test]
fn what_is_wrong_with_the_server_is_said() {
    run(SERVER_CASES);
}

#[test]
fn a_flag_file_that_is_not_there_is_named() {
    let examined = examine(Path::new("/no/such.flags"), Path::new(NO_SUCH), &[]);
    examined.must_say("flag file", "failure", "/no/such.flags can't be read", "--flagfile");
    examined.must_say("flag combinations", "skipped", "no flag is known", "");
}

#[test]
fn an_extension_of_somebody_else_s_is_refused() {
    let host = Host::new();
    let path = own_copy(&host);
    if chown(&path, Some(12345), None).is_err() {
        return eprintln!("only root can give files away: not tried");
    }
    host.examine(&[]).must_say(
        "extension file",
        "failure",
        "belongs to user 12345, neither root nor",
        "chown root:root ",
    );
    chown(host.path("extensions.load"), Some(12345), None).unwrap();
    host.examine(&[]).must_say("autoload file", "warning", "belongs to user 12345, who can", "chown root:root ");
}

#[test]
fn every_certificate_is_judged_and_its_chain_shown() {
    for (name, kind) in CertificateKind::ALL {
        let (identity, bundle) = kind.make();
        let host = Host::with_server(|server| server.identity = identity);
        host.file("ca.pem", &bundle);
        let examined = host.examine(&[]);
        let message = match name {
            "good" | "common-name" | "self-signed" | "self-signed-authority" => {
                examined.must_say("tls handshake", "ok", "the server's certificate is trusted", "");
                continue;
            }
            "wrong-name" => "for another name than tls_hostname",
            "expired" => "has expired",
            "not-yet-valid" => "not valid yet",
            "other-issuer" => "not issued by an authority in tls_server_certs",
            _ => "not meant for TLS servers",
        };
        examined.must_say("tls handshake", "failure", message, "see that --tls_hostname is the certificate's name");
        let chain = examined.of("tls handshake")[0]["details"].to_string();
        assert!(chain.contains(", issued by CN="), "{name}: {chain}");
        examined.must_say("config endpoint", "skipped", "there is no connection to the server", "");
        assert_eq!(host.server.requests().len(), 0, "{name}");
    }
}

#[test]
fn a_certificate_that_ends_soon_is_a_warning() {
    let authority = Authority::new("short");
    let soon = time::OffsetDateTime::now_utc() + Duration::from_secs(10 * 24 * 3600 + 3600);
    let host = Host::with_server(|server| {
        server.identity = authority.issue_server_with(|params| params.not_after = soon);
    });
    host.file("ca.pem", &authority.cert_pem());
    host.examine(&[]).must_say("tls handshake", "warning", "ends in 10 days", "renew it on the server");
}

#[test]
fn what_is_no_tls_server_is_said() {
    let host = Host::with_server(|server| server.tls = false);
    let examined = host.examine(&[]);
    examined.must_say("tls handshake", "failure", "does not speak TLS on this port", "");
    examined.must_say("tcp connection", "ok", "accepts connections", "");
}

#[test]
fn a_client_certificate_that_the_server_wants_is_named() {
    let wanting = |server: &mut server::Options| server.client_ca_pem = Some(default_authority().cert_pem());
    let examined = Host::with_server(wanting).examine(&[]);
    examined.must_say("config endpoint", "failure", "it wants a client certificate", "");
    let mut host = Host::with_server(wanting);
    client(&mut host, |cert, key| (cert, key));
    let examined = host.examine(&[]);
    examined.must_say("client certificate", "ok", "belong together", "");
    examined.must_say("config endpoint", "ok", "rejects a node key that is invalid", "");
}

#[test]
fn the_proxy_is_tried() {
    let through = |behaviour| {
        let proxy = Proxy::start(behaviour).unwrap();
        let mut host = Host::new();
        host.flag("proxy_hostname", &format!("me:p4ssw0rd@127.0.0.1:{}", proxy.port()));
        let examined = host.examine(&[]);
        assert!(!examined.text.contains("p4ssw0rd"), "{}", examined.text);
        examined
    };
    let examined = through(Behaviour::Tunnel);
    examined.must_say("proxy", "ok", "connects to localhost:", "");
    examined.must_say("config endpoint", "ok", "rejects a node key", "");
    let examined = through(Behaviour::Refuse(407));
    examined.must_say("proxy", "failure", "407", "user:password@");
    examined.must_say("tls handshake", "skipped", "the proxy gives no connection", "");
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut host = Host::new();
    host.flag("proxy_hostname", &nobody.to_string());
    host.examine(&[]).must_say("proxy", "failure", "Connection refused", "--proxy_hostname is right");
    host.flag("proxy_hostname", "no-such-proxy.invalid");
    host.examine(&[]).must_say(
        "name resolution",
        "failure",
        "no-such-proxy.invalid can't be resolved",
        "--proxy_hostname",
    );
}

#[test]
fn an_enrollment_is_tried_when_it_is_asked_for() {
    let host = Host::new();
    let examined = host.examine(&["--enroll"]);
    examined.must_say("enroll endpoint", "ok", "enrolled; the key is not kept, and the server knows a host", "");
    assert!(host.server.node_keys().iter().all(|key| !examined.text.contains(key.as_str())));
    let body = host.server.requests_to(Endpoint::Enroll).remove(0).json.unwrap();
    assert!(body["host_identifier"].as_str().unwrap().ends_with("-doctor"), "{body}");
    host.file("secret", "another");
    let examined = host.examine(&["--enroll"]);
    examined.must_say(
        "enroll endpoint",
        "failure",
        "refuses the enrollment",
        "see that the enroll secret is the server's",
    );
}

#[test]
fn no_request_asks_for_what_is_not_the_doctor_s() {
    let host = Host::new();
    let _ = host.examine(&[]);
    for request in host.server.requests() {
        match request.endpoint {
            Endpoint::Enroll => assert_eq!((request.method.as_str(), request.body.len()), ("GET", 0)),
            _ => assert_eq!(request.json.unwrap()["node_key"], "osquery-remote-tls-doctor-invalid-node-key"),
        }
    }
    let log = host.server.requests_to(Endpoint::Log).remove(0).json.unwrap();
    assert_eq!((&log["log_type"], log["data"].as_array().unwrap().len()), (&json!("status"), 1));
    assert_eq!(host.server.node_keys().len(), 0);
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
    examined.must_say(check, "failure", "osqueryd runs without the extension", "osqueryd's log");
    assert!(!examined.text.contains("--enroll_secret_path,"), "{}", examined.text);
    examined.must_say(
        check,
        "warning",
        "flags that the flag file doesn't give: --enroll_tls_endpoint, --config_tls_endpoint",
        "gone at its next start",
    );
    // What the flag file leaves out comes from osqueryd.
    examined.must_say("server trust", "ok", &bundle, "");
    osqueryd.store_put("configurations", "nodeKey", "a-key-that-nobody-knows");
    let examined = examine(&file(""), &own, &[]);
    examined.must_say("config endpoint", "warning", "does not accept the node key that this host has", "enrolls anew");
    assert!(!examined.text.contains("a-key-that-nobody-knows"), "{}", examined.text);
    assert_eq!(osqueryd.store_get("configurations", "nodeKey").as_deref(), Some("a-key-that-nobody-knows"));
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
    examined.must_say("running osqueryd", "failure", "uses none of its plugins", "restart osqueryd");
    examined.must_say("running osqueryd", "warning", "--config_plugin", "restart osqueryd");
}

#[test]
fn an_osqueryd_that_hangs_is_said() {
    let rig = Setup::new().start();
    let flagfile = rig.directory.path().join("osquery.flags");
    fs::write(&flagfile, format!("--extensions_socket={}\n", rig.osqueryd.socket().display())).unwrap();
    rig.osqueryd.hang(true);
    let examined = examine(&flagfile, Path::new(NO_SUCH), &[]);
    examined.must_say("socket", "failure", "did not answer options within 10 s", "osqueryd hangs");
    rig.osqueryd.hang(false);
}

/// A journal's text: so many lines.
fn lines(count: u64) -> String {
    (0..count).map(|n| format!("{}\n", line(n))).collect()
}

/// An entry of the file of lines that were set aside, of so many days ago.
fn set_aside(days: u64, reason: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let time = now - days * 24 * 3600;
    json!({"time": time, "stream": "results", "reason": reason, "size": 3, "line": "x y"}).to_string() + "\n"
}

const BUFFERS: &str = "buffers";
const FIRST: &str = "remote_tls/results/0000000000000000.ndjson";

#[test]
fn what_waits_in_the_buffers_is_said() {
    let host = Host::new();
    host.examine(&[]).must_say(BUFFERS, "ok", "is not there: the first line makes it", "");
    host.file(FIRST, &lines(7));
    host.examine(&[]).must_say(BUFFERS, "ok", "remote_tls: 7 result lines wait", "");
    // Another file, a whole query of two lines, and what is still being written.
    host.file(
        "remote_tls/results/0000000000000007.ndjson",
        "{\"diffResults\":{\"removed\":[],\"added\":[{},{}]}}\n{\"n",
    );
    // Three are done with.
    let offset = lines(3).len();
    host.file("remote_tls/results/cursor", &format!("{:020} {offset:020} {:020} {:020}\n", 0, 0, 3));
    host.file("remote_tls/statuses/0000000000000000.ndjson", &lines(1));
    host.file("remote_tls/distributed/0000000000000000.ndjson", &lines(2));
    host.file("remote_tls/pending/0000000000000000.ndjson", &lines(3));
    let before = state(&host.path("remote_tls"));
    let all = "remote_tls: 6 result lines wait, 1 status lines wait, 2 results of distributed queries wait, 3 status calls \
               that no worker has taken wait";
    host.examine(&[]).must_say(BUFFERS, "ok", all, "");
    assert!(before == state(&host.path("remote_tls")), "something changed");
}

/// A damage, and what is said of it: level, message and remedy.
type BufferCase = (fn(&Host), &'static str, &'static str, &'static str);

const BUFFER_CASES: &[BufferCase] = &[
    (|host| _ = host.file("remote_tls", ""), "failure", "remote_tls is no directory", "move it away"),
    (
        |host| _ = host.file("remote_tls/results", "no directory"),
        "failure",
        "remote_tls/results can't be read: Not a directory",
        "look at the disk's health",
    ),
    (
        |host| fs::create_dir_all(host.path(FIRST)).unwrap(),
        "failure",
        "0000000000000000.ndjson is no regular file",
        "look at the disk's health",
    ),
    (
        |host| {
            host.file(FIRST, &lines(2));
            host.file("remote_tls/results/cursor", "\0\0\0 garbage");
        },
        "ok",
        "2 result lines wait",
        "",
    ),
    (
        |host| _ = host.file("remote_tls/results/0000000000000000.ndjson.damaged-1", ""),
        "warning",
        "remote_tls/results: 0000000000000000.ndjson.damaged-1",
        "they are text, a line each",
    ),
    (
        |host| _ = host.file("remote_tls/statuses.damaged-1", ""),
        "warning",
        "foreign or damaged files were moved aside in ",
        "read them, or delete them",
    ),
    (
        |host| {
            let text = set_aside(2, "it is the first") + &set_aside(1, "it is no JSON");
            host.file("remote_tls/rejected.ndjson", &(text + "{\"time\":half a line"));
        },
        "warning",
        "lines were set aside and never sent; the newest one, of results: it is no JSON",
        "remote_tls/rejected.ndjson",
    ),
    (|host| _ = host.file("remote_tls/rejected.ndjson", &set_aside(8, "it is old")), "ok", "remote_tls: empty", ""),
    (
        |host| fs::create_dir_all(host.path("remote_tls/rejected.ndjson")).unwrap(),
        "failure",
        "the lines that were set aside in ",
        "run the doctor as root",
    ),
    (
        |host| _ = host.file("remote_tls/results.sqlite", ""),
        "warning",
        "an earlier version has left its buffers in ",
        "read them with sqlite3",
    ),
    (
        |host| {
            host.file(FIRST, &lines(1));
            host.file("remote_tls.flags", &format!("--buffer_min_free_bytes={}\n", u64::MAX));
        },
        "warning",
        "less than buffer_min_free_bytes",
        "make space",
    ),
];

#[test]
fn what_is_wrong_with_the_buffers_is_said() {
    for (spoil, level, message, remedy) in BUFFER_CASES {
        let host = Host::new();
        spoil(&host);
        let examined = host.examine(&[]);
        examined.must_say(BUFFERS, level, message, remedy);
        assert_eq!(examined.of(BUFFERS).len(), 1, "{}", examined.text);
    }
}

#[test]
fn a_buffer_that_is_half_full_is_a_warning() {
    let mut host = Host::new();
    host.flag("buffered_log_max", "10");
    host.file(FIRST, &lines(5));
    host.file("remote_tls/distributed/0000000000000000.ndjson", &lines(9));
    host.examine(&[]).must_say(BUFFERS, "ok", "5 result lines wait", "");
    host.file(FIRST, &lines(6));
    host.examine(&[]).must_say(
        BUFFERS,
        "warning",
        "6 result lines wait: more than half of --buffered_log_max",
        "see why they are not delivered",
    );
}
