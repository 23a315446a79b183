//! Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167) of images [B, .., C] as training has it, its backward, and how
//! inference folds it into the convolution in front. The gradients of the affine map are `+=` in the wide type, that of x is `=`.
//!
//! Statistics are of all pixels of all images: what an image becomes depends on its batch, the bits on nothing else.

use super::backward::sums::wanted;
use super::channels::Sizes;
use super::groupnorm::cpu::{ChannelNorm, moments};
use super::{SpecLayout, expect, launch_elementwise, moves, round, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::{Error, Result};
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `batchnorm_*`.
    BatchNormSpec { rows: i32, channels: i32, chunk_rows: i32, eps: f32, momentum: f32 }
}
pub(super) const LAYOUT: SpecLayout = BatchNormSpec::LAYOUT;

/// Most chunks that the kernels sum all pixels in.
const CHUNKS: usize = 128;

/// A batch norm: y = n * weight + bias with n = (x - mean) / sqrt(var + eps).
#[derive(Clone, Copy)]
pub struct BatchNorm<'a> {
    /// Added to the variance.
    pub eps: f64,
    /// `[C]`.
    pub weight: &'a Tensor,
    /// `[C]`.
    pub bias: &'a Tensor,
}

/// The averages over batches that inference takes: running = (1 - momentum) running + momentum new, as PyTorch has it.
pub struct Running<'a> {
    /// `[C]`, wide.
    pub mean: &'a mut Tensor,
    /// `[C]`, wide: of the unbiased variance.
    pub var: &'a mut Tensor,
    /// Weight of the new batch.
    pub momentum: f64,
}

impl BatchNorm<'_> {
    fn check(&self, x: &Tensor) -> Result<Sizes> {
        let (sizes, dtype) = (Sizes::of("batchnorm", x)?.joined(), x.dtype());
        if sizes.pixels < 2 {
            return Err(Error::Runtime("batchnorm: one value a channel has no variance".into()));
        }
        expect("batchnorm weight", self.weight, dtype, &[sizes.channels])?;
        expect("batchnorm bias", self.bias, dtype, &[sizes.channels])?;
        Ok(sizes)
    }
}

/// Elements of the scratch that [`batchnorm`] and [`batchnorm_backward`] take for x [B, .., C].
///
/// # Errors
/// [`Error::Runtime`] if x holds no images.
pub fn scratch_len(x: &Tensor) -> Result<usize> {
    let sizes = Sizes::of("batchnorm", x)?.joined();
    Ok(2 * (sizes.chunks(CHUNKS) + 1) * sizes.channels)
}

/// y [B, .., C] = `norm` of x [B, .., C] by the statistics of this batch, which go into `saved` [2, C] (mean and
/// 1 / sqrt(var + eps)) for the backward and into the running averages. `saved` and `scratch` are of the wide type, the
/// latter of at least [`scratch_len`] elements.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or there is one value a channel.
pub fn batchnorm(
    device: &Device,
    x: &Tensor,
    norm: BatchNorm,
    running: Option<Running>,
    saved: &mut Tensor,
    y: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let (sizes, dtype) = (norm.check(x)?, x.dtype());
    let (c, wide) = (sizes.channels, dtype.wide());
    expect("batchnorm output", y, dtype, x.shape())?;
    expect("batchnorm saved", saved, wide, &[2, c])?;
    if let Some(Running { mean, var, .. }) = &running {
        expect("batchnorm running mean", mean, wide, &[c])?;
        expect("batchnorm running variance", var, wide, &[c])?;
    }
    wanted(scratch, scratch_len(x)?, x)?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let (mean, var) = moments(x.host::<T>()?, sizes, 1);
                if let Some(running) = running {
                    running.update(&mean, &var, sizes.pixels)?;
                }
                let one = T::from_f64(1.0);
                let (to_mean, to_rstd) = saved.host_mut::<T>()?.split_at_mut(c);
                to_mean.copy_from_slice(&mean);
                to_rstd.iter_mut().zip(&var).for_each(|(to, &v)| *to = one / (v + T::from_f64(norm.eps)).sqrt());
                on_cpu::<T>(x, sizes, norm.weight, norm.bias, saved)?.normalise(y.host_mut::<T>()?);
            });
            round(y)
        }
        Device::Cuda(cuda) => {
            let momentum = running.as_ref().map_or(0.0, |r| r.momentum);
            let spec = spec_of(sizes, norm.eps, momentum)?;
            let (moments, x_address, saved) = (scratch.address(0)?, x.address(0)?, saved.address(0)?);
            let kernel = format!("batchnorm_moments_fwd_{dtype}");
            launch_chunks(cuda, kernel, sizes, &spec, &[x_address, moments], x.bytes())?;
            let (mean, var) = match &running {
                Some(Running { mean, var, .. }) => (mean.address(0)?, var.address(0)?),
                None => (0, 0),
            };
            launch_stats(cuda, "batchnorm_stats_fwd", sizes, &spec, &[moments, saved, mean, var])?;
            let pointers = [x_address, saved, norm.weight.address(0)?, norm.bias.address(0)?, y.address(0)?];
            launch_all(cuda, format!("batchnorm_fwd_{dtype}"), x, &spec, &pointers, 2 * x.bytes())
        }
    }
}

impl Running<'_> {
    fn update<T: Real>(self, mean: &[T], var: &[T], rows: usize) -> Result<()> {
        let (new, old) = (T::from_f64(self.momentum), T::from_f64(1.0 - self.momentum));
        let unbiased = T::from_f64(rows as f64 / (rows - 1) as f64);
        self.mean.host_mut::<T>()?.iter_mut().zip(mean).for_each(|(to, &m)| *to = old * *to + new * m);
        self.var.host_mut::<T>()?.iter_mut().zip(var).for_each(|(to, &v)| *to = old * *to + new * v * unbiased);
        Ok(())
    }
}

/// Backward of [`batchnorm`]: dx [B, .., C] from dy and from what the forward `saved`, and dweight and dbias `[C]` of the wide
/// type, to which it adds. `scratch` is of the wide type, of at least [`scratch_len`] elements.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
#[allow(clippy::too_many_arguments)]
pub fn batchnorm_backward(
    device: &Device,
    x: &Tensor,
    norm: BatchNorm,
    saved: &Tensor,
    dy: &Tensor,
    dx: &mut Tensor,
    dweight: &mut Tensor,
    dbias: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let (sizes, dtype) = (norm.check(x)?, x.dtype());
    let (c, wide) = (sizes.channels, dtype.wide());
    for (what, t) in [("dy", dy), ("dx", &*dx)] {
        expect(&format!("batchnorm {what}"), t, dtype, x.shape())?;
    }
    expect("batchnorm saved", saved, wide, &[2, c])?;
    expect("batchnorm dweight", dweight, wide, &[c])?;
    expect("batchnorm dbias", dbias, wide, &[c])?;
    wanted(scratch, scratch_len(x)?, x)?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let norm = on_cpu::<T>(x, sizes, norm.weight, norm.bias, saved)?;
                let (dweight, dbias) = (dweight.host_mut::<T>()?, dbias.host_mut::<T>()?);
                norm.backward(dy.host::<T>()?, dx.host_mut::<T>()?, dweight, dbias);
            });
            round(dx)
        }
        Device::Cuda(cuda) => {
            let spec = spec_of(sizes, norm.eps, 0.0)?;
            let (x_address, saved, dy_address) = (x.address(0)?, saved.address(0)?, dy.address(0)?);
            let (means, sums) = (scratch.address(0)?, scratch.address(2 * c)?);
            let pointers = [x_address, saved, dy_address, sums];
            launch_chunks(cuda, format!("batchnorm_sums_bwd_{dtype}"), sizes, &spec, &pointers, 2 * x.bytes())?;
            let pointers = [sums, means, dweight.address(0)?, dbias.address(0)?];
            launch_stats(cuda, "batchnorm_stats_bwd", sizes, &spec, &pointers)?;
            let pointers = [x_address, saved, norm.weight.address(0)?, means, dy_address, dx.address(0)?];
            launch_all(cuda, format!("batchnorm_bwd_{dtype}"), x, &spec, &pointers, 3 * x.bytes())
        }
    }
}

fn on_cpu<'a, T: Real>(
    x: &'a Tensor,
    sizes: Sizes,
    weight: &'a Tensor,
    bias: &'a Tensor,
    saved: &Tensor,
) -> Result<ChannelNorm<'a, T>> {
    let (mean, rstd) = saved.host::<T>()?.split_at(sizes.channels);
    let (mean, rstd) = (mean.to_vec(), rstd.to_vec());
    let (x, weight, bias) = (x.host()?, weight.host()?, bias.host()?);
    Ok(ChannelNorm { sizes, group: 1, silu: false, x, weight, bias, mean, rstd })
}

fn spec_of(sizes: Sizes, eps: f64, momentum: f64) -> Result<BatchNormSpec> {
    let (rows, channels, chunk_rows) = (to_i32(sizes.pixels)?, to_i32(sizes.channels)?, to_i32(sizes.chunk(CHUNKS))?);
    Ok(BatchNormSpec { rows, channels, chunk_rows, eps: eps as f32, momentum: momentum as f32 })
}

/// One block per 32 channels and chunk of rows.
fn launch_chunks(
    cuda: &Cuda,
    kernel: String,
    sizes: Sizes,
    spec: &BatchNormSpec,
    pointers: &[u64],
    bytes: usize,
) -> Result<()> {
    cuda.launch(&Launch {
        module: "batchnorm",
        kernel,
        grid: [to_u32(sizes.channels.div_ceil(32))?, to_u32(sizes.chunks(CHUNKS))?, 1],
        threads: 256,
        pointers,
        spec: bytemuck::bytes_of(spec),
        work: moves(bytes),
        ..Launch::default()
    })
}

/// One thread per channel, for what the chunks left of it.
fn launch_stats(cuda: &Cuda, kernel: &str, sizes: Sizes, spec: &BatchNormSpec, pointers: &[u64]) -> Result<()> {
    let bytes = 4 * sizes.channels * (2 * sizes.chunks(CHUNKS) + 4);
    let kernel = ("batchnorm", kernel.to_string());
    launch_elementwise(cuda, kernel, sizes.channels, pointers, bytemuck::bytes_of(spec), bytes)
}

fn launch_all(
    cuda: &Cuda,
    kernel: String,
    x: &Tensor,
    spec: &BatchNormSpec,
    pointers: &[u64],
    bytes: usize,
) -> Result<()> {
    launch_elementwise(cuda, ("batchnorm", kernel), x.len(), pointers, bytemuck::bytes_of(spec), bytes)
}

/// What a trained batch norm is made of, `[C]` each, for [`fold_into_convolution`].
#[derive(Clone, Copy)]
pub struct Trained<'a> {
    /// Factor.
    pub weight: &'a [f32],
    /// Addend.
    pub bias: &'a [f32],
    /// Running mean.
    pub mean: &'a [f32],
    /// Running variance.
    pub var: &'a [f32],
    /// Added to the variance.
    pub eps: f64,
}

/// Weight and bias of the convolution that does what a convolution with `weight` [N, C/g, kh, kw] and `bias` `[N]` and the
/// norm behind it do: s = norm.weight / sqrt(var + eps), weight s and (bias - mean) s + norm.bias, in f64 and rounded once.
///
/// # Errors
/// [`Error::Runtime`] if lengths do not fit, or a variance is below zero.
pub fn fold_into_convolution(weight: &[f32], bias: Option<&[f32]>, norm: Trained) -> Result<(Vec<f32>, Vec<f32>)> {
    let n = norm.weight.len();
    let lengths = [norm.bias.len(), norm.mean.len(), norm.var.len(), bias.map_or(n, <[f32]>::len)];
    if n == 0 || lengths != [n; 4] || !weight.len().is_multiple_of(n) {
        return Err(Error::Runtime(format!(
            "batchnorm of {n} channels: bias, mean, variance and the convolution's bias of {lengths:?} and its weight of {}",
            weight.len()
        )));
    }
    let scale = |i: usize| f64::from(norm.weight[i]) / (f64::from(norm.var[i]) + norm.eps).sqrt();
    if let Some(i) = (0..n).find(|&i| norm.var[i] < 0.0 || !scale(i).is_finite()) {
        let message = format!("batchnorm: variance {} of channel {i} has no root to divide by", norm.var[i]);
        return Err(Error::Runtime(message));
    }
    let folded = weight.chunks_exact((weight.len() / n).max(1)).enumerate();
    let folded = folded.flat_map(|(i, w)| w.iter().map(move |&w| (f64::from(w) * scale(i)) as f32)).collect();
    let addend = |i: usize| {
        let before = bias.map_or(0.0, |b| f64::from(b[i])) - f64::from(norm.mean[i]);
        before.mul_add(scale(i), f64::from(norm.bias[i])) as f32
    };
    Ok((folded, (0..n).map(addend).collect()))
}
