//! The two forms in which osquery writes the time.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// `Mon Nov  3 04:45:06 2026 UTC`: the day is padded with a space.
const CALENDAR: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year] UTC"
);
const GLOG: &[BorrowedFormatItem<'_>] =
    format_description!("[month][day] [hour]:[minute]:[second].[subsecond digits:6]");

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A line's `calendarTime`, of the same moment as its `unixTime`.
pub(super) fn calendar_time(unix_time: u64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(unix_time as i64).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(CALENDAR).unwrap_or_default()
}

/// Now, as glog prefixes its lines with it.
pub(super) fn glog_time() -> String {
    OffsetDateTime::now_utc().format(GLOG).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::calendar_time;

    #[test]
    fn the_calendar_time_is_asctime_in_utc() {
        assert_eq!(calendar_time(1_795_409_106), "Mon Nov 23 04:45:06 2026 UTC");
        assert_eq!(calendar_time(1_793_681_106), "Tue Nov  3 04:45:06 2026 UTC");
    }
}
