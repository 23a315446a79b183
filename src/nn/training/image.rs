//! Layers of convolutional networks for training, images [B, H, W, C]: convolution, GroupNorm with SiLU, doubling, and the
//! residual block of the diffusers library. A layer reads its input again on the way back, so that whoever runs it keeps that.

use super::Pair;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::tools::Tools;
use crate::ops::Columns;
use crate::ops::activation::activate;
use crate::ops::conv::backward::{Gradients, backward_workspace_size, conv2d_backward, scratch_len};
use crate::ops::conv::{ConvSpec, Operands, Residual, conv2d, workspace_size};
use crate::ops::groupnorm::{self, GroupNorm, groupnorm, groupnorm_backward};
use crate::ops::linear::{Activation, WorkspaceSize};
use crate::ops::upsample::{Resize, upsample, upsample_backward};
use crate::tensor::{DType, Tensor};

/// Added to the variance in GroupNorm.
const EPS: f64 = 1e-6;

/// A convolution, or its gradients: weight [N, kh, kw, C], bias `[N]`.
pub struct ConvParams {
    spec: ConvSpec,
    /// Weight and bias.
    pub pair: Pair,
}

/// GroupNorm with SiLU behind it, or its gradients.
pub struct NormParams {
    groups: usize,
    /// Weight and bias.
    pub pair: Pair,
}

/// A residual block, or its gradients: norm, SiLU, convolution, twice, and a 1x1 convolution around where channels change.
pub struct ResParams {
    norm1: NormParams,
    conv1: ConvParams,
    norm2: NormParams,
    conv2: ConvParams,
    around: Option<ConvParams>,
}

/// What the backward of a residual block reads beside its input: both norms' outputs and the first convolution's.
pub struct ResSaved {
    normed1: Tensor,
    h: Tensor,
    normed2: Tensor,
}

/// One layer, or its gradients.
pub enum ImageLayer {
    /// A convolution.
    Conv(ConvParams),
    /// GroupNorm and SiLU.
    Norm(NormParams),
    /// Twice the size, each pixel four times.
    Double,
    /// A residual block.
    Res(Box<ResParams>),
}

impl ConvParams {
    /// Zeros for `c` channels in and `n` out.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(device: &Device, dtype: DType, spec: ConvSpec, [n, c]: [usize; 2]) -> Result<Self> {
        let weight = Tensor::zeros(device, dtype, &[n, spec.kernel[0], spec.kernel[1], c])?;
        Ok(Self { spec, pair: Pair { weight, bias: Tensor::zeros(device, dtype, &[n])? } })
    }

    fn sizes(&self, images: usize) -> [usize; 3] {
        [images, self.pair.weight.last_dim(), self.pair.weight.dim(0)]
    }

    /// y = conv(x) + bias + residual.
    fn forward(&self, tools: &mut Tools, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let size = self.spec.output([x.dim(1), x.dim(2)])?;
        let mut y = tools.sized(x, size, self.pair.weight.dim(0))?;
        let inputs = [x];
        let operands = Operands {
            bias: Some(Columns::Shared(&self.pair.bias)),
            residual: residual.map_or(Residual::None, Residual::Before),
            ..Operands::new(self.spec, &inputs, &self.pair.weight)
        };
        conv2d(tools.device, operands, &mut y, tools.workspace)?;
        Ok(y)
    }

    /// dx, if it is wanted, and the gradients from dy.
    fn backward(
        &self,
        tools: &mut Tools,
        x: &Tensor,
        dy: &Tensor,
        grads: &mut Self,
        wants: bool,
    ) -> Result<Option<Tensor>> {
        let len = scratch_len(tools.device, self.spec, self.sizes(x.dim(0)), [dy.dim(1), dy.dim(2)]);
        let mut scratch = tools.scratch.take(dy.dtype().wide(), &[len])?;
        let mut dx = if wants { Some(tools.scratch.take(x.dtype(), x.shape())?) } else { None };
        let mut to: Vec<&mut Tensor> = dx.iter_mut().collect();
        let Pair { weight: dw, bias: db } = &mut grads.pair;
        let gradients = Gradients { dx: &mut to, dw, db: Some(db), scratch: &mut scratch };
        conv2d_backward(tools.device, self.spec, &[x], &self.pair.weight, dy, gradients, tools.workspace)?;
        tools.scratch.put(scratch);
        Ok(dx)
    }

    fn workspace_size(&self, device: &Device, images: usize, size: [usize; 2]) -> Result<WorkspaceSize> {
        let (dtype, sizes) = (self.pair.weight.dtype(), self.sizes(images));
        let forward = workspace_size(device, dtype, self.spec, sizes, self.spec.output(size)?);
        let channels = [sizes[1]];
        Ok(forward.max(backward_workspace_size(device, dtype, self.spec, [images, sizes[2]], &channels, size)))
    }
}

impl NormParams {
    /// Zeros for `channels` in `groups`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(device: &Device, dtype: DType, channels: usize, groups: usize) -> Result<Self> {
        Ok(Self { groups, pair: Pair::norm(device, dtype, channels)? })
    }

    fn norm(&self) -> GroupNorm<'_> {
        GroupNorm { groups: self.groups, eps: EPS, weight: &self.pair.weight, bias: &self.pair.bias, silu: true }
    }

    fn forward(&self, tools: &mut Tools, x: &Tensor) -> Result<Tensor> {
        let mut y = tools.scratch.take(x.dtype(), x.shape())?;
        let mut sums = tools.scratch.take(x.dtype().wide(), &[groupnorm::scratch_len(x)?])?;
        groupnorm(tools.device, x, self.norm(), &mut y, &mut sums)?;
        tools.scratch.put(sums);
        Ok(y)
    }

    fn backward(&self, tools: &mut Tools, x: &Tensor, dy: &Tensor, grads: &mut Self) -> Result<Tensor> {
        let mut dx = tools.scratch.take(x.dtype(), x.shape())?;
        let mut sums = tools.scratch.take(x.dtype().wide(), &[groupnorm::backward_scratch_len(x)?])?;
        let Pair { weight, bias } = &mut grads.pair;
        groupnorm_backward(tools.device, x, self.norm(), dy, &mut dx, weight, bias, &mut sums)?;
        tools.scratch.put(sums);
        Ok(dx)
    }
}

impl ResParams {
    /// Zeros for `from` channels in and `to` out.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(device: &Device, dtype: DType, [from, to]: [usize; 2], groups: usize) -> Result<Self> {
        let (conv3, conv1) = (ConvSpec::new(3).padding(1), ConvSpec::new(1));
        Ok(Self {
            norm1: NormParams::zeros(device, dtype, from, groups)?,
            conv1: ConvParams::zeros(device, dtype, conv3, [to, from])?,
            norm2: NormParams::zeros(device, dtype, to, groups)?,
            conv2: ConvParams::zeros(device, dtype, conv3, [to, to])?,
            around: (from != to).then(|| ConvParams::zeros(device, dtype, conv1, [to, from])).transpose()?,
        })
    }

    fn forward(&self, tools: &mut Tools, x: &Tensor) -> Result<(Tensor, ResSaved)> {
        let normed1 = self.norm1.forward(tools, x)?;
        let h = self.conv1.forward(tools, &normed1, None)?;
        let normed2 = self.norm2.forward(tools, &h)?;
        let around = self.around.as_ref().map(|conv| conv.forward(tools, x, None)).transpose()?;
        let y = self.conv2.forward(tools, &normed2, Some(around.as_ref().unwrap_or(x)))?;
        around.into_iter().for_each(|buffer| tools.scratch.put(buffer));
        Ok((y, ResSaved { normed1, h, normed2 }))
    }

    fn backward(
        &self,
        tools: &mut Tools,
        x: &Tensor,
        saved: &ResSaved,
        dy: &Tensor,
        grads: &mut Self,
    ) -> Result<Tensor> {
        let ResSaved { normed1, h, normed2 } = saved;
        let back = |tools: &mut Tools, conv: &ConvParams, x: &Tensor, dy: &Tensor, grads: &mut ConvParams| {
            let dx = conv.backward(tools, x, dy, grads, true)?;
            dx.map_or_else(|| tools.scratch.take(x.dtype(), x.shape()), Ok)
        };
        let d_normed2 = back(tools, &self.conv2, normed2, dy, &mut grads.conv2)?;
        let dh = self.norm2.backward(tools, h, &d_normed2, &mut grads.norm2)?;
        let d_normed1 = back(tools, &self.conv1, normed1, &dh, &mut grads.conv1)?;
        let branch = self.norm1.backward(tools, x, &d_normed1, &mut grads.norm1)?;
        let around = match (&self.around, &mut grads.around) {
            (Some(conv), Some(grads)) => Some(back(tools, conv, x, dy, grads)?),
            _ => None,
        };
        let mut dx = tools.scratch.take(x.dtype(), x.shape())?;
        activate(tools.device, &branch, Activation::None, None, Some(around.as_ref().unwrap_or(dy)), &mut dx)?;
        [d_normed2, dh, d_normed1, branch].into_iter().chain(around).for_each(|buffer| tools.scratch.put(buffer));
        Ok(dx)
    }

    fn layers(&self) -> Vec<(&'static str, &Pair)> {
        let around = self.around.iter().map(|conv| ("conv_shortcut", &conv.pair));
        let norms = [("norm1", &self.norm1.pair), ("norm2", &self.norm2.pair)];
        let convs = [("conv1", &self.conv1.pair), ("conv2", &self.conv2.pair)];
        norms.into_iter().chain(convs).chain(around).collect()
    }

    fn layers_mut(&mut self) -> Vec<(&'static str, &mut Pair)> {
        let around = self.around.iter_mut().map(|conv| ("conv_shortcut", &mut conv.pair));
        let norms = [("norm1", &mut self.norm1.pair), ("norm2", &mut self.norm2.pair)];
        let convs = [("conv1", &mut self.conv1.pair), ("conv2", &mut self.conv2.pair)];
        norms.into_iter().chain(convs).chain(around).collect()
    }
}

impl ResSaved {
    /// Its buffers.
    pub fn into_buffers(self) -> [Tensor; 3] {
        [self.normed1, self.h, self.normed2]
    }
}

impl ImageLayer {
    /// y of x, and what the way back reads beside x.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(&self, tools: &mut Tools, x: &Tensor) -> Result<(Tensor, Option<ResSaved>)> {
        match self {
            Self::Conv(conv) => Ok((conv.forward(tools, x, None)?, None)),
            Self::Norm(norm) => Ok((norm.forward(tools, x)?, None)),
            Self::Double => {
                let mut y = tools.sized(x, [2 * x.dim(1), 2 * x.dim(2)], x.last_dim())?;
                upsample(tools.device, x, Resize::Nearest, &mut y)?;
                Ok((y, None))
            }
            Self::Res(block) => {
                let (y, saved) = block.forward(tools, x)?;
                Ok((y, Some(saved)))
            }
        }
    }

    /// dx, which a convolution leaves out unless it is wanted, and the gradients from dy.
    ///
    /// # Errors
    /// The operations'; [`Error::Runtime`] for the gradients of another layer.
    pub fn backward(
        &self,
        tools: &mut Tools,
        x: &Tensor,
        saved: Option<&ResSaved>,
        dy: &Tensor,
        grads: &mut Self,
        wants: bool,
    ) -> Result<Option<Tensor>> {
        match (self, grads, saved) {
            (Self::Conv(conv), Self::Conv(grads), _) => conv.backward(tools, x, dy, grads, wants),
            (Self::Norm(norm), Self::Norm(grads), _) => norm.backward(tools, x, dy, grads).map(Some),
            (Self::Double, Self::Double, _) => {
                let mut dx = tools.scratch.take(x.dtype(), x.shape())?;
                upsample_backward(tools.device, Resize::Nearest, dy, &mut dx)?;
                Ok(Some(dx))
            }
            (Self::Res(block), Self::Res(grads), Some(saved)) => block.backward(tools, x, saved, dy, grads).map(Some),
            _ => Err(Error::Runtime("gradients of another layer".into())),
        }
    }

    /// What `images` images of `size` need, and the size that leaves the layer.
    ///
    /// # Errors
    /// [`Error::Runtime`] for images smaller than a kernel.
    pub fn workspace_size(
        &self,
        device: &Device,
        images: usize,
        size: [usize; 2],
    ) -> Result<(WorkspaceSize, [usize; 2])> {
        let of = |conv: &ConvParams| conv.workspace_size(device, images, size);
        match self {
            Self::Conv(conv) => Ok((of(conv)?, conv.spec.output(size)?)),
            Self::Norm(_) => Ok((WorkspaceSize::default(), size)),
            Self::Double => Ok((WorkspaceSize::default(), size.map(|side| 2 * side))),
            Self::Res(block) => {
                let convs = [&block.conv1, &block.conv2].into_iter().chain(&block.around);
                let need = convs.map(of).try_fold(WorkspaceSize::default(), |all, one| one.map(|one| all.max(one)))?;
                Ok((need, size))
            }
        }
    }

    /// Every pair of parameters with its name below the layer's, which is empty where the layer has but one.
    pub fn layers(&self) -> Vec<(&'static str, &Pair)> {
        match self {
            Self::Conv(conv) => vec![("", &conv.pair)],
            Self::Norm(norm) => vec![("", &norm.pair)],
            Self::Double => Vec::new(),
            Self::Res(block) => block.layers(),
        }
    }

    /// The same, to be written.
    pub fn layers_mut(&mut self) -> Vec<(&'static str, &mut Pair)> {
        match self {
            Self::Conv(conv) => vec![("", &mut conv.pair)],
            Self::Norm(norm) => vec![("", &mut norm.pair)],
            Self::Double => Vec::new(),
            Self::Res(block) => block.layers_mut(),
        }
    }
}
