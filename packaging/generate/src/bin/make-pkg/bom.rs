//! The Bom: a list of the payload's files that the installer keeps as a receipt.
//!
//! Apple publishes no description; this is what packages of others contain. Numbers are big-endian. The file is a store
//! of numbered blocks, the first of which is empty. A table says where each block lies, and another one gives names to
//! some of them:
//!
//! | name | block |
//! | --- | --- |
//! | `BomInfo` | how many paths, and how many bytes |
//! | `Paths` | a tree: from a path's number and attributes to its parent's number and its name |
//! | `HLIndex`, `Size64` | trees for hard links and for files over 4 GiB: empty here |
//! | `VIndex` | points to one more tree that is empty here |
//!
//! A tree is a block that names its first page, and a page is a list of pairs of blocks. All of ours fit into one page.

use std::collections::HashMap;

use anyhow::{Context, ensure};

use crate::tree::Entry;

/// The header's size with its padding; blocks follow.
const HEADER: usize = 512;
/// The size of a page in the trees.
const PAGE: u32 = 4096;
/// In the tree of `VIndex`.
const SMALL_PAGE: u32 = 128;
/// A page begins with its kind, its length and two neighbours; each pair takes eight bytes.
const PAIRS: usize = (PAGE as usize - 12) / 8;

/// The Bom of a payload, whose entries are in the order of their parents and names.
pub(crate) fn write(entries: &[Entry], date: u32) -> anyhow::Result<Vec<u8>> {
    ensure!(entries.len() <= PAIRS, "more than {PAIRS} entries need a tree of more than one page");
    let mut store = Store::default();
    let bytes: usize = entries.iter().filter_map(|entry| entry.content.as_ref()).map(Vec::len).sum();
    let info = numbers([1, length(entries.len() + 1)?, 1, 0, 0, u32::try_from(bytes)?, 0]);
    let info = store.add(info);
    let pairs = paths(&mut store, entries, date)?;
    let paths = store.tree(PAGE, &pairs)?;
    let links = store.tree(PAGE, &[])?;
    let virtual_tree = store.tree(SMALL_PAGE, &[])?;
    let mut virtual_index = numbers([1, virtual_tree, 0]);
    virtual_index.push(0);
    let virtual_index = store.add(virtual_index);
    let large = store.tree(PAGE, &[])?;
    store.finish(&[
        ("BomInfo", info),
        ("Paths", paths),
        ("HLIndex", links),
        ("VIndex", virtual_index),
        ("Size64", large),
    ])
}

/// The pairs of the tree of paths.
fn paths(store: &mut Store, entries: &[Entry], date: u32) -> anyhow::Result<Vec<(u32, u32)>> {
    let mut numbers_of: HashMap<&str, u32> = HashMap::new();
    let mut pairs = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let number = length(index + 1)?;
        let parent = match entry.parent() {
            None => 0,
            Some(parent) => {
                *numbers_of.get(parent).with_context(|| format!("{} comes before its parent", entry.path))?
            }
        };
        numbers_of.insert(&entry.path, number);
        let attributes = store.add(attributes(entry, date)?);
        let key = store.add(numbers([number, attributes]));
        let mut value = numbers([parent]);
        value.extend_from_slice(entry.name().as_bytes());
        value.push(0);
        pairs.push((key, store.add(value)));
    }
    Ok(pairs)
}

/// Kind, mode, owner, date and size; of a file its checksum too.
fn attributes(entry: &Entry, date: u32) -> anyhow::Result<Vec<u8>> {
    let kind = if entry.content.is_some() { 1 } else { 2 };
    let content = entry.content.as_deref().unwrap_or_default();
    // 0x000f: every attribute is there.
    let mut block = vec![kind, 1, 0, 0x0f];
    block.extend_from_slice(&entry.mode.to_be_bytes());
    block.extend_from_slice(&numbers([0, 0, date, u32::try_from(content.len())?]));
    block.push(1);
    if entry.content.is_some() {
        block.extend_from_slice(&numbers([checksum(content)]));
    }
    block.extend_from_slice(&[0; 8]);
    Ok(block)
}

/// What POSIX's `cksum` prints.
fn checksum(content: &[u8]) -> u32 {
    let length = content.len().to_le_bytes();
    let significant = length.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let bytes = content.iter().chain(length.iter().take(significant));
    !bytes.fold(0_u32, |sum, byte| {
        (0..8).fold(sum ^ (u32::from(*byte) << 24), |sum, _| {
            if sum & 0x8000_0000 == 0 { sum << 1 } else { (sum << 1) ^ 0x04c1_1db7 }
        })
    })
}

/// The numbered blocks; their numbers begin at 1.
#[derive(Default)]
struct Store {
    blocks: Vec<(usize, usize)>,
    bytes: Vec<u8>,
}

impl Store {
    fn add(&mut self, block: Vec<u8>) -> u32 {
        self.blocks.push((HEADER + self.bytes.len(), block.len()));
        self.bytes.extend(block);
        // There are never more than a few thousand.
        self.blocks.len() as u32
    }

    /// A tree of one page.
    fn tree(&mut self, page: u32, pairs: &[(u32, u32)]) -> anyhow::Result<u32> {
        let mut content = vec![0, 1];
        content.extend_from_slice(&u16::try_from(pairs.len())?.to_be_bytes());
        content.extend_from_slice(&[0; 8]);
        for (key, value) in pairs {
            content.extend_from_slice(&numbers([*key, *value]));
        }
        content.resize(page as usize, 0);
        let first = self.add(content);
        let mut tree = b"tree".to_vec();
        tree.extend_from_slice(&numbers([1, first, page, length(pairs.len())?]));
        tree.push(0);
        Ok(self.add(tree))
    }

    /// Header, blocks, names, and the table of blocks.
    fn finish(self, names: &[(&str, u32)]) -> anyhow::Result<Vec<u8>> {
        let mut named = numbers([length(names.len())?]);
        for (name, block) in names {
            named.extend_from_slice(&numbers([*block]));
            named.push(u8::try_from(name.len())?);
            named.extend_from_slice(name.as_bytes());
        }
        // The empty block first.
        let mut table = numbers([length(self.blocks.len() + 1)?, 0, 0]);
        for (offset, size) in &self.blocks {
            table.extend_from_slice(&numbers([length(*offset)?, length(*size)?]));
        }
        // The list of places that are free: two empty ones, as elsewhere.
        table.extend_from_slice(&numbers([2, 0, 0, 0, 0]));
        let names_at = HEADER + self.bytes.len();
        let mut file = b"BOMStore".to_vec();
        file.extend_from_slice(&numbers([
            1,
            length(self.blocks.len())?,
            length(names_at + named.len())?,
            length(table.len())?,
            length(names_at)?,
            length(named.len())?,
        ]));
        file.resize(HEADER, 0);
        file.extend(self.bytes);
        file.extend(named);
        file.extend(table);
        Ok(file)
    }
}

fn numbers<const N: usize>(values: [u32; N]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn length(value: usize) -> anyhow::Result<u32> {
    u32::try_from(value).context("the payload is too large for a Bom")
}

#[cfg(test)]
mod tests {
    use super::checksum;

    /// Known from POSIX's `cksum`, which prints these.
    #[test]
    fn the_checksum_is_cksums() {
        assert_eq!(checksum(b""), 4_294_967_295);
        assert_eq!(checksum(b"123456789"), 930_766_865);
        assert_eq!(checksum(&[0; 300]), 351_385_237);
    }
}
