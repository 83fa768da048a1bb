//! osqueryd's flag file, as the flags library (gflags) reads it, with what is dropped on the way.
//!
//! gflags says nothing of what it drops, and drops much: names that it doesn't know, a name and a value with a space
//! between them, and everything behind a line that doesn't begin with a dash, which it takes for the name of another
//! program that the rest is meant for.

use std::path::{Path, PathBuf};

use super::encoding::Encoding;
use super::osquery_flags::{self, Kind};
use crate::platform::ProcessInfo;
use crate::settings::Options;

/// How deep flag files may name each other here; gflags itself knows no end.
const DEPTH: usize = 8;

/// A flag as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) location: Location,
    /// The name as it is written there, which can be an alias.
    pub(super) name: String,
    pub(super) value: String,
}

/// Where a flag stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// A line of a file, counted from 1.
    Line(PathBuf, usize),
    /// The command line of this process.
    CommandLine(u32),
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(path, line) => write!(f, "{}:{line}", path.display()),
            Self::CommandLine(process) => write!(f, "osqueryd's command line (process {process})"),
        }
    }
}

/// What flags are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A flag file, with those that it names.
    File(PathBuf),
    /// An osqueryd's command line, its own name first, with the files that it names.
    CommandLine(ProcessInfo),
}

/// What osqueryd does not take, or not as it looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// A file can't be read, and what names it: osqueryd ends.
    Unreadable { path: PathBuf, reason: String, named_by: Option<Location> },
    /// A file is saved in a way that osqueryd takes for other text: nothing of it counts.
    Encoded(PathBuf, Encoding),
    /// Nothing is in a file.
    Empty(PathBuf),
    /// Flag files name each other without end.
    TooDeep(PathBuf),
    /// A line without a dash, and how many flags behind it are not for osqueryd.
    Section { location: Location, lost: usize },
    /// A name, a space and a value.
    Space { location: Location, name: String },
    /// A flag that needs a value and has none.
    NoValue { location: Location, name: String },
    /// The value has quotes around it, or blanks behind it, which become part of it.
    Untidy { location: Location, name: String },
    /// Line ends with carriage returns beside others without: osqueryd finds the lines elsewhere.
    MixedLineEnds(PathBuf),
}

/// All that a flag file gives, in its order; the last one of a name counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flagfile {
    pub(super) given: Vec<Given>,
    /// Names that osquery doesn't know.
    pub(super) unknown: Vec<Given>,
    pub(super) problems: Vec<Problem>,
    /// The files that were read.
    pub(super) files: usize,
    /// The files that the command line itself names.
    pub(super) named: Vec<PathBuf>,
}

impl Flagfile {
    /// The flags by the names and with the values that osqueryd lists; of several with one name the last.
    pub(super) fn values(&self) -> Options {
        let value = |given: &Given| {
            let kind = osquery_flags::of(&given.name).map_or(Kind::Text, |(_, kind)| kind);
            kind.normal(&given.value).unwrap_or_else(|| given.value.clone())
        };
        let pair = |given: &Given| (osquery_flags::real_name(&given.name).to_owned(), value(given));
        self.given.iter().map(pair).collect()
    }

    /// Reads a source and the files that it names. `is_known` knows more names than the table.
    pub(super) fn read(source: &Source, is_known: &dyn Fn(&str) -> bool) -> Self {
        let mut flagfile = Self::default();
        match source {
            Source::File(path) => flagfile.read_one(path, None, is_known, DEPTH),
            Source::CommandLine(process) => flagfile.read_command_line(process, is_known),
        }
        flagfile
    }

    fn read_command_line(&mut self, process: &ProcessInfo, is_known: &dyn Fn(&str) -> bool) {
        let location = || Location::CommandLine(process.id);
        let mut arguments = process.arguments.iter().skip(1).peekable();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { continue };
            // Here, and not in a file, the next word is the value of a name without one.
            let flag = match flag.contains('=') || implied(flag).is_some() {
                true => flag.to_owned(),
                false => match arguments.next_if(|next| !next.starts_with("--")) {
                    Some(value) => format!("{flag}={value}"),
                    None => flag.to_owned(),
                },
            };
            match flag.strip_prefix("flagfile=") {
                Some(paths) => {
                    for path in paths.split(',') {
                        let path = process.directory.join(path);
                        self.named.push(path.clone());
                        self.read_one(&path, Some(location()), is_known, DEPTH);
                    }
                }
                None => self.take(location(), &flag, is_known, DEPTH),
            }
        }
    }

    fn read_one(&mut self, path: &Path, named_by: Option<Location>, is_known: &dyn Fn(&str) -> bool, depth: usize) {
        if depth == 0 {
            return self.problems.push(Problem::TooDeep(path.to_owned()));
        }
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let (path, reason) = (path.to_owned(), error.to_string());
                return self.problems.push(Problem::Unreadable { path, reason, named_by });
            }
        };
        if let Some(encoding) = Encoding::of(&bytes) {
            // Of the first line, and with it of all that follows, osqueryd makes a section for another program.
            return self.problems.push(Problem::Encoded(path.to_owned(), encoding));
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text.trim().is_empty() {
            self.problems.push(Problem::Empty(path.to_owned()));
        }
        self.read_lines(path, &text, is_known, depth);
    }

    fn read_lines(&mut self, path: &Path, text: &str, is_known: &dyn Fn(&str) -> bool, depth: usize) {
        self.files += 1;
        let returns = text.matches('\r').count();
        if returns > 0 && returns != text.matches('\n').count() {
            self.problems.push(Problem::MixedLineEnds(path.to_owned()));
        }
        let mut section: Option<(Location, usize)> = None;
        let mut among_names = false;
        for (index, line) in text.lines().enumerate() {
            let location = Location::Line(path.to_owned(), index + 1);
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(flag) = line.strip_prefix("--").or_else(|| line.strip_prefix('-')) else {
                // Lines of names that follow each other are one list.
                let ours = names_osqueryd(line) || (among_names && section.is_none());
                self.end_section(section.take());
                section = (!ours).then_some((location, 0));
                among_names = true;
                continue;
            };
            among_names = false;
            match &mut section {
                Some((_, lost)) => *lost += 1,
                None => self.take(location, flag, is_known, depth),
            }
        }
        self.end_section(section);
    }

    fn end_section(&mut self, section: Option<(Location, usize)>) {
        if let Some((location, lost)) = section {
            self.problems.push(Problem::Section { location, lost });
        }
    }

    fn take(&mut self, location: Location, flag: &str, is_known: &dyn Fn(&str) -> bool, depth: usize) {
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value),
            None => match implied(flag) {
                Some(implied) => implied,
                None => return self.without_value(location, flag, is_known),
            },
        };
        let given = Given { location, name: name.to_owned(), value: value.to_owned() };
        if name == "flagfile" {
            // Several, with commas between them.
            let named_by = || Some(given.location.clone());
            return value
                .split(',')
                .for_each(|path| self.read_one(Path::new(path), named_by(), is_known, depth.saturating_sub(1)));
        }
        if osquery_flags::is_of_the_library(name) {
            return;
        }
        if osquery_flags::of(name).is_none() && !is_known(name) {
            return self.unknown.push(given);
        }
        let quoted = |quote| value.len() > 1 && value.starts_with(quote) && value.ends_with(quote);
        // What makes no number of a number ends osqueryd, and that is said of the value.
        let is_text = osquery_flags::of(name).is_none_or(|(_, kind)| kind == Kind::Text);
        if is_text && (value.ends_with([' ', '\t']) || quoted('"') || quoted('\'')) {
            self.problems.push(Problem::Untidy { location: given.location.clone(), name: name.to_owned() });
        }
        self.given.push(given);
    }

    fn without_value(&mut self, location: Location, flag: &str, is_known: &dyn Fn(&str) -> bool) {
        match flag.split_once(char::is_whitespace) {
            Some((name, _)) => self.problems.push(Problem::Space { location, name: name.to_owned() }),
            None if osquery_flags::of(flag).is_some() || is_known(flag) => {
                self.problems.push(Problem::NoValue { location, name: flag.to_owned() });
            }
            None => self.unknown.push(Given { location, name: flag.to_owned(), value: String::new() }),
        }
    }
}

/// `--flag` and `--noflag` of a truth value.
fn implied(name: &str) -> Option<(&str, &str)> {
    let is_bool = |name: &str| osquery_flags::of(name).is_some_and(|(_, kind)| kind == Kind::Bool);
    if is_bool(name) {
        return Some((name, "true"));
    }
    name.strip_prefix("no").filter(|name| is_bool(name)).map(|name| (name, "false"))
}

/// Whether a line without a dash begins a section that osqueryd takes for its own: one of its words is its name.
fn names_osqueryd(line: &str) -> bool {
    line.split(' ').any(|word| matches!(word.rsplit('/').next(), Some("osqueryd" | "osqueryd*" | "osquery*" | "*")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Flagfile {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("osquery.flags");
        std::fs::write(&path, text).unwrap();
        Flagfile::read(&Source::File(path), &|name| name == "of_a_newer_osquery")
    }

    fn pairs(flagfile: &Flagfile) -> Vec<(&str, &str)> {
        flagfile.given.iter().map(|given| (given.name.as_str(), given.value.as_str())).collect()
    }

    #[test]
    fn it_is_read_as_gflags_reads_it() {
        let flagfile = read(
            "# a comment\n\n--tls_hostname=fleet:443\n  --verbose\n-nologger_event_type\n\
             --enroll_secret_path=/etc/a=b\n--of_a_newer_osquery=1\n--undefok=x\n",
        );
        let expected = [
            ("tls_hostname", "fleet:443"),
            ("verbose", "true"),
            ("logger_event_type", "false"),
            ("enroll_secret_path", "/etc/a=b"),
            ("of_a_newer_osquery", "1"),
        ];
        assert_eq!(pairs(&flagfile), expected);
        assert_eq!((flagfile.problems, flagfile.unknown, flagfile.files), (vec![], vec![], 1));
    }

    #[test]
    fn what_is_dropped_is_told() {
        let flagfile = read("--no_such=1\n--no_such_either\n--config_refresh 9\n--tls_hostname\n");
        assert_eq!(pairs(&flagfile), []);
        let names: Vec<&str> = flagfile.unknown.iter().map(|given| given.name.as_str()).collect();
        assert_eq!(names, ["no_such", "no_such_either"]);
        let [Problem::Space { name, location }, Problem::NoValue { .. }] = flagfile.problems.as_slice() else {
            panic!("{:?}", flagfile.problems)
        };
        assert_eq!(name, "config_refresh");
        assert!(matches!(location, Location::Line(_, 3)), "{location}");
    }

    #[test]
    fn a_line_without_a_dash_takes_the_rest_away() {
        let flagfile =
            read("--verbose\nosqueryd\n--utc\ntls_hostname=x\n--force\n--daemonize\n/usr/bin/osqueryd\n--S\n");
        assert_eq!(pairs(&flagfile), [("verbose", "true"), ("utc", "true"), ("S", "true")]);
        let [Problem::Section { location, lost: 2 }] = flagfile.problems.as_slice() else {
            panic!("{:?}", flagfile.problems)
        };
        assert!(matches!(location, Location::Line(_, 4)), "{location}");
    }

    #[test]
    fn blanks_quotes_and_line_ends_are_told() {
        let flagfile = read("--tls_hostname=fleet \r\n--proxy_hostname=\"p\"\r\n--specified_identifier=a\n");
        assert_eq!(pairs(&flagfile).len(), 3);
        let untidy = flagfile.problems.iter().filter(|problem| matches!(problem, Problem::Untidy { .. })).count();
        assert_eq!(untidy, 2);
        assert!(matches!(flagfile.problems.first(), Some(Problem::MixedLineEnds(_))));
    }

    #[test]
    fn flag_files_name_others_and_maybe_themselves() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| directory.path().join(name));
        std::fs::write(&first, format!("--flagfile={},/no/such\n--verbose\n", second.display())).unwrap();
        std::fs::write(&second, format!("--utc\n--flagfile={}\n", first.display())).unwrap();
        let flagfile = Flagfile::read(&Source::File(first), &|_| false);
        assert_eq!(pairs(&flagfile).len(), 8);
        assert!(flagfile.problems.iter().any(|problem| matches!(problem, Problem::TooDeep(_))));
        assert!(
            flagfile
                .problems
                .iter()
                .any(|problem| matches!(problem, Problem::Unreadable { named_by: Some(Location::Line(_, 1)), .. }))
        );
    }

    /// Fleet's agent gives flags and socket on the command line, and a file besides.
    #[test]
    fn a_command_line_is_read_as_gflags_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("osquery.flags"), "--verbose=false\n--tls_hostname=a\n").unwrap();
        let words = "osqueryd --pidfile=/x/osquery.pid --flagfile osquery.flags --tls_hostname b --verbose --utc=false";
        let process = ProcessInfo {
            id: 7,
            parent: 1,
            arguments: words.split(' ').map(str::to_owned).collect(),
            directory: directory.path().to_owned(),
            age: std::time::Duration::ZERO,
        };
        let flagfile = Flagfile::read(&Source::CommandLine(process), &|_| false);
        let expected = [
            ("pidfile", "/x/osquery.pid"),
            ("verbose", "false"),
            ("tls_hostname", "a"),
            ("tls_hostname", "b"),
            ("verbose", "true"),
            ("utc", "false"),
        ];
        assert_eq!(pairs(&flagfile), expected);
        assert_eq!(flagfile.named, [directory.path().join("osquery.flags")]);
        assert_eq!((flagfile.problems, flagfile.files), (vec![], 1));
    }
}
