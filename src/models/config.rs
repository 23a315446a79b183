//! What a model is: everything that decides its shapes and its arithmetic.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::transformer::TransformerConfig;
use crate::nn::block::BlockConfig;
use crate::ops::embed::Sinusoid;

/// Kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Flow-matching ViT of the lensing notebooks.
    FlowVit,
    /// Diffusion transformer with adaLN-zero.
    Dit,
    /// Plain timm ViT classifier.
    Vit,
}

impl Architecture {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::FlowVit, Self::Dit, Self::Vit];

    /// Name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FlowVit => "flow_vit",
            Self::Dit => "dit",
            Self::Vit => "vit",
        }
    }

    /// What it is, in a few words.
    pub fn description(self) -> &'static str {
        match self {
            Self::FlowVit => "flow-matching ViT: a timm encoder with a time embedding behind it",
            Self::Dit => "diffusion transformer with adaLN-zero (DiT)",
            Self::Vit => "plain timm ViT classifier",
        }
    }
}

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// noise - data, for x_t = (1 - t) data + t noise.
    Velocity,
    /// The noise of a diffusion step.
    Epsilon,
}

/// Classes of a conditional model.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    /// Name of each class, by number.
    pub names: Vec<String>,
    /// Other names for them.
    pub aliases: BTreeMap<String, String>,
    /// Number that stands for "no class", the row behind the classes.
    pub null: usize,
}

impl Classes {
    /// Number of the class that the user calls `name`: a number, a name or an alias.
    pub fn find(&self, name: &str) -> Option<usize> {
        if let Ok(id) = name.parse::<usize>() {
            return (id < self.names.len()).then_some(id);
        }
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.names.iter().position(|n| n == name)
    }

    /// Whether [`Classes::find`] finds every class under its own name, and what is an alias as that.
    fn check(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (id, name) in self.names.iter().enumerate() {
            if !seen.insert(name.as_str()) {
                return Err(format!("class_names has {name:?} twice"));
            }
            if name.parse::<usize>().is_ok_and(|number| number != id) {
                return Err(format!("class_names has {name:?} as class {id}: no number but its own can be a name"));
            }
        }
        for (alias, name) in &self.aliases {
            if alias.parse::<usize>().is_ok() || (alias != name && seen.contains(alias.as_str())) {
                return Err(format!("class_aliases.{alias}: neither a number nor the name of another class expected"));
            }
        }
        Ok(())
    }
}

/// Largest factor on the time, and longest period of its embedding: f64 is left with seven digits of every angle.
const MAX_TIME_SCALE: f64 = 1e9;
const MAX_PERIOD: f64 = 1e12;

/// Why a plain ViT cannot be sampled.
pub(super) const CLASSIFIER: &str =
    "found a plain ViT, which classifies images; expected a velocity model (flow-matching ViT or DiT)";

/// Everything that decides a model's shapes and arithmetic: what all networks have, and the network's own part. Fields
/// that a network has no use for (the time of a classifier) keep whatever they were made with.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Height and width in pixels. Convolutional networks take others too; this is the size they are sampled at.
    pub image_size: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output: twice the input's where the model also learns a variance.
    pub out_channels: usize,
    /// Time embedding, of a network that takes a time.
    pub time: Sinusoid,
    /// Classes, for a conditional model.
    pub classes: Option<Classes>,
    /// Range of the pixel values that the model was trained on.
    pub value_range: (f32, f32),
    /// What the output of a generative network means.
    pub prediction: Prediction,
    /// The network.
    pub network: NetworkConfig,
}

/// The sizes of a network, by kind.
#[derive(Clone, Debug, PartialEq)]
pub enum NetworkConfig {
    /// Flow-matching ViT of the lensing notebooks.
    FlowVit(TransformerConfig),
    /// Diffusion transformer with adaLN-zero.
    Dit(TransformerConfig),
    /// Plain timm ViT classifier.
    Vit(TransformerConfig),
}

impl NetworkConfig {
    /// Its kind.
    pub fn architecture(&self) -> Architecture {
        match self {
            Self::FlowVit(_) => Architecture::FlowVit,
            Self::Dit(_) => Architecture::Dit,
            Self::Vit(_) => Architecture::Vit,
        }
    }
}

impl ModelConfig {
    /// Kind of network.
    pub fn architecture(&self) -> Architecture {
        self.network.architecture()
    }

    /// Sizes of the transformer.
    ///
    /// PRECOND: the network is a transformer; panics if it is another.
    pub fn transformer(&self) -> &TransformerConfig {
        match &self.network {
            NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) | NetworkConfig::Vit(t) => t,
        }
    }

    /// The same, to be changed.
    pub fn transformer_mut(&mut self) -> &mut TransformerConfig {
        match &mut self.network {
            NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) | NetworkConfig::Vit(t) => t,
        }
    }

    /// T: tokens of an image. PRECOND: a transformer.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.transformer().patch_size).pow(2)
    }

    /// Rows of the label table: the classes and "no class".
    pub fn label_rows(&self) -> usize {
        self.classes.as_ref().map_or(1, |c| c.names.len() + 1)
    }

    /// Sizes of the transformer blocks. PRECOND: a transformer.
    pub fn block(&self) -> BlockConfig {
        self.transformer().block(self.architecture() == Architecture::Dit)
    }

    /// Why images cannot be sampled from this model, if they cannot: what was found and what was expected.
    pub fn sampling_problem(&self) -> Option<String> {
        if self.architecture() == Architecture::Vit {
            return Some(CLASSIFIER.into());
        }
        if self.prediction != Prediction::Velocity {
            return Some(
                "found a diffusion model that predicts epsilon (noise), expected one that predicts a velocity: the DDIM \
                 sampler that epsilon models need does not exist yet"
                    .into(),
            );
        }
        (self.out_channels != self.in_channels).then(|| {
            format!(
                "found {} output channels for {} image channels, expected as many",
                self.out_channels, self.in_channels
            )
        })
    }

    /// The configuration as `config.json` holds it.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("architecture".into(), self.architecture().name().into());
        map.insert("image_size".into(), self.image_size.into());
        map.insert("in_channels".into(), self.in_channels.into());
        self.transformer().describe(&mut map);
        if self.architecture() == Architecture::Vit {
            map.insert("num_classes".into(), self.transformer().head_size.into());
            return Value::Object(map);
        }
        map.insert(
            "time_embedding".into(),
            json!({
                "dim": self.time.dim,
                "order": if self.time.cos_first { "cos,sin" } else { "sin,cos" },
                "max_period": self.time.max_period,
                "half_shift": self.time.half_shift,
                "scale": self.time.scale,
            }),
        );
        map.insert("learn_sigma".into(), (self.out_channels != self.in_channels).into());
        if let Some(classes) = &self.classes {
            map.insert("num_classes".into(), classes.names.len().into());
            map.insert("class_names".into(), json!(classes.names));
            map.insert("class_aliases".into(), json!(classes.aliases));
            map.insert("null_class".into(), classes.null.into());
        }
        map.insert("value_range".into(), json!([self.value_range.0, self.value_range.1]));
        let prediction = match self.prediction {
            Prediction::Velocity => "velocity",
            Prediction::Epsilon => "epsilon",
        };
        map.insert("prediction".into(), prediction.into());
        Value::Object(map)
    }

    /// Whether the shapes can be computed with.
    ///
    /// # Errors
    /// One line: what was found, what was expected.
    pub fn check(&self) -> Result<(), String> {
        self.transformer().check(self.image_size)?;
        if self.architecture() != Architecture::Vit {
            self.check_time()?;
        }
        self.classes.as_ref().map_or(Ok(()), Classes::check)
    }

    fn check_time(&self) -> Result<(), String> {
        let Sinusoid { dim, max_period, half_shift, scale, .. } = self.time;
        if half_shift != 0.0 && half_shift != 1.0 {
            return Err(format!("time_embedding.half_shift is {half_shift}, 0 or 1 expected"));
        }
        let least = 2 * (half_shift as usize + 1);
        if dim % 2 != 0 || dim < least {
            return Err(format!("time_embedding.dim is {dim}, an even number from {least} expected"));
        }
        if !(max_period > 1.0 && max_period <= MAX_PERIOD) {
            return Err(format!(
                "time_embedding.max_period is {max_period}, a number from 1 to {MAX_PERIOD:e} expected"
            ));
        }
        if !(-MAX_TIME_SCALE..=MAX_TIME_SCALE).contains(&scale) {
            return Err(format!("time_embedding.scale is {scale:e}, a size up to {MAX_TIME_SCALE:e} expected"));
        }
        Ok(())
    }
}
