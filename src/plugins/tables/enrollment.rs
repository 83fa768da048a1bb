//! `remote_tls_enrollment`: how this host is enrolled, and until when the certificates are good. One row.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Sources, TableOf, bigint, integer, text};
use crate::remote::{EnrollmentStatus, Node};
use crate::settings::{SecretSource, Settings};

pub(super) static TABLE: TableOf<Row> = TableOf {
    name: "remote_tls_enrollment",
    columns: &[
        integer("enrolled", |row| i64::from(row.is_enrolled()).into()),
        bigint("since", |row| if row.is_enrolled() { row.status.since } else { 0 }.into()),
        bigint("attempts", |row| row.status.attempts.into()),
        text("last_error", |row| row.status.last_error.as_deref().unwrap_or_default().into()),
        text("host_identifier", |row| {
            row.node.host.known_identifier(&row.settings.identity).unwrap_or_default().into()
        }),
        text("secret_source", |row| secret_source(&row.settings.enroll.secret).into()),
        text("server_name", |row| row.settings.server_name(row.node.servers.number()).into()),
        bigint("server_certificate_expiry", |row| row.server_expiry.into()),
        bigint("client_certificate_expiry", |row| row.client_expiry.into()),
    ],
    rows,
};

/// What is known of the enrollment.
pub(super) struct Row {
    node: Arc<Node>,
    settings: Arc<Settings>,
    status: EnrollmentStatus,
    /// In Unix seconds; 0 for one that is not known.
    server_expiry: i64,
    client_expiry: i64,
}

fn rows(sources: &Sources) -> Vec<Row> {
    let node = Arc::clone(&sources.node);
    let (settings, status) = (node.flags.current(), node.enrollment().status());
    let expiries = &sources.node.requests.transport.expiries;
    let [server_expiry, client_expiry] = [&expiries.server, &expiries.client].map(|time| time.load(Ordering::Relaxed));
    vec![Row { node, settings, status, server_expiry, client_expiry }]
}

impl Row {
    fn is_enrolled(&self) -> bool {
        self.status.enrolled && !self.settings.enroll.disabled
    }
}

/// The flag that says where the secret is, and its value.
fn secret_source(source: &SecretSource) -> String {
    match source {
        SecretSource::File(path) => format!("enroll_secret_path={}", path.display()),
        SecretSource::Environment(name) => format!("enroll_secret_env={name}"),
        SecretSource::None => String::new(),
    }
}
