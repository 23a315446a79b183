//! One step of a DDPM or DDIM sampler, fused with classifier-free guidance, the noise of the step and the last clamp. The
//! coefficients of every step stand in a table on the device; a counter there picks the row, so that captured work can
//! be replayed.

use rayon::prelude::*;

use super::{SpecLayout, expect, launch_elementwise, shape_error, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::rng;
use crate::tensor::{DType, Real, Tensor};

/// One row of the table, of what the model predicts m: x0 = x0_x x + x0_m m, clipped; x <- k_0 x0 + k_x x + k_m m + sigma w z
/// with standard normal z and w = 1, or for a learned variance exp(log_ratio (1 + r) / 2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DiffusionStep {
    /// Factor of x in the image that the model sees in x.
    pub x0_x: f32,
    /// Factor of the prediction in it.
    pub x0_m: f32,
    /// Factor of that image.
    pub k_0: f32,
    /// Factor of x.
    pub k_x: f32,
    /// Factor of the prediction.
    pub k_m: f32,
    /// Deviation of the noise, or its least where it is learned; 0 draws none.
    pub sigma: f32,
    /// Logarithm of the largest deviation over the least.
    pub log_ratio: f32,
    /// [`LEARNED`], [`LAST`].
    pub flags: u32,
}

/// The model says how large the noise is between its bounds, in the channels behind its prediction.
pub const LEARNED: u32 = 1;
/// The last step of a trajectory: the clamp follows.
pub const LAST: u32 = 2;

/// Stream of the random numbers of step 0; step i takes the stream i behind it.
pub const STEP_STREAM: u32 = 0x4000_0000;

/// Elements of a row.
const ROW: usize = size_of::<DiffusionStep>() / 4;

spec! {
    /// Geometry of `diffusion_step_fwd_*`.
    DiffusionSpec {
        images: i32, image_len: i32, out_len: i32, guided_len: i32, guidance: f32, clip: f32, clamp: i32, lo: f32, hi: f32,
        stream: u32
    }
}
pub(super) const LAYOUTS: [SpecLayout; 2] = [
    DiffusionSpec::LAYOUT,
    SpecLayout {
        name: "DiffusionStep",
        size: size_of::<DiffusionStep>(),
        fields: &[
            ("x0_x", std::mem::offset_of!(DiffusionStep, x0_x)),
            ("x0_m", std::mem::offset_of!(DiffusionStep, x0_m)),
            ("k_0", std::mem::offset_of!(DiffusionStep, k_0)),
            ("k_x", std::mem::offset_of!(DiffusionStep, k_x)),
            ("k_m", std::mem::offset_of!(DiffusionStep, k_m)),
            ("sigma", std::mem::offset_of!(DiffusionStep, sigma)),
            ("log_ratio", std::mem::offset_of!(DiffusionStep, log_ratio)),
            ("flags", std::mem::offset_of!(DiffusionStep, flags)),
        ],
    },
];

/// Constants of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiffusionOptions {
    /// Guidance scale g: m = u + g (c - u), where the batch holds B conditional images c and then B unconditional u.
    /// `None`: the batch holds B images.
    pub guidance: Option<f32>,
    /// How many channels are guided, from the first; the others are the conditional ones.
    pub guided_channels: usize,
    /// Largest value, either way, of the image that the model sees in x.
    pub clip: Option<f32>,
    /// Range that the final x is clamped to.
    pub clamp: Option<(f32, f32)>,
}

/// What a step reads beside the state.
#[derive(Clone, Copy)]
pub struct DiffusionInputs<'a> {
    /// The model's [B or 2B, C or 2C, H, W]: C channels of prediction, then those of a learned variance.
    pub output: &'a Tensor,
    /// The table of [`step_table`].
    pub table: &'a Tensor,
    /// Which row, `[1]`.
    pub counter: &'a Tensor,
    /// Seed (low, high word) and index of the first image (low, high word), `[4]`: [`noise_key`].
    pub key: &'a Tensor,
}

/// x [B, C, H, W] = the state after step `counter`; f32, or f64 with an f64 model.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn diffusion_step(
    device: &Device,
    x: &mut Tensor,
    inputs: DiffusionInputs,
    options: DiffusionOptions,
) -> Result<()> {
    let DiffusionInputs { output, table, counter, key } = inputs;
    let &[images, channels, height, width] = x.shape() else {
        return Err(shape_error("diffusion x", x.shape(), &[0; 4]));
    };
    let passes = if options.guidance.is_some() { 2 } else { 1 };
    let learned = output.shape().get(1) == Some(&(2 * channels));
    let out_channels = if learned { 2 * channels } else { channels };
    expect("diffusion x", x, output.dtype().wide(), x.shape())?;
    expect("diffusion output", output, output.dtype(), &[passes * images, out_channels, height, width])?;
    expect("diffusion table", table, DType::U32, &[table.dim(0), ROW])?;
    expect("diffusion counter", counter, DType::U32, &[1])?;
    expect("diffusion noise key", key, DType::U32, &[4])?;
    let pixels = height * width;
    let geometry = Geometry {
        image_len: channels * pixels,
        out_len: out_channels * pixels,
        guided_len: options.guidance.map_or(0, |_| options.guided_channels.min(channels) * pixels),
    };
    match device {
        Device::Cpu(_) => {
            let at = counter.host_u32()?[0];
            let row: &[u32] = table
                .host_u32()?
                .get(at as usize * ROW..(at as usize + 1) * ROW)
                .ok_or_else(|| Error::Runtime("diffusion: the counter ran past the table".into()))?;
            let step: DiffusionStep = *bytemuck::from_bytes(bytemuck::cast_slice(row));
            if step.flags & LEARNED != 0 && !learned {
                return Err(Error::Runtime("diffusion: a learned variance needs channels of its own".into()));
            }
            let words = key.host_u32()?;
            let word = |i: usize| u64::from(words[i]);
            let noise = (word(1) << 32 | word(0), word(3) << 32 | word(2), STEP_STREAM.wrapping_add(at));
            with_real!(output.dtype(), T => cpu::<T>(x, output, geometry, step, noise, options))
        }
        Device::Cuda(cuda) => {
            let (lo, hi) = options.clamp.unwrap_or_default();
            let spec = DiffusionSpec {
                images: to_i32(images)?,
                image_len: to_i32(geometry.image_len)?,
                out_len: to_i32(geometry.out_len)?,
                guided_len: to_i32(geometry.guided_len)?,
                guidance: options.guidance.unwrap_or(1.0),
                clip: options.clip.unwrap_or(f32::INFINITY),
                clamp: options.clamp.is_some() as i32,
                lo,
                hi,
                stream: STEP_STREAM,
            };
            let pointers = [x.address(0)?, output.address(0)?, table.address(0)?, counter.address(0)?, key.address(0)?];
            let kernel = format!("diffusion_step_fwd_{}", output.dtype());
            let threads = images * geometry.image_len.div_ceil(4);
            let bytes = 2 * x.bytes() + output.bytes() + size_of::<DiffusionStep>() + counter.bytes() + key.bytes();
            launch_elementwise(cuda, ("diffusion", kernel), threads, &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// Elements of an image, of what the model says about it, and of its guided channels.
#[derive(Clone, Copy)]
struct Geometry {
    image_len: usize,
    out_len: usize,
    guided_len: usize,
}

fn cpu<T: Real>(
    x: &mut Tensor,
    output: &Tensor,
    geometry: Geometry,
    step: DiffusionStep,
    (seed, first, stream): (u64, u64, u32),
    options: DiffusionOptions,
) -> Result<()> {
    let Geometry { image_len, out_len, guided_len } = geometry;
    let output = output.host::<T>()?;
    let of = |v: f32| T::from_f64(v.into());
    let [x0_x, x0_m, k_0, k_x, k_m] = [step.x0_x, step.x0_m, step.k_0, step.k_x, step.k_m].map(of);
    let guidance = of(options.guidance.unwrap_or(1.0));
    let clip = options.clip.map(|c| (of(-c), of(c)));
    let clamp = options.clamp.filter(|_| step.flags & LAST != 0).map(|(lo, hi)| (of(lo), of(hi)));
    let x = x.host_mut::<T>()?;
    let unconditional = x.len() / image_len * out_len;
    x.par_chunks_mut(image_len).enumerate().for_each(|(b, x)| {
        let mut noise = Vec::new();
        if step.sigma != 0.0 {
            noise.resize(image_len, 0.0);
            rng::normals(seed, first.wrapping_add(b as u64), stream, &mut noise);
        }
        let c = &output[b * out_len..][..out_len];
        for (i, x) in x.iter_mut().enumerate() {
            let mut m = c[i];
            if i < guided_len {
                let u = output[unconditional + b * out_len + i];
                m = guidance.mul_add(m - u, u);
            }
            let x0 = within(x0_m.mul_add(m, x0_x * *x), clip);
            let mut new = k_0.mul_add(x0, k_x.mul_add(*x, k_m * m));
            if let Some(&z) = noise.get(i) {
                let mut sigma = of(step.sigma);
                if step.flags & LEARNED != 0 {
                    let share = of(0.5).mul_add(c[image_len + i], of(0.5));
                    sigma = sigma * (of(step.log_ratio) * share).exp();
                }
                new = sigma.mul_add(of(z), new);
            }
            *x = within(new, clamp);
        }
    });
    Ok(())
}

/// `v` in the range, if there is one; NaN stays NaN.
fn within<T: Real>(v: T, range: Option<(T, T)>) -> T {
    match range {
        Some((lo, _)) if v < lo => lo,
        Some((_, hi)) if v > hi => hi,
        _ => v,
    }
}

/// The table as a tensor [E, 8].
///
/// # Errors
/// The driver's, on a GPU.
pub fn step_table(device: &Device, steps: &[DiffusionStep]) -> Result<Tensor> {
    Tensor::from_u32(device, &[steps.len(), ROW], bytemuck::cast_slice(steps))
}

/// What the noise of image `first + b` of a batch follows from.
pub fn noise_key(seed: u64, first: u64) -> [u32; 4] {
    [seed as u32, (seed >> 32) as u32, first as u32, (first >> 32) as u32]
}
