//! Prints what a macOS package's Bom lists, by a reader that others wrote: `packaging/check` compares it with the payload.
//!
//! `list-bom FILE`: mode, owner, group, size, checksum (- for a directory) and path, a line each.

#![allow(clippy::print_stdout)]

use anyhow::{Context, anyhow};
use apple_bom::ParsedBom;

fn main() -> anyhow::Result<()> {
    let file = std::env::args().nth(1).context("one argument is needed: the Bom")?;
    let bytes = std::fs::read(&file).with_context(|| format!("can't read {file}"))?;
    let bom = ParsedBom::parse(&bytes).map_err(|error| anyhow!("{file}: {error}"))?;
    for path in bom.paths().map_err(|error| anyhow!("{file}: {error}"))? {
        let checksum = path.crc32().map_or("-".to_owned(), |checksum| checksum.to_string());
        let (mode, owner, group) = (path.symbolic_mode(), path.user_id(), path.group_id());
        println!("{mode} {owner} {group} {} {checksum} {}", path.size(), path.path());
    }
    Ok(())
}
