//! The files of a directory, as a package has them.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};

/// A file or a directory.
pub(crate) struct Entry {
    /// Relative to the top, with `/` between; empty for the top itself.
    pub(crate) path: String,
    /// As `stat` has it: kind and permissions.
    pub(crate) mode: u16,
    /// Of a file; a directory has none.
    pub(crate) content: Option<Vec<u8>>,
}

impl Entry {
    /// The last part of the path; `.` for the top.
    pub(crate) fn name(&self) -> &str {
        match self.path.rsplit_once('/') {
            Some((_, name)) => name,
            None if self.path.is_empty() => ".",
            None => &self.path,
        }
    }

    /// The path of the directory that it is in; the top is in none.
    pub(crate) fn parent(&self) -> Option<&str> {
        if self.path.is_empty() {
            return None;
        }
        Some(self.path.rsplit_once('/').map_or("", |(parent, _)| parent))
    }
}

/// Everything below a directory, and itself: a directory's entries by name, after all that is higher. That is the order
/// of a Bom, which sorts by parent and name.
pub(crate) fn read(top: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut waiting = VecDeque::from([String::new()]);
    while let Some(path) = waiting.pop_front() {
        let place = top.join(&path);
        let entry = read_entry(&place, path)?;
        if entry.content.is_none() {
            waiting.extend(names(&place)?.into_iter().map(|name| match entry.path.as_str() {
                "" => name,
                path => format!("{path}/{name}"),
            }));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn read_entry(place: &Path, path: String) -> anyhow::Result<Entry> {
    let metadata = fs::symlink_metadata(place).with_context(|| format!("can't read {}", place.display()))?;
    let mode = u16::try_from(metadata.permissions().mode()).context("a mode has more than 16 bits")?;
    let content = if metadata.is_dir() {
        None
    } else if metadata.is_file() {
        Some(fs::read(place).with_context(|| format!("can't read {}", place.display()))?)
    } else {
        bail!("{} is neither a file nor a directory; the package's scripts make links", place.display());
    };
    Ok(Entry { path, mode, content })
}

fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))? {
        let name = entry?.file_name();
        names.push(name.into_string().ok().context("a name is not UTF-8")?);
    }
    names.sort();
    Ok(names)
}
