//! Secrets and node keys: a type that never prints itself, and the masking of any text that leaves the process.
//!
//! Servers repeat node keys in their error messages, `tls_secret_always` puts the secret in URLs, and errors carry
//! URLs. So masking is done where text leaves (the log, answers to osqueryd), not where errors are made: whatever
//! was a [`Secret`] in this process is masked there, in each form it can have taken.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::lock::RwLock;

/// What stands in a text in place of a secret.
pub const MASK: &str = "<hidden>";

/// RFC 3986's unreserved characters stay, everything else is percent-encoded.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Secrets shorter than this are not searched for: masking them would mask half of every text.
pub const SHORTEST_MASKED: usize = 3;

/// The most forms of secrets that are remembered: node keys change with each enrollment.
const FORMS_KEPT: usize = 128;

/// Every form of every secret seen, oldest first.
static FORMS: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// An enrollment secret, a node key or a password. Neither `Debug` nor any message shows it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `value`, and has it masked from now on in all text that passes [`redact`].
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        let value = value.into();
        remember(&value);
        Self(value)
    }

    /// The secret itself, for a request's body, header or URL.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to hide.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The secret as a part of a URL: everything but RFC 3986's unreserved characters percent-encoded.
    #[must_use]
    pub fn percent_encoded(&self) -> String {
        percent_encode(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// `text` with all but RFC 3986's unreserved characters percent-encoded.
#[must_use]
pub fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// `text` with every known secret masked: as it is, percent-encoded and JSON-escaped in the ways that servers do it.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    // As nearly all answers to osqueryd are.
    if text.len() < SHORTEST_MASKED {
        return Cow::Borrowed(text);
    }
    let forms = FORMS.read();
    // The longest first: one that begins with another one is masked whole.
    let mut forms: Vec<&str> = forms.iter().map(String::as_str).collect();
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    let mut text = Cow::Borrowed(text);
    for form in &forms {
        if text.contains(form) {
            text = Cow::Owned(text.replace(form, MASK));
        }
    }
    if text.contains('\\') { mask_escaped(text, &forms) } else { text }
}

/// Masks what shows once JSON's escapes are read: servers may escape any character (`\/` in PHP, `\u002B` in .NET).
fn mask_escaped<'a>(text: Cow<'a, str>, forms: &[&str]) -> Cow<'a, str> {
    let mut read = String::with_capacity(text.len());
    // Where in `text` each byte of `read` comes from, and the end.
    let mut origins = Vec::with_capacity(text.len() + 1);
    let mut rest = &*text;
    while let Some(first) = rest.chars().next() {
        let (character, length) = escape(rest).unwrap_or((first, first.len_utf8()));
        read.push(character);
        origins.resize(read.len(), text.len() - rest.len());
        rest = rest.get(length..).unwrap_or_default();
    }
    origins.push(text.len());
    let origin = |index: usize| origins.get(index).copied().unwrap_or(text.len());
    let mut masked = String::new();
    let mut done = 0;
    while let Some((start, end)) = first_of(forms, &read, done) {
        masked.push_str(text.get(origin(done)..origin(start)).unwrap_or_default());
        masked.push_str(MASK);
        done = end;
    }
    if done == 0 {
        return text;
    }
    masked.push_str(text.get(origin(done)..).unwrap_or_default());
    masked.into()
}

/// The first of these in `text` from `start` on; of those that begin there, the first in the list.
fn first_of(forms: &[&str], text: &str, start: usize) -> Option<(usize, usize)> {
    let rest = text.get(start..)?;
    let found = forms.iter().filter_map(|form| Some((start + rest.find(form)?, form.len())));
    found.min_by_key(|(at, _)| *at).map(|(at, length)| (at, at + length))
}

/// The character that an escape of JSON at the beginning of `text` stands for, and the escape's length.
fn escape(text: &str) -> Option<(char, usize)> {
    let unit = |at: usize| u32::from_str_radix(text.get(at..at + 4)?, 16).ok();
    match text.strip_prefix('\\')?.chars().next()? {
        'u' => match (unit(2)?, text.get(6..8)) {
            (high @ 0xd800..0xdc00, Some("\\u")) => {
                let low = unit(8).filter(|low| (0xdc00..0xe000).contains(low))?;
                Some((char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))?, 12))
            }
            (unit, _) => Some((char::from_u32(unit)?, 6)),
        },
        character @ ('"' | '\\' | '/') => Some((character, 2)),
        'b' => Some(('\u{8}', 2)),
        'f' => Some(('\u{c}', 2)),
        'n' => Some(('\n', 2)),
        'r' => Some(('\r', 2)),
        't' => Some(('\t', 2)),
        _ => None,
    }
}

fn remember(value: &str) {
    if value.len() < SHORTEST_MASKED {
        return;
    }
    let mut forms = FORMS.write();
    for form in forms_of(value) {
        // What is still in use is the newest again: the forms that are given up are those of old node keys.
        forms.retain(|other| *other != form);
        forms.push(form);
    }
    let surplus = forms.len().saturating_sub(FORMS_KEPT);
    forms.drain(..surplus);
}

/// The forms that a text can have taken; for one of letters and digits they are all the same.
fn forms_of(value: &str) -> [String; 8] {
    let json = serde_json::Value::from(value).to_string();
    let escaped = json.get(1..json.len() - 1).unwrap_or(value).to_owned();
    // PHP's way, and Python's, which does it to everything that isn't ASCII.
    let slashed = escaped.replace('/', "\\/");
    let ascii: String = escaped.chars().map(ascii_escaped).collect();
    let encoded = percent_encode(value);
    let lower = lower_case_percent(&encoded);
    // A form's way; a query may have either.
    let [plus, lower_plus] = [&encoded, &lower].map(|encoded| encoded.replace("%20", "+"));
    [value.to_owned(), escaped, slashed, ascii, encoded, lower, plus, lower_plus]
}

fn ascii_escaped(character: char) -> String {
    if character.is_ascii() {
        return character.to_string();
    }
    character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// The percent-encoded text with lower-case digits: `%2f` in place of `%2F`.
fn lower_case_percent(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let mut lower = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        lower.push('%');
        lower.push_str(&digits.to_ascii_lowercase());
        lower.push_str(rest);
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print_itself() {
        let secret = Secret::new("only-for-debug");
        assert_eq!(format!("{secret:?}"), MASK);
    }

    #[test]
    fn every_form_of_a_secret_is_masked() {
        let secret = Secret::new("a/b+c\"d");
        let text = format!("raw a/b+c\"d, url {}, json a/b+c\\\"d", secret.percent_encoded());
        assert_eq!(redact(&text), format!("raw {MASK}, url {MASK}, json {MASK}"));
    }

    #[test]
    fn the_forms_of_other_libraries_are_masked_too() {
        let _secret = Secret::new("p/ q\"é");
        for text in ["p\\/ q\\\"é", "p/ q\\\"\\u00e9", "p%2f%20q%22%c3%a9", "p%2F+q%22%C3%A9", "p%2f+q%22%c3%a9"] {
            assert_eq!(redact(text), MASK);
        }
        assert_eq!(forms_of("node-key_1.~"), [const { "node-key_1.~" }; 8].map(str::to_owned));
    }

    #[test]
    fn a_secret_is_masked_however_json_escapes_it() {
        let _secret = Secret::new("esc/aped+\u{1f511}\"key");
        for shown in [r#"esc\/aped+🔑\"key"#, r#"\u0065sc/aped\u002B\ud83d\uDD11\u0022key"#] {
            assert_eq!(redact(&format!(r#"{{"a":"\n","k":"{shown}"}}"#)), format!(r#"{{"a":"\n","k":"{MASK}"}}"#));
        }
        for other in [r"esc\uzzzz", r"\ud83d\u0020 esc\", r"\ud83d", "\\u"] {
            assert_eq!(redact(other), other);
        }
    }

    #[test]
    fn a_secret_in_use_stays_known_however_many_come() {
        for number in 0..FORMS_KEPT {
            let _used = Secret::new("in-use-all-the-time");
            let _key = Secret::new(format!("one/of many keys {number}"));
        }
        assert_eq!(redact("in-use-all-the-time"), MASK);
    }

    #[test]
    fn a_secret_that_begins_with_another_one_is_masked_whole() {
        let _short = Secret::new("beginning-of");
        let _long = Secret::new("beginning-of-a-longer-one");
        assert_eq!(redact("it is beginning-of-a-longer-one"), format!("it is {MASK}"));
    }

    #[test]
    fn unreserved_characters_stay_as_they_are() {
        assert_eq!(percent_encode("node-key_1.~"), "node-key_1.~");
        assert_eq!(percent_encode("a/b c"), "a%2Fb%20c");
    }
}
