//! The "odc" form of cpio, the only one that macOS's installer reads: a header of octal numbers, the name, the content.

use anyhow::{Context, ensure};

use crate::tree::Entry;

/// The owner of everything in a package: root, and the group wheel, which has the same number.
const ROOT: u32 = 0;

/// The entries as `./path`, the top as `.`.
pub(crate) fn write(entries: &[Entry], date: u32) -> anyhow::Result<Vec<u8>> {
    let mut archive = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let name = if entry.path.is_empty() { ".".to_owned() } else { format!("./{}", entry.path) };
        let inode = u32::try_from(index + 1)?;
        record(&mut archive, inode, entry.mode, date, &name, entry.content.as_deref().unwrap_or_default())
            .with_context(|| name)?;
    }
    record(&mut archive, 0, 0, 0, "TRAILER!!!", &[])?;
    Ok(archive)
}

fn record(archive: &mut Vec<u8>, inode: u32, mode: u16, date: u32, name: &str, content: &[u8]) -> anyhow::Result<()> {
    ensure!(inode < 1 << 18, "more entries than the format can number");
    ensure!(name.len() < 1 << 17, "a name is too long");
    ensure!(u64::try_from(content.len())? < 1 << 33, "a file is too large");
    // A directory is never linked to but by itself and its `.`.
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let header = format!(
        "070707{device:06o}{inode:06o}{mode:06o}{ROOT:06o}{ROOT:06o}{links:06o}{device:06o}{date:011o}{name:06o}{size:011o}",
        device = 0,
        name = name.len() + 1,
        size = content.len(),
    );
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.extend_from_slice(content);
    Ok(())
}
