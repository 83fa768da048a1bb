//! What was given for our flags, and where: on the command line, or in our flag file.
//!
//! Nothing here judges values: [`Settings`](crate::settings::Settings) does. A name that this version doesn't know may
//! be of a newer or an older one: it is passed over and named, and everything else counts.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::files;

use super::{AnyFlag, DEFAULT_FLAGFILE, FLAGFILE_VARIABLE, FLAGS, named};

/// The largest flag file, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// The flags of ours that were given, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnFlags(BTreeMap<&'static str, Given>);

/// A flag's value as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The text; bytes that are no UTF-8 have become U+FFFD.
    pub text: String,
    /// Where it was given.
    pub origin: Origin,
}

/// Where a flag was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On our command line.
    CommandLine,
    /// In a flag file, in this line, counted from 1.
    File(PathBuf, usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// A line of the flag file that can't be used. The line is passed over, the others count.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FlagfileError {
    /// The file is there and can't be read.
    #[error("can't read {path}: {reason}", path = .path.display())]
    Unreadable {
        /// The path of the flag file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// This version has no flag of that name.
    #[error("{path}:{line}: there is no flag --{name}; there are {known}", path = .path.display(), known = known())]
    Unknown {
        /// The path of the flag file.
        path: PathBuf,
        /// The number of the line, counted from 1.
        line: usize,
        /// The name that was given.
        name: String,
    },
    /// One line is no `--name=value`.
    #[error("{path}:{line}: {reason}", path = .path.display())]
    Line {
        /// The path of the flag file.
        path: PathBuf,
        /// The number of the line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a line of a flag file is.
enum Line {
    /// A comment, or nothing.
    Silent,
    Flag(&'static AnyFlag, String),
    Unknown(String),
    Wrong(String),
}

/// The path of our flag file: [`FLAGFILE_VARIABLE`] names it, or it is [`DEFAULT_FLAGFILE`].
#[must_use]
pub fn flagfile() -> PathBuf {
    std::env::var_os(FLAGFILE_VARIABLE).map_or_else(|| DEFAULT_FLAGFILE.into(), PathBuf::from)
}

/// The flags that count: the command line's, and where it is silent those of our flag file as it is now; and what could
/// not be used of that file.
#[must_use]
pub fn read(command_line: &OwnFlags) -> (OwnFlags, Vec<FlagfileError>) {
    let (file, errors) = OwnFlags::read_file(&flagfile());
    (command_line.clone().or(file), errors)
}

impl OwnFlags {
    /// What was given for this flag.
    #[must_use]
    pub fn get(&self, flag: &AnyFlag) -> Option<&Given> {
        self.0.get(flag.name)
    }

    /// The text that was given for the flag of this name.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|given| given.text.as_str())
    }

    /// Takes this for what was given for a flag.
    pub fn set(&mut self, flag: &AnyFlag, text: impl Into<String>, origin: Origin) {
        self.0.insert(flag.name, Given { text: text.into(), origin });
    }

    /// These flags, and this one as if it were on the command line.
    #[must_use]
    pub fn with(mut self, flag: &AnyFlag, text: impl Into<String>) -> Self {
        self.set(flag, text, Origin::CommandLine);
        self
    }

    /// Takes this flag for one that was not given.
    pub fn remove(&mut self, flag: &AnyFlag) {
        self.0.remove(flag.name);
    }

    /// These flags, and where they are silent those of `other`.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        for (name, given) in other.0 {
            self.0.entry(name).or_insert(given);
        }
        self
    }

    /// These flags as arguments of a command line.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<String> {
        self.0.iter().map(|(name, given)| format!("--{name}={}", given.text)).collect()
    }

    /// Reads a flag file: `--name=value` a line, `#` begins a comment, the last line of a name counts. A file that
    /// isn't there holds no flags.
    #[must_use]
    pub fn read_file(path: &Path) -> (Self, Vec<FlagfileError>) {
        match files::read(path, LARGEST_FILE) {
            // A byte that is no UTF-8 makes its line, and not the file, useless.
            Ok(bytes) => Self::parse(path, &String::from_utf8_lossy(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(error) => {
                let error = FlagfileError::Unreadable { path: path.to_owned(), reason: error.to_string() };
                (Self::default(), vec![error])
            }
        }
    }

    /// The flags of a flag file's text; `path` is for its errors, and to say where they were given.
    #[must_use]
    pub fn parse(path: &Path, text: &str) -> (Self, Vec<FlagfileError>) {
        let mut flags = Self::default();
        let mut errors = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let path = path.to_owned();
            match Line::parse(text) {
                Line::Silent => {}
                Line::Flag(flag, value) => flags.set(flag, value, Origin::File(path, line)),
                Line::Unknown(name) => errors.push(FlagfileError::Unknown { path, line, name }),
                Line::Wrong(reason) => errors.push(FlagfileError::Line { path, line, reason }),
            }
        }
        (flags, errors)
    }
}

impl Line {
    fn parse(line: &str) -> Self {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Self::Silent;
        }
        // Without the line's text: it may be a secret that was meant for another file.
        let Some(flag) = line.strip_prefix("--").or_else(|| line.strip_prefix('-')) else {
            return Self::Wrong("this is no --name=value".to_owned());
        };
        let (before, value) = flag.split_once('=').map_or((flag, None), |(before, value)| (before, Some(value)));
        let name = before.split_whitespace().next().unwrap_or_default();
        match (named(name), value) {
            _ if name.is_empty() => Self::Wrong("this is no --name=value".to_owned()),
            (None, _) if looks_like_a_name(name) => Self::Unknown(name.to_owned()),
            // Not even its beginning: the file may be another one.
            (None, _) => Self::Wrong("this is no --name=value of ours".to_owned()),
            (Some(flag), Some(value)) if before == name => Self::Flag(flag, value.to_owned()),
            (Some(flag), _) => {
                Self::Wrong(format!("--{name} needs a value behind a =: --{name}={}", flag.kind.placeholder()))
            }
        }
    }
}

fn looks_like_a_name(text: &str) -> bool {
    text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// The names of all flags, for messages.
fn known() -> String {
    FLAGS.iter().map(|flag| format!("--{}", flag.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::{BUFFER_PATH, LOG_LEVEL, REQUEST_TIMEOUT, RETURN_TIMEOUT};
    use super::*;

    fn text<'a>(flags: &'a OwnFlags, flag: &AnyFlag) -> Option<&'a str> {
        flags.get(flag).map(|given| given.text.as_str())
    }

    fn parse(text: &str) -> (OwnFlags, Vec<String>) {
        let (flags, errors) = OwnFlags::parse(Path::new("/etc/f"), text);
        (flags, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_flag_file_is_read_and_its_unknown_flags_are_named() {
        let (flags, errors) =
            parse("# ours\n\n--buffer_path=/a\n  -request_timeout=9 \n--no_such_flag=1\n--buffer_path=/b c\n");
        assert_eq!(text(&flags, &BUFFER_PATH), Some("/b c"));
        assert_eq!(text(&flags, &REQUEST_TIMEOUT), Some("9"));
        assert_eq!(text(&flags, &LOG_LEVEL), None);
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        assert!(error.starts_with("/etc/f:5: there is no flag --no_such_flag; there are --buffer_path, "), "{error}");
        assert!(FLAGS.iter().all(|flag| error.contains(&format!("--{}", flag.name))), "{error}");
        assert_eq!(flags.get(&BUFFER_PATH).unwrap().origin.to_string(), "/etc/f:6");
    }

    #[test]
    fn lines_that_are_no_flags_are_named_by_their_number_only() {
        let (flags, errors) = parse("hunter2\n--\n--request_timeout\n--request_timeout 9\n-request_timeout =9\n--=9\n");
        assert_eq!(flags, OwnFlags::default());
        assert_eq!(
            errors,
            [
                "/etc/f:1: this is no --name=value",
                "/etc/f:2: this is no --name=value",
                "/etc/f:3: --request_timeout needs a value behind a =: --request_timeout=SECONDS",
                "/etc/f:4: --request_timeout needs a value behind a =: --request_timeout=SECONDS",
                "/etc/f:5: --request_timeout needs a value behind a =: --request_timeout=SECONDS",
                "/etc/f:6: this is no --name=value",
            ]
        );
    }

    #[test]
    fn every_flag_can_be_given_in_a_file_and_becomes_an_argument() {
        let lines: Vec<String> = FLAGS.iter().map(|flag| format!("--{}=a =b", flag.name)).collect();
        let (flags, errors) = parse(&lines.join("\n"));
        assert_eq!(errors, [""; 0]);
        assert!(FLAGS.iter().all(|flag| text(&flags, flag) == Some("a =b")), "{flags:?}");
        let mut sorted = lines;
        sorted.sort();
        assert_eq!(flags.to_arguments(), sorted);
        assert_eq!(OwnFlags::default().to_arguments(), Vec::<String>::new());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let command_line = OwnFlags::default().with(&REQUEST_TIMEOUT, "9");
        let (file, _) = parse("--request_timeout=7\n--return_timeout=8\n");
        let flags = command_line.or(file);
        assert_eq!(text(&flags, &REQUEST_TIMEOUT), Some("9"));
        assert_eq!(flags.get(&REQUEST_TIMEOUT).unwrap().origin, Origin::CommandLine);
        assert_eq!(text(&flags, &RETURN_TIMEOUT), Some("8"));
    }

    #[test]
    fn a_file_that_is_not_there_holds_no_flags_and_one_that_can_not_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(OwnFlags::read_file(&directory.path().join("missing")), (OwnFlags::default(), vec![]));
        let (flags, errors) = OwnFlags::read_file(directory.path());
        assert_eq!(flags, OwnFlags::default());
        assert!(errors[0].to_string().starts_with(&format!("can't read {}: ", directory.path().display())));
    }
}
