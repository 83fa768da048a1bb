//! Words stay words: what servers, certificates, files and lines say does not become lines, colours or secrets shown.

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Setup, at_once, line};

/// What forges a line, erases a screen, and turns text around.
const FORGED: &str = "no\r\nE0101 00:00:00.000000 1 forged.cpp:1] forged\u{1b}[2J\u{9b}31m\u{202e}txet\u{2028}next";

/// No line of this begins with what was forged, and nothing of the rest got through.
fn is_plain(text: &str) {
    for piece in ["\nE0101", "\r", "\u{1b}", "\u{9b}", "\u{202e}", "\u{2028}"] {
        assert!(!text.contains(piece), "{piece:?} got through: {text:?}");
    }
}

/// Issue 15: newlines and escape sequences of a server's error came into osqueryd's log as lines of its own.
#[test]
fn a_server_s_words_in_an_answer_to_osqueryd_stay_words() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").flag("distributed_tls_max_attempts", "1").start();
    rig.config();
    let error = || [Answer::status(500, json!({"error": FORGED}).to_string())];
    rig.server.script(Endpoint::Config, error());
    rig.server.script(Endpoint::DistributedRead, error());
    for (registry, action) in [("config", "genConfig"), ("distributed", "getQueries")] {
        let outcome = rig.call(registry, &[("action", action)]);
        assert!(outcome.code == 1 && outcome.message.contains("forged.cpp"), "{}", outcome.message);
        assert!(!outcome.message.contains('\n'), "{}", outcome.message);
        is_plain(&outcome.message);
    }
    let message = rig.call("config", &[("action", "genPack"), ("name", FORGED), ("value", "")]).message;
    assert!(!message.contains('\n') && message.contains("forged"), "{message}");
    is_plain(&message);
}

/// Issue 15, the same words in our own log.
#[test]
fn a_server_s_words_in_the_log_and_the_tables_stay_words() {
    let setup = Setup::new();
    let file = setup.path().join("own.log");
    let rig = setup.own_flag(&format!("--log_file={}", file.display())).start();
    rig.config();
    rig.server.script(Endpoint::Log, [Answer::status(500, json!({"error": FORGED}).to_string())]);
    rig.log(&line(1));
    rig.said("forged.cpp");
    assert_eq!(rig.delivered(1), [1]);
    is_plain(&rig.stderr());
    is_plain(&std::fs::read_to_string(&file).unwrap());
}

/// Issue 15: a decorator made a log line of 900 KB.
#[test]
fn a_log_line_is_bounded_whatever_it_is_about() {
    let rig = Setup::new().start();
    let sql = format!("SELECT nonsense {}", "x".repeat(900_000));
    rig.server.set_config(json!({"schedule": {}, "decorators": {"load": [sql]}, "options": {"verbose": false}}));
    rig.config();
    let status = json!([{"s": 0, "f": "f", "i": 7, "m": "m", "h": "h", "c": "c", "u": 4_000_000_000_u32}]).to_string();
    rig.call("logger", &[("status", "true"), ("log", &status)]);
    rig.said("a decorator fails");
    let longest = rig.stderr().lines().map(str::len).max().unwrap();
    assert!(longest < 20_000, "a line of {longest} bytes");
}

/// Issue 15: a dump made a log line of 48 MB.
#[test]
fn a_dump_is_bounded_and_shows_no_key() {
    let rig = Setup::new().flag("verbose", "true").flag("tls_dump", "true").start();
    rig.config();
    let results = json!({"queries": {"q": [{"c": "x".repeat(3 << 20)}]}}).to_string();
    rig.call("distributed", &[("action", "writeResults"), ("results", &results)]);
    rig.said("tls_dump: distributed write request");
    let stderr = rig.stderr();
    let longest = stderr.lines().map(str::len).max().unwrap();
    assert!(longest < 200_000, "a line of {longest} bytes");
    assert!(!stderr.contains(&rig.stored_key().unwrap()), "{stderr}");
}

#[test]
fn a_password_in_a_flag_is_masked() {
    at_once(
        [
            ("tls_hostname", "https://me:hunter2-of-the-server@localhost"),
            ("tls_hostname", "me:hunter2-of-the-server@localhost:1"),
            ("proxy_hostname", "http://me:hunter2-of-the-server@localhost"),
            ("proxy_hostname", "http://me:hunter2-of-the-server@http://localhost"),
        ],
        |(flag, value)| {
            let rig = Setup::new().flag(flag, value).flag("config_tls_max_attempts", "1").start();
            let message = rig.gen_config().message;
            assert!(message.contains(flag), "{message}");
            rig.osqueryd.wait("the log", LIMIT, || rig.stderr().contains(flag).then_some(()));
            assert!(!format!("{message}{}", rig.stderr()).contains("hunter2"), "{message}\n{}", rig.stderr());
        },
    );
}

#[test]
fn lines_of_our_own_flag_file_are_never_shown() {
    let setup = Setup::new();
    let shadow = setup.file("shadow", "root:$6$salt$hash-of-root:19000:0:::\n--hash-of-another\n-third-hash=x\n");
    let output = std::process::Command::new(crate::rig::BINARY)
        .args(["doctor", "--own_flagfile"])
        .arg(&shadow)
        .output()
        .unwrap();
    let rig = setup.osqueryd(|options| {
        options.env.push(("REMOTE_TLS_FLAGFILE".to_owned(), shadow.display().to_string()));
    });
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    drop(rig);
    assert!(shown.contains("shadow"), "{shown}");
    for hash in ["hash-of-root", "hash-of-another", "third-hash"] {
        assert!(!shown.contains(hash), "{hash} is shown: {shown}");
    }
}
