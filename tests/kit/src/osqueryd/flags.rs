//! osqueryd's flags: their values, who may change them, and how `options()` lists them.

use std::collections::BTreeMap;

use super::flag_table::{ALIASES, FLAGS};

/// Seconds below which osqueryd takes no `alarm_timeout`.
const SHORTEST_ALARM: u64 = 10;

/// What sort of flag one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only from the command line or the flag file.
    CommandLine,
    /// A configuration's `options` may set it, too.
    Ordinary,
    /// As an ordinary one, and not in the help text.
    Hidden,
}

/// Why a flag was not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Unknown,
    Value,
}

/// One flag as `options()` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) value: String,
    pub(super) default_value: String,
    pub(super) kind: String,
}

/// Every flag with its present value.
#[derive(Clone, Debug, Default)]
pub(super) struct Flags {
    set: BTreeMap<String, String>,
    custom: BTreeMap<String, String>,
}

impl Flags {
    /// Sets a flag, as the command line and the flag file do. `custom_*` is not known there.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), Refused> {
        let name = real_name(name);
        let &(_, kind, _, _) = entry(name).ok_or(Refused::Unknown)?;
        let value = checked(kind, value).ok_or(Refused::Value)?;
        if name == "alarm_timeout" && value.parse().is_ok_and(|seconds: u64| seconds < SHORTEST_ALARM) {
            return Err(Refused::Value);
        }
        self.set.insert(name.to_owned(), value);
        Ok(())
    }

    /// Sets a `custom_*` value, which no table knows.
    pub(super) fn set_custom(&mut self, name: &str, value: &str) {
        self.custom.insert(name.to_owned(), value.to_owned());
    }

    /// Sets a flag as a configuration's `options` does; the warning that osqueryd prints when it does not.
    pub(super) fn set_from_config(&mut self, name: &str, value: &str) -> Result<(), String> {
        if name.starts_with("custom_") {
            self.set_custom(name, value);
            return Ok(());
        }
        if entry(real_name(name)).is_none() {
            return Err(format!("Cannot set unknown or invalid flag: {name}"));
        }
        // As in osqueryd, the alias of a command line flag slips through.
        if entry(name).is_some_and(|(kind, ..)| *kind == Kind::CommandLine) {
            return Err(format!(
                "The CLI only flag --{name} set via config file will be ignored, please use a flagfile or pass it to \
                 the process at startup"
            ));
        }
        // A value of the wrong type is refused by the flags library, without a word.
        let _ = self.set(name, value);
        Ok(())
    }

    /// A flag's value; empty for one that does not exist.
    pub(super) fn value(&self, name: &str) -> String {
        let name = real_name(name);
        let own = self.custom.get(name).or_else(|| self.set.get(name));
        own.cloned().or_else(|| entry(name).map(|(_, _, _, default)| (*default).to_owned())).unwrap_or_default()
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.value(name) == "true"
    }

    pub(super) fn number(&self, name: &str) -> u64 {
        self.value(name).trim().parse().unwrap_or(0)
    }

    /// All of them, by name, those with a `custom_` name included.
    pub(super) fn listed(&self) -> BTreeMap<String, Listed> {
        let known = FLAGS.iter().map(|(_, kind, name, default)| {
            let listed =
                Listed { value: self.value(name), default_value: (*default).to_owned(), kind: (*kind).to_owned() };
            ((*name).to_owned(), listed)
        });
        let custom = self.custom.iter().map(|(name, value)| {
            let listed = Listed { value: value.clone(), default_value: String::new(), kind: "string".to_owned() };
            (name.clone(), listed)
        });
        known.chain(custom).collect()
    }
}

/// Whether a flag of that name exists, and whether it takes `true` and `false`.
pub(super) fn is_bool(name: &str) -> Option<bool> {
    entry(real_name(name)).map(|(_, kind, _, _)| *kind == "bool")
}

fn real_name(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, real)| real)
}

fn entry(name: &str) -> Option<&'static (Kind, &'static str, &'static str, &'static str)> {
    FLAGS.iter().find(|(_, _, known, _)| *known == name)
}

/// The value as gflags keeps it, or none when it is not of the flag's type.
fn checked(kind: &str, value: &str) -> Option<String> {
    match kind {
        "bool" => match value.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" | "y" | "yes" => Some("true".to_owned()),
            "0" | "f" | "false" | "n" | "no" => Some("false".to_owned()),
            _ => None,
        },
        "uint32" => value.trim().parse::<u32>().ok().map(|number| number.to_string()),
        "uint64" => value.trim().parse::<u64>().ok().map(|number| number.to_string()),
        "int32" => value.trim().parse::<i32>().ok().map(|number| number.to_string()),
        _ => Some(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, Refused};

    #[test]
    fn a_flag_has_its_default_until_it_is_set() {
        let mut flags = Flags::default();
        assert_eq!(flags.number("logger_tls_period"), 4);
        flags.set("logger_tls_period", "9").unwrap();
        let listed = flags.listed().remove("logger_tls_period").unwrap();
        assert_eq!((listed.value.as_str(), listed.default_value.as_str(), listed.kind.as_str()), ("9", "4", "uint64"));
    }

    #[test]
    fn unknown_names_and_wrong_types_are_refused() {
        let mut flags = Flags::default();
        assert_eq!(flags.set("tls_hostnam", "x"), Err(Refused::Unknown));
        assert_eq!(flags.set("custom_x", "x"), Err(Refused::Unknown));
        assert_eq!(flags.set("logger_tls_period", "soon"), Err(Refused::Value));
        assert_eq!(flags.set("alarm_timeout", "9"), Err(Refused::Value));
    }

    #[test]
    fn a_configuration_sets_ordinary_and_custom_flags_and_no_command_line_ones() {
        let mut flags = Flags::default();
        flags.set_from_config("logger_tls_period", "7").unwrap();
        flags.set_from_config("custom_remote_tls_x", "y").unwrap();
        assert!(flags.set_from_config("tls_hostname", "z").unwrap_err().contains("CLI only"));
        assert!(flags.set_from_config("nonsense", "z").unwrap_err().contains("unknown or invalid"));
        assert_eq!(flags.value("logger_tls_period"), "7");
        assert_eq!(flags.listed()["custom_remote_tls_x"].value, "y");
        assert_eq!(flags.value("tls_hostname"), "");
    }

    #[test]
    fn an_alias_sets_the_real_flag_and_is_not_listed() {
        let mut flags = Flags::default();
        flags.set("config_tls_refresh", "11").unwrap();
        assert_eq!(flags.value("config_refresh"), "11");
        assert!(!flags.listed().contains_key("config_tls_refresh"));
    }
}
