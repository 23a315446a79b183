//! LZF, the filter that h5py calls `lzf`.

use arclet::io::lzf::decompress;
use proptest::prelude::*;

#[test]
fn literals_and_references_are_expanded() {
    assert_eq!(decompress(&[2, b'a', b'b', b'c'], 3).unwrap(), b"abc");
    // Three bytes from one back: a run; then four from three back.
    assert_eq!(decompress(&[0, b'x', 1 << 5, 0, 2 << 5, 2], 8).unwrap(), b"xxxxxxxx");
    // A long length: 2 + 7 + 200.
    assert_eq!(decompress(&[0, 7, 7 << 5, 200, 0], 300).unwrap(), [7; 210]);
    assert!(decompress(&[], 0).unwrap().is_empty());
}

#[test]
fn damaged_input_is_refused() {
    for (input, limit, reason) in [
        (&[5, 1, 2][..], 100, "within literal"),
        (&[0, 1, 1 << 5], 100, "within a reference"),
        (&[0, 1, 7 << 5], 100, "within a reference"),
        (&[0, 1, 1 << 5, 1], 100, "before the start"),
        (&[1 << 5, 0], 100, "before the start"),
        (&[2, 1, 2, 3], 2, "more than 2"),
        (&[0, 1, 7 << 5, 255, 0], 100, "more than 100"),
    ] {
        let error = decompress(input, limit).unwrap_err();
        assert!(error.contains(reason), "{input:?}: {error}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..300), limit in 0usize..1000) {
        if let Ok(out) = decompress(&input, limit) {
            prop_assert!(out.len() <= limit);
        }
    }

    /// Runs through a compressor of a few lines: literals, and references one byte back.
    #[test]
    fn runs_come_back(runs in prop::collection::vec((any::<u8>(), 1usize..300), 0..20)) {
        let (mut plain, mut packed) = (Vec::new(), Vec::new());
        for (byte, length) in runs {
            plain.resize(plain.len() + length, byte);
            packed.extend([0, byte]);
            let mut left = length - 1;
            while left >= 9 {
                let extra = (left - 9).min(255);
                packed.extend([7 << 5, extra as u8, 0]);
                left -= 9 + extra;
            }
            packed.extend([0, byte].repeat(left));
        }
        prop_assert_eq!(decompress(&packed, plain.len()).unwrap(), plain);
    }
}
