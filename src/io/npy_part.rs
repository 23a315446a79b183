//! A large `.npy` file of f32 that is written in several runs: it grows as `NAME.part` and gets its name when whole.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::atomic::publish;
use crate::io::npy_header::encode_f32;

/// The growing file. Dropped before it is whole, it stays, to be gone on with.
pub struct NpyPart {
    target: PathBuf,
    part: PathBuf,
    writer: BufWriter<File>,
    shape: Vec<usize>,
    rows: usize,
}

impl NpyPart {
    /// Starts `target` of `shape`, or goes on with what an earlier run left if `resume` is set.
    ///
    /// # Errors
    /// [`Error::Output`] if it cannot be written, and for the remains of a run when not told to go on;
    /// [`Error::Input`] for remains of an array of another shape.
    pub fn open(target: &Path, shape: &[usize], resume: bool) -> Result<Self> {
        let mut name = target.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        let failed = |e| Error::output(&part, e);
        let header = encode_f32(shape, 0);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(resume).create_new(!resume).open(&part).map_err(|e| {
            let exists = e.kind() == ErrorKind::AlreadyExists;
            let left = || std::io::Error::new(e.kind(), "an unfinished run left it; --resume goes on with it");
            Error::output(&part, if exists { left() } else { e })
        })?;
        let length = file.metadata().map_err(failed)?.len();
        let (row, mut rows) = (4 * shape[1..].iter().product::<usize>() as u64, 0);
        if length < header.len() as u64 {
            file.set_len(0).and_then(|()| file.write_all(&header)).map_err(failed)?;
        } else {
            let mut found = vec![0; header.len()];
            file.read_exact(&mut found).map_err(failed)?;
            if found != header {
                return Err(Error::input(
                    &part,
                    format!("left by a run with another result, expected an array of {shape:?}"),
                ));
            }
            rows = ((length - header.len() as u64) / row.max(1)).min(shape[0] as u64);
            let end = header.len() as u64 + rows * row;
            file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(failed)?;
        }
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { target: target.to_path_buf(), part, writer, shape: shape.to_vec(), rows: rows as usize })
    }

    /// Whole rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Appends one row. [`Error::Runtime`] if it has another length, or all rows are there.
    pub fn push(&mut self, row: &[f32]) -> Result<()> {
        if row.len() != self.shape[1..].iter().product::<usize>() || self.rows == self.shape[0] {
            return Err(Error::Runtime(format!("a row of {} elements too many for {:?}", row.len(), self.shape)));
        }
        let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.writer.write_all(&bytes).map_err(|e| Error::output(&self.part, e))?;
        self.rows += 1;
        Ok(())
    }

    /// Gives the file its name; [`Error::Runtime`] if rows are missing.
    pub fn finish(mut self) -> Result<()> {
        if self.rows != self.shape[0] {
            return Err(Error::Runtime(format!("{} rows written, expected {}", self.rows, self.shape[0])));
        }
        let sync = self.writer.flush().and_then(|()| self.writer.get_ref().sync_all());
        sync.and_then(|()| publish(&self.part, &self.target)).map_err(|e| Error::output(&self.target, e))
    }
}
