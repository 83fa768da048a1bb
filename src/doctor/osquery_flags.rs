//! The names and types of osquery's flags, hidden ones included: what a flag file can name.
//!
//! Those of osquery 5.x on Linux, from its source. osqueryd's own list (`options()`) is added where it runs.

use std::collections::BTreeSet;

use crate::settings::own::{FALSE, TRUE};

/// When a flag can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// Only by the command line and the flag file.
    AtStart,
    /// A configuration's `options` can set it too.
    AnyTime,
}

/// What gflags takes as a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Text,
    I32,
    U32,
    U64,
}

/// Second names of flags.
const ALIASES: &[(&str, &str)] = &[
    ("config_tls_accelerated_refresh", "config_accelerated_refresh"),
    ("config_tls_refresh", "config_refresh"),
    ("db_path", "database_path"),
    ("log_numerics_as_numbers", "logger_numerics"),
    ("logger_tls_max", "logger_tls_max_linesize"),
    ("osquery_log_dir", "logger_path"),
];

/// Flags of the flags library itself, which osqueryd obeys in a flag file.
const LIBRARY: [&str; 4] = ["flagfile", "fromenv", "tryfromenv", "undefok"];

const FLAGS: &[(Set, Kind, &str)] = &[
    (
        Set::AtStart,
        Kind::Bool,
        "D S aws_enforce_fips carver_compression carver_disable_function config_check config_dump \
         config_enable_backup daemonize database_dump disable_carver disable_enrollment disable_extensions \
         disable_reenrollment disable_watchdog enable_extensions_watchdog enable_watchdog_debug enroll_always \
         force keep_container_worker_open logger_stderr tls_accept_gzip tls_session_reuse",
    ),
    (Set::AtStart, Kind::I32, "watchdog_level"),
    (
        Set::AtStart,
        Kind::Text,
        "carver_continue_endpoint carver_start_endpoint config_path config_plugin config_tls_endpoint \
         database_path disable_tables enable_tables enroll_secret_env enroll_secret_path enroll_tls_endpoint \
         extensions_autoload extensions_interval extensions_require extensions_socket extensions_timeout \
         logger_mode logger_plugin pidfile proxy_hostname tls_client_cert tls_client_key tls_hostname \
         tls_server_certs",
    ),
    (Set::AtStart, Kind::U32, "carver_block_size carver_expiry tls_session_timeout"),
    (
        Set::AtStart,
        Kind::U64,
        "alarm_timeout config_accelerated_refresh config_refresh config_tls_max_attempts tls_enroll_max_attempts \
         tls_enroll_max_interval watchdog_delay watchdog_forced_shutdown_delay watchdog_latency_limit \
         watchdog_memory_limit watchdog_utilization_limit",
    ),
    (
        Set::AnyTime,
        Kind::Bool,
        "allow_unsafe audit_allow_accept_socket_events audit_allow_apparmor_events audit_allow_config \
         audit_allow_failed_socket_events audit_allow_fim_events audit_allow_fork_process_events \
         audit_allow_kill_process_events audit_allow_null_accept_socket_events audit_allow_process_events \
         audit_allow_seccomp_events audit_allow_selinux_events audit_allow_sockets audit_allow_unix \
         audit_allow_user_events audit_debug audit_fim_debug audit_fim_show_accesses audit_force_reconfigure \
         audit_force_unconfigure audit_persist audit_show_partial_fim_events audit_show_untracked_res_warnings \
         aws_debug aws_disable_imdsv1_fallback aws_enable_proxy aws_kinesis_disable_log_status \
         aws_kinesis_random_partition_key decorations_top_level disable_audit disable_caching disable_database \
         disable_decorators disable_distributed disable_events disable_hash_cache disable_logging disable_memory \
         distributed_loginfo enable_file_events enable_foreign enable_numeric_monitoring enable_syslog \
         enable_yara_string ephemeral events_enforce_denylist events_optimize extensions_default_index \
         ignore_registry_exceptions ignore_table_exceptions logger_event_type logger_numerics logger_rotate \
         logger_snapshot_event_type logger_status_sync logger_syslog_prepend_cee logger_tls_compress \
         schedule_lognames schedule_reload_sql thrift_verbose tls_disable_status_log tls_dump tls_node_api \
         tls_secret_always utc verbose yara_malloc_trim yara_sigurl_authenticate",
    ),
    (
        Set::AnyTime,
        Kind::I32,
        "audit_backlog_limit audit_backlog_wait_time dns_resolver_refresh_interval logger_min_status \
         logger_min_stderr logger_syslog_facility profile_delay rocksdb_background_flushes rocksdb_buffer_blocks \
         rocksdb_merge_number rocksdb_write_buffer thrift_string_size_limit worker_threads",
    ),
    (
        Set::AnyTime,
        Kind::Text,
        "augeas_lenses aws_access_key_id aws_firehose_endpoint aws_firehose_region aws_firehose_stream \
         aws_kinesis_endpoint aws_kinesis_region aws_kinesis_stream aws_profile_name aws_proxy_host \
         aws_proxy_password aws_proxy_scheme aws_proxy_username aws_region aws_secret_access_key aws_session_token \
         aws_sts_arn_role aws_sts_region aws_sts_session_name distributed_plugin distributed_tls_read_endpoint \
         distributed_tls_write_endpoint docker_socket experiment_list hardware_disabled_types host_identifier \
         logger_kafka_acks logger_kafka_brokers logger_kafka_compression logger_kafka_topic logger_path \
         logger_tls_endpoint lxd_socket nullvalue numeric_monitoring_filesystem_path numeric_monitoring_plugins \
         pack_delimiter specified_identifier syslog_pipe_path tls_enroll_override",
    ),
    (
        Set::AnyTime,
        Kind::U32,
        "aws_imdsv2_request_attempts aws_imdsv2_request_interval aws_proxy_port hash_cache_max hash_delay \
         regex_max_size thrift_timeout yara_delay",
    ),
    (
        Set::AnyTime,
        Kind::U64,
        "aws_firehose_period aws_kinesis_period aws_sts_timeout buffered_log_max distributed_denylist_duration \
         distributed_interval distributed_tls_max_attempts events_expiry events_max logger_rotate_max_files \
         logger_rotate_size logger_tls_backoff_max logger_tls_max_lines logger_tls_max_linesize logger_tls_period \
         malloc_trim_threshold numeric_monitoring_pre_aggregation_time pack_refresh_interval read_max \
         schedule_default_interval schedule_epoch schedule_max_drift schedule_reload schedule_splay_percent \
         schedule_timeout syslog_events_max syslog_rate_limit table_delay watchdog_max_delay",
    ),
];

/// The name that osqueryd lists a flag by.
pub(super) fn real_name(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, real)| real)
}

/// How a flag can be set, by any of its names.
pub(super) fn of(name: &str) -> Option<(Set, Kind)> {
    let name = real_name(name);
    let (set, kind, _) = FLAGS.iter().find(|(_, _, names)| names.split(' ').any(|known| known == name))?;
    Some((*set, *kind))
}

/// Whether the flags library knows a flag of that name by itself.
pub(super) fn is_of_the_library(name: &str) -> bool {
    LIBRARY.contains(&name)
}

/// The known name, or one of `others`, that `name` is most likely meant to be; none when it is like none of them.
pub(super) fn closest<'a>(name: &str, others: &'a BTreeSet<String>) -> Option<&'a str> {
    let known = FLAGS.iter().flat_map(|(_, _, names)| names.split(' '));
    let known = known.chain(ALIASES.iter().map(|(alias, _)| *alias)).chain(others.iter().map(String::as_str));
    let (_, found) = known.map(|known| (distance(name, known), known)).min()?;
    is_close(name, found).then_some(found)
}

/// Whether a name may be meant for another one: a third of its letters may be wrong, and no more than four.
pub(super) fn is_close(name: &str, other: &str) -> bool {
    distance(name, other) <= (name.len() / 3).min(4)
}

impl Kind {
    /// The value as osqueryd lists it; none when it is not of this type, which ends osqueryd.
    ///
    /// As gflags takes it: blanks before a number are passed over, and one behind it is fatal.
    pub(super) fn normal(self, value: &str) -> Option<String> {
        let number = value.trim_start();
        match self {
            Self::Text => Some(value.to_owned()),
            Self::Bool => match value.to_ascii_lowercase().as_str() {
                word if TRUE.contains(&word) => Some("true".to_owned()),
                word if FALSE.contains(&word) => Some("false".to_owned()),
                _ => None,
            },
            Self::I32 => integer(number, i32::from_str_radix).map(|number| number.to_string()),
            Self::U32 => integer(number, u32::from_str_radix).map(|number| number.to_string()),
            Self::U64 => integer(number, u64::from_str_radix).map(|number| number.to_string()),
        }
    }

    /// What is needed, for a message.
    pub(super) fn needed(self) -> &'static str {
        match self {
            Self::Bool => "true or false is needed",
            Self::Text => "a text is needed",
            Self::I32 => "a whole number is needed",
            Self::U32 | Self::U64 => "a whole number, not negative, is needed",
        }
    }
}

/// A number in decimal, or in hexadecimal behind `0x`.
fn integer<T>(text: &str, parse: impl Fn(&str, u32) -> Result<T, std::num::ParseIntError>) -> Option<T> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => parse(digits, 16).ok(),
        None => parse(text, 10).ok(),
    }
}

/// How many letters must be put in, left out or changed (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, one) in from.bytes().enumerate() {
        let mut diagonal = index;
        let mut left = index + 1;
        let mut next = vec![left];
        for (above, other) in row.iter().skip(1).zip(to.bytes()) {
            let changed = diagonal + usize::from(one != other);
            left = changed.min(above + 1).min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_by_each_of_their_names() {
        assert_eq!(of("tls_hostname"), Some((Set::AtStart, Kind::Text)));
        assert_eq!(of("config_tls_refresh"), Some((Set::AtStart, Kind::U64)));
        assert_eq!(of("logger_event_type"), Some((Set::AnyTime, Kind::Bool)));
        assert_eq!(of("tls_hostnam"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn the_closest_name_is_the_one_that_was_meant() {
        let none = BTreeSet::new();
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(closest("tls_hostnam", &none), Some("tls_hostname"));
        assert_eq!(closest("enrol_secret_path", &none), Some("enroll_secret_path"));
        assert_eq!(closest("custom_remote_tls_request_timeout", &none), None);
        assert_eq!(closest("new_flag", &BTreeSet::from(["new_flags".to_owned()])), Some("new_flags"));
    }

    #[test]
    fn values_are_taken_as_the_flags_library_takes_them() {
        assert_eq!(Kind::Bool.normal("Yes").as_deref(), Some("true"));
        assert_eq!(Kind::U64.normal("07").as_deref(), Some("7"));
        assert_eq!(Kind::U64.normal(" 0x1F").as_deref(), Some("31"));
        // Case doctor-flags/blank-behind-a-number.flags: osqueryd ends.
        assert_eq!((Kind::U64.normal("30  "), Kind::Bool.normal("true ")), (None, None));
        assert_eq!((Kind::U32.normal("-1"), Kind::Bool.normal("maybe")), (None, None));
    }
}
