//! Files that appear whole or not at all: temporary name in the same folder, fsync, rename, fsync of the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Distinguishes temporary files of one process.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A file being written under a temporary name. [`AtomicFile::commit`] gives it its final name; dropping it
/// without that removes it, so a failed or interrupted write leaves nothing behind and an older file of the same
/// name stays as it was.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: TemporaryPath,
    writer: BufWriter<File>,
}

impl AtomicFile {
    /// Opens a temporary file beside `target`. Fails with [`Error::Output`] if the folder is missing or not
    /// writable, or if `target` exists and is no regular file (a rename would replace a device or a folder).
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref();
        let (temporary, file) = reserve(target).map_err(|e| Error::output(target, e))?;
        Ok(Self {
            target: target.to_path_buf(),
            temporary: TemporaryPath(temporary),
            writer: BufWriter::with_capacity(1 << 20, file),
        })
    }

    /// Final path of the file.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Appends `bytes` at the current position; failures name the final path.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|e| Error::output(&self.target, e))
    }

    /// Overwrites `bytes` at byte `position`, then returns to the end of the file.
    pub fn put_at(&mut self, position: u64, bytes: &[u8]) -> Result<()> {
        let mut write = || {
            self.writer.seek(SeekFrom::Start(position))?;
            self.writer.write_all(bytes)?;
            self.writer.seek(SeekFrom::End(0)).map(drop)
        };
        write().map_err(|e| Error::output(&self.target, e))
    }

    /// Cuts the file to `length` bytes and moves to its end.
    pub fn truncate(&mut self, length: u64) -> Result<()> {
        let mut cut = || {
            self.writer.flush()?;
            self.writer.get_ref().set_len(length)?;
            self.writer.seek(SeekFrom::Start(length)).map(drop)
        };
        cut().map_err(|e| Error::output(&self.target, e))
    }

    /// Syncs the content to disk and renames it to the final path.
    pub fn commit(mut self) -> Result<()> {
        let finish = |writer: &mut BufWriter<File>| {
            writer.flush()?;
            writer.get_ref().sync_all()
        };
        finish(&mut self.writer)
            .and_then(|()| publish(&self.temporary.0, &self.target))
            .map_err(|e| Error::output(&self.target, e))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Writes `bytes` to `target`, whole or not at all.
pub fn write_atomic(target: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(target)?;
    file.put(bytes)?;
    file.commit()
}

/// For libraries that open files by name: `write` fills an empty file at the temporary path it is given, which then
/// gets the name `target`. On failure nothing is left behind.
pub fn write_atomic_with(target: impl AsRef<Path>, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let target = target.as_ref();
    let (path, file) = reserve(target).map_err(|e| Error::output(target, e))?;
    drop(file);
    let temporary = TemporaryPath(path);
    write(&temporary.0)?;
    File::open(&temporary.0)
        .and_then(|file| file.sync_all())
        .and_then(|()| publish(&temporary.0, target))
        .map_err(|e| Error::output(target, e))
}

/// A path that is removed when dropped; after a successful rename there is nothing left to remove.
#[derive(Debug)]
struct TemporaryPath(PathBuf);

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        // Missing after the rename; any other failure cannot be mended here.
        let _ = fs::remove_file(&self.0);
    }
}

/// Creates a new, empty file beside `target`.
fn reserve(target: &Path) -> io::Result<(PathBuf, File)> {
    let Some(name) = target.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"));
    };
    if let Ok(found) = fs::metadata(target)
        && !found.is_file()
    {
        let what = if found.is_dir() { "the path is a folder" } else { "the path is no regular file" };
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    loop {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{}.tmp", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)));
        let path = folder_of(target).join(hidden);
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            // Left by a killed process that had our id: take the next number.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
    }
}

/// Renames and makes the new name durable.
pub(crate) fn publish(temporary: &Path, target: &Path) -> io::Result<()> {
    fs::rename(temporary, target)?;
    sync_folder(folder_of(target))
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|f| f.sync_all()) {
        // Some network and user-space file systems cannot sync folders: the rename itself has succeeded.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}
