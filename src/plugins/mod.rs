//! The plugins, a file a registry: thin, from a call's request map to the remote API or the buffer, and back.

pub mod config;
pub mod distributed;
mod isolation;
pub mod logger;
pub mod tables;
