//! Whole queries in one call: whether osqueryd is asked for them, by `"logger_event_type": false` in the `options` of
//! the configuration that it is handed.
//!
//! osqueryd spends more on a call than on a line, so a query's whole difference in one call is many times cheaper
//! (docs/performance.md), and the server gets the same lines, since we make them. It is asked for where no other
//! logger runs beside ours, since that one's lines would change.

use std::borrow::Cow;
use std::path::PathBuf;

use super::kept::kept;
use super::operator::{FlagSources, Unread};
use super::options::{option, with_option};
use crate::extension::registry::NAME;
use crate::lock::Mutex;
use crate::members;
use crate::remote::configuration;
use crate::remote::configuration::ConfigLimits;
use crate::settings::own::TRUE;
use crate::settings::{ExpandEvents, Options};

/// osqueryd's flag, true by default: each row is a line, and a call, of its own.
const FLAG: &str = "logger_event_type";

/// What the server or the operator wants of `logger_event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineFormat {
    /// A line for each row.
    EventLines,
    /// A line for a query's whole difference, also at the server.
    Batches,
}

impl LineFormat {
    /// What a flag's value, or an option's as text, means.
    fn of(value: &str) -> Self {
        if TRUE.contains(&value) { Self::EventLines } else { Self::Batches }
    }

    /// What the server says in a configuration.
    fn of_server(document: &str) -> Option<Self> {
        let value = option(document, FLAG)?;
        // No word that means something is longer.
        Some(Self::of(members::string(value, 100).as_deref().unwrap_or(value)))
    }
}

/// Decides, and knows what was decided.
pub struct WholeQueries {
    osqueryd: Mutex<Osqueryd>,
    /// The last good configuration: osqueryd doesn't ask a worker that takes another one's place for one.
    kept: PathBuf,
    /// What is said of the flag while osqueryd has the last configuration that was handed on; `None` before the first.
    said: Mutex<Option<Option<LineFormat>>>,
}

/// What counts of a running osqueryd; nothing can change it before another one runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Osqueryd {
    /// The value of `logger_plugin`: names with commas between them.
    loggers: String,
    /// What the operator said of our flag.
    operator: Option<LineFormat>,
}

impl WholeQueries {
    /// For an osqueryd with these flags; `command_line` are its process's arguments, where they are known. Looks for a
    /// configuration in the file `kept` when none was handed on.
    #[must_use]
    pub fn new(options: &Options, command_line: Option<&[String]>, kept: PathBuf) -> Self {
        Self { osqueryd: Mutex::new(Osqueryd::of(options, command_line)), kept, said: Mutex::new(None) }
    }

    /// Another osqueryd runs now, with these flags.
    pub fn osqueryd_was_replaced(&self, options: &Options, command_line: Option<&[String]>) {
        let osqueryd = Osqueryd::of(options, command_line);
        *self.osqueryd.lock() = osqueryd;
        *self.said.lock() = None;
    }

    /// A configuration of the server's as osqueryd is to have it; it stays as it is where osqueryd would not take it
    /// then.
    pub(super) fn hand_on<'a>(&self, document: &'a str, expand: ExpandEvents, limits: ConfigLimits) -> Cow<'a, str> {
        let osqueryd = self.osqueryd.lock().clone();
        *self.said.lock() = Some(osqueryd.format_asked_for(document));
        osqueryd.hand_on(document, expand, limits)
    }

    /// Whether batch lines are to be made event lines: by [`ExpandEvents::Auto`] those that only we have asked
    /// for. Some may still come, or wait, when they are not asked for any more.
    pub fn expands(&self, expand: ExpandEvents) -> bool {
        match expand {
            ExpandEvents::Always => true,
            ExpandEvents::Never => false,
            ExpandEvents::Auto => self.said() != Some(LineFormat::Batches),
        }
    }

    fn said(&self) -> Option<LineFormat> {
        let osqueryd = self.osqueryd.lock().clone();
        *self.said.lock().get_or_insert_with(|| {
            // Without a kept configuration osqueryd has none either, as far as is known here.
            osqueryd.format_asked_for(&kept(&self.kept).unwrap_or_default())
        })
    }
}

impl Osqueryd {
    fn of(options: &Options, command_line: Option<&[String]>) -> Self {
        let flag = |name: &str| options.get(name).cloned().unwrap_or_default();
        let operator = match FlagSources::of(command_line).value_of(FLAG) {
            Ok(value) => value.as_deref().map(LineFormat::of),
            // The flag's value may be of a configuration's making: it is believed only where there is nothing better.
            Err(Unread) => Some(LineFormat::of(&flag(FLAG)))
                .filter(|format| *format == LineFormat::Batches && options.contains_key(FLAG)),
        };
        Self { loggers: flag("logger_plugin"), operator }
    }

    fn hand_on<'a>(&self, document: &'a str, expand: ExpandEvents, limits: ConfigLimits) -> Cow<'a, str> {
        let wanted = expand == ExpandEvents::Auto && self.has_only_ours() && self.format_asked_for(document).is_none();
        let changed = wanted.then(|| with_option(document, FLAG, "false")).flatten();
        match changed.filter(|changed| configuration::judge(changed, limits).is_ok()) {
            Some(changed) => Cow::Owned(changed),
            None => Cow::Borrowed(document),
        }
    }

    /// The server's word counts more than the operator's, as osqueryd has it.
    fn format_asked_for(&self, document: &str) -> Option<LineFormat> {
        LineFormat::of_server(document).or(self.operator)
    }

    fn has_only_ours(&self) -> bool {
        self.loggers.trim() == NAME
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DOCUMENT: &str = r#"{"schedule":{"q":{"query":"select 1","interval":60}},"options":{"verbose":true}}"#;
    const CHANGED: &str =
        r#"{"schedule":{"q":{"query":"select 1","interval":60}},"options":{"logger_event_type":false,"verbose":true}}"#;
    const AUTO: ExpandEvents = ExpandEvents::Auto;
    const MOST: ConfigLimits = ConfigLimits { bytes: 1 << 20, depth: 32 };

    fn most(bytes: usize) -> ConfigLimits {
        ConfigLimits { bytes, ..MOST }
    }

    fn options(loggers: &str) -> Options {
        [("logger_plugin", loggers), (FLAG, "true")].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    fn arguments(more: &[&str]) -> Option<Vec<String>> {
        Some(["osqueryd"].iter().chain(more).map(|&argument| argument.to_owned()).collect())
    }

    fn with(loggers: &str, command_line: &[&str]) -> WholeQueries {
        WholeQueries::new(
            &options(loggers),
            arguments(command_line).as_deref(),
            PathBuf::from("/no/such/configuration"),
        )
    }

    #[test]
    fn whole_queries_are_asked_for_where_no_flag_and_no_option_says_otherwise() {
        let alone = with("remote_tls", &[]);
        assert!(alone.expands(AUTO), "lines of an osqueryd that another worker gave its configuration");
        assert_eq!(alone.hand_on(DOCUMENT, AUTO, MOST), CHANGED);
        assert!(alone.expands(AUTO));
    }

    #[test]
    fn with_another_logger_nothing_is_asked_for() {
        for loggers in ["filesystem,remote_tls", "remote_tls,filesystem", "tls", "", "remote_tls,"] {
            assert_eq!(with(loggers, &[]).hand_on(DOCUMENT, AUTO, MOST), DOCUMENT, "{loggers}");
        }
    }

    #[test]
    fn the_setting_switches_it_off() {
        for (expand, expands) in [(ExpandEvents::Always, true), (ExpandEvents::Never, false)] {
            let alone = with("remote_tls", &[]);
            assert_eq!(alone.hand_on(DOCUMENT, expand, MOST), DOCUMENT);
            assert_eq!(alone.expands(expand), expands);
        }
    }

    #[test]
    fn what_the_server_says_stays() {
        for (value, expands) in
            [("true", true), ("\"true\"", true), ("1", true), ("false", false), ("\"f\"", false), ("null", false)]
        {
            let document = format!(r#"{{"options":{{"logger_event_type":{value}}}}}"#);
            let alone = with("remote_tls", &[]);
            assert_eq!(alone.hand_on(&document, AUTO, MOST), document);
            assert_eq!(alone.expands(AUTO), expands, "{value}");
            assert_eq!(alone.hand_on(DOCUMENT, AUTO, MOST), CHANGED, "it says nothing any more");
            assert!(alone.expands(AUTO));
        }
    }

    #[test]
    fn what_the_operator_says_stays_and_the_server_s_word_counts_more() {
        for (argument, expands) in [("--logger_event_type=true", true), ("--nologger_event_type", false)] {
            let operated = with("remote_tls", &[argument]);
            assert_eq!(operated.hand_on(DOCUMENT, AUTO, MOST), DOCUMENT);
            assert_eq!(operated.expands(AUTO), expands);
            let document = r#"{"options":{"logger_event_type":true}}"#;
            assert_eq!(operated.hand_on(document, AUTO, MOST), document);
            assert!(operated.expands(AUTO));
        }
    }

    #[test]
    fn the_flag_s_value_counts_only_where_its_sources_can_t_be_read() {
        let mut options = options("remote_tls");
        options.insert(FLAG.to_owned(), "false".to_owned());
        let kept = || PathBuf::from("/no/such/configuration");
        let known = WholeQueries::new(&options, arguments(&[]).as_deref(), kept());
        assert_eq!(known.hand_on(DOCUMENT, AUTO, MOST), CHANGED, "false since we said so before");
        let unknown = WholeQueries::new(&options, None, kept());
        assert_eq!(unknown.hand_on(DOCUMENT, AUTO, MOST), DOCUMENT);
        options.insert(FLAG.to_owned(), "true".to_owned());
        assert_eq!(WholeQueries::new(&options, None, kept()).hand_on(DOCUMENT, AUTO, MOST), CHANGED);
    }

    #[test]
    fn another_osqueryd_has_other_flags() {
        let queries = with("remote_tls", &["--nologger_event_type"]);
        assert!(!queries.expands(AUTO));
        queries.osqueryd_was_replaced(&options("remote_tls"), arguments(&[]).as_deref());
        assert!(queries.expands(AUTO));
        assert_eq!(queries.hand_on(DOCUMENT, AUTO, MOST), CHANGED);
    }

    #[test]
    fn before_the_first_configuration_the_kept_one_counts() {
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("config.json");
        fs::write(&kept, r#"{"options":{"logger_event_type":false}}"#).unwrap();
        let queries = WholeQueries::new(&options("remote_tls"), arguments(&[]).as_deref(), kept);
        assert!(!queries.expands(AUTO), "the server wants batches");
    }

    #[test]
    fn a_document_that_would_become_too_large_stays() {
        let alone = with("remote_tls", &[]);
        assert_eq!(alone.hand_on(DOCUMENT, AUTO, most(CHANGED.len() + 1)), CHANGED);
        assert_eq!(alone.hand_on(DOCUMENT, AUTO, most(CHANGED.len())), DOCUMENT);
    }
}
