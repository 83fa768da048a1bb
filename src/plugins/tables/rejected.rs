//! `remote_tls_rejected`: the lines that were set aside, newest first, with their beginnings.

use super::{Sources, TableOf, bigint, text};
use crate::journal::inspect::{self, RejectedLine};
use crate::secret::redact;

/// Lines that are shown, the newest.
const MOST: usize = 1000;

/// Characters of a line that are shown.
const SHOWN: usize = 200;

/// Characters behind those that are looked at: a secret that is cut in two could not be recognized, and none is
/// longer.
const MARGIN: usize = 4096;

pub(super) static TABLE: TableOf<RejectedLine> = TableOf {
    name: "remote_tls_rejected",
    columns: &[
        text("stream", |line| (&line.stream).into()),
        bigint("time", |line| line.time.into()),
        text("reason", |line| (&line.reason).into()),
        bigint("size", |line| line.size.into()),
        text("beginning", |line| beginning(&line.beginning).into()),
    ],
    rows,
};

fn rows(sources: &Sources) -> Vec<RejectedLine> {
    inspect::rejected(&sources.directory, MOST, SHOWN + MARGIN).unwrap_or_else(|error| {
        log::debug!("the lines that were set aside can't be read: {error}");
        Vec::new()
    })
}

/// Masked before it is cut: the first half of a key would show. What is near the cut that was made in reading is not
/// shown, however much the masking has shortened what is before it.
fn beginning(read: &str) -> String {
    let masked = redact(read);
    let is_cut = read.chars().count() == SHOWN + MARGIN;
    let most = if is_cut { masked.chars().count().saturating_sub(MARGIN) } else { SHOWN };
    masked.chars().take(most.min(SHOWN)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{MASK, Secret};

    fn shown(text: &str) -> String {
        beginning(&text.chars().take(SHOWN + MARGIN).collect::<String>())
    }

    #[test]
    fn a_secret_across_the_end_of_what_is_shown_is_masked() {
        let secret = Secret::new("a-secret-across-the-end");
        for before in [SHOWN - 10, SHOWN + MARGIN - 10] {
            let text = shown(&format!("{}{}{}", "x".repeat(before), secret.expose(), "y".repeat(2 * MARGIN)));
            assert!(text.starts_with(&"x".repeat(SHOWN - 20)) && !text.contains("a-sec"), "{text}");
        }
        assert_eq!(shown(secret.expose()), MASK);
        assert_eq!(shown(&"é".repeat(SHOWN + MARGIN)), "é".repeat(SHOWN));
        // So many secrets that hardly anything is left of them.
        let text = shown(&secret.expose().repeat(2 * MARGIN));
        assert!(text.len() <= SHOWN && !text.contains("a-sec"), "{text}");
    }
}
