//! `[model]`: a network to be made, or one to go on from.

use serde::{Deserialize, Serialize};

use super::section::{Section, positive, section, within};
use crate::models::config::{Classes, ModelConfig, NetworkConfig, Prediction};
use crate::models::sampling::Sampling;
use crate::models::transformer::TransformerConfig;
use crate::ops::embed::Sinusoid;

/// The key that names a model to go on from; no other may stand beside it.
const INIT: &str = "init";

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelPlan {
    /// A model with weights, of which the shape is taken too.
    FineTune {
        /// Path of a model, or the name of a built-in one.
        init: String,
    },
    /// A new network.
    New(NewModel),
}

/// Networks that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Diffusion transformer with adaLN-zero.
    Dit,
    /// Flow-matching ViT of the lensing notebooks.
    FlowVit,
}

/// How GELU is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gelu {
    /// By the error function.
    Erf,
    /// By its tanh approximation.
    Tanh,
}

section! {
    /// The shape of a new network. The defaults are those of the embedded lensing model.
    NewModel, "model" {
        /// Kind of network.
        architecture: Network = Network::Dit,
        /// Height and width in pixels: what the transform makes of the images.
        image_size: usize = 64,
        /// Height and width of a patch.
        patch_size: usize = 4,
        /// Channels of the images.
        channels: usize = 1,
        /// D, channels of a token.
        hidden_size: usize = 192,
        /// Number of blocks.
        depth: usize = 6,
        /// Heads of the attention.
        num_heads: usize = 3,
        /// Width of the feed-forward layers, in D.
        mlp_ratio: f64 = 4.0,
        /// GELU of the feed-forward layers.
        gelu: Gelu = Gelu::Erf,
        /// Whether the network learns the classes of the data; by default a DiT does. The flow-matching ViT cannot.
        class_conditional: bool = true,
    }
}

impl Default for ModelPlan {
    fn default() -> Self {
        Self::New(NewModel::default())
    }
}

impl ModelPlan {
    /// From the table `[model]`.
    pub(super) fn from_table(table: &toml::Table) -> Result<Self, String> {
        let Some(init) = table.get(INIT) else {
            let mut new = NewModel::from_table(table)?;
            if !table.contains_key("class_conditional") {
                new.class_conditional = new.architecture == Network::Dit;
            }
            return Ok(Self::New(new));
        };
        if let Some(other) = table.keys().find(|key| *key != INIT) {
            return Err(format!("key {other:?} beside \"init\": the model to go on from decides its shape"));
        }
        match init.as_str() {
            Some(init) => Ok(Self::FineTune { init: init.to_owned() }),
            None => Err(format!("key \"init\": found {}, expected a string", init.type_str())),
        }
    }

    /// Why the plan cannot be carried out.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::New(new) => new.check(),
            Self::FineTune { init } if init.is_empty() => {
                Err("init is empty, a path or the name of a built-in model expected".into())
            }
            Self::FineTune { .. } => Ok(()),
        }
    }
}

/// Every key of the table.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    NewModel::KEYS.iter().copied().chain([INIT])
}

impl NewModel {
    fn check(&self) -> Result<(), String> {
        within("channels", self.channels, 1..=64)?;
        within("hidden_size", self.hidden_size, 8..=16_384)?;
        within("depth", self.depth, 1..=1024)?;
        positive("mlp_ratio", self.mlp_ratio, 64.0)?;
        if self.mlp_hidden() == 0 {
            return Err(format!("mlp_ratio is {}, which leaves no feed-forward channels", self.mlp_ratio));
        }
        if self.class_conditional && self.architecture == Network::FlowVit {
            return Err("class_conditional is true, but a flow_vit has no classes: false expected".into());
        }
        self.config(&[], (-1.0, 1.0)).check()
    }

    fn mlp_hidden(&self) -> usize {
        (self.hidden_size as f64 * self.mlp_ratio).round() as usize
    }

    /// The network for images of `value_range`, with `class_names` (those of the data, in their order) if it is
    /// [`NewModel::class_conditional`]. Time embeddings are those of the published models.
    pub fn config(&self, class_names: &[String], value_range: (f32, f32)) -> ModelConfig {
        let dit = self.architecture == Network::Dit;
        let classes = (self.class_conditional && !class_names.is_empty()).then(|| Classes {
            names: class_names.to_vec(),
            aliases: Default::default(),
            null: class_names.len(),
        });
        let sizes = TransformerConfig {
            patch_size: self.patch_size,
            hidden_size: self.hidden_size,
            depth: self.depth,
            num_heads: self.num_heads,
            mlp_hidden: self.mlp_hidden(),
            norm_eps: 1e-6,
            gelu_tanh: self.gelu == Gelu::Tanh,
            head_size: 0,
        };
        ModelConfig {
            image_size: self.image_size,
            in_channels: self.channels,
            out_channels: self.channels,
            time: Sinusoid {
                dim: 256,
                cos_first: dit,
                max_period: 10_000.0,
                half_shift: if dit { 0.0 } else { 1.0 },
                scale: 1000.0,
            },
            classes,
            parameters: Vec::new(),
            value_range,
            prediction: Prediction::Velocity,
            sampling: Sampling::default(),
            autoencoder: None,
            network: if dit { NetworkConfig::Dit(sizes) } else { NetworkConfig::FlowVit(sizes) },
        }
    }
}
