//! What a flag of ours can be: a number in a range, one of a few words, a path, public keys, the system's log.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::SYSLOG_SOCKET;
use crate::settings::{Pin, Server};

/// What gflags, and so osquery, reads as true; the first is shown.
pub const TRUE: &[&str] = &["true", "1", "t", "yes", "y"];

/// What gflags reads as false; the first is shown.
pub const FALSE: &[&str] = &["false", "0", "f", "no", "n"];

/// What is to be said of a flag's values, whatever their type.
pub trait Kind: Sync {
    /// What stands for a value in `--help`: `BYTES`.
    fn placeholder(&self) -> &'static str;

    /// The default as it would be given; `None` when it is not a value that could be given.
    fn default_text(&self) -> Option<String> {
        None
    }

    /// What can be given, to be followed by "is needed".
    fn allowed(&self) -> String;

    /// Whether this text is a value.
    fn accepts(&self, text: &str) -> bool;

    /// The least and the greatest value of a number.
    fn range(&self) -> Option<RangeInclusive<u64>> {
        None
    }
}

/// A kind of flag whose texts become values.
pub trait Parse: Kind {
    /// The type of the values that are made.
    type Value;

    /// The value; `None` when the text is not allowed.
    fn parse(&self, text: &str) -> Option<Self::Value>;

    /// The value when the flag isn't given, or is given a text that is not allowed.
    fn default(&self) -> Self::Value;
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// It is a size in bytes.
    Bytes,
    /// It is a time in seconds.
    Seconds,
    /// It counts what the flag's name says.
    Pieces,
}

/// A whole number within a range.
#[derive(Debug)]
pub struct Number {
    /// The unit of the number.
    pub unit: Unit,
    /// From the least to the greatest.
    pub range: RangeInclusive<u64>,
    /// Its default, within the range.
    pub default: u64,
}

impl Kind for Number {
    fn placeholder(&self) -> &'static str {
        match self.unit {
            Unit::Bytes => "BYTES",
            Unit::Seconds => "SECONDS",
            Unit::Pieces => "NUMBER",
        }
    }

    fn default_text(&self) -> Option<String> {
        Some(self.default.to_string())
    }

    fn allowed(&self) -> String {
        let what = match self.unit {
            Unit::Bytes => "a number of bytes",
            Unit::Seconds => "a whole number of seconds",
            Unit::Pieces => "a number",
        };
        match (self.range.start(), self.range.end()) {
            (0, &u64::MAX) => what.to_owned(),
            (least, &u64::MAX) => format!("{what}, at least {least}"),
            (least, most) => format!("{what} from {least} to {most}"),
        }
    }

    fn accepts(&self, text: &str) -> bool {
        self.parse(text).is_some()
    }

    fn range(&self) -> Option<RangeInclusive<u64>> {
        Some(self.range.clone())
    }
}

impl Parse for Number {
    type Value = u64;

    fn parse(&self, text: &str) -> Option<u64> {
        text.trim().parse().ok().filter(|number| self.range.contains(number))
    }

    fn default(&self) -> u64 {
        self.default
    }
}

/// One of a few words.
#[derive(Debug)]
pub struct Words<T: 'static> {
    /// What stands for one in `--help`.
    pub placeholder: &'static str,
    /// Each value with its spellings, of which the first is shown.
    pub words: &'static [(&'static [&'static str], T)],
    /// Its default, one of them.
    pub default: T,
}

impl<T: Copy + PartialEq + Sync> Kind for Words<T> {
    fn placeholder(&self) -> &'static str {
        self.placeholder
    }

    fn default_text(&self) -> Option<String> {
        let (spellings, _) = self.words.iter().find(|(_, value)| *value == self.default)?;
        spellings.first().map(|&word| word.to_owned())
    }

    fn allowed(&self) -> String {
        let shown: Vec<&str> = self.words.iter().filter_map(|(spellings, _)| spellings.first().copied()).collect();
        match shown.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }

    fn accepts(&self, text: &str) -> bool {
        self.parse(text).is_some()
    }
}

impl<T: Copy + PartialEq + Sync> Parse for Words<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Option<T> {
        self.words.iter().find(|(spellings, _)| spellings.contains(&text)).map(|(_, value)| *value)
    }

    fn default(&self) -> T {
        self.default
    }
}

/// A path; `None` by default, and when the flag is empty.
#[derive(Debug)]
pub struct OptionalPath;

impl Kind for OptionalPath {
    fn placeholder(&self) -> &'static str {
        "PATH"
    }

    fn allowed(&self) -> String {
        "a path in UTF-8".to_owned()
    }

    fn accepts(&self, text: &str) -> bool {
        self.parse(text).is_some()
    }
}

impl Parse for OptionalPath {
    type Value = Option<PathBuf>;

    fn parse(&self, text: &str) -> Option<Option<PathBuf>> {
        // What stood for bytes that are no UTF-8 would name another file.
        let usable = !text.contains(char::REPLACEMENT_CHARACTER);
        usable.then(|| Some(text).filter(|path| !path.is_empty()).map(PathBuf::from))
    }

    fn default(&self) -> Option<PathBuf> {
        None
    }
}

/// [Pins](Pin); none by default, and when it is empty.
#[derive(Debug)]
pub struct PublicKeys;

impl Kind for PublicKeys {
    fn placeholder(&self) -> &'static str {
        "PIN,PIN"
    }

    fn allowed(&self) -> String {
        "a list of public keys' SHA-256 in base64 (44 characters each) with commas between".to_owned()
    }

    fn accepts(&self, text: &str) -> bool {
        Pin::parse_all(text).is_ok()
    }
}

/// Servers in their order; none by default, and when it is empty.
#[derive(Debug)]
pub struct Servers;

impl Kind for Servers {
    fn placeholder(&self) -> &'static str {
        "HOST,HOST"
    }

    fn allowed(&self) -> String {
        "a list of host or host:port, without a scheme, with commas between".to_owned()
    }

    fn accepts(&self, text: &str) -> bool {
        self.parse(text).is_some()
    }
}

impl Parse for Servers {
    type Value = Vec<Server>;

    fn parse(&self, text: &str) -> Option<Vec<Server>> {
        if text.trim().is_empty() {
            return Some(Vec::new());
        }
        text.split(',').map(|server| Server::parse(server.trim())).collect()
    }

    fn default(&self) -> Vec<Server> {
        Vec::new()
    }
}

/// The socket of the system's log, or none: a truth value, or a path.
#[derive(Debug)]
pub struct SystemLog;

impl Kind for SystemLog {
    fn placeholder(&self) -> &'static str {
        "BOOL|PATH"
    }

    fn default_text(&self) -> Option<String> {
        FALSE.first().map(|&word| word.to_owned())
    }

    fn allowed(&self) -> String {
        "true, false or a socket's path".to_owned()
    }

    fn accepts(&self, text: &str) -> bool {
        self.parse(text).is_some()
    }
}

impl Parse for SystemLog {
    type Value = Option<PathBuf>;

    fn parse(&self, text: &str) -> Option<Option<PathBuf>> {
        match text {
            word if TRUE.contains(&word) => Some(Some(SYSLOG_SOCKET.into())),
            word if FALSE.contains(&word) || word.is_empty() => Some(None),
            path if path.starts_with('/') => OptionalPath.parse(path),
            _ => None,
        }
    }

    fn default(&self) -> Option<PathBuf> {
        None
    }
}
