//! `flare`: a bundle for those who help, without a secret in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use testkit::server::{Answer, Endpoint};

use super::run;
use crate::rig::{Rig, SECRET, Setup};

/// The files of a bundle by their names, without its directory.
fn unpack(path: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(path).unwrap()));
    let part = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().into_owned();
        let directory = name.parent().unwrap().to_str().unwrap();
        assert!(directory.starts_with("osquery-remote-tls-flare-") && !directory.contains('/'), "{directory}");
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name.file_name().unwrap().to_str().unwrap().to_owned(), text)
    };
    archive.entries().unwrap().map(part).collect()
}

/// A host with much to hide.
fn rig(key: &str) -> Rig {
    let setup = Setup::new()
        .flag("aws_secret_access_key", "planted-cloud-key")
        .flag("host_identifier", "specified")
        .flag("specified_identifier", "host\u{1b}[2J-7");
    let log = setup.path().join("own.log");
    let buffers = setup.path().join("remote_tls");
    let rig = setup
        .own_flag(&format!("--log_file={}", log.display()))
        .own_flag(&format!("--buffer_path={}", buffers.display()))
        .start();
    rig.server.set_next_node_key(key);
    rig.config();
    rig.log("no JSON, planted-words-of-a-line");
    rig.settled();
    rig.server.always(Endpoint::Log, Some(Answer::status(500, format!("no node {key}, {SECRET}"))));
    rig.log("{\"n\":1,\"x\":\"planted-words-of-a-line\"}");
    rig.said("result lines can't be delivered");
    rig
}

#[test]
fn a_bundle_has_all_that_helps_and_nothing_secret() {
    let key = "node/key+with \"odd\" characters";
    let rig = rig(key);
    let path = rig.directory.path().join("flare.tar.gz");
    let output = format!("--output={}", path.display());
    let said = run(&rig, &["flare", &output]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let parts = unpack(&path);
    let names: Vec<&str> = parts.keys().map(String::as_str).collect();
    let wanted = [
        "buffers.txt",
        "doctor.txt",
        "flags.txt",
        "log.txt",
        "status.json",
        "status.txt",
        "tables.json",
        "versions.txt",
    ];
    assert_eq!(names, wanted);
    for name in names {
        assert!(said.out.contains(&format!("{name} ")), "{name} is not named in {}", said.out);
        let text = &parts[name];
        for secret in [SECRET, key, "node/key", "node%2Fkey", "odd", "planted"] {
            assert!(!text.contains(secret), "{name} shows {secret:?}:\n{text}");
        }
        assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{name}: {text:?}");
    }
    for (name, words) in [
        ("doctor.txt", " failed\n"),
        ("status.txt", "endpoint "),
        ("flags.txt", "--aws_secret_access_key=<hidden>\n"),
        ("flags.txt", &*format!("--tls_hostname={}\n", rig.server.hostname())),
        ("flags.txt", "--buffer_path="),
        ("log.txt", "no node <hidden>, <hidden>"),
        ("buffers.txt", " results/writer.lock\n"),
        ("versions.txt", concat!("extension   ", env!("CARGO_PKG_VERSION"), "\n")),
    ] {
        assert!(parts[name].contains(words), "{words:?} is missing in {name}:\n{}", parts[name]);
    }
    let tables: Value = serde_json::from_str(&parts["tables.json"]).unwrap();
    assert_eq!(tables["remote_tls_endpoints"][2]["last_status"], "500");
    assert_eq!(tables["remote_tls_rejected"][0]["reason"], "it is no JSON");

    let again = run(&rig, &["flare", &output]);
    assert_eq!((again.code, again.out.as_str()), (1, ""), "nothing is overwritten");
}

#[test]
fn a_bundle_is_made_where_nothing_runs() {
    let rig = Rig::start();
    rig.osqueryd.kill_all();
    let path = rig.directory.path().join("flare.tar.gz");
    let said = run(&rig, &["flare", "--output", path.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{}", said.err);
    let parts = unpack(&path);
    assert!(parts["tables.json"].contains("can't connect to osqueryd's extension manager"), "{}", parts["tables.json"]);
    assert!(parts["status.txt"].contains("does not answer"), "{}", parts["status.txt"]);
}
