//! What a model is: everything that decides its shapes and its arithmetic.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::sampling::Sampling;
use crate::nn::block::BlockConfig;
use crate::ops::embed::Sinusoid;
use crate::ops::linear::Activation;

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
    /// The noise in x_t = sqrt(a) data + sqrt(1 - a) noise, a the share of data at a timestep.
    Epsilon,
    /// sqrt(a) noise - sqrt(1 - a) data (Salimans and Ho 2022, arXiv 2202.00512).
    V,
    /// The data.
    Sample,
}

impl Prediction {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Velocity, Self::Epsilon, Self::V, Self::Sample];

    /// Name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Velocity => "velocity",
            Self::Epsilon => "epsilon",
            Self::V => "v_prediction",
            Self::Sample => "sample",
        }
    }
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

/// Most tokens of an image.
const MAX_TOKENS: usize = 1 << 16;
/// Largest factor on the time, and longest period of its embedding: f64 is left with seven digits of every angle.
const MAX_TIME_SCALE: f64 = 1e9;
const MAX_PERIOD: f64 = 1e12;

/// Why a plain ViT cannot be sampled.
pub(super) const CLASSIFIER: &str =
    "found a plain ViT, which classifies images; expected a velocity or diffusion model (flow-matching ViT or DiT)";

/// Everything that decides a model's shapes and arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Kind of network.
    pub architecture: Architecture,
    /// Height and width in pixels.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output: twice the input's where the model also learns a variance.
    pub out_channels: usize,
    /// D.
    pub hidden_size: usize,
    /// Number of blocks.
    pub depth: usize,
    /// NH.
    pub num_heads: usize,
    /// Width of the feed-forward layers.
    pub mlp_hidden: usize,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// GELU by its tanh approximation instead of the error function.
    pub gelu_tanh: bool,
    /// Time embedding.
    pub time: Sinusoid,
    /// Classes, for a conditional model.
    pub classes: Option<Classes>,
    /// Outputs of the classifier head (plain ViT only).
    pub head_size: usize,
    /// Range of the pixel values that the model was trained on.
    pub value_range: (f32, f32),
    /// What the output means.
    pub prediction: Prediction,
    /// How it is sampled unless the user says otherwise.
    pub sampling: Sampling,
}

impl ModelConfig {
    /// T: tokens of an image.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Rows of the label table: the classes and "no class".
    pub fn label_rows(&self) -> usize {
        self.classes.as_ref().map_or(1, |c| c.names.len() + 1)
    }

    /// Whether images are latents, whose values know no range: those of more channels than a picture has.
    pub fn is_latent(&self) -> bool {
        self.in_channels > 3
    }

    /// Sizes of the transformer blocks.
    pub fn block(&self) -> BlockConfig {
        BlockConfig {
            dim: self.hidden_size,
            heads: self.num_heads,
            hidden: self.mlp_hidden,
            act: if self.gelu_tanh { Activation::GeluTanh } else { Activation::Gelu },
            eps: self.norm_eps,
            modulated: self.architecture == Architecture::Dit,
        }
    }

    /// Why images cannot be sampled from this model, if they cannot: what was found and what was expected.
    pub fn sampling_problem(&self) -> Option<String> {
        if self.architecture == Architecture::Vit {
            return Some(CLASSIFIER.into());
        }
        let learns = self.prediction != Prediction::Velocity && self.out_channels == 2 * self.in_channels;
        (self.out_channels != self.in_channels && !learns).then(|| {
            format!(
                "found {} output channels for {} image channels, expected as many",
                self.out_channels, self.in_channels
            )
        })
    }

    /// The configuration as `config.json` holds it.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "architecture": self.architecture.name(),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "in_channels": self.in_channels,
            "hidden_size": self.hidden_size,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_hidden as f64 / self.hidden_size as f64,
            "norm_eps": self.norm_eps,
            "gelu": if self.gelu_tanh { "tanh" } else { "erf" },
        });
        let map = json.as_object_mut().expect("a literal object");
        if self.architecture == Architecture::Vit {
            map.insert("num_classes".into(), self.head_size.into());
            return json;
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
        map.insert("prediction".into(), self.prediction.name().into());
        self.sampling.insert_into(map, self.prediction);
        json
    }

    /// Whether the shapes can be computed with.
    ///
    /// # Errors
    /// One line: what was found, what was expected.
    pub fn check(&self) -> Result<(), String> {
        let (size, patch) = (self.image_size, self.patch_size);
        if size == 0 || patch == 0 || size % patch != 0 {
            return Err(format!("image_size is {size}, a multiple of the patch size {patch} expected"));
        }
        if size / patch > MAX_TOKENS.isqrt() {
            let most = MAX_TOKENS.isqrt() * patch;
            return Err(format!("image_size is {size}, at most {most} expected for patches of {patch}"));
        }
        // Heads of a multiple of 8 channels make the hidden size one too, as the fixed positions of DiT need.
        let (d, heads) = (self.hidden_size, self.num_heads);
        if heads == 0 || d % heads != 0 {
            return Err(format!("num_heads is {heads}, a divisor of the hidden size {d} expected"));
        }
        if (d / heads) % 8 != 0 || !(8..=128).contains(&(d / heads)) {
            return Err(format!("heads of {} channels ({d} / {heads}), a multiple of 8 up to 128 expected", d / heads));
        }
        if self.architecture != Architecture::Vit {
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
