//! Large inputs, said in few bytes: a head, a piece over and over, and a tail.
//!
//! A fuzzer's inputs are a few thousand bytes, in which nothing is seen of what a large one costs. This form is there in
//! each target that reads what can be large: [`MARK`], a byte that the target gives a meaning, the number of repetitions
//! in two more, and the three parts with a [`SEPARATOR`] between them.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// An input of this form begins with it. No text does, and no message of Thrift's.
pub const MARK: u8 = 0xff;

/// Between the parts. It is in no text.
pub const SEPARATOR: u8 = 0xfe;

/// How many repetitions one of the number stands for: the smallest piece is to make something large, too.
const EACH: usize = 16;

/// About how much one member of a compressed text holds.
const MEMBER: usize = 8 << 10;

/// How large an input is made that is `bytes` large where the seeds are run. A fuzzer counts each branch and looks at each
/// comparison, and would try one such input in the time of a thousand others.
#[must_use]
pub const fn scaled(bytes: usize) -> usize {
    if cfg!(fuzzing) { bytes / 16 } else { bytes }
}

/// A large input.
pub struct Inflated<'a> {
    /// What the target makes of it.
    pub form: u8,
    /// What comes first.
    pub head: &'a [u8],
    /// What is repeated.
    pub piece: &'a [u8],
    /// How often.
    pub times: usize,
    /// What comes last.
    pub tail: &'a [u8],
}

impl<'a> Inflated<'a> {
    /// `None` for an input of any other form. The whole is not much larger than `most`, whatever is said.
    #[must_use]
    pub fn of(input: &'a [u8], most: usize) -> Option<Self> {
        let (&[MARK, form, high, low], rest) = input.split_first_chunk()? else { return None };
        let mut parts = rest.splitn(3, |&byte| byte == SEPARATOR);
        let mut part = || parts.next().unwrap_or_default();
        let (head, piece, tail) = (part(), part(), part());
        let times = EACH * usize::from(u16::from_be_bytes([high, low]));
        Some(Self { form, head, piece, times: times.min(most / piece.len().max(1)), tail })
    }

    /// The whole.
    #[must_use]
    pub fn whole(&self) -> Vec<u8> {
        [self.head, &self.piece.repeat(self.times), self.tail].concat()
    }

    /// The whole, compressed with gzip: of many members, so that only a little has to be compressed.
    #[must_use]
    pub fn packed(&self) -> Vec<u8> {
        let at_once = (MEMBER / self.piece.len().max(1)).clamp(1, self.times.max(1));
        let (members, rest) = (self.times / at_once, self.times % at_once);
        let repeated = packed(&self.piece.repeat(at_once)).repeat(members);
        [packed(self.head), repeated, packed(&self.piece.repeat(rest)), packed(self.tail)].concat()
    }
}

fn packed(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).expect("a buffer takes everything");
    encoder.finish().expect("a buffer takes everything")
}

/// An input of this form, for the seeds.
#[must_use]
pub fn input(form: u8, number: u16, head: &[u8], piece: &[u8], tail: &[u8]) -> Vec<u8> {
    [&[MARK, form][..], &number.to_be_bytes(), head, &[SEPARATOR], piece, &[SEPARATOR], tail].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::MultiGzDecoder;

    use super::*;

    #[test]
    fn packed_or_not_it_is_the_same() {
        for (number, piece) in [(0, "a"), (1, ""), (2, "ab"), (1000, "abc"), (9000, "0123456789")] {
            let input = input(7, number, b"[", piece.as_bytes(), b"]");
            let inflated = Inflated::of(&input, 100_000).unwrap();
            let (mut whole, least) = (Vec::new(), 100_000.min(16 * usize::from(number) * piece.len()));
            MultiGzDecoder::new(&*inflated.packed()).read_to_end(&mut whole).unwrap();
            assert!(whole == inflated.whole() && whole.len() == least + 2, "{number}: {}", whole.len());
        }
    }
}
