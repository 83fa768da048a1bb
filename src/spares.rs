//! Buffers that are used again by whichever thread needs one.

use crate::lock::Mutex;

/// The most buffers that are kept.
const MOST: usize = 8;

/// The largest buffer that is kept, in bytes of capacity.
const LARGEST: usize = 2 << 20;

/// Buffers that are not in use at the moment.
///
/// The one that was used last is taken first. Were the buffers the threads' own, each of a dozen threads that take
/// turns would have one that has grown, in an allocator's arena of its own that isn't given back.
#[derive(Debug, Default)]
pub struct Spares(Mutex<Vec<Vec<u8>>>);

impl Spares {
    /// A buffer with any contents.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_default()
    }

    /// Gives a buffer back. It is dropped when it is too large or too many are there.
    pub fn give(&self, buffer: Vec<u8>) {
        let mut spares = self.0.lock();
        if spares.len() < MOST && buffer.capacity() <= LARGEST {
            spares.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_used_last_is_used_next_and_no_large_one_is_kept() {
        let spares = Spares::default();
        spares.give(vec![1]);
        spares.give(vec![2]);
        spares.give(Vec::with_capacity(2 * LARGEST));
        assert_eq!(spares.take(), [2]);
        assert_eq!(spares.take(), [1]);
        assert!(spares.take().capacity() == 0);
        (0..2 * MOST).for_each(|_| spares.give(vec![3]));
        assert_eq!(spares.0.lock().len(), MOST);
    }
}
