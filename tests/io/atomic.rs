//! Files appear whole or not at all.

use std::fs;
use std::io::Write;

use arclet::error::Error;
use arclet::io::atomic::write_atomic_with;
use arclet::io::{AtomicFile, sha256_file, sha256_hex, write_atomic};

use crate::listing;

#[test]
fn commit_replaces_and_drop_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    write_atomic(&path, b"first").unwrap();
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"sec").unwrap();
    assert_eq!(listing(folder.path()).len(), 2, "the temporary file lies beside the target");
    assert_eq!(fs::read(&path).unwrap(), b"first");
    drop(file);
    assert_eq!(listing(folder.path()), ["a.bin"]);
    assert_eq!(fs::read(&path).unwrap(), b"first");
    write_atomic(&path, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(listing(folder.path()), ["a.bin"]);
}

#[test]
fn a_failing_writer_by_path_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.h5");
    let failed = write_atomic_with(&path, |temporary| {
        fs::write(temporary, b"half").unwrap();
        Err(Error::Runtime("library failed".into()))
    });
    assert_eq!(failed.unwrap_err().to_string(), "library failed");
    assert!(listing(folder.path()).is_empty());
    write_atomic_with(&path, |temporary| {
        fs::write(temporary, b"whole").unwrap();
        Ok(())
    })
    .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    assert_eq!(listing(folder.path()), ["a.h5"]);
}

#[test]
fn unwritable_targets_are_output_errors() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"x").unwrap();
    for target in ["missing/a.bin", "file/a.bin", "", ".."] {
        let target = folder.path().join(target);
        let error = write_atomic(&target, b"x").unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(error.to_string().contains("cannot write"), "{error}");
    }
    assert_eq!(listing(folder.path()), ["file"]);
}

#[cfg(unix)]
#[test]
fn a_device_is_not_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let error = write_atomic("/dev/null", b"x").unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[test]
fn digests_are_sha256() {
    // FIPS 180-2, appendix B.1.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256_hex(b"abc"), abc);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("abc");
    fs::write(&path, b"abc").unwrap();
    assert_eq!(sha256_file(&path).unwrap(), abc);
    crate::assert_refused(sha256_file(folder.path()), &["found a folder"]);
}
