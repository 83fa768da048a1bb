//! libFuzzer's side of [`targets::answers`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::answers::run(input));
