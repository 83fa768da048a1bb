//! Words of others as they may be shown: what servers, certificates, files and lines say, in a log line, in an answer to
//! osqueryd or on a terminal. Secrets are masked, the text is one line of a bounded length, and nothing in it can pass
//! for another line, move a cursor or turn letters around.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::secret::redact;

/// The longest that a form of a secret gets (bytes): node keys and enroll secrets have at most 8 KiB, and an escape has six
/// characters for one.
const LONGEST_SECRET: usize = 64 << 10;

/// Characters of an answer's message to osqueryd, which writes it into its log.
pub const MESSAGE: usize = 2000;

/// Characters of a caller's word that a message repeats: the name of an action, a plugin or a stream.
const WORD: usize = 100;

/// A caller's word, in quotation marks, as a message may repeat it.
#[must_use]
pub fn quoted(word: &str) -> String {
    format!("\"{}\"", shown(word, WORD))
}

/// `text` as it may be shown, with at most `most` characters of it.
#[must_use]
pub fn shown(text: &str, most: usize) -> String {
    one_line(&beginning(text, most)).into_owned()
}

/// At most `most` characters of a text, masked. Masked before it is cut, since the first half of a key would show; and no
/// more of the text is looked at than that needs, since masking takes several times what it masks.
#[must_use]
pub fn beginning(text: &str, most: usize) -> Cow<'_, str> {
    let read = up_to(text, most.saturating_mul(4).saturating_add(2 * LONGEST_SECRET));
    let is_cut = read.len() < text.len();
    let masked = redact(read);
    // A secret that was cut in two can't be recognized, and is near the end.
    let safe = if is_cut { up_to(&masked, masked.len().saturating_sub(LONGEST_SECRET)) } else { &masked };
    match safe.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", up_to(safe, end)).into(),
        None if is_cut => format!("{safe}…").into(),
        None => masked,
    }
}

/// The text on one line: what could end it, confuse a terminal, or show characters in another order, is escaped.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            _ if is_escaped(character) => _ = write!(line, "{}", character.escape_default()),
            _ => line.push(character),
        }
    }
    line.into()
}

fn is_escaped(character: char) -> bool {
    match character {
        '\t' => false,
        // Line and paragraph separators, what changes the direction of text, and what has no width.
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{200b}'..='\u{200f}' | '\u{61c}' | '\u{feff}' => true,
        _ => character.is_control(),
    }
}

/// The beginning of the text with at most `bytes` bytes, cut between two characters.
fn up_to(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{MASK, Secret};

    #[test]
    fn a_text_stays_one_line_and_moves_nothing() {
        assert_eq!(shown("no such node\r\n\u{1b}[2J\tmore", 100), "no such node\\r\\n\\u{1b}[2J\tmore");
        assert_eq!(shown("a\u{9b}b\u{2028}c\u{202e}d\u{200b}", 100), "a\\u{9b}b\\u{2028}c\\u{202e}d\\u{200b}");
        assert_eq!(shown("grün, 鍵, naïve", 100), "grün, 鍵, naïve");
    }

    #[test]
    fn a_text_is_cut_and_no_secret_with_it() {
        assert_eq!(shown(&"é".repeat(10), 4), "éééé…");
        let secret = Secret::new("cut-in-two-this-one");
        for before in [0, 90, 2 * LONGEST_SECRET + 390, 3 * LONGEST_SECRET] {
            let text = format!("{}{}{}", "x".repeat(before), secret.expose(), "y".repeat(4 * LONGEST_SECRET));
            let shown = shown(&text, 100);
            assert!(!shown.contains("cut-i") && shown.chars().count() == 101, "{before}: {shown}");
        }
        // So many of them that hardly anything is left.
        let shown = shown(&secret.expose().repeat(LONGEST_SECRET), 10_000);
        assert!(shown.starts_with(MASK) && !shown.contains("cut"), "{shown}");
    }
}
