//! Recognises files that are no safetensors, to say what they are and what to do about it.

use std::path::Path;

use crate::io::header::looks_like_safetensors;

const PICKLE: &str = "found a PyTorch pickle, expected safetensors; pickles can run code and are never opened: \
    convert it with `python3 tools/pt2safetensors.py FILE`";

/// What a file of weights turned out to be.
pub(crate) enum Kind {
    /// Safetensors, or something that only its header can tell.
    Safetensors,
    /// A NumPy file: may hold a pickled dictionary of arrays.
    Npy,
    /// Something else; the reason says what and how to convert it.
    Refused(String),
}

/// Tells kinds apart by content, and by name where the content says nothing. A header length of 640 starts with the
/// same bytes as a pickle, so what looks like safetensors counts as that.
pub(crate) fn recognise(path: &Path, bytes: &[u8]) -> Kind {
    if looks_like_safetensors(bytes) {
        return Kind::Safetensors;
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let refused = |reason: &str| Kind::Refused(reason.to_owned());
    match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Kind::Npy,
        [b'P', b'K', 3 | 5, 4 | 6, ..] if extension == "npz" => refused(
            "found a NumPy .npz archive, expected safetensors: convert it with \
             `safetensors.numpy.save_file(dict(numpy.load(FILE)), \"model.safetensors\")` in Python",
        ),
        [b'P', b'K', 3 | 5, 4 | 6, ..] | [0x80, 2..=5, ..] => refused(PICKLE),
        [0x89, b'H', b'D', b'F', ..] => refused(
            "found an HDF5 file, expected safetensors: load it in the framework that wrote it and save its weights with the \
             safetensors package",
        ),
        [b'G', b'G', b'U', b'F', ..] => {
            refused("found a GGUF file, expected safetensors: use the original, unquantised checkpoint")
        }
        _ if bytes.starts_with(b"version https://git-lfs") => {
            refused("found a Git LFS pointer, expected safetensors: fetch the file itself with `git lfs pull`")
        }
        _ if matches!(extension.as_str(), "pt" | "pth" | "ckpt" | "bin" | "pkl") => refused(PICKLE),
        _ if extension == "json" => {
            refused("found JSON, expected safetensors: give the folder that holds the model instead")
        }
        _ => Kind::Safetensors,
    }
}
