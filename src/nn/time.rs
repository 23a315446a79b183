//! Time embedding: sines and cosines through two linear layers with SiLU between.

use super::linear::Linear;
use super::params::{Loader, ParamSpec, linear_specs};
use crate::device::Device;
use crate::error::Result;
use crate::ops::embed::{Sinusoid, time_embedding};
use crate::ops::linear::{Activation, Residual};
use crate::tensor::{DType, Tensor};

/// The two layers, called `0` and `2` below the loader's path as in a PyTorch `Sequential`.
pub struct TimeMlp {
    first: Linear,
    second: Linear,
}

/// Activations of [`TimeMlp`] for B images.
pub struct TimeActs {
    sinusoid: Tensor,
    hidden: Tensor,
    /// [B, D].
    pub out: Tensor,
}

impl TimeActs {
    /// Buffers for `batch` images, sinusoids of length `freq`, and D = `dim`.
    pub fn new(device: &Device, dtype: DType, batch: usize, freq: usize, dim: usize) -> Result<Self> {
        let zeros = |n| Tensor::zeros(device, dtype, &[batch, n]);
        Ok(Self { sinusoid: zeros(freq)?, hidden: zeros(dim)?, out: zeros(dim)? })
    }
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

    /// `acts.out` [B, D] from row `counter` of the table of sinusoids [E, F].
    pub fn forward(
        &self,
        device: &Device,
        table: &Tensor,
        counter: &Tensor,
        acts: &mut TimeActs,
        workspace: &mut Tensor,
    ) -> Result<()> {
        time_embedding(device, table, counter, &mut acts.sinusoid)?;
        let TimeActs { sinusoid, hidden, out } = acts;
        self.first.forward(device, sinusoid, Activation::Silu, Residual::None, hidden, workspace)?;
        self.second.forward(device, hidden, Activation::None, Residual::None, out, workspace)
    }

    /// Elements of workspace for `batch` images.
    pub fn workspace_len(&self, device: &Device, batch: usize) -> usize {
        self.first.workspace_len(device, batch, 1).max(self.second.workspace_len(device, batch, 1))
    }
}

/// The sinusoids of `times` as a table [E, F]: f32, or f64 for an f64 model. Computed in f64.
///
/// # Errors
/// The device's, if it has no room.
pub fn sinusoid_table(device: &Device, model_dtype: DType, sinusoid: &Sinusoid, times: &[f64]) -> Result<Tensor> {
    let dtype = if model_dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let rows: Vec<f64> = times.iter().flat_map(|&t| sinusoid.embed(t)).collect();
    Tensor::from_f64(device, dtype, &[times.len(), sinusoid.dim], &rows)
}
