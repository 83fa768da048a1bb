//! Which plugins osqueryd uses, where a configuration's `options` say otherwise than the host.
//!
//! osqueryd applies `"distributed_plugin": "tls"` over its flag file, and distributed queries go through the built-in plugin
//! from then on, without a word. Many servers say it to every host (Fleet's default agent options, Zentral's
//! configurations), and none can say `remote_tls` instead: a host without the extension would not start. So where the
//! options name `tls` for a plugin whose flag names `remote_tls`, osqueryd is given `remote_tls`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::operator::FlagSources;
use super::options::with_values;
use crate::extension::registry::NAME;
use crate::lock::{Mutex, MutexGuard};
use crate::members;
use crate::remote::configuration;
use crate::remote::configuration::ConfigLimits;
use crate::settings::Options;

/// osqueryd's flags that name plugins of registries in which we have one. The newest versions apply only the last one from a
/// configuration; the others they pass over with a warning.
const FLAGS: [&str; 3] = ["config_plugin", "logger_plugin", "distributed_plugin"];

/// The plugins whose places ours take.
const BUILT_IN: &str = "tls";

/// The longest list of plugins that is looked at, in bytes as it is written.
const LONGEST_LIST: usize = 4096;

/// Knows what the host's operator wants, and sees to it.
pub struct ActivePlugins {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The flags that name ours.
    ours: BTreeSet<&'static str>,
    /// Those of them for which it was said that the options name another one.
    said: BTreeSet<&'static str>,
}

impl ActivePlugins {
    /// For an osqueryd with these flags; `command_line` are its process's arguments, where they are known.
    #[must_use]
    pub fn new(options: &Options, command_line: Option<&[String]>) -> Self {
        Self { state: Mutex::new(State { ours: ours(options, command_line), said: BTreeSet::new() }) }
    }

    /// Another osqueryd runs now, with these flags.
    pub fn osqueryd_was_replaced(&self, options: &Options, command_line: Option<&[String]>) {
        self.state().ours = ours(options, command_line);
    }

    /// A configuration of the server's as osqueryd is to have it, which differs only in values that name plugins. `None`
    /// when it doesn't differ, and when osqueryd would not take it then.
    pub(super) fn hand_on(&self, document: &str, limits: ConfigLimits) -> Option<String> {
        let ours = self.state().ours.clone();
        with_values(document, |name, value| {
            let flag = ours.iter().find(|flag| members::is(name, flag))?;
            let value = with_ours(&members::string(value, LONGEST_LIST)?)?;
            self.say(flag, &value);
            Some(Value::from(value).to_string())
        })
        .filter(|changed| configuration::judge(changed, limits).is_ok())
    }

    fn say(&self, flag: &'static str, value: &str) {
        if self.state().said.insert(flag) {
            log::info!(
                "the configuration's options name the built-in plugin {BUILT_IN} for {flag}, and osqueryd is given \
                 {value} in its place, as its own flags have it (--keep_plugins=false leaves the options as they are)"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The flags that name our plugin, and not the built-in one beside it.
fn ours(options: &Options, command_line: Option<&[String]>) -> BTreeSet<&'static str> {
    let sources = FlagSources::of(command_line);
    let names_ours = |flag: &&str| {
        // A flag's current value may be of a configuration's making; it counts where the operator is not seen to say
        // anything, as with a flag file that osqueryd finds by itself.
        let said = sources.value_of(flag).ok().flatten();
        let value = said.as_deref().or_else(|| options.get(*flag).map(String::as_str)).unwrap_or_default();
        let names: Vec<&str> = value.split(',').map(str::trim).collect();
        names.contains(&NAME) && !names.contains(&BUILT_IN)
    };
    FLAGS.into_iter().filter(names_ours).collect()
}

/// A list of plugins with ours in the built-in one's place; `None` when that isn't in it.
fn with_ours(list: &str) -> Option<String> {
    let mut names: Vec<String> = list.split(',').map(str::to_owned).collect();
    names.iter().any(|name| name.trim() == BUILT_IN).then(|| {
        // A plugin that is named twice gets every line twice.
        let has_ours = names.iter().any(|name| name.trim() == NAME);
        names.retain(|name| !has_ours || name.trim() != BUILT_IN);
        let replaced =
            |name: &String| if name.trim() == BUILT_IN { name.replace(BUILT_IN, NAME) } else { name.clone() };
        names.iter().map(replaced).collect::<Vec<_>>().join(",")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: ConfigLimits = ConfigLimits { bytes: 1 << 20, depth: 32 };

    fn most(bytes: usize) -> ConfigLimits {
        ConfigLimits { bytes, ..MOST }
    }

    fn plugins(flags: [&str; 3]) -> ActivePlugins {
        let options = FLAGS.into_iter().zip(flags).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        ActivePlugins::new(&options, None)
    }

    fn handed_on(flags: [&str; 3], options: &str) -> String {
        let document = format!("{{\"options\": {{{options}}}, \"distributed_plugin\": \"tls\"}}");
        let handed_on = plugins(flags).hand_on(&document, MOST).unwrap_or_else(|| document.clone());
        let options = handed_on.strip_prefix("{\"options\": {").unwrap();
        options.strip_suffix("}, \"distributed_plugin\": \"tls\"}").unwrap().to_owned()
    }

    #[test]
    fn tls_becomes_ours_where_the_flag_names_ours() {
        let all = [NAME; 3];
        for (options, expected) in [
            (r#""distributed_plugin": "tls""#, r#""distributed_plugin": "remote_tls""#),
            (
                r#""logger_plugin":"\u0074ls","config_plugin" : "tls" "#,
                r#""logger_plugin":"remote_tls","config_plugin" : "remote_tls" "#,
            ),
            (r#""logger_plugin":"filesystem,tls""#, r#""logger_plugin":"filesystem,remote_tls""#),
            (r#""logger_plugin":"tls, syslog""#, r#""logger_plugin":"remote_tls, syslog""#),
            (r#""logger_plugin":"filesystem, tls ""#, r#""logger_plugin":"filesystem, remote_tls ""#),
            (r#""logger_plugin":"tls,remote_tls""#, r#""logger_plugin":"remote_tls""#),
        ] {
            assert_eq!(handed_on(all, options), expected);
        }
        for options in [
            r#""distributed_plugin":"remote_tls""#,
            r#""distributed_plugin":"tlsx","logger_plugin":"filesystem""#,
            r#""distributed_plugin":["tls"]"#,
            r#""distributed_plugin":null,"numeric_monitoring_plugins":"tls""#,
            r#""distributed_plugin":"tls\udce9""#,
        ] {
            assert_eq!(handed_on(all, options), options);
        }
    }

    #[test]
    fn where_the_flag_does_not_name_ours_the_server_s_word_stays() {
        let options = r#""logger_plugin":"tls","distributed_plugin":"tls","config_plugin":"tls""#;
        assert_eq!(handed_on(["tls", "filesystem", "tls"], options), options);
        assert_eq!(
            handed_on([NAME, "tls,remote_tls", "tls"], options),
            options.replace("config_plugin\":\"tls", "config_plugin\":\"remote_tls")
        );
        let second = options.replace("logger_plugin\":\"tls", "logger_plugin\":\"remote_tls");
        assert_eq!(handed_on(["tls", "filesystem,remote_tls", ""], options), second);
    }

    #[test]
    fn what_the_operator_said_counts_more_than_what_a_configuration_has_made_of_it() {
        let options = Options::from([("distributed_plugin".to_owned(), BUILT_IN.to_owned())]);
        let flag = |value: &str| ["osqueryd".to_owned(), format!("--distributed_plugin={value}")];
        let document = r#"{"options":{"distributed_plugin":"tls"}}"#;
        let plugins = ActivePlugins::new(&options, Some(&flag(NAME)));
        let changed = document.replace(BUILT_IN, NAME);
        assert_eq!(plugins.hand_on(document, most(changed.len() + 1)).as_ref(), Some(&changed));
        assert_eq!(plugins.hand_on(document, most(changed.len())), None);
        plugins.osqueryd_was_replaced(&options, Some(&flag(BUILT_IN)));
        assert_eq!(plugins.hand_on(document, MOST), None);
    }
}
