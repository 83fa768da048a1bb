//! A look at a journal from outside: for the doctor, tables and commands. It takes no lock, changes nothing, and makes the
//! best of what it finds, also while others write and read.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use super::walk::{self, Step, Walk};
use super::{Amount, CountLines, Position, cursor, rejected, segments};

/// How many bytes of the oldest record are looked at: of its beginning, and of its end.
const BEGINNING: u64 = 64 << 10;
const ENDING: u64 = 4 << 10;

/// What a journal on disk holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Whether there is a journal at all.
    pub exists: bool,
    /// Up to where everything is done with.
    pub position: Position,
    /// What waits behind it.
    pub waiting: Amount,
    /// The oldest record that waits.
    pub oldest: Option<Oldest>,
    /// Segments that are there.
    pub segments: usize,
    /// Bytes of all files with records.
    pub file_bytes: u64,
    /// Names of what was moved aside, in the journal's directory.
    pub damaged: Vec<String>,
    /// What could not be read or made sense of, as sentences.
    pub problems: Vec<String>,
}

/// A record, or its two ends when it is long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oldest {
    /// Its first bytes, 64 KiB at most.
    pub beginning: Vec<u8>,
    /// Its last bytes, 4 KiB at most: in a batch, what all of its lines have in common.
    pub ending: Vec<u8>,
    /// How many bytes it has.
    pub length: u64,
}

/// A line that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedLine {
    /// What it is called: of what is kept of it, so that it stays the same while others come and go.
    pub id: String,
    /// When, in Unix seconds.
    pub time: i64,
    /// The journal that it was in.
    pub stream: String,
    /// Why it was set aside: the server's words, or ours.
    pub reason: String,
    /// How many bytes the whole line had.
    pub size: u64,
    /// Its first characters, as many as were asked for.
    pub beginning: String,
    /// Whether all of it is kept, as it was.
    pub is_whole: bool,
}

/// Looks at the journal in this directory.
#[must_use]
pub fn look<W: CountLines>(directory: &Path) -> Look {
    look_from::<W>(directory, None)
}

/// Where the records of a journal end: the newest segment's name and its size, or the beginning where there is none.
/// Reads no record.
#[must_use]
pub fn end(directory: &Path) -> Position {
    let newest = segments::list(directory).ok().and_then(|listing| listing.segments.last().copied());
    let Some(file) = newest else { return Position::default() };
    let size = fs::metadata(segments::path(directory, file)).map_or(0, |file| file.len());
    Position { file, offset: size, ..Position::default() }
}

/// Looks at a journal whose reader is known to be here.
pub(super) fn look_from<W: CountLines>(directory: &Path, position: Option<Position>) -> Look {
    let mut look = Look::default();
    if !fs::exists(directory).unwrap_or(true) {
        return look;
    }
    look.exists = true;
    let listing = match segments::list(directory) {
        Ok(listing) => listing,
        Err(error) => {
            look.problems.push(format!("{} can't be read: {error}", directory.display()));
            return look;
        }
    };
    let foreign = listing.foreign.iter().map(|path| format!("{} is no regular file", path.display()));
    look.problems.extend(foreign);
    look.damaged = listing.aside;
    look.damaged.sort_unstable();
    look.segments = listing.segments.len();
    let incoming: u64 = listing.incoming.iter().map(|path| size(path)).sum();
    look.position = position.unwrap_or_else(|| look.find_position::<W>(directory, &listing.segments));
    look.measure::<W>(directory, &listing.segments);
    look.file_bytes = look.file_bytes.saturating_add(incoming);
    look
}

impl Look {
    /// Where the cursor is.
    fn find_position<W: CountLines>(&mut self, directory: &Path, numbers: &[u64]) -> Position {
        let found = cursor::read(directory)
            .and_then(|cursor| cursor::resolve::<W>(directory, numbers, cursor.position()))
            .map(|resolved| resolved.position);
        found.unwrap_or_else(|error| {
            self.problems.push(format!("where {} was read up to can't be found out: {error}", directory.display()));
            numbers.first().copied().map(Position::beginning_of).unwrap_or_default()
        })
    }

    /// Counts what waits behind the position.
    fn measure<W: CountLines>(&mut self, directory: &Path, numbers: &[u64]) {
        let mut end = self.position;
        for (index, &number) in numbers.iter().enumerate() {
            let path = segments::path(directory, number);
            let size = size(&path);
            self.file_bytes = self.file_bytes.saturating_add(size);
            let start = match number.cmp(&self.position.file) {
                std::cmp::Ordering::Less => continue,
                std::cmp::Ordering::Equal => self.position,
                std::cmp::Ordering::Greater => Position::beginning_of(number),
            };
            let is_newest = index + 1 == numbers.len();
            if size > start.offset && (self.oldest.is_none() || is_newest) {
                let looked = segments::open_for_reading(&path).and_then(|file| {
                    if self.oldest.is_none() {
                        self.oldest = oldest::<W>(&file, start.offset, is_newest)?;
                    }
                    if is_newest { end_of::<W>(&file, start) } else { Ok(start) }
                });
                match looked {
                    Ok(found) => end = found,
                    Err(error) => self.problems.push(format!("{} can't be read: {error}", path.display())),
                }
            } else {
                end = start;
            }
            self.waiting.bytes = self.waiting.bytes.saturating_add(size.saturating_sub(start.offset));
        }
        self.waiting.lines = end.line.saturating_sub(self.position.line);
    }
}

/// The first record from here on. Half a one in the newest segment is still being written.
fn oldest<W: CountLines>(file: &File, offset: u64, is_newest: bool) -> io::Result<Option<Oldest>> {
    let Some(record) = Walk::<W>::new(file, offset).step()?.filter(|record| record.is_whole || !is_newest) else {
        return Ok(None);
    };
    let Step { start, end, is_whole, .. } = record;
    let length = (end - start).saturating_sub(u64::from(is_whole));
    let part = |at: u64, length: u64| {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        let read = walk::read_up_to(file, &mut bytes, at)?;
        bytes.truncate(read);
        Ok::<_, io::Error>(bytes)
    };
    let ending = length.min(ENDING);
    Ok(Some(Oldest {
        beginning: part(start, length.min(BEGINNING))?,
        ending: part(start + length - ending, ending)?,
        length,
    }))
}

/// Where the whole records behind a place in the newest segment end.
fn end_of<W: CountLines>(file: &File, place: Position) -> io::Result<Position> {
    let mut end = place;
    let mut walk = Walk::<W>::new(file, place.offset);
    while let Some(record) = walk.whole_step()? {
        end = super::chunk::behind(end, record.end - record.start, record.lines);
    }
    Ok(end)
}

fn size(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |file| file.len())
}

/// The journal's whole records that wait on the disk, oldest first, as a reader a file: `take` says whether it wants more.
/// What is delivered meanwhile may be missing.
pub fn waiting<W: CountLines>(
    directory: &Path,
    take: &mut dyn FnMut(&mut dyn Read) -> io::Result<bool>,
) -> io::Result<()> {
    let position = look::<W>(directory).position;
    for number in segments::list(directory)?.segments.into_iter().filter(|&number| number >= position.file) {
        let mut file = match segments::open_for_reading(&segments::path(directory, number)) {
            // It is done with by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let start = if number == position.file { position } else { Position::beginning_of(number) };
        let end = end_of::<W>(&file, start)?;
        file.seek(SeekFrom::Start(start.offset))?;
        if !take(&mut file.take(end.offset - start.offset))? {
            break;
        }
    }
    Ok(())
}

/// The newest lines that were set aside in this directory of buffers, by every journal, newest first: at most `most`, with
/// their first `characters`. What makes no sense in the files is left out.
pub fn rejected(directory: &Path, most: usize, characters: usize) -> io::Result<Vec<RejectedLine>> {
    let mut newest = VecDeque::new();
    for path in rejected::files(directory) {
        match segments::open_for_reading(&path) {
            Ok(file) => read_rejected(&file, most, characters, &mut newest)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(newest.into_iter().rev().collect())
}

/// A file of lines that were set aside is not larger, and none of its lines is longer.
const LARGEST_REJECTED: u64 = 9 << 20;
const LONGEST_REJECTED: u64 = 1 << 20;

fn read_rejected(file: &File, most: usize, characters: usize, newest: &mut VecDeque<RejectedLine>) -> io::Result<()> {
    #[derive(Deserialize)]
    struct Entry {
        time: i64,
        stream: String,
        reason: String,
        size: u64,
        line: String,
    }
    // Ours don't become larger: of another one, the end is read, and of a line no more than one of ours has.
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(LARGEST_REJECTED)))?;
    let mut text = Vec::new();
    while reader.by_ref().take(LONGEST_REJECTED).read_until(b'\n', &mut text)? > 0 {
        if let Ok(Entry { time, stream, reason, size, line }) = serde_json::from_slice(&text) {
            let (id, is_whole) = (rejected::id(&text), line.len() as u64 == size);
            let beginning = line.chars().take(characters).collect();
            newest.push_back(RejectedLine { id, time, stream, reason, size, beginning, is_whole });
            if newest.len() > most {
                newest.pop_front();
            }
        }
        text.clear();
    }
    Ok(())
}
