//! Images with channels first [B, C, H, W], as files and samplers have them, to channels last [B, H, W, C], as convolutions
//! read them, and back; and the backward of both. All write (`=`).

use rayon::prelude::*;

use super::{SpecLayout, expect, launch_elementwise, round, shape_error, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

spec! {
    /// Geometry of `channels_last_*` and `channels_first_*`.
    LayoutSpec { batch: i32, x_batch: i32, channels: i32, pixels: i32 }
}
pub(super) const LAYOUT: SpecLayout = LayoutSpec::LAYOUT;

/// y [B, H, W, C] = x [X, C, H, W] of the wide type; B is a multiple of X, and image b takes image b mod X: the two halves of
/// classifier-free guidance see the same x.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn channels_last(device: &Device, x: &Tensor, y: &mut Tensor) -> Result<()> {
    to_last(device, "channels_last_fwd", y.dtype().wide(), x, y)
}

/// v [B, C, H, W] = y [B, H, W, C].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn channels_first(device: &Device, y: &Tensor, v: &mut Tensor) -> Result<()> {
    to_first(device, "channels_first_fwd", y.dtype(), y, v)
}

/// Backward of [`channels_last`] without repeated images: dx [B, C, H, W] of the wide type from dy [B, H, W, C].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn channels_last_backward(device: &Device, dy: &Tensor, dx: &mut Tensor) -> Result<()> {
    to_first(device, "channels_last_bwd", dy.dtype().wide(), dy, dx)
}

/// Backward of [`channels_first`]: dy [B, H, W, C] from dv [B, C, H, W].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn channels_first_backward(device: &Device, dv: &Tensor, dy: &mut Tensor) -> Result<()> {
    to_last(device, "channels_first_bwd", dy.dtype(), dv, dy)
}

/// `first` of that type to `last`.
fn to_last(device: &Device, kernel: &str, dtype: DType, first: &Tensor, last: &mut Tensor) -> Result<()> {
    let [images, height, width, c] = four(last)?;
    let given = first.dim(0);
    expect("images with channels first", first, dtype, &[given, c, height, width])?;
    if given == 0 || !images.is_multiple_of(given) {
        return Err(shape_error("images with channels first", first.shape(), &[images, c, height, width]));
    }
    let pixels = height * width;
    match device {
        Device::Cpu(_) => {
            with_real!(last.dtype(), T => {
                let from = first.host::<T>()?;
                last.host_mut::<T>()?.par_chunks_mut(pixels * c).enumerate().for_each(|(image, to)| {
                    transpose(&from[image % given * pixels * c..][..pixels * c], pixels, to);
                });
            });
            round(last)
        }
        Device::Cuda(cuda) => {
            let spec = LayoutSpec {
                batch: to_i32(images)?,
                x_batch: to_i32(given)?,
                channels: to_i32(c)?,
                pixels: to_i32(pixels)?,
            };
            let (pointers, bytes) = ([first.address(0)?, last.address(0)?], first.bytes() + last.bytes());
            let kernel = ("layout", format!("{kernel}_{}", last.dtype()));
            launch_elementwise(cuda, kernel, last.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// `last` to `first` of that type.
fn to_first(device: &Device, kernel: &str, dtype: DType, last: &Tensor, first: &mut Tensor) -> Result<()> {
    let [images, height, width, c] = four(last)?;
    expect("images with channels first", first, dtype, &[images, c, height, width])?;
    let pixels = height * width;
    match device {
        Device::Cpu(_) => {
            with_real!(last.dtype(), T => {
                let images = first.host_mut::<T>()?.par_chunks_mut(pixels * c).zip(last.host::<T>()?.par_chunks(pixels * c));
                images.for_each(|(to, from)| transpose(from, c, to));
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let (batch, channels, pixels) = (to_i32(images)?, to_i32(c)?, to_i32(pixels)?);
            let spec = LayoutSpec { batch, x_batch: batch, channels, pixels };
            let (pointers, bytes) = ([last.address(0)?, first.address(0)?], first.bytes() + last.bytes());
            let kernel = ("layout", format!("{kernel}_{}", last.dtype()));
            launch_elementwise(cuda, kernel, last.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

fn four(last: &Tensor) -> Result<[usize; 4]> {
    match *last.shape() {
        [images, height, width, c] if !last.is_empty() => Ok([images, height, width, c]),
        _ => Err(Error::Runtime(format!("images [B, H, W, C] expected, {:?} found", last.shape()))),
    }
}

/// to [columns, rows] = from [rows, columns].
fn transpose<T: Real>(from: &[T], columns: usize, to: &mut [T]) {
    let rows = from.len() / columns;
    for (col, to) in to.chunks_exact_mut(rows).enumerate() {
        to.iter_mut().zip(from[col..].iter().step_by(columns)).for_each(|(to, &from)| *to = from);
    }
}
