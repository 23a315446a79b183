//! The vectors that an adaLN layer makes, out of its rows and back into them; and a vector per image on every token.

use rayon::prelude::*;

use super::{SpecLayout, expect, launch_elementwise, round, shape_error, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `part_take_fwd_*`, `part_put_bwd_*` and `tokens_add_fwd_*`.
    PartsSpec { rows: i32, width: i32, offset: i32, dim: i32, one: f32 }
}
pub(super) const LAYOUT: SpecLayout = PartsSpec::LAYOUT;

/// part [B, D] = columns `offset` to `offset` + D of rows [B, N], plus `one`.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn take_part(device: &Device, rows: &Tensor, offset: usize, one: f32, part: &mut Tensor) -> Result<()> {
    let spec = geometry(rows, part, offset, one)?;
    let (width, dim, dtype) = (rows.last_dim(), part.last_dim(), part.dtype());
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let one = T::from_f64(one.into());
                let pairs = part.host_mut::<T>()?.chunks_exact_mut(dim).zip(rows.host::<T>()?.chunks_exact(width));
                for (part, row) in pairs {
                    part.iter_mut().zip(&row[offset..]).for_each(|(to, &from)| *to = from + one);
                }
            });
            round(part)
        }
        Device::Cuda(cuda) => {
            let pointers = [rows.address(0)?, part.address(0)?];
            let kernel = format!("part_take_fwd_{dtype}");
            let bytes = 2 * part.bytes();
            launch_elementwise(cuda, ("parts", kernel), part.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// Columns `offset` to `offset` + D of rows [B, N] = part [B, D]: the way back from [`take_part`].
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn put_part(device: &Device, part: &Tensor, offset: usize, rows: &mut Tensor) -> Result<()> {
    let spec = geometry(rows, part, offset, 0.0)?;
    let (width, dim, dtype) = (rows.last_dim(), part.last_dim(), part.dtype());
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let pairs = rows.host_mut::<T>()?.chunks_exact_mut(width).zip(part.host::<T>()?.chunks_exact(dim));
                pairs.for_each(|(row, part)| row[offset..][..dim].copy_from_slice(part));
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let pointers = [part.address(0)?, rows.address(0)?];
            let kernel = format!("part_put_bwd_{dtype}");
            let bytes = 2 * part.bytes();
            launch_elementwise(cuda, ("parts", kernel), part.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

fn geometry(rows: &Tensor, part: &Tensor, offset: usize, one: f32) -> Result<PartsSpec> {
    let (count, width, dim) = (rows.dim(0), rows.last_dim(), part.last_dim());
    expect("part of rows", part, rows.dtype(), &[count, dim])?;
    if offset.checked_add(dim).is_none_or(|end| end > width) || rows.len() != count * width {
        return Err(shape_error("rows of parts", rows.shape(), &[count, offset.saturating_add(dim)]));
    }
    Ok(PartsSpec { rows: to_i32(count)?, width: to_i32(width)?, offset: to_i32(offset)?, dim: to_i32(dim)?, one })
}

/// y [B, T, D] = x [B, T, D] + v [B, D]. The gradient of v is [`super::backward::sums::sum_tokens`]'s.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn add_to_tokens(device: &Device, x: &Tensor, v: &Tensor, y: &mut Tensor) -> Result<()> {
    let &[images, tokens, dim] = x.shape() else { return Err(shape_error("tokens", x.shape(), &[0, 0, 0])) };
    let dtype = x.dtype();
    expect("vector per image", v, dtype, &[images, dim])?;
    expect("tokens with a vector", y, dtype, x.shape())?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let (x, v) = (x.host::<T>()?, v.host::<T>()?);
                let rows = y.host_mut::<T>()?.par_chunks_mut(dim).zip(x.par_chunks(dim)).enumerate();
                rows.with_min_len(16).for_each(|(row, (y, x))| {
                    let v = &v[row / tokens * dim..][..dim];
                    y.iter_mut().zip(x.iter().zip(v)).for_each(|(y, (&x, &v))| *y = x + v);
                });
            });
            round(y)
        }
        Device::Cuda(cuda) => {
            let (rows, width, dim) = (to_i32(images)?, to_i32(tokens)?, to_i32(dim)?);
            let spec = PartsSpec { rows, width, offset: 0, dim, one: 0.0 };
            let pointers = [x.address(0)?, v.address(0)?, y.address(0)?];
            let kernel = format!("tokens_add_fwd_{dtype}");
            let bytes = x.bytes() + v.bytes() + y.bytes();
            launch_elementwise(cuda, ("parts", kernel), y.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}
