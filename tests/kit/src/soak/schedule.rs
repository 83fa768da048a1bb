//! What happens when: phases drawn from shuffled decks, so that the order is random and nothing is left out.
//!
//! Each phase has a behaviour of the server, a pace of the load and, in the second quarter of the run, a disturbance
//! of the processes. In the others processes are left alone, and their memory can be compared: that of the first ones
//! with that of their successors, and that of these with itself, since they live through the third and the last
//! quarter. A short run has nothing to compare, and is disturbed throughout.

use std::time::Duration;

use fastrand::Rng;

/// Shorter runs have no parts.
const LEAST_LENGTH: Duration = Duration::from_secs(240);

/// The number of phases, and of units that they last, after which there is a quiet moment.
const PHASES_BETWEEN_QUIET: u32 = 3;
const UNITS_BETWEEN_QUIET: u32 = 4;

/// Behaviours of the server, in the words of [`crate::server::Misbehaviour`].
const FAULTS: [&str; 21] = [
    "log=http:500",
    "log=http:413",
    "any=retry-after:3",
    "any=html:502",
    "log=error:200",
    "log=invalid:401",
    "log=cut",
    "log=lost",
    "log=drop",
    "log=drop-early",
    "log=trickle",
    "log=close",
    "any=delay:1",
    "any=drop",
    "any=hang",
    "any=http10",
    "any=gzip",
    "config=html:200",
    "write=http:500",
    "write=hang",
    "enroll=http:500",
];

/// A part of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Part {
    /// The first quarter.
    First,
    /// The second one, or all of a short run: processes are killed and restarted.
    #[default]
    Disturbed,
    /// The third quarter.
    Third,
    /// The last quarter, and what comes behind it.
    Last,
}

/// How the server is in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// As it should be.
    Healthy,
    /// It misbehaves.
    Fault(&'static str),
    /// It can't be reached.
    Outage,
    /// It forgets its nodes, once, and is healthy then.
    Forgetful,
}

/// How fast lines come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// None at all.
    Off,
    /// Some dozens a second.
    Moderate,
    /// A hundred at once, then none for some seconds.
    Bursts,
}

/// What happens to processes at the beginning of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// The extension's first process, the front, is killed so often.
    KillFront(u32),
    /// The extension's worker is killed so often.
    KillWorker(u32),
    /// SIGHUP: a new worker takes over.
    Renew,
    /// osqueryd's own worker is killed, and started again after this time, in milliseconds.
    KillOsquerydWorker(u64),
    /// All of osqueryd ends cleanly, and is started again after this time, in milliseconds.
    RestartOsqueryd(u64),
}

/// A phase.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    /// Load under these conditions.
    Load { mood: Mood, pace: Pace, disturbance: Option<Disturbance>, length: Duration },
    /// No load and no fault, until nothing waits: what is measured then can be compared.
    Quiet,
}

/// Draws the phases of a run.
pub(super) struct Schedule {
    random: Rng,
    length: Duration,
    /// The mean length of a phase.
    unit: Duration,
    moods: Vec<Mood>,
    disturbances: Vec<Disturbance>,
    /// Phases since the last quiet moment, and how long they are.
    since_quiet: (u32, Duration),
}

impl Schedule {
    /// For a run of this length.
    pub(super) fn new(seed: u64, length: Duration) -> Schedule {
        let unit = (length / 90).clamp(Duration::from_millis(500), Duration::from_secs(20));
        let random = Rng::with_seed(seed);
        Schedule { random, length, unit, moods: Vec::new(), disturbances: Vec::new(), since_quiet: (0, Duration::ZERO) }
    }

    /// The part of the run that this moment, counted from its beginning, is in.
    pub(super) fn part(&self, elapsed: Duration) -> Part {
        let quarter = self.length / 4;
        if self.length < LEAST_LENGTH {
            Part::Disturbed
        } else if elapsed < quarter {
            Part::First
        } else if elapsed < quarter * 2 {
            Part::Disturbed
        } else if elapsed < quarter * 3 {
            Part::Third
        } else {
            Part::Last
        }
    }

    /// The mean length of a phase.
    pub(super) fn unit(&self) -> Duration {
        self.unit
    }

    /// The next phase of a run that has lasted for this time.
    pub(super) fn next(&mut self, elapsed: Duration) -> Phase {
        let (phases, lasted) = self.since_quiet;
        if phases == PHASES_BETWEEN_QUIET || lasted >= self.unit * UNITS_BETWEEN_QUIET {
            self.since_quiet = (0, Duration::ZERO);
            return Phase::Quiet;
        }
        let mood = self.mood();
        let disturbance = (self.part(elapsed) == Part::Disturbed).then(|| self.disturbance());
        let pace = if self.random.u32(..3) == 0 { Pace::Bursts } else { Pace::Moderate };
        let most = if mood == Mood::Outage { 6.0 } else { 1.5 };
        let length = self.unit.mul_f64(0.5 + self.random.f64() * (most - 0.5));
        self.since_quiet = (phases + 1, lasted + length);
        Phase::Load { mood, pace, disturbance, length }
    }

    fn mood(&mut self) -> Mood {
        if self.moods.is_empty() {
            self.moods.extend(FAULTS.map(Mood::Fault));
            self.moods.extend([Mood::Healthy, Mood::Outage, Mood::Forgetful].into_iter().flat_map(|mood| [mood; 3]));
            self.random.shuffle(&mut self.moods);
        }
        self.moods.pop().unwrap_or(Mood::Healthy)
    }

    fn disturbance(&mut self) -> Disturbance {
        if self.disturbances.is_empty() {
            let kills = self.random.u32(1..=5);
            let mut pause = || self.random.u64(..2000);
            self.disturbances = vec![
                Disturbance::KillFront(1),
                Disturbance::KillFront(2),
                Disturbance::KillWorker(1),
                Disturbance::KillWorker(kills),
                Disturbance::Renew,
                Disturbance::KillOsquerydWorker(pause()),
                Disturbance::RestartOsqueryd(pause()),
            ];
            self.random.shuffle(&mut self.disturbances);
        }
        self.disturbances.pop().unwrap_or(Disturbance::Renew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Misbehaviour;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Phases that are drawn at this minute of an hour's run.
    fn phases(seed: u64, minute: u64, count: usize) -> Vec<Phase> {
        let mut schedule = Schedule::new(seed, HOUR);
        std::iter::repeat_with(|| schedule.next(Duration::from_secs(minute * 60))).take(count).collect()
    }

    fn moods(phases: &[Phase]) -> Vec<Mood> {
        phases
            .iter()
            .filter_map(|phase| if let Phase::Load { mood, .. } = phase { Some(*mood) } else { None })
            .collect()
    }

    fn disturbances(phases: &[Phase]) -> Vec<Disturbance> {
        let of = |phase: &Phase| if let Phase::Load { disturbance, .. } = phase { *disturbance } else { None };
        phases.iter().filter_map(of).collect()
    }

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(phases(7, 20, 100), phases(7, 20, 100));
        assert_ne!(phases(7, 20, 100), phases(8, 20, 100));
    }

    #[test]
    fn every_fault_is_one_that_the_server_knows_and_has_its_turn() {
        let drawn = moods(&phases(1, 0, 40));
        for fault in FAULTS {
            assert!(fault.parse::<Misbehaviour>().is_ok(), "{fault}");
            assert!(drawn.contains(&Mood::Fault(fault)), "{fault} is not among {drawn:?}");
        }
        assert!([Mood::Healthy, Mood::Outage, Mood::Forgetful].iter().all(|mood| drawn.contains(mood)), "{drawn:?}");
    }

    #[test]
    fn processes_are_disturbed_in_every_way_but_only_in_the_second_quarter() {
        for undisturbed in [0, 14, 30, 44, 45, 61] {
            assert_eq!(disturbances(&phases(1, undisturbed, 40)), []);
        }
        let drawn = disturbances(&phases(1, 20, 9));
        assert_eq!(drawn.len(), 7, "{drawn:?}");
        assert!(drawn.iter().any(|one| matches!(one, Disturbance::KillFront(_))), "{drawn:?}");
        assert!(drawn.contains(&Disturbance::Renew), "{drawn:?}");
        assert!(drawn.iter().any(|one| matches!(one, Disturbance::KillWorker(2..))), "{drawn:?}");
        assert!(drawn.iter().any(|one| matches!(one, Disturbance::KillOsquerydWorker(_))), "{drawn:?}");
        assert!(drawn.iter().any(|one| matches!(one, Disturbance::RestartOsqueryd(_))), "{drawn:?}");
    }

    #[test]
    fn a_run_has_four_parts_and_a_short_one_is_disturbed_throughout() {
        let part = |minutes: u64, minute: u64| {
            Schedule::new(1, Duration::from_secs(minutes * 60)).part(Duration::from_secs(minute * 60))
        };
        let parts = [0, 15, 30, 45, 99].map(|minute| part(60, minute));
        assert_eq!(parts, [Part::First, Part::Disturbed, Part::Third, Part::Last, Part::Last]);
        assert_eq!([0, 1, 2].map(|minute| part(3, minute)), [Part::Disturbed; 3]);
    }

    /// Whatever is drawn, and however long quiet moments last.
    #[test]
    fn half_an_hour_has_quiet_moments_enough_in_each_part_to_compare() {
        const QUIET: Duration = Duration::from_secs(35);
        for (minutes, seed) in (0..200).flat_map(|seed| [(30, seed), (31, seed), (60, seed), (600, seed)]) {
            let mut schedule = Schedule::new(seed, Duration::from_secs(minutes * 60));
            let (mut elapsed, mut moments) = (Duration::ZERO, Vec::new());
            while elapsed < schedule.length {
                match schedule.next(elapsed) {
                    Phase::Load { length, .. } => elapsed += length,
                    Phase::Quiet => {
                        elapsed += QUIET;
                        moments.push(schedule.part(elapsed));
                    }
                }
            }
            for part in [Part::First, Part::Third, Part::Last] {
                let found = moments.iter().filter(|moment| **moment == part).count();
                assert!(found >= 3, "{found} in {part:?} of {minutes} minutes, seed {seed}");
            }
        }
    }

    #[test]
    fn quiet_moments_come_regularly_and_phases_end() {
        let drawn = phases(3, 20, 400);
        let unit = Schedule::new(3, HOUR).unit();
        for between in drawn.split(|phase| *phase == Phase::Quiet) {
            assert!(between.len() <= 3, "{between:?}");
            let mut before = Duration::ZERO;
            for phase in between {
                let Phase::Load { mood, length, .. } = *phase else { continue };
                let most = if mood == Mood::Outage { 6 } else { 2 };
                assert!(length >= unit / 2 && length <= unit * most, "{mood:?} {length:?}");
                assert!(before < unit * 4, "{between:?}");
                before += length;
            }
        }
    }
}
