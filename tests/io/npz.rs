//! `.npz` archives.

use std::path::PathBuf;

use arclet::io::npz::parse_npz;
use arclet::io::{NpyData, Npz, Rows, write_npy_f32};
use flate2::{Compression, Crc, write::DeflateEncoder};
use proptest::prelude::*;

use crate::assert_refused;
use crate::watch::largest_allocation;

pub fn fixture(name: &str) -> PathBuf {
    let root = std::env::var_os("ARCLET_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    root.join("tests/data/data_sets").join(name)
}

/// Pixels of lens `i`, as the script makes them.
fn lens(i: usize) -> Vec<f32> {
    (0..8).flat_map(|y| (0..8).map(move |x| ((i * 31 + y * 7 + x * 3) % 64) as f32 / 64.0)).collect()
}

/// What the tests change about an archive.
#[derive(Clone, Copy, Default)]
struct Odd {
    /// Sizes and places in 64-bit fields only.
    wide: bool,
    flags: u16,
    method: Option<u16>,
    size: Option<u32>,
    crc: Option<u32>,
}

/// An archive of `members`, deflated where that is asked for.
fn archive(members: &[(&str, &[u8], bool)], odd: Odd) -> Vec<u8> {
    use std::io::Write;
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content, deflate) in members {
        let mut crc = Crc::new();
        crc.update(content);
        let packed = if *deflate {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        } else {
            content.to_vec()
        };
        let offset = out.len() as u64;
        let method = odd.method.unwrap_or(if *deflate { 8 } else { 0 });
        let (size, crc) = (odd.size.unwrap_or(content.len() as u32), odd.crc.unwrap_or(crc.sum()));
        let wide = [u64::from(size), packed.len() as u64, offset].map(u64::to_le_bytes).concat();
        let extra = if odd.wide { [&[1, 0, 24, 0][..], &wide].concat() } else { Vec::new() };
        let narrow = |v: u32| if odd.wide { u32::MAX } else { v }.to_le_bytes();
        let common = [
            &20u16.to_le_bytes()[..],
            &odd.flags.to_le_bytes(),
            &method.to_le_bytes(),
            &[0; 4],
            &crc.to_le_bytes(),
            &narrow(packed.len() as u32),
            &narrow(size),
            &(name.len() as u16).to_le_bytes(),
            &(extra.len() as u16).to_le_bytes(),
        ]
        .concat();
        out.extend([b"PK\x03\x04", &common[..], name.as_bytes(), &extra, &packed].concat());
        directory.extend(
            [b"PK\x01\x02\x14\0", &common[..], &[0; 10], &narrow(offset as u32), name.as_bytes(), &extra].concat(),
        );
    }
    let (start, count) = (out.len() as u64, members.len() as u64);
    out.extend_from_slice(&directory);
    let end = out.len() as u64;
    if odd.wide {
        let numbers = [count, count, directory.len() as u64, start].map(u64::to_le_bytes).concat();
        out.extend([b"PK\x06\x06", &44u64.to_le_bytes()[..], &[0; 12], &numbers].concat());
        out.extend([b"PK\x06\x07\0\0\0\0", &end.to_le_bytes()[..], &1u32.to_le_bytes()].concat());
    }
    let (count, start) = if odd.wide { (u16::MAX, u32::MAX) } else { (count as u16, start as u32) };
    let sizes =
        [&count.to_le_bytes()[..], &count.to_le_bytes(), &(directory.len() as u32).to_le_bytes(), &start.to_le_bytes()];
    out.extend([b"PK\x05\x06\0\0\0\0", &sizes.concat()[..], &3u16.to_le_bytes(), b"end"].concat());
    out
}

/// A `.npy` file of these bytes.
fn npy(values: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}\n", values.len());
    [&b"\x93NUMPY\x01\0"[..], &(text.len() as u16).to_le_bytes(), text.as_bytes(), values].concat()
}

#[test]
fn archives_of_numpy_are_read_row_by_row() {
    for name in ["stored.npz", "deflated.npz"] {
        let file = Npz::open(fixture(name)).unwrap();
        assert!(file.contains("images") && file.contains("labels") && !file.contains("images.npy"));
        let rows = file.rows("images").unwrap();
        assert_eq!((rows.shape(), rows.len()), (&[5, 1, 8, 8][..], 5));
        assert_eq!(rows.read(3..4).unwrap(), lens(3));
        assert_eq!(rows.read(1..3).unwrap(), [lens(1), lens(2)].concat());
        assert!(rows.read(5..5).unwrap().is_empty());
        assert_eq!(file.read("labels").unwrap().data, NpyData::I64(vec![0, 2, 1, 0, 2]));
        assert_eq!(file.rows("labels").unwrap().read(0..5).unwrap(), [0.0, 2.0, 1.0, 0.0, 2.0]);
        assert_refused(file.rows("X"), &[name, "\"X\"", "missing; the file has images, labels"]);
    }
    assert_eq!(Npz::open(fixture("fortran.npz")).unwrap().rows("images").unwrap().read(4..5).unwrap(), lens(4));
    assert_refused(Npz::open(fixture("stored.npz")).unwrap().read("names"), &["\"names\"", "<U1"]);
}

#[test]
fn rows_of_a_plain_file_are_read_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    write_npy_f32(&path, &[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let rows = Rows::open_npy(&path).unwrap();
    assert_eq!((rows.read(1..2).unwrap(), rows.read(0..3).unwrap().len()), (vec![2.0, 3.0], 6));
    std::fs::write(&path, &std::fs::read(&path).unwrap()[..140]).unwrap();
    assert_refused(Rows::open_npy(&path), &["a.npy", "found 12 bytes, expected 24"]);
}

#[test]
fn every_way_of_writing_sizes_is_read() {
    let content = npy(&[7; 1000]);
    for wide in [false, true] {
        let bytes = archive(
            &[("a.npy", &content, false), ("b.npy", &content, true), ("notes.txt", b"x", false)],
            Odd { wide, ..Odd::default() },
        );
        let found = parse_npz(&bytes).unwrap();
        assert_eq!(found.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(), ["a", "b"]);
        assert!(found.iter().all(|(_, array)| array.data == NpyData::U8(vec![7; 1000])));
        for length in (0..bytes.len()).step_by(13) {
            assert!(parse_npz(&bytes[..length]).is_err(), "cut to {length} of {}", bytes.len());
        }
    }
    assert_eq!(parse_npz(&archive(&[], Odd::default())).unwrap(), []);
}

#[test]
fn damaged_and_hostile_archives_are_refused() {
    let content = npy(&[7; 1000]);
    let one = |deflate, odd| archive(&[("a.npy", &content, deflate)], odd);
    let base = Odd::default();
    for (bytes, reason) in [
        (b"PK\x03\x04 and no more".to_vec(), "no end record"),
        (one(false, Odd { flags: 1, ..base }), "encrypted"),
        (one(false, Odd { method: Some(14), ..base }), "found compression method 14"),
        (one(false, Odd { crc: Some(1), ..base }), "checksum"),
        (one(true, Odd { crc: Some(1), ..base }), "checksum"),
        (one(false, Odd { size: Some(5), ..base }), "cannot hold 5"),
        (one(true, Odd { size: Some(u32::MAX - 1), ..base }), "cannot hold 4294967294"),
        (one(true, Odd { size: Some(content.len() as u32 + 1), ..base }), "not what the directory says"),
        (one(true, Odd { size: Some(content.len() as u32 - 1), ..base }), "not what the directory says"),
        (archive(&[("a.npy", &content, false), ("a.npy", &content, false)], base), "two members named \"a.npy\""),
        (archive(&[("a.npy", b"text", false)], base), "no NumPy magic"),
    ] {
        let mut error = String::new();
        let largest = largest_allocation(|| error = parse_npz(&bytes).unwrap_err());
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(largest < 64 << 10, "{reason}: {largest} bytes asked for");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npz");
    std::fs::write(&path, b"no archive").unwrap();
    assert_refused(Npz::open(&path), &["a.npz", "no end record"]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_npz(&bytes);
        bytes.extend([&b"PK\x05\x06"[..], &[0; 18]].concat());
        let _ = parse_npz(&bytes);
    }

    #[test]
    fn changed_archives_never_panic(
        which in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = match which {
            0 => archive(&[("a.npy", &npy(&[7; 300]), true), ("b.npy", &npy(&[1]), false)], Odd { wide: true, ..Odd::default() }),
            1 => std::fs::read(fixture("stored.npz")).unwrap(),
            _ => std::fs::read(fixture("deflated.npz")).unwrap(),
        };
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // Deflate gives at most 1032 for one, and elements widen to at most eight bytes.
        let largest = largest_allocation(|| drop(parse_npz(&bytes)));
        prop_assert!(largest <= 1032 * bytes.len() + 4096, "{} bytes asked for by {}", largest, bytes.len());
    }
}
