//! Single images in every layout seen in the wild.

use arclet::data::Image;
use arclet::data::image::{parse_image, read_image};
use arclet::io::write_npy_f32;
use proptest::prelude::*;

use super::{assert_refused, fixture, lens, open};

#[test]
fn every_layout_is_the_same_image() {
    let expected = Image { shape: [1, 8, 8], pixels: lens(0, 8), number: None };
    for name in ["plain", "channel", "fortran", "big_endian", "rows", "flat"] {
        assert_eq!(read_image(fixture(&format!("{name}.npy"))).unwrap(), expected, "{name}");
    }
    for (name, number) in [("image_mass", -22.5), ("image_mass_list", -22.5), ("flat_label", 2.0)] {
        let image = read_image(fixture(&format!("{name}.npy"))).unwrap();
        assert_eq!(image, Image { number: Some(number), ..expected.clone() }, "{name}");
    }
    let integers = read_image(fixture("integers.npy")).unwrap();
    assert_eq!(integers.pixels, expected.pixels.iter().map(|v| v * 64.0).collect::<Vec<_>>());
    let colour = read_image(fixture("colour.npy")).unwrap();
    assert_eq!((colour.shape, colour.pixels[64 + 9]), ([3, 8, 8], expected.pixels[9] + 1.0));
}

#[test]
fn files_that_are_no_image_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    for (shape, part) in [
        (&[65usize, 5, 5][..], "[65, 5, 5]"),
        (&[1, 1, 4, 4], "[1, 1, 4, 4]"),
        (&[0, 4], "[1, 0, 4]"),
        (&[15], "15 numbers in a row"),
        (&[2], "2 numbers in a row"),
    ] {
        write_npy_f32(&path, shape, &vec![0.0; shape.iter().product()]).unwrap();
        assert_refused(read_image(&path), &["a.npy", part]);
    }
    let whole = std::fs::read(fixture("plain.npy")).unwrap();
    for length in [0, 5, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_refused(read_image(&path), &["a.npy"]);
    }
    let object = std::fs::read(fixture("image_mass.npy")).unwrap();
    std::fs::write(&path, &object[..object.len() - 9]).unwrap();
    assert_refused(read_image(&path), &["a.npy", "pickle"]);
}

#[test]
fn pixels_that_are_not_finite_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let mut pixels = vec![0.5; 2 * 3 * 4];
    (pixels[12 + 2 * 4 + 1], pixels[23]) = (f32::NAN, f32::INFINITY);
    write_npy_f32(&path, &[2, 3, 4], &pixels).unwrap();
    assert_refused(read_image(&path), &["a.npy", "2 of 24 pixels not finite", "channel 1, row 2, column 1: NaN"]);
}

/// A pickle that would create a file if anything in it were called.
#[test]
fn a_malicious_pickle_is_refused_and_not_executed() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let call = format!("cposix\nsystem\n(S'touch {}'\ntR.", trace.display());
    let head = "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n";
    let bytes =
        [&b"\x93NUMPY\x01\0"[..], &(head.len() as u16).to_le_bytes(), head.as_bytes(), call.as_bytes()].concat();
    std::fs::create_dir(folder.path().join("no")).unwrap();
    let path = folder.path().join("no/1.npy");
    std::fs::write(&path, bytes).unwrap();
    let named = ["1.npy", "\"system\" of module \"posix\"", "not called"];
    assert_refused(read_image(&path), &named);
    assert_refused(open(&path), &named);
    assert_refused(open(folder.path()).unwrap().read(0), &named);
    assert!(!trace.exists());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_image(&[&b"\x93NUMPY\x01\0"[..], &tail].concat());
    }

    #[test]
    fn changed_files_never_panic(
        which in 0usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let names = ["plain", "rows", "image_mass", "image_mass_list", "flat_label"];
        let mut bytes = std::fs::read(fixture(&format!("{}.npy", names[which]))).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(image) = parse_image(&bytes) {
            prop_assert_eq!(image.shape.iter().product::<usize>(), image.pixels.len());
            prop_assert!(image.pixels.iter().all(|v| v.is_finite()));
        }
    }
}
