//! Object `.npy` files, whose pickles are read and never run.

use std::path::PathBuf;

use arclet::io::object_npy::parse_object_npy;
use arclet::io::{
    Checkpoint, FileDType, Npy, NpyData, ObjectArray, ObjectValue, read_npy, read_object_npy, sha256_file,
};
use proptest::prelude::*;

use crate::assert_refused;

fn fixture(name: &str) -> PathBuf {
    let root = std::env::var_os("ARCLET_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    root.join("tests/data/object_npy").join(name)
}

/// An object file of `shape` around a pickle.
fn file(shape: &str, pickle: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}\n");
    [&b"\x93NUMPY\x01\0"[..], &(text.len() as u16).to_le_bytes(), text.as_bytes(), pickle].concat()
}

/// A protocol 2 pickle of an object array of one axis whose items are pushed by `items`.
fn array_of(count: u8, items: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01(K";
    let dtype = b"tcnumpy\ndtype\n(U\x02O8K\0K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89](";
    [&head[..], &[count], dtype, items, b"etb."].concat()
}

fn parse_items(count: u8, items: &[u8]) -> Result<ObjectArray, String> {
    parse_object_npy(&file(&format!("({count},)"), &array_of(count, items)))
}

#[track_caller]
fn assert_item_refused(items: &[u8], reason: &str) {
    let error = parse_items(1, items).unwrap_err();
    assert!(error.contains(reason), "{reason:?} is not in: {error}");
}

#[test]
fn every_protocol_gives_the_same_values() {
    let image = ObjectValue::Array(Npy { shape: vec![2, 3], data: NpyData::F32(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]) });
    let number = ObjectValue::Number;
    let expected = ObjectArray {
        shape: vec![9],
        items: vec![
            image.clone(),
            ObjectValue::List(vec![image, number(1.5)]),
            ObjectValue::Dict(vec![(
                "k".into(),
                ObjectValue::List(vec![number(1.0), number(-70000.0), number(1099511627776.0)]),
            )]),
            number(2.5),
            number(-3.0),
            number(1.0),
            ObjectValue::Text("é\\x\n".into()),
            ObjectValue::None,
            number(0.0),
        ],
    };
    for name in ["p0", "p1", "p2", "p3", "p4", "p5", "p3_numpy1"] {
        assert_eq!(read_object_npy(fixture(&format!("mixed_{name}.npy"))).unwrap(), expected, "{name}");
    }
}

#[test]
fn the_layouts_of_lensing_files_become_numbers() {
    let rows = read_object_npy(fixture("rows.npy")).unwrap().to_numbers().unwrap();
    assert_eq!(rows, (vec![3, 4], (0..12).map(|i| f64::from(i / 4 * 10 + i % 4)).collect()));
    let pair = read_object_npy(fixture("image_mass.npy")).unwrap();
    assert_eq!(pair.items[0].to_numbers().unwrap(), (vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    assert_eq!(pair.items[1], ObjectValue::Number(-23.5));
    let uneven = pair.to_numbers().unwrap_err();
    assert!(uneven.contains("row 1: found shape [], expected [2, 3]"), "{uneven}");
    let numbers = read_object_npy(fixture("numbers.npy")).unwrap().to_numbers().unwrap();
    assert_eq!(numbers, (vec![2, 2], vec![1.0, 2.5, 1.0, -4.0]));
    let mixed = read_object_npy(fixture("mixed_p4.npy")).unwrap();
    assert!(mixed.items[7].to_numbers().unwrap_err().contains("expected numbers"));
    assert!(mixed.into_named_arrays().unwrap_err().contains("expected one dictionary"));
}

#[test]
fn a_saved_dictionary_is_a_checkpoint() {
    for name in ["state_dict.npy", "state_dict_ordered_p2_numpy1.npy"] {
        let path = fixture(name);
        let opened = Checkpoint::open(&path).unwrap();
        assert_eq!(opened.names().collect::<Vec<_>>(), ["big", "fortran", "half", "scale", "steps", "tied", "w"]);
        let w = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25];
        assert_eq!((opened.shape("w"), opened.dtype("w")), (Some(&[2, 3][..]), Some(FileDType::F32)));
        assert_eq!(opened.read_f32("w").unwrap(), w);
        assert_eq!(opened.read_f32("tied").unwrap(), w);
        assert_eq!(opened.read_f64("fortran").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(opened.read_f32("big").unwrap(), [1.5, -2.5]);
        assert_eq!((opened.dtype("half"), opened.read_f32("half").unwrap()), (Some(FileDType::F16), vec![0.5, -0.25]));
        assert_eq!((opened.shape("steps"), opened.bytes("steps").unwrap()), (Some(&[][..]), &7i64.to_le_bytes()[..]));
        assert_eq!(opened.read_f64("scale").unwrap(), [2.5]);
        assert_eq!(opened.total_bytes(), 24 + 24 + 48 + 8 + 4 + 8 + 8);
        assert_eq!(opened.sha256(), sha256_file(&path).unwrap());
    }
    let hint = "dictionary of arrays, saved with numpy.save";
    assert_refused(Checkpoint::open(fixture("rows.npy")), &["rows.npy", hint]);
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.npy");
    arclet::io::write_npy_f32(&plain, &[1], &[1.0]).unwrap();
    assert_refused(Checkpoint::open(&plain), &["plain.npy", "expected Python objects", hint]);
    assert_refused(read_npy(fixture("rows.npy")), &["rows.npy", "Python objects"]);
}

#[test]
fn the_hand_made_pickle_is_valid() {
    // So that the refusals below are refused for their own reason.
    let number = |v: f64| ObjectValue::Number(v);
    assert_eq!(parse_items(2, b"K\x07I01\n").unwrap().items, [number(7.0), number(1.0)]);
    // What Python 2 wrote: text and dictionary keys as byte strings, long integers with an L.
    let items = parse_items(3, b"S'it\\'s \\x41'\nL12L\n}U\x01kF1.5\ns").unwrap().items;
    let dict = ObjectValue::Dict(vec![("k".into(), number(1.5))]);
    assert_eq!(items, [ObjectValue::Text("it's A".into()), number(12.0), dict]);
}

#[test]
fn code_in_a_pickle_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let call = |module: &str, name: &str| format!("c{module}\n{name}\n(S'touch {}'\ntR", trace.display());
    for (module, name) in
        [("posix", "system"), ("os", "system"), ("builtins", "eval"), ("__builtin__", "exec"), ("numpy", "load")]
    {
        let path = folder.path().join("evil.npy");
        std::fs::write(&path, file("(1,)", &array_of(1, call(module, name).as_bytes()))).unwrap();
        let named = [&format!("{name:?}")[..], &format!("{module:?}")[..], "not called"];
        assert_refused(read_object_npy(&path), &named);
        assert_refused(Checkpoint::open(&path), &named);
    }
    assert!(!trace.exists());
    assert_item_refused(b"\x8c\x02os\x8c\x06system\x93", "\"system\" of module \"os\"");
    for (opcode, name) in [
        (&b"\x81"[..], "NEWOBJ"),
        (b"\x92", "NEWOBJ_EX"),
        (b"iposix\nsystem\n", "INST"),
        (b"(oX", "OBJ"),
        (b"Pid\n", "PERSID"),
        (b"Q", "BINPERSID"),
        (b"\x82\x01", "EXT"),
        (b"\x97", "NEXT_BUFFER"),
        (b"2", "DUP"),
        (b"\xff", "0xff"),
    ] {
        assert_item_refused(&[b"K\x01", opcode].concat(), name);
    }
}

#[test]
fn what_allowed_functions_cannot_make_is_refused() {
    for (items, reason) in [
        (&b"cnumpy\nndarray\n(tR"[..], "NdArray called"),
        (b"K\x01)R", "no function"),
        (b"cnumpy\ndtype\nK\x01R", "expected a tuple"),
        (b"cnumpy\ndtype\n(U\x03V10K\0K\x01tR", "\"V10\""),
        (b"cnumpy\ndtype\n(U\x02f8K\0K\x01tR", "a type or function where a value"),
        (b"cnumpy\ndtype\n", "a type or function where a value"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\0tU\x01btR", "expected numpy.ndarray"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR", "a type or function where a value"),
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02f8K\0K\x01tRU\x01xtR", "found 1 bytes, expected 8"),
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02O8K\0K\x01tRU\0tR", "scalar"),
        (b"c_codecs\nencode\n(X\x01\0\0\0aX\x05\0\0\0utf-8tR", "expected latin1"),
        (b"}(U\x01kK\x01U\x01kK\x02u", "duplicate key \"k\""),
        (b"}K\x01K\x01s", "a key that is no text"),
        (b"}(K\x01u", "without a value"),
        (b"C\x02\xff\xfe", "found bytes"),
        (b"g5\n", "memo index 5"),
        (b"ttt", "no mark"),
        (b"\x8a\x09123456789", "9 bytes, expected at most 8"),
        (b"I99999999999999999999\n", "at most 64 bits"),
        (b"X\xff\xff\xff\xffa", "length: found 4294967295"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa", "length: found 18446744073709551615"),
        (b"\x8c\x01\xff", "not UTF-8"),
        (b"V\\u12\n", "\\u escape"),
        (b"V\\ud800\n", "\\u escape"),
        (b"S'\\x4'\n", "\\x escape"),
        (b"K\x01K\x01b", "expected a tuple"),
        (b"K\x01)b", "BUILD of something"),
    ] {
        assert_item_refused(items, reason);
    }
}

#[test]
fn arrays_inside_must_match_their_bytes() {
    let array = |shape: &[u8], dtype: &[u8], fortran: u8, data: &[u8]| {
        [
            &b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01"[..],
            shape,
            b"cnumpy\ndtype\n(U\x02",
            dtype,
            b"K\0K\x01tR",
            &[fortran],
            data,
            b"tb",
        ]
        .concat()
    };
    let good = parse_items(1, &array(b"(K\x02t", b"u1", 0x89, b"U\x02\x05\x06")).unwrap();
    assert_eq!(good.items[0], ObjectValue::Array(Npy { shape: vec![2], data: NpyData::U8(vec![5, 6]) }));
    assert_item_refused(&array(b"(K\x03t", b"u1", 0x89, b"U\x02\x05\x06"), "found 2");
    assert_item_refused(&array(b"(J\xff\xff\xff\xfft", b"u1", 0x89, b"U\x02\x05\x06"), "shape: found -1");
    assert_item_refused(&array(b"(L4611686018427387904L\nL4L\nt", b"f8", 0x89, b"U\0"), "found 0");
    assert_item_refused(&array(b"(K\x02t", b"u1", b'N', b"U\x02\x05\x06"), "True or False");
    assert_item_refused(&array(b"(K\x01t", b"O8", 0x89, b"U\x08abcdefgh"), "unknown way");
    assert_item_refused(&array(b"(K\x01t", b"u1", 0x89, b"]"), "unknown way");
    assert_item_refused(
        &array(b"(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t", b"u1", 0x89, b"U\x01a"),
        "9 dimensions",
    );
}

#[test]
fn header_and_pickle_must_agree() {
    let pickle = array_of(1, b"K\x01");
    let refused = |bytes: &[u8], reason: &str| {
        let error = parse_object_npy(bytes).unwrap_err();
        assert!(error.contains(reason), "{error}");
    };
    refused(&file("(2,)", &pickle), "the header says [2], the pickle [1]");
    refused(&file("(1,)", &[&pickle[..], b"x"].concat()), "1 bytes after its end");
    refused(&file("(1,)", &pickle[..pickle.len() - 1]), "truncated");
    refused(&file("()", b"K\x01."), "expected an array of objects");
    refused(&file("()", b"\x80\x09."), "protocol: found 9");
    refused(&file("()", b""), "truncated");
    refused(&file("(2,)", &array_of(2, b"K\x01")), "array of shape [2]");
}

#[test]
fn values_that_contain_themselves_or_explode_are_refused() {
    // A list in itself.
    assert_item_refused(b"]q\x01h\x01a", "nested deeper");
    // Lists of ten of the one before, a dozen times over: 10^12 values in a few hundred bytes.
    let mut items = b"K\x01q\0".to_vec();
    for level in 0..12u8 {
        items.extend(b"](");
        items.extend([b'h', level].repeat(10));
        items.extend([b'e', b'q', level + 1]);
    }
    let mut list = b"](".to_vec();
    list.extend(items);
    list.push(b'e');
    assert_item_refused(&list, "too often");
    // One long text, many times.
    let text = [&b"]("[..], b"X", &100_000u32.to_le_bytes(), &[b'a'; 100_000], b"q\x01", &b"h\x01".repeat(1000), b"e"]
        .concat();
    assert_item_refused(&text, "too often");
    let deep = [&b"(".repeat(200_000)[..], &b"t".repeat(200_000)].concat();
    assert_item_refused(&deep, "nested deeper");
}

proptest! {
    #[test]
    fn arbitrary_pickles_never_panic(pickle in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_object_npy(&file("(1,)", &pickle));
        let _ = parse_items(1, &pickle);
    }

    /// Bytes of valid files changed: never a panic, and what is still read is consistent.
    #[test]
    fn damaged_files_never_panic(protocol in 0usize..6, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = std::fs::read(fixture(&format!("mixed_p{protocol}.npy"))).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(array) = parse_object_npy(&bytes) {
            prop_assert_eq!(array.shape.iter().product::<usize>(), array.items.len());
        }
    }
}
