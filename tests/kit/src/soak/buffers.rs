//! The extension's buffers, seen from outside: what waits in journals, and the lines that were set aside.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::journals::{self, Waiting, open, read_from};
use super::lines;

/// The buffers of one extension.
pub(super) struct Buffers {
    directory: PathBuf,
    /// The file of lines set aside that was read last, by its inode, and how far.
    seen: Option<(u64, u64)>,
    /// Files of lines set aside that were gone before all of them was read.
    pub(super) unseen: u64,
}

impl Buffers {
    pub(super) fn new(directory: &Path) -> Buffers {
        Buffers { directory: directory.to_owned(), seen: None, unseen: 0 }
    }

    /// What waits on disk. An error can be files that came and went.
    pub(super) fn waiting(&self) -> io::Result<Waiting> {
        journals::waiting(&self.directory)
    }

    /// The numbers of the result lines that were set aside since this was asked last.
    pub(super) fn newly_set_aside(&mut self) -> Vec<u64> {
        // What can't be read now is read the next time.
        let entries = self.read_set_aside().unwrap_or_default();
        let of_results = entries.iter().filter(|entry| entry["stream"] == "results");
        // A line without a number is counted as one that was never sent.
        let number = |entry: &Value| lines::number_of_line(entry["line"].as_str()?);
        of_results.map(|entry| number(entry).unwrap_or(u64::MAX)).collect()
    }

    /// How many journals there are, and the bytes of their files.
    pub(super) fn journals(&self) -> (usize, u64) {
        let journals = journals::journals(&self.directory).unwrap_or_default();
        let files = journals.iter().flat_map(|journal| fs::read_dir(journal).into_iter().flatten().flatten());
        let size = files.filter_map(|file| file.metadata().ok()).filter(|file| file.is_file()).map(|file| file.len());
        (journals.len(), size.sum())
    }

    /// Bytes of the lines set aside.
    pub(super) fn size_of_set_aside(&self) -> u64 {
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |file| file.len());
        self.set_aside_files().into_iter().map(size).sum()
    }

    /// The older one first.
    fn set_aside_files(&self) -> [PathBuf; 2] {
        ["rejected.1.ndjson", "rejected.ndjson"].map(|name| self.directory.join(name))
    }

    /// What was added to the files of lines set aside. A full one is renamed, and another one begun.
    fn read_set_aside(&mut self) -> io::Result<Vec<Value>> {
        let [older, newer] = self.set_aside_files();
        let mut entries = Vec::new();
        let Some(mut file) = open(&newer)? else { return Ok(entries) };
        let inode = file.metadata()?.ino();
        let mut offset = 0;
        match self.seen {
            None => {}
            Some((seen, at)) if seen == inode => offset = at,
            Some((seen, at)) => match open(&older)? {
                Some(mut full) if full.metadata()?.ino() == seen => {
                    read_entries(&mut full, at, &mut entries)?;
                }
                _ => self.unseen += 1,
            },
        }
        offset += read_entries(&mut file, offset, &mut entries)?;
        self.seen = Some((inode, offset));
        Ok(entries)
    }
}

/// Reads whole lines from an offset on: how many bytes they have. A line that a kill has cut is no entry; what stands in
/// it is set aside again.
fn read_entries(file: &mut File, offset: u64, entries: &mut Vec<Value>) -> io::Result<u64> {
    let text = read_from(file, offset)?;
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    entries.extend(text[..whole].split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()));
    Ok(whole as u64)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use serde_json::json;

    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn entry(stream: &str, line: &str) -> String {
        format!("{}\n", json!({"time": 1, "stream": stream, "reason": "x", "size": line.len(), "line": line}))
    }

    #[test]
    fn files_of_all_journals_are_measured() {
        let directory = tempfile::tempdir().unwrap();
        let buffers = Buffers::new(directory.path());
        assert_eq!(buffers.journals(), (0, 0));
        write(directory.path().join("results/0000000000000000.ndjson"), "{}\n");
        write(directory.path().join("results/older/0000000000000000.ndjson"), "{}\n{}\n");
        write(directory.path().join("results/cursor"), "x");
        assert_eq!((buffers.journals(), buffers.size_of_set_aside()), ((2, 10), 0));
    }

    #[test]
    fn lines_set_aside_are_seen_once_also_when_their_file_is_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let mut buffers = Buffers::new(directory.path());
        let [older, newer] = buffers.set_aside_files();
        assert!(buffers.newly_set_aside().is_empty());
        write(newer.clone(), &[entry("results", "{\"n\":4,x"), entry("statuses", "{\"n\":5,")].concat());
        write(newer.clone(), &entry("results", "{\"n\":6,\u{e9}"));
        let (begun, end) = (&entry("results", "{\"n\":7,")[..20], &entry("results", "{\"n\":7,")[20..]);
        write(newer.clone(), begun);
        assert_eq!((buffers.newly_set_aside(), buffers.newly_set_aside()), (vec![4, 6], Vec::new()));
        write(newer.clone(), end);
        fs::rename(&newer, &older).unwrap();
        write(newer.clone(), &entry("results", "no number"));
        assert_eq!((buffers.newly_set_aside(), buffers.unseen), (vec![7, u64::MAX], 0));
        // Twice renamed before it was looked at: what was added to the first is gone.
        fs::rename(&newer, directory.path().join("gone")).unwrap();
        write(newer, &entry("results", "{\"n\":9,"));
        assert_eq!((buffers.newly_set_aside(), buffers.unseen), (vec![9], 1));
        assert!(buffers.size_of_set_aside() > 0);
    }
}
