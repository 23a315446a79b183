//! Architectures, one file each, and how a checkpoint is recognised and read.

pub mod builtin;
pub mod config;
pub mod dit;
pub mod flow_vit;
pub mod import;
pub mod vit;

use std::path::PathBuf;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::Tap;
use crate::nn::params::{Loader, ParamSpec, WeightSource};
use crate::nn::time::sinusoid_table;
use crate::tensor::{DType, Tensor};
use config::{Architecture, ModelConfig};

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
    /// Sinusoids of the times of all evaluations, from [`Model::time_table`].
    pub times: &'a Tensor,
    /// Which row of `times` this evaluation takes, `[1]`.
    pub counter: &'a Tensor,
    /// Class per image `[B]`; read by conditional models only.
    pub labels: &'a Tensor,
}

impl Model {
    /// Reads the weights of the model that `config` describes from `source`.
    ///
    /// # Errors
    /// [`Error::Input`] if `source` cannot give a parameter or the architecture predicts no velocity;
    /// the device's errors.
    pub fn load(config: ModelConfig, source: &dyn WeightSource, device: &Device, dtype: DType) -> Result<Self> {
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

    /// Sinusoids for evaluations at `times`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn time_table(&self, times: &[f64]) -> Result<Tensor> {
        sinusoid_table(&self.device, self.dtype, &self.config.time, times)
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
