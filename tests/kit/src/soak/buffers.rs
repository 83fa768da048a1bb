//! The extension's buffers, seen from outside, as an operator with `cat` sees them: journals of numbered segments with a
//! cursor, and the lines that were set aside.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::lines;

/// How a record begins that stands for several lines. The load has no whole differences, which would be others.
const BATCH: &[u8] = b"{\"string_batch\":";

/// Status calls wait here while there is no worker; their lines go on to the statuses.
const PENDING: &str = "pending";

/// The buffers of one extension.
pub(super) struct Buffers {
    directory: PathBuf,
    /// The file of lines set aside that was read last, by its inode, and how far.
    seen: Option<(u64, u64)>,
    /// Files of lines set aside that were gone before all of them was read.
    pub(super) unseen: u64,
}

/// Up to where everything in a journal is done with.
#[derive(Clone, Copy, Default)]
struct Cursor {
    segment: u64,
    offset: u64,
    /// Lines of the record there that are done with.
    part: u64,
    /// The number of the next line.
    line: u64,
}

impl Buffers {
    pub(super) fn new(directory: &Path) -> Buffers {
        Buffers { directory: directory.to_owned(), seen: None, unseen: 0 }
    }

    /// How many lines wait in a stream's journal; `None` when that could not be told now, since files came and went.
    pub(super) fn waiting(&self, stream: &str) -> Option<u64> {
        let lines = waiting_lines(&self.directory.join(stream), lines_of_record).ok()?;
        if stream != "statuses" {
            return Some(lines);
        }
        Some(lines + waiting_lines(&self.directory.join(PENDING), lines_of_status_call).ok()?)
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

    /// Bytes of a stream's files.
    pub(super) fn size(&self, stream: &str) -> u64 {
        let files = fs::read_dir(self.directory.join(stream)).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    /// Bytes of all the files that are no stream's: lines set aside, and status calls that wait for a worker.
    pub(super) fn size_of_others(&self) -> u64 {
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |file| file.len());
        self.set_aside_files().into_iter().map(size).sum::<u64>() + self.size(PENDING)
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

/// Lines behind a journal's cursor. A segment's name is the number of its first line, so that only the newest is read.
fn waiting_lines(directory: &Path, lines_of: fn(&[u8]) -> u64) -> io::Result<u64> {
    // The cursor first: what is delivered meanwhile is counted as waiting, which is the careful side.
    let cursor = read_cursor(&directory.join("cursor"))?;
    let mut segments = segments(directory)?;
    segments.sort_unstable();
    let Some((&oldest, &newest)) = segments.first().zip(segments.last()) else { return Ok(0) };
    let cursor = cursor.unwrap_or(Cursor { segment: oldest, line: oldest, ..Cursor::default() });
    let (offset, first) = match newest == cursor.segment {
        true => (cursor.offset, cursor.line - cursor.part),
        false => (0, newest),
    };
    let text = read_from(&mut File::open(directory.join(format!("{newest:016}.ndjson")))?, offset)?;
    // What stands behind the last newline is still being written.
    let records = text.split_inclusive(|&byte| byte == b'\n').filter_map(|record| record.strip_suffix(b"\n"));
    let end = first + records.map(lines_of).sum::<u64>();
    Ok(end.saturating_sub(cursor.line))
}

fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.strip_suffix(".ndjson")?.parse().ok()).collect())
}

/// `None` when there is none yet.
fn read_cursor(path: &Path) -> io::Result<Option<Cursor>> {
    let Some(mut file) = open(path)? else { return Ok(None) };
    let text = read_from(&mut file, 0)?;
    let numbers: Vec<u64> =
        String::from_utf8_lossy(&text).split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [segment, offset, part, line] => Ok(Some(Cursor { segment, offset, part, line })),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn lines_of_record(record: &[u8]) -> u64 {
    if !record.starts_with(BATCH) {
        return 1;
    }
    let batch = serde_json::from_slice::<Value>(record).unwrap_or_default();
    batch["string_batch"].as_array().map_or(1, |lines| lines.len().max(1) as u64)
}

fn lines_of_status_call(record: &[u8]) -> u64 {
    serde_json::from_slice::<Vec<Value>>(record).map_or(1, |lines| lines.len() as u64)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

fn read_from(file: &mut File, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
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
    fn lines_are_counted_from_the_cursor_to_the_last_newline() {
        let directory = tempfile::tempdir().unwrap();
        let buffers = Buffers::new(directory.path());
        let file = |name: &str| directory.path().join(name);
        assert_eq!((buffers.waiting("results"), buffers.size("results")), (Some(0), 0));
        write(file("results/0000000000000000.ndjson"), "{}\n");
        assert_eq!((buffers.waiting("results"), buffers.size("results")), (Some(1), 3));
        let batch = format!("{}\n", json!({"string_batch": ["a", "b", "c"]}));
        write(file("results/0000000000000001.ndjson"), &format!("{batch}{{}}\n{{\"half\":"));
        assert_eq!(buffers.waiting("results"), Some(5));
        let cursor = |segment: u64, offset: usize, part: u64, line: u64| {
            let _ = fs::remove_file(file("results/cursor"));
            write(file("results/cursor"), &format!("{segment:020} {offset:020} {part:020} {line:020}\n"));
        };
        cursor(0, 3, 0, 1);
        assert_eq!(buffers.waiting("results"), Some(4));
        cursor(1, 0, 2, 3);
        assert_eq!(buffers.waiting("results"), Some(2));
        cursor(1, batch.len() + 3, 0, 5);
        assert_eq!(buffers.waiting("results"), Some(0));
        fs::write(file("results/cursor"), "x").unwrap();
        assert_eq!(buffers.waiting("results"), None);
    }

    #[test]
    fn status_calls_that_wait_for_a_worker_are_status_lines() {
        let directory = tempfile::tempdir().unwrap();
        let buffers = Buffers::new(directory.path());
        write(directory.path().join("statuses/0000000000000000.ndjson"), "{}\n");
        write(directory.path().join("pending/0000000000000000.ndjson"), "[{\"m\":\"a\"},{\"m\":\"b\"}]\n");
        assert_eq!((buffers.waiting("statuses"), buffers.waiting("distributed")), (Some(3), Some(0)));
        assert_eq!(buffers.size_of_others(), buffers.size("pending"));
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
        assert!(buffers.size_of_others() > 0);
    }
}
