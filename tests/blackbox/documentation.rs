//! What the documents say of the code.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::osqueryd::{Options, Osqueryd};

use crate::rig::{BINARY, Rig};
use crate::tables::TABLES;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_test_that_architecture_md_names_is_there() {
    let text = read("docs/architecture.md");
    let names: Vec<(&str, &str)> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|quoted| quoted.split_once("::"))
        .filter(|(module, name)| {
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/blackbox/{module}.rs")).exists()
                && name.contains('_')
        })
        .collect();
    assert!(names.len() >= 10, "{names:?}");
    for (module, name) in names {
        let source = read(&format!("tests/blackbox/{module}.rs"));
        assert!(source.contains(&format!("fn {name}()")), "docs/architecture.md names {module}::{name}");
    }
}

#[test]
fn flags_md_lists_every_flag_of_ours_with_its_default_and_no_other() {
    let help = String::from_utf8(Command::new(BINARY).arg("--help").output().unwrap().stdout).unwrap();
    let text = read("docs/flags.md");
    let section = text.split("\n## Ours").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut ours = 0;
    for option in help.split("\n      --").skip(1) {
        let name = option.split([' ', '=', '[']).next().unwrap();
        if ["socket", "timeout", "interval", "verbose"].contains(&name) {
            continue;
        }
        ours += 1;
        let row = section.lines().find(|line| line.starts_with(&format!("| `{name}`")));
        let row = row.unwrap_or_else(|| panic!("docs/flags.md does not list {name}"));
        let documented = row.split('|').nth(2).unwrap().trim();
        let default = option.split("[default: ").nth(1).map_or("", |rest| rest.split(']').next().unwrap());
        let default = default.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(default == documented || default.contains(' '), "{name}: {documented:?} and {default:?}");
    }
    assert!(ours >= 12, "{ours} flags in {help}");
    assert_eq!(section.lines().filter(|line| line.starts_with("| `")).count(), ours);
}

#[test]
fn flags_md_lists_every_flag_of_osquery_s_that_is_read() {
    let source = read("src/settings.rs");
    let text = read("docs/flags.md");
    let production = source.split("#[cfg(test)]").next().unwrap();
    let mut count = 0;
    for reader in ["text(\"", "truth(\"", "number(\"", "seconds(\"", "size(\"", "attempts(\""] {
        for (at, _) in production.match_indices(reader) {
            let (before, call) = production.split_at(at);
            let name = call.split('"').nth(1).unwrap();
            assert!(
                before.ends_with("own_") || text.contains(&format!("`{name}`")),
                "docs/flags.md does not list {name}"
            );
            count += 1;
        }
    }
    assert!(count > 30, "{count} flags found");
}

#[test]
fn operations_md_has_the_exit_codes_that_the_code_has() {
    let text = read("docs/operations.md");
    let section = text.split("## Exit codes").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented = |of: &str| -> Vec<String> {
        let rows = section.lines().filter(|line| line.contains(&format!("| {of} |")) || line.contains("| both |"));
        rows.map(|row| row.split('|').nth(1).unwrap().trim().to_owned()).collect()
    };
    let end = |arguments: &[&str]| Command::new(BINARY).args(arguments).output().unwrap().status.code().unwrap();
    let nowhere = ["--socket=/nowhere/osquery.em", "--timeout=0"];
    assert_eq!(documented("the extension"), ["0", "1", "64"]);
    assert_eq!((end(&["--version"]), end(&nowhere), end(&["--no_such_flag"])), (0, 1, 64));
    // The doctor's own are tested beside its checks.
    assert_eq!(documented("`doctor`"), ["64", "0", "1", "2"]);
    let doctor = read("docs/doctor.md");
    for code in ["0", "1", "2", "64"] {
        assert!(doctor.contains(&format!("| {code} | ")), "docs/doctor.md does not explain {code}");
    }
}

/// The sections of docs/tables.md by their tables' names.
fn table_sections(text: &str) -> Vec<(&str, &str)> {
    text.split("\n## `").skip(1).filter_map(|section| section.split_once('`')).collect()
}

#[test]
fn the_tables_have_the_columns_and_types_that_tables_md_says() {
    let text = read("docs/tables.md");
    let sections = table_sections(&text);
    let mut names: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    let rig = Rig::start();
    let registered = rig.osqueryd.registrations().remove(0).plugins["table"].clone();
    assert_eq!(registered, names);
    assert_eq!(registered.len(), TABLES.len());
    for (name, section) in sections {
        let documented: Vec<(String, String)> = section
            .split("\n## ")
            .next()
            .unwrap()
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .map(|(column, rest)| (column.to_owned(), rest.split(' ').next().unwrap().to_owned()))
            .collect();
        let columns = rig.osqueryd.query(&format!("SELECT name, type FROM pragma_table_info('{name}')")).unwrap();
        let registered: Vec<(String, String)> =
            columns.iter().map(|row| (row["name"].clone(), row["type"].clone())).collect();
        assert_eq!(documented, registered, "docs/tables.md: {name}");
    }
}

#[test]
fn the_queries_of_tables_md_run() {
    let text = read("docs/tables.md");
    let queries: Vec<&str> =
        text.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().trim()).collect();
    assert!(queries.len() >= 5, "{queries:?}");
    let rig = Rig::start();
    for query in queries {
        rig.osqueryd.query(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    }
}

/// Messages that are no literal where they are logged: that file, the one that has the text, and the text.
const MADE_ELSEWHERE: [(&str, &str, &str); 2] = [
    ("src/flags.rs", "src/settings.rs", "--{flag}={value} can't be used: {allowed}"),
    ("src/buffer/mod.rs", "src/buffer/mod.rs", "{} {} lines {kind} so far; the last because {reason}"),
];

/// A format string with `…` for what it takes.
fn pattern(format: &str) -> String {
    let mut parts = format.split('{');
    let mut pattern = parts.next().unwrap().to_owned();
    for part in parts {
        pattern.push('…');
        pattern.push_str(part.split_once('}').unwrap_or_else(|| panic!("not a format string: {format}")).1);
    }
    pattern
}

/// The warnings and errors of a source file: `WARN`, `ERROR`, or `` where the level is decided while running.
fn messages(path: &str) -> Vec<(&'static str, String)> {
    let source = read(path);
    let production = source.split("#[cfg(test)]").next().unwrap();
    let mut messages = Vec::new();
    for (call, level) in [("log::warn!(", "WARN"), ("log::error!(", "ERROR"), ("log::log!(", "")] {
        for (at, _) in production.match_indices(call) {
            let literal = production[at..].split('"').nth(1).unwrap();
            let pattern = match pattern(literal) {
                nothing if nothing == "…" => {
                    let made = MADE_ELSEWHERE.iter().find(|(logged, ..)| *logged == path);
                    let (_, made, text) = made.unwrap_or_else(|| panic!("{path} logs {literal}: say where it is made"));
                    assert!(read(made).contains(&format!("\"{text}\"")), "{made} does not make {text:?}");
                    self::pattern(text)
                }
                pattern => pattern,
            };
            messages.push((level, pattern));
        }
    }
    messages
}

fn sources(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap() {
        let path = directory.join(entry.unwrap().file_name());
        if Path::new(env!("CARGO_MANIFEST_DIR")).join(&path).is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.display().to_string());
        }
    }
}

#[test]
fn log_md_explains_every_warning_and_error_and_no_other() {
    let text = read("docs/log.md");
    let rows: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let level = cells.next().filter(|level| ["WARN", "ERROR"].contains(level))?;
            Some((level, cells.next()?.strip_prefix('`')?.strip_suffix('`')?))
        })
        .collect();
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let mut logged = Vec::new();
    for file in files {
        for (level, pattern) in messages(&file) {
            let explained = rows.iter().any(|(of, row)| *row == pattern && of.starts_with(level));
            assert!(explained, "docs/log.md does not explain {level} `{pattern}` of {file}");
            logged.push(pattern);
        }
    }
    assert!(logged.len() > 40, "only {} messages found", logged.len());
    for (_, row) in rows {
        assert!(logged.iter().any(|pattern| pattern == row), "docs/log.md explains `{row}`, which nothing logs");
    }
}

#[test]
fn the_example_flag_files_are_what_osqueryd_takes() {
    let mut count = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        // As arguments: in a flag file osqueryd passes over names that it doesn't know.
        let flags: Vec<String> = text.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect();
        for registry in ["config", "logger", "distributed"] {
            assert!(flags.contains(&format!("--{registry}_plugin=remote_tls")), "{}", path.display());
        }
        let directory = tempfile::tempdir().unwrap();
        match Osqueryd::launch_with_arguments(Options::new(directory.path()), &flags) {
            Ok(osqueryd) => _ = osqueryd.stop(),
            Err(error) => panic!("{}: {error}", path.display()),
        }
        count += 1;
    }
    assert!(count >= 4, "{count} examples");
}
