//! Counts and times as a person says them, for messages.

use std::fmt;
use std::time::Duration;

/// `1 line`, `2 lines`: a count of things whose name makes its plural with an `s`.
#[must_use]
pub fn counted(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// A length of time, in the two largest units that say something: `40 ms`, `1.5 s`, `2 min 5 s`, `3 h`, `2 d 4 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(span) = self;
        if span.as_millis() < 1000 {
            return write!(f, "{} ms", span.as_millis());
        }
        let tenths = span.as_millis() / 100;
        if tenths < 100 {
            let (seconds, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 { write!(f, "{seconds} s") } else { write!(f, "{seconds}.{tenth} s") };
        }
        let seconds = span.as_secs();
        let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
        let largest = units.iter().position(|(length, _)| seconds >= *length).unwrap_or(units.len() - 1);
        let mut left = seconds;
        for (n, (length, unit)) in units.iter().skip(largest).take(2).enumerate() {
            let count = left / length;
            left %= length;
            match n {
                0 => write!(f, "{count} {unit}")?,
                _ if count > 0 => write!(f, " {count} {unit}")?,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_and_more() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "line")), ["0 lines", "1 line", "2 lines"]);
    }

    #[test]
    fn spans_have_units() {
        for (milliseconds, said) in [
            (0, "0 ms"),
            (40, "40 ms"),
            (1_000, "1 s"),
            (1_560, "1.5 s"),
            (9_990, "9.9 s"),
            (59_999, "59 s"),
            (125_000, "2 min 5 s"),
            (3_600_000, "1 h"),
            (3_725_000, "1 h 2 min"),
            (187_200_000, "2 d 4 h"),
        ] {
            assert_eq!(Span(Duration::from_millis(milliseconds)).to_string(), said);
        }
    }
}
