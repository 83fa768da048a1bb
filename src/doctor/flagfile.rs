//! osqueryd's flag file, as the flags library (gflags) reads it, with what is dropped on the way.
//!
//! gflags says nothing of what it drops, and drops much: names that it doesn't know, a name and a value with a space
//! between them, and everything behind a line that doesn't begin with a dash, which it takes for the name of another
//! program that the rest is meant for.

use std::path::{Path, PathBuf};

use super::osquery_flags::{self, Kind};

/// How deep flag files may name each other here; gflags itself knows no end.
const DEPTH: usize = 8;

/// A flag as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) place: Place,
    /// As written.
    pub(super) name: String,
    pub(super) value: String,
}

/// A line of a file, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// What osqueryd does not take, or not as it looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Oddity {
    /// A file can't be read: osqueryd ends.
    Unreadable(PathBuf, String),
    /// Flag files name each other without end.
    TooDeep(PathBuf),
    /// A line without a dash, and how many flags behind it are not for osqueryd.
    Section { place: Place, lost: usize },
    /// A name, a space and a value.
    Space { place: Place, name: String },
    /// A flag that needs a value and has none.
    NoValue { place: Place, name: String },
    /// The value has quotes around it, or blanks behind it, which become part of it.
    Untidy { place: Place, name: String },
    /// Line ends with carriage returns beside others without: osqueryd finds the lines elsewhere.
    MixedLineEnds(PathBuf),
}

/// All that a flag file gives, in its order; the last one of a name counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flagfile {
    pub(super) given: Vec<Given>,
    /// Names that osquery doesn't know.
    pub(super) unknown: Vec<Given>,
    pub(super) oddities: Vec<Oddity>,
    /// The files that were read.
    pub(super) files: usize,
}

impl Flagfile {
    /// Reads the file and those that it names. `is_known` knows more names than the table.
    pub(super) fn read(path: &Path, is_known: &dyn Fn(&str) -> bool) -> Self {
        let mut flagfile = Self::default();
        flagfile.read_one(path, is_known, DEPTH);
        flagfile
    }

    fn read_one(&mut self, path: &Path, is_known: &dyn Fn(&str) -> bool, depth: usize) {
        if depth == 0 {
            return self.oddities.push(Oddity::TooDeep(path.to_owned()));
        }
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => return self.oddities.push(Oddity::Unreadable(path.to_owned(), error.to_string())),
        };
        self.files += 1;
        let returns = text.matches('\r').count();
        if returns > 0 && returns != text.matches('\n').count() {
            self.oddities.push(Oddity::MixedLineEnds(path.to_owned()));
        }
        let mut section: Option<(Place, usize)> = None;
        let mut among_names = false;
        for (index, line) in text.lines().enumerate() {
            let place = Place { path: path.to_owned(), line: index + 1 };
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(flag) = line.strip_prefix("--").or_else(|| line.strip_prefix('-')) else {
                // Lines of names that follow each other are one list.
                let ours = names_osqueryd(line) || (among_names && section.is_none());
                self.end_section(section.take());
                section = (!ours).then_some((place, 0));
                among_names = true;
                continue;
            };
            among_names = false;
            match &mut section {
                Some((_, lost)) => *lost += 1,
                None => self.take(place, flag, is_known, depth),
            }
        }
        self.end_section(section);
    }

    fn end_section(&mut self, section: Option<(Place, usize)>) {
        if let Some((place, lost)) = section {
            self.oddities.push(Oddity::Section { place, lost });
        }
    }

    fn take(&mut self, place: Place, flag: &str, is_known: &dyn Fn(&str) -> bool, depth: usize) {
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value),
            None => match implied(flag) {
                Some(implied) => implied,
                None => return self.without_value(place, flag, is_known),
            },
        };
        let given = Given { place, name: name.to_owned(), value: value.to_owned() };
        if name == "flagfile" {
            // Several, with commas between them.
            return value.split(',').for_each(|path| self.read_one(Path::new(path), is_known, depth - 1));
        }
        if osquery_flags::is_of_the_library(name) {
            return;
        }
        if osquery_flags::of(name).is_none() && !is_known(name) {
            return self.unknown.push(given);
        }
        let quoted = |quote| value.len() > 1 && value.starts_with(quote) && value.ends_with(quote);
        if value.ends_with([' ', '\t']) || quoted('"') || quoted('\'') {
            self.oddities.push(Oddity::Untidy { place: given.place.clone(), name: name.to_owned() });
        }
        self.given.push(given);
    }

    fn without_value(&mut self, place: Place, flag: &str, is_known: &dyn Fn(&str) -> bool) {
        match flag.split_once(char::is_whitespace) {
            Some((name, _)) => self.oddities.push(Oddity::Space { place, name: name.to_owned() }),
            None if osquery_flags::of(flag).is_some() || is_known(flag) => {
                self.oddities.push(Oddity::NoValue { place, name: flag.to_owned() });
            }
            None => self.unknown.push(Given { place, name: flag.to_owned(), value: String::new() }),
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
        Flagfile::read(&path, &|name| name == "of_a_newer_osquery")
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
        assert_eq!((flagfile.oddities, flagfile.unknown, flagfile.files), (vec![], vec![], 1));
    }

    #[test]
    fn what_is_dropped_is_told() {
        let flagfile = read("--no_such=1\n--no_such_either\n--config_refresh 9\n--tls_hostname\n");
        assert_eq!(pairs(&flagfile), []);
        let names: Vec<&str> = flagfile.unknown.iter().map(|given| given.name.as_str()).collect();
        assert_eq!(names, ["no_such", "no_such_either"]);
        let [Oddity::Space { name, place }, Oddity::NoValue { .. }] = flagfile.oddities.as_slice() else {
            panic!("{:?}", flagfile.oddities)
        };
        assert_eq!((name.as_str(), place.line), ("config_refresh", 3));
    }

    #[test]
    fn a_line_without_a_dash_takes_the_rest_away() {
        let flagfile =
            read("--verbose\nosqueryd\n--utc\ntls_hostname=x\n--force\n--daemonize\n/usr/bin/osqueryd\n--S\n");
        assert_eq!(pairs(&flagfile), [("verbose", "true"), ("utc", "true"), ("S", "true")]);
        let [Oddity::Section { place, lost: 2 }] = flagfile.oddities.as_slice() else {
            panic!("{:?}", flagfile.oddities)
        };
        assert_eq!(place.line, 4);
    }

    #[test]
    fn blanks_quotes_and_line_ends_are_told() {
        let flagfile = read("--tls_hostname=fleet \r\n--proxy_hostname=\"p\"\r\n--specified_identifier=a\n");
        assert_eq!(pairs(&flagfile).len(), 3);
        let untidy = flagfile.oddities.iter().filter(|oddity| matches!(oddity, Oddity::Untidy { .. })).count();
        assert_eq!(untidy, 2);
        assert!(matches!(flagfile.oddities.first(), Some(Oddity::MixedLineEnds(_))));
    }

    #[test]
    fn flag_files_name_others_and_maybe_themselves() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| directory.path().join(name));
        std::fs::write(&first, format!("--flagfile={},/no/such\n--verbose\n", second.display())).unwrap();
        std::fs::write(&second, format!("--utc\n--flagfile={}\n", first.display())).unwrap();
        let flagfile = Flagfile::read(&first, &|_| false);
        assert_eq!(pairs(&flagfile).len(), 8);
        assert!(flagfile.oddities.iter().any(|oddity| matches!(oddity, Oddity::TooDeep(_))));
        assert!(flagfile.oddities.iter().any(|oddity| matches!(oddity, Oddity::Unreadable(..))));
    }
}
