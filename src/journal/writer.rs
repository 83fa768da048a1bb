//! The writing side: appends, and what must be done about a disk that refuses them.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backstop::Backstop;
use super::memory::Memory;
use super::segments::{self, PREDECESSOR_LIMIT};
use super::store::{Refusal, Store};
use super::tally::Tally;
use super::unsynced::Unsynced;
use super::walk::lines_of;
use super::{Amount, Borrowed, CountLines, Counts, JournalError, Limits, Overflow, Position, SEGMENT_BYTES, chain};
use crate::lock::Mutex;
use crate::spares::Spares;
use crate::words::counted;

/// The bytes of records that come one by one that are put together for one write; the last one may make it more.
const AT_ONCE: usize = 1 << 20;

/// What tests want smaller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    /// See [`SEGMENT_BYTES`].
    pub(super) segment_bytes: u64,
    /// Between two attempts to open or write a journal that could not be.
    pub(super) retry_interval: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES, retry_interval: Duration::from_secs(1) }
    }
}

/// Whom a writer tells what has happened. It is called without a lock, by the thread that appends.
pub trait WriterEvents: Send + Sync {
    /// Records came, on disk or in memory.
    fn appended(&self);

    /// Records begin to wait in memory: [`Writer::retry`] should be called once a second until it says no.
    fn refused(&self) {}
}

/// For a writer without a reader: nothing is signalled.
impl WriterEvents for () {
    fn appended(&self) {}
}

/// Writes a journal. Every method can be called by any thread; none waits for a reader or for the network.
pub struct Writer<W> {
    name: &'static str,
    directory: PathBuf,
    tuning: Tuning,
    events: Arc<dyn WriterEvents>,
    state: Mutex<State>,
    pub(super) tally: Tally,
    unsynced: Unsynced,
    backstop: Backstop,
    /// For what is written.
    buffers: Spares,
    counter: PhantomData<fn() -> W>,
}

/// What appends need, under one lock.
#[derive(Default)]
struct State {
    store: Option<Store>,
    /// Counts the attempts to open it.
    openings: u64,
    /// When opening may be tried again.
    not_before: Option<Instant>,
    /// Why it could not be opened.
    unopened: String,
    /// When writing may be tried again, after a refusal.
    refused_until: Option<Instant>,
    /// The next line's number in the last store.
    before: Option<u64>,
    /// Counts the large records.
    incoming: u64,
    memory: Memory,
}

impl State {
    fn may_write(&self) -> bool {
        self.refused_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Lets a store go whose directory is not what it was: the next attempt looks at it afresh.
    fn leave_lost_store(&mut self) {
        if self.store.as_ref().is_some_and(Store::is_lost) {
            self.leave_store();
        }
    }

    /// Lets the store go; the next one goes on where it was.
    fn leave_store(&mut self) -> Option<Store> {
        self.before = self.store.as_ref().map(Store::next).or(self.before);
        self.store.take()
    }
}

impl<W: CountLines> Writer<W> {
    /// Writes the journal in this directory, which is called `name` in messages. The disk isn't touched before the first
    /// append.
    #[must_use]
    pub fn new(directory: PathBuf, name: &'static str, events: Arc<dyn WriterEvents>) -> Self {
        Self::tuned(Tuning::default(), directory, name, events)
    }

    /// See [`Self::new`].
    pub(super) fn tuned(tuning: Tuning, directory: PathBuf, name: &'static str, events: Arc<dyn WriterEvents>) -> Self {
        Self {
            name,
            directory,
            tuning,
            events,
            state: Mutex::default(),
            tally: Tally::new(name),
            unsynced: Unsynced::default(),
            backstop: Backstop::default(),
            buffers: Spares::default(),
            counter: PhantomData,
        }
    }

    /// Keeps a record. Never fails: what the disk refuses waits in memory, and what finds no room there is counted as
    /// dropped and said.
    pub fn append(&self, record: &[u8]) {
        self.append_parts(&[record]);
    }

    /// Keeps a record that consists of these parts.
    pub fn append_parts(&self, parts: &[&[u8]]) {
        let mut bytes = self.buffer();
        push_record(&mut bytes, parts);
        self.append_bytes(bytes);
    }

    /// Keeps records, in order, by as few writes as that takes with about a megabyte in memory at a time.
    pub fn append_all<R: AsRef<[u8]>>(&self, records: impl IntoIterator<Item = R>) {
        let mut bytes = self.buffer();
        for record in records {
            push_record(&mut bytes, &[record.as_ref()]);
            if bytes.len() >= AT_ONCE {
                self.append_bytes(std::mem::replace(&mut bytes, self.buffer()));
            }
        }
        if !bytes.is_empty() {
            self.append_bytes(bytes);
        }
    }

    fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.buffers.take();
        buffer.clear();
        buffer
    }

    /// Keeps records, each with its newline. They were put together before the lock is taken.
    fn append_bytes(&self, bytes: Vec<u8>) {
        let lines = lines_of::<W>(&bytes);
        self.tally.add(|counts| &mut counts.accepted, lines);
        let mut state = self.state.lock();
        let begins_to_wait = self.keep(&mut state, bytes, lines);
        drop(state);
        if begins_to_wait {
            self.events.refused();
        }
        self.events.appended();
    }

    /// Keeps records that are safe elsewhere until this succeeds, each with its newline: on the disk, synced, and never in
    /// memory. They are not counted as taken.
    ///
    /// # Errors
    /// The disk refuses them: how many bytes of whole records are kept all the same, and why not the others.
    pub fn take_over(&self, records: &[u8]) -> Result<(), (usize, JournalError)> {
        let lines = lines_of::<W>(records);
        let mut state = self.state.lock();
        let written = match self.store(&mut state) {
            Ok(store) => store.write::<W>(records, lines).map_err(|refusal| (refusal.kept, refusal.error)),
            Err(error) => Err((0, error)),
        };
        state.leave_lost_store();
        drop(state);
        self.sync();
        self.events.appended();
        written
    }

    /// The file that a large record is to be written into, piece by piece.
    pub(super) fn path_aside(&self) -> Result<PathBuf, JournalError> {
        let mut state = self.state.lock();
        let opened = self.store(&mut state).map(|_| ());
        state.incoming += 1;
        opened.map(|()| segments::incoming_path(&self.directory, state.incoming))
    }

    /// Counts lines that came and can't be kept, for the reason given.
    pub fn refuse(&self, lines: u64, reason: &str) {
        self.tally.add(|counts| &mut counts.accepted, lines);
        self.tally.dropped(lines, reason);
    }

    /// Where the next record will be; `None` while the journal is not open.
    #[must_use]
    pub fn end(&self) -> Option<Position> {
        self.state.lock().store.as_ref().map(Store::end)
    }

    /// Waits until what was written is safe from a power cut, too. Appends don't wait for it. Once the disk refuses this,
    /// it is said once.
    pub fn sync(&self) {
        {
            let mut state = self.state.lock();
            if let Some(store) = &mut state.store {
                self.unsynced.take(store);
            }
        }
        self.unsynced.sync(&self.directory);
    }

    /// Does what appends have no time for: notices that the newest file was deleted, and writes what waits in memory,
    /// if an attempt is due. Whether anything still waits there.
    pub fn retry(&self) -> bool {
        let mut state = self.state.lock();
        if let Some(store) = state.store.as_mut().filter(|store| store.is_deleted()) {
            log::error!("the {} journal's newest file was deleted by another program: a new one begins", self.name);
            store.leave_segment();
        }
        self.write_waiting(&mut state);
        !state.memory.is_empty()
    }

    /// Whether records wait in memory for the disk.
    #[must_use]
    pub fn waits_for_disk(&self) -> bool {
        !self.state.lock().memory.is_empty()
    }

    /// Deletes the oldest segments when they have grown far beyond the limits, since no reader keeps them within. To be
    /// called every few seconds. The reader finds the lines missing, and counts them as dropped.
    pub fn keep_backstop(&self, limits: &Limits) {
        if self.state.lock().store.is_some() {
            self.backstop.keep(&self.directory, self.name, self.tuning.segment_bytes, limits);
        }
    }

    /// The end: a last attempt to write what waits in memory, the word on what is lost if that fails, and the lock given
    /// to a successor. A later append opens the journal again.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.memory.give_back();
        state.refused_until = None;
        state.not_before = None;
        self.write_waiting(&mut state);
        let lost = state.memory.clear();
        if let Some(mut store) = state.leave_store() {
            self.unsynced.take(&mut store);
        }
        drop(state);
        self.tally.dropped(lost, "the disk refused them until the end");
    }

    /// What became of lines on this side: accepted and dropped.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// The journal's name, as messages have it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Writes records, behind those that wait in memory; what the disk refuses joins them. Whether records begin to wait.
    fn keep(&self, state: &mut State, mut bytes: Vec<u8>, lines: u64) -> bool {
        // Memory that the disk takes off us now has room for these.
        self.write_waiting(state);
        if state.memory.is_empty() && state.may_write() {
            match self.write(state, &bytes, lines) {
                Ok(()) => {
                    self.note_acceptance(state, 0);
                    self.buffers.give(bytes);
                    return false;
                }
                Err(kept) => {
                    bytes.drain(..kept.min(bytes.len()));
                }
            }
        }
        let begins_to_wait = state.memory.is_empty();
        // It stays for a while, and has room for larger ones.
        bytes.shrink_to_fit();
        let lost = state.memory.push::<W>(bytes);
        self.tally.dropped(lost, "the disk refuses them and the memory for them is full");
        self.write_waiting(state);
        begins_to_wait && !state.memory.is_empty()
    }

    /// Writes what waits in memory, unless that was refused a moment ago or is on its way to the server.
    fn write_waiting(&self, state: &mut State) {
        if state.memory.is_empty() || state.memory.is_lent() || !state.may_write() {
            return;
        }
        let mut written = 0;
        while let Some(batch) = state.memory.next_batch() {
            match self.write(state, &batch.bytes, batch.lines) {
                Ok(()) => state.memory.remove_bytes(batch.bytes.len()),
                Err(kept) => return state.memory.remove_bytes(kept),
            }
            written += batch.lines;
        }
        self.note_acceptance(state, written);
    }

    /// Writes records to the disk, all of them. When the disk refuses, the error is how many bytes of whole ones it took.
    fn write(&self, state: &mut State, bytes: &[u8], lines: u64) -> Result<(), usize> {
        let refusal = match self.store(state) {
            Ok(store) => match store.write::<W>(bytes, lines) {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            },
            Err(error) => Refusal { error, kept: 0 },
        };
        self.note_refusal(state, &refusal.error);
        Err(refusal.kept)
    }

    /// The disk has taken lines, `from_memory` of them from memory.
    fn note_acceptance(&self, state: &mut State, from_memory: u64) {
        if state.refused_until.take().is_some() || from_memory > 0 {
            let lines = counted(from_memory, "line");
            log::info!("the {} journal can be written again, and has {lines} from memory", self.name);
        }
    }

    fn note_refusal(&self, state: &mut State, error: &JournalError) {
        if state.refused_until.is_none() {
            let error = chain(error);
            log::error!("{error}: lines of the {} journal wait in memory until it can be written again", self.name);
        }
        state.refused_until = Some(Instant::now() + self.tuning.retry_interval);
        state.leave_lost_store();
    }

    /// The open store; opens it when that has not failed a moment ago.
    fn store<'a>(&self, state: &'a mut State) -> Result<&'a mut Store, JournalError> {
        let not_yet = |reason: &str| JournalError::NotYet { path: self.directory.clone(), reason: reason.to_owned() };
        if state.store.is_none() {
            if state.not_before.is_some_and(|at| Instant::now() < at) {
                return Err(not_yet(&state.unopened));
            }
            let timeout = if state.openings == 0 { PREDECESSOR_LIMIT } else { Duration::ZERO };
            state.openings += 1;
            let opened = Store::open::<W>(&self.directory, self.tuning.segment_bytes, timeout, state.before);
            state.not_before = Some(Instant::now() + self.tuning.retry_interval);
            state.store = Some(opened.inspect_err(|error| state.unopened = chain(error))?);
        }
        state.store.as_mut().ok_or_else(|| not_yet(&state.unopened))
    }

    /// Makes a file with a large record, its newline included, the newest segment.
    pub(super) fn adopt(&self, record: &Path, lines: u64) -> Result<(), JournalError> {
        let mut state = self.state.lock();
        // Those that came before it, as far as the disk takes them.
        self.write_waiting(&mut state);
        self.store(&mut state)?.adopt(record, lines)
    }

    pub(super) fn note_appended(&self) {
        self.events.appended();
    }
}

impl<W: CountLines> Overflow for Writer<W> {
    fn peek(&self, max_bytes: usize) -> io::Result<Option<Borrowed>> {
        let mut state = self.state.lock();
        state.memory.give_back();
        self.write_waiting(&mut state);
        Ok(state.memory.lend(max_bytes))
    }

    fn remove(&self, through: u64) {
        self.state.lock().memory.remove(through);
    }

    fn give_back(&self) {
        self.state.lock().memory.give_back();
    }

    fn held(&self) -> io::Result<Amount> {
        Ok(self.state.lock().memory.held())
    }

    fn take_losses(&self) -> Vec<String> {
        self.tally.take_losses()
    }
}

/// Adds a record to others, with its newline; newlines within it become blanks.
fn push_record(bytes: &mut Vec<u8>, parts: &[&[u8]]) {
    bytes.reserve(parts.iter().map(|part| part.len()).sum::<usize>() + 1);
    let start = bytes.len();
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    blank_newlines(bytes.get_mut(start..).unwrap_or_default());
    bytes.push(b'\n');
}

/// Makes blanks of newlines.
pub(super) fn blank_newlines(bytes: &mut [u8]) {
    let mut rest = bytes;
    while let Some(newline) = memchr::memchr(b'\n', rest) {
        let (before, after) = rest.split_at_mut(newline + 1);
        if let Some(byte) = before.last_mut() {
            *byte = b' ';
        }
        rest = after;
    }
}
