//! Which files make up a model folder, and the index of a sharded one.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::json::parse_strict;
use crate::io::mapped::read_text;
use crate::io::quoted;

/// Largest configuration file, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Largest index of a sharded model, in bytes.
const MAX_INDEX: u64 = 16 << 20;
/// Names by the Hugging Face habit, in the order they are looked for.
const STEMS: [&str; 2] = ["model", "diffusion_pytorch_model"];

/// The weights of a folder.
pub(crate) enum Weights {
    Single(PathBuf),
    Sharded(Index),
}

/// A checked `*.safetensors.index.json`.
pub(crate) struct Index {
    /// The index file, for messages.
    pub path: PathBuf,
    /// Name of the shard file of each tensor.
    pub shard_of: BTreeMap<String, String>,
    /// Bytes of all tensors, where the index tells.
    pub total_size: Option<u64>,
}

/// Finds the weights of `folder`: `model.safetensors`, its index, the same for `diffusion_pytorch_model`, else the one
/// `*.safetensors` there is.
pub(crate) fn find_weights(folder: &Path) -> Result<Weights> {
    for stem in STEMS {
        let single = folder.join(format!("{stem}.safetensors"));
        if single.exists() {
            return Ok(Weights::Single(single));
        }
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        if index.exists() {
            return read_index(&index).map(Weights::Sharded);
        }
    }
    let unreadable = |e: std::io::Error| Error::input(folder, format!("folder cannot be read: {e}"));
    let (mut found, mut pickles) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => found.push(path),
            Some("pt" | "pth" | "ckpt" | "bin") => pickles.push(path),
            _ => {}
        }
    }
    found.sort();
    pickles.sort();
    let names = |paths: &[PathBuf]| {
        let shown = paths.iter().take(5).filter_map(|p| p.file_name()).map(|n| quoted(&n.to_string_lossy()));
        shown.collect::<Vec<_>>().join(", ")
    };
    match &found[..] {
        [single] => Ok(Weights::Single(single.clone())),
        [] if !pickles.is_empty() => Err(Error::input(
            folder,
            format!(
                "found only pickles ({}), expected model.safetensors; pickles can run code and are never opened: convert \
                 one with `python3 tools/pt2safetensors.py FILE`",
                names(&pickles)
            ),
        )),
        [] => {
            Err(Error::input(folder, "no weights in this folder, expected model.safetensors or an index with shards"))
        }
        many => Err(Error::input(
            folder,
            format!(
                "found {} safetensors files ({}), expected one or model.safetensors: give the file itself",
                many.len(),
                names(many)
            ),
        )),
    }
}

/// The `config.json` of a folder, if it has one.
pub(crate) fn read_config(folder: &Path) -> Result<Option<Value>> {
    Ok(read_object(&folder.join("config.json"))?.map(Value::Object))
}

/// The `scheduler_config.json` of the model in `folder`, and where it lies: beside the weights, or in the folder `scheduler` of the
/// pipeline that `folder` is a part of.
pub(crate) fn read_scheduler(folder: &Path) -> Result<Option<(PathBuf, Map<String, Value>)>> {
    for place in ["", "../scheduler"] {
        let path = folder.join(place).join("scheduler_config.json");
        if let Some(settings) = read_object(&path)? {
            return Ok(Some((path, settings)));
        }
    }
    Ok(None)
}

/// The object in a JSON file, if there is one.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(path, MAX_CONFIG)?;
    match parse_strict(&text).map_err(|e| Error::input(path, format!("JSON: {e}")))? {
        Value::Object(object) => Ok(Some(object)),
        _ => Err(Error::input(path, "JSON: expected an object")),
    }
}

/// The folder of the network where `folder` is a whole pipeline of diffusers, which has it in `unet`.
pub(crate) fn network_of(folder: &Path) -> PathBuf {
    let network = folder.join("unet");
    if folder.join("model_index.json").exists() && network.is_dir() { network } else { folder.into() }
}

/// Whether `config.json` beside this file belongs to it: so for the names that the habit gives to the weights.
pub(crate) fn has_habitual_name(file: &Path) -> bool {
    STEMS.iter().any(|stem| file.file_name().is_some_and(|name| name == format!("{stem}.safetensors").as_str()))
}

fn read_index(path: &Path) -> Result<Index> {
    let refuse = |reason: String| Error::input(path, reason);
    let text = read_text(path, MAX_INDEX)?;
    let json = parse_strict(&text).map_err(|e| refuse(format!("JSON: {e}")))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| refuse("field \"weight_map\": missing, expected an object of file names".into()))?;
    let mut shard_of = BTreeMap::new();
    for (name, shard) in map {
        let shard = shard.as_str().filter(|shard| is_plain_name(shard)).ok_or_else(|| {
            let found = quoted(&shard.to_string());
            refuse(format!(
                "weight_map entry {}: found {found}, expected the plain name of a file in this folder",
                quoted(name)
            ))
        })?;
        shard_of.insert(name.clone(), shard.to_owned());
    }
    if shard_of.is_empty() {
        return Err(refuse("field \"weight_map\": found no tensors".into()));
    }
    let total_size = match json.get("metadata").and_then(|metadata| metadata.get("total_size")) {
        None => None,
        // Some writers store the sum as a float.
        Some(size) => Some(size.as_u64().or_else(|| whole(size.as_f64()?)).ok_or_else(|| {
            refuse(format!(
                "field \"metadata.total_size\": found {}, expected a number of bytes",
                quoted(&size.to_string())
            ))
        })?),
    };
    Ok(Index { path: path.to_path_buf(), shard_of, total_size })
}

fn whole(value: f64) -> Option<u64> {
    (value.fract() == 0.0 && (0.0..9e15).contains(&value)).then_some(value as u64)
}

/// Whether `name` is one file name: no folder, no `..`, no root, neither separator.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.contains(['/', '\\', '\0']) && matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// Path of a shard named by the index of `folder`. A link may not lead out of the folder, except into the `blobs`
/// folder of the Hugging Face cache, whose `snapshots/<revision>` folders consist of such links.
pub(crate) fn shard_path(folder: &Path, index: &Path, shard: &str) -> Result<PathBuf> {
    let path = folder.join(shard);
    let unreadable = |path: &Path, e: std::io::Error| {
        Error::input(
            path,
            format!("cannot be opened: {e}; named in {}", index.file_name().unwrap_or_default().display()),
        )
    };
    let home = folder.canonicalize().map_err(|e| unreadable(folder, e))?;
    let target = path.canonicalize().map_err(|e| unreadable(&path, e))?;
    let cache = home
        .parent()
        .filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))
        .and_then(Path::parent)
        .map(|repository| repository.join("blobs"));
    if target.starts_with(&home) || cache.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(path);
    }
    Err(Error::input(&path, format!("a link to {}, expected a file inside the model folder", target.display())))
}
