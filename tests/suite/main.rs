//! Operations, models, data sets, the command line and the rules of the house in one binary, so that a folder with it, `arclet` and
//! `tests/data` tests a machine that has a GPU and no Rust. (`tests/io` and `tests/tools.rs` need no GPU and stay behind.)

mod classifiers;
mod cli;
mod common;
mod conv_gpu;
mod conv_models;
mod data;
mod device;
mod diffusion;
mod dropout;
mod engines;
mod goldens;
mod grads;
mod house;
mod import;
mod levels;
mod ops;
mod optimizer;
mod parameters;
mod ptx;
mod schedule;
mod simulate;
mod static_table;
mod tiles;
mod trace;
mod train;
mod zoo;
