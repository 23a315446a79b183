//! The feed-forward half of a transformer block.

use super::linear::Linear;
use super::params::{Loader, ParamSpec, linear_specs};
use crate::device::Device;
use crate::error::Result;
use crate::ops::linear::{Activation, Residual};
use crate::tensor::Tensor;

/// fc2(act(fc1(x))).
pub struct Mlp {
    /// [H, D].
    pub fc1: Linear,
    /// [D, H].
    pub fc2: Linear,
    act: Activation,
}

impl Mlp {
    /// Parameters below `name`.
    pub fn specs(name: &str, dim: usize, hidden: usize) -> Vec<ParamSpec> {
        let mut specs = linear_specs(&format!("{name}.fc1"), hidden, dim).to_vec();
        specs.extend(linear_specs(&format!("{name}.fc2"), dim, hidden));
        specs
    }

    /// Reads both layers below the loader's path.
    pub fn load(loader: &Loader, dim: usize, hidden: usize, act: Activation) -> Result<Self> {
        let fc1 = Linear::load(&loader.at("fc1"), hidden, dim)?;
        Ok(Self { fc1, fc2: Linear::load(&loader.at("fc2"), dim, hidden)?, act })
    }

    /// x [B, T, D] = residual(x, fc2(act(fc1(h)))); hidden [B, T, H] is scratch.
    pub fn forward(
        &self,
        device: &Device,
        h: &Tensor,
        hidden: &mut Tensor,
        residual: Residual,
        x: &mut Tensor,
        workspace: &mut Tensor,
    ) -> Result<()> {
        self.fc1.forward(device, h, self.act, Residual::None, hidden, workspace)?;
        self.fc2.forward(device, hidden, Activation::None, residual, x, workspace)
    }
}
