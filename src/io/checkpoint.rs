//! A read-only view of stored weights: one safetensors file, a model folder, a NumPy dictionary, or bytes embedded in the binary.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::decode::{self, DecodeError};
use crate::io::digest::sha256_of_parts;
use crate::io::dtype::FileDType;
use crate::io::folder::{self, Index, Weights};
use crate::io::foreign::{Kind, recognise};
use crate::io::header::{Header, TensorEntry, read_header};
use crate::io::json::parse_strict;
use crate::io::mapped::{Bytes, map_file};
use crate::io::npy::Npy;
use crate::io::object_npy::{ObjectArray, parse_object_npy};
use crate::io::quoted;

/// Metadata key that holds the model configuration as JSON.
pub const CONFIG_KEY: &str = "config";

/// Stored weights, opened and checked but not yet converted. Files stay memory-mapped as long as this lives.
pub struct Checkpoint {
    path: PathBuf,
    parts: Vec<Part>,
    tensors: BTreeMap<String, Located>,
    metadata: BTreeMap<String, String>,
    config: Option<Value>,
    /// The folder whose `config.json` counts.
    home: Option<PathBuf>,
}

/// One file.
struct Part {
    path: PathBuf,
    bytes: Bytes,
    /// Tensors decoded from a file that does not store them as plain bytes; else they are ranges of `bytes`.
    decoded: Option<Vec<u8>>,
}

impl Part {
    fn new(path: impl Into<PathBuf>, bytes: Bytes) -> Self {
        Self { path: path.into(), bytes, decoded: None }
    }

    /// Gives the memory of a tensor that has been read back to the system.
    fn forget(&self, range: &Range<usize>) {
        if self.decoded.is_none() {
            self.bytes.forget(range);
        }
    }

    /// The bytes that tensor ranges refer to.
    fn tensor_bytes(&self) -> &[u8] {
        self.decoded.as_deref().unwrap_or(&self.bytes)
    }
}

/// A tensor and the part that holds it.
struct Located {
    part: usize,
    entry: TensorEntry,
}

impl Checkpoint {
    /// Opens a safetensors file, an object `.npy` file that holds one dictionary of arrays, or a folder: `model.safetensors`, else `model.safetensors.index.json` with its
    /// shards, else the same for `diffusion_pytorch_model`, else the only `*.safetensors` in it; of a pipeline of diffusers its `unet`.
    ///
    /// The configuration is the folder's `config.json` (also for a file that has one of those names), else the
    /// metadata key [`CONFIG_KEY`]. Anything missing, malformed or of another format is an [`Error::Input`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let folder = path.is_dir().then(|| folder::network_of(path));
        let mut opened = match &folder {
            Some(folder) => match folder::find_weights(folder)? {
                Weights::Single(file) => Self::open_file(&file)?,
                Weights::Sharded(index) => Self::open_sharded(folder, &index)?,
            },
            None => Self::open_file(path)?,
        };
        let beside = || path.parent().filter(|_| folder::has_habitual_name(path)).map(Path::to_path_buf);
        opened.home = folder.or_else(beside);
        if let Some(config) = opened.home.as_deref().map(folder::read_config).transpose()?.flatten() {
            opened.config = Some(config);
        }
        opened.path = path.to_path_buf();
        Ok(opened)
    }

    /// Opens safetensors bytes that are part of the binary; `name` stands for the path in messages. `config` is the
    /// model configuration as JSON; without it the metadata key [`CONFIG_KEY`] counts.
    pub fn from_static(name: &str, bytes: &'static [u8], config: Option<&str>) -> Result<Self> {
        let mut opened = Self::from_parts(name.into(), vec![Part::new(name, Bytes::Static(bytes))])?;
        if let Some(text) = config {
            opened.config = Some(parse_strict(text).map_err(|e| Error::input(name, format!("config: {e}")))?);
        }
        Ok(opened)
    }

    fn open_file(path: &Path) -> Result<Self> {
        let bytes = map_file(path)?;
        match recognise(path, &bytes) {
            Kind::Safetensors => Self::from_parts(path.into(), vec![Part::new(path, bytes)]),
            Kind::Npy => Self::from_object_npy(path, bytes).map_err(|reason| Error::input(path, reason)),
            Kind::Refused(reason) => Err(Error::input(path, reason)),
        }
    }

    /// A dictionary of arrays that was saved with `numpy.save`.
    fn from_object_npy(path: &Path, bytes: Bytes) -> Result<Self, String> {
        let arrays = parse_object_npy(&bytes).and_then(ObjectArray::into_named_arrays).map_err(|reason| {
            format!("{reason} (a .npy file of weights is a dictionary of arrays, saved with numpy.save)")
        })?;
        let mut decoded = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, Npy { shape, data }) in arrays {
            let start = decoded.len();
            data.put_le(&mut decoded);
            let entry = TensorEntry { dtype: data.file_dtype(), shape, range: start..decoded.len() };
            tensors.insert(name, Located { part: 0, entry });
        }
        let parts = vec![Part { decoded: Some(decoded), ..Part::new(path, bytes) }];
        Ok(Self { path: path.into(), parts, tensors, metadata: BTreeMap::new(), config: None, home: None })
    }

    fn open_sharded(home: &Path, index: &Index) -> Result<Self> {
        let shards: BTreeSet<&str> = index.shard_of.values().map(String::as_str).collect();
        let mut parts = Vec::with_capacity(shards.len());
        for shard in &shards {
            let path = folder::shard_path(home, &index.path, shard)?;
            let bytes = map_file(&path)?;
            if let Kind::Refused(reason) = recognise(&path, &bytes) {
                return Err(Error::input(path, reason));
            }
            parts.push(Part::new(path, bytes));
        }
        let opened = Self::from_parts(home.into(), parts)?;
        opened.compare_with_index(index, &shards.into_iter().collect::<Vec<_>>())?;
        Ok(opened)
    }

    /// Reads the header of each part; a tensor in two parts is refused.
    fn from_parts(path: PathBuf, parts: Vec<Part>) -> Result<Self> {
        let mut tensors: BTreeMap<String, Located> = BTreeMap::new();
        let mut headers = Vec::with_capacity(parts.len());
        for (part, Part { path, bytes, .. }) in parts.iter().enumerate() {
            let Header { tensors: entries, metadata } = read_header(path, bytes)?;
            for (name, entry) in entries {
                if let Some(earlier) = tensors.get(&name) {
                    let other = parts[earlier.part].path.display();
                    return Err(Error::input(path, format!("tensor {}: already in {other}", quoted(&name))));
                }
                tensors.insert(name, Located { part, entry });
            }
            headers.push(metadata);
        }
        let metadata = merge_metadata(&path, headers)?;
        let config = embedded_config(&path, &metadata)?;
        Ok(Self { path, parts, tensors, metadata, config, home: None })
    }

    /// The index and the shards must name the same tensors in the same files.
    fn compare_with_index(&self, index: &Index, shards: &[&str]) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, shard) in &index.shard_of {
            match self.tensors.get(name) {
                Some(found) if shards[found.part] == shard => {}
                Some(found) => {
                    wrong.push(format!("{} is in {}, not in {}", quoted(name), shards[found.part], quoted(shard)))
                }
                None => wrong.push(format!("{} is not in {}", quoted(name), quoted(shard))),
            }
        }
        for (name, found) in &self.tensors {
            if !index.shard_of.contains_key(name) {
                wrong.push(format!("{} of {} is not in the index", quoted(name), shards[found.part]));
            }
        }
        if !wrong.is_empty() {
            let shown = wrong.iter().take(10).cloned().collect::<Vec<_>>().join("; ");
            let more = if wrong.len() > 10 { format!("; and {} more", wrong.len() - 10) } else { String::new() };
            return Err(Error::input(
                &index.path,
                format!("field \"weight_map\" does not match the shards: {shown}{more}"),
            ));
        }
        match index.total_size {
            Some(size) if size != self.total_bytes() => Err(Error::input(
                &index.path,
                format!(
                    "field \"metadata.total_size\": found {size}, but the tensors have {} bytes",
                    self.total_bytes()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// What was opened: the file or folder as given, or the name of embedded bytes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names in ascending order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Row-major shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|located| &located.entry.shape[..])
    }

    /// Stored element type of a tensor.
    pub fn dtype(&self, name: &str) -> Option<FileDType> {
        self.tensors.get(name).map(|located| located.entry.dtype)
    }

    /// Stored bytes of a tensor: little-endian, row-major, of any alignment. [`Error::Input`] if it is missing.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let located = self.tensors.get(name);
        let located = located.ok_or_else(|| Error::input(&self.path, format!("tensor {} is missing", quoted(name))))?;
        Ok(&self.parts[located.part].tensor_bytes()[located.entry.range.clone()])
    }

    /// Elements of a float tensor as f32, row-major. [`Error::Input`] if it is missing, of another type, or holds a
    /// value that is not finite in f32.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.read(name, "f32", decode::to_f32)
    }

    /// Elements of a float tensor as f64, row-major, refused as in [`Checkpoint::read_f32`].
    pub fn read_f64(&self, name: &str) -> Result<Vec<f64>> {
        self.read(name, "f64", decode::to_f64)
    }

    fn read<T>(
        &self,
        name: &str,
        wanted: &str,
        convert: impl Fn(FileDType, &[u8]) -> Result<Vec<T>, DecodeError>,
    ) -> Result<Vec<T>> {
        let bytes = self.bytes(name)?;
        let Located { part, entry } = &self.tensors[name];
        let numbers = convert(entry.dtype, bytes);
        self.parts[*part].forget(&entry.range);
        numbers.map_err(|e| {
            let (name, dtype) = (quoted(name), entry.dtype);
            let reason = match e {
                DecodeError::NotFloat => format!("tensor {name}: found {dtype}, expected F16, BF16, F32 or F64"),
                DecodeError::Memory(bytes) => {
                    return Error::Runtime(format!("tensor {name}: no memory for {bytes} bytes"));
                }
                DecodeError::NotFinite(index, value) if value.is_finite() => {
                    format!("tensor {name}: element {index} is {value:e}, too large for {wanted}")
                }
                DecodeError::NotFinite(index, value) => {
                    format!("tensor {name}: element {index} is {value}, expected finite numbers")
                }
            };
            Error::input(&self.parts[*part].path, reason)
        })
    }

    /// Metadata of the file. Of several shards: the keys on whose value they do not differ.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Model configuration, if there is one; see [`Checkpoint::open`].
    pub fn config_json(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The settings of the scheduler that diffusers keeps beside the model, and where they lie: `scheduler_config.json` beside the
    /// weights, or in the folder `scheduler` beside theirs.
    ///
    /// # Errors
    /// [`Error::Input`] if it is no object of JSON.
    pub fn scheduler(&self) -> Result<Option<(PathBuf, Map<String, Value>)>> {
        self.home.as_deref().map_or(Ok(None), folder::read_scheduler)
    }

    /// SHA-256 of the file; of a sharded model, of its shards one after the other in name order. Reads every byte.
    pub fn sha256(&self) -> String {
        const BLOCK: usize = 8 << 20;
        let blocks = self.parts.iter().flat_map(|part| {
            let blocks = part.bytes.chunks(BLOCK).enumerate();
            blocks.map(move |(i, block)| (part, i * BLOCK..i * BLOCK + block.len(), block))
        });
        // Each block is given back when the next is asked for.
        let mut last: Option<(&Part, Range<usize>)> = None;
        sha256_of_parts(blocks.map(|(part, range, block)| {
            if let Some((part, range)) = last.replace((part, range)) {
                part.bytes.forget(&range);
            }
            block
        }))
    }

    /// Bytes of all tensors together, headers not counted.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|located| located.entry.range.len() as u64).sum()
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// Metadata that no two shards disagree on; disagreeing on the configuration is an error.
fn merge_metadata(path: &Path, headers: Vec<BTreeMap<String, String>>) -> Result<BTreeMap<String, String>> {
    let mut merged: BTreeMap<String, String> = BTreeMap::new();
    let mut disputed = BTreeSet::new();
    for (key, value) in headers.into_iter().flatten() {
        match merged.get(&key) {
            Some(earlier) if *earlier != value => drop(disputed.insert(key)),
            Some(_) => {}
            None => drop(merged.insert(key, value)),
        }
    }
    if disputed.contains(CONFIG_KEY) {
        return Err(Error::input(path, format!("metadata key {CONFIG_KEY:?} differs between shards")));
    }
    merged.retain(|key, _| !disputed.contains(key));
    Ok(merged)
}

/// The configuration in the metadata. Other programs keep other things under that key, a file name for instance, so
/// only what starts like an object has to be one.
fn embedded_config(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Option<Value>> {
    match metadata.get(CONFIG_KEY) {
        Some(text) if text.trim_start().starts_with('{') => {
            parse_strict(text).map(Some).map_err(|e| Error::input(path, format!("metadata key {CONFIG_KEY:?}: {e}")))
        }
        _ => Ok(None),
    }
}
