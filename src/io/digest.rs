//! SHA-256 digests, in lower-case hexadecimal.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::io::mapped::map_file;

/// Digest of `bytes`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    sha256_of_parts([bytes])
}

/// Digest of the concatenation of `parts`.
pub fn sha256_of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digest of a file's content; [`crate::error::Error::Input`] if it cannot be read.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String> {
    Ok(sha256_hex(&map_file(path.as_ref())?))
}
