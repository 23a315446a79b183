//! Stored bytes to numbers: little-endian, any alignment, non-finite values found.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::io::dtype::FileDType;
use crate::io::try_with_capacity;

/// Why bytes did not become numbers.
#[derive(Debug, PartialEq)]
pub(crate) enum DecodeError {
    /// Not a type that is read as numbers.
    NotFloat,
    /// The memory for the result cannot be had: that many bytes.
    Memory(usize),
    /// A value that is not finite, or that overflows f32: its flat index and value.
    NotFinite(usize, f64),
}

/// Elements of `bytes` as f32. f64 is rounded to nearest.
pub(crate) fn to_f32(dtype: FileDType, bytes: &[u8]) -> Result<Vec<f32>, DecodeError> {
    let len = bytes.len() / dtype.size();
    let memory = DecodeError::Memory(len.saturating_mul(4));
    let mut out: Vec<f32> = try_with_capacity(len).ok_or(memory)?;
    match dtype {
        FileDType::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        FileDType::F64 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
        FileDType::BF16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16_to_f32(*b))),
        FileDType::F16 => widen_f16(bytes, &mut out),
        _ => return Err(DecodeError::NotFloat),
    }
    match first_bad(&out, |v| !v.is_finite()) {
        None => Ok(out),
        // The stored value: an f64 that overflows f32 is shown as what it is.
        Some(i) if dtype == FileDType::F64 => {
            Err(DecodeError::NotFinite(i, bytes.as_chunks().0.get(i).map_or(f64::NAN, |b| f64::from_le_bytes(*b))))
        }
        Some(i) => Err(DecodeError::NotFinite(i, out[i].into())),
    }
}

/// Elements of `bytes` as f64.
pub(crate) fn to_f64(dtype: FileDType, bytes: &[u8]) -> Result<Vec<f64>, DecodeError> {
    if dtype != FileDType::F64 {
        let narrow = to_f32(dtype, bytes)?;
        let mut out = try_with_capacity(narrow.len()).ok_or(DecodeError::Memory(narrow.len().saturating_mul(8)))?;
        out.extend(narrow.into_iter().map(f64::from));
        return Ok(out);
    }
    let mut out: Vec<f64> = try_with_capacity(bytes.len() / 8).ok_or(DecodeError::Memory(bytes.len()))?;
    out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)));
    match first_bad(&out, |v| !v.is_finite()) {
        None => Ok(out),
        Some(i) => Err(DecodeError::NotFinite(i, out[i])),
    }
}

fn bf16_to_f32(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// f16 by blocks through an aligned buffer, so that the conversion runs on whole vectors.
fn widen_f16(bytes: &[u8], out: &mut Vec<f32>) {
    let mut narrow = [f16::ZERO; 512];
    let mut wide = [0f32; 512];
    for block in bytes.chunks(2 * narrow.len()) {
        let n = block.len() / 2;
        for (slot, pair) in narrow.iter_mut().zip(block.as_chunks().0) {
            *slot = f16::from_bits(u16::from_le_bytes(*pair));
        }
        narrow[..n].convert_to_f32_slice(&mut wide[..n]);
        out.extend_from_slice(&wide[..n]);
    }
}

/// Index of the first value that is `bad`. By blocks: the test of a block has no early exit, so it vectorises.
pub(crate) fn first_bad<T: Copy>(values: &[T], bad: impl Fn(T) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let block = values.chunks(BLOCK).position(|block| block.iter().fold(false, |any, &v| any | bad(v)))?;
    values[block * BLOCK..].iter().position(|&v| bad(v)).map(|i| block * BLOCK + i)
}
