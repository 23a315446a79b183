//! The header of safetensors files.

use std::path::Path;

use arclet::error::Result;
use arclet::io::FileDType;
use arclet::io::header::{Header, read_header};
use proptest::prelude::*;

use crate::{assert_refused, raw_safetensors};

fn read(bytes: &[u8]) -> Result<Header> {
    read_header(Path::new("w.safetensors"), bytes)
}

fn read_text(header: &str, data_len: usize) -> Result<Header> {
    read(&raw_safetensors(header, &vec![0; data_len]))
}

#[test]
fn a_plain_header_is_read() {
    let header = r#"{"__metadata__":{"k":"v"},"b":{"shape":[2,3],"data_offsets":[4,28],"dtype":"F32"},
        "a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"empty":{"dtype":"I64","shape":[0,7],"data_offsets":[4,4]},
        "scalar":{"dtype":"U8","shape":[],"data_offsets":[28,29]}}  "#;
    let read = read_text(header, 29).unwrap();
    assert_eq!(read.metadata["k"], "v");
    assert_eq!(read.tensors.keys().collect::<Vec<_>>(), ["a", "b", "empty", "scalar"]);
    let b = &read.tensors["b"];
    assert_eq!((b.dtype, &b.shape[..]), (FileDType::F32, &[2, 3][..]));
    let start = 8 + header.len();
    assert_eq!(b.range, start + 4..start + 28);
    assert!(read.tensors["empty"].range.is_empty());
}

#[test]
fn lengths_are_compared_with_the_file() {
    let good = raw_safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]);
    read(&good).unwrap();
    assert_refused(read(&good[..5]), &["w.safetensors", "found 5 bytes", "expected at least the 8"]);
    assert_refused(read(&good[..30]), &["header length", "truncated"]);
    assert_refused(read(&good[..good.len() - 1]), &["\"a\"", "ends at 8", "only 7 bytes", "truncated"]);
    assert_refused(read(&[&good[..], b"x"].concat()), &["end at 8", "9 bytes follow"]);
    assert_refused(read(&100_000_001u64.to_le_bytes()), &["header length", "100000001", "100000000"]);
    assert_refused(read(&u64::MAX.to_le_bytes()), &["header length"]);
}

#[test]
fn anything_said_twice_is_refused() {
    let a = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let cases = [
        (format!(r#"{{"a":{a},"a":{a}}}"#), "duplicate tensor name \"a\""),
        (format!(r#"{{"a":{a},"\u0061":{a}}}"#), "duplicate tensor name \"a\""),
        (r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.into(), "duplicate field \"dtype\""),
        (r#"{"a":{"shape":[1],"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.into(), "duplicate field \"shape\""),
        (
            r#"{"a":{"shape":[1],"dtype":"F32","data_offsets":[0,4],"data_offsets":[0,4]}}"#.into(),
            "duplicate field \"data_offsets\"",
        ),
        (format!(r#"{{"__metadata__":{{"k":"1","k":"2"}},"a":{a}}}"#), "duplicate metadata key \"k\""),
        (format!(r#"{{"__metadata__":{{}},"a":{a},"__metadata__":{{}}}}"#), "duplicate key \"__metadata__\""),
    ];
    for (header, reason) in cases {
        assert_refused(read_text(&header, 4), &["header", reason]);
    }
}

#[test]
fn ranges_must_tile_the_data() {
    let two = |a: [u64; 2], b: [u64; 2]| {
        let header = format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a:?}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b:?}}}}}"#
        );
        read_text(&header, 16)
    };
    two([0, 8], [8, 16]).unwrap();
    two([8, 16], [0, 8]).unwrap();
    assert_refused(two([0, 8], [4, 12]), &["\"b\"", "begins at 4", "inside tensor \"a\"", "ends at 8"]);
    assert_refused(two([0, 8], [0, 8]), &["begins at 0", "inside tensor"]);
    assert_refused(two([0, 8], [12, 20]), &["\"b\"", "begins at 12", "expected 8"]);
    assert_refused(two([4, 12], [12, 20]), &["\"a\"", "begins at 4", "expected 0"]);
    assert_refused(two([0, 8], [16, 8]), &["\"b\"", "[16, 8]", "8 bytes"]);
    assert_refused(two([0, 4], [4, 12]), &["\"a\"", "[0, 4]", "expected a range of 8 bytes", "F32"]);
}

#[test]
fn malformed_fields_are_named() {
    let big = format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[0,1]}}}}", vec!["1"; 17].join(","));
    let cases = [
        ("[]", "starts with '{'"),
        ("{", "EOF"),
        (r#"{"a":1}"#, "tensor \"a\" as an object"),
        (r#"{"a":["F32",[1],[0,4]]}"#, "tensor \"a\" as an object"),
        (r#"{"a":{"dtype":"F32","shape":[1]}}"#, "field \"data_offsets\" is missing"),
        (r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, "field \"shape\" is missing"),
        (r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, "field \"dtype\" is missing"),
        (r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, "dtype \"F33\""),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, "unknown field \"x\""),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, "expected u64"),
        (r#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#, "expected u64"),
        (r#"{"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}}"#, "shape as a list"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, "1 entries, expected 2"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, "more than 2 entries"),
        (r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#, "overflows"),
        (r#"{"__metadata__":{"k":1}}"#, "expected a string"),
        (r#"{"__metadata__":null}"#, "object of strings"),
        (r#"{} {}"#, "trailing characters"),
        (&big, "more than 16 entries"),
    ];
    for (header, reason) in cases {
        assert_refused(read_text(header, 4), &[reason]);
    }
    assert_refused(read(&[&2u64.to_le_bytes()[..], b"{\xff"].concat()), &["not UTF-8"]);
}

#[test]
fn names_in_messages_are_short_and_harmless() {
    let name = format!("\\u001b[31m{}", "x".repeat(5000));
    let error = read_text(&format!("{{\"{name}\":1}}"), 0).unwrap_err().to_string();
    assert!(error.len() < 500 && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn a_deep_header_is_no_stack_overflow() {
    assert_refused(read_text(&format!("{{\"a\":{{\"shape\":{}", "[".repeat(1 << 20)), 0), &["header"]);
}

/// A dtype, a shape and a name for each tensor of a valid file.
fn tensors() -> impl Strategy<Value = Vec<(String, FileDType, Vec<usize>)>> {
    let tensor =
        ("[a-z.\"\\\\é]{1,8}", prop::sample::select(FileDType::ALL.to_vec()), prop::collection::vec(0usize..4, 0..4));
    prop::collection::vec(tensor, 0..6).prop_map(|mut tensors| {
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors.dedup_by(|a, b| a.0 == b.0);
        tensors
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = read(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "\\{[\\[\\]{}\",:0-9a-z_\\\\ .-]{0,200}\\}", data in 0usize..32) {
        let _ = read_text(&header, data);
    }

    /// One byte of a valid file changed: either refused, or every range still lies within the file.
    #[test]
    fn a_damaged_header_stays_within_the_file(at in 0usize..170, value in any::<u8>()) {
        let header = r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"bb":{"dtype":"F16","shape":[4],"data_offsets":[24,32]}}"#;
        let mut bytes = raw_safetensors(header, &[0; 32]);
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(header) = read(&bytes) {
            for entry in header.tensors.values() {
                prop_assert!(entry.range.end <= bytes.len());
                prop_assert_eq!(entry.range.len(), entry.shape.iter().product::<usize>() * entry.dtype.size());
            }
        }
    }

    #[test]
    fn what_is_written_is_read(tensors in tensors(), key in "[a-z]{0,5}", value in ".{0,9}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let bytes_of = |dtype: FileDType, shape: &[usize], seed: usize| -> Vec<u8> {
            (0..shape.iter().product::<usize>() * dtype.size()).map(|i| (i * 7 + seed) as u8).collect()
        };
        let written = tensors.iter().enumerate().map(|(seed, (name, dtype, shape))| arclet::io::TensorBytes {
            name: name.into(),
            dtype: *dtype,
            shape: shape.clone(),
            bytes: bytes_of(*dtype, shape, seed).into(),
        });
        let metadata = [(key, value)].into();
        arclet::io::write_safetensors(&path, written, &metadata).unwrap();
        let read = arclet::io::Checkpoint::open(&path).unwrap();
        prop_assert_eq!(read.metadata(), &metadata);
        prop_assert_eq!(read.names().len(), tensors.len());
        for (seed, (name, dtype, shape)) in tensors.iter().enumerate() {
            prop_assert_eq!(read.dtype(name), Some(*dtype));
            prop_assert_eq!(read.shape(name), Some(&shape[..]));
            prop_assert_eq!(read.bytes(name).unwrap(), &bytes_of(*dtype, shape, seed)[..]);
            prop_assert_eq!(read.bytes(name).unwrap().as_ptr() as usize % dtype.size(), 0, "aligned in the mapping");
        }
    }
}
