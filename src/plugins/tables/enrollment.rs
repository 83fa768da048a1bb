//! `remote_tls_enrollment`: how this host is enrolled, and until when the certificates are good. One row.

use std::sync::atomic::Ordering;

use super::{Rows, Sources, bigint, integer, text};
use crate::extension::registry::Table;
use crate::settings::SecretSource;

pub(super) const TABLE: Table = Table {
    name: "remote_tls_enrollment",
    columns: &[
        integer("enrolled"),
        bigint("since"),
        bigint("attempts"),
        text("last_error"),
        text("host_identifier"),
        text("secret_source"),
        text("server_name"),
        bigint("server_certificate_expiry"),
        bigint("client_certificate_expiry"),
    ],
};

pub(super) fn rows(sources: &Sources) -> Rows {
    let node = &sources.node;
    let settings = node.flags.current();
    let status = node.enrollment().status();
    let expiries = &node.requests.transport.expiries;
    let enrolled = status.enrolled && !settings.enroll.disabled;
    let since = if enrolled { status.since } else { 0 };
    vec![vec![
        i64::from(enrolled).into(),
        since.into(),
        status.attempts.into(),
        status.last_error.unwrap_or_default().into(),
        node.host.known_identifier(&settings.identity).unwrap_or_default().into(),
        secret_source(&settings.enroll.secret).into(),
        settings.server_name(node.servers.number()).into(),
        expiries.server.load(Ordering::Relaxed).into(),
        expiries.client.load(Ordering::Relaxed).into(),
    ]]
}

/// The flag that says where the secret is, and its value.
fn secret_source(source: &SecretSource) -> String {
    match source {
        SecretSource::File(path) => format!("enroll_secret_path={}", path.display()),
        SecretSource::Environment(name) => format!("enroll_secret_env={name}"),
        SecretSource::None => String::new(),
    }
}
