//! Checkpoints of a run: everything that training needs to go on, in folders that appear whole or not at all.
//!
//! `checkpoints/step-00000100/` holds one safetensors file of f32 tensors for each group (weights, moments, ...),
//! `state.json`, and `SHA256SUMS` over all of them, as `sha256sum --check` reads it. A folder is filled under a hidden
//! name, every file is synced, then it is renamed; so whenever the process or the machine stops, the newest folder that
//! has a name is whole. A step that is saved again becomes `step-00000100.2`, because folders cannot be replaced in one
//! move, and the first is removed after that.
//!
//! One process at a time may save into a run folder; the run folder's lock sees to that.

mod place;
mod read;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::place::{HiddenFolder, Place};
use crate::error::{Error, Result};
use crate::io::atomic::publish;
use crate::io::{TensorBytes, quoted, sha256_file, write_atomic, write_safetensors};

/// Folder of the checkpoints in a run folder.
pub const FOLDER: &str = "checkpoints";

/// Value of `format` in [`STATE`].
const FORMAT: &str = "arclet-checkpoint/1";

/// File of what is no tensor.
const STATE: &str = "state.json";

/// File of the digests.
const SUMS: &str = "SHA256SUMS";

/// Last part of the name of a group's file.
const SUFFIX: &str = ".safetensors";

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor<'a> {
    /// Name, unique in its group.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major; every bit is kept, also of what is not finite.
    pub values: Cow<'a, [f32]>,
}

impl<'a> NamedTensor<'a> {
    /// A tensor of borrowed or owned `values`.
    pub fn new(name: impl Into<String>, shape: &[usize], values: impl Into<Cow<'a, [f32]>>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), values: values.into() }
    }
}

/// What a run goes on from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint<'a> {
    /// What is no tensor: where the loader is, random numbers, loss scale, best validation. Finite f64 and all integers
    /// of 64 bits come back as they were.
    pub state: Value,
    /// Tensors by group. A group is called by lower-case letters, digits and `_`; its tensors come back in the order of
    /// their names.
    pub groups: BTreeMap<String, Vec<NamedTensor<'a>>>,
}

/// The newest checkpoint that could be read.
#[derive(Debug)]
pub struct Found {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Its content.
    pub checkpoint: Checkpoint<'static>,
    /// Why newer ones were left out, one line each; they want to be shown.
    pub warnings: Vec<String>,
}

/// Saves `checkpoint` of `step` below the folder of a run, then removes all but the `keep` newest (at least one). Those
/// of later steps, which a run that went on from an earlier one has not reached yet, are left alone. Returns the new
/// folder once it is durable.
///
/// # Errors
/// [`Error::Output`], for a full disk for instance, after which the older checkpoints are as they were and nothing of the
/// new one is left; [`Error::Runtime`] for names or shapes that cannot be stored.
pub fn save(run: &Path, step: u64, checkpoint: &Checkpoint<'_>, keep: usize) -> Result<PathBuf> {
    if let Some(name) = checkpoint.groups.keys().find(|name| !is_group(name)) {
        return Err(Error::Runtime(format!(
            "group {}: up to 64 lower-case letters, digits and _ expected",
            quoted(name)
        )));
    }
    let home = run.join(FOLDER);
    fs::create_dir_all(&home).map_err(|e| Error::output(&home, e))?;
    place::sweep(&home);
    let hidden = HiddenFolder::create(&home, step)?;
    let mut sums = Vec::new();
    for (group, tensors) in &checkpoint.groups {
        let name = format!("{group}{SUFFIX}");
        let tensors = tensors.iter().map(|t| TensorBytes::from_f32(&*t.name, &t.shape, &t.values));
        write_safetensors(hidden.path().join(&name), tensors, &BTreeMap::new())?;
        sums.push(name);
    }
    let groups: Vec<&String> = checkpoint.groups.keys().collect();
    let state = json!({ "format": FORMAT, "step": step, "groups": groups, "state": checkpoint.state });
    write_atomic(hidden.path().join(STATE), (format!("{state:#}\n")).as_bytes())?;
    sums.push(STATE.to_owned());
    let mut text = String::new();
    for name in sums {
        text += &format!("{}  {name}\n", sha256_file(hidden.path().join(&name))?);
    }
    write_atomic(hidden.path().join(SUMS), text.as_bytes())?;

    let place = Place::free(&home, step)?;
    let path = home.join(place.name());
    publish(hidden.path(), &path).map_err(|e| Error::output(&path, e))?;
    place::retire(&home, place, keep.max(1));
    Ok(path)
}

/// The newest checkpoint of the run in folder `run` that is whole, or nothing where none was saved. Every digest is
/// compared before anything is believed; what fails is left out with a warning, and the next older one is tried.
///
/// # Errors
/// [`Error::Input`] if there are checkpoints, but none that can be read.
pub fn newest(run: &Path) -> Result<Option<Found>> {
    let home = run.join(FOLDER);
    let mut warnings = Vec::new();
    for place in place::list(&home)?.into_iter().rev() {
        let path = home.join(place.name());
        match read::read(&path, place.step) {
            Ok(checkpoint) => return Ok(Some(Found { step: place.step, path, checkpoint, warnings })),
            Err(Error::Input { path, reason }) => {
                warnings.push(format!("checkpoint left out: {}: {reason}", path.display()));
            }
            Err(other) => return Err(other),
        }
    }
    match warnings.first() {
        None => Ok(None),
        Some(first) => Err(Error::input(home, format!("none of {} can be read; the newest: {first}", warnings.len()))),
    }
}

/// Whether a group may have this name, which becomes that of a file.
fn is_group(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
