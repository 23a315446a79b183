//! What the layers of a convolutional network work with, and what they do again and again. Images are [B, H, W, C].

use super::conv::{Behind, Conv};
use super::norm::LayerNorm;
use super::scratch::Scratch;
use crate::device::Device;
use crate::error::Result;
use crate::ops::linear::{Activation, Workspace};
use crate::tensor::Tensor;

/// What every layer works with.
pub struct Tools<'a> {
    /// Where.
    pub device: &'a Device,
    /// Buffers.
    pub scratch: &'a mut Scratch,
    /// Of the products.
    pub workspace: &'a mut Workspace,
}

impl Tools<'_> {
    /// A buffer like `x`, but for its channels.
    pub fn like(&mut self, x: &Tensor, channels: usize) -> Result<Tensor> {
        self.sized(x, [x.dim(1), x.dim(2)], channels)
    }

    /// A buffer of as many images of `size`.
    pub fn sized(&mut self, x: &Tensor, [height, width]: [usize; 2], channels: usize) -> Result<Tensor> {
        self.scratch.take(x.dtype(), &[x.dim(0), height, width, channels])
    }

    /// act(conv(x) + bias).
    pub fn conv(&mut self, conv: &Conv, x: &Tensor, act: Activation) -> Result<Tensor> {
        self.conv_behind(conv, x, Behind::act(act))
    }

    /// `conv` of x, and what is asked for behind it.
    pub fn conv_behind(&mut self, conv: &Conv, x: &Tensor, behind: Behind) -> Result<Tensor> {
        let size = conv.output([x.dim(1), x.dim(2)])?;
        let mut y = self.sized(x, size, conv.outputs())?;
        conv.forward(self.device, &[x], behind, &mut y, self.workspace)?;
        Ok(y)
    }

    /// `norm` of x, over its channels.
    pub fn norm(&mut self, norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
        let mut y = self.scratch.take(x.dtype(), x.shape())?;
        norm.forward(self.device, x, &mut y)?;
        Ok(y)
    }
}
