//! Whole queries in one call: the server gets the event lines that the built-in logger would have sent, byte for byte.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use testkit::server::Endpoint;

use crate::rig::{Host, Real, real};

/// What differs from one run to the next with every logger; the values are masked in both.
const MASKED: [&str; 3] = ["calendarTime", "unixTime", "counter"];

/// Columns of each type, and text that JSON must escape.
fn config(host: &Host) -> Value {
    let files = format!(
        "SELECT filename, size, size / 3.0 AS third, 1e300 AS large, -0.5 AS negative, NULL AS missing, '' AS empty, \
         '17' AS text, 'ü \"q\" \\ / <' || char(9, 10, 127) AS escaped FROM file \
         WHERE path LIKE '{}/%' ORDER BY filename",
        host.path("watched").display()
    );
    json!({
        "decorators": {
            "load": ["SELECT 'a \"load\"' AS site, 7 AS floor"],
            "always": ["SELECT 1.25 AS ratio"]
        },
        "schedule": {
            "files": {"query": files, "interval": 1},
            "only_added": {"query": files, "interval": 1, "removed": false},
            "whole": {"query": files, "interval": 1, "snapshot": true}
        }
    })
}

/// A directory's files, as (name, bytes). From each to the next, the query's difference is what the test is about.
const CONTENTS: [&[(&str, usize)]; 5] = [
    &[("a", 1), ("b", 22), ("c", 333)],
    // One goes, one changes, one comes.
    &[("a", 1), ("b", 2), ("d ü", 4444)],
    &[],
    &[("z", 0)],
    &[("a", 10), ("b", 10), ("c", 10), ("z", 10)],
];

/// Lines of the two differential queries at each of them: (`files`, `only_added`).
const LINES: [(usize, usize); 5] = [(3, 3), (4, 2), (3, 0), (1, 1), (5, 4)];

/// Swaps what `watched` is in one step, so that no run sees a half of it.
fn show(host: &Host, number: usize) {
    let (directory, link) = (host.path(&format!("contents-{number}")), host.path("next"));
    fs::create_dir(&directory).unwrap();
    for (name, size) in CONTENTS[number] {
        fs::write(directory.join(name), "x".repeat(*size)).unwrap();
    }
    symlink(&directory, &link).unwrap();
    fs::rename(&link, host.path("watched")).unwrap();
}

/// The result lines as they were sent, in order, without those of the query `whole` but its first.
fn sent(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    for request in host.server.requests_to(Endpoint::Log) {
        let is_result = request.json.as_ref().is_some_and(|body| body["log_type"] == "result");
        if request.answer_status == 200 && is_result {
            lines.extend(data(&request.body));
        }
    }
    let (whole, mut others): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.contains("\"name\":\"whole\""));
    others.extend(whole.into_iter().next());
    others
}

/// The elements of a log request's `data`, as they are written.
fn data(body: &[u8]) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        data: Vec<&'a RawValue>,
    }
    let body: Body<'_> = serde_json::from_slice(body).unwrap();
    body.data.into_iter().map(|line| line.get().to_owned()).collect()
}

fn masked(line: &str) -> String {
    let mut line = line.to_owned();
    for name in MASKED {
        let name = format!("\"{name}\":");
        let Some(start) = line.find(&name).map(|at| at + name.len()) else { continue };
        let text = usize::from(line[start..].starts_with('"'));
        let length = line[start + text..].find(if text == 1 { '"' } else { ',' }).unwrap();
        line.replace_range(start..start + text + length + text, "*");
    }
    line
}

/// What reaches the server of all the differences, with these plugins and flags.
fn lines(real: &Real, plugins: &str, flags: &[(&str, &str)]) -> Vec<String> {
    let host = Host::new(real, json!({}));
    host.server.set_config(config(&host));
    host.plugins(plugins);
    flags.iter().for_each(|(name, value)| host.flag(name, value));
    let mut expected = 0;
    for (number, (both, added)) in LINES.into_iter().enumerate() {
        show(&host, number);
        if number == 0 {
            host.start();
        }
        // And the snapshot's one.
        expected += both + added + usize::from(number == 0);
        host.wait("the lines of a difference", || (sent(&host).len() >= expected).then_some(()));
    }
    if plugins == "remote_tls" {
        assert_eq!(event_type(&host), "false", "it is whole queries that this is about");
    }
    host.stop();
    let sent = sent(&host);
    assert_eq!(sent.len(), expected, "{sent:#?}");
    // Two queries: their order among each other is chance, the order within each is not.
    let of = |name: &str| {
        let name = format!("\"name\":\"{name}\"");
        sent.iter().filter(move |line| line.contains(&name)).map(|line| masked(line)).collect::<Vec<_>>()
    };
    [of("files"), of("only_added"), of("whole")].concat()
}

fn event_type(host: &Host) -> String {
    let rows = host.sql("SELECT value FROM osquery_flags WHERE name = 'logger_event_type'");
    rows[0]["value"].as_str().unwrap().to_owned()
}

fn the_same_bytes(flags: &[(&str, &str)]) {
    let Some(real) = real() else { return };
    let built_in = lines(&real, "tls", flags);
    let ours = lines(&real, "remote_tls", flags);
    for (ours, built_in) in ours.iter().zip(&built_in) {
        assert_eq!(ours, built_in, "with {flags:?}");
    }
    assert_eq!(ours.len(), built_in.len());
}

#[test]
fn lines_are_those_of_the_built_in_logger() {
    the_same_bytes(&[]);
}

#[test]
fn lines_are_those_of_the_built_in_logger_with_decorations_at_the_top() {
    the_same_bytes(&[("decorations_top_level", "true")]);
}

#[test]
fn lines_are_those_of_the_built_in_logger_with_numbers() {
    the_same_bytes(&[("logger_numerics", "true")]);
}

#[test]
fn lines_are_those_of_the_built_in_logger_with_numbers_and_decorations_at_the_top() {
    the_same_bytes(&[("logger_numerics", "true"), ("decorations_top_level", "true")]);
}

const ONE: &str = "SELECT random() AS r";

#[test]
fn a_second_logger_keeps_its_event_lines() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, json!({"schedule": {"one": {"query": ONE, "interval": 1}}}));
    host.flag("logger_plugin", "filesystem,remote_tls");
    host.start();
    host.more_results(2);
    assert_eq!(event_type(&host), "true");
    host.stop();
    let lines = fs::read_to_string(host.path("logs/osqueryd.results.log")).unwrap();
    assert!(!lines.is_empty() && !lines.contains("diffResults"), "{lines}");
}

#[test]
fn what_the_server_says_of_event_lines_holds() {
    let Some(real) = real() else { return };
    for said in [true, false] {
        let schedule = json!({"one": {"query": ONE, "interval": 1}});
        let host = Host::new(&real, json!({"options": {"logger_event_type": said}, "schedule": schedule}));
        host.start();
        let line = host.wait("a line", || host.server.results().into_iter().next());
        assert_eq!(event_type(&host), said.to_string());
        assert!(line.get("columns").is_some() == said && line.get("diffResults").is_some() != said, "{said}: {line}");
        host.stop();
    }
}

#[test]
fn a_setting_of_ours_switches_it_off() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, json!({"schedule": {"one": {"query": ONE, "interval": 1}}}));
    host.own_flags("--logger_expand_events=false\n");
    host.start();
    let line = host.wait("a line", || host.server.results().into_iter().next());
    assert_eq!(event_type(&host), "true");
    assert!(line["columns"].is_object(), "{line}");
    host.stop();
}
