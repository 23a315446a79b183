//! HDF5 output, with and without the feature.

use arclet::io::{require_h5, write_h5};

use crate::listing;

#[cfg(not(feature = "hdf5"))]
#[test]
fn without_the_feature_the_error_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let write = write_h5(folder.path().join("a.h5"), &[1, 1, 1, 1], &[0.0], &[]);
    for error in [require_h5().unwrap_err(), write.unwrap_err()] {
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--features hdf5"), "{error}");
    }
    assert!(listing(folder.path()).is_empty());
}

#[cfg(feature = "hdf5")]
#[test]
fn what_is_written_is_read() {
    use hdf5::types::VarLenUnicode;

    require_h5().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.h5");
    let images: Vec<f32> = (0..24).map(|i| i as f32 / 3.0).collect();
    let recipe = format!("{{\"seed\": 1, \"long\": {:?}}}", "é".repeat(100_000));
    write_h5(&path, &[2, 1, 3, 4], &images, &[("recipe", &recipe), ("version", "1")]).unwrap();
    assert_eq!(listing(folder.path()), ["a.h5"]);
    let set = hdf5::File::open(&path).unwrap().dataset("images").unwrap();
    assert_eq!(set.shape(), [2, 1, 3, 4]);
    assert_eq!(set.read_raw::<f32>().unwrap(), images);
    assert_eq!(set.attr("recipe").unwrap().read_scalar::<VarLenUnicode>().unwrap().as_str(), recipe);
    let first = std::fs::read(&path).unwrap();
    write_h5(&path, &[2, 1, 3, 4], &images, &[("recipe", &recipe), ("version", "1")]).unwrap();
    assert!(std::fs::read(&path).unwrap() == first, "equal input gives equal bytes");
    assert_eq!(write_h5(&path, &[25], &images, &[]).unwrap_err().exit_code(), 1);
    assert_eq!(write_h5(&path, &[24], &images, &[("nul", "\0")]).unwrap_err().exit_code(), 1);
    assert_eq!(write_h5(folder.path().join("none/a.h5"), &[24], &images, &[]).unwrap_err().exit_code(), 5);
    assert_eq!(listing(folder.path()), ["a.h5"]);
}
