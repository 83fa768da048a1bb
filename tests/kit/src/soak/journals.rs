//! What waits in the extension's journals, read as an operator with `cat` reads it: numbered segments and a cursor
//! (src/journal says how). Which journals there are and what goes through which is the extension's business, so all that
//! lie anywhere in the directory of the buffers are read, and a line is known by what stands in it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{STREAMS, lines};

/// How a record begins that stands for several lines. The load has no whole differences, which would be others.
const BATCH: &[u8] = b"{\"string_batch\":";

/// Streams, as [`STREAMS`] has them.
const RESULTS: usize = 0;
const STATUSES: usize = 1;
const DISTRIBUTED: usize = 2;

/// Directories in directories are looked into so far.
const DEPTH: u32 = 4;

/// All that waits on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The numbers of the load's lines, a stream; one can be there twice, while it goes from one journal to another.
    pub(crate) numbers: [Vec<u64>; STREAMS.len()],
    /// Bytes of all records that wait.
    pub(crate) bytes: u64,
    /// What the extension says in status lines of lines that it dropped.
    pub(crate) losses: Vec<String>,
}

/// Up to where everything in a journal is done with.
#[derive(Clone, Copy, Default)]
struct Cursor {
    segment: u64,
    offset: u64,
    /// Lines of the record there that are done with.
    part: u64,
}

/// Reads what waits. An error is one of reading: files come and go meanwhile.
pub(crate) fn waiting(directory: &Path) -> io::Result<Waiting> {
    let mut waiting = Waiting::default();
    for journal in journals(directory)? {
        read_journal(&journal, &mut waiting)?;
    }
    Ok(waiting)
}

/// The directories in which segments lie.
pub(super) fn journals(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    find_journals(directory, DEPTH, &mut found)?;
    Ok(found)
}

fn find_journals(directory: &Path, depth: u32, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut is_journal = false;
    for entry in entries(directory)? {
        let entry = entry?;
        is_journal |= number_of_segment(&entry.path()).is_some();
        // Not through a symbolic link.
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_journals(&entry.path(), depth - 1, found)?;
        }
    }
    if is_journal {
        found.push(directory.to_owned());
    }
    Ok(())
}

fn read_journal(directory: &Path, waiting: &mut Waiting) -> io::Result<()> {
    // The cursor first: what is delivered meanwhile is counted as waiting, which is the careful side.
    let cursor = read_cursor(&directory.join("cursor"))?;
    let mut segments = Vec::new();
    for entry in entries(directory)? {
        segments.extend(number_of_segment(&entry?.path()));
    }
    segments.sort_unstable();
    for segment in segments {
        let (offset, done) = match cursor {
            Some(cursor) if segment < cursor.segment => continue,
            Some(cursor) if segment == cursor.segment => (cursor.offset, cursor.part),
            _ => (0, 0),
        };
        // One that has gone is done with.
        let Some(mut file) = open(&directory.join(format!("{segment:016}.ndjson")))? else { continue };
        let text = read_from(&mut file, offset)?;
        // What stands behind the last newline is still being written: no caller was told that it is taken.
        let records = text.split_inclusive(|&byte| byte == b'\n').filter_map(|record| record.strip_suffix(b"\n"));
        for (index, record) in records.enumerate() {
            waiting.bytes += record.len() as u64 + 1;
            waiting.enter(record, if index == 0 { done } else { 0 });
        }
    }
    Ok(())
}

impl Waiting {
    /// Enters the lines of a record, but for the first `done`.
    fn enter(&mut self, record: &[u8], done: u64) {
        let skip = usize::try_from(done).unwrap_or(usize::MAX);
        if record.starts_with(BATCH) {
            let batch = serde_json::from_slice::<Value>(record).unwrap_or_default();
            let lines = batch["string_batch"].as_array().into_iter().flatten().skip(skip);
            self.numbers[RESULTS].extend(lines.filter_map(|line| lines::number_of_line(line.as_str()?)));
        } else if let Some(n) = lines::number_of_line(&beginning(record)) {
            // It need not be JSON.
            self.numbers[RESULTS].push(n);
        } else if let Ok(value) = serde_json::from_slice::<Value>(record) {
            self.enter_other(&value, skip);
        }
    }

    /// A status line, a status call that waits for a worker, or the results of distributed queries.
    fn enter_other(&mut self, record: &Value, skip: usize) {
        let calls = record.as_array().into_iter().flatten().skip(skip);
        self.numbers[STATUSES].extend(calls.filter_map(|line| lines::number_of_message(line["m"].as_str()?)));
        self.numbers[STATUSES].extend(record["message"].as_str().and_then(lines::number_of_message));
        self.losses.extend(lines::loss(record).map(str::to_owned));
        let ids = record["results"]["queries"].as_object().into_iter().flat_map(|queries| queries.keys());
        self.numbers[DISTRIBUTED].extend(ids.filter_map(|id| lines::number_of_message(id)));
    }
}

/// As much of a record as its number needs.
fn beginning(record: &[u8]) -> String {
    String::from_utf8_lossy(&record[..record.len().min(64)]).into_owned()
}

fn entries(directory: &Path) -> io::Result<Box<dyn Iterator<Item = io::Result<fs::DirEntry>>>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Box::new(std::iter::empty())),
        entries => Ok(Box::new(entries?)),
    }
}

/// A segment's name is a number of 16 digits.
fn number_of_segment(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ndjson")?;
    if name.len() == 16 { name.parse().ok() } else { None }
}

/// `None` when there is none yet.
fn read_cursor(path: &Path) -> io::Result<Option<Cursor>> {
    let Some(mut file) = open(path)? else { return Ok(None) };
    let text = read_from(&mut file, 0)?;
    let numbers: Vec<u64> =
        String::from_utf8_lossy(&text).split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [segment, offset, part, _] => Ok(Some(Cursor { segment, offset, part })),
        _ => Err(io::Error::new(ErrorKind::InvalidData, format!("{} is no cursor", path.display()))),
    }
}

pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

pub(super) fn read_from(file: &mut File, offset: u64) -> io::Result<Vec<u8>> {
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

    fn line(n: u64) -> String {
        format!("{{\"n\":{n},\"name\":\"soak\"}}\n")
    }

    #[test]
    fn lines_wait_from_the_cursor_to_the_last_newline() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let of_results = || waiting(directory.path()).map(|waiting| waiting.numbers[RESULTS].clone());
        assert!(of_results().unwrap().is_empty());
        write(file("results/0000000000000000.ndjson"), &line(0));
        assert_eq!(of_results().unwrap(), [0]);
        let batch = format!("{}\n", json!({"string_batch": [line(1), line(2), line(3)]}));
        write(file("results/0000000000000001.ndjson"), &format!("{batch}{}{{\"n\":5,\"ha", line(4)));
        assert_eq!(of_results().unwrap(), [0, 1, 2, 3, 4]);
        let cursor = |segment: u64, offset: usize, part: u64, line: u64| {
            let _ = fs::remove_file(file("results/cursor"));
            write(file("results/cursor"), &format!("{segment:020} {offset:020} {part:020} {line:020}\n"));
        };
        for (position, left) in [
            ((0, line(0).len(), 0, 1), &[1, 2, 3, 4][..]),
            ((1, 0, 2, 3), &[3, 4]),
            ((1, batch.len(), 0, 4), &[4]),
            ((1, batch.len() + line(4).len(), 0, 5), &[]),
        ] {
            cursor(position.0, position.1, position.2, position.3);
            assert_eq!(of_results().unwrap(), left, "{position:?}");
        }
        fs::write(file("results/cursor"), "x").unwrap();
        assert!(of_results().is_err());
    }

    #[test]
    fn what_a_line_is_doesn_t_depend_on_the_journal_that_it_lies_in() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let status = |message: &str| format!("{}\n", json!({"filename": "remote_tls", "message": message}));
        write(file("results/backlog/0000000000000000.ndjson"), &line(0));
        write(file("results/0000000000000007.ndjson"), &line(1));
        write(file("old/0000000000000000.ndjson"), "{\"n\":2,no JSON\n");
        write(file("statuses/0000000000000000.ndjson"), &[status("soak 3"), status("another's")].concat());
        write(file("pending/0000000000000000.ndjson"), "[{\"m\":\"soak 4\"},{\"m\":\"soak 5\"},{\"m\":\"x\"}]\n");
        write(
            file("distributed/0000000000000000.ndjson"),
            "{\"unixTime\":1,\"results\":{\"queries\":{\"soak 6\":[]}}}\n",
        );
        write(file("statuses/0000000000000002.ndjson"), &status("2 lines of the results journal dropped so far"));
        // These are no segments.
        write(file("rejected.ndjson"), &line(8));
        write(file("results/incoming-1"), &line(9));
        let mut waiting = waiting(directory.path()).unwrap();
        waiting.numbers.iter_mut().for_each(|numbers| numbers.sort_unstable());
        assert_eq!(waiting.numbers, [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
        assert_eq!(waiting.losses, ["2 lines of the results journal dropped so far"]);
        assert!(waiting.bytes > 7 * 10, "{}", waiting.bytes);
        assert_eq!(journals(directory.path()).unwrap().len(), 6);
    }
}
