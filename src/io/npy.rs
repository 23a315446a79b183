//! Reading NumPy `.npy` arrays of numbers: format versions 1 to 3, either byte order, C and Fortran order.

use std::path::Path;

use half::f16;

use crate::error::{Error, Result};
use crate::io::decode::first_bad;
use crate::io::dtype::FileDType;
use crate::io::mapped::map_file;
use crate::io::npy_header::{NpyHeader, NpyType};
use crate::io::try_with_capacity;

/// Elements of an array in row-major (C) order.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum NpyData {
    Bool(Vec<bool>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    F16(Vec<f16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// An array as stored, in row-major order whatever the order in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Npy {
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements; as many as the product of `shape`.
    pub data: NpyData,
}

/// What to do with NaN and infinities when numbers are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFinite {
    /// They are an error that tells the first one's place.
    Refuse,
    /// They are kept.
    Allow,
}

/// Applies `$body` to the elements, whatever their type.
macro_rules! with_elements {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            NpyData::Bool($values) => $body,
            NpyData::I8($values) => $body,
            NpyData::I16($values) => $body,
            NpyData::I32($values) => $body,
            NpyData::I64($values) => $body,
            NpyData::U8($values) => $body,
            NpyData::U16($values) => $body,
            NpyData::U32($values) => $body,
            NpyData::U64($values) => $body,
            NpyData::F16($values) => $body,
            NpyData::F32($values) => $body,
            NpyData::F64($values) => $body,
        }
    };
}

impl NpyData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        with_elements!(self, values => values.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type by its safetensors name.
    pub fn file_dtype(&self) -> FileDType {
        match self {
            Self::Bool(_) => FileDType::Bool,
            Self::I8(_) => FileDType::I8,
            Self::I16(_) => FileDType::I16,
            Self::I32(_) => FileDType::I32,
            Self::I64(_) => FileDType::I64,
            Self::U8(_) => FileDType::U8,
            Self::U16(_) => FileDType::U16,
            Self::U32(_) => FileDType::U32,
            Self::U64(_) => FileDType::U64,
            Self::F16(_) => FileDType::F16,
            Self::F32(_) => FileDType::F32,
            Self::F64(_) => FileDType::F64,
        }
    }

    /// Appends the elements to `out`, little-endian.
    pub(crate) fn put_le(&self, out: &mut Vec<u8>) {
        with_elements!(self, values => values.iter().for_each(|v| v.put_le(out)));
    }

    /// Elements rounded to f32; false and true become 0 and 1.
    pub fn to_f32(&self) -> Vec<f32> {
        with_elements!(self, values => values.iter().map(|v| v.as_f32()).collect())
    }

    /// The elements of `range`, which must exist, rounded to f32.
    pub(crate) fn slice_f32(&self, range: std::ops::Range<usize>) -> Vec<f32> {
        with_elements!(self, values => values[range].iter().map(|v| v.as_f32()).collect())
    }

    /// Elements rounded to f64; false and true become 0 and 1.
    pub fn to_f64(&self) -> Vec<f64> {
        with_elements!(self, values => values.iter().map(|v| v.as_f64()).collect())
    }
}

/// Reads an array of numbers. [`Error::Input`] for a damaged or truncated file, trailing bytes, an array of Python
/// objects, or more than eight dimensions.
pub fn read_npy(path: impl AsRef<Path>) -> Result<Npy> {
    let path = path.as_ref();
    parse_npy(&map_file(path)?).map_err(|reason| Error::input(path, reason))
}

/// Reads an array of numbers as its shape and row-major f32 elements. With [`NonFinite::Refuse`] a value that is not
/// finite in f32 is an [`Error::Input`].
pub fn read_npy_f32(path: impl AsRef<Path>, non_finite: NonFinite) -> Result<(Vec<usize>, Vec<f32>)> {
    let path = path.as_ref();
    let Npy { shape, data } = read_npy(path)?;
    let values = match data {
        NpyData::F32(values) => values,
        other => other.to_f32(),
    };
    match first_bad(&values, |v| !v.is_finite()) {
        Some(i) if non_finite == NonFinite::Refuse => {
            Err(Error::input(path, format!("element {i} is {}, expected finite numbers", values[i])))
        }
        _ => Ok((shape, values)),
    }
}

/// Parses the content of a `.npy` file; the error lacks the file's name.
pub fn parse_npy(bytes: &[u8]) -> Result<Npy, String> {
    let header = NpyHeader::parse(bytes)?;
    if header.ty == NpyType::Object {
        return Err("field \"descr\": found Python objects, expected plain numbers".into());
    }
    let data = &bytes[header.data_range(bytes.len())?];
    let data = decode(header.ty, header.big_endian, data)?;
    let data = if header.fortran_order { with_c_order(data, &header.shape)? } else { data };
    Ok(Npy { shape: header.shape, data })
}

/// Elements from raw bytes, whose number is a multiple of the element size.
pub(crate) fn decode(ty: NpyType, big_endian: bool, bytes: &[u8]) -> Result<NpyData, String> {
    Ok(match ty {
        NpyType::Bool => {
            if let Some(i) = bytes.iter().position(|&b| b > 1) {
                return Err(format!("element {i}: found {}, expected 0 or 1 for a bool", bytes[i]));
            }
            NpyData::Bool(elements(bytes, big_endian)?)
        }
        NpyType::I8 => NpyData::I8(elements(bytes, big_endian)?),
        NpyType::I16 => NpyData::I16(elements(bytes, big_endian)?),
        NpyType::I32 => NpyData::I32(elements(bytes, big_endian)?),
        NpyType::I64 => NpyData::I64(elements(bytes, big_endian)?),
        NpyType::U8 => NpyData::U8(elements(bytes, big_endian)?),
        NpyType::U16 => NpyData::U16(elements(bytes, big_endian)?),
        NpyType::U32 => NpyData::U32(elements(bytes, big_endian)?),
        NpyType::U64 => NpyData::U64(elements(bytes, big_endian)?),
        NpyType::F16 => NpyData::F16(elements(bytes, big_endian)?),
        NpyType::F32 => NpyData::F32(elements(bytes, big_endian)?),
        NpyType::F64 => NpyData::F64(elements(bytes, big_endian)?),
        NpyType::Object => return Err("found Python objects, expected plain numbers".into()),
    })
}

/// Elements in column-major order of `shape`, put into row-major order.
pub(crate) fn with_c_order(data: NpyData, shape: &[usize]) -> Result<NpyData, String> {
    macro_rules! reorder {
        ($($variant:ident),*) => {
            match data {
                $(NpyData::$variant(values) => NpyData::$variant(c_order(&values, shape)?),)*
            }
        };
    }
    Ok(reorder!(Bool, I8, I16, I32, I64, U8, U16, U32, U64, F16, F32, F64))
}

fn c_order<T: Copy>(values: &[T], shape: &[usize]) -> Result<Vec<T>, String> {
    let mut out = try_with_capacity(values.len()).ok_or("no memory for the array")?;
    let mut index = vec![0usize; shape.len()];
    let mut source = 0;
    // The row-major walk over all indices; `source` follows it in column-major strides.
    while out.len() < values.len() {
        out.push(values[source]);
        let mut stride = values.len();
        for (i, &extent) in index.iter_mut().zip(shape).rev() {
            stride /= extent;
            *i += 1;
            source += stride;
            if *i < extent {
                break;
            }
            *i = 0;
            source -= extent * stride;
        }
    }
    Ok(out)
}

fn elements<T: Element>(bytes: &[u8], big_endian: bool) -> Result<Vec<T>, String> {
    let mut out = try_with_capacity(bytes.len() / size_of::<T>()).ok_or("no memory for the array")?;
    let chunks = bytes.chunks_exact(size_of::<T>());
    if big_endian {
        out.extend(chunks.map(T::from_be));
    } else {
        out.extend(chunks.map(T::from_le));
    }
    Ok(out)
}

/// A type of array element.
trait Element: Sized {
    /// From exactly `size_of::<Self>()` bytes, least significant first.
    fn from_le(bytes: &[u8]) -> Self;
    /// The same, most significant first.
    fn from_be(bytes: &[u8]) -> Self;
    fn put_le(&self, out: &mut Vec<u8>);
    fn as_f32(&self) -> f32;
    fn as_f64(&self) -> f64;
}

macro_rules! number {
    ($($ty:ty: $as_f32:expr, $as_f64:expr;)*) => {
        $(impl Element for $ty {
            fn from_le(bytes: &[u8]) -> Self {
                <$ty>::from_le_bytes(std::array::from_fn(|i| bytes[i]))
            }

            fn from_be(bytes: &[u8]) -> Self {
                <$ty>::from_be_bytes(std::array::from_fn(|i| bytes[i]))
            }

            fn put_le(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn as_f32(&self) -> f32 {
                let convert: fn($ty) -> f32 = $as_f32;
                convert(*self)
            }

            fn as_f64(&self) -> f64 {
                let convert: fn($ty) -> f64 = $as_f64;
                convert(*self)
            }
        })*
    };
}

number! {
    i8: |v| v.into(), |v| v.into();
    i16: |v| v.into(), |v| v.into();
    i32: |v| v as f32, |v| v.into();
    i64: |v| v as f32, |v| v as f64;
    u8: |v| v.into(), |v| v.into();
    u16: |v| v.into(), |v| v.into();
    u32: |v| v as f32, |v| v.into();
    u64: |v| v as f32, |v| v as f64;
    f16: f16::to_f32, f16::to_f64;
    f32: |v| v, |v| v.into();
    f64: |v| v as f32, |v| v;
}

impl Element for bool {
    fn from_le(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }

    fn from_be(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }

    fn put_le(&self, out: &mut Vec<u8>) {
        out.push((*self).into());
    }

    fn as_f32(&self) -> f32 {
        u8::from(*self).into()
    }

    fn as_f64(&self) -> f64 {
        u8::from(*self).into()
    }
}
