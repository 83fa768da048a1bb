//! What the documents say of the code.

use std::fs;
use std::path::Path;
use std::process::Command;

use osquery_remote_tls::settings::own::{AnyFlag, FLAGS, Setter};
use testkit::osqueryd::{Options, Osqueryd};

use crate::rig::{BINARY, Rig};
use crate::tables::TABLES;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (document, least) in [("docs/architecture.md", 10), ("docs/reliability.md", 30)] {
        let text = read(document);
        let quoted = text.split('`').skip(1).step_by(2);
        let names: Vec<(&str, &str)> = quoted
            .filter_map(|quoted| quoted.split_once("::"))
            .filter(|(module, name)| {
                let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || b"_".contains(&byte));
                is_word(module) && is_word(name) && name.matches('_').count() > 1
            })
            .collect();
        assert!(names.len() >= least, "{document}: {names:?}");
        for (module, name) in names {
            let path = root.join(format!("tests/blackbox/{module}.rs"));
            let source = fs::read_to_string(&path).unwrap_or_else(|_| panic!("{document} names {module}::{name}"));
            assert!(source.contains(&format!("fn {name}()")), "{document} names {module}::{name}");
        }
    }
}

/// A flag of ours as a row of the table in docs/flags.md.
fn row(flag: &AnyFlag) -> String {
    let mark = if flag.setter.is_server_too() { " *" } else { "" };
    let default = flag.kind.default_text().unwrap_or_default();
    let text = if flag.more.is_empty() { flag.help.to_owned() } else { format!("{}. {}", flag.help, flag.more) };
    format!("| `{}`{mark} | {default} | {} | {text} |", flag.name, flag.kind.allowed()).replace("|  |", "| |")
}

#[test]
fn flags_md_has_the_table_of_our_flags_that_the_code_has() {
    let text = read("docs/flags.md");
    let section = text.split("\n## Ours").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let rows: Vec<String> = FLAGS.iter().map(|flag| row(flag)).collect();
    assert_eq!(documented, rows, "docs/flags.md is to have these rows:\n{}\n", rows.join("\n"));
}

#[test]
fn the_help_shows_every_flag_of_ours_with_its_default() {
    let help = String::from_utf8(Command::new(BINARY).arg("--help").output().unwrap().stdout).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for flag in FLAGS {
        let shown = format!("--{} <{}> {}", flag.name, flag.kind.placeholder(), flag.plain_help());
        assert!(help.contains(&shown), "{shown} is missing in\n{help}");
    }
}

#[test]
fn flags_md_lists_every_flag_of_osquery_s_that_is_read() {
    let source = read("src/settings/builder.rs");
    let text = read("docs/flags.md");
    let production = source.split("#[cfg(test)]").next().unwrap();
    let mut count = 0;
    for reader in ["text(\"", "truth(\"", "number(\"", "seconds(\"", "size(\"", "attempts(\""] {
        for (at, _) in production.match_indices(reader) {
            let name = production[at..].split('"').nth(1).unwrap();
            assert!(text.contains(&format!("`{name}`")), "docs/flags.md does not list {name}");
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
    assert_eq!((end(&["--version"]), end(&nowhere), end(&["stray"])), (0, 1, 64));
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
    ("src/settings/live.rs", "src/settings/mod.rs", "--{flag}={value} can't be used: {allowed}"),
    (
        "src/journal/tally.rs",
        "src/journal/tally.rs",
        "{lines} of the {} journal {what} so far; the last because {reason}",
    ),
];

/// A format string with `…` for what it takes.
fn pattern(format: &str) -> String {
    let mut parts = format.split('{');
    let mut pattern = parts.next().unwrap().to_owned();
    for part in parts {
        pattern.push('…');
        pattern.push_str(part.split_once('}').unwrap_or_else(|| panic!("not a format string: {format}")).1);
    }
    // What stands directly behind another one is a reminder's "so for 2 h now".
    pattern.replace("……", "…")
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

/// The names of a process's threads but for the first one's, which is the process's own.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let ids = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
    // A thread may have ended between the two looks.
    ids.filter(|id| *id != process.to_string())
        .filter_map(|id| fs::read_to_string(format!("/proc/{process}/task/{id}/comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

#[test]
#[cfg(target_os = "linux")]
fn architecture_md_names_every_thread() {
    let text = read("docs/architecture.md");
    let (_, table) = text.split_once("\n## Threads\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rig = Rig::start();
    rig.log(&crate::rig::line(0));
    rig.delivered(1);
    for (process, id) in [("front", rig.pid()), ("worker", rig.worker_pid())] {
        let row = |line: &&str| line.starts_with(&format!("| {process}, "));
        let cells = table.lines().filter(row).filter_map(|line| line.split('|').nth(1)).map(str::trim);
        let told: Vec<&str> = cells.flat_map(|cell| cell.split([',', '(', ')'])).map(str::trim).collect();
        let threads = threads(id);
        assert!(threads.len() >= 5, "{process}: {threads:?}");
        for name in threads {
            let (name, number) = name.rsplit_once('-').unwrap_or((&name, ""));
            let whole = match number.parse::<u64>() {
                Ok(_) => format!("{name}-N"),
                Err(_) if number.is_empty() => name.to_owned(),
                Err(_) => format!("{name}-{number}"),
            };
            assert!(told.contains(&&*whole), "{process}: no row for the thread {whole:?}");
        }
    }
}

#[test]
fn security_md_says_of_every_flag_of_ours_who_sets_it() {
    let text = read("docs/security.md");
    let (_, section) = text.split_once("\n## Which of ours\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let (_, limits) = section.split_once("Limits that protect the host (").unwrap();
    let (limits, _) = limits.split_once(')').unwrap();
    for flag in FLAGS {
        let name = format!("`{}`", flag.name);
        let mentions: Vec<&str> = section.lines().filter(|line| line.contains(&name)).collect();
        let is_row = mentions.iter().any(|line| line.starts_with("| "));
        let is_limit = matches!(flag.setter, Setter::Limit(_));
        assert_eq!(limits.contains(&name), is_limit, "docs/security.md: limits that protect the host, {name}");
        match flag.setter {
            Setter::Server | Setter::Limit(_) => {
                assert!(is_row, "docs/security.md: the worst that a server can make of {name}");
            }
            Setter::Host => assert!(!is_row && !mentions.is_empty(), "docs/security.md: {name} is the host's only"),
        }
    }
}
