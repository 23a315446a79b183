//! All integration tests in one binary, so that a folder with this binary, the command line and `tests/data` tests a
//! machine that has no Rust.

mod cli;
mod common;
mod engines;
mod goldens;
mod house;
mod import;
mod ops;
mod ptx;
