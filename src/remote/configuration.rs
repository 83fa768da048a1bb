//! What osqueryd takes for a configuration: its own rules, since a text that it doesn't take costs the host its schedule.
//!
//! osqueryd (5.23, `Config::updateSource`) strips lines that are comments and joins those that a backslash ends, measures
//! what is left, parses it by RapidJSON's grammar up to the first NUL, and counts how deep its values stand. Pure. Held
//! against osqueryd's own verdicts on some hundred texts: tests/corpus/configurations.jsonl.

use std::iter;

/// The most that osqueryd takes as a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigLimits {
    /// Bytes of the document.
    pub bytes: usize,
    /// Levels of values; the whole is the first.
    pub depth: usize,
}

impl ConfigLimits {
    /// osqueryd's limits by its version: 4 MiB from 5.24 on, 1 MiB before, and whenever the version isn't known.
    #[must_use]
    pub fn of_version(version: Option<&str>) -> Self {
        let mut numbers = version.unwrap_or_default().split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Self { bytes: if version >= (5, 24) { 4 << 20 } else { 1 << 20 }, depth: 32 }
    }
}

/// Why osqueryd would not take a text.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Stripped, it is too large.
    #[error("{bytes} bytes without comments, and osqueryd takes {most}")]
    TooLarge {
        /// The bytes that it has without comments.
        bytes: usize,
        /// What it may have.
        most: usize,
    },
    /// It is no JSON.
    #[error("not a JSON object (wrong at byte {at} of what is left without comments)")]
    NotJson {
        /// Where in the stripped text, from 0.
        at: usize,
    },
    /// It is JSON, and no object.
    #[error("not a JSON object")]
    NotAnObject,
    /// Its values stand too deep.
    #[error("{levels} levels of values, and osqueryd takes {most}")]
    TooDeep {
        /// How deep they stand; the whole is the first level.
        levels: usize,
        /// How deep they may stand.
        most: usize,
    },
}

/// What is in a text that osqueryd takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Whether it has any member but `node_invalid` and `etag`, which say something of it.
    pub has_members: bool,
    /// Whether one of them is of [`MEMBERS`].
    pub is_configuration: bool,
}

/// The members that osqueryd (5.23) looks for: its core's, and its config parsers'. An object without any of them is
/// another answer that was misdirected, and would empty the schedule.
pub const MEMBERS: [&str; 16] = [
    "auto_table_construction",
    "decorators",
    "events",
    "exclude_paths",
    "feature_vectors",
    "file_accesses",
    "file_paths",
    "file_paths_query",
    "kafka_topics",
    "logger",
    "options",
    "packs",
    "prometheus_targets",
    "schedule",
    "views",
    "yara",
];

/// Whether osqueryd takes this text.
///
/// # Errors
/// osqueryd refuses the text, and why.
pub fn judge(document: &str, limits: ConfigLimits) -> Result<Outline, Refused> {
    // Measured first: an answer can be much larger than what may be left of it.
    let bytes = stripped(document).map(str::len).sum();
    if bytes > limits.bytes {
        return Err(Refused::TooLarge { bytes, most: limits.bytes });
    }
    let stripped: String = stripped(document).collect();
    let text = stripped.split('\0').next().unwrap_or_default();
    let mut parser = Parser { text: text.as_bytes(), at: 0, levels: 0, outline: Outline::default() };
    parser.document().map_err(|NotJson| Refused::NotJson { at: parser.at })?;
    if !text.trim_start_matches(BLANKS).starts_with('{') {
        return Err(Refused::NotAnObject);
    }
    if parser.levels > limits.depth {
        return Err(Refused::TooDeep { levels: parser.levels, most: limits.depth });
    }
    Ok(parser.outline)
}

/// A text as osqueryd parses it, in pieces: `stripConfigComments`.
fn stripped(document: &str) -> impl Iterator<Item = &str> {
    // Empty lines go, those of blanks stay as empty ones.
    let lines = lines(document).filter(|line| !line.split(JOINT).all(str::is_empty)).map(trimmed);
    lines.filter(|line| !is_comment(line)).flat_map(|line| line.split(JOINT).chain(["\n"]))
}

/// What joins two lines.
const JOINT: &str = "\\\n";

/// Lines as they are joined, with the joints still in them.
fn lines(document: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(document);
    iter::from_fn(move || {
        let text = rest?;
        let mut ends = memchr::memchr_iter(b'\n', text.as_bytes());
        let end = ends.find(|&end| !text.get(..end).is_some_and(|line| line.ends_with('\\')));
        let line = text.get(..end.unwrap_or(text.len()));
        rest = end.and_then(|end| text.get(end + 1..));
        line
    })
}

fn is_comment(line: &str) -> bool {
    let mut joined = line.split(JOINT).flat_map(str::chars);
    match joined.next() {
        Some('#') => true,
        Some('/') => joined.next() == Some('/'),
        _ => false,
    }
}

/// Without what C's `isspace` knows at both ends. A line end within a line is a joint's.
fn trimmed(mut line: &str) -> &str {
    const BLANKS: [char; 5] = [' ', '\t', '\x0b', '\x0c', '\r'];
    while let Some(rest) = line.strip_prefix(BLANKS).or_else(|| line.strip_prefix(JOINT)) {
        line = rest;
    }
    while let Some(rest) = line.strip_suffix(JOINT).or_else(|| line.strip_suffix(BLANKS)) {
        line = rest;
    }
    line
}

/// What RapidJSON passes over between tokens.
const BLANKS: [char; 4] = [' ', '\n', '\r', '\t'];

/// Reads without recursion, as osqueryd does, so that no nesting is too much for it.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    /// How deep the deepest value stands.
    levels: usize,
    /// What the outermost object has.
    outline: Outline,
}

struct NotJson;

type Read = Result<(), NotJson>;

impl Parser<'_> {
    fn document(&mut self) -> Read {
        // What ends each container that is open.
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.blanks();
            self.levels = self.levels.max(open.len() + 1);
            if self.begins(&mut open)? {
                continue;
            }
            if self.goes_on(&mut open)? {
                return Ok(());
            }
        }
    }

    /// Reads a value, or the beginning of one that isn't empty: whether its first element is due next.
    fn begins(&mut self, open: &mut Vec<u8>) -> Result<bool, NotJson> {
        let end = match self.peek() {
            Some(b'{') => b'}',
            Some(b'[') => b']',
            Some(b'"') => return self.string().map(|()| false),
            Some(b't') => return self.word(b"true").map(|()| false),
            Some(b'f') => return self.word(b"false").map(|()| false),
            Some(b'n') => return self.word(b"null").map(|()| false),
            _ => return self.number().map(|()| false),
        };
        self.at += 1;
        self.blanks();
        if self.takes(end) {
            return Ok(false);
        }
        open.push(end);
        if end == b'}' {
            self.name(open.len())?;
        }
        Ok(true)
    }

    /// Reads on behind a value, to where the next one is due: whether that was the whole text.
    fn goes_on(&mut self, open: &mut Vec<u8>) -> Result<bool, NotJson> {
        loop {
            self.blanks();
            match open.last() {
                None if self.at == self.text.len() => return Ok(true),
                None => return Err(NotJson),
                Some(&end) if self.takes(end) => _ = open.pop(),
                Some(&end) => {
                    self.expects(b',')?;
                    if end == b'}' {
                        self.blanks();
                        self.name(open.len())?;
                    }
                    return Ok(false);
                }
            }
        }
    }

    /// A member's name and the colon behind it.
    fn name(&mut self, depth: usize) -> Read {
        let start = self.at + 1;
        if self.peek() != Some(b'"') {
            return Err(NotJson);
        }
        self.string()?;
        if depth == 1 {
            let name = self.text.get(start..self.at - 1).unwrap_or_default();
            self.outline.has_members |= name != b"node_invalid" && name != b"etag";
            // However it is written: a backslash can stand for any character.
            let is_known = MEMBERS.iter().any(|member| member.as_bytes() == name) || name.contains(&b'\\');
            self.outline.is_configuration |= is_known;
        }
        self.blanks();
        self.expects(b':')
    }

    fn string(&mut self) -> Read {
        self.expects(b'"')?;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(byte) if byte >= 0x20 => self.at += 1,
                _ => return Err(NotJson),
            }
        }
    }

    fn escape(&mut self) -> Read {
        self.expects(b'\\')?;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            // A high surrogate needs its low one; a low one alone is taken.
            Some(b'u') => match self.unit()? {
                0xd800..=0xdbff => {
                    self.expects(b'\\')?;
                    match self.unit()? {
                        0xdc00..=0xdfff => Ok(()),
                        _ => Err(NotJson),
                    }
                }
                _ => Ok(()),
            },
            _ => Err(NotJson),
        }
    }

    /// A `u` and four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, NotJson> {
        self.expects(b'u')?;
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16)).ok_or(NotJson)?;
            unit = unit * 16 + digit;
            self.at += 1;
        }
        Ok(unit)
    }

    /// A number that RapidJSON takes: it refuses those that it can't keep in a double, by rules of its own.
    fn number(&mut self) -> Read {
        let most = if self.takes(b'-') { 1 << 63 } else { u64::MAX };
        let whole = self.whole(most)?;
        let fraction = if self.takes(b'.') { self.fraction(&whole)? } else { 0 };
        if !self.takes(b'e') && !self.takes(b'E') {
            return Ok(());
        }
        let is_negative = self.takes(b'-');
        if !is_negative {
            self.takes(b'+');
        }
        let mut exponent = u64::from(self.digit().ok_or(NotJson)?);
        while let Some(digit) = self.digit() {
            exponent = exponent.saturating_mul(10).saturating_add(digit.into());
            // The first digit alone is never too much.
            if !is_negative && exponent > 308 + fraction {
                return Err(NotJson);
            }
        }
        Ok(())
    }

    /// The digits before the point. RapidJSON goes on with a double where they are more than `most`.
    fn whole(&mut self, most: u64) -> Result<Whole, NotJson> {
        let first = self.digit().ok_or(NotJson)?;
        let mut whole = Whole { value: first.into(), is_double: false, digits: 0 };
        if first == 0 {
            return Ok(whole);
        }
        let mut double = 0.0;
        while let Some(digit) = self.digit() {
            let exact = whole.value.checked_mul(10).and_then(|value| value.checked_add(digit.into()));
            match exact.filter(|exact| !whole.is_double && *exact <= most) {
                Some(exact) => {
                    whole.value = exact;
                    whole.digits += 1;
                }
                None => {
                    if !whole.is_double {
                        #[allow(clippy::cast_precision_loss)]
                        let value = whole.value as f64;
                        (double, whole.is_double) = (value, true);
                    }
                    // A tenth of the largest double, as RapidJSON has it.
                    if double >= 1.797_693_134_862_315_7e307 {
                        return Err(NotJson);
                    }
                    double = double * 10.0 + f64::from(digit);
                }
            }
        }
        Ok(whole)
    }

    /// The digits behind the point: how many of them RapidJSON looks at, by which the exponent may be greater.
    fn fraction(&mut self, whole: &Whole) -> Result<u64, NotJson> {
        const MOST_EXACT: u64 = (1 << 53) - 1;
        let (mut value, mut digits, mut looked_at) = (whole.value, whole.digits, 0);
        let mut is_exact = !whole.is_double;
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(NotJson);
        }
        while let Some(digit) = self.digit() {
            is_exact &= value <= MOST_EXACT;
            if is_exact {
                value = value * 10 + u64::from(digit);
            } else if digits >= 17 {
                continue;
            }
            looked_at += 1;
            if !is_exact || value != 0 {
                digits += 1;
            }
        }
        Ok(looked_at)
    }

    fn digit(&mut self) -> Option<u8> {
        let byte = self.peek().filter(u8::is_ascii_digit)?;
        self.at += 1;
        Some(byte - b'0')
    }

    fn word(&mut self, word: &[u8]) -> Read {
        word.iter().try_for_each(|&byte| self.expects(byte))
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn expects(&mut self, byte: u8) -> Read {
        if self.takes(byte) { Ok(()) } else { Err(NotJson) }
    }

    fn takes(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
}

/// A number's digits before the point.
struct Whole {
    /// As far as it is exact.
    value: u64,
    /// It is more than that.
    is_double: bool,
    /// Those behind the first that are in `value`.
    digits: u32,
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// A line of the corpus: texts with how often each stands behind the other, and whether osqueryd took the whole.
    #[derive(Deserialize)]
    struct Recorded {
        input: Vec<(String, usize)>,
        taken: bool,
    }

    const LIMITS: ConfigLimits = ConfigLimits { bytes: 1 << 20, depth: 32 };

    #[test]
    fn judges_every_text_of_the_corpus_as_osqueryd_did() {
        let corpus = include_str!("../../tests/corpus/configurations.jsonl");
        let (mut taken, mut refused) = (0, 0);
        for (line, recorded) in (1..).zip(corpus.lines()) {
            let Recorded { input, taken: right } = serde_json::from_str(recorded).unwrap();
            let text: String = input.iter().map(|(text, times)| text.repeat(*times)).collect();
            let judged = judge(&text, LIMITS);
            assert_eq!(
                judged.is_ok(),
                right,
                "line {line}: {judged:?}\n{}",
                text.chars().take(2000).collect::<String>()
            );
            *if right { &mut taken } else { &mut refused } += 1;
        }
        assert!(taken > 200 && refused > 200, "{taken} taken, {refused} refused");
    }

    #[test]
    fn stripping_in_pieces_is_stripping_a_copy() {
        let at_once = |document: &str| {
            let joined = document.replace("\\\n", "");
            let lines = joined.split('\n').filter(|line| !line.is_empty());
            let lines = lines.map(|line| line.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']));
            let lines = lines.filter(|line| !line.starts_with('#') && !line.starts_with("//"));
            lines.flat_map(|line| [line, "\n"]).collect::<String>()
        };
        let pieces = ["\\", "\n", "\\\n", " ", "\r", "#", "/", "//", "a", "\u{e9}"];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..100_000 {
            let document: String = (0..random.usize(..12)).map(|_| pieces[random.usize(..pieces.len())]).collect();
            assert_eq!(stripped(&document).collect::<String>(), at_once(&document), "{document:?}");
        }
    }

    #[test]
    fn says_what_is_wrong_and_what_is_there() {
        let judged = |text: &str| judge(text, ConfigLimits { bytes: 20, depth: 2 });
        let outline = |has_members, is_configuration| Ok(Outline { has_members, is_configuration });
        assert_eq!(judged("{\"a\":1,\n#x\n\"b\":{}}"), outline(true, false));
        assert_eq!(judged("{\"a\":1,\"yara\":{}}"), outline(true, true));
        assert_eq!(judged("{\"\\u0079ara\":{}}"), outline(true, true));
        assert_eq!(judged("{\"node_invalid\":{}}"), outline(false, false));
        assert_eq!(judged("{\"a\":{\"b\":1}}"), Err(Refused::TooDeep { levels: 3, most: 2 }));
        assert_eq!(judged("[]"), Err(Refused::NotAnObject));
        assert_eq!(judged("{\"a\"}"), Err(Refused::NotJson { at: 4 }));
        assert_eq!(judged("{\"a\":\"123456789012\"}"), Err(Refused::TooLarge { bytes: 21, most: 20 }));
    }
}
