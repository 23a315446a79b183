//! Arrays that are read row by row: entries along axis 0 as f32, without the whole in memory where the file allows.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::checkpoint::Checkpoint;
use crate::io::decode;
use crate::io::dtype::FileDType;
use crate::io::mapped::{Bytes, map_file};
use crate::io::npy::{self, NpyData};
use crate::io::npy_header::{NpyHeader, NpyType};
use crate::io::quoted;

/// An array of numbers with at least one axis.
pub struct Rows {
    path: PathBuf,
    shape: Vec<usize>,
    /// Elements of a row.
    row: usize,
    store: Store,
}

enum Store {
    /// Row-major elements in a mapped file.
    Mapped { bytes: Arc<Bytes>, range: Range<usize>, ty: NpyType, big_endian: bool },
    /// Row-major elements of a decompressed member, from `start` on.
    Memory { bytes: Vec<u8>, start: usize, ty: NpyType, big_endian: bool },
    /// A tensor of a safetensors file.
    Tensor { file: Arc<Checkpoint>, name: String, dtype: FileDType },
    /// Elements that the file holds in another order.
    Decoded(NpyData),
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("path", &self.path).field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Rows {
    /// The array of a `.npy` file. [`Error::Input`] as for [`npy::read_npy`], or for an array without axes.
    pub fn open_npy(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = Arc::new(map_file(path)?);
        let range = 0..bytes.len();
        Self::mapped(path, bytes, range).map_err(|reason| Error::input(path, reason))
    }

    /// The `.npy` file that fills `range` of a mapped file.
    pub(crate) fn mapped(path: &Path, bytes: Arc<Bytes>, range: Range<usize>) -> Result<Self, String> {
        let (header, data) = parse(&bytes[range.clone()])?;
        if header.fortran_order {
            return Self::decoded(path, &bytes[range]);
        }
        let range = range.start + data.start..range.start + data.end;
        let store = Store::Mapped { bytes, range, ty: header.ty, big_endian: header.big_endian };
        Self::new(path, header.shape, store)
    }

    /// The `.npy` file that `bytes` are.
    pub(crate) fn owned(path: &Path, bytes: Vec<u8>) -> Result<Self, String> {
        let (header, data) = parse(&bytes)?;
        if header.fortran_order {
            return Self::decoded(path, &bytes);
        }
        let store = Store::Memory { bytes, start: data.start, ty: header.ty, big_endian: header.big_endian };
        Self::new(path, header.shape, store)
    }

    fn decoded(path: &Path, bytes: &[u8]) -> Result<Self, String> {
        let array = npy::parse_npy(bytes)?;
        Self::new(path, array.shape, Store::Decoded(array.data))
    }

    /// A tensor of a safetensors file.
    pub fn of_tensor(file: Arc<Checkpoint>, name: &str) -> Result<Self> {
        let path = file.path().to_path_buf();
        let (Some(shape), Some(dtype)) = (file.shape(name), file.dtype(name)) else {
            return Err(Error::input(path, format!("tensor {} is missing", quoted(name))));
        };
        let shape = shape.to_vec();
        let store = Store::Tensor { name: name.to_owned(), dtype, file };
        Self::new(&path, shape, store).map_err(|reason| Error::input(&path, reason))
    }

    fn new(path: &Path, shape: Vec<usize>, store: Store) -> Result<Self, String> {
        let (_, row) = shape.split_first().ok_or("found a single number, expected an array")?;
        let row = row.iter().product();
        Ok(Self { path: path.to_path_buf(), shape, row, store })
    }

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

    /// Elements of `rows`, which must exist, row-major, rounded to f32. Non-finite numbers are kept, except that
    /// those of safetensors floats are an [`Error::Input`], as is a type that holds no numbers.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let elements = rows.start * self.row..rows.end * self.row;
        let of_size = |size: usize| elements.start * size..elements.end * size;
        let numbers = |ty: NpyType, big_endian, bytes: &[u8]| {
            let decoded = npy::decode(ty, big_endian, &bytes[of_size(ty.size())]);
            decoded.map(to_f32).map_err(|reason| Error::input(&self.path, reason))
        };
        match &self.store {
            Store::Mapped { bytes, range, ty, big_endian } => numbers(*ty, *big_endian, &bytes[range.clone()]),
            Store::Memory { bytes, start, ty, big_endian } => numbers(*ty, *big_endian, &bytes[*start..]),
            Store::Decoded(data) => Ok(data.slice_f32(elements)),
            Store::Tensor { file, name, dtype } => match integer(*dtype) {
                Some(ty) => numbers(ty, false, file.bytes(name)?),
                None => decode::to_f32(*dtype, &file.bytes(name)?[of_size(dtype.size())])
                    .map_err(|e| Error::input(&self.path, format!("tensor {}: {e:?}", quoted(name)))),
            },
        }
    }
}

fn to_f32(data: NpyData) -> Vec<f32> {
    match data {
        NpyData::F32(values) => values,
        other => other.to_f32(),
    }
}

fn integer(dtype: FileDType) -> Option<NpyType> {
    Some(match dtype {
        FileDType::Bool => NpyType::Bool,
        FileDType::U8 => NpyType::U8,
        FileDType::I8 => NpyType::I8,
        FileDType::U16 => NpyType::U16,
        FileDType::I16 => NpyType::I16,
        FileDType::U32 => NpyType::U32,
        FileDType::I32 => NpyType::I32,
        FileDType::U64 => NpyType::U64,
        FileDType::I64 => NpyType::I64,
        _ => return None,
    })
}

/// Header of a `.npy` file and the range of its data, checked against its length.
fn parse(bytes: &[u8]) -> Result<(NpyHeader, Range<usize>), String> {
    let header = NpyHeader::parse(bytes)?;
    if header.ty == NpyType::Object {
        return Err("field \"descr\": found Python objects, expected plain numbers".into());
    }
    let range = header.data_range(bytes.len())?;
    Ok((header, range))
}
