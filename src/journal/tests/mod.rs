//! The journal's rules, on real files, by family; `model` holds that all of them together make a queue.

mod basics;
mod inspecting;
mod known_errors;
mod limits;
mod measure;
mod model;
mod power_cut;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::writer::Tuning;
use super::*;
use crate::line_count::LineCounter;

const ALL: usize = usize::MAX;

/// A limit on lines, and no other one.
fn most(lines: u64) -> Limits {
    Limits { max_lines: Some(lines), ..Limits::NONE }
}

/// A writer and a reader of one journal, in a directory of their own.
struct Rig {
    root: TempDir,
    tuning: Tuning,
    writer: Arc<Writer<LineCounter>>,
    reader: Reader<LineCounter>,
}

impl Rig {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), Tuning::default())
    }

    fn with_segments_of(segment_bytes: u64) -> Self {
        Self::at(tempfile::tempdir().unwrap(), Tuning { segment_bytes, ..Tuning::default() })
    }

    fn at(root: TempDir, tuning: Tuning) -> Self {
        let writer = writer(root.path(), tuning);
        let reader = reader(root.path(), &writer);
        Self { root, tuning, writer, reader }
    }

    /// In whose place a file is: the directory can't be made, by root neither.
    fn blocked() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("remote_tls"), "").unwrap();
        Self::at(root, Tuning { retry_interval: Duration::ZERO, ..Tuning::default() })
    }

    fn unblock(&self) {
        fs::remove_file(self.buffers()).unwrap();
    }

    /// Where the buffers are: the parent of the journal's directory.
    fn buffers(&self) -> PathBuf {
        self.root.path().join("remote_tls")
    }

    fn journal(&self) -> PathBuf {
        journal(self.root.path())
    }

    fn segment(&self, number: u64) -> PathBuf {
        segments::path(&self.journal(), number)
    }

    /// Both as after their processes' death.
    fn restart(self) -> Self {
        let Self { root, tuning, writer, reader } = self;
        drop((reader, writer));
        Self::at(root, tuning)
    }

    fn append(&self, records: &[String]) {
        records.iter().for_each(|record| self.writer.append(record.as_bytes()));
    }

    /// Everything that waits, acknowledged.
    fn take_all(&self) -> Vec<String> {
        self.take_all_in_pieces_of(ALL)
    }

    fn take_all_in_pieces_of(&self, max_bytes: usize) -> Vec<String> {
        let mut taken = Vec::new();
        loop {
            let waiting = self.reader.peek(max_bytes).unwrap();
            taken.extend(texts(&waiting));
            match end(&waiting) {
                Some(end) => self.reader.acknowledge(end),
                None => return taken,
            }
        }
    }

    /// What waits in the oldest segment, or in memory.
    fn peek(&self) -> Vec<String> {
        texts(&self.reader.peek(ALL).unwrap())
    }

    fn files(&self) -> Vec<String> {
        names(&self.journal())
    }

    fn segments(&self) -> Vec<u64> {
        segments::list(&self.journal()).unwrap().segments
    }

    /// Appends bytes to a segment, as a power cut or a death in mid-write may.
    fn scribble(&self, number: u64, bytes: &[u8]) {
        use std::io::Write;
        fs::OpenOptions::new().append(true).open(self.segment(number)).unwrap().write_all(bytes).unwrap();
    }
}

fn journal(root: &Path) -> PathBuf {
    root.join("remote_tls").join("results")
}

fn writer(root: &Path, tuning: Tuning) -> Arc<Writer<LineCounter>> {
    Arc::new(Writer::tuned(tuning, journal(root), "results", Arc::new(())))
}

fn reader(root: &Path, writer: &Arc<Writer<LineCounter>>) -> Reader<LineCounter> {
    let overflow: Arc<dyn Overflow> = Arc::clone(writer) as Arc<dyn Overflow>;
    let rejected = Arc::new(Rejected::new(root.join("remote_tls")));
    Reader::new(journal(root), "results", rejected, Some(overflow))
}

/// The names in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn lines(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{{\"n\":{n}}}")).collect()
}

/// A batch of so many lines.
fn batch(rows: usize) -> String {
    let rows: Vec<String> = (0..rows).map(|row| format!("{{\"row\":\"{row}\"}}")).collect();
    format!("{{\"diffResults\":{{\"removed\":[],\"added\":[{}]}},\"name\":\"q\"}}", rows.join(","))
}

fn text(mut record: impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    record.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The records, whole.
fn texts(waiting: &Waiting) -> Vec<String> {
    match waiting {
        Waiting::Nothing => Vec::new(),
        Waiting::Records(chunk) => chunk.records().map(|record| text(record.bytes)).collect(),
        Waiting::Large(record) => vec![text(record.beginning(ALL).unwrap().as_slice())],
    }
}

fn end(waiting: &Waiting) -> Option<Position> {
    match waiting {
        Waiting::Nothing => None,
        Waiting::Records(chunk) => Some(chunk.end()),
        Waiting::Large(record) => Some(record.end()),
    }
}

/// The chunk that waits.
fn chunk(reader: &Reader<LineCounter>, max_bytes: usize) -> Chunk {
    match reader.peek(max_bytes).unwrap() {
        Waiting::Records(chunk) => chunk,
        other => panic!("no chunk: {other:?}"),
    }
}

/// What a writer has in memory.
fn held(writer: &Writer<LineCounter>) -> Amount {
    writer.held().unwrap()
}

/// Where each record of the chunk that waits ends.
fn ends(chunk: &Chunk) -> Vec<Position> {
    chunk.records().map(|record| record.end).collect()
}
