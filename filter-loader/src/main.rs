//! `sandbox-filter`.
fn main() {}
