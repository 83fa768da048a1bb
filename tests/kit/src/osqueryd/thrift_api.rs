//! The generated side of Thrift: the very file that the extension uses, compiled a second time, so that the stand-in
//! depends on nothing of the crate it is there to test.
//!
//! What is ours in the protocol is in `client.rs` and `manager.rs`.

#![allow(clippy::all, missing_docs, unreachable_pub, unused_imports, dead_code)]

#[path = "../../../../src/extension/osquery.rs"]
#[rustfmt::skip]
mod generated;

pub(super) use generated::*;
