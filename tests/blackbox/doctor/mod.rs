//! `osquery-remote-tls doctor`: a host where all is well, and each fault planted: the one line that is said of it, and the
//! remedy. `FAULTS` of each module is the table; among them are the cases in which the first version's doctor said all is well, or
//! named a wrong remedy.

mod buffers;
mod connection;
mod files;
mod flags;
mod running;
mod server;
mod well;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use osquery_remote_tls::doctor::Check;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::certs::default_authority;
use testkit::server::{Options, Server};

use crate::rig::{BINARY, SECRET, line, mode};

const NO_SUCH: &str = "/no/such";

/// A host with a server and without osqueryd: what a check sees can be changed before the doctor looks.
struct Host {
    directory: TempDir,
    server: Server,
    flags: BTreeMap<String, String>,
    /// More lines of osqueryd's flag file.
    lines: String,
    is_flagfile_given: bool,
    /// What else the fault needs, until the host is gone.
    kept: Vec<Box<dyn std::any::Any>>,
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

    fn with_server(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options { enroll_secret: Some(SECRET.to_owned()), ..Options::default() };
        change(&mut options);
        let server = Server::start(options).unwrap();
        let mut host = Self {
            directory: tempfile::tempdir().unwrap(),
            flags: BTreeMap::new(),
            lines: String::new(),
            is_flagfile_given: false,
            kept: Vec::new(),
            server,
        };
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
        examine(&self.flagfile(), &self.path("remote_tls.flags"), arguments)
    }

    /// Writes osqueryd's flag file: what was set, and more lines.
    fn flagfile(&self) -> PathBuf {
        let path = self.path("osquery.flags");
        if self.is_flagfile_given {
            return path;
        }
        let lines: String = self.flags.iter().map(|(name, value)| format!("--{name}={value}\n")).collect();
        self.file("osquery.flags", &format!("{lines}{}", self.lines))
    }

    /// The flag file has these bytes and nothing else.
    fn raw_flagfile(&mut self, bytes: &[u8]) {
        fs::write(self.path("osquery.flags"), bytes).unwrap();
        self.is_flagfile_given = true;
    }
}

/// What the doctor says: as text, and as the findings of its JSON.
fn examine(flagfile: &Path, own: &Path, arguments: &[&str]) -> Examined {
    let mut examined = look(flagfile, own, arguments);
    examined.text = run_doctor(flagfile, own, arguments).1;
    examined
}

/// The same, without the text: half the time.
fn look(flagfile: &Path, own: &Path, arguments: &[&str]) -> Examined {
    let (code, json) = run_doctor(flagfile, own, &[arguments, &["--json"]].concat());
    let text = json.clone();
    let json: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
    let findings = json["findings"].as_array().unwrap().clone();
    let count = |level: &str| findings.iter().filter(|finding| finding["level"] == level).count();
    let counts = [count("ok"), count("skipped"), count("warning"), count("failure")];
    assert_eq!(
        json["counts"],
        json!({"ok": counts[0], "skipped": counts[1], "warnings": counts[2], "failures": counts[3]})
    );
    let mut said: Vec<&str> = findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    said.dedup();
    if !arguments.contains(&"--quiet") {
        assert_eq!(said, Check::ALL.map(|check| check.name()), "each check has its say, in their order: {text}");
    }
    let before = arguments.contains(&"--before");
    let expected = match (counts[3] > 0, counts[2] > 0) {
        (true, _) => 1,
        (false, true) if !before => 2,
        _ => 0,
    };
    assert_eq!(code, expected, "{text}");
    Examined { code, text, findings }
}

fn run_doctor(flagfile: &Path, own: &Path, arguments: &[&str]) -> (i32, String) {
    let mut doctor = Command::new(BINARY);
    doctor.args(["doctor", "--flagfile"]).arg(flagfile).arg("--own_flagfile").arg(own);
    let output = doctor.args(arguments).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(stderr, "", "{stdout}");
    assert!(!stdout.contains(SECRET), "the secret is shown:\n{stdout}");
    (output.status.code().unwrap(), stdout)
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
    }

    /// What is not well, but for an osqueryd that a test doesn't have.
    fn problems(&self) -> Vec<&Value> {
        let is_problem = |finding: &&Value| {
            let absent = finding["message"].as_str().unwrap().starts_with("osqueryd does not run");
            ["warning", "failure"].contains(&finding["level"].as_str().unwrap()) && !absent
        };
        self.findings.iter().filter(is_problem).collect()
    }

    /// This is all that is not well.
    fn must_say_only(&self, check: &str, level: &str, message: &str, remedy: &str) {
        self.says_only(check, level, message, remedy).unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    fn says_only(&self, check: &str, level: &str, message: &str, remedy: &str) -> Result<(), String> {
        let problems = self.problems();
        let has = |finding: &Value, name: &str, words: &str| finding[name].as_str().unwrap_or_default().contains(words);
        match problems.as_slice() {
            [one]
                if one["check"] == check
                    && one["level"] == level
                    && has(one, "message", message)
                    && has(one, "remedy", remedy) =>
            {
                Ok(())
            }
            _ => Err(format!("not the one {level} {check:?} with {message:?} and {remedy:?}: {problems:#?}")),
        }
    }
}

/// A planted fault: the check that finds it, how grave it is, what is said and what is to be done.
struct Fault {
    check: &'static str,
    level: &'static str,
    message: &'static str,
    remedy: &'static str,
    /// The doctor's arguments.
    arguments: &'static [&'static str],
    plant: fn(&mut Host),
}

const fn fault(
    check: &'static str,
    level: &'static str,
    message: &'static str,
    remedy: &'static str,
    plant: fn(&mut Host),
) -> Fault {
    Fault { check, level, message, remedy, arguments: &[], plant }
}

impl Fault {
    const fn with(self, arguments: &'static [&'static str]) -> Self {
        Self { arguments, ..self }
    }
}

/// Plants each fault on a host of its own: exactly one line is not well.
fn find(faults: &[Fault]) {
    let mut wrong = Vec::new();
    for fault in faults {
        let mut host = Host::new();
        (fault.plant)(&mut host);
        let examined = look(&host.flagfile(), &host.path("remote_tls.flags"), fault.arguments);
        wrong.extend(examined.says_only(fault.check, fault.level, fault.message, fault.remedy).err());
    }
    assert!(wrong.is_empty(), "{} of {} are not found:\n{}", wrong.len(), faults.len(), wrong.join("\n"));
}

#[test]
fn there_are_as_many_planted_faults_as_operators_make() {
    let tables = [flags::FAULTS, files::FAULTS, connection::FAULTS, server::FAULTS, buffers::FAULTS];
    let of_hosts: usize = tables.iter().map(|table| table.len()).sum();
    assert!(of_hosts + running::FAULTS.len() > 100, "{of_hosts} and {}", running::FAULTS.len());
    let mut said: Vec<_> = tables.iter().flat_map(|table| table.iter()).map(|fault| fault.message).collect();
    said.sort_unstable();
    said.dedup();
    assert_eq!(said.len(), of_hosts, "two faults have one message");
}

/// The beginning of a copy of the extension, whose mode and owner others don't see.
fn own_copy(host: &Host) -> PathBuf {
    let path = host.path("remote_tls.ext");
    fs::remove_file(&path).unwrap();
    let beginning = &fs::read(BINARY).unwrap()[..64];
    fs::write(&path, beginning).unwrap();
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

/// The text of a journal with `count` lines.
fn lines(count: u64) -> String {
    (0..count).map(|n| format!("{}\n", line(n))).collect()
}
