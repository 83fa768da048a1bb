//! libFuzzer's side of [`targets::thrift`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::thrift::run(input));
