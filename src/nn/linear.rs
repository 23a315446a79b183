//! A linear layer with bias.

use super::params::Loader;
use crate::device::Device;
use crate::error::Result;
use crate::ops::linear::{Activation, Operands, Residual, linear, workspace_dtype, workspace_len};
use crate::tensor::{DType, Tensor};

/// y = x weight^T + bias, with the activation and residual that follow.
pub struct Linear {
    /// [N, K].
    pub weight: Tensor,
    /// `[N]`.
    pub bias: Tensor,
}

impl Linear {
    /// Reads `weight` [n, k] and `bias` `[n]` below the loader's path.
    pub fn load(loader: &Loader, n: usize, k: usize) -> Result<Self> {
        Ok(Self { weight: loader.tensor("weight", &[n, k])?, bias: loader.tensor("bias", &[n])? })
    }

    /// See [`linear`].
    pub fn forward(
        &self,
        device: &Device,
        x: &Tensor,
        act: Activation,
        residual: Residual,
        y: &mut Tensor,
        workspace: &mut Tensor,
    ) -> Result<()> {
        let operands = Operands { x, weight: &self.weight, bias: Some(&self.bias), act, residual };
        linear(device, operands, y, workspace)
    }

    /// A workspace of its own for inputs of `images` times `rows` rows.
    pub fn workspace(&self, device: &Device, dtype: DType, images: usize, rows: usize) -> Result<Tensor> {
        Tensor::zeros(device, workspace_dtype(dtype), &[self.workspace_len(device, images, rows)])
    }

    /// Elements of workspace for inputs of `images` times `rows` rows.
    pub fn workspace_len(&self, device: &Device, images: usize, rows: usize) -> usize {
        workspace_len(device, images, rows, self.weight.dim(0), self.weight.last_dim())
    }
}
