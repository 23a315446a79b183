//! Residual blocks and attentions of diffusers' networks. Images are [B, H, W, C].

use super::ResBlock;
use super::heads::HeadSizes;
use super::transformer::Transformer;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::conv::{Behind, Conv};
use crate::nn::linear::Linear;
use crate::nn::params::Loader;
use crate::nn::tools::Tools;
use crate::ops::Columns;
use crate::ops::attention::{Heads, attention};
use crate::ops::conv::{ConvSpec, Residual as ConvResidual};
use crate::ops::groupnorm::{GroupNorm, groupnorm, scratch_len};
use crate::ops::linear::{Activation, Residual, WorkspaceSize};
use crate::ops::upsample::{Resize, upsample};
use crate::tensor::Tensor;

/// GroupNorm with its affine map.
pub struct Norm {
    groups: usize,
    eps: f64,
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    /// Reads `weight` and `bias` `[channels]` below the loader's path.
    pub fn load(loader: &Loader, channels: usize, (groups, eps): (usize, f64)) -> Result<Self> {
        let [weight, bias] = ["weight", "bias"].map(|part| loader.tensor(part, &[channels]));
        Ok(Self { groups, eps, weight: weight?, bias: bias? })
    }

    /// The norm of x, SiLU behind it if asked for.
    pub fn forward(&self, tools: &mut Tools, x: &Tensor, silu: bool) -> Result<Tensor> {
        let norm = GroupNorm { groups: self.groups, eps: self.eps, weight: &self.weight, bias: &self.bias, silu };
        let mut y = tools.scratch.take(x.dtype(), x.shape())?;
        let mut sums = tools.scratch.take(x.dtype().wide(), &[scratch_len(x)?])?;
        groupnorm(tools.device, x, norm, &mut y, &mut sums)?;
        tools.scratch.put(sums);
        Ok(y)
    }
}

/// A 3x3 convolution that keeps the size.
pub fn conv3() -> ConvSpec {
    ConvSpec::new(3).padding(1)
}

/// A residual block: norm, SiLU, convolution, the time, norm, SiLU, convolution.
pub struct ResLayer {
    norm1: Norm,
    conv1: Conv,
    /// From SiLU of the time embedding to the first convolution's outputs; that convolution's bias is part of its own.
    pub time: Option<Linear>,
    norm2: Norm,
    conv2: Conv,
    around: Option<Conv>,
}

impl ResLayer {
    /// Reads the weights below the loader's path.
    pub fn load(loader: &Loader, block: ResBlock, norm: (usize, f64)) -> Result<Self> {
        let ResBlock { from, to, time } = block;
        let conv1 = Conv::load(&loader.at("conv1"), conv3(), [to, from])?;
        let time = time.map(|width| {
            let (at, conv) = (loader.at("time_emb_proj"), loader.at("conv1"));
            let bias = at.read("bias")?.into_iter().zip(conv.read("bias")?);
            let bias: Vec<f64> = bias.map(|(a, b)| f64::from(a) + f64::from(b)).collect();
            Ok::<_, Error>(Linear { weight: at.matrix("weight", to, width)?, bias: at.computed("bias", &[to], &bias)? })
        });
        let around = (from != to).then(|| Conv::load(&loader.at("conv_shortcut"), ConvSpec::new(1), [to, from]));
        Ok(Self {
            norm1: Norm::load(&loader.at("norm1"), from, norm)?,
            conv1,
            time: time.transpose()?,
            norm2: Norm::load(&loader.at("norm2"), to, norm)?,
            conv2: Conv::load(&loader.at("conv2"), conv3(), [to, to])?,
            around: around.transpose()?,
        })
    }

    /// The block's output; `bias` [B, N] is what its time layer gives.
    pub fn forward(&self, tools: &mut Tools, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let plain = Behind::act(Activation::None);
        let normed = self.norm1.forward(tools, x, true)?;
        let mut y = tools.like(x, self.conv1.outputs())?;
        let timed = Behind { bias: bias.map(Columns::PerImage), ..plain };
        self.conv1.forward(tools.device, &[&normed], timed, &mut y, tools.workspace)?;
        tools.scratch.put(normed);
        let normed = self.norm2.forward(tools, &y, true)?;
        let around = match &self.around {
            None => None,
            Some(conv) => {
                let mut around = tools.like(x, conv.outputs())?;
                conv.forward(tools.device, &[x], plain, &mut around, tools.workspace)?;
                Some(around)
            }
        };
        let end = Behind { residual: ConvResidual::Before(around.as_ref().unwrap_or(x)), ..plain };
        self.conv2.forward(tools.device, &[&normed], end, &mut y, tools.workspace)?;
        tools.scratch.put(normed);
        around.into_iter().for_each(|t| tools.scratch.put(t));
        Ok(y)
    }

    /// What images of `size` need.
    pub fn workspace_size(&self, device: &Device, batch: usize, size: [usize; 2]) -> WorkspaceSize {
        let convs = [&self.conv1, &self.conv2].into_iter().chain(&self.around);
        convs.map(|conv| conv.workspace_size(device, batch, size)).fold(WorkspaceSize::default(), WorkspaceSize::max)
    }
}

/// Self-attention over pixels, added to its input.
pub struct Attention {
    norm: Norm,
    heads: usize,
    /// Queries, keys and values of all heads.
    qkv: Linear,
    out: Linear,
}

impl Attention {
    /// Reads the weights below the loader's path.
    ///
    /// # Errors
    /// The loader's, and [`Error::Input`] for heads that are too large.
    pub fn load(loader: &Loader, channels: usize, heads: usize, norm: (usize, f64)) -> Result<Self> {
        let sizes = HeadSizes::new(loader, channels, heads)?;
        Ok(Self {
            norm: Norm::load(&loader.at("group_norm"), channels, norm)?,
            heads,
            qkv: sizes.into(loader, &["to_q", "to_k", "to_v"], channels, true)?,
            out: sizes.out_of(loader)?,
        })
    }

    /// x += attention(norm(x)).
    pub fn forward(&self, tools: &mut Tools, x: &mut Tensor) -> Result<()> {
        let (batch, tokens, width) = (x.dim(0), x.dim(1) * x.dim(2), self.out.weight.last_dim());
        let normed = self.norm.forward(tools, x, false)?;
        let mut qkv = tools.scratch.take(x.dtype(), &[batch, tokens, 3 * width])?;
        self.qkv.forward(tools.device, &normed, Activation::None, Residual::None, &mut qkv, tools.workspace)?;
        tools.scratch.put(normed);
        let mut mixed = tools.scratch.take(x.dtype(), &[batch, tokens, width])?;
        let [q, k, v] = [0, 1, 2].map(|i| Heads { tensor: &qkv, offset: i * width });
        attention(tools.device, q, k, v, self.heads, &mut mixed)?;
        self.out.forward(tools.device, &mixed, Activation::None, Residual::InPlace, x, tools.workspace)?;
        tools.scratch.put(qkv);
        tools.scratch.put(mixed);
        Ok(())
    }

    /// What images of `size` need.
    pub fn workspace_size(&self, device: &Device, batch: usize, size: [usize; 2]) -> WorkspaceSize {
        let tokens = size[0] * size[1];
        self.qkv.workspace_size(device, batch, tokens).max(self.out.workspace_size(device, batch, tokens))
    }
}

/// What lets pixels look at each other.
pub enum Mixer {
    /// Nothing else.
    Pixels(Attention),
    /// And at a context.
    Context(Transformer),
}

impl Mixer {
    /// x += mixer(x); of `contexts` it takes those of its own blocks.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward<'a>(
        &self,
        tools: &mut Tools,
        x: &mut Tensor,
        contexts: &mut impl Iterator<Item = &'a Tensor>,
    ) -> Result<()> {
        match self {
            Self::Pixels(attention) => attention.forward(tools, x),
            Self::Context(transformer) => transformer.forward(tools, x, contexts),
        }
    }

    /// What images of `size` need.
    pub fn workspace_size(&self, device: &Device, batch: usize, size: [usize; 2]) -> WorkspaceSize {
        match self {
            Self::Pixels(attention) => attention.workspace_size(device, batch, size),
            Self::Context(transformer) => transformer.workspace_size(device, batch, size),
        }
    }
}

/// Residual blocks, each with an attention behind it or none.
pub struct Blocks {
    /// The blocks.
    pub layers: Vec<(ResLayer, Option<Mixer>)>,
    /// The convolution that halves or follows doubling, if there is one.
    pub resample: Option<Conv>,
}

impl Blocks {
    /// What images of `size` need inside, whose output is of `output`.
    pub fn workspace_size(&self, device: &Device, batch: usize, size: [usize; 2], output: [usize; 2]) -> WorkspaceSize {
        let layers = self.layers.iter().flat_map(|(layer, attention)| {
            let attention = attention.iter().map(|a| a.workspace_size(device, batch, size));
            attention.chain([layer.workspace_size(device, batch, size)])
        });
        let resample = self.resample.iter().map(|conv| conv.workspace_size(device, batch, output));
        layers.chain(resample).fold(WorkspaceSize::default(), WorkspaceSize::max)
    }
}

/// x at twice its size, each pixel four times.
pub fn doubled(tools: &mut Tools, x: &Tensor) -> Result<Tensor> {
    let mut y = tools.sized(x, [2 * x.dim(1), 2 * x.dim(2)], x.last_dim())?;
    upsample(tools.device, x, Resize::Nearest, &mut y)?;
    Ok(y)
}

/// The convolution that halves: with zeros on all sides, or only behind the last row and column.
pub fn halving(padding: usize) -> ConvSpec {
    let spec = ConvSpec::new(3).stride(2);
    if padding == 0 { ConvSpec { padding: [[0, 1]; 2], ..spec } } else { spec.padding(padding) }
}
