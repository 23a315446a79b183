//! Layer normalisation over the last dimension (Ba, Kiros and Hinton, arXiv 1607.06450), with a learned affine map or
//! modulated per image as in adaLN (Peebles and Xie, arXiv 2212.09748).

use rayon::prelude::*;

use super::reduce::sum_of;
use super::simd::vectorized;
use super::{PerImage, expect, moves, round, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::Result;
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `layernorm_fwd_*` and `layernorm_modulated_fwd_*`.
    LayerNormSpec { rows: i32, dim: i32, rows_per_image: i32, mod_stride: i32, eps: f32 }
}
pub(super) const LAYOUT: super::SpecLayout = LayerNormSpec::LAYOUT;

/// What follows the normalisation.
#[derive(Clone, Copy)]
pub enum Affine<'a> {
    /// y = n * weight + bias, both `[D]`.
    Learned(&'a Tensor, &'a Tensor),
    /// y = n * (1 + scale) + shift, per image.
    Modulated {
        /// Added last.
        shift: PerImage<'a>,
        /// One is added to it.
        scale: PerImage<'a>,
    },
}

/// y [B, T, D] = affine((x - mean) / sqrt(var + eps)), statistics over D in f32.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn layernorm(device: &Device, x: &Tensor, affine: Affine, eps: f64, y: &mut Tensor) -> Result<()> {
    let (images, dim, dtype) = (x.dim(0), x.last_dim(), x.dtype());
    expect("layernorm output", y, dtype, x.shape())?;
    match affine {
        Affine::Learned(weight, bias) => {
            expect("layernorm weight", weight, dtype, &[dim])?;
            expect("layernorm bias", bias, dtype, &[dim])?;
        }
        Affine::Modulated { shift, scale } => {
            shift.check(dtype, images, dim)?;
            scale.check(dtype, images, dim)?;
            expect("layernorm scale", scale.tensor, dtype, shift.tensor.shape())?;
        }
    }
    match device {
        Device::Cpu(_) => {
            with_real!(y.dtype(), T => cpu::<T>(x, affine, eps, y))?;
            round(y)
        }
        Device::Cuda(cuda) => launch(cuda, x, affine, eps, y),
    }
}

fn cpu<T: Real>(x: &Tensor, affine: Affine, eps: f64, y: &mut Tensor) -> Result<()> {
    let dim = x.last_dim();
    let rows_per_image = x.len() / x.dim(0) / dim;
    let one = T::from_f64(1.0);
    // (multiplier, addend) of row r, the multiplier still without the 1 of adaLN.
    let (mul, mul_at, add, add_at, plus) = match affine {
        Affine::Learned(weight, bias) => (weight.host::<T>()?, (0, 0), bias.host::<T>()?, (0, 0), T::default()),
        Affine::Modulated { shift, scale } => (
            scale.tensor.host::<T>()?,
            (scale.offset, scale.stride()),
            shift.tensor.host::<T>()?,
            (shift.offset, shift.stride()),
            one,
        ),
    };
    let x = x.host::<T>()?;
    y.host_mut::<T>()?.par_chunks_mut(dim).zip(x.par_chunks(dim)).enumerate().with_min_len(8).for_each(
        |(row, (y, x))| {
            let image = row / rows_per_image;
            let mul = &mul[mul_at.0 + image * mul_at.1..][..dim];
            let add = &add[add_at.0 + image * add_at.1..][..dim];
            normalise(y, x, mul, add, plus, T::from_f64(eps));
        },
    );
    Ok(())
}

vectorized! {
    /// y = (x - mean) / sqrt(var + eps) * (plus + mul) + add, over one row.
    fn normalise(y: &mut [T], x: &[T], mul: &[T], add: &[T], plus: T, eps: T) {
        let n = T::from_f64(x.len() as f64);
        let mean = sum_of(x, |v| v) / n;
        let var = sum_of(x, |v| (v - mean) * (v - mean)) / n;
        let inv = T::from_f64(1.0) / (var + eps).sqrt();
        for (((y, &x), &mul), &add) in y.iter_mut().zip(x).zip(mul).zip(add) {
            *y = ((x - mean) * inv).mul_add(plus + mul, add);
        }
    }
}

fn launch(cuda: &Cuda, x: &Tensor, affine: Affine, eps: f64, y: &mut Tensor) -> Result<()> {
    let dim = x.last_dim();
    let rows = x.len() / dim;
    let (name, first, second, mod_stride, affine_bytes) = match affine {
        Affine::Learned(weight, bias) => {
            ("layernorm_fwd", weight.address(0)?, bias.address(0)?, 0, weight.bytes() + bias.bytes())
        }
        Affine::Modulated { shift, scale } => (
            "layernorm_modulated_fwd",
            shift.tensor.address(shift.offset)?,
            scale.tensor.address(scale.offset)?,
            shift.stride(),
            2 * shift.bytes(x.dim(0), dim),
        ),
    };
    let spec = LayerNormSpec {
        rows: to_i32(rows)?,
        dim: to_i32(dim)?,
        rows_per_image: to_i32(rows / x.dim(0))?,
        mod_stride: to_i32(mod_stride)?,
        eps: eps as f32,
    };
    cuda.launch(&Launch {
        module: "layernorm",
        kernel: format!("{name}_{}", y.dtype()),
        grid: [to_u32(rows.div_ceil(4))?, 1, 1],
        threads: 128,
        shared_bytes: 0,
        pointers: &[x.address(0)?, first, second, y.address(0)?],
        spec: bytemuck::bytes_of(&spec),
        work: moves(x.bytes() + affine_bytes + y.bytes()),
    })
}
