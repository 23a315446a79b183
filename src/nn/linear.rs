//! A linear layer with bias.

use super::params::Loader;
use crate::device::Device;
use crate::error::Result;
use crate::ops::Columns;
use crate::ops::linear::{Activation, Operands, Residual, Workspace, WorkspaceSize, linear, workspace_size};
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
        Ok(Self { weight: loader.matrix("weight", n, k)?, bias: loader.tensor("bias", &[n])? })
    }

    /// The layer on x, to be completed and given to [`linear`].
    pub fn on<'a>(&'a self, x: &'a Tensor) -> Operands<'a> {
        Operands { bias: Some(Columns::Shared(&self.bias)), ..Operands::new(x, &self.weight) }
    }

    /// y = residual + act(x weight^T + bias).
    pub fn forward(
        &self,
        device: &Device,
        x: &Tensor,
        act: Activation,
        residual: Residual,
        y: &mut Tensor,
        workspace: &mut Workspace,
    ) -> Result<()> {
        linear(device, Operands { act, residual, ..self.on(x) }, y, None, workspace)
    }

    /// A workspace of its own for inputs of `images` times `rows` rows.
    pub fn workspace(&self, device: &Device, images: usize, rows: usize) -> Result<Workspace> {
        Workspace::new(device, self.weight.dtype(), self.workspace_size(device, images, rows))
    }

    /// What inputs of `images` times `rows` rows need.
    pub fn workspace_size(&self, device: &Device, images: usize, rows: usize) -> WorkspaceSize {
        let dtype: DType = self.weight.dtype();
        workspace_size(device, dtype, images, rows, self.weight.dim(0), self.weight.last_dim())
    }
}
