//! Medians and percentiles.

use std::time::Duration;

/// The middle one; of an even number the mean of the two in the middle.
///
/// # Panics
/// When there is none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// How long calls took, the shortest first.
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn new(mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        Self(latencies)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that `mille` of a thousand did not exceed, in microseconds.
    pub(crate) fn per_mille(&self, mille: usize) -> f64 {
        let index = (self.0.len() * mille).div_ceil(1000).max(1) - 1;
        self.0[index].as_secs_f64() * 1e6
    }

    /// The longest, in microseconds.
    pub(crate) fn longest(&self) -> f64 {
        self.per_mille(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let latencies = Latencies::new((1..=200).rev().map(Duration::from_micros).collect());
        let found = [500, 990, 999, 1000].map(|mille| latencies.per_mille(mille).round());
        assert_eq!(found, [100.0, 198.0, 200.0, 200.0]);
        assert_eq!(Latencies::new(vec![Duration::from_micros(5)]).per_mille(500), 5.0);
    }
}
