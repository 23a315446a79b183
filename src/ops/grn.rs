//! Global response normalisation (Woo et al., ConvNeXt V2, arXiv 2301.00808) of images [B, .., C], and its backward. The
//! gradients of weight and bias are `+=` in the wide type, that of x is `=`.

use rayon::prelude::*;

use super::backward::sums::{accumulate, add_planes, wanted};
use super::channels::Sizes;
use super::simd::vectorized;
use super::{SpecLayout, expect, launch_elementwise, moves, round, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::Result;
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `grn_*`.
    GrnSpec { images: i32, pixels: i32, channels: i32, chunk_pixels: i32, eps: f32 }
}
pub(super) const LAYOUT: SpecLayout = GrnSpec::LAYOUT;

/// Most chunks that the kernels sum an image's pixels in.
const CHUNKS: usize = 32;

/// y = x + x N weight + bias, N being the L2 norm of each channel over the pixels of its image, divided by the mean of these
/// over the channels plus eps.
#[derive(Clone, Copy)]
pub struct Grn<'a> {
    /// Added to the mean of the norms.
    pub eps: f64,
    /// `[C]`.
    pub weight: &'a Tensor,
    /// `[C]`.
    pub bias: &'a Tensor,
}

impl Grn<'_> {
    fn check(&self, x: &Tensor) -> Result<Sizes> {
        let (sizes, dtype) = (Sizes::of("grn", x)?, x.dtype());
        expect("grn weight", self.weight, dtype, &[sizes.channels])?;
        expect("grn bias", self.bias, dtype, &[sizes.channels])?;
        Ok(sizes)
    }
}

/// Elements of the scratch that [`grn`] takes for x [B, .., C].
///
/// # Errors
/// [`crate::error::Error::Runtime`] if x holds no images.
pub fn scratch_len(x: &Tensor) -> Result<usize> {
    let sizes = Sizes::of("grn", x)?;
    Ok((sizes.chunks(CHUNKS) + 1) * sizes.images * sizes.channels)
}

/// Elements of the scratch that [`grn_backward`] takes for x [B, .., C].
///
/// # Errors
/// [`crate::error::Error::Runtime`] if x holds no images.
pub fn backward_scratch_len(x: &Tensor) -> Result<usize> {
    let sizes = Sizes::of("grn", x)?;
    Ok((3 * sizes.chunks(CHUNKS) + 4) * sizes.images * sizes.channels)
}

/// y [B, .., C] = `norm` of x [B, .., C]. `scratch` is of the wide type, of at least [`scratch_len`] elements.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn grn(device: &Device, x: &Tensor, norm: Grn, y: &mut Tensor, scratch: &mut Tensor) -> Result<()> {
    let (sizes, dtype) = (norm.check(x)?, x.dtype());
    expect("grn output", y, dtype, x.shape())?;
    wanted(scratch, scratch_len(x)?, x)?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let (x, weight, bias) = (x.host::<T>()?, norm.weight.host::<T>()?, norm.bias.host::<T>()?);
                let c = sizes.channels;
                let mut factor = sizes.sums(c, |row, sums| add_products(sums, &x[row * c..][..c], &x[row * c..][..c]));
                factor.chunks_exact_mut(c).for_each(|sums| normalise(sums, norm.eps));
                let rows = y.host_mut::<T>()?.par_chunks_mut(c).zip(x.par_chunks(c)).enumerate();
                rows.with_min_len(sizes.rows_per_task()).for_each(|(row, (y, x))| {
                    respond(y, x, &factor[row / sizes.pixels * c..][..c], weight, bias);
                });
            });
            round(y)
        }
        Device::Cuda(cuda) => {
            let spec = spec_of(sizes, norm.eps)?;
            let factor = scratch.address(0)?;
            let squares = scratch.address(sizes.images * sizes.channels)?;
            let x_address = x.address(0)?;
            launch_chunks(cuda, format!("grn_squares_fwd_{dtype}"), sizes, &spec, &[x_address, squares], x.bytes())?;
            launch_factors(cuda, "grn_factor_fwd".into(), sizes, &spec, &[squares, factor])?;
            let pointers = [x_address, factor, norm.weight.address(0)?, norm.bias.address(0)?, y.address(0)?];
            let kernel = ("grn", format!("grn_fwd_{dtype}"));
            launch_elementwise(cuda, kernel, x.len(), &pointers, bytemuck::bytes_of(&spec), x.bytes() + y.bytes())
        }
    }
}

/// Backward of [`grn`]: dx [B, .., C] from dy, and dweight and dbias `[C]` of the wide type, to which it adds. Where the norm of a
/// channel is 0 its derivative is taken as 0, as PyTorch does. `scratch` is of the wide type, of at least
/// [`backward_scratch_len`] elements.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
#[allow(clippy::too_many_arguments)]
pub fn grn_backward(
    device: &Device,
    x: &Tensor,
    norm: Grn,
    dy: &Tensor,
    dx: &mut Tensor,
    dweight: &mut Tensor,
    dbias: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let (sizes, dtype) = (norm.check(x)?, x.dtype());
    let c = sizes.channels;
    expect("grn dy", dy, dtype, x.shape())?;
    expect("grn dx", dx, dtype, x.shape())?;
    expect("grn dweight", dweight, dtype.wide(), &[c])?;
    expect("grn dbias", dbias, dtype.wide(), &[c])?;
    wanted(scratch, backward_scratch_len(x)?, x)?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let (dweight, dbias) = (dweight.host_mut::<T>()?, dbias.host_mut::<T>()?);
                let (x, dy, weight) = (x.host::<T>()?, dy.host::<T>()?, norm.weight.host::<T>()?);
                cpu_backward(sizes, norm.eps, [x, dy, weight], dx.host_mut::<T>()?, dweight, dbias);
            });
            round(dx)
        }
        Device::Cuda(cuda) => {
            let spec = spec_of(sizes, norm.eps)?;
            let plane = sizes.images * c;
            let [factors, affine, sums] = [0, 2, 4].map(|at| scratch.address(at * plane));
            let (factors, affine, sums) = (factors?, affine?, sums?);
            let (x_address, dy_address) = (x.address(0)?, dy.address(0)?);
            let pointers = [x_address, dy_address, sums];
            launch_chunks(cuda, format!("grn_sums_bwd_{dtype}"), sizes, &spec, &pointers, 2 * x.bytes())?;
            let pointers = [sums, norm.weight.address(0)?, factors, affine];
            launch_factors(cuda, format!("grn_factor_bwd_{dtype}"), sizes, &spec, &pointers)?;
            add_planes(cuda, affine, dweight, sizes.images)?;
            add_planes(cuda, scratch.address(3 * plane)?, dbias, sizes.images)?;
            let pointers = [x_address, factors, dy_address, dx.address(0)?];
            let kernel = ("grn", format!("grn_bwd_{dtype}"));
            launch_elementwise(cuda, kernel, x.len(), &pointers, bytemuck::bytes_of(&spec), 3 * x.bytes())
        }
    }
}

fn cpu_backward<T: Real>(
    sizes: Sizes,
    eps: f64,
    [x, dy, weight]: [&[T]; 3],
    dx: &mut [T],
    dweight: &mut [T],
    dbias: &mut [T],
) {
    let c = sizes.channels;
    // Of each image the sums of x^2, of dy x and of dy; then 1 + N weight and dG / G in place of the first two.
    let mut sums = sizes.sums(3 * c, |row, sums| gather(sums, &x[row * c..][..c], &dy[row * c..][..c]));
    for sums in sums.chunks_exact_mut(3 * c) {
        let (norms, rest) = sums.split_at_mut(c);
        let (products, slopes) = rest.split_at_mut(c);
        accumulate(dbias, slopes);
        let m = roots_and_mean(norms, eps);
        let weighted = products.iter().zip(weight).zip(&*norms);
        let pull = weighted.fold(T::default(), |sum, ((&p, &w), &g)| (p * w).mul_add(g, sum));
        let pull = pull / T::from_f64(c as f64) / (m * m);
        for i in 0..c {
            let (g, product, w) = (norms[i], products[i], weight[i]);
            dweight[i] = (g / m).mul_add(product, dweight[i]);
            norms[i] = (g / m).mul_add(w, T::from_f64(1.0));
            products[i] = if g > T::default() { (w * product / m - pull) / g } else { T::default() };
        }
    }
    let rows = dx.par_chunks_mut(c).zip(x.par_chunks(c).zip(dy.par_chunks(c))).enumerate();
    rows.with_min_len(sizes.rows_per_task()).for_each(|(row, (dx, (x, dy)))| {
        let (factors, pulls) = sums[row / sizes.pixels * 3 * c..][..2 * c].split_at(c);
        differentiate(dx, x, dy, factors, pulls);
    });
}

/// Roots in place of sums of squares; their mean plus eps.
fn roots_and_mean<T: Real>(sums: &mut [T], eps: f64) -> T {
    sums.iter_mut().for_each(|sum| *sum = sum.sqrt());
    sums.iter().fold(T::default(), |sum, &g| sum + g) / T::from_f64(sums.len() as f64) + T::from_f64(eps)
}

/// N in place of sums of squares.
fn normalise<T: Real>(sums: &mut [T], eps: f64) {
    let m = roots_and_mean(sums, eps);
    sums.iter_mut().for_each(|g| *g = *g / m);
}

vectorized! {
    /// sums += a b.
    fn add_products(sums: &mut [T], a: &[T], b: &[T]) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, &a), &b)| *sum = a.mul_add(b, *sum));
    }
}

vectorized! {
    /// One row of y.
    fn respond(y: &mut [T], x: &[T], factor: &[T], weight: &[T], bias: &[T]) {
        let affine = weight.iter().zip(bias);
        for (((y, &x), &factor), (&weight, &bias)) in y.iter_mut().zip(x).zip(factor).zip(affine) {
            *y = x + (x * factor).mul_add(weight, bias);
        }
    }
}

vectorized! {
    /// What one row adds to the sums of x^2, dy x and dy.
    fn gather(sums: &mut [T], x: &[T], dy: &[T]) {
        let (squares, rest) = sums.split_at_mut(x.len());
        let (products, slopes) = rest.split_at_mut(x.len());
        for (i, (&x, &dy)) in x.iter().zip(dy).enumerate() {
            squares[i] = x.mul_add(x, squares[i]);
            products[i] = dy.mul_add(x, products[i]);
            slopes[i] += dy;
        }
    }
}

vectorized! {
    /// One row of dx.
    fn differentiate(dx: &mut [T], x: &[T], dy: &[T], factors: &[T], pulls: &[T]) {
        let by = factors.iter().zip(pulls);
        for (((dx, &x), &dy), (&factor, &pull)) in dx.iter_mut().zip(x).zip(dy).zip(by) {
            *dx = dy.mul_add(factor, x * pull);
        }
    }
}

fn spec_of(sizes: Sizes, eps: f64) -> Result<GrnSpec> {
    let (images, pixels, channels) = (to_i32(sizes.images)?, to_i32(sizes.pixels)?, to_i32(sizes.channels)?);
    Ok(GrnSpec { images, pixels, channels, chunk_pixels: to_i32(sizes.chunk(CHUNKS))?, eps: eps as f32 })
}

/// One block per 32 channels, chunk of pixels and image.
fn launch_chunks(
    cuda: &Cuda,
    kernel: String,
    sizes: Sizes,
    spec: &GrnSpec,
    pointers: &[u64],
    bytes: usize,
) -> Result<()> {
    cuda.launch(&Launch {
        module: "grn",
        kernel,
        grid: [to_u32(sizes.channels.div_ceil(32))?, to_u32(sizes.chunks(CHUNKS))?, to_u32(sizes.images)?],
        threads: 256,
        pointers,
        spec: bytemuck::bytes_of(spec),
        work: moves(bytes),
        ..Launch::default()
    })
}

/// One block per image, for what the chunks left of its channels.
fn launch_factors(cuda: &Cuda, kernel: String, sizes: Sizes, spec: &GrnSpec, pointers: &[u64]) -> Result<()> {
    cuda.launch(&Launch {
        module: "grn",
        kernel,
        grid: [to_u32(sizes.images)?, 1, 1],
        threads: 256,
        pointers,
        spec: bytemuck::bytes_of(spec),
        work: moves(4 * sizes.images * sizes.channels * (sizes.chunks(CHUNKS) + 1)),
        ..Launch::default()
    })
}
