#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| filter_inspector_fuzz::entries::dns(input));
