//! A xar archive: a header, a table of contents in compressed XML, and the heap, which holds the files as they are.

use std::fmt::Write as _;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use ring::digest::{Digest, SHA1_FOR_LEGACY_USE_ONLY, digest};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Of the header, in bytes.
const HEADER_SIZE: u16 = 28;
const VERSION: u16 = 1;
/// The number of SHA-1 among the checksums; the installer's own tools use it too.
const SHA1: u32 = 1;
/// The heap begins with the checksum of the table of contents.
const SHA1_SIZE: usize = 20;

/// An archive in the making.
pub(crate) struct Archive {
    date: u32,
    files: u32,
    /// The table's entries.
    table: String,
    heap: Vec<u8>,
}

impl Archive {
    pub(crate) fn new(date: u32) -> Self {
        Self { date, files: 0, table: String::new(), heap: Vec::new() }
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, name: &str, content: Vec<u8>) {
        let checksum = hexadecimal(&sha1(&content));
        let (offset, size) = (SHA1_SIZE + self.heap.len(), content.len());
        self.begin(name, "file", "0644");
        // A String takes what is written to it.
        let _ = write!(
            self.table,
            "<data><length>{size}</length><offset>{offset}</offset><size>{size}</size>\
             <encoding style=\"application/octet-stream\"/>\
             <archived-checksum style=\"sha1\">{checksum}</archived-checksum>\
             <extracted-checksum style=\"sha1\">{checksum}</extracted-checksum></data></file>"
        );
        self.heap.extend(content);
    }

    /// Adds a directory with its files: name and content.
    pub(crate) fn directory(&mut self, name: &str, files: Vec<(&str, Vec<u8>)>) {
        self.begin(name, "directory", "0755");
        for (name, content) in files {
            self.file(name, content);
        }
        self.table.push_str("</file>");
    }

    fn begin(&mut self, name: &str, kind: &str, mode: &str) {
        self.files += 1;
        let _ = write!(
            self.table,
            "<file id=\"{}\"><name>{}</name><type>{kind}</type><mode>{mode}</mode><uid>0</uid><gid>0</gid>",
            self.files,
            escaped(name)
        );
    }

    /// The whole archive.
    pub(crate) fn finish(self) -> anyhow::Result<Vec<u8>> {
        let date = OffsetDateTime::from_unix_timestamp(i64::from(self.date))?.format(&Rfc3339)?;
        let table = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<xar><toc><creation-time>{date}</creation-time>\
             <checksum style=\"sha1\"><offset>0</offset><size>{SHA1_SIZE}</size></checksum>{}</toc></xar>\n",
            self.table
        );
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(table.as_bytes())?;
        let compressed = encoder.finish()?;
        let mut archive = b"xar!".to_vec();
        archive.extend_from_slice(&HEADER_SIZE.to_be_bytes());
        archive.extend_from_slice(&VERSION.to_be_bytes());
        archive.extend_from_slice(&u64::try_from(compressed.len())?.to_be_bytes());
        archive.extend_from_slice(&u64::try_from(table.len())?.to_be_bytes());
        archive.extend_from_slice(&SHA1.to_be_bytes());
        archive.extend_from_slice(&compressed);
        archive.extend_from_slice(sha1(&compressed).as_ref());
        archive.extend(self.heap);
        Ok(archive)
    }
}

fn sha1(bytes: &[u8]) -> Digest {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes)
}

fn hexadecimal(digest: &Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For XML's text.
fn escaped(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
