//! The fuzz targets' common part. `cargo xtask fuzz NAME` runs one.

pub mod entries;
