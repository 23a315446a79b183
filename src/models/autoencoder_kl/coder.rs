//! The forward passes of the auto-encoder: images to the mean and variance of their latents, and latents to images.

use super::VaeConfig;
use crate::device::Device;
use crate::error::Result;
use crate::models::config::ModelConfig;
use crate::models::diffusers::ResBlock;
use crate::models::diffusers::layers::{Attention, Blocks, Mixer, Norm, ResLayer, conv3, doubled, halving};
use crate::nn::conv::Conv;
use crate::nn::params::{Loader, WeightSource};
use crate::nn::scratch::Scratch;
use crate::nn::tools::Tools;
use crate::ops::conv::ConvSpec;
use crate::ops::layout::{channels_first, channels_last};
use crate::ops::linear::{Activation, Workspace, WorkspaceSize};
use crate::tensor::{DType, Tensor};

/// Added to the variance in GroupNorm.
const EPS: f64 = 1e-6;

/// Weights on a device.
pub struct Autoencoder {
    device: Device,
    dtype: DType,
    stride: usize,
    encoder: Coder,
    decoder: Coder,
    /// Behind the encoder, and in front of the decoder.
    quant: Option<Conv>,
    post_quant: Option<Conv>,
}

/// One half. Blocks are in the order in which they run.
struct Coder {
    conv_in: Conv,
    /// Its attention lies between the two blocks.
    middle: Blocks,
    /// Whether the middle goes before the levels.
    middle_first: bool,
    levels: Vec<Blocks>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Autoencoder {
    /// Reads the weights of `vae`, the network of `config`, from `source`.
    ///
    /// # Errors
    /// `source`'s and the device's; [`crate::error::Error::Input`] for an attention whose one head is too large.
    pub fn load(
        config: &ModelConfig,
        vae: &VaeConfig,
        source: &dyn WeightSource,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let loader = Loader::new(source, device, dtype);
        let latent = vae.latent_channels;
        let conv1 = |name: &str, n: usize, wanted: bool| {
            wanted.then(|| Conv::load(&loader.at(name), ConvSpec::new(1), [n, n])).transpose()
        };
        Ok(Self {
            device: device.clone(),
            dtype,
            stride: vae.stride(),
            encoder: encoder(vae, &loader.at("encoder"), config.in_channels)?,
            decoder: decoder(vae, &loader.at("decoder"), config.out_channels)?,
            quant: conv1("quant_conv", 2 * latent, vae.quant_conv)?,
            post_quant: conv1("post_quant_conv", latent, vae.post_quant_conv)?,
        })
    }

    /// Of images x [B, C, H, W] (f32) the mean and the logarithm of the variance of their latents, [B, 2 Z, h, w]: first Z
    /// channels of mean, then Z of logarithm, which is to be clamped to -30 .. 20 before it is used.
    ///
    /// # Errors
    /// The operations'.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, &self.encoder, None, self.quant.as_ref(), |side| side / self.stride)
    }

    /// The images [B, C, H, W] of latents z [B, Z, h, w] (f32), unscaled.
    ///
    /// # Errors
    /// The operations'.
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        self.run(z, &self.decoder, self.post_quant.as_ref(), None, |side| side * self.stride)
    }

    fn run(
        &self,
        x: &Tensor,
        coder: &Coder,
        before: Option<&Conv>,
        behind: Option<&Conv>,
        scaled: impl Fn(usize) -> usize,
    ) -> Result<Tensor> {
        let (device, dtype) = (&self.device, self.dtype);
        let [batch, channels, height, width] = [0, 1, 2, 3].map(|axis| x.dim(axis));
        let (size, output) = ([height, width], [scaled(height), scaled(width)]);
        let small = before.iter().map(|conv| conv.workspace_size(device, batch, size));
        let large = behind.iter().map(|conv| conv.workspace_size(device, batch, output));
        let need = small.chain(large).fold(coder.workspace_size(device, batch, size)?, WorkspaceSize::max);
        let mut workspace = Workspace::new(device, dtype, need)?;
        let mut scratch = Scratch::new(device);
        let mut tools = Tools { device, scratch: &mut scratch, workspace: &mut workspace };
        let mut image = Tensor::zeros(device, dtype, &[batch, height, width, channels])?;
        channels_last(device, x, &mut image)?;
        if let Some(conv) = before {
            image = tools.conv(conv, &image, Activation::None)?;
        }
        let mut y = coder.forward(&mut tools, image)?;
        if let Some(conv) = behind {
            y = tools.conv(conv, &y, Activation::None)?;
        }
        let mut out = Tensor::zeros(device, dtype, &[batch, y.last_dim(), y.dim(1), y.dim(2)])?;
        channels_first(device, &y, &mut out)?;
        Ok(out)
    }
}

impl Coder {
    fn forward(&self, tools: &mut Tools, image: Tensor) -> Result<Tensor> {
        let mut x = tools.conv(&self.conv_in, &image, Activation::None)?;
        tools.scratch.put(image);
        if self.middle_first {
            x = through(tools, &self.middle, x)?;
        }
        for level in &self.levels {
            x = through(tools, level, x)?;
            if let Some(conv) = &level.resample {
                // The decoder doubles and convolves, the encoder's convolution halves.
                let wide =
                    if self.middle_first { doubled(tools, &x)? } else { tools.conv(conv, &x, Activation::None)? };
                tools.scratch.put(std::mem::replace(&mut x, wide));
                if self.middle_first {
                    let y = tools.conv(conv, &x, Activation::None)?;
                    tools.scratch.put(std::mem::replace(&mut x, y));
                }
            }
        }
        if !self.middle_first {
            x = through(tools, &self.middle, x)?;
        }
        let normed = self.norm_out.forward(tools, &x, true)?;
        tools.scratch.put(x);
        let y = tools.conv(&self.conv_out, &normed, Activation::None)?;
        tools.scratch.put(normed);
        Ok(y)
    }

    /// What `batch` images of `size` need.
    fn workspace_size(&self, device: &Device, batch: usize, size: [usize; 2]) -> Result<WorkspaceSize> {
        let mut need = self.conv_in.workspace_size(device, batch, size);
        let mut at = size;
        if self.middle_first {
            need = need.max(self.middle.workspace_size(device, batch, at, at));
        }
        for level in &self.levels {
            let output = match &level.resample {
                None => at,
                Some(_) if self.middle_first => at.map(|side| 2 * side),
                Some(conv) => conv.output(at)?,
            };
            need = need.max(level.workspace_size(device, batch, at, output));
            at = output;
        }
        let last = self.middle.workspace_size(device, batch, at, at);
        let need = if self.middle_first { need } else { need.max(last) };
        Ok(need.max(self.conv_out.workspace_size(device, batch, at)))
    }
}

/// x through the blocks and attentions of one level.
fn through(tools: &mut Tools, blocks: &Blocks, mut x: Tensor) -> Result<Tensor> {
    for (layer, attention) in &blocks.layers {
        let y = layer.forward(tools, &x, None)?;
        tools.scratch.put(std::mem::replace(&mut x, y));
        if let Some(attention) = attention {
            attention.forward(tools, &mut x, &mut std::iter::empty())?;
        }
    }
    Ok(x)
}

fn layer(loader: &Loader, vae: &VaeConfig, from: usize, to: usize) -> Result<ResLayer> {
    ResLayer::load(loader, ResBlock { from, to, time: None }, (vae.norm_groups, EPS))
}

fn middle(vae: &VaeConfig, loader: &Loader) -> Result<Blocks> {
    let (at, last) = (loader.at("mid_block"), vae.channels[vae.channels.len() - 1]);
    let norm = (vae.norm_groups, EPS);
    let attention = vae.mid_attention.then(|| Attention::load(&at.at("attentions.0"), last, 1, norm)).transpose()?;
    let first = layer(&at.at("resnets.0"), vae, last, last)?;
    let second = layer(&at.at("resnets.1"), vae, last, last)?;
    Ok(Blocks { layers: vec![(first, attention.map(Mixer::Pixels)), (second, None)], resample: None })
}

fn encoder(vae: &VaeConfig, loader: &Loader, in_channels: usize) -> Result<Coder> {
    let (first, last) = (vae.channels[0], vae.channels[vae.channels.len() - 1]);
    // Before all else, because it may refuse.
    let middle = middle(vae, loader)?;
    let mut from = first;
    let levels = vae.channels.iter().enumerate().map(|(i, &to)| {
        let at = loader.at(format!("down_blocks.{i}"));
        let mut layers = Vec::with_capacity(vae.layers_per_block);
        for j in 0..vae.layers_per_block {
            layers.push((layer(&at.at(format!("resnets.{j}")), vae, from, to)?, None));
            from = to;
        }
        let halve = i + 1 < vae.channels.len();
        let resample = halve.then(|| Conv::load(&at.at("downsamplers.0.conv"), halving(0), [to, to])).transpose()?;
        Ok(Blocks { layers, resample })
    });
    Ok(Coder {
        levels: levels.collect::<Result<_>>()?,
        conv_in: Conv::load(&loader.at("conv_in"), conv3(), [first, in_channels])?,
        middle,
        middle_first: false,
        norm_out: Norm::load(&loader.at("conv_norm_out"), last, (vae.norm_groups, EPS))?,
        conv_out: Conv::load(&loader.at("conv_out"), conv3(), [2 * vae.latent_channels, last])?,
    })
}

fn decoder(vae: &VaeConfig, loader: &Loader, out_channels: usize) -> Result<Coder> {
    let (first, last) = (vae.channels[0], vae.channels[vae.channels.len() - 1]);
    let middle = middle(vae, loader)?;
    let mut from = last;
    let levels = vae.channels.iter().rev().enumerate().map(|(i, &to)| {
        let at = loader.at(format!("up_blocks.{i}"));
        let mut layers = Vec::with_capacity(vae.layers_per_block + 1);
        for j in 0..=vae.layers_per_block {
            layers.push((layer(&at.at(format!("resnets.{j}")), vae, from, to)?, None));
            from = to;
        }
        let double = i + 1 < vae.channels.len();
        let resample = double.then(|| Conv::load(&at.at("upsamplers.0.conv"), conv3(), [to, to])).transpose()?;
        Ok(Blocks { layers, resample })
    });
    Ok(Coder {
        levels: levels.collect::<Result<_>>()?,
        conv_in: Conv::load(&loader.at("conv_in"), conv3(), [last, vae.latent_channels])?,
        middle,
        middle_first: true,
        norm_out: Norm::load(&loader.at("conv_norm_out"), first, (vae.norm_groups, EPS))?,
        conv_out: Conv::load(&loader.at("conv_out"), conv3(), [out_channels, first])?,
    })
}
