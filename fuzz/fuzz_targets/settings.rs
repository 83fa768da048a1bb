//! libFuzzer's side of [`targets::settings`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::settings::run(input));
