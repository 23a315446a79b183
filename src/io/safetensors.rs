//! Writing safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::io::atomic::AtomicFile;
use crate::io::dtype::FileDType;
use crate::io::header::{MAX_HEADER, MAX_RANK, METADATA_KEY};
use crate::io::quoted;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorBytes<'a> {
    /// Name, unique in the file.
    pub name: Cow<'a, str>,
    /// Element type.
    pub dtype: FileDType,
    /// Row-major shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements, little-endian, row-major.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> TensorBytes<'a> {
    /// An f32 tensor of `values`, shared where memory order allows.
    pub fn from_f32(name: impl Into<Cow<'a, str>>, shape: &[usize], values: &'a [f32]) -> Self {
        let bytes = if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(values))
        } else {
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        };
        Self { name: name.into(), dtype: FileDType::F32, shape: shape.to_vec(), bytes }
    }
}

/// Writes `tensors` and `metadata` to `path`, whole or not at all.
///
/// Equal input gives equal bytes: metadata in key order, tensors in the given order but wider types first, so that
/// every tensor is aligned to its type. A tensor whose bytes do not match its shape, or a repeated name, is a
/// [`Error::Runtime`]; a failed write is an [`Error::Output`].
pub fn write_safetensors<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = TensorBytes<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size()));
    let header = encode_header(&tensors, metadata)?;
    let mut file = AtomicFile::create(path)?;
    file.put(&(header.len() as u64).to_le_bytes())?;
    file.put(&header)?;
    for tensor in &tensors {
        file.put(&tensor.bytes)?;
    }
    file.commit()
}

/// The JSON header, padded with blanks to a multiple of eight bytes.
fn encode_header(tensors: &[TensorBytes<'_>], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA_KEY.into(), json!(metadata));
    }
    let mut names = BTreeSet::from([METADATA_KEY]);
    let mut offset = 0usize;
    for tensor in tensors {
        let TensorBytes { name, dtype, shape, bytes } = tensor;
        if !names.insert(name) {
            return Err(Error::Runtime(format!("tensor name {} is taken", quoted(name))));
        }
        let expected = shape.iter().try_fold(dtype.size(), |product, &extent| product.checked_mul(extent));
        if expected != Some(bytes.len()) || shape.len() > MAX_RANK {
            let found = bytes.len();
            return Err(Error::Runtime(format!(
                "tensor {}: {found} bytes do not make shape {shape:?} of {dtype}",
                quoted(name)
            )));
        }
        let end = offset + bytes.len();
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end] });
        header.insert(name.to_string(), entry);
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER {
        return Err(Error::Runtime(format!(
            "safetensors header of {} bytes, at most {MAX_HEADER} are allowed",
            text.len()
        )));
    }
    Ok(text)
}
