//! Latents of a variational auto-encoder (Kingma and Welling, arXiv 1312.6114): drawn from the mean and the variance that an
//! encoder gives, and their divergence from the standard normal; and the backward of both. All write (`=`). On the CPU alone.

use rayon::prelude::*;

use super::{expect, round, with_real};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{Real, Tensor};

/// The logarithm of a variance is clamped to this range, as diffusers does.
const LOG_VARIANCE: [f64; 2] = [-30.0, 20.0];

/// z [B, h, w, Z] = mean + exp(logvar / 2) noise, and kl `[B]`, the mean of (mean^2 + exp(logvar) - 1 - logvar) / 2 over an
/// image's latents. moments [B, h, w, 2 Z]: of each pixel Z means, then Z logvars, clamped to -30 .. 20. noise [B, h, w, Z] and
/// kl are of the wide type.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit; [`Error::Usage`] on a GPU.
pub fn draw_latents(device: &Device, moments: &Tensor, noise: &Tensor, z: &mut Tensor, kl: &mut Tensor) -> Result<()> {
    let (channels, images) = (check(device, moments, noise, z)?, z.dim(0));
    expect("divergences", kl, z.dtype().wide(), &[images])?;
    with_real!(z.dtype(), T => {
        let per_image = z.len() / images;
        let rows = moments.host::<T>()?.par_chunks(2 * per_image).zip(noise.host::<T>()?.par_chunks(per_image));
        let outputs = z.host_mut::<T>()?.par_chunks_mut(per_image).zip(kl.host_mut::<T>()?.par_iter_mut());
        outputs.zip(rows).for_each(|((z, kl), (moments, noise))| *kl = draw(channels, moments, noise, z));
    });
    round(z)
}

/// Backward of [`draw_latents`]: dmoments [B, h, w, 2 Z] from dz [B, h, w, Z] and `dkl`, the gradient of each image's divergence.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit; [`Error::Usage`] on a GPU.
pub fn draw_latents_backward(
    device: &Device,
    moments: &Tensor,
    noise: &Tensor,
    dz: &Tensor,
    dkl: f64,
    dmoments: &mut Tensor,
) -> Result<()> {
    let channels = check(device, moments, noise, dz)?;
    expect("gradient of the moments", dmoments, moments.dtype(), moments.shape())?;
    with_real!(dz.dtype(), T => {
        let share = T::from_f64(dkl / (dz.len() / dz.dim(0)) as f64);
        let given = moments.host::<T>()?.par_chunks(2 * channels).zip(noise.host::<T>()?.par_chunks(channels));
        let rows = dmoments.host_mut::<T>()?.par_chunks_mut(2 * channels).zip(dz.host::<T>()?.par_chunks(channels));
        rows.zip(given).with_min_len(256).for_each(|((to, dz), (moments, noise))| {
            differentiate(to, moments, noise, dz, share);
        });
    });
    round(dmoments)
}

fn draw<T: Real>(channels: usize, moments: &[T], noise: &[T], z: &mut [T]) -> T {
    let (one, half) = (T::from_f64(1.0), T::from_f64(0.5));
    let mut sum = T::default();
    let rows = z.chunks_exact_mut(channels).zip(noise.chunks_exact(channels));
    for ((z, noise), moments) in rows.zip(moments.chunks_exact(2 * channels)) {
        let (means, logs) = moments.split_at(channels);
        for (((z, &noise), &mean), &log) in z.iter_mut().zip(noise).zip(means).zip(logs) {
            let (log, _) = clamped(log);
            *z = (half * log).exp().mul_add(noise, mean);
            sum += half * (mean * mean + log.exp() - one - log);
        }
    }
    sum / T::from_f64(z.len() as f64)
}

/// One pixel.
fn differentiate<T: Real>(to: &mut [T], moments: &[T], noise: &[T], dz: &[T], dkl: T) {
    let (one, half, channels) = (T::from_f64(1.0), T::from_f64(0.5), dz.len());
    let (dmeans, dlogs) = to.split_at_mut(channels);
    let (means, logs) = moments.split_at(channels);
    for i in 0..channels {
        let (log, inside) = clamped(logs[i]);
        dmeans[i] = dkl.mul_add(means[i], dz[i]);
        let dlog = half * (dz[i] * noise[i] * (half * log).exp() + dkl * (log.exp() - one));
        dlogs[i] = if inside { dlog } else { T::default() };
    }
}

/// A logarithm of a variance in its range, and whether it was there already.
fn clamped<T: Real>(log: T) -> (T, bool) {
    let [low, high] = LOG_VARIANCE.map(T::from_f64);
    if log < low {
        (low, false)
    } else if log > high {
        (high, false)
    } else {
        (log, true)
    }
}

/// Z of operands that fit each other.
fn check(device: &Device, moments: &Tensor, noise: &Tensor, z: &Tensor) -> Result<usize> {
    if matches!(device, Device::Cuda(_)) {
        return Err(Error::usage("latents are drawn and learned on the CPU alone: --device cpu expected"));
    }
    let &[images, height, width, channels] = z.shape() else {
        return Err(Error::Runtime(format!("latents [B, h, w, Z] expected, {:?} found", z.shape())));
    };
    if z.is_empty() {
        return Err(Error::Runtime(format!("latents of {:?}", z.shape())));
    }
    expect("moments of latents", moments, z.dtype(), &[images, height, width, 2 * channels])?;
    expect("noise of latents", noise, z.dtype().wide(), z.shape())?;
    Ok(channels)
}
