//! What a model is: everything that decides its shapes and its arithmetic.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::autoencoder_kl::VaeConfig;
use super::convnextv2::ConvNextV2Config;
use super::diffusers::check_stride;
use super::efficientnet::EfficientNetConfig;
use super::parameters::{self, Parameter};
use super::resnet::ResNetConfig;
use super::sampling::Sampling;
use super::smp::{self, Decoder, SmpConfig};
use super::transformer::TransformerConfig;
use super::unet2d::UnetConfig;
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
    /// Flow-matching U-Net++ of the lensing notebooks.
    FlowUnetPlusPlus,
    /// The same with a U-Net.
    FlowUnet,
    /// U-Net++ of segmentation_models_pytorch.
    UnetPlusPlus,
    /// U-Net of segmentation_models_pytorch.
    Unet,
    /// U-Net of diffusers.
    Unet2d,
    /// U-Net of diffusers that attends to a context.
    Unet2dCondition,
    /// Variational auto-encoder of latent diffusion.
    AutoencoderKl,
    /// ConvNeXt V2 of timm.
    ConvNextV2,
    /// ResNet of torchvision and timm.
    ResNet,
    /// EfficientNet of timm and torchvision.
    EfficientNet,
}

impl Architecture {
    /// Every kind.
    pub const ALL: [Self; 13] = [
        Self::FlowVit,
        Self::Dit,
        Self::Vit,
        Self::FlowUnetPlusPlus,
        Self::FlowUnet,
        Self::UnetPlusPlus,
        Self::Unet,
        Self::Unet2d,
        Self::Unet2dCondition,
        Self::AutoencoderKl,
        Self::ConvNextV2,
        Self::ResNet,
        Self::EfficientNet,
    ];

    /// Name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FlowVit => "flow_vit",
            Self::Dit => "dit",
            Self::Vit => "vit",
            Self::FlowUnetPlusPlus => "flow_unetpp",
            Self::FlowUnet => "flow_unet",
            Self::UnetPlusPlus => "smp_unetpp",
            Self::Unet => "smp_unet",
            Self::Unet2d => "unet2d",
            Self::Unet2dCondition => "unet2d_condition",
            Self::AutoencoderKl => "autoencoder_kl",
            Self::ConvNextV2 => "convnextv2",
            Self::ResNet => "resnet",
            Self::EfficientNet => "efficientnet",
        }
    }

    /// What it is, in a few words.
    pub fn description(self) -> &'static str {
        match self {
            Self::FlowVit => "flow-matching ViT: a timm encoder with a time embedding behind it",
            Self::Dit => "diffusion transformer with adaLN-zero (DiT)",
            Self::Vit => "plain timm ViT classifier",
            Self::FlowUnetPlusPlus => "flow-matching U-Net++: a ResNet encoder, a time embedding added to the output",
            Self::FlowUnet => "flow-matching U-Net: a ResNet encoder, a time embedding added to the output",
            Self::UnetPlusPlus => "U-Net++ with a ResNet encoder (segmentation_models_pytorch)",
            Self::Unet => "U-Net with a ResNet encoder (segmentation_models_pytorch)",
            Self::Unet2d => "U-Net of a diffusion model (diffusers UNet2DModel)",
            Self::Unet2dCondition => "U-Net with cross-attention to a context (diffusers UNet2DConditionModel)",
            Self::AutoencoderKl => "variational auto-encoder of latent diffusion (diffusers AutoencoderKL)",
            Self::ConvNextV2 => "ConvNeXt V2 features or classifier (timm)",
            Self::ResNet => "ResNet features or classifier (torchvision, timm)",
            Self::EfficientNet => "EfficientNet features or classifier (timm, torchvision)",
        }
    }

    /// What it does.
    pub fn task(self) -> Task {
        match self {
            Self::FlowVit
            | Self::Dit
            | Self::FlowUnetPlusPlus
            | Self::FlowUnet
            | Self::Unet2d
            | Self::Unet2dCondition => Task::Generate,
            Self::UnetPlusPlus | Self::Unet => Task::Segment,
            Self::AutoencoderKl => Task::Encode,
            Self::Vit | Self::ConvNextV2 | Self::ResNet | Self::EfficientNet => Task::Classify,
        }
    }

    /// The name of its class in the diffusers library, as `config.json` has it there.
    pub(super) fn diffusers_class(self) -> Option<&'static str> {
        match self {
            Self::Unet2d => Some("UNet2DModel"),
            Self::Unet2dCondition => Some("UNet2DConditionModel"),
            Self::AutoencoderKl => Some("AutoencoderKL"),
            _ => None,
        }
    }
}

/// What a network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Predicts a velocity or a noise from an image and a time.
    Generate,
    /// Features or classes of an image.
    Classify,
    /// A value for each pixel of an image.
    Segment,
    /// Images to latents and back.
    Encode,
}

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// noise - data, for x_t = (1 - t) data + t noise.
    Velocity,
    /// The noise in x_t = sqrt(a) data + sqrt(1 - a) noise, a the share of data at a timestep.
    Epsilon,
    /// sqrt(a) noise - sqrt(1 - a) data (Salimans and Ho 2022, arXiv 2202.00512).
    #[serde(rename = "v_prediction")]
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

/// Largest factor on the time, and longest period of its embedding: f64 is left with seven digits of every angle.
const MAX_TIME_SCALE: f64 = 1e9;
const MAX_PERIOD: f64 = 1e12;

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
    /// Continuous parameters that it can be asked for; only a DiT has any.
    pub parameters: Vec<Parameter>,
    /// Range of the pixel values that the model was trained on.
    pub value_range: (f32, f32),
    /// What the output of a generative network means.
    pub prediction: Prediction,
    /// How it is sampled unless the user says otherwise.
    pub sampling: Sampling,
    /// Folder beside the weights of the auto-encoder whose latents the model draws; its values' range is that of the images then.
    pub autoencoder: Option<String>,
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
    /// U-Net or U-Net++ with a ResNet encoder, alone or in the flow-matching wrapper.
    Smp(SmpConfig),
    /// U-Net of diffusers, with or without a context.
    Unet2d(UnetConfig),
    /// Variational auto-encoder.
    AutoencoderKl(VaeConfig),
    /// ConvNeXt V2.
    ConvNextV2(ConvNextV2Config),
    /// ResNet.
    ResNet(ResNetConfig),
    /// EfficientNet.
    EfficientNet(EfficientNetConfig),
}

impl NetworkConfig {
    /// Its kind.
    pub fn architecture(&self) -> Architecture {
        match self {
            Self::FlowVit(_) => Architecture::FlowVit,
            Self::Dit(_) => Architecture::Dit,
            Self::Vit(_) => Architecture::Vit,
            Self::Smp(smp) => match (smp.decoder, smp.time.is_some()) {
                (Decoder::UnetPlusPlus, true) => Architecture::FlowUnetPlusPlus,
                (Decoder::Unet, true) => Architecture::FlowUnet,
                (Decoder::UnetPlusPlus, false) => Architecture::UnetPlusPlus,
                (Decoder::Unet, false) => Architecture::Unet,
            },
            Self::Unet2d(unet) if unet.context.is_some() => Architecture::Unet2dCondition,
            Self::Unet2d(_) => Architecture::Unet2d,
            Self::AutoencoderKl(_) => Architecture::AutoencoderKl,
            Self::ConvNextV2(_) => Architecture::ConvNextV2,
            Self::ResNet(_) => Architecture::ResNet,
            Self::EfficientNet(_) => Architecture::EfficientNet,
        }
    }

    /// The published name of its sizes, where they have one: of the encoder, for a U-Net.
    pub fn variant(&self) -> Option<&'static str> {
        match self {
            Self::Smp(smp) => smp.encoder.variant(),
            Self::ConvNextV2(convnext) => convnext.variant(),
            Self::ResNet(resnet) => resnet.variant(),
            Self::EfficientNet(efficientnet) => efficientnet.variant(),
            Self::FlowVit(_) | Self::Dit(_) | Self::Vit(_) | Self::Unet2d(_) | Self::AutoencoderKl(_) => None,
        }
    }

    /// What the sides of images are multiples of.
    fn stride(&self) -> usize {
        match self {
            Self::FlowVit(t) | Self::Dit(t) | Self::Vit(t) => t.patch_size,
            Self::Smp(_) => smp::STRIDE,
            Self::Unet2d(unet) => unet.stride(),
            Self::AutoencoderKl(vae) => vae.stride(),
            Self::ConvNextV2(_) | Self::ResNet(_) | Self::EfficientNet(_) => 1,
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
            _ => panic!("{} is no transformer", self.architecture().name()),
        }
    }

    /// The same, to be changed.
    pub fn transformer_mut(&mut self) -> &mut TransformerConfig {
        match &mut self.network {
            NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) | NetworkConfig::Vit(t) => t,
            other => panic!("{} is no transformer", other.architecture().name()),
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

    /// Whether images are latents, whose values know no range: those of an auto-encoder, or of more channels than a picture has.
    pub fn is_latent(&self) -> bool {
        self.autoencoder.is_some() || self.in_channels > 3
    }

    /// Sizes of the transformer blocks. PRECOND: a transformer.
    pub fn block(&self) -> BlockConfig {
        self.transformer().block(self.architecture() == Architecture::Dit)
    }

    /// Why the network generates no images, whatever it predicts, if it does not: what was found and what was expected.
    pub(super) fn network_problem(&self) -> Option<String> {
        let architecture = self.architecture();
        let found = format!("{} ({})", architecture.name(), architecture.description());
        let what = match architecture.task() {
            Task::Generate if architecture != Architecture::Unet2dCondition => return None,
            Task::Generate => "which attends to a context; sampling with one does not exist yet",
            Task::Classify => "which classifies images",
            Task::Segment => "which maps images to masks and takes no time",
            Task::Encode => "which maps images to latents and back and is sampled with a model of its latents",
        };
        Some(format!("found {found}, {what}; expected a velocity or diffusion model (ViT, U-Net, U-Net++ or DiT)"))
    }

    /// Why images cannot be sampled from this model, if they cannot: what was found and what was expected.
    pub fn sampling_problem(&self) -> Option<String> {
        if let Some(problem) = self.network_problem() {
            return Some(problem);
        }
        let learns = self.prediction != Prediction::Velocity && self.out_channels == 2 * self.in_channels;
        (self.out_channels != self.in_channels && !learns).then(|| {
            format!(
                "found {} output channels for {} image channels, expected as many",
                self.out_channels, self.in_channels
            )
        })
    }

    /// The network's own fields as `config.json` holds them.
    fn describe_network(&self, map: &mut Map<String, Value>) {
        match &self.network {
            NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) | NetworkConfig::Vit(t) => t.describe(map),
            NetworkConfig::Smp(smp) => smp.describe(map),
            NetworkConfig::Unet2d(unet) => unet.describe(map),
            NetworkConfig::AutoencoderKl(vae) => vae.describe(map),
            NetworkConfig::ConvNextV2(convnext) => convnext.describe(map),
            NetworkConfig::ResNet(resnet) => resnet.describe(map),
            NetworkConfig::EfficientNet(efficientnet) => efficientnet.describe(map),
        }
        match &self.network {
            NetworkConfig::Vit(t) => drop(map.insert("num_classes".into(), t.head_size.into())),
            NetworkConfig::FlowVit(_) | NetworkConfig::Dit(_) => {
                map.insert("learn_sigma".into(), (self.out_channels != self.in_channels).into());
            }
            NetworkConfig::Smp(_) | NetworkConfig::Unet2d(_) | NetworkConfig::AutoencoderKl(_) => {
                map.insert("out_channels".into(), self.out_channels.into());
            }
            NetworkConfig::ConvNextV2(_) | NetworkConfig::ResNet(_) | NetworkConfig::EfficientNet(_) => {}
        }
    }

    /// The configuration as `config.json` holds it.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("architecture".into(), self.architecture().name().into());
        map.insert("image_size".into(), self.image_size.into());
        map.insert("in_channels".into(), self.in_channels.into());
        self.describe_network(&mut map);
        if self.architecture().task() != Task::Generate {
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
        if let Some(classes) = &self.classes {
            map.insert("num_classes".into(), classes.names.len().into());
            map.insert("class_names".into(), json!(classes.names));
            map.insert("class_aliases".into(), json!(classes.aliases));
            map.insert("null_class".into(), classes.null.into());
        }
        if !self.parameters.is_empty() {
            map.insert("parameters".into(), json!(self.parameters));
        }
        map.insert("value_range".into(), json!([self.value_range.0, self.value_range.1]));
        map.insert("prediction".into(), self.prediction.name().into());
        if let Some(folder) = &self.autoencoder {
            map.insert("autoencoder".into(), folder.as_str().into());
        }
        self.sampling.insert_into(&mut map, self.prediction);
        Value::Object(map)
    }

    /// Whether the shapes can be computed with.
    ///
    /// # Errors
    /// One line: what was found, what was expected.
    pub fn check(&self) -> Result<(), String> {
        match &self.network {
            NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) | NetworkConfig::Vit(t) => t.check(self.image_size)?,
            NetworkConfig::Unet2d(unet) => unet.check(&super::specs(self))?,
            NetworkConfig::AutoencoderKl(vae) => vae.check(&super::specs(self))?,
            NetworkConfig::Smp(_)
            | NetworkConfig::ConvNextV2(_)
            | NetworkConfig::ResNet(_)
            | NetworkConfig::EfficientNet(_) => {}
        }
        check_stride(self.image_size, self.network.stride())?;
        if self.architecture().task() == Task::Generate {
            self.check_time()?;
        }
        if !self.parameters.is_empty() && self.architecture() != Architecture::Dit {
            return Err(format!("parameters: a {} takes none, only a dit does", self.architecture().name()));
        }
        parameters::check(&self.parameters)?;
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
