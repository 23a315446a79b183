//! Files in and out: what is read back, and that every damaged or hostile file is refused with a message that says
//! what was found.

mod atomic;
mod checkpoint;
mod h5;
mod h5_read;
mod header;
mod lzf;
mod npy;
mod npy_part;
mod npz;
mod object_npy;
mod preview;
mod train;
mod watch;

use std::fmt::Debug;

use arclet::error::Result;

/// Asserts that `result` is a bad-input error (exit 3) whose message has every one of `parts`.
#[track_caller]
fn assert_refused<T: Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.expect_err("expected a refusal");
    assert_eq!(error.exit_code(), 3, "{error}");
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// A safetensors file: length, header text, data.
fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Names in a folder, sorted.
fn listing(folder: &std::path::Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}
