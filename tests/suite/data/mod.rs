//! Data sets: what is read, transformed, batched, and refused.

mod convert;
mod images;
mod loader;
mod sets;
mod survey;
mod transforms;

use std::path::{Path, PathBuf};

use arclet::data::{DataSet, SourceOptions};
use arclet::error::Result;
use arclet::io::write_npy_f32;

/// A file of `tests/data/data_sets`.
fn fixture(name: &str) -> PathBuf {
    crate::common::data("data_sets").join(name)
}

/// Pixels of lens `i` of the fixtures, `side` pixels wide.
fn lens(i: usize, side: usize) -> Vec<f32> {
    (0..side).flat_map(|y| (0..side).map(move |x| ((i * 31 + y * 7 + x * 3) % 64) as f32 / 64.0)).collect()
}

/// Writes `path` and the folders above it: an image of `side` pixels that all hold `value`.
fn write_image(path: impl AsRef<Path>, side: usize, value: f32) {
    std::fs::create_dir_all(path.as_ref().parent().expect("a folder")).expect("folders");
    write_npy_f32(path, &[side, side], &vec![value; side * side]).expect("an image");
}

fn open(path: impl AsRef<Path>) -> Result<DataSet> {
    DataSet::open(path, &SourceOptions::default())
}

/// Asserts that `result` is a bad-input error whose message has every one of `parts`.
#[track_caller]
fn assert_refused<T>(result: Result<T>, parts: &[&str]) {
    let error = result.err().expect("expected a refusal");
    assert_eq!(error.exit_code(), 3, "{error}");
    let message = error.to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} are not all in: {message}");
}
