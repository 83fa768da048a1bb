//! The help, in lines that fit a terminal: clap breaks lines only with a feature that brings more than this.

/// As wide as a terminal is at least.
const WIDTH: usize = 80;

/// Columns within which a description begins that its next lines are to stand below.
const FURTHEST: usize = 45;

/// A text of clap's whose longer lines are broken between words.
#[must_use]
pub fn wrapped(text: &str) -> String {
    text.lines().map(wrapped_line).collect()
}

fn wrapped_line(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        return format!("{line}\n");
    }
    let (head, words) = line.split_at_checked(description(line)).unwrap_or(("", line));
    let indent = head.chars().count();
    let (mut text, mut column, mut is_first) = (head.to_owned(), indent, true);
    for word in words.split_whitespace() {
        let width = word.chars().count();
        if !is_first && column + 1 + width > WIDTH {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if !is_first {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
        is_first = false;
    }
    text.push('\n');
    text
}

/// Where a line's description begins: behind the last gap of two blanks or more.
fn description(line: &str) -> usize {
    let gap = line.rmatch_indices("  ").map(|(at, gap)| at + gap.len()).find(|end| *end <= FURTHEST);
    gap.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_between_words_below_their_description() {
        let options = "Options:\n  -h, --help  Print help\n\n      --flagfile <PATH>\n";
        assert_eq!(wrapped(options), options);
        let word = "word ".repeat(20);
        assert_eq!(wrapped(&word), format!("{}\n{}\n", "word ".repeat(16).trim_end(), "word ".repeat(4).trim_end()));
        let text = wrapped(&format!("  list  {word}\n"));
        let below = " ".repeat(8);
        assert_eq!(
            text,
            format!("  list  {}\n{below}{}\n", "word ".repeat(14).trim_end(), "word ".repeat(6).trim_end())
        );
        let long = "x".repeat(90);
        assert_eq!(wrapped(&long), format!("{long}\n"));
    }
}
