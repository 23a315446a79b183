//! Reading HDF5: named arrays of numbers, by rows and chunk by chunk, with gzip, shuffle and lzf.
//!
//! The format is parsed by the crate `hdf5-reader`, in safe Rust, with the limits below; the lzf filter of h5py is our
//! own. Files are read by position and not mapped, so a file that is shortened meanwhile is an error.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdf5_reader::error::Error as H5Error;
use hdf5_reader::{
    Dataset, Datatype, FileStorage, FilterRegistry, H5Type, Hdf5File, OpenOptions, SliceInfo, SliceInfoElem,
};

use crate::error::{Error, Result};
use crate::io::lzf;
use crate::io::mapped::open_regular;
use crate::io::npy_header::MAX_RANK;
use crate::io::quoted;

/// Number under which h5py's lzf filter is registered with the HDF Group.
const LZF: u16 = 32000;
/// Largest chunk, decoded, and largest part read at once, as stored and as f32, in bytes.
const MAX_CHUNK: usize = 128 << 20;
const MAX_READ: usize = 256 << 20;
/// Largest object header, in bytes.
const MAX_OBJECT_HEADER: usize = 1 << 20;
/// Memory for decoded chunks.
const CHUNK_CACHE: usize = 64 << 20;

/// An open HDF5 file.
pub struct H5File {
    path: PathBuf,
    file: Hdf5File,
}

/// An array of numbers in an HDF5 file, with at least one axis. Nothing of it is in memory but what was read last.
pub struct H5Array {
    path: PathBuf,
    name: String,
    shape: Vec<usize>,
    set: Dataset,
}

impl H5File {
    /// Opens a file. [`Error::Input`] if it is damaged or no HDF5.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = open_regular(path)?;
        let file = guarded(|| Hdf5File::from_storage_with_options(Arc::new(FileStorage::from_file(file)?), options()));
        let file = file.map_err(|reason| Error::input(path, reason))?;
        let (end, length) = (file.superblock().eof_address, file.storage().len());
        if end > length {
            return Err(Error::input(path, format!("truncated: found {length} bytes, expected {end}")));
        }
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Names of the arrays at the top of the file, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let names = guarded(|| self.file.root_group()?.member_names().map(|(_, sets)| sets));
        let mut names = names.map_err(|reason| Error::input(&self.path, reason))?;
        names.sort();
        Ok(names)
    }

    /// The array `name`. [`Error::Input`] if it is missing, holds no numbers, or its layout is beyond the limits.
    pub fn array(&self, name: &str) -> Result<H5Array> {
        let refuse = |reason: String| Error::input(&self.path, format!("array {}: {reason}", quoted(name)));
        let set = guarded(|| match self.file.dataset(name) {
            Ok(set) => Ok(Some(set)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(e),
        });
        let Some(set) = set.map_err(refuse)? else {
            return Err(refuse(format!("missing; the file has {}", self.names()?.join(", "))));
        };
        let shape: Option<Vec<usize>> = set.shape().iter().map(|&n| usize::try_from(n).ok()).collect();
        let shape = shape.filter(|s| s.iter().try_fold(8usize, |n, &d| n.checked_mul(d)).is_some());
        let shape = shape.ok_or_else(|| refuse(format!("shape {:?} overflows", set.shape())))?;
        if shape.is_empty() || shape.len() > MAX_RANK {
            return Err(refuse(format!("found {} axes, expected 1 to {MAX_RANK}", shape.len())));
        }
        number_size(set.dtype()).map_err(refuse)?;
        let array = H5Array { path: self.path.clone(), name: name.to_owned(), shape, set };
        array.refuse_absurd_chunks()?;
        Ok(array)
    }
}

impl H5Array {
    /// File that the array is in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shape, rows first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.shape[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of one chunk: what is read together costs one decompression.
    pub fn rows_per_chunk(&self) -> usize {
        self.set.chunks().and_then(|c| c.first().copied()).map_or(1, |n| n as usize).clamp(1, self.shape[0].max(1))
    }

    /// Elements of `rows`, row-major, rounded to f32; non-finite ones are kept. Chunks that were never written read as
    /// the fill value. [`Error::Input`] for a damaged chunk, an unknown filter, or more than 256 MiB at once.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut selections = vec![SliceInfoElem::Slice { start: rows.start as u64, end: rows.end as u64, step: 1 }];
        selections.resize(self.shape.len(), SliceInfoElem::Slice { start: 0, end: u64::MAX, step: 1 });
        let selection = SliceInfo { selections };
        // The crate would cut a range that is too long without a word.
        if rows.end > self.len() {
            let reason = format!("array {}, rows {rows:?}: the array has {}", quoted(&self.name), self.len());
            return Err(Error::input(&self.path, reason));
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let row: usize = self.shape[1..].iter().product();
        if rows.len().checked_mul(row).is_none_or(|n| n > MAX_READ / 4) {
            let reason = format!(
                "array {}, rows {rows:?} of {row} numbers: expected at most {MAX_READ} bytes",
                quoted(&self.name)
            );
            return Err(Error::input(&self.path, reason));
        }
        guarded(|| self.values(&selection)).map_err(|reason| {
            Error::input(&self.path, format!("array {}, rows {rows:?}: {reason}", quoted(&self.name)))
        })
    }

    fn values(&self, selection: &SliceInfo) -> Result<Vec<f32>, H5Error> {
        fn read<T: H5Type>(set: &Dataset, selection: &SliceInfo) -> Result<Vec<T>, H5Error> {
            // The elements as they lie: walking over the axes of the array would cost more than decompressing it.
            match set.read_slice::<T>(selection)?.into_raw_vec_and_offset() {
                (values, Some(0)) => Ok(values),
                (values, _) if values.is_empty() => Ok(values),
                _ => Err(H5Error::Other("rows that do not start at their beginning".into())),
            }
        }
        fn narrow<T: H5Type>(set: &Dataset, selection: &SliceInfo, f: fn(T) -> f32) -> Result<Vec<f32>, H5Error> {
            Ok(read::<T>(set, selection)?.into_iter().map(f).collect())
        }
        let (set, s) = (&self.set, selection);
        match set.dtype() {
            Datatype::FloatingPoint { size: 4, .. } => read::<f32>(set, s),
            Datatype::FloatingPoint { size: 8, .. } => narrow(set, s, |v: f64| v as f32),
            Datatype::FixedPoint { size, signed: true, .. } => match size {
                1 => narrow(set, s, |v: i8| v.into()),
                2 => narrow(set, s, |v: i16| v.into()),
                4 => narrow(set, s, |v: i32| v as f32),
                _ => narrow(set, s, |v: i64| v as f32),
            },
            Datatype::FixedPoint { size, signed: false, .. } => match size {
                1 => narrow(set, s, |v: u8| v.into()),
                2 => narrow(set, s, |v: u16| v.into()),
                4 => narrow(set, s, |v: u32| v as f32),
                _ => narrow(set, s, |v: u64| v as f32),
            },
            other => Err(H5Error::Other(format!("{other:?} holds no numbers"))),
        }
    }

    /// Chunks beyond the limit, or far larger than the array, before anything of them is read.
    fn refuse_absurd_chunks(&self) -> Result<()> {
        let Some(chunks) = self.set.chunks() else { return Ok(()) };
        let size = number_size(self.set.dtype()).unwrap_or(8);
        let bytes = chunks.iter().try_fold(size, |n, &d| n.checked_mul(d as usize));
        if chunks.contains(&0) || bytes.is_none_or(|n| n > MAX_CHUNK) {
            let reason =
                format!("array {}: chunks of {chunks:?}, expected at most {MAX_CHUNK} bytes", quoted(&self.name));
            return Err(Error::input(&self.path, reason));
        }
        Ok(())
    }
}

/// Bytes of a number, or why it is none that is read.
fn number_size(ty: &Datatype) -> Result<usize, String> {
    match ty {
        Datatype::FloatingPoint { size: size @ (4 | 8), .. } => Ok(*size as usize),
        Datatype::FixedPoint { size: size @ (1 | 2 | 4 | 8), .. } => Ok(*size as usize),
        other => Err(format!("found {other:?}, expected floats of 4 or 8 bytes or integers of 1 to 8")),
    }
}

fn options() -> OpenOptions {
    let mut filters = FilterRegistry::new();
    // Client data of h5py: filter revision, LZF version, bytes of a chunk.
    filters.register(
        LZF,
        Box::new(|filter, data, _| {
            let limit = filter.client_data.get(2).map_or(MAX_CHUNK, |&n| n as usize).min(MAX_CHUNK);
            lzf::decompress(data, limit).map_err(H5Error::DecompressionError)
        }),
    );
    OpenOptions::default()
        .with_filter_registry(filters)
        .with_chunk_cache_bytes(CHUNK_CACHE)
        .with_max_chunk_bytes(MAX_CHUNK)
        .with_max_read_bytes(MAX_READ)
        .with_max_object_header_bytes(MAX_OBJECT_HEADER)
}

fn is_missing(error: &H5Error) -> bool {
    match error {
        H5Error::DatasetNotFound(_) | H5Error::GroupNotFound(_) => true,
        H5Error::Context { source, .. } => is_missing(source),
        _ => false,
    }
}

/// Runs the foreign parser; whatever it makes of a hostile file, an error or a panic, is a reason.
fn guarded<T>(parse: impl FnOnce() -> Result<T, H5Error>) -> Result<T, String> {
    // Caches of the crate are behind locks that do not poison; the worst that a panic leaves is a missing entry.
    match catch_unwind(AssertUnwindSafe(parse)) {
        Ok(result) => result.map_err(|e| format!("HDF5: {e}")),
        Err(_) => Err("HDF5: damaged in a way that the reader does not survive".into()),
    }
}
