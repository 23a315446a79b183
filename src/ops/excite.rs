//! Excitation of squeeze-and-excitation networks (Hu et al., arXiv 1709.01507): each channel of an image times a share of its own.

use rayon::prelude::*;

use super::channels::Sizes;
use super::simd::vectorized;
use super::{SpecLayout, expect, launch_elementwise, round_on, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

spec! {
    /// Geometry of `excite_fwd_*`.
    ExciteSpec { images: i32, image_len: i32, channels: i32 }
}
pub(super) const LAYOUT: SpecLayout = ExciteSpec::LAYOUT;

/// x [B, H, W, C] *= s(gate [B, 1, 1, C]), s the logistic function 1 / (1 + e^-gate).
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn excite(device: &Device, x: &mut Tensor, gate: &Tensor) -> Result<()> {
    let (sizes, dtype) = (Sizes::of("excitation", x)?, x.dtype());
    let Sizes { images, pixels, channels } = sizes;
    expect("excitation gate", gate, dtype, &[images, 1, 1, channels])?;
    match device {
        Device::Cpu(cpu) => {
            with_real!(dtype, T => {
                let mut shares = vec![T::default(); images * channels];
                logistic(&mut shares, gate.host::<T>()?);
                let rows = x.host_mut::<T>()?.par_chunks_mut(channels).enumerate();
                rows.with_min_len(sizes.rows_per_task()).for_each(|(row, x)| {
                    scale(x, &shares[row / pixels * channels..][..channels]);
                });
            });
            round_on(cpu, x)
        }
        Device::Cuda(cuda) => {
            let image_len = to_i32(pixels * channels)?;
            let spec = ExciteSpec { images: to_i32(images)?, image_len, channels: to_i32(channels)? };
            let pointers = [x.address(0)?, gate.address(0)?];
            let (kernel, bytes) = (("excite", format!("excite_fwd_{dtype}")), 2 * x.bytes() + gate.bytes());
            launch_elementwise(cuda, kernel, x.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

vectorized! {
    /// Shares of all gates.
    fn logistic(shares: &mut [T], gates: &[T]) {
        let one = T::from_f64(1.0);
        shares.iter_mut().zip(gates).for_each(|(share, &gate)| *share = one / (one + (-gate).exp()));
    }
}

vectorized! {
    /// One row.
    fn scale(x: &mut [T], shares: &[T]) {
        x.iter_mut().zip(shares).for_each(|(x, &share)| *x = *x * share);
    }
}
