//! Backward of layer normalisation, from its input: mean and deviation of a row are computed again.
//!
//! With n = (x - mean) / sqrt(var + eps), y = n * factor + addend and g = dy * factor:
//! dx = (g - mean(g) - n mean(g n)) / sqrt(var + eps); dfactor sums dy n, daddend sums dy.

use rayon::prelude::*;

use super::sums::{accumulate, add_planes, wanted};
use crate::device::Device;
use crate::device::cpu::Cpu;
use crate::device::cuda::{Cuda, Launch};
use crate::error::Result;
use crate::ops::reduce::{lanes, sum_of};
use crate::ops::simd::vectorized;
use crate::ops::{SpecLayout, expect, moves, round_on, spec, to_i32, to_u32, with_real};
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `layernorm_bwd_*` and `layernorm_affine_bwd_*`.
    LayerNormBackwardSpec { rows: i32, dim: i32, rows_per_image: i32, factor_stride: i32, eps: f32 }
}
pub(in crate::ops) const LAYOUT: SpecLayout = LayerNormBackwardSpec::LAYOUT;

/// What followed the normalisation, and where its gradients go.
pub enum AffineBackward<'a> {
    /// Nothing.
    None,
    /// A learned map.
    Learned {
        /// The factor, `[D]`.
        weight: &'a Tensor,
        /// `[D]`, wide, `+=`.
        dweight: &'a mut Tensor,
        /// `[D]`, wide, `+=`.
        dbias: &'a mut Tensor,
    },
    /// adaLN: a factor and an addend per image.
    Modulated {
        /// The whole factor, [B, D].
        scale: &'a Tensor,
        /// [B, D], `=`.
        dshift: &'a mut Tensor,
        /// [B, D], `=`.
        dscale: &'a mut Tensor,
    },
}

/// Elements of the scratch that [`layernorm_backward`] takes for x [images, rows, dim].
pub fn scratch_len(images: usize, rows: usize, dim: usize) -> usize {
    2 * images * (rows + dim)
}

/// dx [B, .., D] = beside + the gradient of x through the norm, and the gradients of the affine map. `beside` is what
/// reaches x past the norm: the residual stream's gradient. `scratch` is of the wide type, of at least [`scratch_len`].
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
#[allow(clippy::too_many_arguments)]
pub fn layernorm_backward(
    device: &Device,
    x: &Tensor,
    affine: AffineBackward,
    eps: f64,
    dy: &Tensor,
    beside: Option<&Tensor>,
    dx: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let (images, dim, dtype) = (x.dim(0), x.last_dim(), x.dtype());
    for (what, t) in [("dy", Some(dy)), ("dx", Some(&*dx)), ("gradient beside", beside)] {
        t.map_or(Ok(()), |t| expect(&format!("layernorm {what}"), t, dtype, x.shape()))?;
    }
    match &affine {
        AffineBackward::None => {}
        AffineBackward::Learned { weight, dweight, dbias } => {
            expect("layernorm weight", weight, dtype, &[dim])?;
            expect("layernorm dweight", dweight, dtype.wide(), &[dim])?;
            expect("layernorm dbias", dbias, dtype.wide(), &[dim])?;
        }
        AffineBackward::Modulated { scale, dshift, dscale } => {
            for (what, t) in [("scale", *scale), ("dshift", &**dshift), ("dscale", &**dscale)] {
                expect(&format!("layernorm {what}"), t, dtype, &[images, dim])?;
            }
        }
    }
    if x.is_empty() {
        return Ok(());
    }
    wanted(scratch, scratch_len(images, x.len() / (images * dim), dim), x)?;
    match device {
        Device::Cpu(device) => with_real!(dtype, T => cpu::<T>(device, x, affine, eps, dy, beside, dx, scratch)),
        Device::Cuda(cuda) => launch(cuda, x, affine, eps, dy, beside, dx, scratch),
    }
}

#[allow(clippy::too_many_arguments)]
fn cpu<T: Real>(
    device: &Cpu,
    x: &Tensor,
    affine: AffineBackward,
    eps: f64,
    dy: &Tensor,
    beside: Option<&Tensor>,
    dx: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let (images, dim) = (x.dim(0), x.last_dim());
    let per_image = x.len() / images;
    let ones = vec![T::from_f64(1.0); dim];
    let (factor, stride) = match &affine {
        AffineBackward::None => (&ones[..], 0),
        AffineBackward::Learned { weight, .. } => (weight.host::<T>()?, 0),
        AffineBackward::Modulated { scale, .. } => (scale.host::<T>()?, dim),
    };
    let (x, dy) = (x.host::<T>()?, dy.host::<T>()?);
    let beside = beside.map(Tensor::host::<T>).transpose()?;
    // Of each image the gradients of addend and factor.
    let sums = &mut scratch.host_mut::<T>()?[..2 * images * dim];
    let tasks = dx.host_mut::<T>()?.par_chunks_mut(per_image).zip(sums.par_chunks_mut(2 * dim)).enumerate();
    tasks.for_each(|(image, (dx, sums))| {
        sums.fill(T::default());
        let mul = &factor[image * stride..][..dim];
        for (row, dx) in dx.chunks_exact_mut(dim).enumerate() {
            let at = image * per_image + row * dim;
            let beside = beside.map(|b| &b[at..][..dim]);
            differentiate(dx, &x[at..][..dim], &dy[at..][..dim], mul, beside, sums, T::from_f64(eps));
        }
    });
    round_on(device, dx)?;
    match affine {
        AffineBackward::None => Ok(()),
        AffineBackward::Learned { dweight, dbias, .. } => {
            let (dweight, dbias) = (dweight.host_mut::<T>()?, dbias.host_mut::<T>()?);
            for sums in sums.chunks_exact(2 * dim) {
                accumulate(dbias, &sums[..dim]);
                accumulate(dweight, &sums[dim..]);
            }
            Ok(())
        }
        AffineBackward::Modulated { dshift, dscale, .. } => {
            let (to_shift, to_scale) = (dshift.host_mut::<T>()?, dscale.host_mut::<T>()?);
            for (i, sums) in sums.chunks_exact(2 * dim).enumerate() {
                to_shift[i * dim..][..dim].copy_from_slice(&sums[..dim]);
                to_scale[i * dim..][..dim].copy_from_slice(&sums[dim..]);
            }
            round_on(device, dshift)?;
            round_on(device, dscale)
        }
    }
}

vectorized! {
    /// One row: dx, and what it adds to `sums`, the gradients of addend and factor.
    fn differentiate(
        dx: &mut [T], x: &[T], dy: &[T], mul: &[T], beside: Option<&[T]>, sums: &mut [T], eps: T,
    ) {
        let len = x.len();
        let (dadd, dmul) = sums.split_at_mut(len);
        let (dx, dy, mul, dmul) = (&mut dx[..len], &dy[..len], &mul[..len], &mut dmul[..len]);
        let n = T::from_f64(len as f64);
        let mean = sum_of(x, |v| v) / n;
        let var = sum_of(x, |v| (v - mean) * (v - mean)) / n;
        let inv = T::from_f64(1.0) / (var + eps).sqrt();
        let mean_g = lanes([dy, mul], T::default(), |acc, [dy, mul]| dy.mul_add(mul, acc), |a, b| a + b) / n;
        let step = |acc: T, [dy, mul, x]: [T; 3]| (dy * mul).mul_add((x - mean) * inv, acc);
        let mean_gn = lanes([dy, mul, x], T::default(), step, |a, b| a + b) / n;
        for i in 0..len {
            let normed = (x[i] - mean) * inv;
            dadd[i] += dy[i];
            dmul[i] = dy[i].mul_add(normed, dmul[i]);
            dx[i] = inv * (dy[i] * mul[i] - mean_g - normed * mean_gn);
        }
        if let Some(beside) = beside {
            dx.iter_mut().zip(beside).for_each(|(dx, &b)| *dx += b);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn launch(
    cuda: &Cuda,
    x: &Tensor,
    affine: AffineBackward,
    eps: f64,
    dy: &Tensor,
    beside: Option<&Tensor>,
    dx: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let (images, dim, dtype) = (x.dim(0), x.last_dim(), x.dtype());
    let rows = x.len() / dim;
    let (factor, factor_stride) = match &affine {
        AffineBackward::None => (0, 0),
        AffineBackward::Learned { weight, .. } => (weight.address(0)?, 0),
        AffineBackward::Modulated { scale, .. } => (scale.address(0)?, dim),
    };
    let spec = LayerNormBackwardSpec {
        rows: to_i32(rows)?,
        dim: to_i32(dim)?,
        rows_per_image: to_i32(rows / images)?,
        factor_stride: to_i32(factor_stride)?,
        eps: eps as f32,
    };
    // Mean and inverse deviation of each row; then, of each image, the gradients of addend and factor.
    let (stats, sums) = (scratch.address(0)?, scratch.address(2 * rows)?);
    let beside_address = beside.map_or(Ok(0), |t| t.address(0))?;
    let (x_address, dy_address) = (x.address(0)?, dy.address(0)?);
    cuda.launch(&Launch {
        module: "layernorm",
        kernel: format!("layernorm_bwd_{dtype}"),
        grid: [to_u32(rows.div_ceil(4))?, 1, 1],
        threads: 128,
        pointers: &[x_address, factor, dy_address, beside_address, dx.address(0)?, stats],
        spec: bytemuck::bytes_of(&spec),
        work: moves(x.bytes() * (3 + usize::from(beside.is_some()))),
        ..Launch::default()
    })?;
    let affine_gradients = |pointers: [u64; 4]| {
        cuda.launch(&Launch {
            module: "layernorm",
            kernel: format!("layernorm_affine_bwd_{dtype}"),
            grid: [to_u32(dim.div_ceil(32))?, to_u32(images)?, 1],
            threads: 256,
            pointers: &[[x_address, dy_address, stats].as_slice(), &pointers].concat(),
            spec: bytemuck::bytes_of(&spec),
            work: moves(2 * x.bytes()),
            ..Launch::default()
        })
    };
    match affine {
        AffineBackward::None => Ok(()),
        AffineBackward::Learned { dweight, dbias, .. } => {
            let dweights = scratch.address(2 * rows + images * dim)?;
            affine_gradients([sums, dweights, 0, 0])?;
            add_planes(cuda, sums, dbias, images)?;
            add_planes(cuda, dweights, dweight, images)
        }
        AffineBackward::Modulated { dshift, dscale, .. } => {
            affine_gradients([0, 0, dshift.address(0)?, dscale.address(0)?])
        }
    }
}
