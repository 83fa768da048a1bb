//! How an error is shown: with what is behind it.
//!
//! The `Display` of our errors says their own level only, and `source()` has the rest. Code that logs an error, or answers
//! with one, shows it by [`chain`], so that nothing is said twice and nothing is missing.

use std::error::Error;
use std::fmt;

/// An error and all that is behind it, `error: its source: the source's source`.
#[must_use]
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl fmt::Display + 'a {
    Chain(error)
}

struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the way up")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    enum Middle {
        #[error(transparent)]
        Through(#[from] std::io::Error),
        #[error("on its own")]
        Alone,
    }

    #[test]
    fn each_level_is_said_once_in_order() {
        assert_eq!(chain(&Middle::Alone).to_string(), "on its own");
        let error = Outer(std::io::Error::other("the bottom").into());
        assert_eq!(chain(&error).to_string(), "the way up: the bottom");
    }
}
