//! Text files that were saved in another way than osquery reads them. Pure.

use std::path::Path;

/// How a file was saved that osquery doesn't read as its author does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Two bytes a character, as Windows' editors and PowerShell's `>` do.
    Utf16,
    /// UTF-8 with a byte order mark before the text.
    Mark,
}

impl Encoding {
    /// None for plain text.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let beginning = bytes.get(..bytes.len().min(64)).unwrap_or_default();
        match beginning {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(Self::Utf16),
            [0xef, 0xbb, 0xbf, ..] => Some(Self::Mark),
            _ if beginning.contains(&0) => Some(Self::Utf16),
            _ => None,
        }
    }

    /// What it is, for a message.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Utf16 => "UTF-16",
            Self::Mark => "UTF-8 with a byte order mark (BOM) at its beginning",
        }
    }

    /// The command that makes plain text of a file.
    pub(super) fn remedy(self, path: &Path) -> String {
        let shown = path.display();
        match self {
            Self::Utf16 => {
                format!("convert it: iconv -f UTF-16 -t UTF-8 {shown} > {shown}.new, and put that in its place")
            }
            Self::Mark => format!("remove the mark: sed -i '1s/^\\xEF\\xBB\\xBF//' {shown}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_told_from_what_windows_makes_of_it() {
        assert_eq!(Encoding::of(b"s3cret\n"), None);
        assert_eq!(Encoding::of("gehe\u{ed}m".as_bytes()), None);
        assert_eq!(Encoding::of(b"\xef\xbb\xbfs3cret"), Some(Encoding::Mark));
        assert_eq!(Encoding::of(b"\xff\xfes\x003\x00"), Some(Encoding::Utf16));
        assert_eq!(Encoding::of(b"s\x003\x00c\x00"), Some(Encoding::Utf16));
        assert_eq!(Encoding::of(b""), None);
    }
}
