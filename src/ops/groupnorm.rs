//! Group normalisation (Wu and He, arXiv 1803.08494) of images [B, .., C] with its affine map, SiLU behind it where a network
//! has it, and the backward of all. The gradients of the affine map are `+=` in the wide type, that of x is `=`.

pub(super) mod cpu;

use self::cpu::ChannelNorm;
use super::backward::sums::{add_planes, wanted};
use super::channels::Sizes;
use super::{SpecLayout, expect, moves, round, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

spec! {
    /// Geometry of `groupnorm_*`.
    GroupNormSpec {
        pixels: i32, channels: i32, groups: i32, chunk_pixels: i32, span: i32, tile_pixels: i32, silu: i32, eps: f32,
    }
}
pub(super) const LAYOUT: SpecLayout = GroupNormSpec::LAYOUT;

/// Most chunks that the kernels sum an image's pixels in.
const CHUNKS: usize = 32;

/// A group norm: y = n * weight + bias, or SiLU of that, with n = (x - mean) / sqrt(var + eps) over the pixels and the
/// neighbouring C / G channels of a group.
#[derive(Clone, Copy)]
pub struct GroupNorm<'a> {
    /// G, a divisor of C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// `[C]`.
    pub weight: &'a Tensor,
    /// `[C]`.
    pub bias: &'a Tensor,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl GroupNorm<'_> {
    fn check(&self, x: &Tensor) -> Result<Sizes> {
        let (sizes, dtype) = (Sizes::of("groupnorm", x)?, x.dtype());
        if self.groups == 0 || !sizes.channels.is_multiple_of(self.groups) {
            return Err(Error::Runtime(format!("groupnorm: {} channels in {} groups", sizes.channels, self.groups)));
        }
        expect("groupnorm weight", self.weight, dtype, &[sizes.channels])?;
        expect("groupnorm bias", self.bias, dtype, &[sizes.channels])?;
        Ok(sizes)
    }
}

/// Elements of the scratch that [`groupnorm`] takes for x [B, .., C].
///
/// # Errors
/// [`Error::Runtime`] if x holds no images.
pub fn scratch_len(x: &Tensor) -> Result<usize> {
    let sizes = Sizes::of("groupnorm", x)?;
    Ok(2 * sizes.images * sizes.chunks(CHUNKS) * sizes.channels)
}

/// Elements of the scratch that [`groupnorm_backward`] takes for x [B, .., C].
///
/// # Errors
/// [`Error::Runtime`] if x holds no images.
pub fn backward_scratch_len(x: &Tensor) -> Result<usize> {
    Ok(2 * scratch_len(x)?)
}

/// y [B, .., C] = `norm` of x [B, .., C]. `scratch` is of the wide type, of at least [`scratch_len`] elements.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or G does not divide C.
pub fn groupnorm(device: &Device, x: &Tensor, norm: GroupNorm, y: &mut Tensor, scratch: &mut Tensor) -> Result<()> {
    let sizes = norm.check(x)?;
    expect("groupnorm output", y, x.dtype(), x.shape())?;
    wanted(scratch, scratch_len(x)?, x)?;
    match device {
        Device::Cpu(_) => {
            with_real!(x.dtype(), T => {
                ChannelNorm::<T>::of_group_norm(x, sizes, norm)?.normalise(y.host_mut::<T>()?);
            });
            round(y)
        }
        Device::Cuda(cuda) => {
            let moments = scratch.address(0)?;
            launch_moments(cuda, x, sizes, norm, moments)?;
            let pointers = [x.address(0)?, norm.weight.address(0)?, norm.bias.address(0)?, moments, y.address(0)?];
            launch_tiles(cuda, format!("groupnorm_fwd_{}", x.dtype()), sizes, norm, &pointers, x.bytes() + y.bytes())
        }
    }
}

/// Backward of [`groupnorm`]: dx [B, .., C] from dy, and dweight and dbias `[C]` of the wide type, to which it adds.
/// `scratch` is of the wide type, of at least [`backward_scratch_len`] elements.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or G does not divide C.
#[allow(clippy::too_many_arguments)]
pub fn groupnorm_backward(
    device: &Device,
    x: &Tensor,
    norm: GroupNorm,
    dy: &Tensor,
    dx: &mut Tensor,
    dweight: &mut Tensor,
    dbias: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let (sizes, dtype) = (norm.check(x)?, x.dtype());
    expect("groupnorm dy", dy, dtype, x.shape())?;
    expect("groupnorm dx", dx, dtype, x.shape())?;
    expect("groupnorm dweight", dweight, dtype.wide(), &[sizes.channels])?;
    expect("groupnorm dbias", dbias, dtype.wide(), &[sizes.channels])?;
    wanted(scratch, backward_scratch_len(x)?, x)?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let norm = ChannelNorm::<T>::of_group_norm(x, sizes, norm)?;
                let (dweight, dbias) = (dweight.host_mut::<T>()?, dbias.host_mut::<T>()?);
                norm.backward(dy.host::<T>()?, dx.host_mut::<T>()?, dweight, dbias);
            });
            round(dx)
        }
        Device::Cuda(cuda) => {
            let (planes, channels) = (sizes.images * sizes.chunks(CHUNKS), sizes.channels);
            let [moments, dadd, dmul] = [0, 2, 3].map(|at| scratch.address(at * planes * channels));
            let (moments, dadd, dmul) = (moments?, dadd?, dmul?);
            launch_moments(cuda, x, sizes, norm, moments)?;
            let (x_address, dy_address) = (x.address(0)?, dy.address(0)?);
            let (weight, bias) = (norm.weight.address(0)?, norm.bias.address(0)?);
            let pointers = [x_address, weight, bias, moments, dy_address, dadd, dmul];
            launch_chunks(cuda, format!("groupnorm_sums_bwd_{dtype}"), sizes, norm, &pointers, 2 * x.bytes())?;
            let pointers = [x_address, weight, bias, moments, dy_address, dadd, dmul, dx.address(0)?];
            launch_tiles(cuda, format!("groupnorm_bwd_{dtype}"), sizes, norm, &pointers, 3 * x.bytes())?;
            add_planes(cuda, dadd, dbias, planes)?;
            add_planes(cuda, dmul, dweight, planes)
        }
    }
}

fn spec_of(sizes: Sizes, norm: GroupNorm) -> Result<GroupNormSpec> {
    let group = sizes.channels / norm.groups;
    let span = 64_usize.div_ceil(group).min(norm.groups);
    Ok(GroupNormSpec {
        pixels: to_i32(sizes.pixels)?,
        channels: to_i32(sizes.channels)?,
        groups: to_i32(norm.groups)?,
        chunk_pixels: to_i32(sizes.chunk(CHUNKS))?,
        span: to_i32(span)?,
        tile_pixels: to_i32((8192 / (span * group)).max(1))?,
        silu: norm.silu.into(),
        eps: norm.eps as f32,
    })
}

fn launch_moments(cuda: &Cuda, x: &Tensor, sizes: Sizes, norm: GroupNorm, moments: u64) -> Result<()> {
    let kernel = format!("groupnorm_moments_fwd_{}", x.dtype());
    launch_chunks(cuda, kernel, sizes, norm, &[x.address(0)?, moments], x.bytes())
}

/// One block per 32 channels, chunk of pixels and image.
fn launch_chunks(
    cuda: &Cuda,
    kernel: String,
    sizes: Sizes,
    norm: GroupNorm,
    pointers: &[u64],
    bytes: usize,
) -> Result<()> {
    cuda.launch(&Launch {
        module: "groupnorm",
        kernel,
        grid: [to_u32(sizes.channels.div_ceil(32))?, to_u32(sizes.chunks(CHUNKS))?, to_u32(sizes.images)?],
        threads: 256,
        pointers,
        spec: bytemuck::bytes_of(&spec_of(sizes, norm)?),
        work: moves(bytes),
        ..Launch::default()
    })
}

/// One block per tile of pixels, span of groups and image.
fn launch_tiles(
    cuda: &Cuda,
    kernel: String,
    sizes: Sizes,
    norm: GroupNorm,
    pointers: &[u64],
    bytes: usize,
) -> Result<()> {
    let spec = spec_of(sizes, norm)?;
    let (tiles, spans) = (sizes.pixels.div_ceil(spec.tile_pixels as usize), norm.groups.div_ceil(spec.span as usize));
    cuda.launch(&Launch {
        module: "groupnorm",
        kernel,
        grid: [to_u32(tiles)?, to_u32(spans)?, to_u32(sizes.images)?],
        threads: 256,
        pointers,
        spec: bytemuck::bytes_of(&spec),
        work: moves(bytes),
        ..Launch::default()
    })
}
