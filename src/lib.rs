//! osquery-remote-tls: an osquery extension that speaks osquery's remote TLS API and loses no line.
//!
//! The data flow: osqueryd starts the [`front`], which takes log lines into the [`journal`] and hands every other call to
//! the [`worker`]. There the [`plugins`] answer: config and distributed calls go to the server at once, by way of
//! [`remote`]; the lines in the journal are sent from there. `docs/architecture.md` in the repository is the map.
//!
//! In reading order:

pub mod cli;
pub mod help;
pub mod settings;

pub mod front;
pub mod worker;

pub mod control;
pub mod extension;
pub mod journal;

pub mod plugins;

pub mod remote;

pub mod metrics;

pub mod commands;
pub mod doctor;
pub mod refresh;

pub mod policy;

pub mod chain;
pub mod clock;
pub mod files;
pub mod line_count;
pub mod lock;
pub mod logging;
pub mod members;
pub mod platform;
pub mod secret;
pub mod shown;
pub mod shutdown;
pub mod single_flight;
pub mod spares;
pub mod words;
