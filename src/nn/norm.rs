//! Layer normalisation with learned weight and bias.

use super::params::Loader;
use crate::device::Device;
use crate::error::Result;
use crate::ops::layernorm::{Affine, layernorm};
use crate::tensor::Tensor;

/// LayerNorm over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias` `[dim]` below the loader's path.
    pub fn load(loader: &Loader, dim: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: loader.tensor("weight", &[dim])?, bias: loader.tensor("bias", &[dim])?, eps })
    }

    /// y = norm(x) * weight + bias.
    pub fn forward(&self, device: &Device, x: &Tensor, y: &mut Tensor) -> Result<()> {
        layernorm(device, x, Affine::Learned(&self.weight, &self.bias), self.eps, y)
    }
}
