//! The auto-encoder of latent diffusion with its backward: see [`crate::models::autoencoder_kl`] for what it computes. Its loss
//! is the mean squared error of the images that it makes of latents drawn by their mean and variance, and a weight times the
//! latents' divergence from the standard normal.

use super::{Named, NamedMut, Stop, go_on};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::autoencoder_kl::VaeConfig;
use crate::models::config::{ModelConfig, NetworkConfig};
use crate::nn::scratch::Scratch;
use crate::nn::tools::Tools;
use crate::nn::training::{ConvParams, ImageLayer, NormParams, Pair, ResParams, ResSaved};
use crate::ops::conv::ConvSpec;
use crate::ops::latent::{draw_latents, draw_latents_backward};
use crate::ops::layout::{channels_first, channels_first_backward, channels_last};
use crate::ops::linear::{Workspace, WorkspaceSize};
use crate::ops::loss::{mse, mse_backward};
use crate::tensor::{DType, Tensor};

/// Parameters, or their gradients.
pub struct VaeParams {
    encoder: Chain,
    decoder: Chain,
}

/// Layers behind one another, by name.
type Chain = Vec<(String, ImageLayer)>;

/// Images of one step, on the host.
#[derive(Clone, Copy)]
pub struct VaeExamples<'a> {
    /// [B, C, H, W].
    pub images: &'a [f32],
    /// What their latents are drawn with, [B, h, w, Z].
    pub noise: &'a [f32],
    /// Weight of the divergence in the loss.
    pub kl_weight: f64,
}

/// Memory for one batch.
pub struct VaeStep {
    device: Device,
    /// [B, C, H, W] of the wide type.
    images: Tensor,
    noise: Tensor,
    kl_weight: f64,
    /// On the loss, in front of its gradient.
    scale: Tensor,
    /// What the two halves keep for their way back.
    encoded: Tape,
    decoded: Tape,
    /// What the decoder made, [B, C, H, W].
    output: Tensor,
    /// Of each image, wide: the mean squared error and the divergence; and the mean of the first.
    errors: Tensor,
    divergences: Tensor,
    error: Tensor,
    scratch: Scratch,
    workspace: Workspace,
}

/// What a chain of layers keeps: the input of the first and the output of each, and what is inside of them.
#[derive(Default)]
struct Tape {
    acts: Vec<Tensor>,
    inner: Vec<Option<ResSaved>>,
}

impl VaeParams {
    /// Zeros.
    ///
    /// # Errors
    /// [`Error::Usage`] for a GPU or an auto-encoder that attends in the middle; [`Error::OutOfMemory`].
    pub fn zeros(config: &ModelConfig, vae: &VaeConfig, device: &Device, dtype: DType) -> Result<Self> {
        if matches!(device, Device::Cuda(_)) {
            return Err(Error::usage("an auto-encoder is trained on the CPU alone: --device cpu expected"));
        }
        if vae.mid_attention {
            return Err(Error::usage(
                "an auto-encoder that attends in its middle cannot be trained: mid_block_add_attention false expected",
            ));
        }
        let maker = Maker { device, dtype, vae };
        Ok(Self { encoder: maker.encoder(config.in_channels)?, decoder: maker.decoder(config.out_channels)? })
    }

    fn layers(&self) -> impl Iterator<Item = &(String, ImageLayer)> {
        self.encoder.iter().chain(&self.decoder)
    }

    /// Every tensor, by the names of [`VaeConfig::specs`].
    pub fn tensors(&self) -> Vec<Named<'_>> {
        let pairs = self.layers().flat_map(|(name, layer)| layer.layers().into_iter().map(move |l| (name, l)));
        pairs.flat_map(|(name, (below, pair))| super::name_pair(&joined(name, below), pair)).collect()
    }

    /// The same in the same order, to be written.
    pub fn tensors_mut(&mut self) -> Vec<NamedMut<'_>> {
        let layers = self.encoder.iter_mut().chain(&mut self.decoder);
        let pairs = layers.flat_map(|(name, layer)| {
            let name = &*name;
            layer.layers_mut().into_iter().map(move |l| (name, l))
        });
        pairs
            .flat_map(|(name, (below, pair)): (_, (_, &mut Pair))| super::name_pair_mut(&joined(name, below), pair))
            .collect()
    }
}

fn joined(name: &str, below: &str) -> String {
    if below.is_empty() { name.to_owned() } else { format!("{name}.{below}") }
}

/// Makes layers.
struct Maker<'a> {
    device: &'a Device,
    dtype: DType,
    vae: &'a VaeConfig,
}

impl Maker<'_> {
    fn conv(&self, spec: ConvSpec, n: usize, c: usize) -> Result<ImageLayer> {
        ConvParams::zeros(self.device, self.dtype, spec, [n, c]).map(ImageLayer::Conv)
    }

    /// A 3x3 convolution that keeps the size.
    fn conv3(&self, n: usize, c: usize) -> Result<ImageLayer> {
        self.conv(ConvSpec::new(3).padding(1), n, c)
    }

    fn norm(&self, channels: usize) -> Result<ImageLayer> {
        NormParams::zeros(self.device, self.dtype, channels, self.vae.norm_groups).map(ImageLayer::Norm)
    }

    fn res(&self, from: usize, to: usize) -> Result<ImageLayer> {
        let block = ResParams::zeros(self.device, self.dtype, [from, to], self.vae.norm_groups)?;
        Ok(ImageLayer::Res(Box::new(block)))
    }

    fn middle(&self, half: &str, channels: usize, to: &mut Chain) -> Result<()> {
        for block in 0..2 {
            to.push((format!("{half}.mid_block.resnets.{block}"), self.res(channels, channels)?));
        }
        Ok(())
    }

    fn encoder(&self, in_channels: usize) -> Result<Chain> {
        let (vae, levels) = (self.vae, self.vae.channels.len());
        let (first, last, moments) = (vae.channels[0], vae.channels[levels - 1], 2 * vae.latent_channels);
        let mut chain = vec![("encoder.conv_in".into(), self.conv3(first, in_channels)?)];
        let mut from = first;
        for (level, &to) in vae.channels.iter().enumerate() {
            let at = format!("encoder.down_blocks.{level}");
            for layer in 0..vae.layers_per_block {
                chain.push((format!("{at}.resnets.{layer}"), self.res(from, to)?));
                from = to;
            }
            if level + 1 < levels {
                // Zeros behind the last row and column alone.
                let halving = ConvSpec { padding: [[0, 1]; 2], ..ConvSpec::new(3).stride(2) };
                chain.push((format!("{at}.downsamplers.0.conv"), self.conv(halving, to, to)?));
            }
        }
        self.middle("encoder", last, &mut chain)?;
        chain.push(("encoder.conv_norm_out".into(), self.norm(last)?));
        chain.push(("encoder.conv_out".into(), self.conv3(moments, last)?));
        if vae.quant_conv {
            chain.push(("quant_conv".into(), self.conv(ConvSpec::new(1), moments, moments)?));
        }
        Ok(chain)
    }

    fn decoder(&self, out_channels: usize) -> Result<Chain> {
        let (vae, latent) = (self.vae, self.vae.latent_channels);
        let (first, last) = (vae.channels[0], vae.channels[vae.channels.len() - 1]);
        let mut chain = Chain::new();
        if vae.post_quant_conv {
            chain.push(("post_quant_conv".into(), self.conv(ConvSpec::new(1), latent, latent)?));
        }
        chain.push(("decoder.conv_in".into(), self.conv3(last, latent)?));
        self.middle("decoder", last, &mut chain)?;
        let mut from = last;
        for (i, &to) in vae.channels.iter().rev().enumerate() {
            let at = format!("decoder.up_blocks.{i}");
            for layer in 0..=vae.layers_per_block {
                chain.push((format!("{at}.resnets.{layer}"), self.res(from, to)?));
                from = to;
            }
            if i + 1 < vae.channels.len() {
                chain.push((format!("{at}.upsamplers.0"), ImageLayer::Double));
                chain.push((format!("{at}.upsamplers.0.conv"), self.conv3(to, to)?));
            }
        }
        chain.push(("decoder.conv_norm_out".into(), self.norm(first)?));
        chain.push(("decoder.conv_out".into(), self.conv3(out_channels, first)?));
        Ok(chain)
    }
}

impl Tape {
    /// Gives back what the last pass left, and takes its first input.
    fn restart(&mut self, scratch: &mut Scratch, x: Tensor) {
        let inner = self.inner.drain(..).flatten().flat_map(ResSaved::into_buffers);
        inner.chain(self.acts.drain(..)).for_each(|buffer| scratch.put(buffer));
        self.acts.push(x);
    }

    fn y(&self) -> Result<&Tensor> {
        self.acts.last().ok_or_else(|| Error::Runtime("no forward pass has run".into()))
    }

    fn forward(&mut self, tools: &mut Tools, chain: &Chain, stop: Stop) -> Result<()> {
        for (_, layer) in chain {
            go_on(stop)?;
            let (y, saved) = layer.forward(tools, self.y()?)?;
            self.acts.push(y);
            self.inner.push(saved);
        }
        Ok(())
    }

    /// The gradient of the chain's input, if it is wanted, from that of its output.
    fn backward(
        &self,
        tools: &mut Tools,
        chain: &Chain,
        mut dy: Tensor,
        grads: &mut Chain,
        wants: bool,
        stop: Stop,
    ) -> Result<Option<Tensor>> {
        if self.inner.len() != chain.len() || grads.len() != chain.len() {
            return Err(Error::Runtime("gradients of another model, or no forward pass".into()));
        }
        for (i, ((_, layer), (_, grads))) in chain.iter().zip(grads).enumerate().rev() {
            go_on(stop)?;
            let dx = layer.backward(tools, &self.acts[i], self.inner[i].as_ref(), &dy, grads, wants || i > 0)?;
            tools.scratch.put(dy);
            match dx {
                Some(dx) => dy = dx,
                None => return Ok(None),
            }
        }
        Ok(Some(dy))
    }
}

impl VaeStep {
    /// Buffers for `batch` images; those of the layers are made by the first pass.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(config: &ModelConfig, params: &VaeParams, device: &Device, batch: usize) -> Result<Self> {
        let NetworkConfig::AutoencoderKl(vae) = &config.network else { return Err(super::other_model()) };
        let dtype = params.tensors()[0].tensor.dtype();
        let wide = dtype.wide();
        let mut need = WorkspaceSize::default();
        let mut size = [config.image_size; 2];
        for (_, layer) in params.layers() {
            let (layer, after) = layer.workspace_size(device, batch, size)?;
            (need, size) = (need.max(layer), after);
        }
        let image = |dtype: DType, channels: usize| {
            Tensor::zeros(device, dtype, &[batch, channels, config.image_size, config.image_size])
        };
        let number = |n: usize| Tensor::zeros(device, wide, &[n]);
        let side = config.image_size / vae.stride();
        Ok(Self {
            device: device.clone(),
            images: image(wide, config.in_channels)?,
            noise: Tensor::zeros(device, wide, &[batch, side, side, vae.latent_channels])?,
            kl_weight: 0.0,
            scale: number(1)?,
            encoded: Tape::default(),
            decoded: Tape::default(),
            output: image(dtype, config.out_channels)?,
            errors: number(batch)?,
            divergences: number(batch)?,
            error: number(1)?,
            scratch: Scratch::new(device),
            workspace: Workspace::new(device, dtype, need)?,
        })
    }

    /// B.
    pub fn batch(&self) -> usize {
        self.images.dim(0)
    }

    /// Uploads what the next forward pass reads. `scale` is on the loss in front of its gradient.
    ///
    /// # Errors
    /// [`Error::Runtime`] for another number of images.
    pub fn set(&mut self, examples: &VaeExamples, scale: f64) -> Result<()> {
        self.images.write_f32(&self.device, examples.images)?;
        self.noise.write_f32(&self.device, examples.noise)?;
        self.kl_weight = examples.kl_weight;
        self.scale.write_f64(&self.device, &[scale])
    }

    /// The loss of the images set. `stop` is asked in front of every layer.
    ///
    /// # Errors
    /// The operations'; [`Error::Interrupted`].
    pub fn forward(&mut self, params: &VaeParams, stop: Stop) -> Result<()> {
        let Self { device, images, noise, encoded, decoded, output, scratch, workspace, .. } = self;
        let (dtype, nhwc) = (output.dtype(), [0, 2, 3, 1].map(|axis| images.dim(axis)));
        let mut tools = Tools { device, scratch, workspace };
        let mut x = tools.scratch.take(dtype, &nhwc)?;
        channels_last(device, images, &mut x)?;
        encoded.restart(tools.scratch, x);
        encoded.forward(&mut tools, &params.encoder, stop)?;
        let mut z = tools.scratch.take(dtype, noise.shape())?;
        draw_latents(device, encoded.y()?, noise, &mut z, &mut self.divergences)?;
        decoded.restart(tools.scratch, z);
        decoded.forward(&mut tools, &params.decoder, stop)?;
        channels_first(device, decoded.y()?, output)?;
        mse(device, output, images, &mut self.errors, &mut self.error)
    }

    /// Adds the gradients of the loss of the last forward pass to `grads`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn backward(&mut self, params: &VaeParams, grads: &mut VaeParams, stop: Stop) -> Result<()> {
        let Self { device, images, noise, encoded, decoded, output, scratch, workspace, scale, .. } = self;
        let mut tools = Tools { device, scratch, workspace };
        let mut d_output = tools.scratch.take(output.dtype(), output.shape())?;
        mse_backward(device, output, images, scale, &mut d_output)?;
        let y = decoded.y()?;
        let mut dy = tools.scratch.take(y.dtype(), y.shape())?;
        channels_first_backward(device, &d_output, &mut dy)?;
        tools.scratch.put(d_output);
        let dz = decoded.backward(&mut tools, &params.decoder, dy, &mut grads.decoder, true, stop)?;
        let dz = dz.ok_or_else(|| Error::Runtime("no gradient of the latents".into()))?;
        let moments = encoded.y()?;
        let mut dmoments = tools.scratch.take(moments.dtype(), moments.shape())?;
        let dkl = scale.to_f64(device)?[0] * self.kl_weight / images.dim(0) as f64;
        draw_latents_backward(device, moments, noise, &dz, dkl, &mut dmoments)?;
        tools.scratch.put(dz);
        encoded.backward(&mut tools, &params.encoder, dmoments, &mut grads.encoder, false, stop)?;
        Ok(())
    }

    /// The loss of the last forward pass.
    ///
    /// # Errors
    /// The device's.
    pub fn loss(&self) -> Result<f64> {
        let divergences = self.divergences.to_f64(&self.device)?;
        let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
        Ok(self.error.to_f64(&self.device)?[0] + self.kl_weight * mean)
    }

    /// The losses of the images.
    ///
    /// # Errors
    /// The device's.
    pub fn losses(&self) -> Result<Vec<f64>> {
        let both = self.errors.to_f64(&self.device)?.into_iter().zip(self.divergences.to_f64(&self.device)?);
        Ok(both.map(|(error, divergence)| error + self.kl_weight * divergence).collect())
    }
}
