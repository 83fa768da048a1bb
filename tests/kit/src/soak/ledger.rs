//! The books: what was sent, taken, received and set aside, line by line, and what became of the calls.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::numbers::Numbers;
use crate::osqueryd::CallOutcome;

/// The most reasons of failed calls that are kept.
const REASONS: usize = 10;

/// What may become of a line when all goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quality {
    /// The server gets it.
    Sound,
    /// It has no place in any request, and is set aside.
    Faulty,
}

/// The lines of one stream, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    next: u64,
    faulty: Numbers,
    taken: Numbers,
    received: Numbers,
    set_aside: Numbers,
    /// Lines that the server got again.
    duplicates: u64,
    /// Lines that came in and were never sent.
    foreign: u64,
}

impl Ledger {
    /// A new line's number.
    pub(super) fn draw(&mut self, quality: Quality) -> u64 {
        let n = self.next;
        self.next += 1;
        if quality == Quality::Faulty {
            self.faulty.insert(n);
        }
        n
    }

    /// The extension has answered 0.
    pub(super) fn take(&mut self, n: u64) {
        self.taken.insert(n);
    }

    /// The server has it.
    pub(super) fn receive(&mut self, n: u64) {
        if n >= self.next {
            self.foreign += 1;
        } else if !self.received.insert(n) {
            self.duplicates += 1;
        }
    }

    /// It is among the lines set aside.
    pub(super) fn set_aside(&mut self, n: u64) {
        if n < self.next {
            self.set_aside.insert(n);
        } else {
            self.foreign += 1;
        }
    }

    /// Lines that were taken, and that neither the server has nor the extension has set aside.
    pub(super) fn owed(&self) -> u64 {
        self.taken.without(&[&self.received, &self.set_aside]).count()
    }

    /// What became of each line that was taken, when those of these numbers wait on disk.
    pub(super) fn fates(&self, on_disk: &[u64]) -> Fates {
        self.fates_of(self, on_disk)
    }

    /// What became of those that an earlier state of this ledger took.
    pub(super) fn fates_of(&self, earlier: &Ledger, on_disk: &[u64]) -> Fates {
        let mut waiting = Numbers::default();
        // Others were never drawn, and would need memory for their size.
        on_disk.iter().filter(|&&n| n < self.next).for_each(|&n| {
            waiting.insert(n);
        });
        let [taken, not_received, owed] = [&[][..], &[&self.received], &[&self.received, &self.set_aside]]
            .map(|others| earlier.taken.without(others).count());
        let lost = earlier.taken.without(&[&self.received, &self.set_aside, &waiting]);
        Fates {
            received: taken - not_received,
            set_aside: not_received - owed,
            waiting: owed - lost.count(),
            lost,
            foreign: on_disk.iter().filter(|&&n| n >= self.next).count() as u64,
        }
    }

    /// Sound lines that were set aside, and nowhere else.
    pub(super) fn wrongly_set_aside(&self) -> Numbers {
        self.set_aside.without(&[&self.faulty, &self.received])
    }

    /// Faulty lines that the server got all the same.
    pub(super) fn wrongly_received(&self) -> u64 {
        self.received.count() - self.received.without(&[&self.faulty]).count()
    }

    pub(super) fn sent(&self) -> u64 {
        self.next
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.count()
    }

    pub(super) fn received(&self) -> u64 {
        self.received.count()
    }

    /// Lines received or set aside whose call was not answered: a call broken in the middle may have been taken.
    pub(super) fn taken_in_a_broken_call(&self) -> u64 {
        self.received.without(&[&self.taken]).count() + self.set_aside.without(&[&self.taken, &self.received]).count()
    }

    pub(super) fn all_set_aside(&self) -> u64 {
        self.set_aside.count()
    }

    pub(super) fn duplicates(&self) -> u64 {
        self.duplicates
    }

    pub(super) fn foreign(&self) -> u64 {
        self.foreign
    }
}

/// What became of the lines that were taken, each of which is counted once: these four make all of them.
#[derive(Clone, Debug)]
pub(super) struct Fates {
    /// The server has them.
    pub(super) received: u64,
    /// They are among the lines set aside, and the server doesn't have them.
    pub(super) set_aside: u64,
    /// They wait on disk, and are nowhere else.
    pub(super) waiting: u64,
    /// They are nowhere.
    pub(super) lost: Numbers,
    /// Numbers on disk that no line has.
    pub(super) foreign: u64,
}

/// What went on around a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Circumstances {
    /// Nothing that excuses a failure.
    Calm,
    /// The front was killed some seconds ago.
    AfterKill,
    /// The front was killed meanwhile.
    Killed,
    /// osqueryd, in whose name it was made, was ended or killed meanwhile.
    OsquerydGone,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Answered, with this code.
    Answered(i32),
    /// No process listened: the real osqueryd would have ended.
    Refused,
    /// osqueryd had dropped the extension, after a kill in the middle of its own ping.
    Forgotten,
    /// It broke off in the middle, since the front was killed.
    Broken,
    /// It failed while the osqueryd in whose name it was made ended.
    Orphaned,
    /// It broke off for no reason that is known.
    Unexplained,
}

impl Fate {
    /// Judges a call by what its maker saw.
    pub(super) fn of(outcome: &Result<CallOutcome, String>, circumstances: Circumstances) -> Fate {
        match (outcome, circumstances) {
            (Ok(outcome), _) => Fate::Answered(outcome.code),
            (Err(_), Circumstances::OsquerydGone) => Fate::Orphaned,
            (Err(error), _) if error.contains("cannot connect") => Fate::Refused,
            (Err(error), Circumstances::Killed | Circumstances::AfterKill)
                if error.contains("Cannot call registry item") =>
            {
                Fate::Forgotten
            }
            (Err(_), Circumstances::Killed) => Fate::Broken,
            (Err(_), Circumstances::Calm | Circumstances::AfterKill) => Fate::Unexplained,
        }
    }
}

/// How many calls had which fate.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    pub(super) made: u64,
    /// Refused, or a logger call answered by another code than 0.
    pub(super) refused: u64,
    pub(super) forgotten: u64,
    /// Each kill of the front may break those that are under way, and no other.
    pub(super) broken: u64,
    pub(super) orphaned: u64,
    pub(super) front_kills: u64,
    pub(super) unexplained: u64,
    /// Of those that were refused or unexplained.
    pub(super) reasons: Vec<String>,
}

/// Which promise a call falls under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// A logger call: answered 0 whatever happens.
    Zero,
    /// A call that needs the server: an answer, whatever its code.
    Answer,
}

impl Calls {
    /// Counts a call: whether it was answered 0.
    pub(super) fn count(&mut self, promise: Promise, outcome: &Result<CallOutcome, String>, fate: Fate) -> bool {
        self.made += 1;
        let is_refused = match fate {
            Fate::Answered(code) => code != 0 && promise == Promise::Zero,
            Fate::Refused => true,
            _ => false,
        };
        self.refused += u64::from(is_refused);
        self.forgotten += u64::from(fate == Fate::Forgotten);
        self.broken += u64::from(fate == Fate::Broken);
        self.orphaned += u64::from(fate == Fate::Orphaned);
        self.unexplained += u64::from(fate == Fate::Unexplained);
        if (is_refused || fate == Fate::Unexplained) && self.reasons.len() < REASONS {
            self.reasons.push(outcome.as_ref().map_or_else(Clone::clone, |outcome| outcome.message.clone()));
        }
        fate == Fate::Answered(0)
    }
}

/// All of the books.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) results: Mutex<Ledger>,
    pub(super) statuses: Mutex<Ledger>,
    pub(super) distributed: Mutex<Ledger>,
    pub(super) calls: Mutex<Calls>,
    requests: AtomicU64,
    /// What the extension told the server of lines that it dropped.
    pub(super) losses: Mutex<Vec<String>>,
}

impl Books {
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(code: i32) -> Result<CallOutcome, String> {
        Ok(CallOutcome { code, message: "m".to_owned(), rows: Vec::new() })
    }

    fn failure(text: &str) -> Result<CallOutcome, String> {
        Err(text.to_owned())
    }

    #[test]
    fn a_line_that_was_taken_is_received_or_set_aside_or_waits_or_is_lost() {
        let mut ledger = Ledger::default();
        let numbers = [Quality::Sound, Quality::Faulty, Quality::Sound, Quality::Sound].map(|q| ledger.draw(q));
        assert_eq!(numbers, [0, 1, 2, 3]);
        let fates = |ledger: &Ledger, on_disk: &[u64]| {
            let Fates { received, set_aside, waiting, lost, foreign } = ledger.fates(on_disk);
            assert_eq!(received + set_aside + waiting + lost.count(), ledger.taken());
            ((received, set_aside, waiting, foreign), lost.first(9))
        };
        // The last one's call broke: no answer promised anything.
        [0, 1, 2].into_iter().for_each(|n| ledger.take(n));
        assert_eq!(fates(&ledger, &[]), ((0, 0, 0, 0), vec![0, 1, 2]));
        assert_eq!(fates(&ledger, &[2, 1, 2, 3]), ((0, 0, 2, 0), vec![0]));
        ledger.receive(0);
        ledger.set_aside(1);
        ledger.receive(3);
        assert_eq!((ledger.owed(), ledger.taken_in_a_broken_call()), (1, 1));
        // What was received and still lies there is received.
        assert_eq!(fates(&ledger, &[0, 1, 3, u64::MAX]), ((1, 1, 0, 1), vec![2]));
        let earlier = ledger.clone();
        ledger.take(3);
        assert_eq!(ledger.fates_of(&earlier, &[]).lost.count(), 1);
        ledger.receive(2);
        ledger.receive(1);
        assert_eq!(fates(&ledger, &[]), ((4, 0, 0, 0), vec![]));
        assert_eq!((ledger.sent(), ledger.owed()), (4, 0));
    }

    #[test]
    fn what_comes_again_or_from_nowhere_or_against_the_rules_is_told_apart() {
        let mut ledger = Ledger::default();
        let (sound, faulty) = (ledger.draw(Quality::Sound), ledger.draw(Quality::Faulty));
        ledger.receive(faulty);
        ledger.receive(faulty);
        ledger.receive(77);
        ledger.set_aside(sound);
        ledger.set_aside(u64::MAX);
        assert_eq!((ledger.duplicates(), ledger.foreign(), ledger.wrongly_received()), (1, 2, 1));
        assert_eq!(ledger.wrongly_set_aside().first(9), [sound]);
    }

    #[test]
    fn a_failed_call_is_excused_only_by_what_explains_it() {
        use Circumstances::{AfterKill, Calm, Killed, OsquerydGone};
        let connect = failure("Extension socket not available: x (cannot connect: refused)");
        let forgotten = failure("Cannot call registry item: remote_tls");
        let cut = failure("Extension call failed: end of file");
        for (outcome, circumstances, fate) in [
            (outcome(0), Calm, Fate::Answered(0)),
            (outcome(1), Killed, Fate::Answered(1)),
            (connect.clone(), Killed, Fate::Refused),
            (connect, OsquerydGone, Fate::Orphaned),
            (forgotten.clone(), Killed, Fate::Forgotten),
            (forgotten.clone(), AfterKill, Fate::Forgotten),
            (forgotten, Calm, Fate::Unexplained),
            (cut.clone(), Killed, Fate::Broken),
            (cut.clone(), AfterKill, Fate::Unexplained),
            (cut.clone(), OsquerydGone, Fate::Orphaned),
            (cut, Calm, Fate::Unexplained),
        ] {
            assert_eq!(Fate::of(&outcome, circumstances), fate, "{outcome:?} {circumstances:?}");
        }
    }

    #[test]
    fn only_a_logger_call_owes_code_0() {
        let mut calls = Calls::default();
        assert!(calls.count(Promise::Zero, &outcome(0), Fate::Answered(0)));
        assert!(!calls.count(Promise::Answer, &outcome(1), Fate::Answered(1)));
        assert_eq!((calls.made, calls.refused), (2, 0));
        assert!(!calls.count(Promise::Zero, &outcome(1), Fate::Answered(1)));
        assert!(!calls.count(Promise::Answer, &failure("x"), Fate::Refused));
        assert!(!calls.count(Promise::Zero, &failure("y"), Fate::Broken));
        assert!(!calls.count(Promise::Zero, &failure("z"), Fate::Unexplained));
        assert!(!calls.count(Promise::Zero, &failure("o"), Fate::Orphaned));
        assert_eq!((calls.refused, calls.broken, calls.orphaned, calls.unexplained), (2, 1, 1, 1));
        assert_eq!(calls.reasons, ["m", "x", "z"]);
    }
}
