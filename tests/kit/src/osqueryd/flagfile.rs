//! Flag files and command lines, as gflags reads them for osqueryd.

use std::fs;
use std::path::Path;

use super::flags::{Flags, Refused, is_bool};

/// How deep flag files may name each other.
const DEPTH: usize = 8;

/// Reads a flag file into the flags. What it does not know, it drops without a word, as osqueryd does. The error is
/// what osqueryd would print before it exits with 1.
pub(super) fn read(path: &Path, flags: &mut Flags) -> Result<(), String> {
    read_nested(path, flags, DEPTH)
}

/// Takes osqueryd's arguments (the program's name not among them) into the flags, flag files where they stand.
pub(super) fn arguments(arguments: &[String], flags: &mut Flags) -> Result<(), String> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(text) = stripped(argument) else {
            return Err(format!("unexpected argument '{argument}'"));
        };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => match implied(text) {
                Some((name, value)) => (name, value.to_owned()),
                None if is_bool(text).is_none() && text != "flagfile" => return Err(unknown(text)),
                None => match rest.next() {
                    Some(value) => (text, value.clone()),
                    None => return Err(format!("ERROR: flag '{text}' is missing its argument")),
                },
            },
        };
        if name == "flagfile" {
            read(Path::new(&value), flags)?;
            continue;
        }
        flags.set(name, &value).map_err(|refused| match refused {
            Refused::Unknown => unknown(name),
            Refused::Value => illegal(name, &value),
        })?;
    }
    Ok(())
}

fn read_nested(path: &Path, flags: &mut Flags, depth: usize) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| format!("ERROR: {}: {error}", path.display()))?;
    for line in text.lines() {
        let line = line.trim_start();
        // Comments, empty lines, and gflags' program name sections.
        let Some(text) = (!line.starts_with('#')).then(|| stripped(line)).flatten() else { continue };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value),
            // A name with its value behind a space is an unknown name to gflags.
            None => match implied(text.trim_end()) {
                Some(implied) => implied,
                None => continue,
            },
        };
        if name == "flagfile" {
            if depth > 0 {
                read_nested(Path::new(value), flags, depth - 1)?;
            }
            continue;
        }
        match flags.set(name, value) {
            Ok(()) | Err(Refused::Unknown) => {}
            Err(Refused::Value) => return Err(illegal(name, value)),
        }
    }
    Ok(())
}

fn stripped(argument: &str) -> Option<&str> {
    argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')).filter(|name| !name.is_empty())
}

/// `--flag` and `--noflag` of a bool.
fn implied(name: &str) -> Option<(&str, &str)> {
    if is_bool(name) == Some(true) {
        return Some((name, "true"));
    }
    let positive = name.strip_prefix("no")?;
    (is_bool(positive) == Some(true)).then_some((positive, "false"))
}

fn unknown(name: &str) -> String {
    format!("ERROR: unknown command line flag '{name}'")
}

fn illegal(name: &str, value: &str) -> String {
    format!("ERROR: illegal value '{value}' specified for flag '{name}'")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{arguments, read};
    use crate::osqueryd::flags::Flags;

    #[test]
    fn a_flag_file_is_read_as_gflags_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("osquery.flags");
        let lines = [
            "# a comment",
            "--tls_hostname=fleet.example.test:443",
            "  --verbose",
            "--nologger_event_type",
            "--enroll_secret_path=/etc/a=b",
            "--no_such_flag=1",
            "--config_refresh 9",
            "-logger_tls_period=8",
            "osqueryd",
        ];
        fs::write(&path, lines.join("\n")).unwrap();
        let mut flags = Flags::default();
        read(&path, &mut flags).unwrap();
        assert_eq!(flags.value("tls_hostname"), "fleet.example.test:443");
        assert_eq!(flags.value("enroll_secret_path"), "/etc/a=b");
        assert_eq!(flags.value("logger_tls_period"), "8");
        assert_eq!(flags.value("config_refresh"), "0");
        assert!(flags.is("verbose") && !flags.is("logger_event_type"));
    }

    #[test]
    fn the_command_line_refuses_what_it_does_not_know() {
        let args = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut flags = Flags::default();
        arguments(&args(&["--config_refresh", "9", "--allow_unsafe", "--verbose=false"]), &mut flags).unwrap();
        assert_eq!(flags.value("config_refresh"), "9");
        assert!(flags.is("allow_unsafe") && !flags.is("verbose"));
        let error = arguments(&args(&["--no_such_flag=1"]), &mut flags).unwrap_err();
        assert_eq!(error, "ERROR: unknown command line flag 'no_such_flag'");
        assert!(arguments(&args(&["--config_refresh=soon"]), &mut flags).unwrap_err().contains("illegal value"));
    }
}
