//! The fuzz targets: what is tried with arbitrary input, and what must hold whatever the input is.
//!
//! Each target is a function of bytes, so that the seeds can be run through it without a fuzzer, too.

pub mod answers;
pub mod certificates;
pub mod der;
pub mod inflated;
pub mod memory;
pub mod settings;
pub mod thrift;
pub mod wire;

use arbitrary::{Arbitrary, Unstructured};

/// The values that these bytes make, up to eight: `Vec`'s own way makes one on average.
fn many<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Vec<T> {
    let mut bytes = Unstructured::new(bytes);
    let mut values = Vec::new();
    while !bytes.is_empty() && values.len() < 8 {
        match bytes.arbitrary() {
            Ok(value) => values.push(value),
            Err(_) => break,
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn run_seeds(target: &str, run: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
        let mut seeds: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        seeds.sort();
        assert!(seeds.len() >= 5, "{target} has {} seeds", seeds.len());
        for seed in seeds {
            println!("{}", seed.display());
            run(&fs::read(seed).unwrap());
        }
    }

    #[test]
    fn the_seeds_of_thrift() {
        run_seeds("thrift", thrift::run);
    }

    #[test]
    fn the_seeds_of_answers() {
        run_seeds("answers", answers::run);
    }

    #[test]
    fn the_seeds_of_settings() {
        run_seeds("settings", settings::run);
    }

    #[test]
    fn the_seeds_of_certificates() {
        run_seeds("certificates", certificates::run);
    }
}
