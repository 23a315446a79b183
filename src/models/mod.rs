//! Architectures, one file each, and how a checkpoint is recognised and read.

pub mod builtin;
pub mod config;
pub mod dit;
mod fields;
pub mod flow_vit;
pub mod import;
mod overlay;
pub mod vit;

use std::path::PathBuf;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::Tap;
use crate::nn::params::{Loader, ParamSpec, WeightSource};
use crate::ops::embed::condition;
use crate::tensor::{DType, Tensor};
use config::{Architecture, ModelConfig};

/// Channels of the narrowest head that the attention kernels take.
const MIN_GPU_HEAD: usize = 32;

/// The parameters of the architecture that `config` describes, under our names.
pub fn specs(config: &ModelConfig) -> Vec<ParamSpec> {
    match config.architecture {
        Architecture::FlowVit => flow_vit::specs(config),
        Architecture::Dit => dit::specs(config),
        Architecture::Vit => vit::specs(config),
    }
}

/// A velocity model with its weights on a device.
pub struct Model {
    /// Where the weights came from, for messages.
    pub origin: PathBuf,
    /// What the model is.
    pub config: ModelConfig,
    /// Where it is.
    pub device: Device,
    /// Type that weights and activations are stored in.
    pub dtype: DType,
    network: Network,
}

enum Network {
    FlowVit(flow_vit::FlowVit),
    Dit(dit::Dit),
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

/// Everything that depends on time and label alone, computed once for all evaluations of a run.
pub struct Conditions {
    /// [E L, S]: row e L + l belongs to evaluation e and label l.
    table: Tensor,
    /// L: 1 for an unconditional model.
    labels: usize,
}

impl Conditions {
    /// y [B, S] = the rows of the evaluation at hand.
    fn select(&self, device: &Device, inputs: Inputs, y: &mut Tensor) -> Result<()> {
        condition(device, &self.table, self.labels, inputs.counter, inputs.rows, y)
    }

    /// The table, [E L, S].
    pub fn table(&self) -> &Tensor {
        &self.table
    }
}

impl Model {
    /// Reads the weights of the model that `config` describes from `source`.
    ///
    /// # Errors
    /// [`Error::Input`] if `source` cannot give a parameter, the architecture predicts no velocity, or `config` cannot be
    /// computed with or its heads are too narrow for a GPU; the device's errors.
    pub fn load(config: ModelConfig, source: &dyn WeightSource, device: &Device, dtype: DType) -> Result<Self> {
        config.check().map_err(|e| Error::input(source.origin(), format!("configuration: {e}")))?;
        let head_dim = config.hidden_size / config.num_heads;
        if matches!(device, Device::Cuda(_)) && head_dim < MIN_GPU_HEAD {
            let reason =
                format!("heads of {head_dim} channels, {MIN_GPU_HEAD} to 128 expected on a GPU: use --device cpu");
            return Err(Error::input(source.origin(), reason));
        }
        let loader = Loader::new(source, device, dtype);
        let network = match config.architecture {
            Architecture::FlowVit => Network::FlowVit(flow_vit::FlowVit::load(&config, &loader)?),
            Architecture::Dit => Network::Dit(dit::Dit::load(&config, &loader)?),
            Architecture::Vit => return Err(Error::input(source.origin(), config::CLASSIFIER)),
        };
        Ok(Self { origin: source.origin().to_path_buf(), config, device: device.clone(), dtype, network })
    }

    /// Buffers for forward passes of `batch` images.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn acts(&self, batch: usize) -> Result<Acts> {
        let network = match &self.network {
            Network::FlowVit(m) => {
                NetworkActs::FlowVit(Box::new(m.acts(&self.config, &self.device, self.dtype, batch)?))
            }
            Network::Dit(m) => NetworkActs::Dit(Box::new(m.acts(&self.config, &self.device, self.dtype, batch)?)),
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
        let (labels, width) = match &self.network {
            Network::FlowVit(_) => (&[0][..], self.config.hidden_size),
            Network::Dit(m) => (labels, m.condition_len()),
        };
        let table = Tensor::zeros(&self.device, self.dtype, &[times.len() * labels.len(), width])?;
        let mut conditions = Conditions { table, labels: labels.len() };
        self.fill_conditions(times, labels, &mut conditions)?;
        Ok(conditions)
    }

    /// The same for other times or labels, as many as before, in the same memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]: intermediate results are allocated.
    pub fn fill_conditions(&self, times: &[f64], labels: &[u32], conditions: &mut Conditions) -> Result<()> {
        let (config, device, table) = (&self.config, &self.device, &mut conditions.table);
        device.run(|| match &self.network {
            Network::FlowVit(m) => m.conditions(config, device, times, table),
            Network::Dit(m) => m.conditions(config, device, times, labels, table),
        })
    }

    /// `acts.output` = model(x, t, labels). Allocates nothing and never synchronises.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(&self, inputs: Inputs, acts: &mut Acts, tap: Tap) -> Result<()> {
        match (&self.network, &mut acts.network) {
            (Network::FlowVit(m), NetworkActs::FlowVit(a)) => {
                m.forward(&self.config, &self.device, inputs, a, &mut acts.output, tap)
            }
            (Network::Dit(m), NetworkActs::Dit(a)) => {
                m.forward(&self.config, &self.device, inputs, a, &mut acts.output, tap)
            }
            _ => Err(Error::Runtime("activations of another model".into())),
        }
    }
}
