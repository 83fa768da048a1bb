//! Pins: the keys of which one must be in the server's chain.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// A public key, by the SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin([u8; SHA256_OUTPUT_LEN]);

impl Pin {
    /// The pin of a key, given its SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        let mut pin = [0; SHA256_OUTPUT_LEN];
        let hash = digest(&SHA256, key);
        pin.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
        Self(pin)
    }

    /// base64, perhaps behind `sha256/` or curl's `sha256//`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256/").map_or(text, |rest| rest.strip_prefix('/').unwrap_or(rest));
        BASE64_STANDARD.decode(digits).ok()?.try_into().ok().map(Self)
    }

    /// Pins with commas between them; an empty text has none. The error is the first part that is no pin.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, &str> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        text.split(',').map(str::trim).map(|pin| Self::parse(pin).ok_or(pin)).collect()
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of no bytes, as every tool has it.
    const OF_NOTHING: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn a_pin_is_read_as_it_is_written_elsewhere() {
        let pin = Pin::of(b"");
        assert_eq!(pin.to_string(), OF_NOTHING);
        for text in [OF_NOTHING.to_owned(), format!("sha256/{OF_NOTHING}"), format!("sha256//{OF_NOTHING}")] {
            assert_eq!(Pin::parse(&text), Some(pin), "{text}");
        }
        let two = format!("{OF_NOTHING}, sha256//{OF_NOTHING}");
        assert_eq!((Pin::parse_all(&two), Pin::parse_all(" ")), (Ok(vec![pin; 2]), Ok(vec![])));
    }

    #[test]
    fn what_is_none_is_named() {
        let unpadded = OF_NOTHING.trim_end_matches('=');
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for none in [unpadded, hex, "sha1/2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "x", &OF_NOTHING.replace('+', "-")] {
            assert_eq!(Pin::parse_all(&format!("{OF_NOTHING},{none}")), Err(none));
        }
        assert_eq!(Pin::parse_all(&format!("{OF_NOTHING},")), Err(""));
    }
}
