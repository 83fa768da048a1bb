//! osquery-remote-tls: an osquery extension that speaks osquery's remote TLS API and loses no line.
//!
//! The data flow: osqueryd calls the [`extension`]'s socket, which hands each call to one of the [`plugins`].
//! Config and distributed calls go to the server at once, by way of [`remote`]; log lines go into a [`buffer`] and
//! from there, by a [`forwarder`], to the server. `docs/architecture.md` in the repository is the map.
//!
//! In reading order:

pub mod cli;
pub mod settings;

pub mod control;
pub mod supervisor;
pub mod worker;

pub mod extension;

pub mod plugins;

pub mod remote;

pub mod buffer;
pub mod decorations;
pub mod forwarder;

pub mod doctor;

pub mod backoff;
pub mod flags;
pub mod logging;
pub mod secret;
pub mod shutdown;
pub mod uptime;
