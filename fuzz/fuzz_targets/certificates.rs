//! libFuzzer's side of [`targets::certificates`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::certificates::run(input));
