//! Checkpoints trained elsewhere: which architecture the names and shapes are, and which name is which of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::config::{Architecture, ModelConfig, NetworkConfig};
use super::scheduler::Scheduler;
use super::shapes::Shapes;
use super::{diffusers, efficientnet, overlay, recognise, specs};
use crate::error::{Error, Result};
use crate::io::Checkpoint;
use crate::nn::params::WeightSource;

/// Prefixes that training scripts put around a network.
const WRAPPERS: [&str; 5] = ["unet.", "model.", "module.", "_orig_mod.", "ema_model."];

/// A checkpoint under our names.
pub struct Import<'a> {
    /// What the model is.
    pub config: ModelConfig,
    /// Names in the file that the model does without (class token, classifier head, raw weights beside EMA weights).
    pub unused: Vec<String>,
    /// What had to be guessed.
    pub notes: Vec<String>,
    checkpoint: &'a Checkpoint,
    names: BTreeMap<String, String>,
}

/// How the keys of a checkpoint differ from the parameters of its architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyDifferences {
    /// Parameters that the file lacks, under our names.
    pub missing: Vec<String>,
    /// Keys of the file that belong to no parameter.
    pub unexpected: Vec<String>,
    /// Keys of the wrong shape, with the shape found and the one expected.
    pub misshaped: Vec<String>,
}

impl KeyDifferences {
    /// All differences in one line; `None` if there are none.
    pub fn describe(&self) -> Option<String> {
        let lists = [("missing", &self.missing), ("unexpected", &self.unexpected), ("mis-shaped", &self.misshaped)];
        let problems: Vec<String> = lists
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(what, list)| format!("{} {what} ({})", list.len(), list.join(", ")))
            .collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}

impl<'a> Import<'a> {
    /// Recognises `checkpoint` and checks that it holds every parameter of its architecture.
    ///
    /// # Errors
    /// [`Error::Input`]: an unknown architecture, a configuration that contradicts the shapes, or, all at once,
    /// missing, unexpected and mis-shaped keys.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        let (import, differences) = Self::examine(checkpoint)?;
        match differences.describe() {
            None => Ok(import),
            Some(problems) => {
                let architecture = import.config.architecture().name();
                Err(Error::input(checkpoint.path(), format!("keys do not fit {architecture}: {problems}")))
            }
        }
    }

    /// Recognises `checkpoint`; keys that do not fit are told instead of being an error. Reading a parameter that is
    /// among them fails or gives numbers of another shape.
    ///
    /// # Errors
    /// [`Error::Input`]: an unknown architecture, or a configuration that contradicts the shapes.
    pub fn examine(checkpoint: &'a Checkpoint) -> Result<(Self, KeyDifferences)> {
        let path = checkpoint.path();
        let fail = |reason: String| Error::input(path, reason);
        let (names, mut unused) = strip(checkpoint).and_then(|(names, u)| Ok((rename(names)?, u))).map_err(fail)?;
        let mut given = given_config(checkpoint).map_err(|e| fail(format!("configuration: {e}")))?;
        let shapes = Shapes { checkpoint, names: &names, given: &given };
        let mut config = recognise::recognise(&shapes).map_err(fail)?;
        let mut notes = config.guesses(&given).map_err(fail)?;
        notes.extend(add_scheduler(checkpoint, &config, &mut given)?);
        config.overlay(&given).map_err(|e| fail(format!("configuration: {e}")))?;
        config.check().map_err(|e| fail(format!("configuration: {e}")))?;
        let import = Self { config, unused: Vec::new(), notes, checkpoint, names };
        let differences = import.compare(&mut unused);
        Ok((Self { unused, ..import }, differences))
    }

    /// Name in the file of our parameter `name`; `None` for a table that is computed.
    pub fn file_name(&self, name: &str) -> Option<&str> {
        self.names.get(name).map(String::as_str)
    }

    /// The file.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// Compares all keys with the architecture's parameters; adds the ones that the model does without to `unused`.
    fn compare(&self, unused: &mut Vec<String>) -> KeyDifferences {
        let specs = specs(&self.config);
        let mut differences = KeyDifferences::default();
        for spec in &specs {
            match self.names.get(&spec.name) {
                None if self.computed(&spec.name) => {}
                None => differences.missing.push(spec.name.clone()),
                Some(file_name) => {
                    let found = self.checkpoint.shape(file_name).unwrap_or_default();
                    if found != spec.shape {
                        differences.misshaped.push(format!("{file_name} is {found:?}, {:?} expected", spec.shape));
                    }
                }
            }
        }
        let wanted: BTreeSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
        for (name, file_name) in &self.names {
            if wanted.contains(name.as_str()) {
                continue;
            }
            let known = does_without(self.config.architecture(), name) || counts_batches(name, &wanted);
            if known { &mut *unused } else { &mut differences.unexpected }.push(file_name.clone());
        }
        differences
    }

    /// DiT's positions are a fixed table, so a file may leave them out.
    fn computed(&self, name: &str) -> bool {
        self.config.architecture() == Architecture::Dit && name == "pos_embed"
    }
}

impl WeightSource for Import<'_> {
    fn origin(&self) -> &Path {
        self.checkpoint.path()
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        match self.names.get(name) {
            Some(file_name) => self.checkpoint.read_f32(file_name),
            None if self.computed(name) => Ok(super::builtin::sincos_positions(
                self.config.transformer().hidden_size,
                self.config.image_size / self.config.transformer().patch_size,
            )),
            None => Err(Error::input(self.checkpoint.path(), format!("no parameter {name}"))),
        }
    }
}

/// BatchNorm's counter of training batches.
fn counts_batches(name: &str, wanted: &BTreeSet<&str>) -> bool {
    let norm = name.strip_suffix("num_batches_tracked");
    norm.is_some_and(|norm| wanted.contains(&*format!("{norm}running_mean")))
}

/// Names of other releases of a network as ours.
fn rename(names: BTreeMap<String, String>) -> std::result::Result<BTreeMap<String, String>, String> {
    let mut ours = BTreeMap::new();
    for (name, file_name) in &names {
        let renamed = efficientnet::renamed(name, &names).or_else(|| diffusers::renamed(name));
        let name = renamed.unwrap_or_else(|| name.clone());
        if let Some(other) = ours.insert(name.clone(), file_name.clone()) {
            return Err(format!("{other} and {file_name} are both {name} by today's names"));
        }
    }
    Ok(ours)
}

/// Keys of known checkpoints that the forward pass does not read.
fn does_without(architecture: Architecture, name: &str) -> bool {
    match architecture {
        Architecture::FlowVit => {
            let vit = name.strip_prefix("pretrained_vit.").unwrap_or("");
            matches!(vit, "cls_token" | "norm.weight" | "norm.bias" | "head.weight" | "head.bias")
        }
        _ => false,
    }
}

/// Names without wrappers -> names in the file, and the names left aside. EMA weights are preferred to raw ones.
fn strip(checkpoint: &Checkpoint) -> std::result::Result<(BTreeMap<String, String>, Vec<String>), String> {
    let split = |name: &str| {
        let (mut rest, mut ema) = (name, false);
        while let Some((wrapper, inner)) = WRAPPERS.iter().find_map(|w| Some((w, rest.strip_prefix(w)?))) {
            ema |= *wrapper == "ema_model.";
            rest = inner;
        }
        (rest.to_owned(), ema)
    };
    let any_ema = checkpoint.names().any(|n| split(n).1);
    let (mut names, mut unused) = (BTreeMap::new(), Vec::new());
    for file_name in checkpoint.names() {
        let (name, ema) = split(file_name);
        if ema != any_ema {
            unused.push(file_name.to_owned());
        } else if let Some(other) = names.insert(name.clone(), file_name.to_owned()) {
            return Err(format!("{other} and {file_name} are both {name} without their wrappers"));
        }
    }
    Ok((names, unused))
}

/// Adds what the `scheduler_config.json` of a U-Net of diffusers says to the configuration that is `given`, unless that has settings
/// of a diffusion model itself; the note that it does.
fn add_scheduler(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    given: &mut Map<String, Value>,
) -> Result<Option<String>> {
    if !matches!(config.network, NetworkConfig::Unet2d(_)) || given.contains_key("diffusion") {
        return Ok(None);
    }
    let Some((file, settings)) = checkpoint.scheduler()? else { return Ok(None) };
    let refuse = |reason: String| Error::input(&file, reason);
    let scheduler = Scheduler::read(&settings, config.out_channels != config.in_channels).map_err(refuse)?;
    let note = format!("noise schedule and sampler as its {} says ({})", scheduler.class, file.display());
    scheduler.add_to(given).map_err(refuse)?;
    Ok(Some(note))
}

/// `config.json`, or the metadata key `config`, or plain metadata keys.
fn given_config(checkpoint: &Checkpoint) -> std::result::Result<Map<String, Value>, String> {
    match checkpoint.config_json().and_then(Value::as_object) {
        Some(config) => overlay::flatten(config),
        None => Ok(checkpoint.metadata().iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect()),
    }
}
