//! NumPy arrays of numbers.

use std::fs;

use arclet::io::npy::parse_npy;
use arclet::io::{NonFinite, Npy, NpyData, NpyWriter, read_npy, read_npy_f32, write_npy_f32};
use half::f16;
use proptest::prelude::*;

use crate::{assert_refused, listing};

/// A file of format `version` around a dictionary text.
fn raw_npy(version: u8, dictionary: &str, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x93, b'N', b'U', b'M', b'P', b'Y', version, 0];
    match version {
        1 => out.extend((dictionary.len() as u16).to_le_bytes()),
        _ => out.extend((dictionary.len() as u32).to_le_bytes()),
    }
    out.extend_from_slice(dictionary.as_bytes());
    out.extend_from_slice(data);
    out
}

fn array(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Result<Npy, String> {
    let order = if fortran { "True" } else { "False" };
    parse_npy(&raw_npy(1, &format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }} \n"), data))
}

#[test]
fn every_element_type_is_read_in_both_byte_orders() {
    macro_rules! check {
        ($ty:ty, $code:literal, $variant:ident, $values:expr) => {
            let values: Vec<$ty> = $values;
            let shape = format!("({},)", values.len());
            let little: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let big: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
            let expected = Npy { shape: vec![values.len()], data: NpyData::$variant(values) };
            assert_eq!(array(concat!("<", $code), false, &shape, &little).unwrap(), expected);
            assert_eq!(array(concat!(">", $code), false, &shape, &big).unwrap(), expected);
        };
    }
    check!(i8, "i1", I8, vec![-128, 0, 127]);
    check!(i16, "i2", I16, vec![i16::MIN, 258, -2]);
    check!(i32, "i4", I32, vec![i32::MIN, 66051, -3]);
    check!(i64, "i8", I64, vec![i64::MIN, 283686952306183, -4]);
    check!(u8, "u1", U8, vec![0, 255]);
    check!(u16, "u2", U16, vec![0, 258, u16::MAX]);
    check!(u32, "u4", U32, vec![0, 66051, u32::MAX]);
    check!(u64, "u8", U64, vec![0, 283686952306183, u64::MAX]);
    check!(f16, "f2", F16, vec![f16::from_f32(1.5), f16::from_f32(-0.1)]);
    check!(f32, "f4", F32, vec![1.5, -0.1, f32::MAX]);
    check!(f64, "f8", F64, vec![1.5, -0.1, f64::MAX]);
    let bools = array("|b1", false, "(3,)", &[1, 0, 1]).unwrap();
    assert_eq!(bools.data, NpyData::Bool(vec![true, false, true]));
    assert_eq!(bools.data.to_f32(), [1.0, 0.0, 1.0]);
    assert_eq!(array("|u1", false, "()", &[7]).unwrap(), Npy { shape: vec![], data: NpyData::U8(vec![7]) });
}

#[test]
fn numbers_convert() {
    assert_eq!(NpyData::I64(vec![-3, 1 << 40]).to_f64(), [-3.0, 1099511627776.0]);
    assert_eq!(NpyData::U64(vec![u64::MAX]).to_f32(), [18446744073709551616.0]);
    assert_eq!(NpyData::F16(vec![f16::from_f32(0.5)]).to_f32(), [0.5]);
    assert_eq!(NpyData::F64(vec![0.1]).to_f32(), [0.1f32]);
    assert_eq!(NpyData::F32(vec![0.1]).to_f64(), [f64::from(0.1f32)]);
    assert!(NpyData::U8(vec![]).is_empty() && NpyData::U8(vec![1, 2]).len() == 2);
}

#[test]
fn fortran_order_becomes_row_major() {
    // Element [i][j][k] of shape (2, 3, 4) holds 100 i + 10 j + k; the first index runs fastest in the file.
    let mut data = Vec::new();
    for k in 0..4u8 {
        for j in 0..3u8 {
            for i in 0..2u8 {
                data.push(100 * i + 10 * j + k);
            }
        }
    }
    let expected: Vec<u8> =
        (0..2).flat_map(|i| (0..3).flat_map(move |j| (0..4).map(move |k| 100 * i + 10 * j + k))).collect();
    assert_eq!(array("|u1", true, "(2, 3, 4)", &data).unwrap().data, NpyData::U8(expected));
    assert_eq!(array("|u1", true, "(3,)", &[1, 2, 3]).unwrap().data, NpyData::U8(vec![1, 2, 3]));
    assert_eq!(array("|u1", true, "()", &[9]).unwrap().data, NpyData::U8(vec![9]));
    assert_eq!(array("|u1", true, "(2, 0, 3)", &[]).unwrap().shape, [2, 0, 3]);
}

#[test]
fn headers_of_every_version_and_writer_are_read() {
    let expected = Npy { shape: vec![2], data: NpyData::U8(vec![5, 6]) };
    for version in [1, 2, 3] {
        let file = raw_npy(version, "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }   \n", &[5, 6]);
        assert_eq!(parse_npy(&file).unwrap(), expected);
    }
    for text in [
        "{\"shape\":(2L,),\"fortran_order\":False,\"descr\":\"|u1\"}",
        "{ 'descr' : '<u1' , 'shape' : ( 2 , ) , 'fortran_order' : False }\n",
    ] {
        assert_eq!(parse_npy(&raw_npy(1, text, &[5, 6])).unwrap(), expected);
    }
}

#[test]
fn malformed_headers_are_refused() {
    let ok = "'fortran_order': False, 'shape': (2,)";
    let cases = [
        ("", "expected '{'"),
        ("{}", "\"descr\" is missing"),
        ("{'descr': '|u1', 'shape': (2,)}", "\"fortran_order\" is missing"),
        ("{'descr': '|u1', 'fortran_order': False}", "\"shape\" is missing"),
        (&format!("{{'descr': '|u1', 'descr': '|u1', {ok}}}"), "\"descr\" occurs twice"),
        (&format!("{{'descr': '|u1', 'extra': 1, {ok}}}"), "unknown field \"extra\""),
        (&format!("{{'descr': '<U4', {ok}}}"), "\"<U4\""),
        (&format!("{{'descr': '<c8', {ok}}}"), "\"<c8\""),
        (&format!("{{'descr': '<f16', {ok}}}"), "\"<f16\""),
        (&format!("{{'descr': '|f4', {ok}}}"), "\"|f4\""),
        (&format!("{{'descr': '', {ok}}}"), "\"\""),
        (&format!("{{'descr': [('x', '<f4')], {ok}}}"), "structured"),
        (&format!("{{'descr': '|O', {ok}}}"), "Python objects"),
        (&format!("{{'descr': '|u\\x31', {ok}}}"), "escapes"),
        (&format!("{{'descr': '|u1, {ok}}}"), "expected"),
        ("{'descr': '|u1', 'fortran_order': 0, 'shape': (2,)}", "True or False"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (2)}", "expected a comma"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': [2]}", "'('"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-2,)}", "a number"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999,)}", "too large"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "overflows"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904,)}", "overflows"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,2)}", "more than 8"),
        (&format!("{{'descr': '|u1', {ok}}} + __import__('os')"), "end of the header"),
    ];
    for (text, reason) in cases {
        let error = parse_npy(&raw_npy(1, text, &[0; 2])).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
    let good = raw_npy(1, &format!("{{'descr': '|u1', {ok}}}"), &[0; 2]);
    for (bytes, reason) in [
        (&good[..3], "magic"),
        (&good[..7], "truncated"),
        (&good[..20], "header length"),
        (&good[..good.len() - 1], "found 1 bytes, expected 2"),
        (&[&good[..], b"x"].concat(), "found 3 bytes, expected 2"),
        (&raw_npy(4, "", &[]), "found 4, expected 1, 2 or 3"),
        (&raw_npy(2, &" ".repeat(70_000), &[]), "at most 65536"),
        (&raw_npy(3, "{'é'}", &[]), "ASCII"),
    ] {
        let error = parse_npy(bytes).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let error = array("|b1", false, "(2,)", &[1, 2]).unwrap_err();
    assert!(error.contains("element 1: found 2"), "{error}");
}

#[test]
fn f32_reading_refuses_what_is_not_finite_unless_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let f64s = |values: &[f64]| {
        let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({},), }}\n", values.len());
        fs::write(&path, raw_npy(1, &text, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())).unwrap();
    };
    f64s(&[1.0, 0.1]);
    assert_eq!(read_npy_f32(&path, NonFinite::Refuse).unwrap(), (vec![2], vec![1.0, 0.1]));
    f64s(&[1.0, f64::NAN]);
    assert_refused(read_npy_f32(&path, NonFinite::Refuse), &["a.npy", "element 1 is NaN"]);
    assert!(read_npy_f32(&path, NonFinite::Allow).unwrap().1[1].is_nan());
    f64s(&[1e39]);
    assert_refused(read_npy_f32(&path, NonFinite::Refuse), &["element 0 is inf"]);
    assert_refused(read_npy(folder.path().join("none.npy")), &["none.npy", "cannot be opened"]);
}

#[test]
fn what_is_written_is_what_numpy_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    // numpy.save("a.npy", numpy.float32([[1, 2, 3]])), byte for byte.
    write_npy_f32(&path, &[1, 3], &[1.0, 2.0, 3.0]).unwrap();
    let mut expected = b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }".to_vec();
    expected.resize(127, b' ');
    expected.push(b'\n');
    expected.extend([1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()));
    assert_eq!(fs::read(&path).unwrap(), expected);
    write_npy_f32(&path, &[3], &[1.0, 2.0, 3.0]).unwrap();
    assert!(String::from_utf8_lossy(&fs::read(&path).unwrap()).contains("'shape': (3,), }"));
    assert_eq!(listing(folder.path()), ["a.npy"]);
}

#[test]
fn a_streamed_file_equals_one_written_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, streamed) = (folder.path().join("a.npy"), folder.path().join("b.npy"));
    let values: Vec<f32> = (0..40_000).map(|i| i as f32).collect();
    write_npy_f32(&whole, &[10, 1, 40, 100], &values).unwrap();
    let mut writer = NpyWriter::create(&streamed, &[10, 1, 40, 100]).unwrap();
    for piece in values.chunks(3001) {
        writer.push(piece).unwrap();
    }
    assert_eq!(writer.rows(), 10);
    writer.finish().unwrap();
    assert_eq!(fs::read(whole).unwrap(), fs::read(streamed).unwrap());
}

#[test]
fn an_interrupted_run_keeps_finished_rows_as_a_complete_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let values: Vec<f32> = (0..250).map(|i| i as f32).collect();
    let mut writer = NpyWriter::create(&path, &[1_000_000, 10]).unwrap();
    writer.push(&values[..157]).unwrap();
    assert_eq!(writer.rows(), 15);
    writer.finish_partial(12).unwrap();
    assert_eq!(read_npy_f32(&path, NonFinite::Refuse).unwrap(), (vec![12, 10], values[..120].to_vec()));
    assert_eq!(listing(folder.path()), ["a.npy"]);
    let mut writer = NpyWriter::create(&path, &[5, 10]).unwrap();
    writer.push(&values[..15]).unwrap();
    assert_eq!(writer.finish_partial(2).unwrap_err().exit_code(), 1);
    NpyWriter::create(&path, &[5, 10]).unwrap().finish_partial(0).unwrap();
    assert_eq!(read_npy(&path).unwrap().shape, [0, 10]);
}

#[test]
fn the_writer_checks_counts_and_leaves_nothing_on_failure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    assert_eq!(write_npy_f32(&path, &[2], &[1.0]).unwrap_err().exit_code(), 1);
    assert_eq!(write_npy_f32(&path, &[2], &[1.0; 3]).unwrap_err().exit_code(), 1);
    assert_eq!(write_npy_f32(&path, &[], &[1.0]).unwrap_err().exit_code(), 1);
    assert_eq!(write_npy_f32(&path, &[usize::MAX, 2], &[1.0]).unwrap_err().exit_code(), 1);
    assert_eq!(write_npy_f32(&path, &[1; 9], &[1.0]).unwrap_err().exit_code(), 1);
    assert_eq!(write_npy_f32(folder.path().join("none/a.npy"), &[1], &[1.0]).unwrap_err().exit_code(), 5);
    assert!(listing(folder.path()).is_empty());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_npy(&tail);
        let _ = parse_npy(&[&b"\x93NUMPY"[..], &tail].concat());
    }

    #[test]
    fn arbitrary_dictionaries_never_panic(text in "[{}()\\[\\]',:<>|=a-zA-Z0-9 \\n.]{0,120}", version in 1u8..4) {
        let _ = parse_npy(&raw_npy(version, &text, &[0; 8]));
    }

    #[test]
    fn damaged_files_never_panic(at in 0usize..128, value in any::<u8>()) {
        let mut file = raw_npy(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", &[0; 24]);
        let at = at % file.len();
        file[at] = value;
        if let Ok(npy) = parse_npy(&file) {
            prop_assert_eq!(npy.shape.iter().product::<usize>(), npy.data.len());
        }
    }

    #[test]
    fn round_trip(shape in prop::collection::vec(0usize..5, 1..6), seed in any::<u32>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let n = shape.iter().product::<usize>() as u32;
        let values: Vec<f32> = (0..n).map(|i| f32::from_bits(seed.wrapping_mul(2654435761).wrapping_add(i) & 0xbf7f_ffff)).collect();
        write_npy_f32(&path, &shape, &values).unwrap();
        prop_assert_eq!(read_npy_f32(&path, NonFinite::Refuse).unwrap(), (shape, values));
    }
}
