//! Checkpoints trained elsewhere: which architecture the names and shapes are, and which name is which of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::config::{Architecture, Classes, ModelConfig, Prediction};
use super::sampling::Sampling;
use super::{overlay, specs};
use crate::error::{Error, Result};
use crate::io::Checkpoint;
use crate::nn::params::WeightSource;
use crate::ops::embed::Sinusoid;

/// Prefixes that training scripts put around a network.
const WRAPPERS: [&str; 5] = ["unet.", "model.", "module.", "_orig_mod.", "ema_model."];
/// Channels of a head where the configuration does not say.
const HEAD_DIM: usize = 64;
/// Most blocks, and largest side of a shape, that a checkpoint may claim.
const MAX_DEPTH: usize = 1024;
const MAX_DIM: usize = 1 << 20;

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
                let architecture = import.config.architecture.name();
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
        let (names, mut unused) = strip(checkpoint).map_err(fail)?;
        let given = given_config(checkpoint).map_err(|e| fail(format!("configuration: {e}")))?;
        let mut config = Shapes { checkpoint, names: &names, given: &given }.recognise().map_err(fail)?;
        let mut notes = Vec::new();
        if !given.contains_key("num_heads") {
            let (d, heads) = (config.hidden_size, config.num_heads);
            if d % HEAD_DIM != 0 {
                return Err(fail(format!(
                    "no num_heads in the configuration: needed for a hidden size of {d}, which heads of {HEAD_DIM} do not divide"
                )));
            }
            notes.push(format!("no num_heads in the configuration: taking {heads} heads of {HEAD_DIM}"));
        }
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
            let known = does_without(self.config.architecture, name);
            if known { &mut *unused } else { &mut differences.unexpected }.push(file_name.clone());
        }
        differences
    }

    /// DiT's positions are a fixed table, so a file may leave them out.
    fn computed(&self, name: &str) -> bool {
        self.config.architecture == Architecture::Dit && name == "pos_embed"
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
                self.config.hidden_size,
                self.config.image_size / self.config.patch_size,
            )),
            None => Err(Error::input(self.checkpoint.path(), format!("no parameter {name}"))),
        }
    }
}

/// Keys of known checkpoints that the forward pass does not read.
fn does_without(architecture: Architecture, name: &str) -> bool {
    match architecture {
        Architecture::FlowVit => {
            let vit = name.strip_prefix("pretrained_vit.").unwrap_or("");
            matches!(vit, "cls_token" | "norm.weight" | "norm.bias" | "head.weight" | "head.bias")
        }
        Architecture::Dit | Architecture::Vit => false,
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

/// `config.json`, or the metadata key `config`, or plain metadata keys.
fn given_config(checkpoint: &Checkpoint) -> std::result::Result<Map<String, Value>, String> {
    match checkpoint.config_json().and_then(Value::as_object) {
        Some(config) => overlay::flatten(config),
        None => Ok(checkpoint.metadata().iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect()),
    }
}

/// Shapes by stripped name, and the configuration.
struct Shapes<'a> {
    checkpoint: &'a Checkpoint,
    names: &'a BTreeMap<String, String>,
    given: &'a Map<String, Value>,
}

impl Shapes<'_> {
    fn get<const RANK: usize>(&self, name: &str) -> std::result::Result<[usize; RANK], String> {
        let file_name = self.names.get(name).ok_or_else(|| format!("missing key {name}"))?;
        let shape = self.checkpoint.shape(file_name).unwrap_or_default();
        let fixed: [usize; RANK] =
            shape.try_into().map_err(|_| format!("{file_name} is {shape:?}, {RANK} dimensions expected"))?;
        if fixed.iter().any(|&d| d == 0 || d > MAX_DIM) {
            return Err(format!("{file_name} is {shape:?}, dimensions from 1 to {MAX_DIM} expected"));
        }
        Ok(fixed)
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    fn recognise(&self) -> std::result::Result<ModelConfig, String> {
        if self.has("x_embedder.proj.weight") && self.has("final_layer.linear.weight") {
            self.dit()
        } else if self.has("input_conv.weight") && self.has("pretrained_vit.patch_embed.proj.weight") {
            self.flow_vit()
        } else if self.has("patch_embed.proj.weight") && self.has("cls_token") {
            self.vit()
        } else {
            let some: Vec<&str> = self.names.values().take(4).map(String::as_str).collect();
            Err(format!(
                "unknown architecture: keys like {} found; a flow-matching ViT (input_conv, pretrained_vit), a DiT \
                 (x_embedder, final_layer) or a timm ViT (patch_embed, cls_token) expected",
                some.join(", ")
            ))
        }
    }

    fn dit(&self) -> std::result::Result<ModelConfig, String> {
        let [d, channels, p, _] = self.get("x_embedder.proj.weight")?;
        let [rows, _] = self.get("final_layer.linear.weight")?;
        let [label_rows, _] = self.get("y_embedder.embedding_table.weight")?;
        let [_, freq] = self.get("t_embedder.mlp.0.weight")?;
        let per_patch = p * p * channels;
        // The original predicts noise and variance; the lensing project's variant a velocity.
        let original = rows == 2 * per_patch;
        if !original && rows != per_patch {
            return Err(format!("final_layer.linear has {rows} rows, {per_patch} or {} expected", 2 * per_patch));
        }
        let classes = label_rows - 1;
        let image_size = match self.get::<3>("pos_embed") {
            Ok([_, tokens, _]) => square(tokens)? * p,
            Err(_) if !self.has("pos_embed") => self.given_size(channels)?,
            Err(e) => return Err(e),
        };
        let config = ModelConfig {
            architecture: Architecture::Dit,
            image_size,
            patch_size: p,
            in_channels: channels,
            out_channels: if original { 2 * channels } else { channels },
            hidden_size: d,
            depth: self.depth("blocks")?,
            num_heads: d / HEAD_DIM,
            mlp_hidden: self.get::<2>("blocks.0.mlp.fc1.weight")?[0],
            norm_eps: 1e-6,
            gelu_tanh: original,
            time: Sinusoid {
                dim: freq,
                cos_first: true,
                max_period: 10_000.0,
                half_shift: 0.0,
                scale: if original { 1.0 } else { 1000.0 },
            },
            classes: (classes > 0).then(|| Classes {
                names: (0..classes).map(|i| i.to_string()).collect(),
                aliases: BTreeMap::new(),
                null: classes,
            }),
            head_size: 0,
            value_range: (-1.0, 1.0),
            prediction: if original { Prediction::Epsilon } else { Prediction::Velocity },
            sampling: Sampling::default(),
        };
        Ok(config)
    }

    fn flow_vit(&self) -> std::result::Result<ModelConfig, String> {
        let [_, channels, _, _] = self.get("input_conv.weight")?;
        let [rows, _] = self.get("output_proj.2.weight")?;
        let [_, freq] = self.get("time_embed.time_mlp.0.weight")?;
        let encoder = self.encoder("pretrained_vit.", channels)?;
        let pixels = encoder.patch_size * encoder.patch_size;
        if rows % pixels != 0 {
            return Err(format!("output_proj.2 has {rows} rows, a multiple of {pixels} expected"));
        }
        let time = Sinusoid { dim: freq, cos_first: false, max_period: 10_000.0, half_shift: 1.0, scale: 1000.0 };
        let config = ModelConfig { architecture: Architecture::FlowVit, out_channels: rows / pixels, time, ..encoder };
        if config.out_channels != channels {
            return Err(format!("output_proj.2 makes {} channels, {channels} expected", config.out_channels));
        }
        Ok(config)
    }

    fn vit(&self) -> std::result::Result<ModelConfig, String> {
        let [_, channels, _, _] = self.get("patch_embed.proj.weight")?;
        let head_size = self.get::<2>("head.weight")?[0];
        Ok(ModelConfig { head_size, ..self.encoder("", channels)? })
    }

    /// What the timm encoder below `prefix` says.
    fn encoder(&self, prefix: &str, in_channels: usize) -> std::result::Result<ModelConfig, String> {
        let at = |name: &str| format!("{prefix}{name}");
        let [d, _, p, _] = self.get(&at("patch_embed.proj.weight"))?;
        let [_, rows, _] = self.get(&at("pos_embed"))?;
        Ok(ModelConfig {
            architecture: Architecture::Vit,
            image_size: square(rows - 1)? * p,
            patch_size: p,
            in_channels,
            out_channels: in_channels,
            hidden_size: d,
            depth: self.depth(&at("blocks"))?,
            num_heads: d / HEAD_DIM,
            mlp_hidden: self.get::<2>(&at("blocks.0.mlp.fc1.weight"))?[0],
            norm_eps: 1e-6,
            gelu_tanh: false,
            time: Sinusoid { dim: 256, cos_first: false, max_period: 10_000.0, half_shift: 1.0, scale: 1000.0 },
            classes: None,
            head_size: 0,
            value_range: (-1.0, 1.0),
            prediction: Prediction::Velocity,
            sampling: Sampling::default(),
        })
    }

    fn depth(&self, blocks: &str) -> std::result::Result<usize, String> {
        let depth = (0..=MAX_DEPTH).take_while(|i| self.has(&format!("{blocks}.{i}.attn.qkv.weight"))).count();
        if (1..=MAX_DEPTH).contains(&depth) {
            Ok(depth)
        } else {
            Err(format!("{depth} blocks called {blocks}.N found, 1 to {MAX_DEPTH} expected"))
        }
    }

    fn given_size(&self, channels: usize) -> std::result::Result<usize, String> {
        let size = overlay::image_size(self.given, Architecture::Dit, channels);
        match size.map_err(|e| format!("configuration: {e}"))? {
            Some((_, size)) => Ok(size),
            None => Err("neither pos_embed nor a configured image_size tells the size of images".into()),
        }
    }
}

/// Side of a square of `tokens` patches.
fn square(tokens: usize) -> std::result::Result<usize, String> {
    let side = tokens.isqrt();
    if side > 0 && side * side == tokens {
        Ok(side)
    } else {
        Err(format!("positions for {tokens} patches, a square number expected"))
    }
}
