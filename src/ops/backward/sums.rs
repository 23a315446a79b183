//! Sums over images and tokens: gradients of biases (`+=`), of positions (`+=`), and of numbers per image (`=`).

use rayon::prelude::*;

use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::{Error, Result};
use crate::ops::simd::vectorized;
use crate::ops::{SpecLayout, expect, launch_elementwise, moves, round_on, spec, to_i32, to_u32, with_real};
use crate::tensor::Tensor;

spec! {
    /// Geometry of `sum_tokens_bwd_*`, `sum_columns_bwd_*` and `sum_images_bwd_*`.
    SumsSpec { images: i32, rows: i32, dim: i32 }
}
pub(in crate::ops) const LAYOUT: SpecLayout = SumsSpec::LAYOUT;

impl SumsSpec {
    pub(super) fn new(images: usize, rows: usize, dim: usize) -> Result<Self> {
        Ok(Self { images: to_i32(images)?, rows: to_i32(rows)?, dim: to_i32(dim)? })
    }
}

/// db `[N]` += the sum of all rows of dy [B, .., N]: per image first, then image by image. db is of the wide type, and
/// `scratch` too, of at least B N elements.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn add_columns(device: &Device, dy: &Tensor, db: &mut Tensor, scratch: &mut Tensor) -> Result<()> {
    let (images, n, wide) = (dy.dim(0), dy.last_dim(), dy.dtype().wide());
    expect("bias gradient", db, wide, &[n])?;
    wanted(scratch, images * n, dy)?;
    if dy.is_empty() {
        return Ok(());
    }
    let rows = dy.len() / (images * n);
    match device {
        Device::Cpu(_) => {
            with_real!(dy.dtype(), T => {
                let dy = dy.host::<T>()?;
                let partial = &mut scratch.host_mut::<T>()?[..images * n];
                let per_image = partial.par_chunks_mut(n).zip(dy.par_chunks(rows * n));
                per_image.for_each(|(partial, dy)| {
                    partial.fill(T::default());
                    dy.chunks_exact(n).for_each(|dy| accumulate(partial, dy));
                });
                let db = db.host_mut::<T>()?;
                partial.chunks_exact(n).for_each(|partial| accumulate(db, partial));
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let spec = SumsSpec::new(images, rows, n)?;
            let pointers = [dy.address(0)?, scratch.address(0)?];
            let kernel = format!("sum_columns_bwd_{}", dy.dtype());
            by_columns(cuda, kernel, images, n, &pointers, &spec, dy.bytes() + images * n * 4)?;
            add_planes(cuda, scratch.address(0)?, db, images)
        }
    }
}

/// out [B, N] = the sum over the rows of each image of dy [B, .., N].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn sum_tokens(device: &Device, dy: &Tensor, out: &mut Tensor) -> Result<()> {
    let (images, n, dtype) = (dy.dim(0), dy.last_dim(), dy.dtype());
    expect("sums of tokens", out, dtype, &[images, n])?;
    if dy.is_empty() {
        return Ok(());
    }
    let rows = dy.len() / (images * n);
    match device {
        Device::Cpu(cpu) => {
            with_real!(dtype, T => {
                let dy = dy.host::<T>()?;
                out.host_mut::<T>()?.par_chunks_mut(n).zip(dy.par_chunks(rows * n)).for_each(|(out, dy)| {
                    out.fill(T::default());
                    dy.chunks_exact(n).for_each(|dy| accumulate(out, dy));
                });
            });
            round_on(cpu, out)
        }
        Device::Cuda(cuda) => {
            let spec = SumsSpec::new(images, rows, n)?;
            let pointers = [dy.address(0)?, out.address(0)?];
            by_columns(cuda, format!("sum_tokens_bwd_{dtype}"), images, n, &pointers, &spec, dy.bytes() + out.bytes())
        }
    }
}

/// dp [T, N] (wide type) += the sum over the images of dy [B, T, N]: positions, the same for every image.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn add_images(device: &Device, dy: &Tensor, dp: &mut Tensor) -> Result<()> {
    let per_image = dy.shape().get(1..).unwrap_or(&[]);
    expect("gradient of positions", dp, dy.dtype().wide(), per_image)?;
    if dy.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(_) => {
            with_real!(dy.dtype(), T => {
                let (dy, whole) = (dy.host::<T>()?, dp.len());
                dp.host_mut::<T>()?.par_chunks_mut(4096).enumerate().for_each(|(chunk, dp)| {
                    dy.chunks_exact(whole).for_each(|dy| accumulate(dp, &dy[chunk * 4096..][..dp.len()]));
                });
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let spec = SumsSpec::new(dy.dim(0), 1, dp.len())?;
            let (pointers, bytes) = ([dy.address(0)?, dp.address(0)?], dy.bytes() + 2 * dp.bytes());
            let kernel = format!("sum_images_bwd_{}", dy.dtype());
            launch_elementwise(cuda, ("sums", kernel), dp.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// to += the sum of `planes` planes of f32 from `address` on, each of to's size, in their order.
pub(in crate::ops) fn add_planes(cuda: &Cuda, address: u64, to: &mut Tensor, planes: usize) -> Result<()> {
    let spec = SumsSpec::new(planes, 1, to.len())?;
    let (pointers, bytes) = ([address, to.address(0)?], (planes + 2) * to.bytes());
    launch_elementwise(
        cuda,
        ("sums", "sum_images_bwd_f32".into()),
        to.len(),
        &pointers,
        bytemuck::bytes_of(&spec),
        bytes,
    )
}

/// Refuses a scratch of another type or of fewer than `elements` elements.
pub(in crate::ops) fn wanted(scratch: &Tensor, elements: usize, of: &Tensor) -> Result<()> {
    if scratch.dtype() == of.dtype().wide() && scratch.len() >= elements {
        return Ok(());
    }
    let (found, wide) = (scratch.dtype(), of.dtype().wide());
    let message = format!("scratch: {} elements of {found} found, {elements} of {wide} expected", scratch.len());
    Err(Error::Runtime(message))
}

/// A launch of one block per image and 32 columns.
fn by_columns(
    cuda: &Cuda,
    kernel: String,
    images: usize,
    n: usize,
    pointers: &[u64],
    spec: &SumsSpec,
    bytes: usize,
) -> Result<()> {
    cuda.launch(&Launch {
        module: "sums",
        kernel,
        grid: [to_u32(n.div_ceil(32))?, to_u32(images)?, 1],
        threads: 256,
        pointers,
        spec: bytemuck::bytes_of(spec),
        work: moves(bytes),
        ..Launch::default()
    })
}

vectorized! {
    /// to += from.
    pub(in crate::ops) fn accumulate(to: &mut [T], from: &[T]) {
        to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
    }
}
