//! HDF5 output, behind the cargo feature `hdf5`: its C library is built with cmake 3.26 or later.

use std::path::Path;

use crate::error::{Error, Result};

/// Fails with [`Error::Usage`] where this binary cannot write HDF5, and says how to build one that can. Ask before
/// the work, not after it.
pub fn require_h5() -> Result<()> {
    if cfg!(feature = "hdf5") {
        return Ok(());
    }
    Err(Error::usage(
        "this binary cannot write HDF5: build it with `cargo build --release --features hdf5` (needs cmake 3.26 or later), or write .npy or \
         .safetensors",
    ))
}

/// Writes row-major f32 `images` of `shape` (n, channels, height, width) as the data set `images`, with text
/// `attributes` (name, value) on it, whole or not at all. [`Error::Usage`] without the feature `hdf5`;
/// [`Error::Runtime`] if the number of values does not match the shape or the library fails.
pub fn write_h5(path: impl AsRef<Path>, shape: &[usize], images: &[f32], attributes: &[(&str, &str)]) -> Result<()> {
    require_h5()?;
    let expected = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    if expected != Some(images.len()) {
        return Err(Error::Runtime(format!("{} values do not make shape {shape:?}", images.len())));
    }
    write(path.as_ref(), shape, images, attributes)
}

#[cfg(feature = "hdf5")]
fn write(path: &Path, shape: &[usize], images: &[f32], attributes: &[(&str, &str)]) -> Result<()> {
    use hdf5::types::VarLenUnicode;

    crate::io::atomic::write_atomic_with(path, |temporary| {
        let failed = |e: hdf5::Error| Error::Runtime(format!("HDF5: {e}"));
        let file = hdf5::File::create(temporary).map_err(failed)?;
        let set = file.new_dataset::<f32>().shape(shape.to_vec()).create("images").map_err(failed)?;
        set.write_raw(images).map_err(failed)?;
        for (name, value) in attributes {
            let text: VarLenUnicode = value.parse().map_err(|e| Error::Runtime(format!("attribute {name}: {e}")))?;
            set.new_attr::<VarLenUnicode>().create(*name).and_then(|attr| attr.write_scalar(&text)).map_err(failed)?;
        }
        file.close().map_err(failed)
    })
}

#[cfg(not(feature = "hdf5"))]
fn write(_path: &Path, _shape: &[usize], _images: &[f32], _attributes: &[(&str, &str)]) -> Result<()> {
    require_h5()
}
