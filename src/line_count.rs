//! How many lines a result record stands for, without reading it as JSON: a record can have 166 MB.
//!
//! Two kinds of records stand for many lines, and both say so in their first member:
//!
//! * `{"diffResults":{"removed":[{…}],"added":[{…}]},"name":…}`, a query's whole difference: one line for each object
//!   that stands directly in an array of `diffResults`.
//! * `{"string_batch":["…","…"]}`, several lines of one call: one line for each element.
//!
//! Every other record is one line, and is recognized by its first bytes. So is one that would stand for no line.
//! A record that is cut off or is no JSON has some number of lines, the same one each time.

use crate::journal::CountLines;

/// Counts the lines of one record after the other.
#[derive(Debug, Default)]
pub struct LineCounter {
    state: State,
    kind: Kind,
    /// Bytes of the first member's name that were seen.
    matched: usize,
    /// Brackets open within the member's value, the value's own included.
    depth: usize,
    /// Whether what is open at depth 2 is an array.
    in_array: bool,
    /// Whether an element has begun of which no comma has told yet.
    in_element: bool,
    lines: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    BeforeObject,
    BeforeName,
    Name,
    BeforeColon,
    BeforeValue,
    Value,
    String,
    Escape,
    /// What follows doesn't count.
    Rest,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Difference,
    Batch,
}

impl Kind {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Difference => b"diffResults",
            Self::Batch => b"string_batch",
        }
    }

    /// What its value begins with.
    fn opening(self) -> u8 {
        match self {
            Self::Difference => b'{',
            Self::Batch => b'[',
        }
    }
}

impl CountLines for LineCounter {
    fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.state {
                State::Rest => return,
                State::Value => self.value(rest),
                State::String => self.string(rest),
                State::Escape => {
                    self.state = State::String;
                    rest.get(1..).unwrap_or_default()
                }
                _ => self.beginning(rest),
            };
        }
    }

    fn finish(&mut self) -> u64 {
        let lines = self.lines + u64::from(self.in_element);
        *self = Self::default();
        lines.max(1)
    }
}

impl LineCounter {
    /// Takes one byte of what precedes the member's value: what is left.
    fn beginning<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some((&byte, rest)) = bytes.split_first() else { return bytes };
        let is_blank = byte.is_ascii_whitespace();
        self.state = match (self.state, byte) {
            (state, _) if is_blank && state != State::Name => state,
            (State::BeforeObject, b'{') => State::BeforeName,
            (State::BeforeName, b'"') => State::Name,
            (State::Name, b'"') if self.matched == self.kind.name().len() => State::BeforeColon,
            (State::Name, _) => {
                if self.matched == 0 && byte == b's' {
                    self.kind = Kind::Batch;
                }
                let as_expected = self.kind.name().get(self.matched) == Some(&byte);
                self.matched += 1;
                if as_expected { State::Name } else { State::Rest }
            }
            (State::BeforeColon, b':') => State::BeforeValue,
            (State::BeforeValue, _) if byte == self.kind.opening() => {
                self.depth = 1;
                State::Value
            }
            _ => State::Rest,
        };
        rest
    }

    /// Takes what stands between strings: what is left, from the inside of a string on.
    fn value<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut left = bytes.iter();
        for &byte in left.by_ref() {
            match byte {
                b'"' => {
                    self.in_element |= self.depth == 1 && self.kind == Kind::Batch;
                    self.state = State::String;
                    break;
                }
                b'{' | b'[' => self.open(byte),
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.state = State::Rest;
                        break;
                    }
                }
                b',' if self.depth == 1 && self.kind == Kind::Batch => {
                    self.lines += 1;
                    self.in_element = false;
                }
                _ => self.in_element |= self.kind == Kind::Batch && self.depth == 1 && !byte.is_ascii_whitespace(),
            }
        }
        left.as_slice()
    }

    fn open(&mut self, byte: u8) {
        match self.kind {
            Kind::Difference => {
                self.lines += u64::from(byte == b'{' && self.depth == 2 && self.in_array);
                if self.depth == 1 {
                    self.in_array = byte == b'[';
                }
            }
            Kind::Batch => self.in_element |= self.depth == 1,
        }
        self.depth += 1;
    }

    /// Takes the inside of a string: what is left.
    fn string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(at) = memchr::memchr2(b'"', b'\\', bytes) else { return &[] };
        self.state = if bytes.get(at) == Some(&b'"') { State::Value } else { State::Escape };
        bytes.get(at + 1..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a record that is fed in two pieces, wherever it is cut.
    fn lines(record: &str) -> u64 {
        let mut counter = LineCounter::default();
        counter.feed(record.as_bytes());
        let whole = counter.finish();
        for cut in 0..=record.len() {
            let (one, two) = record.as_bytes().split_at(cut);
            counter.feed(one);
            counter.feed(two);
            assert_eq!(counter.finish(), whole, "cut at {cut}: {record}");
        }
        whole
    }

    #[test]
    fn a_difference_stands_for_its_rows() {
        for (record, rows) in [
            (r#"{"diffResults":{"removed":[{"a":"b"}],"added":[{"a":"c"},{"a":"d"}]},"name":"q"}"#, 3),
            (r#"{"diffResults":{"removed":[],"added":[{}]},"name":"q"}"#, 1),
            (r#" { "diffResults" : { "added" : [ {"a":"b"} , {"a":"{[\"]}\\"} ] , "removed" : [ ] } }"#, 2),
            (r#"{"diffResults":{"added":[{"a":{"b":[{},{}]}},{"a":[[{}]]}],"removed":[{}]},"more":[{},{}]}"#, 3),
            (r#"{"diffResults":{"added":{"a":{},"b":{}},"removed":[{},{}]}}"#, 2),
            (r#"{"diffResults":{"added":[{"a":"\u0022"},{"a":"\\\""},"#, 2),
        ] {
            assert_eq!(lines(record), rows, "{record}");
        }
    }

    #[test]
    fn a_batch_stands_for_its_elements() {
        for (record, elements) in [
            (r#"{"string_batch":["a","b","c"]}"#, 3),
            (r#"{"string_batch":["{\"a\":[1,2],\"b\":\"\\\\\"}",",",""]}"#, 3),
            (r#"{ "string_batch" : [ "a" , {"b":["c","d"]} , 1 , null ] , "x" : [ 1 , 2 ] }"#, 4),
            (r#"{"string_batch":["a"]}"#, 1),
            (r#"{"string_batch":["a","b"#, 2),
        ] {
            assert_eq!(lines(record), elements, "{record}");
        }
    }

    #[test]
    fn any_other_record_is_one_line() {
        for record in [
            "",
            "{",
            "[]",
            "no JSON",
            r#"{"snapshot":[{},{}],"action":"snapshot"}"#,
            r#"{"name":"q","diffResults":{"added":[{},{}]}}"#,
            r#"{"diffResults":{"removed":[],"added":[]}}"#,
            r#"{"diffResults":[{},{}]}"#,
            r#"{"diffResults":"","name":[{},{}]}"#,
            r#"{"diffResult":{"added":[{},{}]}}"#,
            r#"{"diffResultsX":{"added":[{},{}]}}"#,
            r#"{"diff Results":{"added":[{},{}]}}"#,
            r#"{"string_batch":[]}"#,
            r#"{"string_batch":{"a":"b","c":"d"}}"#,
            r#"{"string_batch":["#,
            r#"{"striffResults":{"added":[{},{}]}}"#,
        ] {
            assert_eq!(lines(record), 1, "{record}");
        }
    }

    #[test]
    fn a_large_difference_is_counted_in_pieces_of_any_size() {
        let row = r#"{"pid":"640","path":"\\usr\"{","cmdline":"a [b] {c}, \"d\""}"#;
        let rows = vec![row; 1000].join(",");
        let record = format!(r#"{{"diffResults":{{"removed":[{rows}],"added":[{rows}]}},"name":"q"}}"#);
        for size in [1, 2, 3, 7, 64, 1000, 65_536] {
            let mut counter = LineCounter::default();
            record.as_bytes().chunks(size).for_each(|piece| counter.feed(piece));
            assert_eq!(counter.finish(), 2000, "in pieces of {size}");
        }
    }
}
