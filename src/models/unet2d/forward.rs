//! The forward pass of `UNet2DModel`, and of `UNet2DConditionModel`, whose attentions are transformers. Images are [B, H, W, C].

use super::UnetConfig;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::config::ModelConfig;
use crate::models::diffusers::ResBlock;
use crate::models::diffusers::layers::{Attention, Blocks, Mixer, Norm, ResLayer, conv3, doubled, halving};
use crate::models::diffusers::transformer::Transformer;
use crate::nn::conv::Conv;
use crate::nn::linear::Linear;
use crate::nn::params::Loader;
use crate::nn::scratch::Scratch;
use crate::nn::tools::Tools;
use crate::ops::concat::concat;
use crate::ops::layout::{channels_first, channels_last};
use crate::ops::linear::{Activation, Operands, Residual, Workspace, WorkspaceSize, linear, workspace_size};
use crate::ops::{Columns, Select};
use crate::tensor::{DType, Tensor};

/// Inputs of the products that pick rows of the conditions: as few as the products take.
const NOTHING: usize = 8;

/// Weights on a device.
pub struct Unet2d {
    conv_in: Conv,
    time: [Linear; 2],
    /// Finest first.
    down: Vec<Blocks>,
    middle: Blocks,
    /// Coarsest first.
    up: Vec<Blocks>,
    norm_out: Norm,
    conv_out: Conv,
    /// [N, NOTHING] zeros for each residual block of N outputs: the product that only its bias comes out of.
    nothing: Vec<Tensor>,
}

/// What differs from evaluation to evaluation: of each residual block the bias of its first convolution with the time in
/// it, [E, N], in the order of down, middle and up.
pub struct Unet2dConditions {
    biases: Vec<Tensor>,
    /// Keys and values [B, L, 2 W] of the context for each transformer block, in the same order; without a context none.
    contexts: Vec<Tensor>,
}

/// Activations of one batch.
pub struct Unet2dActs {
    scratch: Scratch,
    workspace: Workspace,
    /// [B, NOTHING] zeros, and the rows [B, N] of this evaluation.
    nothing: Tensor,
    rows: Vec<Tensor>,
}

impl Unet2d {
    /// Reads the weights.
    ///
    /// # Errors
    /// The loader's; [`Error::Input`] for heads that are too large.
    pub fn load(config: &ModelConfig, unet: &UnetConfig, loader: &Loader) -> Result<Self> {
        let (first, levels, norm) = (unet.channels[0], unet.channels.len(), (unet.norm_groups, unet.norm_eps));
        let layer = |at: &Loader, j: usize, from: usize, to: usize, heads: Option<usize>| {
            let block = ResBlock { from, to, time: Some(unet.time_dim) };
            let mixer = heads.map(|heads| {
                let at = at.at(format!("attentions.{j}"));
                Ok(match &unet.context {
                    None => Mixer::Pixels(Attention::load(&at, to, heads, norm)?),
                    Some(context) => Mixer::Context(Transformer::load(&at, to, heads, norm.0, context)?),
                })
            });
            Ok::<_, Error>((ResLayer::load(&at.at(format!("resnets.{j}")), block, norm)?, mixer.transpose()?))
        };
        let mut from = first;
        let mut down = Vec::with_capacity(levels);
        for (level, &to) in unet.channels.iter().enumerate() {
            let at = loader.at(format!("down_blocks.{level}"));
            let heads = unet.down_attention[level].then(|| unet.heads(level));
            let mut layers = Vec::with_capacity(unet.layers_per_block);
            for j in 0..unet.layers_per_block {
                layers.push(layer(&at, j, from, to, heads)?);
                from = to;
            }
            let spec = halving(unet.downsample_padding);
            let resample = (level + 1 < levels).then(|| Conv::load(&at.at("downsamplers.0.conv"), spec, [to, to]));
            down.push(Blocks { layers, resample: resample.transpose()? });
        }
        let (at, heads) = (loader.at("mid_block"), unet.mid_attention.then(|| unet.heads(levels - 1)));
        let middle = Blocks {
            layers: vec![layer(&at, 0, from, from, heads)?, layer(&at, 1, from, from, None)?],
            resample: None,
        };
        let mut up = Vec::with_capacity(levels);
        for (block, level) in (0..levels).rev().enumerate() {
            let (at, to) = (loader.at(format!("up_blocks.{block}")), unet.channels[level]);
            let heads = unet.up_attention[block].then(|| unet.heads(level));
            let mut layers = Vec::with_capacity(unet.layers_per_block + 1);
            for j in 0..=unet.layers_per_block {
                layers.push(layer(&at, j, from + unet.skip(level, j), to, heads)?);
                from = to;
            }
            let resample = (level > 0).then(|| Conv::load(&at.at("upsamplers.0.conv"), conv3(), [to, to]));
            up.push(Blocks { layers, resample: resample.transpose()? });
        }
        let mut all = Self {
            conv_in: Conv::load(&loader.at("conv_in"), conv3(), [first, config.in_channels])?,
            time: [
                Linear::load(&loader.at("time_embedding.linear_1"), unet.time_dim, config.time.dim)?,
                Linear::load(&loader.at("time_embedding.linear_2"), unet.time_dim, unet.time_dim)?,
            ],
            down,
            middle,
            up,
            norm_out: Norm::load(&loader.at("conv_norm_out"), first, norm)?,
            conv_out: Conv::load(&loader.at("conv_out"), conv3(), [config.out_channels, first])?,
            nothing: Vec::new(),
        };
        let zeros = |time: &Linear| {
            let n = time.bias.len();
            loader.given_matrix(n, NOTHING, &vec![0.0; n * NOTHING])
        };
        all.nothing = all.times().map(zeros).collect::<Result<_>>()?;
        Ok(all)
    }

    /// Residual blocks and attentions in the order in which they run.
    fn layers(&self) -> impl Iterator<Item = &(ResLayer, Option<Mixer>)> {
        self.down.iter().chain([&self.middle]).chain(&self.up).flat_map(|b| &b.layers)
    }

    /// The time layers of all residual blocks, in the order in which these run.
    fn times(&self) -> impl Iterator<Item = &Linear> {
        self.layers().filter_map(|(layer, _)| layer.time.as_ref())
    }

    /// Memory for what differs between `evaluations` evaluations.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new_conditions(&self, device: &Device, evaluations: usize) -> Result<Unet2dConditions> {
        let zeros = |time: &Linear| Tensor::zeros(device, time.bias.dtype(), &[evaluations, time.bias.len()]);
        Ok(Unet2dConditions { biases: self.times().map(zeros).collect::<Result<_>>()?, contexts: Vec::new() })
    }

    /// What follows from the times alone.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and the operations'.
    pub fn conditions(
        &self,
        config: &ModelConfig,
        device: &Device,
        times: &[f64],
        to: &mut Unet2dConditions,
    ) -> Result<()> {
        let (dtype, e) = (self.time[0].bias.dtype(), times.len());
        let rows: Vec<f64> = times.iter().flat_map(|&t| config.time.embed(t)).collect();
        let mut x = Tensor::from_f64(device, dtype, &[e, config.time.dim], &rows)?;
        // SiLU behind both: the second is that of the residual blocks, which take nothing else of the embedding.
        for layer in &self.time {
            let mut y = Tensor::zeros(device, dtype, &[e, layer.bias.len()])?;
            let mut workspace = layer.workspace(device, e, 1)?;
            layer.forward(device, &x, Activation::Silu, Residual::None, &mut y, &mut workspace)?;
            x = y;
        }
        for (layer, bias) in self.times().zip(&mut to.biases) {
            let mut workspace = layer.workspace(device, e, 1)?;
            layer.forward(device, &x, Activation::None, Residual::None, bias, &mut workspace)?;
        }
        Ok(())
    }

    /// What follows from the context [B, L, D] of the images alone.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and the operations'.
    pub fn attend_to(&self, device: &Device, context: &Tensor, to: &mut Unet2dConditions) -> Result<()> {
        let transformers = self.layers().filter_map(|(_, mixer)| match mixer {
            Some(Mixer::Context(transformer)) => Some(transformer),
            _ => None,
        });
        let contexts = transformers.flat_map(Transformer::contexts).map(|layer| {
            let (batch, tokens) = (context.dim(0), context.dim(1));
            let mut both = Tensor::zeros(device, context.dtype(), &[batch, tokens, layer.bias.len()])?;
            let mut workspace = layer.workspace(device, batch, tokens)?;
            layer.forward(device, context, Activation::None, Residual::None, &mut both, &mut workspace)?;
            Ok(both)
        });
        to.contexts = contexts.collect::<Result<_>>()?;
        Ok(())
    }

    /// Buffers for `batch` images of `size`; those between layers are made by the first forward pass.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn acts(&self, device: &Device, dtype: DType, batch: usize, size: [usize; 2]) -> Result<Unet2dActs> {
        let side = |level: usize| size.map(|side| side >> level);
        let levels = self.down.len();
        let down = self.down.iter().enumerate().map(|(l, b)| b.workspace_size(device, batch, side(l), side(l + 1)));
        let up = self.up.iter().enumerate().map(|(i, b)| {
            let level = levels - 1 - i;
            b.workspace_size(device, batch, side(level), side(level.saturating_sub(1)))
        });
        let coarsest = side(levels - 1);
        let picked = self.nothing.iter().map(|w| workspace_size(device, dtype, batch, 1, w.dim(0), NOTHING));
        let ends = [&self.conv_in, &self.conv_out].map(|conv| conv.workspace_size(device, batch, side(0)));
        let need = down
            .chain(up)
            .chain(picked)
            .chain(ends)
            .chain([self.middle.workspace_size(device, batch, coarsest, coarsest)])
            .fold(WorkspaceSize::default(), WorkspaceSize::max);
        let rows = self.times().map(|time| Tensor::zeros(device, dtype, &[batch, time.bias.len()]));
        Ok(Unet2dActs {
            scratch: Scratch::new(device),
            workspace: Workspace::new(device, dtype, need)?,
            nothing: Tensor::zeros(device, dtype, &[batch, NOTHING])?,
            rows: rows.collect::<Result<_>>()?,
        })
    }

    /// output [B, C, H, W] = what the network predicts of images x, each at the row of the conditions that `select` names.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(
        &self,
        device: &Device,
        x: &Tensor,
        select: Select,
        conditions: &Unet2dConditions,
        acts: &mut Unet2dActs,
        output: &mut Tensor,
    ) -> Result<()> {
        let Unet2dActs { scratch, workspace, nothing, rows } = acts;
        for ((weight, bias), row) in self.nothing.iter().zip(&conditions.biases).zip(rows.iter_mut()) {
            let bias = Some(Columns::PerImage(bias));
            linear(
                device,
                Operands { bias, select: Some(select), ..Operands::new(nothing, weight) },
                row,
                None,
                workspace,
            )?;
        }
        let (mut rows, mut contexts) = (rows.iter(), conditions.contexts.iter());
        let tools = &mut Tools { device, scratch, workspace };
        let [batch, channels, height, width] = [0, 1, 2, 3].map(|axis| output.dim(axis));
        let mut image = tools.scratch.take(output.dtype(), &[batch, height, width, x.dim(1)])?;
        channels_last(device, x, &mut image)?;

        // The last of the skips is what the next layer reads.
        let mut skips = vec![tools.conv(&self.conv_in, &image, Activation::None)?];
        tools.scratch.put(image);
        for blocks in &self.down {
            for (layer, attention) in &blocks.layers {
                let mut y = layer.forward(tools, &skips[skips.len() - 1], rows.next())?;
                if let Some(attention) = attention {
                    attention.forward(tools, &mut y, &mut contexts)?;
                }
                skips.push(y);
            }
            if let Some(conv) = &blocks.resample {
                let y = tools.conv(conv, &skips[skips.len() - 1], Activation::None)?;
                skips.push(y);
            }
        }
        let mut x: Option<Tensor> = None;
        for (layer, attention) in &self.middle.layers {
            let from = x.as_ref().unwrap_or(&skips[skips.len() - 1]);
            let mut y = layer.forward(tools, from, rows.next())?;
            if let Some(attention) = attention {
                attention.forward(tools, &mut y, &mut contexts)?;
            }
            x.replace(y).into_iter().for_each(|old| tools.scratch.put(old));
        }
        let mut x = x.ok_or_else(|| Error::Runtime("a U-Net without a middle".into()))?;
        for blocks in &self.up {
            for (layer, attention) in &blocks.layers {
                let skip = skips.pop().ok_or_else(|| Error::Runtime("a U-Net with more ways up than down".into()))?;
                let mut both = tools.like(&x, x.last_dim() + skip.last_dim())?;
                concat(device, &[&x, &skip], &mut both)?;
                let mut y = layer.forward(tools, &both, rows.next())?;
                if let Some(attention) = attention {
                    attention.forward(tools, &mut y, &mut contexts)?;
                }
                for old in [both, skip, std::mem::replace(&mut x, y)] {
                    tools.scratch.put(old);
                }
            }
            if let Some(conv) = &blocks.resample {
                let wide = doubled(tools, &x)?;
                let y = tools.conv(conv, &wide, Activation::None)?;
                tools.scratch.put(wide);
                tools.scratch.put(std::mem::replace(&mut x, y));
            }
        }
        let normed = self.norm_out.forward(tools, &x, true)?;
        tools.scratch.put(x);
        let y = tools.conv(&self.conv_out, &normed, Activation::None)?;
        tools.scratch.put(normed);
        debug_assert_eq!(y.last_dim(), channels);
        channels_first(device, &y, output)?;
        tools.scratch.put(y);
        Ok(())
    }
}
