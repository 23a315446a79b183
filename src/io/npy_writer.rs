//! Writing NumPy `.npy` files of f32, at once or piece by piece.

use std::path::Path;

use crate::error::{Error, Result};
use crate::io::atomic::{AtomicFile, write_atomic};
use crate::io::npy_header::{MAX_RANK, encode, encode_f32};

/// Writes row-major `values` of `shape` to `path`, whole or not at all. [`Error::Runtime`] if their number does not
/// match the shape.
pub fn write_npy_f32(path: impl AsRef<Path>, shape: &[usize], values: &[f32]) -> Result<()> {
    let mut writer = NpyWriter::create(path, shape)?;
    writer.push(values)?;
    writer.finish()
}

/// Writes a column of labels to `path`, whole or not at all.
pub fn write_npy_u32(path: impl AsRef<Path>, values: &[u32]) -> Result<()> {
    let mut bytes = encode("<u4", &[values.len()], 0);
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    write_atomic(path, &bytes)
}

/// A `.npy` file that grows row by row and appears under its name when finished. Dropped before that, it leaves
/// nothing behind.
#[derive(Debug)]
pub struct NpyWriter {
    file: AtomicFile,
    shape: Vec<usize>,
    header_len: usize,
    /// Elements of one row along axis 0.
    row: usize,
    /// Elements written so far and expected in all.
    written: usize,
    total: usize,
}

impl NpyWriter {
    /// Starts a file of `shape`, with at least one axis. The header has room to be rewritten for fewer rows.
    pub fn create(path: impl AsRef<Path>, shape: &[usize]) -> Result<Self> {
        let sized = shape.iter().try_fold(4usize, |product, &extent| product.checked_mul(extent));
        let (Some(bytes), Some((_, row_shape)), true) = (sized, shape.split_first(), shape.len() <= MAX_RANK) else {
            return Err(Error::Runtime(format!("shape {shape:?}: expected 1 to {MAX_RANK} axes that fit memory")));
        };
        let header = encode_f32(shape, 0);
        let mut file = AtomicFile::create(path)?;
        file.put(&header)?;
        let row = row_shape.iter().product();
        Ok(Self { file, shape: shape.to_vec(), header_len: header.len(), row, written: 0, total: bytes / 4 })
    }

    /// Appends row-major elements; pieces need not be whole rows.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        if values.len() > self.total - self.written {
            let (found, left) = (values.len(), self.total - self.written);
            return Err(Error::Runtime(format!(
                "{found} more elements, expected at most {left} for shape {:?}",
                self.shape
            )));
        }
        let mut block = Vec::with_capacity(4 * values.len().min(16 << 10));
        for piece in values.chunks(16 << 10) {
            block.clear();
            block.extend(piece.iter().flat_map(|v| v.to_le_bytes()));
            self.file.put(&block)?;
        }
        self.written += values.len();
        Ok(())
    }

    /// Whole rows (entries along axis 0) written so far.
    pub fn rows(&self) -> usize {
        self.written.checked_div(self.row).unwrap_or(0)
    }

    /// Completes the file; [`Error::Runtime`] if elements are missing.
    pub fn finish(self) -> Result<()> {
        if self.written != self.total {
            let (found, expected) = (self.written, self.total);
            return Err(Error::Runtime(format!("{found} elements, expected {expected} for shape {:?}", self.shape)));
        }
        self.file.commit()
    }

    /// Completes the file with the first `rows` rows alone, all of which must have been written: the finished part of
    /// an interrupted run is a complete file.
    pub fn finish_partial(mut self, rows: usize) -> Result<()> {
        if rows > self.rows() {
            return Err(Error::Runtime(format!("{} rows written, expected at least {rows}", self.rows())));
        }
        self.shape[0] = rows;
        // No longer than the first header, whose length it takes: the number of rows has no more digits.
        let header = encode_f32(&self.shape, self.header_len);
        self.file.put_at(0, &header)?;
        self.file.truncate((self.header_len + 4 * rows * self.row) as u64)?;
        self.file.commit()
    }
}
