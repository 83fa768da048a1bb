//! The verdict: what a run must not have shown.

use super::journals::Waiting;
use super::ledger::{Books, Calls, Ledger};
use super::lock;
use super::processes::Usage;
use super::report::mib;
use super::schedule::Part;

/// Fewer quiet moments in a part of the run prove nothing.
const LEAST_MOMENTS: usize = 3;

/// Bytes that a journal may have beside those that wait in it: a segment stays until all of it is done with, which has
/// 4 MiB at most when a record is begun, and no record of the load has more than one.
const FLOOR: u64 = 5 << 20;

/// Bytes of the lines set aside: two files of 8 MiB.
const MOST_SET_ASIDE: u64 = 16 << 20;

/// Threads that call: each kill of the front breaks one call of each at most.
const CALLERS: u64 = 6;

/// Line numbers that a problem names.
const NAMED: usize = 5;

/// What was measured while nothing happened but, perhaps, a backlog's delivery.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QuietMoment {
    pub(super) part: Part,
    pub(super) front: Usage,
    pub(super) worker: Usage,
}

/// What is left when the extension has ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    pub(super) waiting: Waiting,
    /// How many journals there are, and bytes of their files.
    pub(super) journals: (usize, u64),
    /// Bytes of the lines set aside.
    pub(super) set_aside: u64,
}

/// A figure that must not grow.
struct Figure {
    name: &'static str,
    of: fn(&QuietMoment) -> u64,
    /// By how much the last part may exceed an earlier one: a percentage, and a number beside.
    percent: u64,
    more: u64,
}

/// Memory is in KiB. Allocators keep what bursts have taken, which is no leak; the bounds are what a leak of some
/// dozens of bytes a line would exceed in half an hour.
const FIGURES: [Figure; 6] = [
    Figure { name: "PSS of the front (KiB)", of: |moment| moment.front.pss, percent: 10, more: 1024 },
    Figure { name: "PSS of the worker (KiB)", of: |moment| moment.worker.pss, percent: 10, more: 2048 },
    Figure { name: "threads of the front", of: |moment| moment.front.threads, percent: 0, more: 1 },
    Figure { name: "threads of the worker", of: |moment| moment.worker.threads, percent: 0, more: 1 },
    Figure { name: "files of the front", of: |moment| moment.front.descriptors, percent: 0, more: 4 },
    Figure { name: "files of the worker", of: |moment| moment.worker.descriptors, percent: 0, more: 4 },
];

/// A figure in the parts of the run in which processes were left alone: the largest value of the earlier ones, since
/// buffers and caches grow to their size for some minutes, and the median of the last one.
struct Trend {
    figure: &'static Figure,
    first: u64,
    third: u64,
    last: u64,
}

impl Trend {
    fn is_growth(&self) -> bool {
        let most = |before: u64| before + before * self.figure.percent / 100 + self.figure.more;
        self.last > most(self.first) || self.last > most(self.third)
    }

    fn describe(&self) -> String {
        let Trend { figure, first, third, last } = self;
        format!("{}: up to {first} in the first quarter, {third} in the third; {last} in the last", figure.name)
    }
}

/// The trends, when there are moments enough to tell.
fn trends(moments: &[QuietMoment]) -> Option<Vec<Trend>> {
    let parts = [Part::First, Part::Third, Part::Last].map(|part| {
        let moments: Vec<&QuietMoment> = moments.iter().filter(|moment| moment.part == part).collect();
        moments
    });
    if parts.iter().any(|moments| moments.len() < LEAST_MOMENTS) {
        return None;
    }
    let trend = |figure: &'static Figure| {
        let [first, third, last] = parts.each_ref().map(|moments| {
            let mut values: Vec<u64> = moments.iter().map(|moment| (figure.of)(moment)).collect();
            values.sort_unstable();
            values
        });
        let largest = |values: &[u64]| values.last().copied().unwrap_or(0);
        Trend { figure, first: largest(&first), third: largest(&third), last: last[last.len() / 2] }
    };
    Some(FIGURES.iter().map(trend).collect())
}

/// The trends for a reader.
pub(super) fn describe_trends(moments: &[QuietMoment]) -> Vec<String> {
    match trends(moments) {
        Some(trends) => trends.iter().map(Trend::describe).collect(),
        None => vec![format!("{} quiet moments: too few to compare memory, threads and files", moments.len())],
    }
}

/// All that speaks against the extension. Nothing does when the run was fine.
pub(super) fn problems(books: &Books, ending: &Ending, moments: &[QuietMoment]) -> Vec<String> {
    let mut problems = Vec::new();
    let ledgers = [&books.results, &books.statuses, &books.distributed];
    let names = ["result", "status", "distributed result"];
    for ((name, ledger), on_disk) in names.into_iter().zip(ledgers).zip(&ending.waiting.numbers) {
        problems.extend(of_lines(name, &lock(ledger), on_disk));
    }
    problems.extend(of_calls(&lock(&books.calls)));
    // The soak stays within the limits. A line that is counted as dropped is not lost without a word, but lost.
    let losses = lock(&books.losses);
    problems.extend(losses.iter().chain(&ending.waiting.losses).map(|loss| format!("the extension says: {loss}")));
    problems.extend(of_memory(moments));
    problems.extend(of_files(ending));
    problems
}

fn of_lines(name: &str, ledger: &Ledger, on_disk: &[u64]) -> Vec<String> {
    let mut problems = Vec::new();
    let fates = ledger.fates(on_disk);
    if fates.lost.count() > 0 {
        let some = fates.lost.first(NAMED);
        problems.push(format!("{} {name} lines are lost, of {}: {some:?}", fates.lost.count(), ledger.taken()));
    }
    let aside = ledger.wrongly_set_aside();
    if aside.count() > 0 {
        let some = aside.first(NAMED);
        problems.push(format!("{} {name} lines were set aside that nothing was wrong with: {some:?}", aside.count()));
    }
    for (count, what) in [
        (ledger.wrongly_received(), "have no place in a request, and were sent"),
        (ledger.foreign() + fates.foreign, "came from nowhere"),
    ] {
        if count > 0 {
            problems.push(format!("{count} {name} lines {what}"));
        }
    }
    if ledger.received() == 0 {
        problems.push(format!("no {name} line was received"));
    }
    problems
}

fn of_calls(calls: &Calls) -> Vec<String> {
    let Calls { refused, unexplained, broken, front_kills, .. } = calls;
    let mut problems = Vec::new();
    if refused + unexplained > 0 {
        problems.push(format!(
            "{refused} calls were refused, {unexplained} broke off without a kill of the front: {:?}",
            calls.reasons
        ));
    }
    if *broken > CALLERS * front_kills {
        problems
            .push(format!("{broken} calls broke off in {front_kills} kills of the front: more than were under way"));
    }
    problems
}

fn of_memory(moments: &[QuietMoment]) -> Vec<String> {
    let grown = trends(moments).unwrap_or_default().into_iter().filter(Trend::is_growth);
    grown.map(|trend| format!("growth: {}", trend.describe())).collect()
}

fn of_files(ending: &Ending) -> Vec<String> {
    let mut problems = Vec::new();
    let ((journals, bytes), waiting) = (ending.journals, ending.waiting.bytes);
    if bytes > waiting + FLOOR * journals as u64 {
        let [bytes, waiting] = [bytes, waiting].map(mib);
        problems.push(format!("{journals} journals have {bytes} MiB, of which {waiting} MiB wait: too much stays"));
    }
    if ending.set_aside > MOST_SET_ASIDE {
        problems.push(format!("{} MiB of lines set aside are more than are to be kept", mib(ending.set_aside)));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::ledger::Quality;

    /// Three moments a part.
    fn moments(of: impl Fn(usize) -> QuietMoment) -> Vec<QuietMoment> {
        let parts = [Part::First, Part::Disturbed, Part::Third, Part::Last];
        (0..12).map(|index| QuietMoment { part: parts[index / 3], ..of(index) }).collect()
    }

    fn usage(pss: u64) -> Usage {
        Usage { rss: 2 * pss, pss, threads: 10, descriptors: 20 }
    }

    /// Books of a run in which all went well.
    fn fine() -> Books {
        let books = Books::default();
        for ledger in [&books.results, &books.statuses, &books.distributed] {
            let mut ledger = lock(ledger);
            let n = ledger.draw(Quality::Sound);
            ledger.take(n);
            ledger.receive(n);
        }
        books
    }

    fn judged(books: &Books, moments: &[QuietMoment]) -> String {
        problems(books, &Ending::default(), moments).join("\n")
    }

    fn flat() -> Vec<QuietMoment> {
        moments(|_| QuietMoment { front: usage(3000), worker: usage(9000), ..QuietMoment::default() })
    }

    #[test]
    fn nothing_speaks_against_a_run_in_which_all_went_well() {
        assert_eq!(judged(&fine(), &flat()), "");
        assert_eq!(describe_trends(&flat()).len(), FIGURES.len());
    }

    #[test]
    fn a_lost_line_is_named_in_each_stream() {
        for (index, name) in ["result", "status", "distributed result"].into_iter().enumerate() {
            let books = fine();
            let ledger = [&books.results, &books.statuses, &books.distributed][index];
            let n = lock(ledger).draw(Quality::Sound);
            lock(ledger).take(n);
            assert_eq!(judged(&books, &flat()), format!("1 {name} lines are lost, of 2: [1]"));
        }
    }

    #[test]
    fn a_line_that_waits_on_disk_is_not_lost_and_one_from_nowhere_is_told() {
        let books = fine();
        let [waits, lost] = [Quality::Sound, Quality::Faulty].map(|quality| lock(&books.results).draw(quality));
        [waits, lost].into_iter().for_each(|n| lock(&books.results).take(n));
        let told = |numbers: [Vec<u64>; 3]| {
            let waiting = Waiting { numbers, ..Waiting::default() };
            problems(&books, &Ending { waiting, ..Ending::default() }, &flat()).join("\n")
        };
        assert_eq!(told([vec![waits, lost, waits], vec![], vec![]]), "");
        assert_eq!(told([vec![waits], vec![], vec![]]), format!("1 result lines are lost, of 3: [{lost}]"));
        // It is there, but among others' lines.
        assert!(told([vec![waits], vec![lost], vec![]]).contains("1 result lines are lost"));
        assert_eq!(told([vec![waits, lost], vec![], vec![7]]), "1 distributed result lines came from nowhere");
    }

    #[test]
    fn other_wrongs_of_lines_and_calls_are_told() {
        let books = fine();
        let n = lock(&books.results).draw(Quality::Sound);
        lock(&books.results).set_aside(n);
        lock(&books.results).receive(99);
        lock(&books.calls).refused = 1;
        lock(&books.calls).broken = 13;
        lock(&books.calls).front_kills = 2;
        lock(&books.losses).push("3 lines of the results journal dropped so far".to_owned());
        let told = judged(&books, &flat());
        for problem in [
            "1 result lines were set aside",
            "came from nowhere",
            "1 calls were refused",
            "13 calls broke off in 2 kills",
            "3 lines of the results",
        ] {
            assert!(told.contains(problem), "{problem} is not in {told}");
        }
        let silent = judged(&Books::default(), &flat());
        assert!(silent.contains("no result line was received"), "{silent}");
    }

    #[test]
    fn growth_is_seen_and_bursts_are_not_growth() {
        let worker = |of: &dyn Fn(usize) -> Usage| {
            let moments = moments(|index| QuietMoment { worker: of(index), ..QuietMoment::default() });
            judged(&fine(), &moments)
        };
        assert_eq!(
            worker(&|index| usage(9000 + 500 * index as u64)),
            "growth: PSS of the worker (KiB): up to 10000 in the first quarter, 13000 in the third; 14000 in the last"
        );
        // The third quarter's processes are younger than the last one's, and no larger than the first one's.
        assert_eq!(
            worker(&|index| usage(if (6..9).contains(&index) { 5000 } else { 9000 })),
            "growth: PSS of the worker (KiB): up to 9000 in the first quarter, 5000 in the third; 9000 in the last"
        );
        assert_eq!(worker(&|index| usage(if index == 10 { 90_000 } else { 9000 })), "");
        assert_eq!(worker(&|index| usage(if index == 4 { 90_000 } else { 9000 })), "");
        assert_eq!(
            worker(&|index| Usage { threads: if index > 8 { 14 } else { 10 }, ..usage(1) }),
            "growth: threads of the worker: up to 10 in the first quarter, 10 in the third; 14 in the last"
        );
        assert!(describe_trends(&flat()[..11])[0].contains("too few"));
    }

    #[test]
    fn a_journal_may_keep_a_segment_beside_what_waits_and_lines_set_aside_their_two_files() {
        let judged = |journals: (usize, u64), waiting: u64, set_aside: u64| {
            let waiting = Waiting { bytes: waiting << 20, ..Waiting::default() };
            problems(&fine(), &Ending { waiting, journals, set_aside: set_aside << 20 }, &[]).join("\n")
        };
        assert_eq!(judged((2, 10 << 20), 0, 16), "");
        assert_eq!(judged((2, 50 << 20), 40, 16), "");
        let told = "2 journals have 50.0 MiB, of which 39.0 MiB wait: too much stays";
        assert_eq!(judged((2, 50 << 20), 39, 0), told);
        assert_eq!(judged((0, 0), 0, 17), "17.0 MiB of lines set aside are more than are to be kept");
    }

    #[test]
    fn what_the_extension_drops_is_told_also_when_the_server_has_not_heard_of_it() {
        let losses = vec!["3 lines of the results journal dropped so far".to_owned()];
        let ending = Ending { waiting: Waiting { losses, ..Waiting::default() }, ..Ending::default() };
        let told = problems(&fine(), &ending, &flat());
        assert_eq!(told, ["the extension says: 3 lines of the results journal dropped so far"]);
    }
}
