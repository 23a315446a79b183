//! Conversions that are stopped and gone on with.

use arclet::data::convert::{Converted, Target, convert};

use super::{assert_refused, open, write_image};

#[test]
fn an_interrupted_conversion_keeps_what_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("set"), folder.path().join("out"));
    (0..70u8).for_each(|i| write_image(source.join(format!("no/{i}.npy")), 4, i.into()));
    let set = open(&source).unwrap();
    for target in [Target::Folder(out.clone()), Target::Npy(out.with_extension("npy"))] {
        let stopped = convert(&set, &target, false, &mut |done| done == 0).unwrap_err();
        assert_eq!((stopped.exit_code(), stopped.to_string().contains("64 of 70")), (130, true), "{stopped}");
        let done = convert(&set, &target, true, &mut |_| true).unwrap();
        assert_eq!(done, Converted { written: 6, kept: 64 });
    }
    for path in [out.clone(), out.with_extension("npy")] {
        let again = open(&path).unwrap();
        assert_eq!(
            (again.len(), again.read(69).unwrap(), again.read(63).unwrap().pixels[0]),
            (70, set.read(69).unwrap(), 63.0)
        );
    }
    let whole = Target::Safetensors(folder.path().join("a.safetensors"));
    assert_eq!(convert(&set, &whole, false, &mut |_| false).unwrap_err().exit_code(), 130);
    assert!(!folder.path().join("a.safetensors").exists());
}

#[test]
fn one_array_takes_one_size() {
    let folder = tempfile::tempdir().unwrap();
    write_image(folder.path().join("set/no/1.npy"), 4, 0.0);
    write_image(folder.path().join("set/no/2.npy"), 5, 0.0);
    let set = open(folder.path().join("set")).unwrap();
    for out in ["a.npy", "a.safetensors"] {
        let target = Target::new(&folder.path().join(out));
        let parts = ["2.npy", "mixed sizes: found [1, 5, 5]", "expected [1, 4, 4]"];
        assert_refused(convert(&set, &target, false, &mut |_| true), &parts);
    }
}
