//! How much memory what is tried may have at once.
//!
//! What others say costs what it weighs (docs/architecture.md, invariant 11): a multiple of the input's size, and something
//! for what is needed whatever the input is. Each target says which, in a [`Bound`]. libFuzzer's own limits are for all
//! inputs the same, and an input is small beside them.

use allocation_counter::measure;

/// What may be had at once for an input of some weight, in bytes.
#[derive(Clone, Copy)]
pub struct Bound {
    /// For each byte of the input, as large as it is when it is inflated.
    pub each: usize,
    /// Besides.
    pub always: usize,
}

/// Does what is measured: what this thread has allocated and not freed meanwhile must stay within the bound at each moment.
///
/// An allocation that grows counts twice while it grows, as it does where its content has to move. What the work needs of
/// memory has to be allocated in it: what it is given and frees would make room for more.
pub fn within<T>(bound: Bound, weight: usize, what: &str, work: impl FnOnce() -> T) -> T {
    let mut outcome = None;
    let had = usize::try_from(measure(|| outcome = Some(work())).bytes_max).unwrap_or(usize::MAX);
    let most = bound.each * weight + bound.always;
    assert!(had <= most, "{what}: {had} bytes of memory at once for {weight}, and {most} are allowed");
    outcome.expect("it was done")
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    const BOUND: Bound = Bound { each: 1, always: 10 };

    #[test]
    fn what_is_within_the_bound_is_done() {
        assert_eq!(within(BOUND, 90, "it", || black_box(vec![7u8; 100]).len()), 100);
        // One after the other, not at once.
        within(BOUND, 90, "it", || (0..9).for_each(|_| drop(black_box(vec![7u8; 100]))));
    }

    #[test]
    #[should_panic(expected = "it: 101 bytes of memory at once for 90, and 100 are allowed")]
    fn a_byte_more_is_seen() {
        within(BOUND, 90, "it", || drop(black_box(vec![7u8; 101])));
    }
}
