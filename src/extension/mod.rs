//! The boundary with osqueryd: Thrift over Unix sockets, in both directions.
//!
//! [`manager`] calls osqueryd, [`server`] takes its calls on a [`socket`], [`wire`] reads them, [`service`] answers them by
//! way of the [`registry`], [`lifecycle`] registers. [`sweep`] and [`hold`] keep the socket's name and the lines while osqueryd
//! ends. [`protocol`] repairs strings that aren't UTF-8. Nothing here knows of HTTP or of the journal.

mod connections;

pub mod hold;
pub mod lifecycle;
pub mod manager;
pub mod protocol;
pub mod registry;
pub mod server;
pub mod service;
pub mod socket;
pub mod sweep;
pub mod wire;

/// Generated from osquery.thrift by `src/extension/regenerate`; never edited.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::expect_used)]
#[rustfmt::skip]
pub mod osquery;
