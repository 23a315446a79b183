//! The header of a safetensors file: eight bytes of length, a JSON object, then the tensors' bytes.
//!
//! The header is scanned by a visitor of our own, which refuses repeated names and fields and checks every range,
//! before the `safetensors` crate reads it: the crate keeps the last of two equal keys, so a file could show one
//! thing to one reader and another to the next.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::io::dtype::FileDType;
use crate::io::quoted;

/// Largest header that is read, in bytes; the limit of the `safetensors` crate.
pub const MAX_HEADER: u64 = 100_000_000;
/// Largest rank of a tensor.
pub const MAX_RANK: usize = 16;
/// Key of the string-to-string metadata in the header.
pub const METADATA_KEY: &str = "__metadata__";

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Stored element type.
    pub dtype: FileDType,
    /// Row-major shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Bytes of the file that hold the elements, counted from its start.
    pub range: Range<usize>,
}

/// A header whose ranges cover the file exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// Free-form metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of the safetensors file with content `bytes`; `path` is for messages.
///
/// Refused with [`Error::Input`]: a header that is truncated, larger than [`MAX_HEADER`] or not an object; repeated
/// tensor names, fields or metadata keys; unknown fields and element types; ranges that overlap, leave gaps, do not
/// match shape and type, or do not end with the file.
pub fn read_header(path: &Path, bytes: &[u8]) -> Result<Header> {
    let refuse = |reason: String| Error::input(path, reason);
    let text = header_text(bytes).map_err(refuse)?;
    let mut json = serde_json::Deserializer::from_str(text);
    let scanned = HeaderSeed.deserialize(&mut json).and_then(|scanned| json.end().map(|()| scanned));
    let scanned = scanned.map_err(|e| refuse(format!("header: {e}")))?;
    let header = place(scanned, 8 + text.len(), bytes.len()).map_err(refuse)?;
    // The reference reader has the last word: what it refuses is no safetensors file, whatever we think of it.
    ::safetensors::SafeTensors::read_metadata(bytes).map_err(|e| refuse(format!("header: {e}")))?;
    Ok(header)
}

/// Whether the file starts like safetensors: a header length that fits into the file, then an object.
pub(crate) fn looks_like_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= rest.len() as u64
}

/// The JSON text between the length prefix and the tensors.
fn header_text(bytes: &[u8]) -> Result<&str, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!(
            "file size: found {} bytes, expected at least the 8 of a safetensors header length",
            bytes.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("header length: found {length}, expected at most {MAX_HEADER}; not a safetensors file?"));
    }
    let json = usize::try_from(length).ok().and_then(|n| rest.get(..n)).ok_or_else(|| {
        format!("header length: found {length}, expected at most the {} bytes that follow; file truncated?", rest.len())
    })?;
    if json.first() != Some(&b'{') {
        return Err("header: expected a JSON object that starts with '{'".into());
    }
    std::str::from_utf8(json).map_err(|e| format!("header: not UTF-8: {e}"))
}

/// What the header says, in its own order and not yet compared with the file.
#[derive(Default)]
struct Scanned {
    tensors: BTreeMap<String, ScannedTensor>,
    metadata: BTreeMap<String, String>,
}

struct ScannedTensor {
    dtype: FileDType,
    shape: Vec<u64>,
    begin: u64,
    end: u64,
}

/// Turns offsets into ranges of the file after checking that they cover `data_start..file_len` exactly.
fn place(scanned: Scanned, data_start: usize, file_len: usize) -> Result<Header, String> {
    let mut tensors: Vec<_> = scanned.tensors.into_iter().collect();
    tensors.sort_by_key(|(_, tensor)| (tensor.begin, tensor.end));
    let data_len = (file_len - data_start) as u64;
    let mut header = Header { metadata: scanned.metadata, ..Header::default() };
    let mut covered = 0u64;
    let mut previous = String::new();
    for (name, tensor) in tensors {
        let ScannedTensor { dtype, shape, begin, end } = tensor;
        let shown = quoted(&name);
        let bytes = shape
            .iter()
            .try_fold(dtype.size() as u64, |product, &extent| product.checked_mul(extent))
            .ok_or_else(|| format!("tensor {shown}: shape {shape:?} of {dtype} overflows"))?;
        if end.checked_sub(begin) != Some(bytes) {
            return Err(format!(
                "tensor {shown}: data_offsets [{begin}, {end}], expected a range of {bytes} bytes for shape {shape:?} of {dtype}"
            ));
        }
        if begin < covered {
            return Err(format!(
                "tensor {shown}: begins at {begin}, inside tensor {}, which ends at {covered}",
                quoted(&previous)
            ));
        }
        if begin > covered {
            return Err(format!("tensor {shown}: begins at {begin}, expected {covered}: bytes that no tensor owns"));
        }
        if end > data_len {
            return Err(format!(
                "tensor {shown}: ends at {end}, but only {data_len} bytes follow the header; file truncated?"
            ));
        }
        covered = end;
        // Both ends are within the file now, so they fit usize.
        let range = data_start + begin as usize..data_start + end as usize;
        let shape = shape.into_iter().map(usize::try_from).collect::<Result<_, _>>();
        let shape = shape.map_err(|_| format!("tensor {shown}: shape does not fit this machine"))?;
        previous.clone_from(&name);
        header.tensors.insert(name, TensorEntry { dtype, shape, range });
    }
    if covered != data_len {
        return Err(format!("file size: the tensors end at {covered}, but {data_len} bytes follow the header"));
    }
    Ok(header)
}

/// The whole header object.
struct HeaderSeed;

impl<'de> DeserializeSeed<'de> for HeaderSeed {
    type Value = Scanned;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scanned, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed {
    type Value = Scanned;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Scanned, A::Error> {
        let mut scanned = Scanned::default();
        let mut has_metadata = false;
        while let Some(name) = entries.next_key::<String>()? {
            if name == METADATA_KEY {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(de::Error::custom(format_args!("duplicate key {METADATA_KEY:?}")));
                }
                scanned.metadata = entries.next_value_seed(MetadataSeed)?;
                continue;
            }
            match scanned.tensors.entry(name) {
                Entry::Occupied(taken) => {
                    return Err(de::Error::custom(format_args!("duplicate tensor name {}", quoted(taken.key()))));
                }
                Entry::Vacant(free) => {
                    let tensor = entries.next_value_seed(TensorSeed(free.key()))?;
                    free.insert(tensor);
                }
            }
        }
        Ok(scanned)
    }
}

/// The metadata object: strings by string.
struct MetadataSeed;

impl<'de> DeserializeSeed<'de> for MetadataSeed {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{METADATA_KEY} as an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut metadata = BTreeMap::new();
        while let Some(key) = entries.next_key::<String>()? {
            if metadata.contains_key(&key) {
                return Err(de::Error::custom(format_args!("duplicate metadata key {}", quoted(&key))));
            }
            let value = entries.next_value::<String>()?;
            metadata.insert(key, value);
        }
        Ok(metadata)
    }
}

/// One tensor: exactly the fields `dtype`, `shape`, `data_offsets`, each once. Holds the name for messages.
struct TensorSeed<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = ScannedTensor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ScannedTensor, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = ScannedTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor {} as an object of dtype, shape and data_offsets", quoted(self.0))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<ScannedTensor, A::Error> {
        let name = quoted(self.0);
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = fields.next_key::<String>()? {
            let repeated = match field.as_str() {
                "dtype" => {
                    let text = fields.next_value::<String>()?;
                    let known = FileDType::from_name(&text).ok_or_else(|| {
                        let names = FileDType::ALL.map(FileDType::name).join(", ");
                        de::Error::custom(format_args!(
                            "tensor {name}: dtype {}, expected one of {names}",
                            quoted(&text)
                        ))
                    })?;
                    dtype.replace(known).is_some()
                }
                "shape" => {
                    let extents =
                        fields.next_value_seed(IntegersSeed { tensor: &name, field: "shape", at_most: MAX_RANK })?;
                    shape.replace(extents).is_some()
                }
                "data_offsets" => {
                    let ends =
                        fields.next_value_seed(IntegersSeed { tensor: &name, field: "data_offsets", at_most: 2 })?;
                    let [begin, end] = ends[..] else {
                        let found = ends.len();
                        return Err(de::Error::custom(format_args!(
                            "tensor {name}: data_offsets has {found} entries, expected 2"
                        )));
                    };
                    offsets.replace((begin, end)).is_some()
                }
                other => {
                    let other = quoted(other);
                    return Err(de::Error::custom(format_args!(
                        "tensor {name}: unknown field {other}, expected dtype, shape, data_offsets"
                    )));
                }
            };
            if repeated {
                return Err(de::Error::custom(format_args!("tensor {name}: duplicate field {field:?}")));
            }
        }
        let missing = |field: &str| de::Error::custom(format_args!("tensor {name}: field {field:?} is missing"));
        let (begin, end) = offsets.ok_or_else(|| missing("data_offsets"))?;
        Ok(ScannedTensor {
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            begin,
            end,
        })
    }
}

/// A short list of integers from 0 up; longer lists are refused before they take memory.
struct IntegersSeed<'a> {
    tensor: &'a str,
    field: &'static str,
    at_most: usize,
}

impl<'de> DeserializeSeed<'de> for IntegersSeed<'_> {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u64>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for IntegersSeed<'_> {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor {}: {} as a list of at most {} integers", self.tensor, self.field, self.at_most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<u64>, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element::<u64>()? {
            if out.len() == self.at_most {
                return Err(de::Error::custom(format_args!(
                    "tensor {}: {} has more than {} entries",
                    self.tensor, self.field, self.at_most
                )));
            }
            out.push(item);
        }
        Ok(out)
    }
}
