//! Sets of line numbers: a bit a number, since a run of hours has millions of them.

/// A set of numbers that begin at 0 and are dense.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    words: Vec<u64>,
    count: u64,
}

impl Numbers {
    /// Adds a number: whether it was not there before. Memory grows with the largest one.
    pub(crate) fn insert(&mut self, n: u64) -> bool {
        let (word, bit) = place(n);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let added = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(added);
        added
    }

    pub(crate) fn contains(&self, n: u64) -> bool {
        let (word, bit) = place(n);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Those that are in none of the others.
    pub(crate) fn without(&self, others: &[&Numbers]) -> Numbers {
        let rest = |(index, word): (usize, &u64)| {
            let taken = others.iter().fold(0, |taken, other| taken | other.words.get(index).copied().unwrap_or(0));
            word & !taken
        };
        let words: Vec<u64> = self.words.iter().enumerate().map(rest).collect();
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Numbers { words, count }
    }

    /// The smallest of them.
    pub(crate) fn first(&self, most: usize) -> Vec<u64> {
        (0..self.words.len() as u64 * 64).filter(|&n| self.contains(n)).take(most).collect()
    }
}

fn place(n: u64) -> (usize, u64) {
    ((n / 64) as usize, 1 << (n % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(all: &[u64]) -> Numbers {
        let mut numbers = Numbers::default();
        for &n in all {
            assert!(numbers.insert(n));
        }
        numbers
    }

    #[test]
    fn a_number_is_counted_once() {
        let mut set = numbers(&[0, 63, 64, 1000]);
        assert_eq!(set.count(), 4);
        assert!(!set.insert(64) && set.insert(65));
        assert_eq!(set.count(), 5);
        assert!(set.contains(1000) && !set.contains(999) && !set.contains(1_000_000));
    }

    #[test]
    fn what_others_have_is_left_out_however_long_they_are() {
        let rest = numbers(&[1, 2, 70, 500]).without(&[&numbers(&[2]), &numbers(&[70, 9000])]);
        assert_eq!((rest.count(), rest.first(10)), (2, vec![1, 500]));
        assert_eq!(rest.first(1), [1]);
    }
}
