//! Both sides as the soak wants them.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::ledger::Books;
use super::{Plan, lines, load};
use crate::certs::default_authority;
use crate::osqueryd;
use crate::server::{self, Server};

const SECRET: &str = "soak-secret";

/// A server that counts and keeps nothing.
pub(super) fn server_options(books: &Arc<Books>) -> server::Options {
    let (requests, lines) = (Arc::clone(books), Arc::clone(books));
    server::Options {
        enroll_secret: Some(SECRET.to_owned()),
        config: json!({"schedule": {"clock": {"query": "SELECT unix_time FROM time", "interval": 60}}}),
        observer: Some(Arc::new(move |_| requests.count_request())),
        drain: Some(Arc::new(move |taken| load::receive(&lines, taken))),
        ..server::Options::default()
    }
}

/// An osqueryd with all that the extension needs in its directory. Waits are short in a short run.
pub(super) fn osqueryd_options(
    plan: &Plan,
    directory: PathBuf,
    server: &Server,
    unit: Duration,
) -> io::Result<osqueryd::Options> {
    let file = |name: &str| directory.join(name);
    let seconds = |divisor: u64, most: u64| (unit.as_secs() / divisor).clamp(1, most).to_string();
    fs::copy(&plan.extension, file("remote_tls.ext"))?;
    fs::write(file("ca.pem"), default_authority().cert_pem())?;
    fs::write(file("secret"), SECRET)?;
    // A fleet's hosts would take up to ten minutes to enroll again, longer than a short soak.
    let own_flags = format!("--request_timeout={}\n--reenroll_within={}\n", seconds(2, 10), seconds(1, 5));
    fs::write(file("remote_tls.flags"), own_flags)?;
    let mut options = osqueryd::Options::new(&directory).extension(&file("remote_tls.ext"));
    options.status_relay = true;
    options.env.push(("REMOTE_TLS_FLAGFILE".to_owned(), file("remote_tls.flags").display().to_string()));
    let flags = [
        ("logger_tls_period", "1".to_owned()),
        ("logger_tls_backoff_max", seconds(4, 5)),
        ("logger_tls_compress", "true".to_owned()),
        ("logger_tls_max_linesize", lines::MAX_LINE_BYTES.to_string()),
        ("tls_enroll_max_interval", seconds(4, 5)),
        // A busy machine may take its time.
        ("extensions_timeout", "30".to_owned()),
    ];
    let flags = flags.into_iter().chain(server.flags_of_a_host(&directory));
    options.flags.extend(flags.map(|(name, value)| (name.to_owned(), value)));
    Ok(options)
}
