//! Layers for training: one operation behind the other, with what their backward reads kept. Gradients of parameters have
//! the parameters' struct, in the wide type, and are added to (`+=`); those of activations are written (`=`).

mod block;
mod image;
mod stack;
mod time;

pub use block::{BlockParams, BlockSaved, BlockScratch, Drop, Modulation};
pub use image::{ConvParams, ImageLayer, NormParams, ResParams, ResSaved};
pub use stack::{BlockStack, Keeping};
pub use time::{VectorMlp, VectorSaved};

use crate::device::Device;
use crate::error::Result;
use crate::ops::Columns;
use crate::ops::backward::linear::linear_backward;
use crate::ops::linear::{Operands, Workspace, linear};
use crate::tensor::{DType, Tensor};

/// Weight and bias of a linear layer or a norm, or their gradients.
pub struct Pair {
    /// [N, K], of a norm `[N]`.
    pub weight: Tensor,
    /// `[N]`.
    pub bias: Tensor,
}

impl Pair {
    /// Zeros for a linear layer of `k` inputs and `n` outputs.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn linear(device: &Device, dtype: DType, n: usize, k: usize) -> Result<Self> {
        Ok(Self { weight: Tensor::zeros(device, dtype, &[n, k])?, bias: Tensor::zeros(device, dtype, &[n])? })
    }

    /// Zeros for a norm of `n` channels.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn norm(device: &Device, dtype: DType, n: usize) -> Result<Self> {
        Ok(Self { weight: Tensor::zeros(device, dtype, &[n])?, bias: Tensor::zeros(device, dtype, &[n])? })
    }

    /// y [B, .., N] = x [B, .., K] weight^T + bias.
    ///
    /// # Errors
    /// [`linear`]'s.
    pub fn forward(&self, device: &Device, x: &Tensor, y: &mut Tensor, workspace: &mut Workspace) -> Result<()> {
        let bias = Some(Columns::Shared(&self.bias));
        linear(device, Operands { bias, ..Operands::new(x, &self.weight) }, y, None, workspace)
    }

    /// dx, unless nobody asks for it, and `grads` of the layer on x; `scratch` of B N elements.
    ///
    /// # Errors
    /// [`linear_backward`]'s.
    pub fn backward(
        &self,
        device: &Device,
        x: &Tensor,
        dy: &Tensor,
        dx: Option<&mut Tensor>,
        grads: &mut Self,
        scratch: &mut Tensor,
    ) -> Result<()> {
        linear_backward(device, x, &self.weight, dy, dx, &mut grads.weight, Some(&mut grads.bias), scratch)
    }
}
