//! Large arrays that are written in several runs.

use std::fs;

use arclet::io::{NpyPart, read_npy, write_npy_f32, write_npy_u32};

use crate::{assert_refused, listing};

#[test]
fn several_runs_give_what_one_gives() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, target) = (folder.path().join("whole.npy"), folder.path().join("a.npy"));
    let rows: Vec<Vec<f32>> = (0..5).map(|i| vec![i as f32; 6]).collect();
    write_npy_f32(&whole, &[5, 2, 3], &rows.concat()).unwrap();

    let mut part = NpyPart::open(&target, &[5, 2, 3], false).unwrap();
    rows[..3].iter().for_each(|row| part.push(row).unwrap());
    assert_eq!(part.push(&[0.0]).unwrap_err().exit_code(), 1);
    drop(part);
    assert_eq!(listing(folder.path()), ["a.npy.part", "whole.npy"]);
    // Killed in the middle of a row.
    let left = folder.path().join("a.npy.part");
    let bytes = fs::read(&left).unwrap();
    fs::write(&left, &bytes[..bytes.len() - 5]).unwrap();

    let error = NpyPart::open(&target, &[5, 2, 3], false).err().unwrap();
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("--resume"), "{error}");
    assert_refused(NpyPart::open(&target, &[5, 3, 2], true).map(drop), &["a.npy.part", "another result"]);
    let mut part = NpyPart::open(&target, &[5, 2, 3], true).unwrap();
    assert_eq!(part.rows(), 2);
    rows[2..].iter().for_each(|row| part.push(row).unwrap());
    part.finish().unwrap();
    assert_eq!(fs::read(&target).unwrap(), fs::read(&whole).unwrap());
    assert_eq!(listing(folder.path()), ["a.npy", "whole.npy"]);

    assert_eq!(NpyPart::open(&target, &[2, 1], true).unwrap().finish().unwrap_err().exit_code(), 1);
    write_npy_u32(&target, &[3, u32::MAX]).unwrap();
    assert_eq!(read_npy(&target).unwrap().data, arclet::io::NpyData::U32(vec![3, u32::MAX]));
}
