//! Bytes of a file without copying them: memory-mapped, or embedded in the binary.

use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Read-only bytes and whoever keeps them alive.
pub(crate) enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// Gives the memory of a part back that has been read: a mapped file counts as this process's memory page by page, and
    /// weights are read once. Reading it again finds it in the page cache.
    pub(crate) fn forget(&self, range: &Range<usize>) {
        if let Self::Mapped(map) = self {
            #[cfg(unix)]
            // SAFETY: the mapping is private, read-only and of a file: its pages come back as they were.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
            #[cfg(not(unix))]
            let _ = (map, range);
        }
    }
}

/// Maps a regular file.
pub(crate) fn map_file(path: &Path) -> Result<Bytes> {
    let file = open_regular(path)?;
    // SAFETY: the mapping is private and read-only, and only ever read as plain bytes, for which every bit pattern
    // is valid. Files that this program writes are replaced by rename and never shortened in place, so a mapping
    // stays whole; a foreign process that shortens a file while it is read ends this one with SIGBUS, the known
    // price of mapping weights instead of copying them.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::input(path, format!("cannot be mapped: {e}")))?;
    Ok(Bytes::Mapped(map))
}

/// Reads a small text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::input(path, format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > limit {
        return Err(Error::input(path, format!("file size: found more than {limit} bytes, expected at most that")));
    }
    String::from_utf8(bytes).map_err(|e| Error::input(path, format!("not UTF-8 text: {e}")))
}

/// Opens a file after making sure that it is one: opening a pipe would wait for ever.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|e| Error::input(path, format!("cannot be opened: {e}")))?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(Error::input(path, format!("found {found}, expected a regular file")));
    }
    File::open(path).map_err(|e| Error::input(path, format!("cannot be opened: {e}")))
}
