//! Multi-head self-attention with one packed projection, as timm and DiT have it.

use super::linear::Linear;
use super::params::{Loader, ParamSpec, linear_specs};
use crate::device::Device;
use crate::error::Result;
use crate::ops::attention::{Heads, attention};
use crate::ops::linear::{Activation, Residual};
use crate::tensor::Tensor;

/// qkv and output projections of NH heads.
pub struct SelfAttention {
    /// [3 D, D].
    pub qkv: Linear,
    /// [D, D].
    pub proj: Linear,
    heads: usize,
}

impl SelfAttention {
    /// Parameters below `name`.
    pub fn specs(name: &str, dim: usize) -> Vec<ParamSpec> {
        let mut specs = linear_specs(&format!("{name}.qkv"), 3 * dim, dim).to_vec();
        specs.extend(linear_specs(&format!("{name}.proj"), dim, dim));
        specs
    }

    /// Reads both projections below the loader's path.
    pub fn load(loader: &Loader, dim: usize, heads: usize) -> Result<Self> {
        let qkv = Linear::load(&loader.at("qkv"), 3 * dim, dim)?;
        Ok(Self { qkv, proj: Linear::load(&loader.at("proj"), dim, dim)?, heads })
    }

    /// x [B, T, D] = residual(x, proj(attention(h))): h is the normalised input and is overwritten; qkv [B, T, 3 D]
    /// is scratch.
    pub fn forward(
        &self,
        device: &Device,
        h: &mut Tensor,
        qkv: &mut Tensor,
        residual: Residual,
        x: &mut Tensor,
        workspace: &mut Tensor,
    ) -> Result<()> {
        let dim = h.last_dim();
        self.qkv.forward(device, h, Activation::None, Residual::None, qkv, workspace)?;
        let part = |i: usize| Heads { tensor: &*qkv, offset: i * dim };
        attention(device, part(0), part(1), part(2), self.heads, h)?;
        self.proj.forward(device, h, Activation::None, residual, x, workspace)
    }
}
