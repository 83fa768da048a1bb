//! Prometheus' text format: families of samples, each below its HELP and TYPE lines. Pure.

use std::fmt::{Display, Write as _};

use crate::shown::shown;

/// Characters of a label's value.
const LABEL: usize = 200;

/// What a family's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// They grow, until the process that counts them is another one.
    Counter,
    /// They are as they are.
    Gauge,
}

/// A text that grows, family by family. Writing to a string never fails.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
    family: &'static str,
}

impl Exposition {
    /// Begins a family. Names are of letters, digits and `_`, and helps are a line of words.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> &mut Self {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.family = name;
        self
    }

    /// A sample of the family begun last.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{labels} {value}", self.family);
        self
    }

    /// The text of all families, as node_exporter reads it.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// A label's value: words of others, as fit to be shown as anywhere, in the format's own quotes.
fn escaped(value: &str) -> String {
    // No newline is left to be escaped.
    shown(value, LABEL).replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn families_have_help_and_type_and_samples_their_labels() {
        let mut exposition = Exposition::default();
        exposition.family("a_total", Kind::Counter, "What it is.").sample(&[("x", "1"), ("y", "b")], 7).sample(&[], 8);
        exposition.family("b_seconds", Kind::Gauge, "Another.").sample(&[], 0.25);
        let text = "# HELP a_total What it is.\n# TYPE a_total counter\na_total{x=\"1\",y=\"b\"} 7\na_total 8\n\
                    # HELP b_seconds Another.\n# TYPE b_seconds gauge\nb_seconds 0.25\n";
        assert_eq!(exposition.into_text(), text);
    }

    #[test]
    fn a_label_s_value_stays_within_its_quotes_and_shows_no_secret() {
        let _secret = Secret::new("s3cret-in-a-label");
        assert_eq!(escaped("a\"} 1\nb\\ s3cret-in-a-label"), "a\\\"} 1\\\\nb\\ <hidden>".replace("b\\ ", "b\\\\ "));
        assert_eq!(escaped("\u{1b}é"), "\\\\u{1b}é");
        assert_eq!(escaped(&"x".repeat(1000)).chars().count(), LABEL + 1);
    }
}
