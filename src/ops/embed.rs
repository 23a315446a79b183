//! Time and label embeddings for all evaluations at once, and class tokens put before or taken from token sequences.

use super::linear::silu;
use super::{SpecLayout, expect, launch_elementwise, round, shape_error, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

spec! {
    /// Geometry of `label_embed_fwd_*`.
    LabelEmbedSpec { evaluations: i32, labels: i32, dim: i32 }
}
spec! {
    /// Geometry of `prepend_token_fwd_*` and `take_token_fwd_*`.
    TokensSpec { batch: i32, tokens: i32, dim: i32 }
}
pub(super) const LAYOUTS: [SpecLayout; 2] = [LabelEmbedSpec::LAYOUT, TokensSpec::LAYOUT];

/// How a model turns a time into a vector of sines and cosines (Vaswani et al., arXiv 1706.03762).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sinusoid {
    /// Length of the vector; half sines, half cosines.
    pub dim: usize,
    /// Cosines first (DiT) or sines first.
    pub cos_first: bool,
    /// Longest period.
    pub max_period: f64,
    /// 0: exponents i / half (DiT); 1: i / (half - 1) (diffusers, and the ViT of the lensing notebooks).
    pub half_shift: f64,
    /// Factor on the time.
    pub scale: f64,
}

impl Sinusoid {
    /// The embedding of `t`, in f64: the argument is large, so f32 would lose five digits.
    pub fn embed(&self, t: f64) -> Vec<f64> {
        let half = self.dim / 2;
        let angle = |i: usize| {
            let exponent = i as f64 / (half as f64 - self.half_shift);
            self.scale * t * (-self.max_period.ln() * exponent).exp()
        };
        let sines = (0..half).map(|i| angle(i).sin());
        let cosines = (0..half).map(|i| angle(i).cos());
        if self.cos_first { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() }
    }
}

/// Row e L + l of c [E L, D] = silu(row e of time [E, D] + row `labels`\[l\] of the table [classes + 1, D]): what adaLN
/// layers take, for every evaluation and each of the L labels in use. The caller checked the labels.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn label_embedding(device: &Device, time: &Tensor, table: &Tensor, labels: &Tensor, c: &mut Tensor) -> Result<()> {
    let (evaluations, dim, count) = (time.dim(0), time.last_dim(), labels.len());
    let dtype = c.dtype();
    expect("label embedding", c, dtype, &[evaluations * count, dim])?;
    expect("time embedding", time, dtype, &[evaluations, dim])?;
    expect("label table", table, dtype, &[table.dim(0), dim])?;
    expect("labels", labels, DType::U32, &[count])?;
    match device {
        Device::Cpu(_) => {
            let labels = labels.host_u32()?;
            with_real!(c.dtype(), T => {
                let (time, table) = (time.host::<T>()?, table.host::<T>()?);
                for (row, c) in c.host_mut::<T>()?.chunks_mut(dim).enumerate() {
                    let time = &time[row / count * dim..][..dim];
                    let label = &table[labels[row % count] as usize * dim..][..dim];
                    for ((c, &t), &l) in c.iter_mut().zip(time).zip(label) {
                        *c = silu(t + l);
                    }
                }
            });
            round(c)
        }
        Device::Cuda(cuda) => {
            let spec = LabelEmbedSpec { evaluations: to_i32(evaluations)?, labels: to_i32(count)?, dim: to_i32(dim)? };
            let pointers = [time.address(0)?, table.address(0)?, labels.address(0)?, c.address(0)?];
            let kernel = format!("label_embed_fwd_{}", c.dtype());
            let used = count.min(table.dim(0)) * dim * dtype.size();
            let bytes = time.bytes() + used + labels.bytes() + c.bytes();
            launch_elementwise(cuda, ("embed", kernel), c.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// y [B, T + 1, D]: first the class token `[D]` plus its position, then the tokens x [B, T, D] (positions already
/// added).
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn prepend_token(device: &Device, first: &Tensor, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let &[batch, tokens, dim] = x.shape() else { return Err(shape_error("prepend_token", x.shape(), &[0, 0, 0])) };
    expect("class token", first, x.dtype(), &[dim])?;
    expect("prepend_token output", y, x.dtype(), &[batch, tokens + 1, dim])?;
    match device {
        Device::Cpu(_) => {
            with_real!(y.dtype(), T => {
                let (first, x) = (first.host::<T>()?, x.host::<T>()?);
                for (y, x) in y.host_mut::<T>()?.chunks_mut((tokens + 1) * dim).zip(x.chunks(tokens * dim)) {
                    y[..dim].copy_from_slice(first);
                    y[dim..].copy_from_slice(x);
                }
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let spec = TokensSpec { batch: to_i32(batch)?, tokens: to_i32(tokens)?, dim: to_i32(dim)? };
            let pointers = [first.address(0)?, x.address(0)?, y.address(0)?];
            let kernel = format!("prepend_token_fwd_{}", y.dtype());
            let bytes = first.bytes() + x.bytes() + y.bytes();
            launch_elementwise(cuda, ("embed", kernel), y.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// y [B, D] = token 0 of each image of x [B, T, D].
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn take_token(device: &Device, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let &[batch, tokens, dim] = x.shape() else { return Err(shape_error("take_token", x.shape(), &[0, 0, 0])) };
    expect("take_token output", y, x.dtype(), &[batch, dim])?;
    match device {
        Device::Cpu(_) => {
            with_real!(y.dtype(), T => {
                let x = x.host::<T>()?;
                for (y, x) in y.host_mut::<T>()?.chunks_mut(dim).zip(x.chunks(tokens * dim)) {
                    y.copy_from_slice(&x[..dim]);
                }
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let spec = TokensSpec { batch: to_i32(batch)?, tokens: to_i32(tokens)?, dim: to_i32(dim)? };
            let pointers = [x.address(0)?, y.address(0)?];
            let kernel = format!("take_token_fwd_{}", y.dtype());
            let bytes = 2 * y.bytes();
            launch_elementwise(cuda, ("embed", kernel), y.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}
