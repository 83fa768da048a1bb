//! What this host's operator said of a flag of osqueryd's: on its command line, in its flag file, or in neither.
//!
//! A flag's current value doesn't tell: a configuration's `options` change it, those of a configuration that we have
//! changed among them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How deep flag files may name each other.
const DEPTH: usize = 8;

/// What osqueryd's flag files and command line say, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FlagSources {
    /// Each flag as it was given, the one that counts last.
    given: Vec<String>,
    /// Whether all that could have said something was read.
    is_whole: bool,
}

impl FlagSources {
    /// Those of a process with these arguments, where they are known.
    pub(super) fn of(command_line: Option<&[String]>) -> Self {
        // gflags' own flags are not in osqueryd's list of flags: where a flag file is named, that is on the command
        // line.
        Self::read(command_line, command_line.and_then(flagfile_of).as_deref())
    }

    /// Those of a process with these arguments and this flag file, which they need not name.
    fn read(command_line: Option<&[String]>, flagfile: Option<&Path>) -> Self {
        let mut given = Vec::new();
        let file = flagfile.map_or(Ok(()), |path| read(path, DEPTH, &mut given));
        let arguments = command_line.into_iter().flatten().map(String::as_str);
        let is_expanded = expand(arguments, DEPTH, &mut given).is_ok();
        Self { given, is_whole: command_line.is_some() && file.is_ok() && is_expanded }
    }

    /// What they say of the flag `name`, as its value: the last one counts, as for gflags. `None` when they say
    /// nothing.
    ///
    /// `Err` when they say nothing, and not all of them could be read.
    pub(super) fn value_of(&self, name: &str) -> Result<Option<String>, Unread> {
        match self.given.iter().rev().find_map(|given| value_in(given, name)) {
            None if !self.is_whole => Err(Unread),
            said => Ok(said),
        }
    }
}

/// The flag file that a command line names.
fn flagfile_of(command_line: &[String]) -> Option<PathBuf> {
    let mut arguments = command_line.iter().peekable();
    let mut flagfile = None;
    while let Some(argument) = arguments.next() {
        flagfile = match value_in(argument, "flagfile") {
            // `--flagfile PATH`
            Some(value) if value.is_empty() || value == "true" => arguments.peek().map(|path| path.to_string()),
            Some(value) => Some(value),
            None => flagfile,
        };
    }
    flagfile.map(PathBuf::from)
}

/// A source could not be read, so that the value is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unread;

/// The lines of a flag file, and of those that it names in their places.
fn read(path: &Path, depth: usize, given: &mut Vec<String>) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("flag files name each other"));
    }
    let text = fs::read(path)?;
    expand(String::from_utf8_lossy(&text).lines().map(str::trim), depth, given)
}

/// Lines or arguments, with those of the flag files that they name in their places.
fn expand<'a>(lines: impl Iterator<Item = &'a str>, depth: usize, given: &mut Vec<String>) -> io::Result<()> {
    let mut lines = lines.peekable();
    let mut outcome = Ok(());
    while let Some(line) = lines.next() {
        let files = match line.trim_start_matches('-') {
            // On a command line the name may be the next argument.
            "flagfile" => lines.next(),
            _ => line.strip_prefix("--flagfile=").or_else(|| line.strip_prefix("-flagfile=")),
        };
        match files {
            // Several, with commas between them.
            Some(files) => {
                for file in files.split(',') {
                    outcome = outcome.and(read(Path::new(file), depth - 1, given));
                }
            }
            None => given.push(line.to_owned()),
        }
    }
    outcome
}

/// The value that a line or an argument gives to the flag, as gflags takes it: `--name=value`, `--name`, `--noname`,
/// one dash or two. A flag that is taken from the environment has a value that can't be seen here: an empty one stands
/// for it.
fn value_in(text: &str, name: &str) -> Option<String> {
    let flag = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    let (given, value) = flag.split_once('=').map_or((flag, None), |(given, value)| (given, Some(value)));
    match (given, value) {
        (given, Some(value)) if given == name => Some(value.trim_end().to_owned()),
        (given, None) if given == name => Some("true".to_owned()),
        ("fromenv" | "tryfromenv", Some(names)) if names.split(',').any(|one| one.trim() == name) => {
            Some(String::new())
        }
        (given, None) if given.strip_prefix("no") == Some(name) => Some("false".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "logger_event_type";

    fn arguments(arguments: &[&str]) -> Option<Vec<String>> {
        Some(arguments.iter().map(|&argument| argument.to_owned()).collect())
    }

    #[test]
    fn a_flag_is_found_in_each_of_its_forms() {
        for (text, value) in [
            ("--logger_event_type=false", Some("false")),
            ("-logger_event_type=0 ", Some("0")),
            ("--logger_event_type", Some("true")),
            ("--nologger_event_type", Some("false")),
            ("--fromenv=verbose,logger_event_type", Some("")),
            ("--logger_event_types=false", None),
            ("--logger_snapshot_event_type=true", None),
            ("logger_event_type=false", None),
            ("# --logger_event_type=false", None),
        ] {
            assert_eq!(value_in(text, NAME).as_deref(), value, "{text}");
        }
    }

    #[test]
    fn the_last_one_counts_and_flag_files_stand_where_they_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let (outer, inner) = (directory.path().join("outer"), directory.path().join("inner"));
        fs::write(&outer, format!("--verbose\n --flagfile={}\n", inner.display())).unwrap();
        fs::write(&inner, "--logger_event_type=true\r\n--nologger_event_type\r\n").unwrap();
        let said = |given: &[&str], flagfile: Option<&Path>| {
            let sources = FlagSources::read(arguments(given).as_deref(), flagfile);
            sources.value_of(NAME).unwrap()
        };
        let outer_flag = format!("--flagfile={}", outer.display());
        assert_eq!(said(&["osqueryd", &outer_flag], None).as_deref(), Some("false"));
        assert_eq!(said(&["osqueryd", "--logger_event_type=1", &outer_flag], None).as_deref(), Some("false"));
        assert_eq!(said(&["osqueryd", &outer_flag, "--logger_event_type=1"], None).as_deref(), Some("1"));
        assert_eq!(said(&["osqueryd", "-flagfile", outer.to_str().unwrap()], None).as_deref(), Some("false"));
        assert_eq!(said(&["osqueryd", "--logger_event_type=1"], Some(&outer)).as_deref(), Some("1"));
        assert_eq!(said(&["osqueryd", "--verbose"], Some(&inner)).as_deref(), Some("false"));
        assert_eq!(said(&["osqueryd"], None), None);
    }

    #[test]
    fn what_can_t_be_read_may_have_said_anything() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("flags");
        let flag = format!("--flagfile={}", file.display());
        let sources = |command_line: Option<Vec<String>>| FlagSources::read(command_line.as_deref(), None);
        assert_eq!(sources(arguments(&["osqueryd", &flag])).value_of(NAME), Err(Unread));
        let more = sources(arguments(&["osqueryd", &flag, "--logger_event_type"]));
        assert_eq!(more.value_of(NAME), Ok(Some("true".to_owned())), "what is behind it counts anyway");
        fs::write(&file, format!("{flag}\n")).unwrap();
        assert_eq!(sources(arguments(&["osqueryd", &flag])).value_of(NAME), Err(Unread), "it names itself");
        assert_eq!(sources(None).value_of(NAME), Err(Unread));
        assert_eq!(FlagSources::read(Some(&[]), Some(&file)).value_of(NAME), Err(Unread));
    }
}
