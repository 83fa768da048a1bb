//! Searches against a model of a server, which takes every line but some, and now and then none.

use std::collections::BTreeSet;

use super::*;

/// A server, and all that it was asked.
struct Model {
    /// Lines that it refuses.
    refused: BTreeSet<usize>,
    refusal: Refusal,
    /// It refuses larger requests.
    largest: usize,
    /// It refuses everything at these requests, counted from 0.
    outage: Range<usize>,
    /// Lines that come in behind the first ones.
    later: usize,
    requests: usize,
    taken: Vec<usize>,
    set_aside: BTreeSet<usize>,
    waits: usize,
    /// Waits in a row, the longest.
    rests: usize,
}

impl Model {
    fn refusing(refused: impl IntoIterator<Item = usize>) -> Self {
        Self {
            refused: refused.into_iter().collect(),
            refusal: Refusal::Content,
            largest: usize::MAX,
            outage: 0..0,
            later: 0,
            requests: 0,
            taken: Vec::new(),
            set_aside: BTreeSet::new(),
            waits: 0,
            rests: 0,
        }
    }

    fn takes(&mut self, lines: &Range<usize>) -> bool {
        let number = self.requests;
        self.requests += 1;
        let is_bad = self.outage.contains(&number) || lines.clone().any(|line| self.refused.contains(&line));
        !is_bad && lines.len() <= self.largest
    }

    /// Goes on until all is done with, or nothing happens any more, or `most` requests are made.
    fn run(&mut self, lines: usize, most: usize) -> Search {
        let mut search = Search::new(lines, lines.max(1));
        let mut idle = 0;
        while self.requests < most && idle < 3 {
            match search.next() {
                Step::Send(range) => {
                    assert!(!range.is_empty() && range.end <= search.len(), "{range:?}");
                    if self.takes(&range) {
                        self.taken.extend(range.clone());
                        search.taken(range);
                        idle = 0;
                    } else if search.refused(range, self.refusal) != Then::GoOn {
                        self.waits += 1;
                        search.waited();
                    }
                }
                Step::More => {
                    // One by one, as on a quiet host.
                    let new = self.later.min(1);
                    self.later -= new;
                    search.grow(new);
                }
                Step::SetAside(line) => assert!(self.set_aside.insert(line)),
                Step::Rest => {
                    self.rests += 1;
                    idle += 1;
                    search.waited();
                }
                Step::Over => break,
            }
        }
        search
    }

    fn each_once(&self, lines: usize) {
        let mut taken = self.taken.clone();
        taken.sort_unstable();
        let healthy: Vec<usize> = (0..lines).filter(|line| !self.refused.contains(line)).collect();
        assert_eq!(taken, healthy, "refused {:?}, outage {:?}", self.refused, self.outage);
    }
}

fn bound(lines: usize, refused: usize) -> usize {
    let log = usize::BITS - (lines.max(1) - 1).leading_zeros();
    (refused + 1) * (2 * log as usize + 10)
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

#[test]
fn a_refused_line_at_any_place_is_found_and_set_aside_within_the_bound() {
    for refusal in [Refusal::Content, Refusal::Size] {
        for lines in [1, 2, 3, 5, 8, 30, 64, 1000, 1024] {
            for place in (0..lines).step_by((lines / 64).max(1)).chain([lines - 1]) {
                let mut model = Model { refusal, later: 4, ..Model::refusing([place]) };
                let search = model.run(lines, 1000);
                model.each_once(search.len());
                assert_eq!(model.set_aside, BTreeSet::from([place]), "{lines} lines, {refusal:?}");
                assert!(model.requests <= bound(lines, 1), "{lines} {place} {refusal:?}: {}", model.requests);
                assert!(model.waits <= 12, "{lines} {place} {refusal:?}: {} waits", model.waits);
            }
        }
    }
}

#[test]
fn lines_behind_are_needed_only_when_the_refused_one_is_among_the_last() {
    for place in (0..26).chain([29]) {
        let mut model = Model::refusing([place]);
        model.run(30, 1000);
        model.each_once(30);
        assert_eq!((model.set_aside.len(), model.rests), (1, 0), "{place}");
    }
}

/// Of two lines the refused one was once its own control, every time: the other one was never sent.
#[test]
fn few_lines_and_no_others_are_enough_to_get_through_what_is_taken() {
    for lines in 2..12 {
        for bad in 0..lines {
            let mut model = Model::refusing([bad]);
            model.run(lines, 200);
            model.each_once(lines);
        }
    }
}

#[test]
fn several_refused_lines_are_all_found_wherever_they_are() {
    for subset in 0..1_usize << 9 {
        let refused = (0..9).filter(|line| subset >> line & 1 == 1);
        let mut model = Model { later: 40, ..Model::refusing(refused) };
        let search = model.run(9, 10_000);
        model.each_once(search.len());
        assert_eq!(model.set_aside, model.refused, "{:?}", model.refused);
        assert!(model.requests <= bound(49, model.refused.len()), "{:?}: {}", model.refused, model.requests);
    }
    let mut numbers = Numbers(11);
    for _ in 0..200 {
        let lines = 1 + numbers.below(600);
        let first = numbers.below(lines);
        // A run of them, and some anywhere.
        let run = first..(first + numbers.below(40)).min(lines);
        let refused = run.chain((0..numbers.below(20)).map(|_| numbers.below(lines)).collect::<Vec<_>>());
        let mut model = Model { later: 400, ..Model::refusing(refused) };
        let search = model.run(lines, 100_000);
        model.each_once(search.len());
        assert_eq!(
            model.set_aside, model.refused,
            "{lines} lines: {} requests, {} waits, {} rests, {} later",
            model.requests, model.waits, model.rests, model.later
        );
        let bound = bound(lines + 400, model.refused.len());
        assert!(model.requests <= bound, "{lines} {:?}: {} > {bound}", model.refused, model.requests);
    }
}

#[test]
fn in_an_outage_nothing_is_set_aside_however_long_it_lasts() {
    for refusal in [Refusal::Content, Refusal::Size] {
        let mut model = Model { refusal, outage: 0..500, later: 50, ..Model::refusing([]) };
        let search = model.run(30, 2000);
        model.each_once(search.len());
        assert!(model.set_aside.is_empty());
        // After the first halving, a wait for each.
        assert!(model.waits >= 480, "{}", model.waits);
        assert!(model.requests <= 500 + 20, "{}", model.requests);
    }
}

#[test]
fn an_outage_at_any_moment_of_a_search_has_no_line_set_aside_that_is_taken_otherwise() {
    for refusal in [Refusal::Content, Refusal::Size] {
        for refused in [vec![], vec![0], vec![10], vec![29], vec![3, 4, 5, 20]] {
            for begin in 0..40 {
                for length in [1, 2, 3, 5, 20, 60] {
                    let outage = begin..begin + length;
                    let mut model = Model { refusal, outage, later: 100, ..Model::refusing(refused.clone()) };
                    let search = model.run(30, 2000);
                    model.each_once(search.len());
                    assert_eq!(model.set_aside, model.refused, "outage {:?}, {refusal:?}", model.outage);
                }
            }
        }
    }
}

#[test]
fn when_every_line_is_refused_none_is_set_aside() {
    for lines in [1, 2, 5, 30] {
        let mut model = Model::refusing(0..lines);
        model.run(lines, 3000);
        assert!(model.set_aside.is_empty() && model.taken.is_empty());
        assert!(model.waits >= 2900, "no more than a request at once: {}", model.waits);
    }
}

#[test]
fn a_server_that_takes_small_requests_gets_them_without_any_wait() {
    let mut model = Model { refusal: Refusal::Size, largest: 8, ..Model::refusing([]) };
    model.run(64, 1000);
    model.each_once(64);
    assert_eq!((model.waits, model.set_aside.len()), (0, 0));
    assert!(model.requests <= 2 * 64 / 8 + 4, "{}", model.requests);
    assert_eq!(model.taken, (0..64).collect::<Vec<usize>>(), "in order");
}

#[test]
fn what_comes_in_the_end_after_an_outage_comes_in_order_mostly() {
    let mut model = Model { outage: 0..2, ..Model::refusing([]) };
    model.run(100, 1000);
    assert_eq!(model.taken, (0..100).collect::<Vec<usize>>());
    assert!(model.requests <= 2 + 4, "{}", model.requests);
}

#[test]
fn a_suspect_that_is_taken_after_all_clears_the_others() {
    let mut search = Search::new(8, 8);
    search.taken(7..8);
    for suspect in [0, 1] {
        search.refused(suspect..suspect + 1, Refusal::Content);
    }
    assert!(search.has_suspects());
    search.taken(0..1);
    assert!(!search.has_suspects());
    assert_eq!(search.next(), Step::Send(1..4), "as if it had never been refused");
}

#[test]
fn what_is_done_with_at_the_front_can_be_forgotten() {
    let mut search = Search::new(8, 8);
    assert_eq!(search.refused(0..8, Refusal::Content), Then::Wait);
    search.waited();
    assert_eq!(search.next(), Step::Send(0..4));
    search.taken(0..4);
    assert_eq!(search.done(), 4);
    search.refused(4..8, Refusal::Content);
    search.forget(4);
    assert_eq!((search.len(), search.done()), (4, 0));
    assert_eq!(search.next(), Step::Send(0..2));
}
