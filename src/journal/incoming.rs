//! A record too large for memory: written aside in pieces, and appended by renaming its file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use super::writer::{Writer, blank_newlines};
use super::{CountLines, chain, segments};

/// What is written at a time.
const BLOCK: usize = 128 << 10;

/// A record on its way in. It costs no lock and little memory until [`commit`](Self::commit). Dropped before that it is
/// given up and not counted: its end never came.
pub struct Incoming<'a, W: CountLines> {
    writer: &'a Writer<W>,
    /// The file, or why there is none.
    file: Result<Aside, String>,
    /// What is not written yet.
    block: Vec<u8>,
    counter: W,
    length: u64,
}

/// A file that is removed unless it has got another name.
struct Aside {
    path: PathBuf,
    file: File,
}

impl<'a, W: CountLines> Incoming<'a, W> {
    /// A record that may be too large for memory begins, to be written in pieces.
    #[must_use]
    pub fn begin(writer: &'a Writer<W>) -> Self {
        let file = writer
            .path_aside()
            .map_err(|error| chain(&error))
            .and_then(|path| Aside::create(path).map_err(|error| error.to_string()));
        Self { writer, file, block: Vec::new(), counter: W::default(), length: 0 }
    }

    /// Adds the next bytes of the record. Never fails: what the disk refuses is counted when the record's end has come.
    pub fn write(&mut self, bytes: &[u8]) {
        self.length = self.length.saturating_add(bytes.len() as u64);
        for bytes in bytes.chunks(BLOCK) {
            let start = self.block.len();
            self.block.extend_from_slice(bytes);
            let added = self.block.get_mut(start..).unwrap_or_default();
            blank_newlines(added);
            self.counter.feed(added);
            if self.block.len() >= BLOCK {
                self.flush();
            }
        }
    }

    /// The record is whole: appends it. What the disk has refused is dropped, counted and said.
    pub fn commit(mut self) {
        let lines = self.counter.finish();
        self.block.push(b'\n');
        self.flush();
        self.writer.tally.add(|counts| &mut counts.accepted, lines);
        let appended = self
            .file
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|aside| self.writer.adopt(&aside.path, lines).map_err(|error| chain(&error)));
        match appended {
            Ok(()) => self.writer.note_appended(),
            Err(error) => {
                let length = self.length;
                let reason = format!("the disk refuses a record of {length} bytes, too large for memory ({error})");
                self.writer.tally.dropped(lines, &reason);
            }
        }
    }

    fn flush(&mut self) {
        if let Ok(aside) = &self.file
            && let Err(error) = aside.write(&self.block)
        {
            // Removes the file: a full disk needs the room.
            self.file = Err(error.to_string());
        }
        self.block.clear();
    }
}

impl Aside {
    fn create(path: PathBuf) -> io::Result<Self> {
        // What has this name was left behind by a process that had the journal's lock before us.
        segments::remove(&path);
        let file = segments::open_or_replace(&path, OpenOptions::new().write(true).create_new(true))?;
        Ok(Self { path, file })
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Under the name that it has no longer, once it is a segment.
        segments::remove(&self.path);
    }
}
