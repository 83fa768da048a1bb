//! The cursor: up to where everything is done with, in a file of one line of a fixed width.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::segments::{self, CURSOR};
use super::walk::{self, Walk};
use super::{CountLines, Position};

/// Four numbers of 20 digits, three blanks and a newline.
const WIDTH: usize = 84;

/// The cursor's file, as its one writer has it.
pub(super) struct Cursor {
    path: PathBuf,
    /// Opened by the first write, and again after a failed one.
    file: Option<File>,
    is_refused: bool,
}

impl Cursor {
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join(CURSOR), file: None, is_refused: false }
    }

    /// Writes it, by one system call that can't be torn. Not vital: what the disk refuses here comes twice after a restart.
    pub(super) fn write(&mut self, position: Position) {
        match self.try_write(position) {
            Ok(()) => self.is_refused = false,
            Err(error) => {
                self.file = None;
                if !std::mem::replace(&mut self.is_refused, true) {
                    let path = self.path.display();
                    log::error!("{path} can't be written, and lines may be sent again after a restart: {error}");
                }
            }
        }
    }

    /// Whether the last write failed.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    fn try_write(&mut self, position: Position) -> io::Result<()> {
        // It may have been deleted: what is written to it then could not be found again.
        let file = match self.file.take().filter(|file| file.metadata().is_ok_and(|file| file.nlink() > 0)) {
            Some(file) => file,
            None => segments::open_or_replace(
                &self.path,
                OpenOptions::new().create(true).truncate(false).read(true).write(true),
            )?,
        };
        file.write_all_at(format(position).as_bytes(), 0)?;
        self.file = Some(file);
        Ok(())
    }
}

fn format(position: Position) -> String {
    let Position { file, offset, lines_done, line } = position;
    format!("{file:020} {offset:020} {lines_done:020} {line:020}\n")
}

fn parse(text: &[u8]) -> Option<Position> {
    let mut numbers = std::str::from_utf8(text).ok()?.strip_suffix('\n')?.split(' ');
    let mut number = || {
        let digits = numbers.next()?;
        let is_number = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse::<u64>().ok()).flatten()
    };
    let position = Position { file: number()?, offset: number()?, lines_done: number()?, line: number()? };
    let is_possible = position.line <= segments::LAST_NUMBER && position.file <= position.line;
    (numbers.next().is_none() && is_possible).then_some(position)
}

/// What a cursor's file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// There is no such file yet.
    Nothing,
    /// Its text is no position: it was damaged.
    Nonsense,
    /// Records before this position are done with.
    At(Position),
}

impl Stored {
    /// The place; `None` when the cursor is missing or damaged.
    pub(super) fn position(self) -> Option<Position> {
        match self {
            Self::At(position) => Some(position),
            Self::Nothing | Self::Nonsense => None,
        }
    }
}

/// The place that a cursor means.
pub(super) struct Resolved {
    pub(super) position: Position,
    /// Whether the cursor pointed to no record, so that this is its segment's beginning.
    pub(super) went_back: bool,
}

/// Reads the cursor of a journal.
pub(super) fn read(directory: &Path) -> io::Result<Stored> {
    let path = directory.join(CURSOR);
    let file = match segments::open_for_reading(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound || segments::is_foreign(&path) => {
            return Ok(Stored::Nothing);
        }
        Err(error) => return Err(error),
    };
    let mut text = [0; WIDTH];
    let read = walk::read_up_to(&file, &mut text, 0)?;
    Ok(text.get(..read).and_then(parse).map_or(Stored::Nonsense, Stored::At))
}

/// The place that a cursor means, among these segments (oldest first). One that means no place goes back: to the beginning
/// of its segment, or to the oldest one. Its line's number is counted anew.
pub(super) fn resolve<W: CountLines>(
    directory: &Path,
    numbers: &[u64],
    cursor: Option<Position>,
) -> io::Result<Resolved> {
    let found = |position| Resolved { position, went_back: false };
    let oldest = numbers.first().copied().map(Position::beginning_of);
    let Some(cursor) = cursor else { return Ok(found(oldest.unwrap_or_default())) };
    if numbers.binary_search(&cursor.file).is_ok() {
        let file = segments::open_for_reading(&segments::path(directory, cursor.file))?;
        let place = place_in::<W>(&file, cursor)?;
        return Ok(place.map_or(Resolved { position: Position::beginning_of(cursor.file), went_back: true }, found));
    }
    // Segments behind the cursor: its own was deleted when it was done with, or by the writer's backstop.
    let is_behind = |&&number: &&u64| number > cursor.file;
    Ok(found(match numbers.iter().find(is_behind) {
        // Reading on from here shows what is missing.
        Some(_) => cursor,
        None => oldest.unwrap_or(cursor),
    }))
}

/// The cursor with its line's number counted; `None` when no record begins there.
fn place_in<W: CountLines>(file: &File, cursor: Position) -> io::Result<Option<Position>> {
    let mut line = cursor.file;
    let mut at = 0;
    let mut walk = Walk::<W>::new(file, 0);
    while at < cursor.offset {
        let Some(step) = walk.whole_step()? else { return Ok(None) };
        line += step.lines;
        at = step.end;
    }
    if at > cursor.offset {
        return Ok(None);
    }
    let place = Position { lines_done: 0, line, ..cursor };
    if cursor.lines_done == 0 {
        return Ok(Some(place));
    }
    let is_within = walk.step()?.is_some_and(|record| cursor.lines_done < record.lines);
    Ok(Some(if is_within { place.after_lines(cursor.lines_done) } else { place }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_written_in_one_width_and_read_back() {
        for position in [
            Position::default(),
            Position { file: 42, offset: 7, lines_done: 3, line: 50 },
            Position {
                file: segments::LAST_NUMBER,
                offset: u64::MAX,
                lines_done: u64::MAX,
                line: segments::LAST_NUMBER,
            },
        ] {
            let text = format(position);
            assert_eq!(text.len(), WIDTH);
            assert_eq!(parse(text.as_bytes()), Some(position));
        }
    }

    #[test]
    fn what_is_no_position_is_none() {
        let text = format(Position { file: 42, offset: 7, lines_done: 3, line: 50 });
        let line = |line: u64| format(Position { line, ..Position::default() });
        for wrong in [
            "",
            "42 7 3 50\n",
            &text.replace(' ', "\t"),
            &text.replace('4', "x"),
            text.trim_end(),
            &text.replace('\n', " 1\n"),
            &line(segments::LAST_NUMBER + 1),
            &format(Position { file: 51, offset: 0, lines_done: 0, line: 50 }),
            &"\0".repeat(WIDTH),
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
