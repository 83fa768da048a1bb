//! `metrics_file`: a file for the textfile collector of Prometheus' node_exporter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, SECRET, Setup, line, mode, signal};

/// A sample's labels, and its value.
type Sample = (BTreeMap<String, String>, f64);

/// The families of a text by their names; a text that is not in the format is an error of the test.
fn parse(text: &str) -> BTreeMap<String, Vec<Sample>> {
    assert!(text.ends_with('\n'), "{text:?}");
    let mut families: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(help) = lines.next() {
        let (name, words) =
            help.strip_prefix("# HELP ").unwrap_or_else(|| panic!("no HELP: {help}")).split_once(' ').unwrap();
        assert!(!words.is_empty());
        let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).expect("its TYPE");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(["counter", "gauge"].contains(&kind), "{kind}");
        let mut samples = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            samples.push(sample(line.strip_prefix(name).unwrap_or_else(|| panic!("{line} below {name}"))));
        }
        assert!(families.insert(name.to_owned(), samples).is_none(), "{name} comes twice");
    }
    families
}

fn sample(mut rest: &str) -> Sample {
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (name, behind) = rest.split_once("=\"").unwrap();
            let (value, behind) = quoted(behind);
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(labels.insert(name.to_owned(), value).is_none());
            rest = &behind[1..];
            if behind.starts_with('}') {
                break;
            }
            assert!(behind.starts_with(','), "{behind}");
        }
    }
    (labels, rest.strip_prefix(' ').unwrap().parse().unwrap())
}

/// What stands before the closing quote, and what behind it.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => match characters.next().unwrap().1 {
                'n' => value.push('\n'),
                escaped @ ('\\' | '"') => value.push(escaped),
                other => panic!("\\{other} is no escape"),
            },
            _ => value.push(character),
        }
    }
    panic!("no closing quote: {text}");
}

/// The value of the sample that has this label, or of the only one.
fn value(families: &BTreeMap<String, Vec<Sample>>, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let samples = &families[&format!("osquery_remote_tls_{name}")];
    let has = |sample: &&Sample| labels.iter().all(|(name, value)| sample.0[*name] == *value);
    let mut found = samples.iter().filter(has);
    let (_, value) = found.next()?;
    assert!(found.next().is_none(), "{name} {labels:?}");
    Some(*value)
}

/// A directory as a collector's: writable for root alone, readable for all.
fn collector(setup: &Setup) -> PathBuf {
    let directory = setup.path().join("textfile");
    fs::create_dir(&directory).unwrap();
    mode(&directory, 0o755);
    directory
}

/// The metrics that a document of ours names.
fn named_in(document: &str) -> BTreeSet<&'static str> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap().leak();
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let names = text.match_indices("osquery_remote_tls_").map(|(at, _)| {
        let length = text[at..].bytes().take_while(|byte| is_part(*byte)).count();
        &text[at..at + length]
    });
    names.collect()
}

/// A fresh file: a worker writes one as soon as it begins.
fn fresh(rig: &Rig, path: &Path) -> String {
    let _ = fs::remove_file(path);
    signal(rig.pid(), rustix::process::Signal::HUP);
    rig.osqueryd.wait("the metrics", LIMIT, || fs::read_to_string(path).ok())
}

#[test]
fn the_numbers_of_the_tables_are_in_a_file_that_prometheus_takes() {
    let hostile = "a\"} 1\nb\\c\u{1b}[2J\u{e9}";
    let setup = Setup::new().flag("host_identifier", "specified").flag("specified_identifier", hostile);
    let path = collector(&setup).join("osquery_remote_tls.prom");
    let rig = setup.own_flag(&format!("--metrics_file={}", path.display())).start();
    rig.config();
    (0..5).for_each(|n| rig.log(&line(n)));
    rig.log("no JSON");
    rig.delivered(5);
    rig.settled();
    rig.server.always(Endpoint::Log, Some(Answer::status(500, format!("no {SECRET}"))));
    (5..8).for_each(|n| rig.log(&format!("{{\"n\":{n},\"unixTime\":1000}}")));
    let first = rig.osqueryd.wait("a failure in the metrics", LIMIT, || {
        let text = fs::read_to_string(&path).ok()?;
        (value(&parse(&text), "consecutive_failures", &[("endpoint", "logger")])? > 0.0).then_some(text)
    });
    let families = parse(&first);
    let of = |name: &str| value(&families, name, &[("stream", "results")]).unwrap();
    assert_eq!(
        [
            of("lines_accepted_total"),
            of("lines_delivered_total"),
            of("lines_set_aside_total"),
            of("lines_dropped_total")
        ],
        [9.0, 5.0, 1.0, 0.0]
    );
    assert_eq!(of("waiting_lines"), 3.0);
    assert!(of("waiting_bytes") > 60.0 && of("oldest_waiting_line_age_seconds") > 1e9);
    let requests = |endpoint, outcome| {
        value(&families, "requests_total", &[("endpoint", endpoint), ("outcome", outcome)]).unwrap()
    };
    assert_eq!((requests("enroll", "success"), requests("enroll", "failure")), (1.0, 0.0));
    assert!(requests("logger", "success") >= 1.0 && requests("logger", "failure") >= 1.0);
    assert_eq!(requests("distributed_read", "success"), 0.0);
    let last = |endpoint| value(&families, "last_success_timestamp_seconds", &[("endpoint", endpoint)]);
    assert!(last("logger").unwrap() > 1.7e9 && last("distributed_read").is_none());
    assert_eq!(value(&families, "enrolled", &[]), Some(1.0));
    assert_eq!(value(&families, "workers_started_total", &[]), Some(1.0));
    assert_eq!(value(&families, "build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    let (labels, _) = &families["osquery_remote_tls_enrollment_info"][0];
    assert_eq!(labels["host_identifier"], "a\"} 1\\nb\\c\\u{1b}[2J\u{e9}");
    assert_eq!(labels["server"], rig.server.hostname());
    assert!(!first.contains(SECRET) && !first.contains(&rig.stored_key().unwrap()), "{first}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");

    let names: BTreeSet<&str> = families.keys().map(String::as_str).collect();
    assert_eq!(names, named_in("docs/operations.md"));
    let alerts = named_in("packaging/prometheus-alerts.yml");
    assert!(alerts.len() > 5 && alerts.is_subset(&names), "{alerts:?}");
    let shown = named_in("packaging/grafana-dashboard.json");
    assert!(shown.len() > 5 && shown.is_subset(&names), "{shown:?}");
    let dashboard = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/grafana-dashboard.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&dashboard).unwrap();

    let families = parse(&fresh(&rig, &path));
    assert_eq!(value(&families, "workers_started_total", &[]), Some(2.0), "another worker");
}

#[test]
fn nothing_is_written_where_others_could_have_their_hands_in() {
    let setup = Setup::new();
    let directory = collector(&setup);
    mode(&directory, 0o777);
    let victim = setup.file("victim", "untouched");
    let path = directory.join("m.prom");
    symlink(&victim, directory.join("m.prom.new")).unwrap();
    let rig = setup.own_flag(&format!("--metrics_file={}", path.display())).start();
    rig.said("metrics can't be written to ");
    assert!(rig.stderr().contains("others may write in "), "{}", rig.stderr());
    assert!(!path.exists());
    // And where they can't any more, a link that they have left leads nowhere.
    mode(&directory, 0o755);
    fresh(&rig, &path);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(rig.gen_config().code, 0);
}
