//! The table: a row a report, as Markdown, so that it can be put into a document as it is.

use std::time::Duration;

use super::processes::Usage;

/// What the columns are called.
pub(super) const HEADER: &str = "\
|     time |     taken |  received | waiting |  aside | dropped |   twice | refused | broken | requests \
| front RSS/PSS | worker RSS/PSS | threads | files | buffers | others | phase |\n\
| -------: | --------: | --------: | ------: | -----: | ------: | ------: | ------: | -----: | -------: \
| ------------: | -------------: | ------: | ----: | ------: | -----: | :---- |";

/// What is reported of a moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) elapsed: Duration,
    pub(super) taken: u64,
    pub(super) received: u64,
    /// `None` when a buffer could not be asked.
    pub(super) waiting: Option<u64>,
    pub(super) set_aside: u64,
    /// Lines taken that are nowhere any more, at least.
    pub(super) dropped: u64,
    pub(super) duplicates: u64,
    pub(super) refused: u64,
    pub(super) broken: u64,
    pub(super) requests: u64,
    /// `None` while there is none.
    pub(super) front: Option<Usage>,
    pub(super) worker: Option<Usage>,
    /// Bytes of the journals.
    pub(super) buffers: u64,
    /// Bytes of the lines set aside.
    pub(super) others: u64,
    pub(super) phase: String,
}

impl Row {
    /// The row as text.
    pub(super) fn render(&self) -> String {
        let memory = |usage: Option<Usage>| pair(usage, |usage| [mib(usage.rss << 10), mib(usage.pss << 10)].join("/"));
        let both = |number: fn(Usage) -> u64| {
            [self.front, self.worker].map(|usage| pair(usage, |usage| number(usage).to_string())).join("/")
        };
        format!(
            "| {:>8} | {:>9} | {:>9} | {:>7} | {:>6} | {:>7} | {:>7} | {:>7} | {:>6} | {:>8} \
             | {:>13} | {:>14} | {:>7} | {:>5} | {:>7} | {:>6} | {} |",
            clock(self.elapsed),
            self.taken,
            self.received,
            self.waiting.map_or_else(|| "?".to_owned(), |waiting| waiting.to_string()),
            self.set_aside,
            self.dropped,
            self.duplicates,
            self.refused,
            self.broken,
            self.requests,
            memory(self.front),
            memory(self.worker),
            both(|usage| usage.threads),
            both(|usage| usage.descriptors),
            mib(self.buffers),
            mib(self.others),
            self.phase
        )
    }
}

/// Hours, minutes and seconds.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Bytes as MiB.
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn pair(usage: Option<Usage>, text: impl FnOnce(Usage) -> String) -> String {
    usage.map_or_else(|| "-".to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_as_many_columns_as_the_header_and_the_same_width() {
        let usage = Usage { rss: 5 << 10, pss: 3 << 10, threads: 6, descriptors: 12 };
        let row = Row {
            elapsed: Duration::from_secs(3723),
            taken: 42,
            front: Some(usage),
            buffers: 3 << 19,
            phase: "outage".to_owned(),
            ..Row::default()
        };
        let text = row.render();
        let columns = |text: &str| text.matches('|').count();
        for line in HEADER.lines() {
            assert_eq!(columns(line), columns(&text), "{line}\n{text}");
            assert_eq!(line.rfind(" | "), text.rfind(" | "), "{line}\n{text}");
        }
        for shown in ["|  1:02:03 |        42 |", "5.0/3.0", " 6/- ", " 12/- ", " 1.5 | ", " ? |"] {
            assert!(text.contains(shown), "{shown} is not in {text}");
        }
    }
}
