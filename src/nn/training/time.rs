//! A vector per image through two linear layers with SiLU between: the time embedding, and that of continuous parameters.

use super::Pair;
use crate::device::Device;
use crate::error::Result;
use crate::ops::activation::{activate, activate_backward};
use crate::ops::linear::{Activation, Workspace, WorkspaceSize, workspace_size};
use crate::tensor::{DType, Tensor};

/// The two layers, called `0` and `2` as in a PyTorch `Sequential`, or their gradients.
pub struct VectorMlp {
    /// [D, F].
    pub first: Pair,
    /// [D, D].
    pub second: Pair,
}

/// What the backward of a [`VectorMlp`] reads, for one batch, and its scratch.
pub struct VectorSaved {
    /// [B, F], written by the caller.
    pub x: Tensor,
    a: Tensor,
    h: Tensor,
    /// [B, D].
    pub y: Tensor,
    d: [Tensor; 2],
}

impl VectorMlp {
    /// Zeros for `freq` inputs and `dim` outputs.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn zeros(device: &Device, dtype: DType, freq: usize, dim: usize) -> Result<Self> {
        Ok(Self { first: Pair::linear(device, dtype, dim, freq)?, second: Pair::linear(device, dtype, dim, dim)? })
    }

    /// Both layers with their names.
    pub fn layers(&self) -> [(&'static str, &Pair); 2] {
        [("0", &self.first), ("2", &self.second)]
    }

    /// The same, to be written.
    pub fn layers_mut(&mut self) -> [(&'static str, &mut Pair); 2] {
        [("0", &mut self.first), ("2", &mut self.second)]
    }

    /// `saved.y` of `saved.x`.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(&self, device: &Device, saved: &mut VectorSaved, workspace: &mut Workspace) -> Result<()> {
        let VectorSaved { x, a, h, y, .. } = saved;
        self.first.forward(device, x, a, workspace)?;
        activate(device, a, Activation::Silu, None, None, h)?;
        self.second.forward(device, h, y, workspace)
    }

    /// The gradients of both layers from dy [B, D]; `sums` of B D elements.
    ///
    /// # Errors
    /// The operations'.
    pub fn backward(
        &self,
        device: &Device,
        saved: &mut VectorSaved,
        dy: &Tensor,
        grads: &mut Self,
        sums: &mut Tensor,
    ) -> Result<()> {
        let VectorSaved { x, a, h, d: [dh, da], .. } = saved;
        self.second.backward(device, h, dy, Some(dh), &mut grads.second, sums)?;
        activate_backward(device, a, Activation::Silu, None, dh, da, None)?;
        self.first.backward(device, x, da, None, &mut grads.first, sums)
    }

    /// What the products of `batch` images need.
    pub fn workspace_size(&self, device: &Device, batch: usize) -> WorkspaceSize {
        [&self.first, &self.second]
            .map(|pair| pair.workspace_size(device, batch, 1))
            .into_iter()
            .fold(WorkspaceSize::default(), WorkspaceSize::max)
    }
}

impl VectorSaved {
    /// Buffers for `batch` vectors.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn new(device: &Device, dtype: DType, batch: usize, freq: usize, dim: usize) -> Result<Self> {
        let zeros = |n: usize| Tensor::zeros(device, dtype, &[batch, n]);
        Ok(Self { x: zeros(freq)?, a: zeros(dim)?, h: zeros(dim)?, y: zeros(dim)?, d: [zeros(dim)?, zeros(dim)?] })
    }
}

impl Pair {
    /// What a product of `images` times `rows` rows needs.
    pub fn workspace_size(&self, device: &Device, images: usize, rows: usize) -> WorkspaceSize {
        workspace_size(device, self.weight.dtype(), images, rows, self.weight.dim(0), self.weight.last_dim())
    }
}
