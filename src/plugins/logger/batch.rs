//! Records that stand for many lines, and the lines that they stand for.
//!
//! * With `--logger_event_type=false` osqueryd hands a query's whole difference over in one call, `{"diffResults":
//!   {"removed": [row…], "added": [row…]}, "name": …}`, which costs it a fraction of what a call a row costs. The
//!   server gets what it would have got: the same lines in the same order, byte for byte, since every member is passed on as
//!   osqueryd has written it.
//! * `{"string_batch": ["line", …]}` is a `string_batch` call.
//!
//! A record may have hundreds of megabytes, so it is read in pieces: once for its [`Outline`], which is small, and then
//! row by row. Nothing here knows whether a row is JSON in all its depth; the sender looks at that.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// Beside the rows, a batch has a name, times, decorations: a record with more than this is no batch.
const LARGEST_HEAD: usize = 1 << 20;

/// What a batch record holds, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outline {
    /// What each event line begins with: `{`, and the batch's other members, each followed by a comma.
    head: Vec<u8>,
    /// The arrays in the order in which their elements become lines.
    arrays: Vec<Array>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Array {
    kind: Element,
    /// From behind `[` to `]`, in the record.
    bytes: Range<u64>,
}

/// What an array's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    /// Rows of this action.
    Row(&'static str),
    /// Lines, as JSON strings.
    Line,
}

// Names of members, as JSON.
const DIFFERENCE: &[u8] = b"\"diffResults\"";
const REMOVED: &[u8] = b"\"removed\"";
const ADDED: &[u8] = b"\"added\"";
const BATCH: &[u8] = b"\"string_batch\"";

/// Whether a record that begins so may be a batch; most are told apart by this.
pub(crate) fn may_be_batch(beginning: &[u8]) -> bool {
    let rest = beginning.trim_ascii_start().strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
    rest.is_some_and(|rest| rest.starts_with(DIFFERENCE) || rest.starts_with(BATCH))
}

impl Outline {
    /// `None` for any record but a batch.
    ///
    /// # Errors
    /// The record can't be read.
    pub(crate) fn of(record: impl Read + Seek) -> io::Result<Option<Self>> {
        match Self::scan(&mut Window::new(record, 0)?) {
            Ok(outline) => Ok(Some(outline)),
            Err(Scan::Other) => Ok(None),
            Err(Scan::Io(error)) => Err(error),
        }
    }

    fn scan<R: Read + Seek>(window: &mut Window<R>) -> Result<Self, Scan> {
        let mut outline = Self { head: b"{".to_vec(), arrays: Vec::new() };
        let mut members = 0;
        window.expect(b'{')?;
        while members == 0 || window.separator(b'}')? {
            members += 1;
            let name = window.value()?.to_vec();
            window.expect(b':')?;
            match name.as_slice() {
                DIFFERENCE if outline.arrays.is_empty() => outline.difference(window)?,
                BATCH if outline.arrays.is_empty() => outline.array(window, Element::Line)?,
                _ => outline.member(&name, window.value()?)?,
            }
        }
        let is_whole = window.peek()?.is_none() && !outline.arrays.is_empty();
        // A batch of lines is made by our front, and has nothing else.
        let is_alone = members == 1 || !outline.arrays.iter().any(|array| array.kind == Element::Line);
        outline.arrays.sort_by_key(|array| array.kind == Element::Row("added"));
        if is_whole && is_alone { Ok(outline) } else { Err(Scan::Other) }
    }

    fn member(&mut self, name: &[u8], value: &[u8]) -> Result<(), Scan> {
        if self.head.len() + name.len() + value.len() > LARGEST_HEAD {
            return Err(Scan::Other);
        }
        for part in [name, b":", value, b","] {
            self.head.extend(part);
        }
        Ok(())
    }

    fn difference<R: Read + Seek>(&mut self, window: &mut Window<R>) -> Result<(), Scan> {
        window.expect(b'{')?;
        if window.peek()? == Some(b'}') {
            return window.expect(b'}');
        }
        loop {
            let action = match window.value()? {
                REMOVED => "removed",
                ADDED => "added",
                _ => return Err(Scan::Other),
            };
            window.expect(b':')?;
            self.array(window, Element::Row(action))?;
            if !window.separator(b'}')? {
                return Ok(());
            }
        }
    }

    /// Passes over an array, whose elements must be what they should be.
    fn array<R: Read + Seek>(&mut self, window: &mut Window<R>, kind: Element) -> Result<(), Scan> {
        let opening = match kind {
            Element::Row(_) => b'{',
            Element::Line => b'"',
        };
        window.expect(b'[')?;
        let start = window.offset();
        let mut end = start;
        if window.peek()? == Some(b']') {
            window.expect(b']')?;
        } else {
            loop {
                if window.value()?.first() != Some(&opening) {
                    return Err(Scan::Other);
                }
                end = window.offset();
                if !window.separator(b']')? {
                    break;
                }
            }
        }
        self.arrays.push(Array { kind, bytes: start..end });
        Ok(())
    }

    /// Whether it is a query's whole difference, and not a batch of lines.
    pub(crate) fn is_difference(&self) -> bool {
        self.arrays.iter().all(|array| array.kind != Element::Line)
    }

    /// The lines from the beginning.
    ///
    /// # Errors
    /// The record can't be read.
    #[cfg(test)]
    pub(crate) fn lines<R: Read + Seek>(&self, record: R) -> io::Result<Lines<'_, R>> {
        self.lines_from(record, LinePosition::default())
    }

    /// The lines from a position on that [`Lines::position`] has told.
    ///
    /// # Errors
    /// The record can't be read.
    pub(crate) fn lines_from<R: Read + Seek>(&self, record: R, position: LinePosition) -> io::Result<Lines<'_, R>> {
        let offset = self.arrays.get(position.array).map_or(0, |array| array.bytes.start + position.offset);
        Ok(Lines { outline: self, window: Window::new(record, offset)?, position, line: Vec::new() })
    }
}

/// Where the next line of a batch is: in which array, and how far into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinePosition {
    array: usize,
    offset: u64,
}

/// The lines of a batch, one after the other.
pub(crate) struct Lines<'o, R> {
    outline: &'o Outline,
    window: Window<R>,
    position: LinePosition,
    line: Vec<u8>,
}

impl<R: Read + Seek> Lines<'_, R> {
    /// Where the next line is.
    pub(crate) fn position(&self) -> LinePosition {
        self.position
    }

    /// The next line; `None` behind the last one.
    ///
    /// # Errors
    /// The record can't be read, or is another one than its outline says.
    pub(crate) fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        let kind = loop {
            let Some(array) = self.outline.arrays.get(self.position.array) else { return Ok(None) };
            if array.bytes.start + self.position.offset < array.bytes.end {
                break array.kind;
            }
            self.position = LinePosition { array: self.position.array + 1, offset: 0 };
            if let Some(next) = self.outline.arrays.get(self.position.array) {
                self.window.seek(next.bytes.start)?;
            }
        };
        let element = self.window.value()?;
        self.line.clear();
        match kind {
            Element::Row(action) => {
                for part in
                    [&self.outline.head, &b"\"columns\":"[..], element, b",\"action\":\"", action.as_bytes(), b"\"}"]
                {
                    self.line.extend(part);
                }
            }
            // What is no UTF-8 is repaired here, since escapes and bytes stand side by side; the mark is set by the
            // sender of the line.
            Element::Line => {
                let text = String::from_utf8_lossy(element);
                let line: String = serde_json::from_str(&text).map_err(io::Error::other)?;
                self.line.extend(line.as_bytes());
            }
        }
        if matches!(self.window.peek(), Ok(Some(b','))) {
            self.window.expect(b',')?;
        }
        let start = self.outline.arrays.get(self.position.array).map_or(0, |array| array.bytes.start);
        self.position.offset = self.window.offset().saturating_sub(start);
        Ok(Some(&self.line))
    }
}

/// Why a scan ended early.
enum Scan {
    /// It is no batch.
    Other,
    /// It can't be read.
    Io(io::Error),
}

impl From<io::Error> for Scan {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Scan> for io::Error {
    fn from(scan: Scan) -> Self {
        match scan {
            Scan::Other => io::Error::new(ErrorKind::InvalidData, "the record is another one than its outline says"),
            Scan::Io(error) => error,
        }
    }
}

/// A part of a record in memory: one JSON value, and what was read behind it.
struct Window<R> {
    record: R,
    bytes: Vec<u8>,
    /// Where `bytes` begins in the record.
    start: u64,
    /// How far `bytes` was used.
    at: usize,
}

impl<R: Read + Seek> Window<R> {
    fn new(record: R, offset: u64) -> io::Result<Self> {
        let mut window = Self { record, bytes: Vec::new(), start: 0, at: 0 };
        window.seek(offset)?;
        Ok(window)
    }

    fn seek(&mut self, offset: u64) -> io::Result<()> {
        let end = self.start + self.bytes.len() as u64;
        if (self.start..=end).contains(&offset) && !self.bytes.is_empty() {
            self.at = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
            return Ok(());
        }
        self.record.seek(SeekFrom::Start(offset))?;
        self.bytes.clear();
        (self.start, self.at) = (offset, 0);
        Ok(())
    }

    fn offset(&self) -> u64 {
        self.start + self.at as u64
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Reads more behind what is there: whether there was more.
    fn grow(&mut self) -> io::Result<bool> {
        self.bytes.drain(..self.at.min(self.bytes.len()));
        self.start += std::mem::take(&mut self.at) as u64;
        // Twice as much each time, so that a long value isn't looked at again and again.
        let more = self.bytes.len().max(CHUNK);
        let read = self.record.by_ref().take(more as u64).read_to_end(&mut self.bytes)?;
        Ok(read > 0)
    }

    /// The next byte that isn't white space; `None` at the end.
    fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            let blanks = self.rest().len() - self.rest().trim_ascii_start().len();
            self.at += blanks;
            if let Some(byte) = self.rest().first() {
                return Ok(Some(*byte));
            }
            if !self.grow()? {
                return Ok(None);
            }
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Scan> {
        if self.peek()? != Some(byte) {
            return Err(Scan::Other);
        }
        self.at += 1;
        Ok(())
    }

    /// A comma (true), or the closing bracket.
    fn separator(&mut self, closing: u8) -> Result<bool, Scan> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            Some(b',') => Ok(true),
            Some(byte) if byte == closing => Ok(false),
            _ => Err(Scan::Other),
        }
    }

    /// The next value, whatever it is.
    fn value(&mut self) -> Result<&[u8], Scan> {
        self.peek()?;
        let length = loop {
            match value_length(self.rest()) {
                Some(length) => break length,
                None if self.grow()? => {}
                None => return Err(Scan::Other),
            }
        };
        let start = self.at;
        self.at += length;
        Ok(self.bytes.get(start..self.at).unwrap_or_default())
    }
}

/// How long the JSON value is that these bytes begin with; `None` when its end isn't among them.
fn value_length(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        b'"' => string_length(bytes),
        b'{' | b'[' => nested_length(bytes),
        _ => bytes.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b':' | b' ' | b'\t' | b'\r' | b'\n')),
    }
}

fn nested_length(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at += string_length(bytes.get(at..)?)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn string_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some(at + 1);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn expand(record: &str) -> Option<Vec<String>> {
        let outline = Outline::of(Cursor::new(record)).unwrap()?;
        let mut lines = outline.lines(Cursor::new(record)).unwrap();
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            all.push(String::from_utf8(line.to_vec()).unwrap());
        }
        Some(all)
    }

    #[test]
    fn a_batch_becomes_the_lines_that_osqueryd_would_have_written() {
        let batch = include_str!("../../../tests/blackbox/samples/05_log_line_batch_diffresults.json").trim_end();
        let (_, rest) = batch.split_once("},\"name\"").unwrap();
        let rest = rest.trim_end_matches('}');
        let line = |row: &str, action: &str| {
            format!("{{\"name\"{rest}}},\"columns\":{{\"pid\":\"{row}\"}},\"action\":\"{action}\"}}")
        };
        assert_eq!(expand(batch), Some(vec![line("640", "removed"), line("812", "added"), line("813", "added")]));
        assert!(may_be_batch(batch.as_bytes()) && may_be_batch(b" { \"string_batch\":["));
        assert!(!may_be_batch(b"{\"name\":\"diffResults\""));
    }

    #[test]
    fn bytes_stay_as_they_are_and_the_order_of_the_batch_s_members_does_not_matter() {
        let batch = r#"{"name":"a\u0041\/","x":1.50,"diffResults":{"added":[{"n":1e3,"p":"\ud83d\ude00 é"} , {"a":[{}]}],"removed":[]},"d":{"a":"b"}}"#;
        let line =
            |row: &str| format!(r#"{{"name":"a\u0041\/","x":1.50,"d":{{"a":"b"}},"columns":{row},"action":"added"}}"#);
        assert_eq!(expand(batch), Some(vec![line(r#"{"n":1e3,"p":"\ud83d\ude00 é"}"#), line(r#"{"a":[{}]}"#)]));
    }

    #[test]
    fn a_batch_of_lines_becomes_its_lines() {
        assert_eq!(expand(r#"{"string_batch":["{\"a\":\"\\\"\"}","é\n",""]}"#).unwrap(), [r#"{"a":"\""}"#, "é\n", ""]);
        assert_eq!(expand(r#"{"string_batch":[]}"#), Some(Vec::new()));
    }

    #[test]
    fn any_other_record_stays_whole() {
        for record in [
            r#"{"snapshot":[{"path":"\"diffResults\""}],"action":"snapshot","name":"q"}"#,
            r#"{"name":"diffResults","columns":{"a":"b"},"action":"added"}"#,
            r#"{"diffResults":{"removed":[],"added":[1]},"name":"q"}"#,
            r#"{"diffResults":{"removed":[],"added":[],"changed":[]},"name":"q"}"#,
            r#"{"diffResults":{"removed":[],"added":{}},"name":"q"}"#,
            r#"{"diffResults":[],"name":"q"}"#,
            r#"{"diffResults":{"removed":[],"added":[]},"name":"#,
            r#"{"diffResults":{"removed":[],"added":[{"a":"b"]},"name":"q"}"#,
            r#"{"diffResults":{"removed":[],"added":[]},"name":"q"} x"#,
            r#"{"string_batch":["a"],"x":1}"#,
            r#"{"string_batch":[{}]}"#,
            r#""diffResults""#,
            "",
        ] {
            assert_eq!(expand(record), None, "{record}");
        }
    }

    #[test]
    fn an_empty_difference_is_no_line() {
        assert_eq!(expand(r#"{"diffResults":{"removed":[],"added":[]},"name":"q"}"#), Some(Vec::new()));
    }

    #[test]
    fn lines_go_on_from_each_place_however_large_the_record_is() {
        let row = |n: usize| format!("{{\"n\":\"{n}\",\"x\":\"{}\"}}", "x".repeat(n * 37 % 3000));
        let rows = |range: Range<usize>| range.map(row).collect::<Vec<_>>().join(",");
        let large = format!("{{\"x\":\"{}\"}}", "y".repeat(3 * CHUNK));
        let record = format!(
            r#"{{"diffResults":{{"removed":[{}],"added":[{},{large}]}},"name":"q"}}"#,
            rows(0..150),
            rows(150..300)
        );
        let all = expand(&record).unwrap();
        assert_eq!(all.len(), 301);
        let outline = Outline::of(Cursor::new(&record)).unwrap().unwrap();
        let mut position = LinePosition::default();
        for (index, expected) in all.iter().enumerate() {
            let mut lines = outline.lines_from(Cursor::new(&record), position).unwrap();
            assert_eq!(lines.next_line().unwrap().unwrap(), expected.as_bytes(), "{index}");
            position = lines.position();
        }
        assert_eq!(outline.lines_from(Cursor::new(&record), position).unwrap().next_line().unwrap(), None);
    }
}
