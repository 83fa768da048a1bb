//! Says what a universal binary for macOS is, for `packaging/check`, and verifies its ad hoc signatures.
//!
//! `describe-macho FILE`: a line for each architecture, its properties in a fixed order. The page hashes of a signature are
//! computed again: the kernel of arm64 kills a process one of whose pages differs. Numbers and layouts are those of Apple's
//! `mach-o/fat.h`, `mach-o/loader.h` and `kern/cs_blobs.h`.

#![allow(clippy::print_stdout)]

use anyhow::{Context, bail, ensure};
use ring::digest::{SHA256, digest};

const FAT_MAGIC: u32 = 0xcafe_babe;
const MACHO_64: u32 = 0xfeed_facf;
const PIE: u32 = 0x20_0000;

// Load commands.
const CODE_SIGNATURE: u32 = 0x1d;
const BUILD_VERSION: u32 = 0x32;
const VERSION_MIN: u32 = 0x24;
const LOAD_DYLIB: u32 = 0xc;
const LOAD_WEAK_DYLIB: u32 = 0x8000_0018;
const REEXPORT_DYLIB: u32 = 0x8000_001f;
const RPATH: u32 = 0x8000_001c;
const UUID: u32 = 0x1b;

const EMBEDDED_SIGNATURE: u32 = 0xfade_0cc0;
const CODE_DIRECTORY: u32 = 0xfade_0c02;
/// Signed by no identity.
const AD_HOC: u32 = 2;

fn main() -> anyhow::Result<()> {
    let file = std::env::args().nth(1).context("one argument is needed: the binary")?;
    let bytes = std::fs::read(&file).with_context(|| format!("can't read {file}"))?;
    ensure!(big(&bytes, 0)? == FAT_MAGIC, "{file} is no universal binary");
    for index in 0..size(big(&bytes, 4)?) {
        let entry = 8 + 20 * index;
        let (offset, length, align) = (big(&bytes, entry + 8)?, big(&bytes, entry + 12)?, big(&bytes, entry + 16)?);
        ensure!(offset.is_multiple_of(1 << align), "a part is not aligned");
        let part = slice(&bytes, offset, length)?;
        ensure!(big(&bytes, entry)? == little(part, 4)?, "a part is for another processor than the list says");
        println!("{}", describe(part)?);
    }
    Ok(())
}

fn describe(part: &[u8]) -> anyhow::Result<String> {
    ensure!(little(part, 0)? == MACHO_64, "a part is no Mach-O with 64 bits");
    let architecture = match little(part, 4)? {
        0x0100_000c => "arm64",
        0x0100_0007 => "x86_64",
        other => bail!("an unknown processor: {other:#x}"),
    };
    let position = if little(part, 24)? & PIE == 0 { "fixed" } else { "pie" };
    let (mut minimum, mut libraries, mut identified) = ("none".to_owned(), Vec::new(), "no-uuid");
    let mut signature = "none".to_owned();
    let mut at = 32;
    for _ in 0..little(part, 16)? {
        let command = part.get(at..).context("a load command is outside of the file")?;
        match little(command, 0)? {
            VERSION_MIN => minimum = version(little(command, 8)?),
            BUILD_VERSION => minimum = version(little(command, 12)?),
            LOAD_DYLIB | LOAD_WEAK_DYLIB | REEXPORT_DYLIB => libraries.push(text(command, little(command, 8)?)?),
            RPATH => bail!("it looks for libraries in {}", text(command, little(command, 8)?)?),
            UUID => identified = "uuid",
            CODE_SIGNATURE => {
                signature = verify(slice(part, little(command, 8)?, little(command, 12)?)?, part)?;
            }
            _ => (),
        }
        at += size(little(command, 4)?);
    }
    let libraries = libraries.join(",");
    Ok(format!("{architecture} {position} {identified} minimum={minimum} libraries={libraries} signature={signature}"))
}

fn version(packed: u32) -> String {
    format!("{}.{}", packed >> 16, (packed >> 8) & 0xff)
}

/// Compares every page with its hash in the signature.
fn verify(blob: &[u8], part: &[u8]) -> anyhow::Result<String> {
    ensure!(big(blob, 0)? == EMBEDDED_SIGNATURE, "no signature where one should be");
    let offsets = (0..size(big(blob, 8)?)).map(|index| big(blob, 16 + 8 * index));
    let blobs = offsets.map(|offset| blob.get(size(offset?)..).context("a part of the signature is outside of it"));
    let blobs: Vec<&[u8]> = blobs.collect::<anyhow::Result<_>>()?;
    let directory = blobs.into_iter().find(|blob| big(blob, 0).is_ok_and(|magic| magic == CODE_DIRECTORY));
    let directory = directory.context("the signature has no code directory")?;
    let (flags, hashes) = (big(directory, 12)?, size(big(directory, 16)?));
    let (slots, limit) = (size(big(directory, 28)?), big(directory, 32)?);
    let [bytes, kind, _, page] = big(directory, 36)?.to_be_bytes();
    ensure!(bytes == 32 && kind == 2, "hashes are not SHA-256");
    let pages: Vec<&[u8]> = slice(part, 0, limit)?.chunks(1 << page).collect();
    ensure!(pages.len() == slots, "{slots} hashes for {} pages", pages.len());
    for (index, page) in pages.iter().enumerate() {
        let hash = directory.get(hashes + 32 * index..hashes + 32 * (index + 1)).context("a hash is missing")?;
        ensure!(digest(&SHA256, page).as_ref() == hash, "page {index} differs from its hash");
    }
    Ok(format!("{}:{slots}-pages", if flags & AD_HOC == 0 { "identity" } else { "ad-hoc" }))
}

/// A text that ends with a zero.
fn text(bytes: &[u8], offset: u32) -> anyhow::Result<String> {
    let text = bytes.get(size(offset)..).and_then(|rest| rest.split(|byte| *byte == 0).next());
    Ok(String::from_utf8_lossy(text.context("a name is outside of the file")?).into_owned())
}

fn slice(bytes: &[u8], offset: u32, length: u32) -> anyhow::Result<&[u8]> {
    bytes.get(size(offset)..size(offset) + size(length)).context("a part is outside of the file")
}

fn big(bytes: &[u8], offset: usize) -> anyhow::Result<u32> {
    Ok(u32::from_be_bytes(four(bytes, offset)?))
}

fn little(bytes: &[u8], offset: usize) -> anyhow::Result<u32> {
    Ok(u32::from_le_bytes(four(bytes, offset)?))
}

fn four(bytes: &[u8], offset: usize) -> anyhow::Result<[u8; 4]> {
    Ok(bytes.get(offset..offset + 4).context("it ends too early")?.try_into()?)
}

fn size(number: u32) -> usize {
    number as usize
}
