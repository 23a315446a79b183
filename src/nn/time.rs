//! Time embedding: sines and cosines through two linear layers with SiLU between, for all evaluations of a run at once. The
//! same layers embed continuous parameters.

use super::linear::Linear;
use super::params::{Loader, ParamSpec, linear_specs};
use crate::device::Device;
use crate::error::Result;
use crate::ops::embed::Sinusoid;
use crate::ops::linear::{Activation, Residual};
use crate::tensor::Tensor;

/// The two layers, called `0` and `2` below the loader's path as in a PyTorch `Sequential`.
pub struct TimeMlp {
    first: Linear,
    second: Linear,
}

impl TimeMlp {
    /// Parameters below `name`.
    pub fn specs(name: &str, freq: usize, dim: usize) -> Vec<ParamSpec> {
        let mut specs = linear_specs(&format!("{name}.0"), dim, freq).to_vec();
        specs.extend(linear_specs(&format!("{name}.2"), dim, dim));
        specs
    }

    /// Reads both layers.
    pub fn load(loader: &Loader, freq: usize, dim: usize) -> Result<Self> {
        let first = Linear::load(&loader.at("0"), dim, freq)?;
        Ok(Self { first, second: Linear::load(&loader.at("2"), dim, dim)? })
    }

    /// out [E, D] = embeddings of `times`; the sinusoids are computed in f64. Allocates.
    pub fn embed(&self, device: &Device, sinusoid: &Sinusoid, times: &[f64], out: &mut Tensor) -> Result<()> {
        let dtype = out.dtype();
        let rows: Vec<f64> = times.iter().flat_map(|&t| sinusoid.embed(t)).collect();
        let x = Tensor::from_f64(device, dtype, &[times.len(), sinusoid.dim], &rows)?;
        self.forward(device, &x, out)
    }

    /// out [E, D] of the rows x [E, F]. Allocates.
    pub fn forward(&self, device: &Device, x: &Tensor, out: &mut Tensor) -> Result<()> {
        let rows = x.dim(0);
        let mut hidden = Tensor::zeros(device, out.dtype(), out.shape())?;
        let plain = Residual::None;
        let mut workspace = self.first.workspace(device, rows, 1)?;
        self.first.forward(device, x, Activation::Silu, plain, &mut hidden, &mut workspace)?;
        let mut workspace = self.second.workspace(device, rows, 1)?;
        self.second.forward(device, &hidden, Activation::None, plain, out, &mut workspace)
    }
}
