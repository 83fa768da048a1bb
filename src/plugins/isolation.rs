//! Finds the lines that a server refuses among those that it takes, by halving. Pure: what became of a request goes in,
//! what is to be sent comes out.
//!
//! A refusal alone says nothing of the lines: mostly the server is down. So after a refusal one waits, and sends less, from
//! the front: the lines stay in order when it was an outage. When that is refused again and again, a line from elsewhere is
//! tried, the *control*. As soon as anything is taken, the server is up, and what it refuses is found at once, without
//! further waits: refused lines are halved down to one, the *suspect*. A suspect is set aside when it was refused alone
//! three times, each time between two requests that were taken. Any doubt, and it is put back: it is taken after all, or
//! three controls in a row are refused, which is an outage that began in the middle of the search.
//!
//! The last lines of all are kept back as controls. When they are used up, lines that come later are controls; until then
//! suspects rest, and nothing stands behind them.
//!
//! Requests for `n` lines of which `m` are refused: at most `(m + 1)·(2·⌈log2 n⌉ + 10)`, apart from those of an outage.

use std::ops::Range;

/// A suspect is set aside after this many refusals, each while others were taken.
const REFUSALS: u32 = 3;

/// How many of the last lines are kept back as controls.
const SPARE: usize = 4;

/// A control is sent after this many refusals in a row.
const REFUSED_IN_A_ROW: usize = 4;

/// This many refused controls in a row are an outage.
const REFUSED_CONTROLS: usize = 3;

/// Of this many attempts without any success, the last but one is a control.
const ATTEMPTS: usize = 4;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// These lines are to be sent as one request.
    Send(Range<usize>),
    /// Lines from behind these would be of use: [`Search::grow`] tells how many there are.
    More,
    /// The server takes others and not this line.
    SetAside(usize),
    /// Only suspects are left, and nothing to compare them with: later.
    Rest,
    /// All lines are taken or set aside.
    Over,
}

/// In what way lines were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many at once, or too slow: fewer may be taken.
    Size,
    /// For whatever is in them.
    Content,
}

/// What follows a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next step, at once.
    GoOn,
    /// It may be an outage: the next step after a wait.
    Wait,
    /// Nothing but suspects is left: the next step when there are other lines, or after a wait.
    Rest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Open,
    Taken,
    Suspect {
        /// How often it was refused alone between requests that were taken; the last time counts when another is taken.
        refusals: u32,
        /// Whether others were taken since.
        others_taken: bool,
    },
    SetAside,
}

/// A search among the first lines that wait.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    lines: Vec<Line>,
    /// Lines a request may have.
    most: usize,
    /// Lines that the next request from the front has.
    size: usize,
    /// Some line before this one, and behind the first open one, is refused.
    bad_until: Option<usize>,
    /// Whether the server has just taken lines.
    is_up: bool,
    refused_in_a_row: usize,
    refused_controls: usize,
    /// Waits since lines were taken.
    waits: usize,
    /// What was sent last is a control.
    is_control: bool,
    /// The caller was asked for what waits behind these lines, and nothing of that was taken since.
    nothing_more: bool,
}

impl Search {
    /// A search among `lines` lines, of which a request may have `most`. Nothing is known of them.
    pub(crate) fn new(lines: usize, most: usize) -> Self {
        Self {
            lines: vec![Line::Open; lines],
            most: most.max(1),
            size: most.max(1),
            bad_until: None,
            is_up: false,
            refused_in_a_row: 0,
            refused_controls: 0,
            waits: 0,
            is_control: false,
            nothing_more: false,
        }
    }

    /// How many lines it is about.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Lines that the next request would have: fewer than allowed when larger ones were refused.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The lines from the front that are done with.
    pub(crate) fn done(&self) -> usize {
        let is_done = |line: &Line| matches!(line, Line::Taken | Line::SetAside);
        self.lines.iter().position(|line| !is_done(line)).unwrap_or(self.lines.len())
    }

    /// Whether the server has just taken lines, so that a refusal says something of those that it refuses.
    pub(crate) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Whether a line is set aside.
    pub(crate) fn is_set_aside(&self, line: usize) -> bool {
        self.lines.get(line) == Some(&Line::SetAside)
    }

    /// This line is not to be sent any more, whatever the server says.
    pub(crate) fn set_aside(&mut self, line: usize) {
        self.set(line, Line::SetAside);
    }

    /// What is to be done next.
    pub(crate) fn next(&mut self) -> Step {
        self.is_control = false;
        let is_convicted = |line: &Line| matches!(line, Line::Suspect { refusals: REFUSALS, others_taken: true });
        if let Some(index) = self.lines.iter().position(is_convicted) {
            self.set(index, Line::SetAside);
            return Step::SetAside(index);
        }
        if self.done() == self.lines.len() {
            return Step::Over;
        }
        if self.is_up { self.sift() } else { self.try_again() }
    }

    /// The step while the server takes lines: which ones does it refuse?
    fn sift(&mut self) -> Step {
        if self.refused_in_a_row >= REFUSED_IN_A_ROW {
            if self.refused_controls > 0 && !self.nothing_more {
                return Step::More;
            }
            return self.control().unwrap_or_else(|| self.more_or(Step::Rest));
        }
        let compared = |line: &Line| matches!(line, Line::Suspect { others_taken: true, .. });
        if let Some(index) = self.lines.iter().position(compared) {
            return Step::Send(index..index + 1);
        }
        self.open().unwrap_or_else(|| self.more_or(Step::Rest))
    }

    /// The step while the server takes nothing.
    fn try_again(&mut self) -> Step {
        if self.waits % ATTEMPTS == ATTEMPTS - 1 {
            if !self.nothing_more {
                return Step::More;
            }
            if let Some(control) = self.control() {
                return control;
            }
        }
        let open = self.open();
        let suspect = || {
            let suspects: Vec<usize> = indexes(&self.lines, is_suspect).collect();
            let next = suspects.get(self.waits.checked_rem(suspects.len()).unwrap_or(0)).copied().unwrap_or(0);
            Step::Send(next..next + 1)
        };
        match open {
            Some(open) => open,
            None => self.more_or(suspect()),
        }
    }

    fn more_or(&self, step: Step) -> Step {
        if self.nothing_more { step } else { Step::More }
    }

    /// The next open lines: those that are kept back only when the others are done with.
    fn open(&mut self) -> Option<Step> {
        self.front().or_else(|| if self.has_suspects() { self.control() } else { self.spare() })
    }

    /// The next open lines, without those that are kept back.
    fn front(&self) -> Option<Step> {
        let spare = self.spare_start();
        let start = indexes(&self.lines, is_open).next().filter(|&start| start < spare)?;
        let known = self.bad_until.filter(|&until| until > start);
        // One half of where it must be; all that may be sent where nothing is known.
        let length = known.map_or(self.size, |until| ((until - start).div_ceil(2)).min(self.size));
        Some(Step::Send(start..self.run_end(start, length.min(spare - start))))
    }

    /// Lines that were kept back and are needed no longer. When a refused one is among them, one by one, and the last
    /// first: the others can be its controls then.
    fn spare(&self) -> Option<Step> {
        let start = indexes(&self.lines, is_open).next()?;
        if self.bad_until.is_some_and(|until| until > start) {
            let last = self.lines.iter().rposition(is_open)?;
            return Some(Step::Send(last..last + 1));
        }
        Some(Step::Send(start..self.run_end(start, self.size)))
    }

    /// A line from elsewhere: what is kept back comes after the others, and a line from anywhere when those were refused.
    fn control(&mut self) -> Option<Step> {
        let mut open: Vec<usize> = indexes(&self.lines, is_open).collect();
        let last = *open.last()?;
        if open.len() > 1 {
            // The first one is what is refused.
            open.remove(0);
        }
        let elsewhere = self.bad_until.unwrap_or(0)..self.spare_start();
        let index = match self.refused_controls + self.waits / ATTEMPTS {
            0 => open.iter().rev().find(|line| elsewhere.contains(line)).copied().unwrap_or(last),
            1 => last,
            // A multiple of the golden section: seldom near where it was before. Without its last digits, which are even for
            // ever when `tried` is.
            tried => *open.get((tried.wrapping_mul(2_654_435_761) >> 8).checked_rem(open.len())?)?,
        };
        self.is_control = true;
        Some(Step::Send(index..index + 1))
    }

    /// These lines, or the first of them, were taken.
    pub(crate) fn taken(&mut self, lines: Range<usize>) {
        if self.lines.get(lines.clone()).is_some_and(|lines| lines.iter().any(is_suspect)) {
            // It refuses what it takes otherwise: what it has refused so far means nothing.
            self.put_back(REFUSALS);
        }
        for index in lines {
            self.set(index, Line::Taken);
        }
        self.taken_elsewhere();
        let front = indexes(&self.lines, is_open).next().unwrap_or(self.lines.len());
        if self.bad_until.is_some_and(|until| until <= front) {
            self.bad_until = None;
        }
        if self.bad_until.is_none() && !self.is_control {
            self.size = self.size.saturating_mul(2).min(self.most);
        }
    }

    /// The server has just taken lines that are none of these.
    pub(crate) fn taken_elsewhere(&mut self) {
        for line in &mut self.lines {
            if let Line::Suspect { others_taken, .. } = line {
                *others_taken = true;
            }
        }
        if !std::mem::replace(&mut self.is_up, true) {
            // Mostly it was an outage, and is over.
            self.bad_until = None;
        }
        (self.refused_in_a_row, self.refused_controls, self.waits) = (0, 0, 0);
        self.nothing_more = false;
    }

    /// These lines were refused.
    pub(crate) fn refused(&mut self, lines: Range<usize>, refusal: Refusal) -> Then {
        self.refused_in_a_row += 1;
        self.refused_controls += usize::from(self.is_control);
        match refusal {
            _ if lines.len() <= 1 => self.refused_alone(lines.start, refusal),
            Refusal::Size => self.size = lines.len().div_ceil(2),
            Refusal::Content => self.bad_until = Some(lines.end),
        }
        if self.is_up && self.refused_controls >= REFUSED_CONTROLS {
            // An outage: what was refused since something was taken means nothing.
            self.put_back(1);
            self.is_up = false;
        }
        let has_open = self.lines.iter().any(is_open);
        match (self.is_up, refusal) {
            (true, _) => Then::GoOn,
            // The server has said what it wants.
            (false, Refusal::Size) if lines.len() > 1 && self.waits == 0 => Then::GoOn,
            (false, _) if !has_open => Then::Rest,
            (false, _) => Then::Wait,
        }
    }

    fn refused_alone(&mut self, index: usize, refusal: Refusal) {
        if self.is_up {
            match self.lines.get(index) {
                Some(Line::Open) => self.set(index, Line::Suspect { refusals: 1, others_taken: false }),
                Some(&Line::Suspect { refusals, others_taken: true }) => {
                    self.set(index, Line::Suspect { refusals: refusals + 1, others_taken: false });
                }
                _ => {}
            }
        }
        if self.is_control {
            return;
        }
        // What was known to be refused was this one, as far as is known.
        self.bad_until = None;
        if refusal == Refusal::Size {
            self.size = 1;
        }
    }

    /// There is nothing to be said of lines: the server can't be reached, or asks to be left alone. Or one has waited for
    /// another reason.
    pub(crate) fn waited(&mut self) {
        if self.is_up && self.refused_controls > 0 {
            // Perhaps an outage, and nothing is left to find out with.
            self.put_back(1);
        }
        self.is_up = false;
        self.waits += 1;
        self.refused_in_a_row = 0;
        self.nothing_more = false;
    }

    /// `lines` more lines have come in behind the last one.
    pub(crate) fn grow(&mut self, lines: usize) {
        self.lines.extend(std::iter::repeat_n(Line::Open, lines));
        self.nothing_more = true;
    }

    /// The first `lines` lines are done with, and gone.
    pub(crate) fn forget(&mut self, lines: usize) {
        self.lines.drain(..lines.min(self.lines.len()));
        self.bad_until = self.bad_until.and_then(|until| until.checked_sub(lines)).filter(|&until| until > 0);
    }

    /// The last `count` refusals of each suspect don't count: the very last one only where nothing was taken since.
    fn put_back(&mut self, count: u32) {
        for line in &mut self.lines {
            if let Line::Suspect { refusals, others_taken } = line
                && (count > 1 || !*others_taken)
            {
                *refusals = refusals.saturating_sub(count);
                if *refusals == 0 {
                    *line = Line::Open;
                }
            }
        }
        self.bad_until = None;
    }

    fn has_suspects(&self) -> bool {
        self.lines.iter().any(is_suspect)
    }

    fn spare_start(&self) -> usize {
        self.lines.len() - SPARE.min(self.lines.len() / 2)
    }

    /// Where the run of open lines ends that begins at `start` and has at most `most` of them.
    fn run_end(&self, start: usize, most: usize) -> usize {
        let run = self.lines.iter().skip(start).take(most.min(self.most)).take_while(|line| is_open(line));
        start + run.count()
    }

    fn set(&mut self, index: usize, line: Line) {
        if let Some(place) = self.lines.get_mut(index) {
            *place = line;
        }
    }
}

fn is_suspect(line: &Line) -> bool {
    matches!(line, Line::Suspect { .. })
}

fn is_open(line: &Line) -> bool {
    *line == Line::Open
}

fn indexes(lines: &[Line], is_meant: impl Fn(&Line) -> bool) -> impl Iterator<Item = usize> {
    lines.iter().enumerate().filter(move |(_, line)| is_meant(line)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests;
