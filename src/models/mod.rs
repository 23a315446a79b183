//! Architectures, one file each, and how a checkpoint is recognised and read.

pub mod autoencoder_kl;
pub mod batch;
pub mod builtin;
pub mod config;
pub mod convnextv2;
mod diffusers;
pub mod diffusion;
pub mod dit;
pub mod efficientnet;
pub mod export;
mod fields;
pub mod flow_vit;
pub mod import;
mod overlay;
pub mod parameters;
mod recognise;
pub mod resnet;
pub mod sampling;
mod scheduler;
mod shapes;
pub mod smp;
pub mod training;
pub mod transformer;
pub mod unet2d;
pub mod vit;

use std::path::PathBuf;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::Tap;
use crate::nn::norm::Layers;
use crate::nn::params::{Loader, ParamSpec, WeightSource};
use crate::ops::Select;
use crate::ops::attention::MIN_GPU_HEAD;
use crate::tensor::{DType, Tensor};
use config::{ModelConfig, NetworkConfig};
use smp::forward::{FlowUnet, FlowUnetActs, FlowUnetConditions};
use unet2d::forward::{Unet2d, Unet2dActs, Unet2dConditions};

/// The parameters of the architecture that `config` describes, under our names.
pub fn specs(config: &ModelConfig) -> Vec<ParamSpec> {
    let (from, to) = (config.in_channels, config.out_channels);
    match &config.network {
        NetworkConfig::FlowVit(_) => flow_vit::specs(config),
        NetworkConfig::Dit(_) => dit::specs(config),
        NetworkConfig::Vit(_) => vit::specs(config),
        NetworkConfig::Smp(smp) => smp.specs(from, to, config.time.dim),
        NetworkConfig::Unet2d(unet) => unet.specs(from, to, config.time.dim),
        NetworkConfig::AutoencoderKl(vae) => vae.specs(from, to),
        NetworkConfig::ConvNextV2(convnext) => convnext.specs(from),
        NetworkConfig::ResNet(resnet) => resnet.specs(from),
        NetworkConfig::EfficientNet(efficientnet) => efficientnet.specs(from),
    }
}

/// How many numbers training changes: neither DiT's fixed table of positions, nor the position of the class token that
/// the flow ViT does without, nor BatchNorm's running statistics.
pub fn parameters(config: &ModelConfig) -> usize {
    let learned = specs(config).into_iter().filter(|spec| !spec.is_statistic());
    let count = learned.map(|s| match (&config.network, s.name.as_str()) {
        (NetworkConfig::Dit(_), "pos_embed") => 0,
        (NetworkConfig::FlowVit(t), "pretrained_vit.pos_embed") => config.tokens() * t.hidden_size,
        _ => s.shape.iter().product(),
    });
    count.sum()
}

/// A velocity or diffusion model with its weights on a device.
pub struct Model {
    /// Where the weights came from, for messages.
    pub origin: PathBuf,
    /// What the model is.
    pub config: ModelConfig,
    /// Where it is.
    pub device: Device,
    /// Type that weights and activations are stored in.
    pub dtype: DType,
    /// How far operations are fused; taken up by the buffers and conditions that are made from then on.
    pub layers: Layers,
    network: Network,
}

enum Network {
    FlowVit(Box<flow_vit::FlowVit>),
    Dit(Box<dit::Dit>),
    FlowUnet(Box<FlowUnet>),
    Unet2d(Box<Unet2d>),
}

/// The activation arena of one batch size: allocated once, written by every forward pass.
pub struct Acts {
    network: NetworkActs,
    /// [B, C, H, W], what the model says about its input.
    pub output: Tensor,
}

enum NetworkActs {
    FlowVit(Box<flow_vit::FlowVitActs>),
    Dit(Box<dit::DitActs>),
    FlowUnet(Box<FlowUnetActs>),
    Unet2d(Box<Unet2dActs>),
}

/// What a forward pass reads; all on the model's device.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Images [X, C, H, W] in f32 (f64 for an f64 model); image b of the batch is x[b mod X].
    pub x: &'a Tensor,
    /// What depends on time and label alone, for all evaluations: [`Model::conditions`].
    pub conditions: &'a Conditions,
    /// Which evaluation this is, `[1]`.
    pub counter: &'a Tensor,
    /// Which of the labels of `conditions` each image has, `[B]`; zeros for an unconditional model.
    pub rows: &'a Tensor,
}

impl Inputs<'_> {
    fn select(&self) -> Select<'_> {
        Select { counter: self.counter, rows: self.rows, conditions: self.conditions.labels }
    }
}

/// What an image is asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its class, or "no class"; ignored by an unconditional model.
    pub label: u32,
    /// Whether it has the continuous parameters of the run.
    pub parameters: bool,
}

/// Everything that depends on time and condition alone, computed once for all evaluations of a run.
pub struct Conditions {
    /// L: 1 for an unconditional model.
    labels: usize,
    /// The embedding of the run's continuous parameters, if there are any.
    parameters: Option<Tensor>,
    /// By architecture; row e L + l of each tensor belongs to evaluation e and label l.
    pub tables: Tables,
}

/// The tables of [`Conditions`].
pub enum Tables {
    /// Of the flow-matching ViT.
    FlowVit(flow_vit::FlowVitConditions),
    /// Of the DiT.
    Dit(Box<dit::DitConditions>),
    /// Of the flow-matching U-Net.
    FlowUnet(FlowUnetConditions),
    /// Of diffusers' U-Net.
    Unet2d(Unet2dConditions),
}

impl Model {
    /// Reads the weights of the model that `config` describes from `source`.
    ///
    /// # Errors
    /// [`Error::Input`] if `source` cannot give a parameter, the architecture predicts no velocity, or `config` cannot be
    /// computed with or its heads are too narrow for a GPU; the device's errors.
    pub fn load(config: ModelConfig, source: &dyn WeightSource, device: &Device, dtype: DType) -> Result<Self> {
        config.check().map_err(|e| Error::input(source.origin(), format!("configuration: {e}")))?;
        if let Some(problem) = config.network_problem() {
            return Err(Error::input(source.origin(), problem));
        }
        if let Some(problem) = gpu_problem(&config).filter(|_| matches!(device, Device::Cuda(_))) {
            return Err(Error::input(source.origin(), format!("{problem}: use --device cpu")));
        }
        let loader = Loader::new(source, device, dtype);
        let network = match &config.network {
            NetworkConfig::FlowVit(_) => Network::FlowVit(Box::new(flow_vit::FlowVit::load(&config, &loader)?)),
            NetworkConfig::Smp(smp) => Network::FlowUnet(Box::new(FlowUnet::load(&config, smp, &loader)?)),
            NetworkConfig::Unet2d(unet) => Network::Unet2d(Box::new(Unet2d::load(&config, unet, &loader)?)),
            _ => Network::Dit(Box::new(dit::Dit::load(&config, &loader)?)),
        };
        let layers = Layers::best(device);
        Ok(Self { origin: source.origin().to_path_buf(), config, device: device.clone(), dtype, layers, network })
    }

    /// Buffers for forward passes of `batch` images.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn acts(&self, batch: usize) -> Result<Acts> {
        let (config, layers, device) = (&self.config, self.layers, &self.device);
        let network = match &self.network {
            Network::FlowVit(m) => NetworkActs::FlowVit(Box::new(m.acts(config, layers, device, self.dtype, batch)?)),
            Network::Dit(m) => NetworkActs::Dit(Box::new(m.acts(config, layers, device, self.dtype, batch)?)),
            Network::FlowUnet(m) => NetworkActs::FlowUnet(Box::new(m.acts(config, device, self.dtype, batch)?)),
            Network::Unet2d(m) => {
                NetworkActs::Unet2d(Box::new(m.acts(device, self.dtype, batch, [config.image_size; 2])?))
            }
        };
        let c = &self.config;
        let output = Tensor::zeros(&self.device, self.dtype, &[batch, c.out_channels, c.image_size, c.image_size])?;
        Ok(Acts { network, output })
    }

    /// The conditions of evaluations at `times` for images of these `labels` (ignored by an unconditional model).
    ///
    /// PRECOND: labels are below [`ModelConfig::label_rows`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn conditions(&self, times: &[f64], labels: &[u32]) -> Result<Conditions> {
        let wanted: Vec<_> = labels.iter().map(|&label| Condition { label, parameters: false }).collect();
        self.conditions_of(times, &wanted, None)
    }

    /// The same for images that may be asked for by continuous parameters too: one value for each of those of the model.
    ///
    /// PRECOND: labels are below [`ModelConfig::label_rows`].
    ///
    /// # Errors
    /// [`Error::Usage`] for values that the model cannot take; [`Error::OutOfMemory`].
    pub fn conditions_of(&self, times: &[f64], wanted: &[Condition], parameters: Option<&[f64]>) -> Result<Conditions> {
        let (config, device, dtype, evaluations) = (&self.config, &self.device, self.dtype, times.len());
        let (labels, tables) = match &self.network {
            Network::FlowVit(m) => (1, Tables::FlowVit(m.new_conditions(config, device, dtype, evaluations)?)),
            Network::FlowUnet(m) => (1, Tables::FlowUnet(m.new_conditions(device, evaluations)?)),
            Network::Unet2d(m) => (1, Tables::Unet2d(m.new_conditions(device, evaluations)?)),
            Network::Dit(m) => {
                let rows = evaluations * wanted.len();
                (wanted.len(), Tables::Dit(Box::new(m.new_conditions(config, self.layers, device, dtype, rows)?)))
            }
        };
        let normalised = parameters.map(|values| parameters::normalised(&config.parameters, values)).transpose();
        let parameters = match (normalised.map_err(Error::Usage)?, &self.network) {
            (Some(values), Network::Dit(m)) => device.run(|| m.embed_parameters(device, &values))?,
            _ => None,
        };
        let mut conditions = Conditions { labels, parameters, tables };
        self.fill_conditions(times, wanted, &mut conditions)?;
        Ok(conditions)
    }

    /// The same for other times, labels or images with parameters, as many as before, in the same memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]: intermediate results are allocated.
    pub fn fill_conditions(&self, times: &[f64], wanted: &[Condition], conditions: &mut Conditions) -> Result<()> {
        let (config, device) = (&self.config, &self.device);
        let Conditions { parameters, tables, .. } = conditions;
        device.run(|| match (&self.network, tables) {
            (Network::FlowVit(m), Tables::FlowVit(to)) => m.conditions(config, device, times, to),
            (Network::Dit(m), Tables::Dit(to)) => m.conditions(config, device, times, wanted, parameters.as_ref(), to),
            (Network::FlowUnet(m), Tables::FlowUnet(to)) => m.conditions(config, device, times, to),
            (Network::Unet2d(m), Tables::Unet2d(to)) => m.conditions(config, device, times, to),
            _ => Err(other_model()),
        })
    }

    /// `acts.output` = model(x, t, labels). Allocates nothing and never synchronises.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(&self, inputs: Inputs, acts: &mut Acts, tap: Tap) -> Result<()> {
        let (config, device, output) = (&self.config, &self.device, &mut acts.output);
        match (&self.network, &inputs.conditions.tables, &mut acts.network) {
            (Network::FlowVit(m), Tables::FlowVit(c), NetworkActs::FlowVit(a)) => {
                m.forward(config, device, inputs, c, a, output, tap)
            }
            (Network::Dit(m), Tables::Dit(c), NetworkActs::Dit(a)) => {
                m.forward(config, device, inputs, c, a, output, tap)
            }
            (Network::FlowUnet(m), Tables::FlowUnet(c), NetworkActs::FlowUnet(a)) => {
                m.forward(device, inputs, c, a, output, tap)
            }
            (Network::Unet2d(m), Tables::Unet2d(c), NetworkActs::Unet2d(a)) => {
                m.forward(device, inputs.x, inputs.select(), c, a, output)
            }
            _ => Err(other_model()),
        }
    }
}

/// Why a GPU cannot run the model.
fn gpu_problem(config: &ModelConfig) -> Option<String> {
    match &config.network {
        NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) => {
            let head = t.hidden_size / t.num_heads;
            let narrow = head < MIN_GPU_HEAD;
            narrow.then(|| format!("heads of {head} channels, {MIN_GPU_HEAD} to 128 expected on a GPU"))
        }
        _ => None,
    }
}

/// About how many numbers the activations of one image take in a batch.
pub fn activations(config: &ModelConfig) -> usize {
    let pixels = config.image_size * config.image_size;
    match &config.network {
        NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) | NetworkConfig::Vit(t) => {
            let (d, hidden) = (t.hidden_size, t.mlp_hidden);
            // Token rows: x, h, qkv, hidden and a workspace as wide as the widest product.
            config.tokens() * (5 * d + hidden + hidden.max(3 * d)) + 4 * pixels * config.out_channels
        }
        NetworkConfig::Smp(smp) => smp::forward::activations(smp, config.image_size),
        NetworkConfig::Unet2d(unet) => unet.activations(config.image_size),
        // None of these is sampled.
        _ => 0,
    }
}

fn other_model() -> Error {
    Error::Runtime("activations or conditions of another model".into())
}
