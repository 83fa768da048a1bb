//! A journal whose lines are sent, and what was learnt on the way: what of it may go when, and in which order two of them go.
//! Callers say what time it is. Only [`Queue::put_behind`] looks at the clock itself, since to move lines takes a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backlog::{Backlog, Snapshots};
use super::bundle::{Bundle, Bundler};
use super::outcome::FlushError;
use super::pace::{Pace, RECENT};
use super::window::Window;
use crate::journal::{Position, Reader};
use crate::line_count::LineCounter;
use crate::logging::Streak;
use crate::policy::{Backoff, Chance};
use crate::shutdown::Shutdown;
use crate::words::counted;

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

    pub(super) fn next(&mut self, now: Instant) -> Next {
        let mut earliest = None;
        for queue in self.queues().filter(|queue| !queue.journal.is_empty()) {
            let Some(until) = queue.rests_until(now) else { return Next::Flush };
            earliest = Some(earliest.map_or(until, |earliest: Instant| earliest.min(until)));
        }
        Next::Rest(earliest)
    }

    /// Sends what may go of each queue, in their order: new lines before those of the backlog, or behind them. `send` is given a
    /// queue, one whose lines may go in its last request, and where to note that the server has taken any. An error is why
    /// the flush ended, or what the first of the two could not send.
    pub(super) fn in_order(
        &mut self,
        new_lines_first: bool,
        period: Duration,
        now: impl Fn() -> Instant,
        mut send: impl FnMut(&mut Queue, Option<&mut Queue>, &mut bool) -> Result<(), FlushError>,
    ) -> Result<(), FlushError> {
        let Self { live, backlog, has_taken, .. } = self;
        let Some(backlog) = backlog else {
            live.begin(period, now());
            return send(live, None, has_taken);
        };
        if !new_lines_first && !backlog.journal.is_empty() {
            match send(backlog, None, has_taken) {
                Err(error @ FlushError::Remote(_)) => return Err(error),
                // What can't be read holds up no other line.
                Err(FlushError::Journal(error)) => log::debug!("{error}"),
                Ok(()) if !backlog.journal.is_empty() && backlog.rests_until(now()).is_none() => {
                    live.hold();
                    return Ok(());
                }
                Ok(()) => {}
            }
        }
        live.begin(period, now());
        let (mut live_taken, mut backlog_taken) = (false, false);
        let flushed = send(live, Some(backlog), &mut live_taken);
        *has_taken |= live_taken;
        // A line that is refused, and a file that can't be read, hold up no other journal's lines.
        if flushed.as_ref().is_err_and(FlushError::is_an_outage) {
            return flushed;
        }
        backlog.others_taken = live_taken;
        let behind = send(backlog, None, &mut backlog_taken);
        *has_taken |= backlog_taken;
        (live.others_taken, backlog.others_taken) = (backlog_taken, false);
        flushed.and(behind)
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
    fn at(now: Instant) -> Self {
        Self { seen: now, before: Duration::ZERO }
    }

    fn age(self, now: Instant) -> Duration {
        now.saturating_duration_since(self.seen).saturating_add(self.before)
    }
}

impl Queue {
    /// A queue whose refused lines rest for a multiple of `step`.
    pub(super) fn new(journal: Arc<Reader<LineCounter>>, step: Duration, now: Instant) -> Self {
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
            caught_up: CaughtUp::at(now),
        }
    }

    /// Lines wait in it since before the start: for this time already.
    pub(super) fn resume(&mut self, age: Duration) {
        self.caught_up.before = age;
        self.is_paced = true;
    }

    /// Puts the lines that should have been sent more than a minute ago into the backlog, whose queue is `behind`.
    pub(super) fn put_behind(&mut self, behind: &mut Self, backlog: &Backlog, shutdown: &Shutdown) {
        // Lines in the middle of a search may be sent already.
        if !self.is_old(Instant::now()) || self.window.is_some() {
            return;
        }
        let was_empty = behind.journal.is_empty();
        // What comes meanwhile is new.
        let Ok(goal) = self.journal.end() else { return };
        let lines = backlog.take_over(&self.journal, goal, shutdown);
        if lines == 0 {
            return;
        }
        if was_empty {
            behind.begin_with_those_of(self);
            backlog.note_beginning(self.age(Instant::now()));
            log::info!(
                "{} could not be sent for a minute: new ones go before them from now on",
                counted(lines, "line")
            );
        }
        let rest = self.journal.peek(1).ok().and_then(|waiting| waiting.start());
        if rest.is_none_or(|rest| rest >= goal) {
            self.took_over(Instant::now());
        }
    }

    /// The lines of another queue come into this one, which is empty.
    pub(super) fn begin_with_those_of(&mut self, other: &Self) {
        self.caught_up = other.caught_up;
        (self.pace, self.is_paced) = (Pace::default(), true);
    }

    /// For how long lines may have waited in it.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.caught_up.age(now)
    }

    /// Its old lines are elsewhere: those that are left are new.
    pub(super) fn took_over(&mut self, now: Instant) {
        self.caught_up = CaughtUp::at(now);
    }

    /// It waits for another one: its lines will not go all at once.
    pub(super) fn hold(&mut self) {
        self.is_paced = true;
    }

    /// Whether lines wait in it that should have been sent more than a minute ago.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        self.is_paced && self.age(now) >= RECENT
    }

    /// A flush begins: what may go with it.
    pub(super) fn begin(&mut self, period: Duration, now: Instant) {
        self.left = match self.is_paced {
            true => self.pace.allows(self.journal.waiting_lines(), self.age(now), period, now),
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

    /// The server has taken `lines` lines, and took this time for it.
    pub(super) fn delivered(&mut self, lines: u64, took: Duration, now: Instant) {
        if lines > 0 {
            self.pace.answered(lines, took, now);
            self.left = self.left.map(|left| left.saturating_sub(lines));
        }
    }

    /// What could be sent is.
    pub(super) fn flushed(&mut self, now: Instant) {
        self.rests.succeeded();
        self.note_end(now);
    }

    /// The server has not taken what it was sent.
    pub(super) fn failed(&mut self, now: Instant) {
        self.pace.failed(now);
        self.is_paced = true;
    }

    /// Nothing is left in it.
    pub(super) fn is_empty_now(&mut self, now: Instant) {
        self.caught_up = CaughtUp::at(now);
        self.is_paced = false;
    }

    /// What waits before `end` are lines that are refused alone: they rest.
    pub(super) fn begin_rest(&mut self, end: Position, now: Instant, chance: &mut Chance) {
        let until = now + self.rests.failed(chance);
        self.rest = Some(Rest { until, end });
        self.note_end(now);
    }

    /// Until when its lines rest, if they do.
    pub(super) fn rests_until(&mut self, now: Instant) -> Option<Instant> {
        let (journal, others_taken) = (&self.journal, self.others_taken);
        let is_over =
            |rest: &mut Rest| others_taken || rest.until <= now || rest.end != journal.end().unwrap_or_default();
        self.rest.take_if(is_over);
        self.rest.as_ref().map(|rest| rest.until)
    }

    /// Its lines and others were refused together.
    pub(super) fn ride_refused(&mut self, now: Instant) {
        self.rides_from = Some(now + NO_RIDE);
    }

    /// Whether its lines may go with others, in one request: nothing is known that speaks against it.
    pub(super) fn may_ride(&mut self, now: Instant) -> bool {
        self.rides_from.take_if(|from| *from <= now);
        self.rides_from.is_none()
            && self.left != Some(0)
            && self.lines.is_none()
            && self.window.is_none()
            && self.rests_until(now).is_none()
    }

    /// Whether its lines go by their pace.
    pub(super) fn is_draining(&self) -> bool {
        self.pace.is_draining()
    }

    /// The server has taken a request.
    pub(super) fn accepted(&mut self, max_lines: usize) {
        self.lines = self.lines.map(|lines| lines.saturating_mul(2)).filter(|&lines| lines < max_lines);
    }

    fn note_end(&mut self, now: Instant) {
        if !self.pace.is_draining() {
            self.is_empty_now(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bundle::{Batches, Room};
    use super::*;
    use crate::journal::{JournalError, Rejected, Writer};
    use crate::remote::api::AnswerError;
    use crate::remote::{Endpoint, RemoteError, RequestError};

    const SECOND: Duration = Duration::from_secs(1);
    const PERIOD: Duration = Duration::from_secs(10);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Queues, what writes into their journals, and the clock.
    struct Trial {
        _root: tempfile::TempDir,
        sending: Sending,
        live: Writer<LineCounter>,
        backlog: Writer<LineCounter>,
        now: Instant,
        chance: Chance,
    }

    impl Trial {
        /// With `live` and `backlog` lines in the two.
        fn new(live: usize, backlog: usize) -> Self {
            let (root, now) = (tempfile::tempdir().unwrap(), Instant::now());
            let journal = |name: &'static str, lines: usize| {
                let rejected = Arc::new(Rejected::new(root.path().to_owned()));
                let writer = Writer::new(root.path().join(name), name, Arc::new(()));
                writer.append_all(vec!["{}"; lines]);
                (Queue::new(Arc::new(Reader::new(root.path().join(name), name, rejected, None)), SECOND, now), writer)
            };
            let ((live, into_live), (backlog, into_backlog)) = (journal("live", live), journal("backlog", backlog));
            let sending = Sending { live, backlog: Some(backlog), has_taken: false, failures: Streak::default() };
            Self { _root: root, sending, live: into_live, backlog: into_backlog, now, chance: Chance::with_seed(1) }
        }

        fn behind(&mut self) -> &mut Queue {
            self.sending.backlog.as_mut().unwrap()
        }

        /// How many lines may go with a flush that begins now.
        fn allowed(&mut self) -> Option<u64> {
            self.sending.live.begin(PERIOD, self.now);
            self.sending.live.left
        }

        /// What waits in the first queue, or in both, rests from now on: for how long.
        fn rest(&mut self, both: bool) -> Duration {
            let mut rest = |queue: &mut Queue| {
                let end = queue.journal.end().unwrap();
                queue.begin_rest(end, self.now, &mut self.chance);
                queue.rests_until(self.now).unwrap() - self.now
            };
            if both {
                rest(self.sending.backlog.as_mut().unwrap());
            }
            rest(&mut self.sending.live)
        }

        fn rests(&mut self) -> bool {
            self.sending.live.rests_until(self.now).is_some()
        }

        fn may_ride(&mut self) -> bool {
            self.sending.live.may_ride(self.now)
        }

        fn bundle(&mut self) -> Bundle {
            let (bytes, batches, snapshots) = (1 << 20, Batches::Keep, Snapshots::Send);
            let room = Room { lines: 100, bytes, line_bytes: bytes, batches, snapshots };
            let queue = &mut self.sending.live;
            queue.bundler.next(&queue.journal, &room).unwrap().unwrap()
        }

        /// A flush in which `send` stands for the forwarder: it answers whether the server takes any. What came of it, and
        /// the order in which the queues were sent, each with what rode along.
        fn flush(
            &mut self,
            new_lines_first: bool,
            mut send: impl FnMut(&mut Queue) -> Result<bool, FlushError>,
        ) -> (Result<(), FlushError>, Vec<String>) {
            let (now, mut order) = (self.now, Vec::new());
            let outcome = self.sending.in_order(
                new_lines_first,
                PERIOD,
                || now,
                |queue, passengers, has_taken| {
                    let passengers = passengers.map_or(String::new(), |queue| format!("+{}", queue.journal.name()));
                    order.push(format!("{}{passengers}", queue.journal.name()));
                    *has_taken |= send(queue)?;
                    Ok(())
                },
            );
            (outcome, order)
        }
    }

    fn refusal() -> RemoteError {
        let source = AnswerError::Status { status: 400, beginning: String::new(), retry_after: None };
        RequestError::Answer { endpoint: Endpoint::Logger, url: String::new(), source }.into()
    }

    fn outage() -> FlushError {
        RemoteError::BackingOff { endpoint: Endpoint::Logger, left: SECOND }.into()
    }

    fn unreadable() -> FlushError {
        FlushError::Journal(JournalError::Overflow { source: std::io::Error::other("gone") })
    }

    #[test]
    fn lines_are_paced_once_a_flush_has_failed_and_they_have_waited_for_a_minute() {
        let mut trial = Trial::new(3600, 0);
        trial.now += HOUR;
        assert_eq!((trial.allowed(), trial.sending.live.is_old(trial.now)), (None, false), "nothing had failed");
        trial.sending.live.is_empty_now(trial.now);
        trial.sending.live.failed(trial.now);
        trial.now += RECENT - SECOND;
        assert_eq!((trial.allowed(), trial.sending.live.is_old(trial.now)), (None, false));
        trial.now += SECOND;
        assert!(trial.sending.live.is_old(trial.now));
        // Sixty lines came in each second of that minute.
        assert_eq!(trial.allowed(), Some(150));
        trial.sending.live.delivered(100, SECOND / 10, trial.now);
        assert_eq!(trial.sending.live.left, Some(50));
        trial.sending.live.delivered(100, SECOND / 10, trial.now);
        assert_eq!(trial.sending.live.left, Some(0));
        trial.sending.live.begin_freely();
        assert_eq!(trial.sending.live.left, None);
    }

    #[test]
    fn what_waits_since_before_the_start_counts_with_the_time_before() {
        let mut trial = Trial::new(3600, 0);
        trial.sending.live.resume(HOUR);
        trial.now += 2 * SECOND;
        assert_eq!(trial.sending.live.age(trial.now), HOUR + 2 * SECOND);
        assert!(trial.sending.live.is_old(trial.now) && trial.allowed().is_some());
        // Its old lines are in the backlog, which is as old from now on.
        let now = trial.now;
        let Sending { live, backlog: Some(backlog), .. } = &mut trial.sending else { panic!() };
        backlog.begin_with_those_of(live);
        live.took_over(now);
        assert_eq!((backlog.age(now), live.age(now)), (HOUR + 2 * SECOND, Duration::ZERO));
        assert!(backlog.is_old(now) && !backlog.is_draining());
        // Lines that don't go for another minute are old again.
        trial.now += RECENT;
        assert!(trial.sending.live.is_old(trial.now));
    }

    #[test]
    fn a_queue_that_is_held_is_paced_although_nothing_has_failed() {
        let mut trial = Trial::new(3600, 0);
        trial.sending.live.hold();
        trial.now += HOUR;
        assert!(trial.sending.live.is_old(trial.now) && trial.allowed().is_some());
    }

    #[test]
    fn a_flush_to_the_end_is_when_lines_are_caught_up_with_unless_some_go_by_their_pace() {
        let mut trial = Trial::new(3600, 0);
        trial.sending.live.resume(HOUR);
        trial.allowed();
        let now = trial.now;
        trial.sending.live.flushed(now);
        assert!(trial.sending.live.is_draining() && trial.sending.live.is_old(now), "most of them wait still");
        trial.sending.live.journal.drop_all().unwrap();
        assert_eq!(trial.allowed(), None);
        trial.sending.live.flushed(now);
        assert_eq!((trial.sending.live.is_draining(), trial.sending.live.age(now)), (false, Duration::ZERO));
        trial.now += HOUR;
        assert!(!trial.sending.live.is_old(trial.now), "what comes now goes at once");
    }

    #[test]
    fn refused_lines_rest_until_their_time_is_over_or_others_come_or_the_server_takes_any() {
        let mut trial = Trial::new(2, 0);
        assert!(!trial.rests());
        let rest = trial.rest(false);
        assert!((SECOND / 2..=SECOND).contains(&rest), "{rest:?}");
        trial.now += rest - SECOND / 1000;
        assert!(trial.rests());
        trial.now += SECOND / 1000;
        assert!(!trial.rests());
        let longer = trial.rest(false);
        assert!((2 * SECOND..=4 * SECOND).contains(&longer), "{longer:?}");
        trial.live.append_all(["{}"]);
        assert!(!trial.rests(), "there is another line to compare them with");
        trial.rest(false);
        trial.sending.live.others_taken = true;
        assert!(!trial.rests());
        trial.sending.live.others_taken = false;
        assert!(!trial.rests(), "a rest that is over doesn't begin again");
        let now = trial.now;
        trial.sending.live.flushed(now);
        assert!(trial.rest(false) <= SECOND, "after a success the rests begin anew");
    }

    #[test]
    fn lines_ride_along_unless_something_speaks_against_it() {
        let mut trial = Trial::new(2, 0);
        assert!(trial.may_ride());
        trial.sending.live.left = Some(0);
        assert!(!trial.may_ride(), "none may go");
        trial.sending.live.left = Some(1);
        assert!(trial.may_ride());
        trial.sending.live.lines = Some(50);
        assert!(!trial.may_ride(), "the server takes small requests only");
        trial.sending.live.lines = None;
        trial.rest(false);
        assert!(!trial.may_ride(), "they rest");
        trial.now += HOUR;
        assert!(trial.may_ride());
        let bundle = trial.bundle();
        trial.sending.live.begin_search(bundle, 100);
        assert!(!trial.may_ride(), "they are searched through");
        trial.sending.live.window = None;
        let refused = trial.now;
        trial.sending.live.ride_refused(refused);
        trial.now = refused + NO_RIDE - SECOND;
        assert!(!trial.may_ride());
        trial.now = refused + NO_RIDE;
        assert!(trial.may_ride());
    }

    #[test]
    fn a_smaller_size_of_requests_is_doubled_by_each_success_until_the_flags_allow_no_more() {
        let mut trial = Trial::new(0, 0);
        trial.sending.live.accepted(1024);
        assert_eq!(trial.sending.live.lines, None);
        trial.sending.live.lines = Some(200);
        let sizes = [1, 2, 3].map(|_| {
            trial.sending.live.accepted(1024);
            trial.sending.live.lines
        });
        assert_eq!(sizes, [Some(400), Some(800), None]);
    }

    #[test]
    fn a_search_knows_that_the_server_is_up_when_it_has_taken_others() {
        use crate::plugins::isolation::Then;
        for (others_taken, then) in [(false, Then::Wait), (true, Then::GoOn)] {
            let mut trial = Trial::new(4, 0);
            trial.sending.live.others_taken = others_taken;
            let bundle = trial.bundle();
            assert_eq!(trial.sending.live.begin_search(bundle, 100).failed(0..4, &refusal()), then);
            // The same when one goes on.
            trial.sending.live.others_taken = false;
            let bundle = trial.bundle();
            trial.sending.live.begin_search(bundle, 100);
            trial.sending.live.others_taken = others_taken;
            trial.sending.live.resume_search();
            assert_eq!(trial.sending.live.window.as_mut().unwrap().failed(0..4, &refusal()), then);
        }
    }

    #[test]
    fn a_search_whose_lines_are_gone_is_over() {
        let mut trial = Trial::new(4, 0);
        let bundle = trial.bundle();
        trial.sending.live.begin_search(bundle, 100);
        trial.sending.live.resume_search();
        assert!(trial.sending.live.window.is_some());
        trial.sending.live.journal.drop_all().unwrap();
        trial.sending.live.resume_search();
        assert!(trial.sending.live.window.is_none());
    }

    #[test]
    fn a_flush_follows_unless_all_that_waits_rests() {
        let next = |trial: &mut Trial| match trial.sending.next(trial.now) {
            Next::Flush => None,
            Next::Rest(until) => Some(until.map(|until| until - trial.now)),
        };
        let mut trial = Trial::new(0, 0);
        assert_eq!(next(&mut trial), Some(None), "nothing waits");
        let mut trial = Trial::new(2, 0);
        assert_eq!(next(&mut trial), None);
        let rest = trial.rest(false);
        assert_eq!(next(&mut trial), Some(Some(rest)));
        trial.backlog.append_all(["{}"]);
        assert_eq!(next(&mut trial), None, "the other one's lines don't rest");
        // It is looked at again when the first rest is over.
        trial.rest(true);
        let now = trial.now;
        let rests = [trial.sending.live.rests_until(now).unwrap(), trial.behind().rests_until(now).unwrap()];
        assert_eq!(next(&mut trial), Some(rests.into_iter().min().map(|until| until - now)));
    }

    #[test]
    fn status_lines_have_one_queue() {
        let mut trial = Trial::new(2, 0);
        trial.sending.backlog = None;
        let (outcome, order) = trial.flush(true, |_| Ok(true));
        assert!(outcome.is_ok() && trial.sending.has_taken);
        assert_eq!(order, ["live"]);
    }

    #[test]
    fn new_lines_go_first_and_the_backlog_with_them_and_behind() {
        let mut trial = Trial::new(2, 2);
        let (outcome, order) = trial.flush(true, |_| Ok(false));
        assert!(outcome.is_ok() && !trial.sending.has_taken);
        assert_eq!(order, ["live+backlog", "backlog"]);
        // Only where there is no server, the others need not be tried.
        let (outcome, order) = trial.flush(true, |_| Err(outage()));
        assert!(outcome.is_err_and(|error| error.is_an_outage()));
        assert_eq!(order, ["live+backlog"]);
        for refused in [|| refusal().into(), unreadable] {
            let (outcome, order) =
                trial.flush(true, |queue| if queue.journal.name() == "live" { Err(refused()) } else { Ok(true) });
            assert!(outcome.is_err() && std::mem::take(&mut trial.sending.has_taken));
            assert_eq!(order, ["live+backlog", "backlog"]);
        }
        // The first error counts; an error of the backlog's is one, too.
        let (outcome, _) = trial.flush(true, |queue| match queue.journal.name() {
            "live" => Err(unreadable()),
            _ => Err(outage()),
        });
        assert!(matches!(outcome, Err(FlushError::Journal(_))));
        let (outcome, _) =
            trial.flush(true, |queue| if queue.journal.name() == "live" { Ok(true) } else { Err(outage()) });
        assert!(outcome.is_err() && trial.sending.has_taken);
    }

    #[test]
    fn what_is_taken_of_one_queue_says_to_the_other_that_the_server_is_up() {
        for (live, backlog) in [(true, false), (false, true)] {
            let mut trial = Trial::new(2, 2);
            let mut known = Vec::new();
            let (outcome, _) = trial.flush(true, |queue| {
                known.push(queue.others_taken);
                Ok(if queue.journal.name() == "live" { live } else { backlog })
            });
            assert!(outcome.is_ok() && trial.sending.has_taken);
            assert_eq!(known, [false, live]);
            assert_eq!((trial.sending.live.others_taken, trial.behind().others_taken), (backlog, false));
        }
    }

    #[test]
    fn where_old_lines_go_first_new_ones_wait_until_none_are_left_that_could_go() {
        let all = ["backlog", "live+backlog", "backlog"];
        let mut trial = Trial::new(3600, 2);
        let (outcome, order) = trial.flush(false, |_| Ok(false));
        assert!(outcome.is_ok());
        assert_eq!(order, ["backlog"]);
        trial.now += HOUR;
        assert!(trial.sending.live.is_old(trial.now), "they will not go all at once");
        let (outcome, order) = trial.flush(false, |_| Err(refusal().into()));
        assert!(outcome.is_err());
        assert_eq!(order, ["backlog"]);
        // What can't be read holds up no other line.
        let mut files = [Err(unreadable()), Ok(false), Ok(false)].into_iter();
        let (outcome, order) = trial.flush(false, |_| files.next().unwrap());
        assert!(outcome.is_ok());
        assert_eq!(order, all);
        trial.rest(true);
        assert_eq!(trial.flush(false, |_| Ok(false)).1, all);
        let mut trial = Trial::new(2, 2);
        let sent = |queue: &mut Queue| {
            queue.journal.drop_all().unwrap();
            Ok(true)
        };
        assert_eq!(trial.flush(false, sent).1, all);
        assert_eq!(trial.flush(false, |_| Ok(true)).1, all[1..], "there is no backlog");
    }
}
