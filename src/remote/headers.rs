//! Headers that an operator has requests carry, from the file that `tls_headers_file` names: an access proxy's tokens, as a
//! rule. So the file must be private, its values are masked like other secrets, and no message shows what is in it.
//!
//! It is read for each request: what was put in its place counts from the next one on. Without it no request is made, since
//! the gateway that asks for the headers would refuse one without them.

use std::io;
use std::path::{Path, PathBuf};

use ureq::http::{HeaderName, HeaderValue};

use super::node_key;
use crate::files;
use crate::secret::Secret;
use crate::settings::Settings;

/// The largest file, in bytes.
const LARGEST: u64 = 64 << 10;

/// The longest value, in bytes.
const LONGEST: usize = 4096;

/// The most headers: their values are remembered, to be masked.
const MOST: usize = 8;

/// Those that requests have of themselves, and those of a connection. `Authorization` isn't among them: an operator's takes
/// the place of ours, whose node key is also in the body or the URL.
const OURS: [&str; 17] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// Why a request can't have its headers.
#[derive(Debug, thiserror::Error)]
pub enum HeadersError {
    /// The file can't be read, or others can.
    #[error("--tls_headers_file={path} can't be used", path = .path.display())]
    File {
        /// The path of the headers file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A line of it is no header, or none that can be set.
    #[error("--tls_headers_file={path} can't be used: {reason} in line {line}", path = .path.display())]
    Line {
        /// The path of the headers file.
        path: PathBuf,
        /// The number of the line, counted from 1.
        line: usize,
        /// What is wrong with it, without what stands in it.
        reason: String,
    },
}

/// Headers for requests. Their values are masked from now on in all text that leaves.
#[derive(Clone, Debug, Default)]
pub struct Headers(Vec<(HeaderName, HeaderValue)>);

impl Headers {
    /// The headers of the file that `tls_headers_file` names; empty when it isn't set.
    pub fn of(settings: &Settings) -> Result<Self, HeadersError> {
        settings.headers_file.as_deref().map_or(Ok(Self::default()), Self::read)
    }

    fn read(path: &Path) -> Result<Self, HeadersError> {
        let bytes = files::read_private(path, LARGEST)
            .map_err(|source| HeadersError::File { path: path.to_owned(), source })?;
        Self::parse(&bytes).map_err(|(line, reason)| HeadersError::Line { path: path.to_owned(), line, reason })
    }

    /// `Name: value` a line; empty lines and those that begin with `#` say nothing. The error is a line's number and what is
    /// wrong with it.
    fn parse(text: &[u8]) -> Result<Self, (usize, String)> {
        let mut headers = Self::default();
        for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let header = header(line).map_err(|reason| (number, reason))?;
            if headers.names().any(|name| *name == header.0) {
                return Err((number, "a header for the second time".to_owned()));
            }
            if headers.0.len() == MOST {
                return Err((number, format!("more than {MOST} headers")));
            }
            headers.0.push(header);
        }
        Ok(headers)
    }

    /// Their names, in small letters.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// The headers as names and values.
    pub(super) fn each(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter()
    }
}

fn header(line: &[u8]) -> Result<(HeaderName, HeaderValue), String> {
    let nothing = || "no \"Name: value\"".to_owned();
    let colon = line.iter().position(|&byte| byte == b':').ok_or_else(nothing)?;
    let (name, value) = line.split_at_checked(colon).ok_or_else(nothing)?;
    let name = HeaderName::from_bytes(name).map_err(|_| nothing())?;
    if OURS.contains(&name.as_str()) {
        return Err(format!("the header {name}, which is the extension's own to set,"));
    }
    let value = std::str::from_utf8(value.get(1..).unwrap_or_default()).unwrap_or("\0").trim();
    let mut header = match HeaderValue::from_str(value) {
        Ok(header) if value.is_ascii() && (1..=LONGEST).contains(&value.len()) => header,
        _ => return Err("a value that can't be one (printable ASCII, of 1 to 4096 characters)".to_owned()),
    };
    header.set_sensitive(true);
    mask(value);
    Ok((name, header))
}

/// Has a value masked, and what stands behind its last blank (`Bearer TOKEN`). A word is no secret, and would be missed.
fn mask(value: &str) {
    let last = value.rsplit(' ').next().unwrap_or_default();
    for secret in [value, last].into_iter().filter(|text| node_key::check(text).is_ok()) {
        let _masked_from_now_on = Secret::new(secret);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{MASK, redact};

    fn wrong(text: &[u8]) -> (usize, String) {
        Headers::parse(text).unwrap_err()
    }

    #[test]
    fn headers_are_read_and_masked() {
        let text = b"# a comment\r\n\nX-Tenant: prod\r\n  CF-Access-Client-Secret:of-the-tests: 77 \nAuthorization: Bearer t0ken-only";
        let headers = Headers::parse(text).unwrap();
        let values: Vec<_> =
            headers.each().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        assert_eq!(
            values,
            ["x-tenant=prod", "cf-access-client-secret=of-the-tests: 77", "authorization=Bearer t0ken-only"]
        );
        assert_eq!(
            redact("prod of-the-tests: 77, t0ken-only, Bearer t0ken-only"),
            format!("prod {MASK}, {MASK}, {MASK}")
        );
        assert!(!format!("{headers:?}").contains("t0ken"));
        assert_eq!(Headers::parse(b"#\n\n").unwrap().names().count(), 0);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line_and_not_shown() {
        for (text, line, reason) in [
            (&b"hunter2-secret"[..], 1, "no \"Name: value\""),
            (b"# x\n\xef\xbb\xbfX-A: hunter2-secret", 2, "no \"Name: value\""),
            (b"X-A: b\nhunter2 secret: x", 2, "no \"Name: value\""),
            (b": hunter2-secret", 1, "no \"Name: value\""),
            (b"X-A:  \n", 1, "a value that can't be one"),
            (b"X-A: hunter2-secret\x01", 1, "a value that can't be one"),
            (b"X-A: hunter2-secret\xff", 1, "a value that can't be one"),
            ("X-A: hunter2-\u{e9}".as_bytes(), 1, "a value that can't be one"),
            (b"X-A: b\nx-a: hunter2-secret", 2, "for the second time"),
        ] {
            let (number, said) = wrong(text);
            assert!(number == line && said.contains(reason) && !said.contains("hunter2"), "{number}: {said}");
        }
        for name in OURS {
            let (_, said) = wrong(format!("{}: x-1", name.to_uppercase()).as_bytes());
            assert_eq!(said, format!("the header {name}, which is the extension's own to set,"));
        }
        let many: String = (0..=MOST).map(|number| format!("X-{number}: v\n")).collect();
        assert_eq!(wrong(many.as_bytes()), (MOST + 1, format!("more than {MOST} headers")));
        assert!(wrong(format!("X-A: {}", "x".repeat(LONGEST + 1)).as_bytes()).1.contains("4096"));
    }

    #[test]
    fn tls_md_names_the_headers_that_operators_can_not_set() {
        let text = include_str!("../../docs/tls.md").to_lowercase();
        for name in OURS {
            // `Proxy-...` stands for three of them.
            let told = if name.starts_with("proxy-") { "`proxy-...`".to_owned() } else { format!("`{name}`") };
            assert!(text.contains(&told), "docs/tls.md doesn't name {name}");
        }
    }
}
