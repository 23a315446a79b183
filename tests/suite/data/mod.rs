//! Data sets: what is read, transformed, batched, and refused.

mod convert;
mod images;
mod loader;
mod parameters;
mod sets;
mod survey;
mod transforms;

use std::path::{Path, PathBuf};

use arclet::data::{DataSet, SourceOptions};
use arclet::error::Result;

/// A file of `tests/data/data_sets`.
fn fixture(name: &str) -> PathBuf {
    crate::common::data("data_sets").join(name)
}

/// Pixels of lens `i` of the fixtures, `side` pixels wide.
fn lens(i: usize, side: usize) -> Vec<f32> {
    (0..side).flat_map(|y| (0..side).map(move |x| ((i * 31 + y * 7 + x * 3) % 64) as f32 / 64.0)).collect()
}

/// Writes `path` and the folders above it: an image of `side` pixels that all hold `value`. Not synced to the disk as
/// the program's own files are: the tests write many.
pub fn write_image(path: impl AsRef<Path>, side: usize, value: f32) {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({side}, {side}), }}\n");
    let length = (header.len() as u16).to_le_bytes();
    let pixels = value.to_le_bytes().repeat(side * side);
    std::fs::create_dir_all(path.as_ref().parent().expect("a folder")).expect("folders");
    std::fs::write(path, [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), &pixels].concat()).expect("an image");
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
