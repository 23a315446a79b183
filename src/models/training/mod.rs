//! Models that learn: parameters by name, and one step's memory with forward, loss and backward. Gradients of parameters
//! are added to (`+=`), in the wide type; everything else is written (`=`).

mod dit;
mod flow_vit;
mod init;
mod parameters;
pub mod vae;
pub mod work;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::config::{ModelConfig, NetworkConfig};
use crate::models::specs;
use crate::nn::params::{ParamSpec, WeightSource};
use crate::nn::training::{BlockStack, Keeping, Pair};
use crate::ops::backward::patch::unpatchify_backward;
use crate::ops::conv::channels_last;
use crate::ops::loss::{mse, mse_backward};
use crate::ops::patch::{patchify, unpatchify};
use crate::tensor::{DType, Tensor};

pub use init::initial;

/// Parameters of a model, or their gradients, moments or averages.
pub enum Params {
    /// Of the flow-matching ViT.
    FlowVit(Box<flow_vit::FlowVitParams>),
    /// Of the DiT.
    Dit(Box<dit::DitParams>),
    /// Of the auto-encoder.
    Vae(Box<vae::VaeParams>),
}

/// A tensor of a model with the name of the parameter that it is, or is a part of: the parts follow one another. The only tensors
/// of four dimensions are weights of convolutions, [N, kh, kw, C] where the parameter is [N, C, kh, kw].
pub struct Named<'a> {
    /// As [`specs`] has it.
    pub name: String,
    /// Elements in the order of the parameter's own.
    pub tensor: &'a Tensor,
    /// Whether it learns.
    pub learned: bool,
}

/// [`Named`], to be written.
pub struct NamedMut<'a> {
    /// As [`specs`] has it.
    pub name: String,
    /// Elements in the order of the parameter's own.
    pub tensor: &'a mut Tensor,
    /// Whether it learns.
    pub learned: bool,
}

impl<'a> Named<'a> {
    fn learned(name: impl Into<String>, tensor: &'a Tensor) -> Self {
        Self { name: name.into(), tensor, learned: true }
    }

    fn fixed(name: impl Into<String>, tensor: &'a Tensor) -> Self {
        Self { name: name.into(), tensor, learned: false }
    }
}

impl<'a> NamedMut<'a> {
    fn learned(name: impl Into<String>, tensor: &'a mut Tensor) -> Self {
        Self { name: name.into(), tensor, learned: true }
    }

    fn fixed(name: impl Into<String>, tensor: &'a mut Tensor) -> Self {
        Self { name: name.into(), tensor, learned: false }
    }
}

fn name_pair<'a>(name: &str, pair: &'a Pair) -> [Named<'a>; 2] {
    [Named::learned(format!("{name}.weight"), &pair.weight), Named::learned(format!("{name}.bias"), &pair.bias)]
}

fn name_pair_mut<'a>(name: &str, pair: &'a mut Pair) -> [NamedMut<'a>; 2] {
    let Pair { weight, bias } = pair;
    [NamedMut::learned(format!("{name}.weight"), weight), NamedMut::learned(format!("{name}.bias"), bias)]
}

fn name_block<'a>(name: &str, layers: Vec<(&'static str, &'a Pair)>) -> Vec<Named<'a>> {
    layers.into_iter().flat_map(|(layer, pair)| name_pair(&format!("{name}.{layer}"), pair)).collect()
}

impl Params {
    /// Zeros for the model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Usage`] for a kind of network that cannot be trained; [`Error::OutOfMemory`].
    pub fn zeros(config: &ModelConfig, device: &Device, dtype: DType) -> Result<Self> {
        Ok(match &config.network {
            NetworkConfig::FlowVit(_) => {
                Self::FlowVit(Box::new(flow_vit::FlowVitParams::zeros(config, device, dtype)?))
            }
            NetworkConfig::Dit(_) => Self::Dit(Box::new(dit::DitParams::zeros(config, device, dtype)?)),
            NetworkConfig::AutoencoderKl(sizes) => {
                Self::Vae(Box::new(vae::VaeParams::zeros(config, sizes, device, dtype)?))
            }
            other => {
                let name = other.architecture().name();
                return Err(Error::usage(format!("{name} cannot be trained: dit or flow_vit expected")));
            }
        })
    }

    /// Every tensor.
    pub fn tensors(&self) -> Vec<Named<'_>> {
        match self {
            Self::FlowVit(params) => params.tensors(),
            Self::Dit(params) => params.tensors(),
            Self::Vae(params) => params.tensors(),
        }
    }

    /// The same in the same order, to be written.
    pub fn tensors_mut(&mut self) -> Vec<NamedMut<'_>> {
        match self {
            Self::FlowVit(params) => params.tensors_mut(),
            Self::Dit(params) => params.tensors_mut(),
            Self::Vae(params) => params.tensors_mut(),
        }
    }

    /// Overwrites every tensor with the parameters that `read` gives by name, rounded to the type.
    ///
    /// # Errors
    /// Those of `read`; [`Error::Runtime`] for a parameter of another size.
    pub fn write(&mut self, device: &Device, read: &mut dyn FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        let (mut current, mut values, mut at) = (String::new(), Vec::new(), 0);
        for NamedMut { name, tensor, .. } in self.tensors_mut() {
            if name != current {
                (values, at) = (read(&name)?, 0);
                current = name;
            }
            let part = values
                .get(at..at + tensor.len())
                .ok_or_else(|| Error::Runtime(format!("{current}: found {} elements, more expected", values.len())))?;
            match *tensor.shape() {
                [n, kh, kw, c] => tensor.write_f32(device, &channels_last(part, [n, c, kh, kw]))?,
                _ => tensor.write_f32(device, part)?,
            }
            at += tensor.len();
        }
        Ok(())
    }

    /// The parameters of a file.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn load(&mut self, device: &Device, source: &dyn WeightSource) -> Result<()> {
        self.write(device, &mut |name| source.read(name))
    }

    /// Every parameter with its name and shape, in the order of [`specs`].
    ///
    /// # Errors
    /// The device's.
    pub fn read(&self, config: &ModelConfig, device: &Device) -> Result<Vec<(ParamSpec, Vec<f32>)>> {
        let tensors = self.tensors();
        let values = |spec: ParamSpec| {
            let parts = tensors.iter().filter(|named| named.name == spec.name).map(|named| {
                let values = named.tensor.to_f32(device)?;
                Ok(match *named.tensor.shape() {
                    // The other way round: [N, taps, C] to [N, C, taps].
                    [n, kh, kw, c] => channels_last(&values, [n, kh * kw, c, 1]),
                    _ => values,
                })
            });
            let values = parts.collect::<Result<Vec<_>>>()?.concat();
            Ok((spec, values))
        };
        specs(config).into_iter().map(values).collect()
    }
}

/// Whether a pass should end before its time.
pub type Stop = fn() -> bool;

fn go_on(stop: Stop) -> Result<()> {
    if stop() { Err(Error::Interrupted("a training step was left unfinished".into())) } else { Ok(()) }
}

/// What a step knows of its images beside the pixels.
pub struct Conditions {
    /// Class of each image, `[B]`.
    pub labels: Tensor,
}

/// The memory of one batch: what forward leaves for backward, and the loss.
pub struct Step {
    config: ModelConfig,
    device: Device,
    /// Noisy images [B, C, H, W] and what the model should say about them, in the wide type.
    x: Tensor,
    target: Tensor,
    conditions: Conditions,
    /// On the loss, in front of its gradient, `[1]`.
    scale: Tensor,
    patches: Tensor,
    out: Tensor,
    d_out: Tensor,
    velocity: Tensor,
    d_velocity: Tensor,
    per_image: Tensor,
    loss: Tensor,
    network: Network,
}

enum Network {
    FlowVit(Box<flow_vit::FlowVitStep>),
    Dit(Box<dit::DitStep>),
}

/// Images of one step, on the host.
#[derive(Clone, Copy)]
pub struct Examples<'a> {
    /// [B, C, H, W], (1 - t) data + t noise.
    pub x: &'a [f32],
    /// [B, C, H, W], noise - data.
    pub target: &'a [f32],
    /// `[B]`.
    pub times: &'a [f64],
    /// Class of each image, the one behind the last for none; not read by an unconditional model.
    pub labels: &'a [u32],
    /// Normalised continuous parameters, [B, P]; not read by a model without.
    pub parameters: &'a [f32],
    /// Which images have them, `[B]`; not read by a model without.
    pub given: &'a [bool],
}

impl Step {
    /// Buffers for `batch` images of a model with these parameters.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(config: &ModelConfig, params: &Params, device: &Device, batch: usize, keeping: Keeping) -> Result<Self> {
        let dtype = params.tensors()[0].tensor.dtype();
        let network = match params {
            Params::FlowVit(p) => {
                let step = flow_vit::FlowVitStep::new(config, p, device, dtype, batch, keeping)?;
                Network::FlowVit(Box::new(step))
            }
            Params::Dit(p) => Network::Dit(Box::new(dit::DitStep::new(config, p, device, dtype, batch, keeping)?)),
            Params::Vae(_) => return Err(other_model()),
        };
        let (size, p) = (config.image_size, config.transformer().patch_size);
        let image = |dtype: DType, c: usize| Tensor::zeros(device, dtype, &[batch, c, size, size]);
        let tokens = |c: usize| Tensor::zeros(device, dtype, &[batch, config.tokens(), p * p * c]);
        let number = |n: usize| Tensor::zeros(device, dtype.wide(), &[n]);
        let (wide, c, to) = (dtype.wide(), config.in_channels, config.out_channels);
        Ok(Self {
            x: image(wide, c)?,
            target: image(wide, to)?,
            conditions: Conditions { labels: Tensor::zeros(device, DType::U32, &[batch])? },
            scale: number(1)?,
            patches: tokens(c)?,
            out: tokens(to)?,
            d_out: tokens(to)?,
            velocity: image(dtype, to)?,
            d_velocity: image(dtype, to)?,
            per_image: number(batch)?,
            loss: number(1)?,
            network,
            config: config.clone(),
            device: device.clone(),
        })
    }

    /// B.
    pub fn batch(&self) -> usize {
        self.x.dim(0)
    }

    /// Bytes that blocks keep for their way back, and what they would keep if none were run again.
    pub fn activation_bytes(&self) -> [usize; 2] {
        match &self.network {
            Network::FlowVit(step) => step.stack.bytes(),
            Network::Dit(step) => step.stack.bytes(),
        }
    }

    fn stack(&mut self) -> &mut BlockStack {
        match &mut self.network {
            Network::FlowVit(step) => &mut step.stack,
            Network::Dit(step) => &mut step.stack,
        }
    }

    /// Whether passes from here on drop anything, and the number of the pass, which decides what.
    ///
    /// # Errors
    /// The driver's.
    pub fn set_pass(&mut self, training: bool, pass: u32) -> Result<()> {
        let device = self.device.clone();
        self.stack().set_pass(&device, training, pass)
    }

    /// Uploads what the next forward pass reads. `scale` is on the loss in front of its gradient.
    ///
    /// # Errors
    /// [`Error::Runtime`] for another number of images, or labels past the table.
    pub fn set(&mut self, examples: &Examples, scale: f64) -> Result<()> {
        let (device, batch) = (&self.device, self.x.dim(0));
        if examples.times.len() != batch {
            return Err(Error::Runtime(format!("{} times found for {batch} images", examples.times.len())));
        }
        self.x.write_f32(device, examples.x)?;
        self.target.write_f32(device, examples.target)?;
        let rows: Vec<f64> = examples.times.iter().flat_map(|&t| self.config.time.embed(t)).collect();
        let sinusoids = match &mut self.network {
            Network::FlowVit(step) => step.sinusoids(),
            Network::Dit(step) => {
                let known = self.config.label_rows();
                if let Some(label) = examples.labels.iter().find(|&&label| label as usize >= known) {
                    return Err(Error::Runtime(format!("label {label} found, below {known} expected")));
                }
                self.conditions.labels.write_u32(device, examples.labels)?;
                step.set_parameters(device, examples.parameters, examples.given)?;
                step.sinusoids()
            }
        };
        sinusoids.write_f64(device, &rows)?;
        self.scale.write_f64(device, &[scale])
    }

    /// The loss of the images set, on the device. `stop` is asked in front of every block.
    ///
    /// # Errors
    /// The operations'; [`Error::Interrupted`].
    pub fn forward(&mut self, params: &Params, stop: Stop) -> Result<()> {
        let Self { config, device, x, patches, out, conditions, velocity, .. } = self;
        patchify(device, x, config.transformer().patch_size, patches)?;
        match (&mut self.network, params) {
            (Network::FlowVit(step), Params::FlowVit(p)) => step.forward(device, p, patches, out, stop)?,
            (Network::Dit(step), Params::Dit(p)) => step.forward(config, device, p, conditions, patches, out, stop)?,
            _ => return Err(other_model()),
        }
        unpatchify(device, out, config.transformer().patch_size, velocity)?;
        mse(device, velocity, &self.target, &mut self.per_image, &mut self.loss)
    }

    /// Adds the gradients of the loss of the last forward pass to `grads`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn backward(&mut self, params: &Params, grads: &mut Params, stop: Stop) -> Result<()> {
        let Self { config, device, patches, d_out, conditions, velocity, d_velocity, .. } = self;
        mse_backward(device, velocity, &self.target, &self.scale, d_velocity)?;
        unpatchify_backward(device, d_velocity, config.transformer().patch_size, d_out)?;
        match (&mut self.network, params, grads) {
            (Network::FlowVit(step), Params::FlowVit(p), Params::FlowVit(g)) => {
                step.backward(device, p, patches, d_out, g, stop)
            }
            (Network::Dit(step), Params::Dit(p), Params::Dit(g)) => {
                step.backward(config, device, p, conditions, patches, d_out, g, stop)
            }
            _ => Err(other_model()),
        }
    }

    /// The loss of the last forward pass, as soon as the device has it.
    ///
    /// # Errors
    /// The device's.
    pub fn loss(&self) -> Result<f64> {
        Ok(self.loss.to_f64(&self.device)?[0])
    }

    /// The losses of the images.
    ///
    /// # Errors
    /// The device's.
    pub fn losses(&self) -> Result<Vec<f64>> {
        self.per_image.to_f64(&self.device)
    }
}

fn other_model() -> Error {
    Error::Runtime("parameters of another model".into())
}
