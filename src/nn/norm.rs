//! Layer normalisation, alone and in front of a linear layer.

use super::linear::Linear;
use super::params::Loader;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::layernorm::{Affine, layernorm};
use crate::ops::linear::{
    Activation, ForNorm, Norm, Operands, RowNorm, STATS_CHUNK, Workspace, linear, workspace_dtype,
};
use crate::ops::{Columns, Select};
use crate::tensor::{DType, Real, Tensor};

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

/// How far the operations of a block are fused, the furthest first. The results differ by rounding alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// A layer norm folded into the product behind it, its statistics left by whoever wrote its input.
    Fused,
    /// Norm and product one behind the other.
    Separate,
    /// The same, and on a GPU attention as three launches, with its scores in memory.
    Unfused,
    /// The norm computed while the product reads its rows: on the CPU.
    Inline,
}

impl Layers {
    /// The fastest way.
    pub fn best(device: &Device) -> Self {
        match device {
            Device::Cpu(_) => Self::Inline,
            Device::Cuda(_) => Self::Fused,
        }
    }
}

/// What a layer norm and the linear layer behind it read beside the norm's input x [B, T, D].
pub enum Normed {
    /// The norm's output, [B, T, D].
    Separate(Tensor),
    /// Nothing.
    Inline,
    /// What whoever writes x leaves.
    Fused {
        /// [B, T, ceil(D / 64), 2].
        stats: Tensor,
        /// x times the norm's scale, [B, T, D], where that differs per image.
        scaled: Option<Tensor>,
    },
}

impl Normed {
    /// Buffers for `batch` images of `tokens` tokens of `dim` channels; `modulated`: the scale differs per image.
    pub fn new(
        layers: Layers,
        modulated: bool,
        device: &Device,
        dtype: DType,
        [batch, tokens, dim]: [usize; 3],
    ) -> Result<Self> {
        let zeros = || Tensor::zeros(device, dtype, &[batch, tokens, dim]);
        let stats = [batch, tokens, dim.div_ceil(STATS_CHUNK), 2];
        Ok(match layers {
            Layers::Inline => Self::Inline,
            Layers::Separate | Layers::Unfused => Self::Separate(zeros()?),
            Layers::Fused => Self::Fused {
                stats: Tensor::zeros(device, workspace_dtype(dtype), &stats)?,
                scaled: modulated.then(zeros).transpose()?,
            },
        })
    }

    /// What the layer that writes x has to leave for a norm by `scale` [.., D] per condition, or without one.
    pub fn wanted<'a>(&'a mut self, scale: Option<&'a Tensor>) -> Option<ForNorm<'a>> {
        let Self::Fused { stats, scaled } = self else { return None };
        Some(ForNorm { stats, scaled: scale.map(Columns::PerImage).zip(scaled.as_mut()) })
    }
}

/// A linear layer behind a layer norm.
pub struct NormLinear {
    /// The norm's learned weight and bias, where it has them, are folded into it.
    linear: Linear,
    /// Sum over k of each row of the weight, `[N]`; of a norm that is modulated per image [`Modulated`] has them.
    sums: Option<Tensor>,
    eps: f64,
}

/// What adaLN (Peebles and Xie, arXiv 2212.09748) makes of a norm and the linear layer behind it, a row per condition.
pub struct Modulated {
    /// [R, K].
    shift: Tensor,
    /// The factor 1 + scale, [R, K].
    scale: Tensor,
    /// Where the norm is folded into the layer.
    folded: Option<Folded>,
}

/// What a modulated norm makes of the layer behind it.
struct Folded {
    /// weight . scale, [R, N].
    sums: Tensor,
    /// weight . shift + bias, [R, N].
    bias: Tensor,
}

impl Modulated {
    /// Memory for `rows` conditions of a layer of `k` inputs and `n` outputs.
    pub fn new(layers: Layers, device: &Device, dtype: DType, [rows, n, k]: [usize; 3]) -> Result<Self> {
        let zeros = |n: usize| Tensor::zeros(device, dtype, &[rows, n]);
        let folded = match layers {
            Layers::Fused => Some(Folded { sums: zeros(n)?, bias: zeros(n)? }),
            Layers::Separate | Layers::Unfused | Layers::Inline => None,
        };
        Ok(Self { shift: zeros(k)?, scale: zeros(k)?, folded })
    }

    /// The factor 1 + scale, [R, K].
    pub fn scale(&self) -> &Tensor {
        &self.scale
    }

    /// The shift, [R, K].
    pub fn shift(&self) -> &Tensor {
        &self.shift
    }

    /// Shift and factor, to be written before [`NormLinear::prepare`].
    pub fn shift_and_scale(&mut self) -> [&mut Tensor; 2] {
        [&mut self.shift, &mut self.scale]
    }
}

impl NormLinear {
    /// A layer of `k` inputs and `n` outputs behind a norm with learned weight and bias, both folded into the layer in f64.
    pub fn load(norm: &Loader, layer: &Loader, n: usize, k: usize, eps: f64) -> Result<Self> {
        let (gain, offset) = (norm.read("weight")?, norm.read("bias")?);
        let (mut weight, mut bias) = (layer.read("weight")?, widen(layer.read("bias")?));
        let (weight, sums) = if layer.dtype() == DType::F64 {
            let mut wide = widen(weight);
            let sums = fold(&mut wide, k, (&gain, &offset), &mut bias, |w| w);
            (layer.computed("weight", &[n, k], &wide)?, sums)
        } else {
            let sums = fold(&mut weight, k, (&gain, &offset), &mut bias, |w| layer.rounded(w));
            layer.check_range("weight", &weight)?;
            (layer.given_matrix(n, k, &weight)?, sums)
        };
        let linear = Linear { weight, bias: layer.computed("bias", &[n], &bias)? };
        Ok(Self { linear, sums: Some(layer.computed("weight", &[n], &sums)?), eps })
    }

    /// A layer behind a norm that [`Modulated`] scales and shifts.
    pub fn load_modulated(layer: &Loader, n: usize, k: usize, eps: f64) -> Result<Self> {
        Ok(Self { linear: Linear::load(layer, n, k)?, sums: None, eps })
    }

    /// The layer behind the norm.
    pub fn linear(&self) -> &Linear {
        &self.linear
    }

    /// What follows from shift and scale, for every condition.
    pub fn prepare(&self, device: &Device, to: &mut Modulated, workspace: &mut Workspace) -> Result<()> {
        let Some(folded) = &mut to.folded else { return Ok(()) };
        linear(device, Operands::new(&to.scale, &self.linear.weight), &mut folded.sums, None, workspace)?;
        linear(device, self.linear.on(&to.shift), &mut folded.bias, None, workspace)
    }

    /// y [B, T, N] = act(norm(x) weight^T + bias), with what whoever wrote x [B, T, K] left in `normed`. `modulated` comes
    /// with the conditions that the images have.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        device: &Device,
        x: &Tensor,
        normed: &mut Normed,
        modulated: Option<(&Modulated, Select)>,
        act: Activation,
        y: &mut Tensor,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let affine = modulated.map_or(Affine::None, |(m, select)| Affine::Modulated {
            shift: Columns::PerImage(&m.shift),
            scale: Columns::PerImage(&m.scale),
            select: Some(select),
        });
        let operands = match normed {
            Normed::Separate(h) => {
                layernorm(device, x, affine, self.eps, h)?;
                self.linear.on(h)
            }
            Normed::Inline => Operands { row_norm: Some(RowNorm { affine, eps: self.eps }), ..self.linear.on(x) },
            Normed::Fused { stats, scaled } => {
                let norm = |sums| Some(Norm { stats: &*stats, sums, eps: self.eps });
                match (modulated, &self.sums, scaled) {
                    (None, Some(sums), _) => Operands { norm: norm(Columns::Shared(sums)), ..self.linear.on(x) },
                    (Some((Modulated { folded: Some(folded), .. }, select)), _, Some(z)) => Operands {
                        norm: norm(Columns::PerImage(&folded.sums)),
                        bias: Some(Columns::PerImage(&folded.bias)),
                        select: Some(select),
                        ..self.linear.on(z)
                    },
                    _ => return Err(Error::Runtime("activations or conditions of other layers".into())),
                }
            }
        };
        linear(device, Operands { act, ..operands }, y, None, workspace)
    }
}

fn widen(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

/// weight [N, K] *= gain, column by column; bias += the former weight . offset. Returns the sums of the rows of the weight
/// as it is multiplied with, so that a row's mean drops out of its products.
fn fold<T: Real>(
    weight: &mut [T],
    k: usize,
    (gain, offset): (&[f32], &[f32]),
    bias: &mut [f64],
    rounded: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let rows = weight.chunks_exact_mut(k).zip(bias);
    rows.map(|(row, bias)| {
        let (mut shift, mut sum) = (0.0, 0.0);
        for ((w, &g), &o) in row.iter_mut().zip(gain).zip(offset) {
            shift += w.to_f64() * o as f64;
            *w = T::from_f64(w.to_f64() * g as f64);
            sum += rounded(w.to_f64());
        }
        *bias += shift;
        sum
    })
    .collect()
}
