//! The mean squared error and its gradient. Both write with `=`.

use rayon::prelude::*;

use super::reduce::lanes;
use super::simd::vectorized;
use super::{SpecLayout, expect, launch_elementwise, moves, round, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::Launch;
use crate::error::Result;
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `mse_fwd_*`, `mse_mean_fwd` and `mse_bwd_*`.
    MseSpec { images: i32, per_image: i32 }
}
pub(super) const LAYOUT: SpecLayout = MseSpec::LAYOUT;

impl MseSpec {
    fn new(prediction: &Tensor) -> Result<Self> {
        let images = prediction.dim(0);
        Ok(Self { images: to_i32(images)?, per_image: to_i32(prediction.len() / images)? })
    }
}

/// per_image `[B]` = the mean of (prediction - target)^2 over each image of prediction [B, ..], and loss `[1]` their mean.
/// target, per_image and loss are of the wide type.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit, or there is nothing to take the mean of.
pub fn mse(
    device: &Device,
    prediction: &Tensor,
    target: &Tensor,
    per_image: &mut Tensor,
    loss: &mut Tensor,
) -> Result<()> {
    let (images, wide) = (prediction.dim(0), prediction.dtype().wide());
    check(prediction, target)?;
    expect("losses per image", per_image, wide, &[images])?;
    expect("loss", loss, wide, &[1])?;
    match device {
        Device::Cpu(_) => {
            with_real!(prediction.dtype(), T => {
                let len = prediction.len() / images;
                let pairs = prediction.host::<T>()?.par_chunks(len).zip(target.host::<T>()?.par_chunks(len));
                let per_image = per_image.host_mut::<T>()?;
                per_image.par_iter_mut().zip(pairs).for_each(|(to, (p, t))| squares(std::slice::from_mut(to), p, t));
                loss.host_mut::<T>()?[0] = per_image.iter().copied().sum::<T>() / T::from_f64(images as f64);
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let spec = MseSpec::new(prediction)?;
            let (per_image_address, dtype) = (per_image.address(0)?, prediction.dtype());
            let bytes = prediction.bytes() + target.bytes();
            let launch = |kernel: String, blocks: usize, pointers: &[u64], bytes: usize| {
                cuda.launch(&Launch {
                    module: "loss",
                    kernel,
                    grid: [to_u32(blocks)?, 1, 1],
                    threads: 256,
                    pointers,
                    spec: bytemuck::bytes_of(&spec),
                    work: moves(bytes),
                    ..Launch::default()
                })
            };
            let pointers = [prediction.address(0)?, target.address(0)?, per_image_address];
            launch(format!("mse_fwd_{dtype}"), images, &pointers, bytes)?;
            launch("mse_mean_fwd".into(), 1, &[per_image_address, loss.address(0)?], per_image.bytes())
        }
    }
}

/// dprediction [B, ..] = scale * d loss / d prediction = scale * 2 (prediction - target) / elements. `scale` `[1]` (wide
/// type) is on the device, so that captured work follows it: the loss scale over the number of micro-batches.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn mse_backward(
    device: &Device,
    prediction: &Tensor,
    target: &Tensor,
    scale: &Tensor,
    dprediction: &mut Tensor,
) -> Result<()> {
    let dtype = prediction.dtype();
    check(prediction, target)?;
    expect("loss scale", scale, dtype.wide(), &[1])?;
    expect("gradient of the prediction", dprediction, dtype, prediction.shape())?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let factor = scale.host::<T>()?[0] * T::from_f64(2.0) / T::from_f64(prediction.len() as f64);
                let pairs = prediction.host::<T>()?.par_iter().zip(target.host::<T>()?);
                let to = dprediction.host_mut::<T>()?.par_iter_mut().zip(pairs).with_min_len(4096);
                to.for_each(|(to, (&p, &t))| *to = factor * (p - t));
            });
            round(dprediction)
        }
        Device::Cuda(cuda) => {
            let spec = MseSpec::new(prediction)?;
            let pointers = [prediction.address(0)?, target.address(0)?, scale.address(0)?, dprediction.address(0)?];
            let (kernel, bytes) = (format!("mse_bwd_{dtype}"), 2 * prediction.bytes() + target.bytes());
            launch_elementwise(cuda, ("loss", kernel), prediction.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

fn check(prediction: &Tensor, target: &Tensor) -> Result<()> {
    expect("target", target, prediction.dtype().wide(), prediction.shape())?;
    if prediction.is_empty() {
        return Err(super::shape_error("prediction", prediction.shape(), &[1]));
    }
    Ok(())
}

vectorized! {
    /// to[0] = the mean of (p - t)^2.
    fn squares(to: &mut [T], p: &[T], t: &[T]) {
        let t = &t[..p.len()];
        let step = |acc: T, [p, t]: [T; 2]| (p - t).mul_add(p - t, acc);
        to[0] = lanes([p, t], T::default(), step, |a, b| a + b) / T::from_f64(p.len() as f64);
    }
}
