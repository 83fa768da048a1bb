//! Puts the lines that wait in a journal into requests: a request's data is the file's bytes with commas for newlines,
//! line by line looked at and never rebuilt.
//!
//! Batch records become the lines that they stand for here, when they are sent. Bytes that are no UTF-8 become U+FFFD
//! here, and the line says so. What has no place in any request is handed back, to be set aside.

use std::borrow::Cow;
use std::io::{self, Cursor, Read, Seek};

use super::backlog::{Backlog, Snapshots};
use super::batch::{self, LinePosition, Outline};
use crate::journal::{JournalError, LargeRecord, Position, Reader, Record, Waiting};
use crate::line_count::LineCounter;
use crate::remote::api;

/// The member that a result line gets when it held invalid UTF-8, whose bytes are U+FFFD now.
const REPAIRED_MARK: &str = "invalid_utf8";

/// Of a line that is too long to be sent and to be read whole, this much is kept.
const BEGINNING: u64 = 64 << 10;

/// What one request may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Lines in all.
    pub(crate) lines: usize,
    /// Bytes of them and the commas between them, unless the first alone has more.
    pub(crate) bytes: usize,
    /// Bytes that one line may have.
    pub(crate) line_bytes: usize,
    /// What becomes of batch records.
    pub(crate) batches: Batches,
    /// What becomes of snapshots.
    pub(crate) snapshots: Snapshots,
}

/// What becomes of a query's whole difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batches {
    /// It becomes the event lines that it stands for.
    Expand,
    /// It is a line like any other.
    Keep,
}

/// One request's lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// The lines with commas between them, JSON.
    pub(crate) data: String,
    /// Where each of them ends.
    pub(crate) ends: Vec<LineEnd>,
    /// Where the first of them was.
    pub(crate) start: Position,
    /// Where the next request begins.
    pub(crate) end: Position,
    /// Lines among them that are not in the request.
    pub(crate) left_out: Vec<LeftOut>,
    /// What became of snapshots.
    pub(crate) snapshots: Snapshots,
    /// Nothing more fits in, though more waits.
    pub(crate) is_full: bool,
}

/// Where a line of a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineEnd {
    /// In the request's data: the comma behind it.
    pub(crate) at: usize,
    /// In the journal.
    pub(crate) position: Position,
    /// For how many lines it stands: a batch that is kept whole is one text.
    pub(crate) lines: u64,
}

/// A line that is not in a request, or its beginning.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// How many of the request's lines stand before it.
    pub(crate) before: usize,
    pub(crate) line: Vec<u8>,
    /// For how many lines it stands: a batch that is kept whole is one text.
    pub(crate) lines: u64,
    pub(crate) why: Why,
}

/// Why a line is not in a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It has no place in any, for this reason.
    Unfit(String),
    /// It is a snapshot that goes behind the backlog.
    Deferred,
}

impl Bundle {
    /// Its lines are done with: what was left out among them goes where it belongs. Answers up to where this could be done.
    pub(crate) fn settle(&self, reader: &Reader<LineCounter>, backlog: Option<&Backlog>) -> Position {
        let all: Vec<&LeftOut> = self.left_out.iter().collect();
        if settle(&all, reader, backlog) {
            return self.end;
        }
        // The first one that was to be deferred stays, and all behind it.
        let deferred = self.left_out.iter().find(|left_out| left_out.why == Why::Deferred);
        let before = deferred.map_or(0, |left_out| left_out.before);
        let unfit: Vec<&LeftOut> = self.left_out.iter().filter(|left_out| left_out.before < before).collect();
        settle(&unfit, reader, backlog);
        before.checked_sub(1).and_then(|last| self.ends.get(last)).map_or(self.start, |end| end.position)
    }
}

/// The lines around these are done with: they go to the lines that were set aside, or into the backlog, and are safe there
/// before they are removed here. Whether that could be done; otherwise nothing was.
pub(crate) fn settle(left_out: &[&LeftOut], reader: &Reader<LineCounter>, backlog: Option<&Backlog>) -> bool {
    let (mut deferred, mut lines) = (Vec::new(), 0);
    for one in left_out.iter().filter(|one| one.why == Why::Deferred) {
        deferred.extend_from_slice(&one.line);
        deferred.push(b'\n');
        lines += one.lines;
    }
    if !deferred.is_empty() {
        if !backlog.is_some_and(|backlog| backlog.defer(&deferred)) {
            return false;
        }
        reader.note_taken_over(lines);
    }
    for one in left_out {
        if let Why::Unfit(reason) = &one.why {
            reader.set_aside(&one.line, one.lines, reason);
        }
    }
    true
}

/// Makes requests of what waits, and remembers where it is in a batch record.
#[derive(Default)]
pub(crate) struct Bundler {
    /// The batch at hand.
    batch: Option<InBatch>,
    /// Bytes of records that the last full request took; 0 when it is not known.
    taken: usize,
    /// The data of an earlier request, whose memory is used again.
    data: String,
}

/// What is looked at beyond what the last request took.
const MARGIN: usize = 64 << 10;

/// A batch record some of whose lines were handed out.
struct InBatch {
    /// Where the record begins.
    file: u64,
    offset: u64,
    outline: Outline,
    /// Where the lines of the last request begin, and where those behind them do, by the number of lines before.
    line_positions: [(u64, LinePosition); 2],
}

impl InBatch {
    fn is_at(&self, position: Position) -> bool {
        (self.file, self.offset) == (position.file, position.offset)
    }

    /// The nearest known position, and how many lines must be passed over behind it.
    fn line_position(&self, done: u64) -> (LinePosition, u64) {
        let mut known = self.line_positions.iter().rev();
        let nearest = known.find(|(lines, _)| *lines <= done);
        nearest.map_or((LinePosition::default(), done), |(lines, at)| (*at, done - lines))
    }
}

impl Bundler {
    /// The next request; `None` when nothing waits. Until it is acknowledged, the same lines are handed out again.
    ///
    /// # Errors
    /// The journal can't be read.
    pub(crate) fn next(&mut self, reader: &Reader<LineCounter>, room: &Room) -> Result<Option<Bundle>, JournalError> {
        // Where the number of lines is what fills a request, most of what it may have of bytes would be read in vain.
        let most = if self.taken > 0 { room.bytes.min(self.taken + self.taken / 4 + MARGIN) } else { room.bytes };
        let mut waiting = reader.peek(most)?;
        if matches!(waiting, Waiting::Large(_)) && most < room.bytes {
            // Larger than those before it, and not for that reason too large.
            waiting = reader.peek(room.bytes)?;
        }
        match waiting {
            Waiting::Nothing => Ok(None),
            Waiting::Records(chunk) => {
                let mut filling = Filling::new(chunk.start(), room, std::mem::take(&mut self.data));
                for record in chunk.records() {
                    let mut source = Cursor::new(record.bytes);
                    let filled = if batch::may_be_batch(record.bytes) {
                        self.fill_from_batch(&mut filling, record.start, record.end, &mut source)
                    } else {
                        Ok(None)
                    };
                    // A record in memory is read without errors; a batch whose lines are unreadable is no batch.
                    let room_left = filled.ok().flatten().unwrap_or_else(|| filling.push_record(&record));
                    if !room_left {
                        break;
                    }
                }
                self.taken = if filling.bundle.is_full { filling.bundle.data.len() } else { 0 };
                // More waits where what was read is nearly full, or another segment follows.
                filling.bundle.is_full |= chunk.bytes().len() >= most - most / 4 || chunk.is_followed();
                let bundle = filling.bundle;
                if bundle.end == bundle.start {
                    return Ok(None);
                }
                // Not for what comes alone: nothing is kept while nothing is sent.
                if bundle.is_full {
                    reader.recycle(chunk);
                }
                Ok(Some(bundle))
            }
            Waiting::Large(record) => self.next_of_large(record, room).map(Some).map_err(JournalError::unreadable),
        }
    }

    /// A request was sent: the next one's data goes to the same memory.
    pub(crate) fn recycle(&mut self, bundle: Bundle) {
        if bundle.is_full {
            self.data = bundle.data;
        }
    }

    fn next_of_large(&mut self, mut record: LargeRecord, room: &Room) -> io::Result<Bundle> {
        let (start, end) = (record.start(), record.end());
        let mut filling = Filling::new(start, room, std::mem::take(&mut self.data));
        let beginning = read(&mut record, BEGINNING)?;
        if batch::may_be_batch(&beginning) && self.fill_from_batch(&mut filling, start, end, &mut record)?.is_some() {
            return Ok(filling.bundle);
        }
        if record.len() > room.line_bytes as u64 {
            filling.leave_out(&beginning, record.lines(), Why::Unfit(too_long(room)));
            filling.bundle.end = end;
        } else {
            record.rewind()?;
            let line = read(&mut record, room.line_bytes as u64)?;
            filling.push_record(&Record { start, end, bytes: &line });
        }
        Ok(filling.bundle)
    }

    /// Fills in the lines of a batch: whether there is room behind them. `None` for any other record, and for one that is
    /// to be kept whole.
    fn fill_from_batch<R: Read + Seek>(
        &mut self,
        filling: &mut Filling<'_>,
        start: Position,
        end: Position,
        record: &mut R,
    ) -> io::Result<Option<bool>> {
        let known = self.batch.take().filter(|known| known.is_at(start));
        let (outline, (from, passed)) = match known {
            Some(known) => {
                let from = known.line_position(start.lines_done);
                (known.outline, from)
            }
            None => match Outline::of(&mut *record)? {
                Some(outline) => (outline, (LinePosition::default(), start.lines_done)),
                None => return Ok(None),
            },
        };
        if filling.room.batches == Batches::Keep && outline.is_difference() {
            return Ok(None);
        }
        let mut lines = outline.lines_from(record, from)?;
        for _ in 0..passed {
            lines.next_line()?;
        }
        let first = lines.position();
        let (mut next, mut position, mut is_over) = (first, start, false);
        while !is_over && filling.has_room() {
            match lines.next_line()? {
                Some(line) if filling.fits(line.len()) => {
                    position = position.after_lines(1);
                    filling.push(line, 1, position);
                    next = lines.position();
                }
                Some(_) => filling.bundle.is_full = true,
                None => is_over = true,
            }
        }
        filling.bundle.end = if is_over { end } else { position };
        let line_positions = [(start.lines_done, first), (position.lines_done, next)];
        self.batch = Some(InBatch { file: start.file, offset: start.offset, outline, line_positions });
        Ok(Some(is_over))
    }
}

/// A request that is being filled.
struct Filling<'r> {
    room: &'r Room,
    bundle: Bundle,
}

impl<'r> Filling<'r> {
    /// An empty one, in memory that may hold anything.
    fn new(start: Position, room: &'r Room, mut data: String) -> Self {
        data.clear();
        let (ends, left_out) = (Vec::new(), Vec::new());
        let snapshots = room.snapshots;
        let bundle = Bundle { data, ends, start, end: start, left_out, snapshots, is_full: false };
        Self { room, bundle }
    }

    fn has_room(&self) -> bool {
        !self.bundle.is_full
    }

    /// Whether a line of this length still goes in.
    fn fits(&self, length: usize) -> bool {
        let bundle = &self.bundle;
        bundle.ends.is_empty()
            || (bundle.ends.len() < self.room.lines && bundle.data.len() + 1 + length <= self.room.bytes)
    }

    /// A whole record as one line: whether there is room behind it.
    fn push_record(&mut self, record: &Record<'_>) -> bool {
        if !self.has_room() || !self.fits(record.bytes.len()) {
            self.bundle.is_full = true;
            return false;
        }
        if self.room.snapshots != Snapshots::Send && is_snapshot(record.bytes) {
            if self.room.snapshots == Snapshots::Wait {
                return false;
            }
            self.leave_out(record.bytes, record.lines(), Why::Deferred);
            self.bundle.end = record.end;
            return true;
        }
        self.push(record.bytes, record.lines(), record.end);
        self.bundle.end = record.end;
        true
    }

    /// A line that ends at `position` in the journal and stands for `lines`.
    fn push(&mut self, line: &[u8], lines: u64, position: Position) {
        if line.len() > self.room.line_bytes {
            return self.leave_out(line, lines, Why::Unfit(too_long(self.room)));
        }
        let text = match std::str::from_utf8(line) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => repaired(line),
        };
        if !api::is_json(&text) {
            return self.leave_out(line, lines, Why::Unfit("it is no JSON".to_owned()));
        }
        if !self.bundle.ends.is_empty() {
            self.bundle.data.push(',');
        }
        self.bundle.data.push_str(&text);
        self.bundle.ends.push(LineEnd { at: self.bundle.data.len(), position, lines });
        self.bundle.is_full = self.bundle.ends.len() >= self.room.lines;
    }

    fn leave_out(&mut self, line: &[u8], lines: u64, why: Why) {
        let before = self.bundle.ends.len();
        self.bundle.left_out.push(LeftOut { before, line: line.to_vec(), lines, why });
    }
}

/// Whether a record is one of osqueryd's snapshots. One that only has these words in it is taken for one, which costs it
/// its place and nothing else.
fn is_snapshot(record: &[u8]) -> bool {
    memchr::memmem::find(record, b"\"action\":\"snapshot\"").is_some()
}

fn repaired(line: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    if api::is_object(&text) { Cow::Owned(api::with_member(&text, REPAIRED_MARK, "true")) } else { text }
}

fn too_long(room: &Room) -> String {
    format!("it has more than {} bytes (logger_tls_max_linesize)", room.line_bytes)
}

fn read(record: &mut LargeRecord, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    record.by_ref().take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
