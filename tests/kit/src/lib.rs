//! The test kit: stand-ins for what the extension talks to, its certificates, and nothing of the extension itself.

pub mod certs;
pub mod crowd;
pub mod osqueryd;
pub mod programs;
pub mod proxy;
pub mod server;
pub mod soak;
pub mod trial;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The contents, also when a thread panicked while it had them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
