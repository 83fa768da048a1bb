//! Conditional requests: a configuration that this host has already is not sent again.
//!
//! A server that knows them puts an `etag` into the configuration, a text that means something only to itself, and answers
//! a request that names it with `{"etag":"ok"}` while that configuration is still the right one (osquery after 5.23,
//! Fleet's ADR-0012). Only a request with the member is answered so; an empty one says that there is nothing yet. The others
//! pass it over.
//!
//! The built-in plugin forgets the etag with its process. Ours is in the configuration that is kept, so that a fleet that
//! restarts all at once is no load. It is named only together with the document that it came in, and only where that came
//! from: to another server it means nothing.

use std::sync::Arc;

use crate::members;
use crate::remote::api::{self, AnswerError};
use crate::remote::configuration::ConfigLimits;
use crate::remote::{Endpoint, key_place, shown_url};
use crate::settings::Settings;

/// The member of requests and answers.
const ETAG: &str = "etag";

/// In an answer: the etag that the request named is still right. No server gives it to a configuration.
const UNCHANGED: &str = "ok";

/// The longest etag that is used, in bytes as it is written.
const LONGEST: usize = 1024;

/// A configuration that the server gave, and could be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// As it was given.
    pub(super) document: Arc<str>,
    /// The URL that it was asked for at.
    pub(super) from: String,
    etag: Option<String>,
}

impl Received {
    /// This document from this URL.
    pub(super) fn new(document: String, from: String) -> Self {
        let etag = etag_of(&document).filter(|etag| etag != UNCHANGED);
        Self { document: document.into(), from, etag }
    }

    /// Whether its etag means something to the server of these settings.
    fn is_of(&self, settings: &Settings) -> bool {
        self.etag.is_some() && self.from == url(settings)
    }
}

/// A request's body without the node key: the etag of the configuration that this host has. `None` where the server is not
/// to be told: the GET of `tls_node_api` has no body to hold it.
pub(super) fn condition(settings: &Settings, known: Option<&Received>) -> Option<String> {
    let is_told = settings.config_etag && key_place(settings) == api::KeyPlace::Body;
    let etag = known.filter(|known| known.is_of(settings)).and_then(|known| known.etag.as_deref());
    is_told.then(|| serde_json::json!({ ETAG: etag.unwrap_or_default() }).to_string())
}

/// The configuration that an answer gives, or stands for. `settings` and `known` are those of the request.
pub(super) fn received(
    settings: &Settings,
    answer: String,
    limits: ConfigLimits,
    known: Option<&Received>,
) -> Result<Received, AnswerError> {
    if condition(settings, known).is_some() && says_unchanged(&answer) {
        let named = known.filter(|known| known.is_of(settings));
        let reason = "it says that nothing has changed, to a request that named no configuration";
        return named.cloned().ok_or_else(|| AnswerError::NotAConfiguration(reason.to_owned()));
    }
    Ok(Received::new(api::configuration(answer, key_place(settings), limits)?, url(settings)))
}

/// Where these settings have the configuration asked for, without a secret.
fn url(settings: &Settings) -> String {
    shown_url(settings, Endpoint::Config).unwrap_or_default()
}

/// The etag that a server has put into a configuration.
fn etag_of(document: &str) -> Option<String> {
    let mut etag = None;
    members::each(document, |name, value| {
        if members::is(name, ETAG) {
            etag = members::string(value, LONGEST);
        }
    })?;
    etag.filter(|etag| !etag.is_empty())
}

/// Whether an answer says that, and nothing else.
fn says_unchanged(answer: &str) -> bool {
    let (mut says_so, mut says_more) = (false, false);
    let _ = members::each(answer, |name, value| match name {
        _ if members::is(name, ETAG) => says_so = members::is(value, UNCHANGED),
        _ => says_more |= !members::is(name, "node_invalid"),
    });
    says_so && !says_more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_is_an_etag() {
        for (document, etag) in [
            (r#"{"schedule":{},"etag":"a\u0031"}"#, Some("a1")),
            (r#"{"etag":"x","etag":"y"}"#, Some("y")),
            (r#"{"etag":"","a":1}"#, None),
            (r#"{"etag":7}"#, None),
            (r#"{"a":{"etag":"x"}}"#, None),
            ("{", None),
        ] {
            assert_eq!(etag_of(document).as_deref(), etag, "{document}");
        }
        assert_eq!(etag_of(&format!(r#"{{"etag":"{}"}}"#, "x".repeat(LONGEST))), None);
    }

    #[test]
    fn a_configuration_that_has_more_is_one() {
        for (answer, is_unchanged) in [
            (r#"{"etag":"ok"}"#, true),
            (r#"{"node_invalid":false, "etag" : "ok"}"#, true),
            (r#"{"etag":"ok","schedule":{}}"#, false),
            (r#"{"etag":"okay"}"#, false),
            (r#"{"node_invalid":false}"#, false),
            ("{}", false),
        ] {
            assert_eq!(says_unchanged(answer), is_unchanged, "{answer}");
        }
    }
}
