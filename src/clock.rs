//! What time it is: by the host's clock, which may be wrong or change, and as the host itself has lived it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::clock_gettime;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::platform::{self, SINCE_BOOT};

/// The seconds since 1970 by the host's clock; 0 when that is before.
#[must_use]
pub fn unix_time() -> i64 {
    seconds(SystemTime::now())
}

/// The seconds since 1970 of this time; 0 when that is before.
#[must_use]
pub fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The day in UTC of these seconds since 1970: `2026-11-26`; `?` for one that no calendar has.
#[must_use]
pub fn date(unix_time: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_time).map_or_else(|_| "?".to_owned(), |at| at.date().to_string())
}

/// The time in UTC of these seconds since 1970, for a person: `2026-11-26 04:31:00 UTC`.
#[must_use]
pub fn day_and_time(unix_time: i64) -> String {
    if unix_time <= 0 {
        return "a time that is not known".to_owned();
    }
    let second = unix_time.rem_euclid(24 * 3600);
    format!("{} {:02}:{:02}:{:02} UTC", date(unix_time), second / 3600, second / 60 % 60, second % 60)
}

/// The time in UTC as osquery writes it: `Mon Nov 23 04:12:05 2026 UTC`.
#[must_use]
pub fn calendar_time(at: OffsetDateTime) -> String {
    let (weekday, month) = (at.weekday().to_string(), at.month().to_string());
    let (hour, minute, second) = at.to_hms();
    format!(
        "{} {} {} {hour:02}:{minute:02}:{second:02} {} UTC",
        weekday.get(..3).unwrap_or_default(),
        month.get(..3).unwrap_or_default(),
        at.day(),
        at.year()
    )
}

/// A point in time: the boot that it was in, and the seconds since that boot, with those that the host slept through. The
/// host's clock can jump; this can't.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct BootInstant {
    boot: String,
    uptime: u64,
}

impl BootInstant {
    /// The present one. Where the kernel doesn't say which boot this is, all are taken for one.
    #[must_use]
    pub fn now() -> Self {
        let uptime = u64::try_from(clock_gettime(SINCE_BOOT).tv_sec).unwrap_or(0);
        Self { boot: platform::boot_id().to_owned(), uptime }
    }

    /// How much time has passed since an earlier one, at least: from another boot it counts from this one's
    /// beginning, since nothing but a clock that may be wrong could tell how long the host was off.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        let same = self.boot == earlier.boot && self.uptime >= earlier.uptime;
        Duration::from_secs(if same { self.uptime - earlier.uptime } else { self.uptime })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(boot: &str, uptime: u64) -> BootInstant {
        BootInstant { boot: boot.to_owned(), uptime }
    }

    #[test]
    fn time_within_a_boot_is_exact_and_time_from_another_one_counts_from_the_boot() {
        let now = instant("b", 100);
        assert_eq!(now.since(&instant("b", 40)), Duration::from_secs(60));
        assert_eq!(now.since(&instant("a", 40)), Duration::from_secs(100));
        // No boot is known, and there was one between.
        assert_eq!(instant("", 100).since(&instant("", 5000)), Duration::from_secs(100));
    }

    #[test]
    fn this_boot_is_known_and_its_time_goes_on() {
        let then = BootInstant::now();
        assert_eq!(then.boot.len(), 36, "{then:?}");
        assert!(then.uptime > 0);
        let now = BootInstant::now();
        assert_eq!(now.boot, then.boot);
        assert!(now.since(&then) < Duration::from_secs(60));
    }
}
