//! A journal whose lines are sent, and what was learnt on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bundle::{Bundle, Bundler, Snapshots};
use super::pace::{Pace, RECENT};
use super::window::Window;
use crate::journal::{Position, Reader};
use crate::line_count::LineCounter;
use crate::logging::Streak;
use crate::policy::{Backoff, Chance};

/// Lines that are refused alone, with nothing to compare them with, are sent again after waits that grow up to this.
const REST_MAX: Duration = Duration::from_secs(3600);

/// For how long lines of two queues don't go in one request after such a one was refused: the sum may be too much for the
/// server.
const NO_RIDE: Duration = Duration::from_secs(600);

/// What waits in a journal, on its way to the server.
pub(super) struct Queue {
    pub(super) journal: Arc<Reader<LineCounter>>,
    pub(super) bundler: Bundler,
    /// Lines a request, where the server doesn't take as many as the flags allow; doubled by each success.
    pub(super) lines: Option<usize>,
    /// The search among lines that the server has refused.
    pub(super) window: Option<Window>,
    /// What becomes of snapshots in this flush.
    pub(super) snapshots: Snapshots,
    /// The server has taken lines of another queue in this flush: what it refuses of these says something of them.
    pub(super) others_taken: bool,
    /// Lines that may still go with this flush; `None` is all.
    pub(super) left: Option<u64>,
    /// From when on its lines may go with those of another queue again.
    rides_from: Option<Instant>,
    rest: Option<Rest>,
    rests: Backoff,
    pace: Pace,
    is_paced: bool,
    caught_up: CaughtUp,
}

/// How a stream is sent: what waits, and what was learnt of the server.
pub(super) struct Sending {
    pub(super) live: Queue,
    /// Results that have waited for more than a minute; statuses have none.
    pub(super) backlog: Option<Queue>,
    /// Whether the server has taken anything since the last wait.
    pub(super) has_taken: bool,
    pub(super) failures: Streak,
}

/// What is to be done next with what waits.
pub(super) enum Next {
    /// A flush.
    Flush,
    /// Nothing until other lines come, or until then.
    Rest(Option<Instant>),
}

impl Sending {
    pub(super) fn queues(&mut self) -> impl Iterator<Item = &mut Queue> {
        [Some(&mut self.live), self.backlog.as_mut()].into_iter().flatten()
    }

    pub(super) fn next(&mut self) -> Next {
        let mut earliest = None;
        for queue in self.queues().filter(|queue| !queue.journal.is_empty()) {
            let Some(until) = queue.rests_until() else { return Next::Flush };
            earliest = Some(earliest.map_or(until, |earliest: Instant| earliest.min(until)));
        }
        Next::Rest(earliest)
    }
}

/// Refused lines rest until this moment, unless others come behind this place.
struct Rest {
    until: Instant,
    end: Position,
}

/// When all that waited was sent last: a moment that can lie before the start of this process. By our own clock: what
/// lines say of their time can be anything.
#[derive(Clone, Copy)]
struct CaughtUp {
    seen: Instant,
    before: Duration,
}

impl CaughtUp {
    fn now() -> Self {
        Self { seen: Instant::now(), before: Duration::ZERO }
    }

    fn age(self) -> Duration {
        self.seen.elapsed().saturating_add(self.before)
    }
}

impl Queue {
    /// A queue whose refused lines rest for a multiple of `step`.
    pub(super) fn new(journal: Arc<Reader<LineCounter>>, step: Duration) -> Self {
        Self {
            journal,
            bundler: Bundler::default(),
            lines: None,
            window: None,
            snapshots: Snapshots::Send,
            others_taken: false,
            left: None,
            rides_from: None,
            rest: None,
            rests: Backoff::new(step, REST_MAX),
            pace: Pace::default(),
            is_paced: false,
            caught_up: CaughtUp::now(),
        }
    }

    /// Lines wait in it since before the start, for so long already.
    pub(super) fn resume(&mut self, age: Duration) {
        self.caught_up.before = age;
        self.is_paced = true;
    }

    /// The lines of another queue come into this one, which is empty.
    pub(super) fn begin_with_those_of(&mut self, other: &Self) {
        self.caught_up = other.caught_up;
        (self.pace, self.is_paced) = (Pace::default(), true);
    }

    /// For how long lines may have waited in it.
    pub(super) fn age(&self) -> Duration {
        self.caught_up.age()
    }

    /// Its old lines are elsewhere: those that are left are new.
    pub(super) fn took_over(&mut self) {
        self.caught_up = CaughtUp::now();
    }

    /// It waits for another one: its lines will not go all at once.
    pub(super) fn hold(&mut self) {
        self.is_paced = true;
    }

    /// Whether lines wait in it that should have been sent more than a minute ago.
    pub(super) fn is_old(&self) -> bool {
        self.is_paced && self.caught_up.age() >= RECENT
    }

    /// A flush begins: what may go with it.
    pub(super) fn begin(&mut self, period: Duration) {
        let age = self.caught_up.age();
        self.left = match self.is_paced {
            true => self.pace.allows(self.journal.waiting_lines(), age, period, Instant::now()),
            false => None,
        };
    }

    /// A search goes on after a wait, where its lines are still the first ones.
    pub(super) fn resume_search(&mut self) {
        let journal = &self.journal;
        self.window = self.window.take().and_then(|mut window| window.waited(journal).then_some(window));
        if let Some(window) = self.window.as_mut().filter(|_| self.others_taken) {
            window.taken_elsewhere();
        }
    }

    /// The server has refused these lines: which of them?
    pub(super) fn begin_search(&mut self, bundle: Bundle, most: usize) -> &mut Window {
        let window = self.window.insert(Window::new(bundle, most));
        if self.others_taken {
            window.taken_elsewhere();
        }
        window
    }

    /// Everything may go.
    pub(super) fn begin_freely(&mut self) {
        self.left = None;
    }

    /// The server has taken so many lines, and took this time for it.
    pub(super) fn delivered(&mut self, lines: u64, took: Duration) {
        if lines > 0 {
            self.pace.answered(lines, took, Instant::now());
            self.left = self.left.map(|left| left.saturating_sub(lines));
        }
    }

    /// What could be sent is.
    pub(super) fn flushed(&mut self) {
        self.rests.succeeded();
        self.note_end();
    }

    /// The server has not taken what it was sent.
    pub(super) fn failed(&mut self) {
        self.pace.failed(Instant::now());
        self.is_paced = true;
    }

    /// Nothing is left in it.
    pub(super) fn is_empty_now(&mut self) {
        self.caught_up = CaughtUp::now();
        self.is_paced = false;
    }

    /// What waits before `end` are lines that are refused alone: they rest.
    pub(super) fn begin_rest(&mut self, end: Position) {
        let until = Instant::now() + self.rests.failed(&mut Chance::new());
        self.rest = Some(Rest { until, end });
        self.note_end();
    }

    /// Until when its lines rest, if they do.
    pub(super) fn rests_until(&mut self) -> Option<Instant> {
        let (journal, others_taken) = (&self.journal, self.others_taken);
        let is_over = |rest: &mut Rest| {
            others_taken || rest.until <= Instant::now() || rest.end != journal.end().unwrap_or_default()
        };
        self.rest.take_if(is_over);
        self.rest.as_ref().map(|rest| rest.until)
    }

    /// Its lines and others were refused together.
    pub(super) fn ride_refused(&mut self) {
        self.rides_from = Some(Instant::now() + NO_RIDE);
    }

    /// Whether its lines may go with others, in one request: nothing is known that speaks against it.
    pub(super) fn may_ride(&mut self) -> bool {
        self.rides_from.take_if(|from| *from <= Instant::now());
        self.rides_from.is_none()
            && self.left != Some(0)
            && self.lines.is_none()
            && self.window.is_none()
            && self.rests_until().is_none()
    }

    /// Whether its lines go by their pace.
    pub(super) fn is_draining(&self) -> bool {
        self.pace.is_draining()
    }

    /// The server has taken a request.
    pub(super) fn accepted(&mut self, max_lines: usize) {
        self.lines = self.lines.map(|lines| lines.saturating_mul(2)).filter(|&lines| lines < max_lines);
    }

    fn note_end(&mut self) {
        if !self.pace.is_draining() {
            self.is_empty_now();
        }
    }
}
