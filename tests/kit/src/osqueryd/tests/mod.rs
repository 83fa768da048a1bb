//! The stand-in against a fake extension: what it calls, in which order, and what becomes of it.

mod ending;
mod extension;
mod life;
mod plugins;
