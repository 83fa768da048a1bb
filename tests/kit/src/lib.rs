//! The test kit: stand-ins for what the extension talks to, its certificates, and nothing of the extension itself.

pub mod certs;
pub mod crowd;
pub mod osqueryd;
pub mod programs;
pub mod proxy;
pub mod server;
pub mod soak;
