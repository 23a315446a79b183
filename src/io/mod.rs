//! Files in and out: safetensors checkpoints, NumPy arrays and archives, PNG previews, digests, HDF5.
//!
//! A leaf of the crate: knows errors and element types only. Everything read here is untrusted, so every size is
//! checked against the length of the file before memory is taken, nothing read is ever executed, and a refusal
//! names the file, the field, what was found and what was expected. Everything written goes to a temporary name,
//! is synced, then renamed.

pub mod atomic;
pub mod checkpoint;
pub mod colormap;
mod decode;
pub mod digest;
pub mod dtype;
mod folder;
mod foreign;
pub mod h5;
pub mod h5_read;
pub mod header;
pub mod json;
pub mod known;
pub mod lzf;
mod mapped;
pub mod npy;
mod npy_header;
pub mod npy_part;
pub mod npy_writer;
pub mod npz;
pub mod object_npy;
mod pickle;
mod pickle_text;
pub mod png;
pub mod rows;
pub mod safetensors;
mod zip;

pub use self::atomic::{AtomicFile, write_atomic};
pub use self::checkpoint::Checkpoint;
pub use self::digest::{sha256_file, sha256_hex};
pub use self::dtype::FileDType;
pub use self::h5::{require_h5, write_h5};
pub use self::h5_read::{H5Array, H5File};
pub(crate) use self::mapped::{map_file, read_text};
pub use self::npy::{NonFinite, Npy, NpyData, read_npy, read_npy_f32};
pub use self::npy_part::NpyPart;
pub use self::npy_writer::{NpyWriter, write_npy_f32, write_npy_u32};
pub use self::npz::Npz;
pub use self::object_npy::{AnyNpy, ObjectArray, ObjectValue, read_any_npy, read_object_npy};
pub use self::png::{GridLayout, GridPng, write_grid_png};
pub use self::rows::Rows;
pub use self::safetensors::{TensorBytes, write_safetensors};

/// `text` in quotes, control characters escaped and cut at 120 characters: names from hostile files go into
/// messages through this.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((cut, _)) => format!("{:?}...", &text[..cut]),
        None => format!("{text:?}"),
    }
}

/// Empty vector with room for `len` elements, or `None` where the memory cannot be had. Sizes come from files, so
/// running out must be an error and not an abort.
pub(crate) fn try_with_capacity<T>(len: usize) -> Option<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).ok()?;
    Some(out)
}
