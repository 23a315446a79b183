//! Layer normalisation over the last dimension (Ba, Kiros and Hinton, arXiv 1607.06450), with a learned affine map or
//! modulated per image as in adaLN (Peebles and Xie, arXiv 2212.09748).

use std::borrow::Cow;

use rayon::prelude::*;

use super::reduce::sum_of;
use super::simd::vectorized;
use super::{Columns, Select, condition_rows, expect, moves, round_on, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::Result;
use crate::tensor::{DType, Real, Tensor};

spec! {
    /// Geometry of `layernorm_fwd_*` and `layernorm_modulated_fwd_*`.
    LayerNormSpec { rows: i32, dim: i32, rows_per_image: i32, conditions: i32, mod_stride: i32, eps: f32 }
}
pub(super) const LAYOUT: super::SpecLayout = LayerNormSpec::LAYOUT;

/// What follows the normalisation.
#[derive(Clone, Copy)]
pub enum Affine<'a> {
    /// Nothing: y = n.
    None,
    /// y = n * weight + bias, both `[D]`.
    Learned(&'a Tensor, &'a Tensor),
    /// y = n * scale + shift. The scale is the whole factor: adaLN's 1 is in it.
    Modulated {
        /// Added last.
        shift: Columns<'a>,
        /// The factor.
        scale: Columns<'a>,
        /// Which rows of shift and scale the images take; `None`: image b takes row b.
        select: Option<Select<'a>>,
    },
}

impl Affine<'_> {
    /// Refuses what does not fit `images` images of rows of `dim` numbers.
    pub(super) fn check(&self, dtype: DType, images: usize, dim: usize) -> Result<()> {
        match *self {
            Self::None => Ok(()),
            Self::Learned(weight, bias) => {
                expect("layernorm weight", weight, dtype, &[dim])?;
                expect("layernorm bias", bias, dtype, &[dim])
            }
            Self::Modulated { shift, scale, select } => {
                if let Some(select) = select {
                    select.check(images)?;
                }
                shift.check("layernorm shift", dtype, select, images, dim)?;
                scale.check("layernorm scale", dtype, select, images, dim)?;
                expect("layernorm scale", scale.tensor(), dtype, shift.tensor().shape())
            }
        }
    }
}

/// y [B, T, D] = affine((x - mean) / sqrt(var + eps)), statistics over D in f32.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn layernorm(device: &Device, x: &Tensor, affine: Affine, eps: f64, y: &mut Tensor) -> Result<()> {
    let (images, dim, dtype) = (x.dim(0), x.last_dim(), x.dtype());
    expect("layernorm output", y, dtype, x.shape())?;
    affine.check(dtype, images, dim)?;
    match device {
        Device::Cpu(device) => {
            with_real!(y.dtype(), T => cpu::<T>(x, affine, eps, y))?;
            round_on(device, y)
        }
        Device::Cuda(cuda) => launch(cuda, x, affine, eps, y),
    }
}

fn cpu<T: Real>(x: &Tensor, affine: Affine, eps: f64, y: &mut Tensor) -> Result<()> {
    let (norm, dim) = (RowNormaliser::<T>::new(x, affine, eps, None)?, x.last_dim());
    let rows = y.host_mut::<T>()?.par_chunks_mut(dim).zip(x.host::<T>()?.par_chunks(dim)).enumerate();
    rows.with_min_len(8).for_each(|(row, (y, x))| norm.apply(row, x, y));
    Ok(())
}

/// The norm of the rows of one tensor, on the CPU.
pub(super) struct RowNormaliser<'a, T: Clone> {
    /// Factor and addend.
    mul: Cow<'a, [T]>,
    add: Cow<'a, [T]>,
    /// Elements from one condition's to the next.
    stride: usize,
    /// Of each image.
    conditions: Vec<usize>,
    rows_per_image: usize,
    eps: T,
    rounded_to: Option<DType>,
}

impl<'a, T: Real> RowNormaliser<'a, T> {
    /// For the rows of x [B, .., D]; results are rounded to the type that is given.
    pub(super) fn new(x: &Tensor, affine: Affine<'a>, eps: f64, rounded_to: Option<DType>) -> Result<Self> {
        let (images, dim) = (x.dim(0), x.last_dim());
        let (mul, add, stride, select, rows) = match affine {
            Affine::None => (vec![T::from_f64(1.0); dim].into(), vec![T::default(); dim].into(), 0, None, usize::MAX),
            Affine::Learned(weight, bias) => {
                (weight.host::<T>()?.into(), bias.host::<T>()?.into(), 0, None, usize::MAX)
            }
            Affine::Modulated { shift, scale, select } => {
                let (mul, add) = (scale.tensor().host::<T>()?, shift.tensor().host::<T>()?);
                (mul.into(), add.into(), scale.stride(), select, scale.rows())
            }
        };
        let conditions = condition_rows(select, images, rows)?;
        let rows_per_image = x.len() / (images * dim).max(1);
        Ok(Self { mul, add, stride, conditions, rows_per_image, eps: T::from_f64(eps), rounded_to })
    }

    /// y = the norm of x, row `row`.
    #[inline]
    pub(super) fn apply(&self, row: usize, x: &[T], y: &mut [T]) {
        let at = self.conditions[row / self.rows_per_image] * self.stride;
        normalise(y, x, &self.mul[at..][..x.len()], &self.add[at..][..x.len()], self.eps);
        if let Some(dtype) = self.rounded_to {
            y.iter_mut().for_each(|y| *y = T::from_f64(dtype.round(y.to_f64() as f32).into()));
        }
    }
}

vectorized! {
    /// y = (x - mean) / sqrt(var + eps) * mul + add, over one row.
    fn normalise(y: &mut [T], x: &[T], mul: &[T], add: &[T], eps: T) {
        let n = T::from_f64(x.len() as f64);
        let mean = sum_of(x, |v| v) / n;
        let var = sum_of(x, |v| (v - mean) * (v - mean)) / n;
        let inv = T::from_f64(1.0) / (var + eps).sqrt();
        for (((y, &x), &mul), &add) in y.iter_mut().zip(x).zip(mul).zip(add) {
            *y = ((x - mean) * inv).mul_add(mul, add);
        }
    }
}

fn launch(cuda: &Cuda, x: &Tensor, affine: Affine, eps: f64, y: &mut Tensor) -> Result<()> {
    let dim = x.last_dim();
    let rows = x.len() / dim;
    let spec = |mod_stride: usize, conditions: usize| {
        Ok(LayerNormSpec {
            rows: to_i32(rows)?,
            dim: to_i32(dim)?,
            rows_per_image: to_i32(rows / x.dim(0))?,
            conditions: to_i32(conditions)?,
            mod_stride: to_i32(mod_stride)?,
            eps: eps as f32,
        })
    };
    let (x_address, y_address) = (x.address(0)?, y.address(0)?);
    let (name, pointers, spec, affine_bytes) = match affine {
        Affine::None => ("layernorm_fwd", vec![x_address, 0, 0, y_address], spec(0, 0)?, 0),
        Affine::Learned(weight, bias) => {
            let pointers = vec![x_address, weight.address(0)?, bias.address(0)?, y_address];
            ("layernorm_fwd", pointers, spec(0, 0)?, weight.bytes() + bias.bytes())
        }
        Affine::Modulated { shift, scale, select } => {
            let (shift_address, scale_address) = (shift.tensor().address(0)?, scale.tensor().address(0)?);
            let (counter, picked, conditions) = match select {
                Some(s) => (s.counter.address(0)?, s.rows.address(0)?, s.conditions),
                None => (0, 0, 0),
            };
            let pointers = vec![x_address, shift_address, scale_address, counter, picked, y_address];
            let bytes = shift.bytes(x.dim(0), dim) + scale.bytes(x.dim(0), dim);
            ("layernorm_modulated_fwd", pointers, spec(scale.stride(), conditions)?, bytes)
        }
    };
    cuda.launch(&Launch {
        module: "layernorm",
        kernel: format!("{name}_{}", y.dtype()),
        grid: [to_u32(rows.div_ceil(4))?, 1, 1],
        threads: 128,
        shared_bytes: 0,
        pointers: &pointers,
        spec: bytemuck::bytes_of(&spec),
        work: moves(x.bytes() + affine_bytes + y.bytes()),
        ..Launch::default()
    })
}
