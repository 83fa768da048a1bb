//! What was found: Markdown tables, and the targets with their verdicts.

use std::path::PathBuf;

/// Collects the text, and prints it as it comes.
pub(crate) struct Report {
    text: String,
    targets: Vec<Target>,
}

/// A bound, and what was measured.
struct Target {
    what: String,
    bound: Bound,
    unit: &'static str,
    /// None when there was nothing to measure.
    measured: Option<f64>,
}

/// On which side of a target's figure the measured one is to be.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { text: String::new(), targets: Vec::new() }
    }

    /// A paragraph.
    pub(crate) fn say(&mut self, text: &str) {
        self.add(&format!("{text}\n\n"));
    }

    /// A heading.
    pub(crate) fn title(&mut self, text: &str) {
        self.add(&format!("### {text}\n\n"));
    }

    /// A table, its first column left-aligned and the others right.
    pub(crate) fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(head.to_vec());
        text.push_str(&line((0..head.len()).map(|column| if column == 0 { "---" } else { "---:" }).collect()));
        for row in rows {
            text.push_str(&line(row.iter().map(String::as_str).collect()));
        }
        self.add(&format!("{text}\n"));
    }

    /// Text as it is.
    pub(crate) fn verbatim(&mut self, text: &str) {
        self.add(&format!("```\n{text}\n```\n\n"));
    }

    /// A target, for the list at the end.
    pub(crate) fn target(
        &mut self,
        what: impl Into<String>,
        bound: Bound,
        unit: &'static str,
        measured: impl Into<Option<f64>>,
    ) {
        let measured = measured.into();
        self.targets.push(Target { what: what.into(), bound, unit, measured });
    }

    /// Ends with the targets.
    pub(crate) fn finish(mut self, output: Option<PathBuf>) -> std::io::Result<()> {
        let rows: Vec<Vec<String>> = self.targets.iter().map(Target::row).collect();
        if !rows.is_empty() {
            self.title("Targets");
            self.table(&["target", "wanted", "measured", ""], &rows);
        }
        output.map_or(Ok(()), |path| std::fs::write(path, self.text))
    }

    fn add(&mut self, text: &str) {
        print!("{text}");
        self.text.push_str(text);
    }
}

impl Target {
    fn row(&self) -> Vec<String> {
        let (wanted, is_met): (&str, fn(f64, f64) -> bool) = match self.bound {
            Bound::AtMost(_) => ("at most", |measured, most| measured <= most),
            Bound::AtLeast(_) => ("at least", |measured, least| measured >= least),
        };
        let (Bound::AtMost(bound) | Bound::AtLeast(bound)) = self.bound;
        let (measured, verdict) = match self.measured {
            Some(measured) if is_met(measured, bound) => (format!("{} {}", figure(measured), self.unit), "met"),
            Some(measured) => (format!("{} {}", figure(measured), self.unit), "**not met**"),
            None => (String::new(), "not measured"),
        };
        vec![self.what.clone(), format!("{wanted} {} {}", figure(bound), self.unit), measured, verdict.to_owned()]
    }
}

/// A number with as many digits as say something.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => grouped(value),
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Mebibytes.
pub(crate) fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_digits_that_say_something() {
        let shown = [0.0, 1.234, 12.34, 123.4, 1234.5, 1_234_567.0, -1234.0].map(figure);
        assert_eq!(shown, ["0", "1.23", "12.3", "123", "1,234", "1,234,567", "-1,234"]);
    }

    #[test]
    fn a_target_is_met_on_its_side_of_the_bound() {
        let row = |bound, measured| Target { what: String::new(), bound, unit: "x", measured: Some(measured) }.row();
        assert_eq!(row(Bound::AtMost(1.25), 1.25)[1..], ["at most 1.25 x", "1.25 x", "met"]);
        assert_eq!(row(Bound::AtMost(1.25), 1.3)[3], "**not met**");
        assert_eq!(row(Bound::AtLeast(2.0), 1.0)[3], "**not met**");
        assert_eq!(row(Bound::AtLeast(2.0), 3.0)[3], "met");
        let unmeasured = Target { what: String::new(), bound: Bound::AtMost(1.0), unit: "x", measured: None };
        assert_eq!(unmeasured.row()[3], "not measured");
    }
}
