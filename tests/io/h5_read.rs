//! HDF5 files of h5py, read by rows.

use arclet::io::{H5Array, H5File};
use proptest::prelude::*;

use crate::assert_refused;
use crate::npz::fixture;
use crate::watch::largest_allocation;

const PLAIN: [&str; 6] = ["gzip.h5", "lzf.h5", "contiguous.h5", "big_endian.h5", "integers.h5", "extendible.h5"];

/// Values of jet `n`, as the script makes them.
fn jet(n: usize) -> Vec<f32> {
    let value = |y: usize, x: usize, c: usize| {
        if (y * 7 + x * 3 + c * 5 + n).is_multiple_of(11) { (n + 1) as f32 * (c as f32 + 0.5) } else { 0.0 }
    };
    (0..10).flat_map(|y| (0..10).flat_map(move |x| (0..3).map(move |c| value(y, x, c)))).collect()
}

fn open(name: &str) -> H5File {
    H5File::open(fixture(name)).unwrap()
}

#[test]
fn every_layout_and_filter_is_read() {
    for name in PLAIN {
        let file = open(name);
        assert_eq!(file.names().unwrap(), ["X_jets", "m0", "pt", "y"], "{name}");
        let jets = file.array("X_jets").unwrap();
        assert_eq!(jets.shape(), [6, 10, 10, 3]);
        let scale = if name == "integers.h5" { 2.0 } else { 1.0 };
        let expected = |n: usize| jet(n).into_iter().map(|v| v * scale).collect::<Vec<_>>();
        for n in [5, 0, 3, 1, 4, 2] {
            assert_eq!(jets.read(n..n + 1).unwrap(), expected(n), "{name}, jet {n}");
        }
        assert_eq!(jets.read(1..6).unwrap(), (1..6).flat_map(expected).collect::<Vec<_>>(), "{name}");
        assert!(jets.read(2..2).unwrap().is_empty());
        assert_eq!(file.array("y").unwrap().read(0..6).unwrap(), [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(file.array("extra/eta").unwrap().len(), 6);
    }
    let rows = |name| open(name).array("X_jets").unwrap().rows_per_chunk();
    assert_eq!([rows("gzip.h5"), rows("lzf.h5"), rows("contiguous.h5")], [1, 4, 1]);
}

#[test]
fn what_is_missing_or_no_numbers_is_refused() {
    assert_refused(open("no_labels.h5").array("X_jets").map(drop), &["no_labels.h5", "\"X_jets\"", "the file has m0"]);
    assert_refused(open("gzip.h5").array("extra").map(drop), &["\"extra\""]);
    assert_refused(open("text.h5").array("X_jets").map(drop), &["text.h5", "expected floats"]);
    assert_refused(H5File::open(fixture("plain.npy")).map(drop), &["plain.npy", "HDF5"]);
    assert_refused(H5File::open(fixture("none.h5")).map(drop), &["none.h5", "cannot be opened"]);
    assert_refused(H5File::open(fixture(".")).map(drop), &["a folder"]);
    assert_refused(open("gzip.h5").array("y").unwrap().read(4..9), &["gzip.h5", "rows 4..9"]);
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let refused = |name: &str, key: &str, parts: &[&str]| {
        let largest = largest_allocation(|| {
            let read = |a: H5Array| a.read(0..a.len());
            assert_refused(open(name).array(key).and_then(read), parts);
        });
        assert!(largest < 1 << 20, "{name}: {largest} bytes asked for");
    };
    refused(
        "absurd_chunk.h5",
        "X_jets",
        &["absurd_chunk.h5", "chunks of [1, 16384, 16384, 3]", "at most 134217728 bytes"],
    );
    refused("absurd_count.h5", "y", &["absurd_count.h5", "of 1 numbers: expected at most 268435456 bytes"]);
    // A single row of it is what the format promises: zeros.
    assert_eq!(open("absurd_count.h5").array("X_jets").unwrap().read(1 << 40..(1 << 40) + 1).unwrap(), [0.0; 300]);
}

#[test]
fn truncated_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.h5");
    for name in ["gzip.h5", "lzf.h5", "contiguous.h5"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for length in [0, 7, 50, 600, whole.len() / 2] {
            std::fs::write(&path, &whole[..length.min(whole.len() - 1)]).unwrap();
            let read = H5File::open(&path).and_then(|f| f.array("X_jets")).and_then(|a| a.read(0..6));
            assert_refused(read, &["cut.h5"]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn changed_files_never_panic_nor_take_absurd_memory(
        which in 0usize..6,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = std::fs::read(fixture(PLAIN[which])).unwrap();
        for (at, value) in changes {
            // Most of what decides lies at the start of each file.
            let at = at.index(bytes.len());
            let at = if value % 2 == 0 { at } else { at % 3000.min(bytes.len()) };
            bytes[at] = value;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let largest = largest_allocation(|| {
            let Ok(file) = H5File::open(file.path()) else { return };
            let _ = file.names();
            for name in ["X_jets", "y"] {
                if let Ok(array) = file.array(name) {
                    let _ = array.read(0..array.len().min(6));
                }
            }
        });
        prop_assert!(largest <= 256 << 20, "{} bytes asked for", largest);
    }

    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [&b"\x89HDF\r\n\x1a\n"[..], &tail].concat()).unwrap();
        if let Ok(file) = H5File::open(file.path()) {
            let _ = file.array("X_jets");
        }
    }
}
