//! Starting noise: standard normals that depend on (seed, image index, element) alone, with the same bits on every
//! device.

use rayon::prelude::*;

use super::{launch_elementwise, spec, to_i32};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::rng;
use crate::tensor::{DType, Tensor};

spec! {
    /// Geometry of `normal_fwd_f32`.
    NormalSpec { seed_lo: u32, seed_hi: u32, first_lo: u32, first_hi: u32, per_image: i32, images: i32, stream: u32 }
}
pub(super) const LAYOUT: super::SpecLayout = NormalSpec::LAYOUT;

/// Stream of the random numbers that sampling starts from; other uses take other streams.
pub const NOISE_STREAM: u32 = 0;

/// x [B, ..] (f32 or f64) = standard normals; row b belongs to image `first + b`.
///
/// # Errors
/// [`Error::Runtime`] for another element type, or the driver's.
pub fn normal(device: &Device, seed: u64, first: u64, x: &mut Tensor) -> Result<()> {
    let images = x.dim(0);
    let per_image = x.len() / images.max(1);
    match (device, x.dtype()) {
        (Device::Cpu(_), DType::F32) => {
            let x = x.host_mut::<f32>()?;
            x.par_chunks_mut(per_image).enumerate().for_each(|(b, row)| {
                rng::normals(seed, first.wrapping_add(b as u64), NOISE_STREAM, row);
            });
            Ok(())
        }
        (Device::Cpu(_), DType::F64) => {
            let mut row = vec![0f32; per_image];
            for (b, x) in x.host_mut::<f64>()?.chunks_mut(per_image).enumerate() {
                rng::normals(seed, first.wrapping_add(b as u64), NOISE_STREAM, &mut row);
                x.iter_mut().zip(&row).for_each(|(x, &n)| *x = n as f64);
            }
            Ok(())
        }
        (Device::Cuda(cuda), DType::F32) => {
            let spec = NormalSpec {
                seed_lo: seed as u32,
                seed_hi: (seed >> 32) as u32,
                first_lo: first as u32,
                first_hi: (first >> 32) as u32,
                per_image: to_i32(per_image)?,
                images: to_i32(images)?,
                stream: NOISE_STREAM,
            };
            // One thread makes the four normals of one Philox block.
            let threads = images * per_image.div_ceil(4);
            let kernel = "normal_fwd_f32".to_string();
            let bytes = x.bytes();
            launch_elementwise(cuda, ("rng", kernel), threads, &[x.address(0)?], bytemuck::bytes_of(&spec), bytes)
        }
        (_, dtype) => Err(Error::Runtime(format!("noise is drawn in f32, not {dtype}"))),
    }
}
