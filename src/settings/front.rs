//! The part of the settings that the front needs.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LogSettings, Options, OwnFlags, Settings};
use crate::journal::Limits;

/// What the front has to know of the settings. It can be sent between a front and a worker of different versions:
/// members that are missing have their defaults, unknown ones are skipped.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct FrontSettings {
    /// The directory of the buffers.
    pub buffer_path: PathBuf,
    /// What each buffer may take.
    pub limits: Limits,
    /// How often a journal is synced to the disk; `None` is never.
    pub sync_interval: Option<Duration>,
    /// How long osqueryd is waited for when it has gone away.
    pub return_timeout: Duration,
    /// Bytes that a worker may have in memory.
    pub worker_max_memory: u64,
    /// Where the log goes, and how much of it.
    pub log: LogSettings,
    /// Whether status lines are not sent, and so not kept.
    pub status_disabled: bool,
}

impl From<&Settings> for FrontSettings {
    fn from(settings: &Settings) -> Self {
        Self {
            buffer_path: settings.buffer_path.clone(),
            limits: settings.logger.limits,
            sync_interval: settings.journal_sync_interval,
            return_timeout: settings.return_timeout,
            worker_max_memory: settings.worker_max_memory,
            log: settings.log.clone(),
            status_disabled: settings.logger.status_disabled,
        }
    }
}

impl Default for FrontSettings {
    fn default() -> Self {
        (&Settings::new(&Options::new(), &OwnFlags::default()).0).into()
    }
}

#[cfg(test)]
mod tests {
    use log::LevelFilter;

    use super::*;
    use crate::settings::own;

    fn read(json: &str) -> FrontSettings {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn they_are_the_settings_own_and_arrive_as_they_were() {
        let own = OwnFlags::default()
            .with(&own::BUFFER_PATH, "/b")
            .with(&own::BUFFER_MAX_BYTES, "7")
            .with(&own::JOURNAL_SYNC_INTERVAL, "9")
            .with(&own::RETURN_TIMEOUT, "8")
            .with(&own::LOG_LEVEL, "warning")
            .with(&own::LOG_FILE, "/l");
        let options = Options::from(
            [("tls_disable_status_log", "true"), ("buffered_log_max", "6")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let settings = Settings::new(&options, &own).0;
        let front = FrontSettings::from(&settings);
        assert_eq!(front.limits, settings.logger.limits);
        assert_eq!((front.limits.max_lines, front.limits.max_bytes), (Some(6), 7));
        assert_eq!((front.sync_interval, front.return_timeout), (Some(Duration::from_secs(9)), Duration::from_secs(8)));
        assert!(front.status_disabled);
        assert_eq!(read(&serde_json::to_string(&front).unwrap()), front);
    }

    #[test]
    fn another_version_s_are_understood() {
        assert_eq!(read("{}"), FrontSettings::default());
        let front = read(r#"{"buffer_path":"/b","new":{"x":[1]},"log":{"level":"LOUD","new":1}}"#);
        assert_eq!(front, FrontSettings { buffer_path: "/b".into(), ..FrontSettings::default() });
        assert_eq!(read(r#"{"log":{"level":"WARN"}}"#).log.level, LevelFilter::Warn);
        assert_eq!(read(r#"{"limits":{"max_bytes":7}}"#).limits, Limits { max_bytes: 7, ..Limits::NONE });
    }
}
