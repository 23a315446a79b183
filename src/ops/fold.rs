//! A 1x1 convolution folded into the patch embedding behind it, for training: the folded weight is what the product reads,
//! the two that it is made of are what learns.

use super::{SpecLayout, expect, launch_elementwise, moves, round, shape_error, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::Launch;
use crate::error::Result;
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `fold_fwd_*`, `fold_proj_bwd_*` and `fold_conv_bwd_*`.
    FoldSpec { dim: i32, between: i32, channels: i32, pixels: i32 }
}
pub(super) const LAYOUT: SpecLayout = FoldSpec::LAYOUT;

/// The two layers, or their gradients in the wide type.
pub struct Folded<T> {
    /// Of the convolution, [E, C].
    pub conv: T,
    /// `[E]`.
    pub conv_bias: T,
    /// Of the patch embedding, [D, E P]: P pixels of each of E channels.
    pub proj: T,
    /// `[D]`.
    pub proj_bias: T,
}

struct Sizes {
    dim: usize,
    between: usize,
    channels: usize,
    pixels: usize,
}

impl Sizes {
    /// The sizes of layers that fit each other and a folded weight [D, C P] and bias `[D]`.
    fn of(layers: &Folded<&Tensor>, weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let (between, channels) = (layers.conv.dim(0), layers.conv.last_dim());
        let (dim, pixels) = (layers.proj.dim(0), layers.proj.last_dim() / between.max(1));
        let dtype = layers.conv.dtype();
        expect("1x1 convolution", layers.conv, dtype, &[between, channels])?;
        expect("bias of the 1x1 convolution", layers.conv_bias, dtype, &[between])?;
        expect("patch embedding", layers.proj, dtype, &[dim, between * pixels])?;
        expect("bias of the patch embedding", layers.proj_bias, dtype, &[dim])?;
        if weight.shape() != [dim, channels * pixels] || bias.shape() != [dim] {
            return Err(shape_error("folded weight", weight.shape(), &[dim, channels * pixels]));
        }
        Ok(Self { dim, between, channels, pixels })
    }

    fn spec(&self) -> Result<FoldSpec> {
        let (dim, between) = (to_i32(self.dim)?, to_i32(self.between)?);
        Ok(FoldSpec { dim, between, channels: to_i32(self.channels)?, pixels: to_i32(self.pixels)? })
    }
}

/// weight [D, C P] and bias `[D]` of the two layers as one.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn fold(device: &Device, layers: Folded<&Tensor>, weight: &mut Tensor, bias: &mut Tensor) -> Result<()> {
    let sizes = Sizes::of(&layers, weight, bias)?;
    let dtype = layers.conv.dtype();
    expect("folded weight", weight, dtype, weight.shape())?;
    expect("folded bias", bias, dtype, bias.shape())?;
    match device {
        Device::Cpu(_) => {
            let Sizes { between, channels, pixels, .. } = sizes;
            with_real!(dtype, T => {
                let (conv, conv_bias) = (layers.conv.host::<T>()?, layers.conv_bias.host::<T>()?);
                let (proj, proj_bias) = (layers.proj.host::<T>()?, layers.proj_bias.host::<T>()?);
                weight.host_mut::<T>()?.fill(T::default());
                bias.host_mut::<T>()?.copy_from_slice(proj_bias);
                let rows = weight.host_mut::<T>()?.chunks_exact_mut(channels * pixels);
                let rows = rows.zip(bias.host_mut::<T>()?).zip(proj.chunks_exact(between * pixels));
                for ((weight, bias), proj) in rows {
                    for (e, proj) in proj.chunks_exact(pixels).enumerate() {
                        for (c, weight) in weight.chunks_exact_mut(pixels).enumerate() {
                            let v = conv[e * channels + c];
                            weight.iter_mut().zip(proj).for_each(|(w, &p)| *w = p.mul_add(v, *w));
                        }
                        proj.iter().for_each(|&p| *bias = p.mul_add(conv_bias[e], *bias));
                    }
                }
            });
            round(weight)?;
            round(bias)
        }
        Device::Cuda(cuda) => {
            let Folded { conv, conv_bias, proj, proj_bias } = layers;
            let inputs = [proj.address(0)?, proj_bias.address(0)?, conv.address(0)?, conv_bias.address(0)?];
            let pointers = [&inputs[..], &[weight.address(0)?, bias.address(0)?]].concat();
            let (spec, kernel) = (sizes.spec()?, format!("fold_fwd_{dtype}"));
            let bytes = proj.bytes() + weight.bytes();
            launch_elementwise(cuda, ("fold", kernel), weight.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// The gradients of the two layers from those of the folded weight and bias, in the wide type; added to.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn fold_backward(
    device: &Device,
    layers: Folded<&Tensor>,
    dweight: &Tensor,
    dbias: &Tensor,
    grads: Folded<&mut Tensor>,
) -> Result<()> {
    let sizes = Sizes::of(&layers, dweight, dbias)?;
    let dtype = layers.conv.dtype();
    let wide = dtype.wide();
    expect("gradient of the folded weight", dweight, wide, dweight.shape())?;
    expect("gradient of the folded bias", dbias, wide, dbias.shape())?;
    expect("gradient of the 1x1 convolution", grads.conv, wide, layers.conv.shape())?;
    expect("gradient of its bias", grads.conv_bias, wide, layers.conv_bias.shape())?;
    expect("gradient of the patch embedding", grads.proj, wide, layers.proj.shape())?;
    expect("gradient of its bias", grads.proj_bias, wide, layers.proj_bias.shape())?;
    match device {
        Device::Cpu(_) => with_real!(dtype, T => on_cpu::<T>(&sizes, &layers, dweight, dbias, grads)),
        Device::Cuda(cuda) => {
            let spec = sizes.spec()?;
            let spec = bytemuck::bytes_of(&spec);
            let (dw, db) = (dweight.address(0)?, dbias.address(0)?);
            let (conv, conv_bias) = (layers.conv.address(0)?, layers.conv_bias.address(0)?);
            let pointers = [dw, db, conv, conv_bias, grads.proj.address(0)?, grads.proj_bias.address(0)?];
            let (kernel, bytes) = (format!("fold_proj_bwd_{dtype}"), dweight.bytes() + 2 * grads.proj.bytes());
            launch_elementwise(cuda, ("fold", kernel), grads.proj.len(), &pointers, spec, bytes)?;
            let to = [grads.conv.address(0)?, grads.conv_bias.address(0)?];
            cuda.launch(&Launch {
                module: "fold",
                kernel: format!("fold_conv_bwd_{dtype}"),
                grid: [to_u32(sizes.between)?, to_u32(sizes.channels + 1)?, 1],
                threads: 256,
                pointers: &[dw, db, layers.proj.address(0)?, to[0], to[1]],
                spec,
                work: moves(dweight.bytes() + layers.proj.bytes()),
                ..Launch::default()
            })
        }
    }
}

fn on_cpu<T: Real>(
    sizes: &Sizes,
    layers: &Folded<&Tensor>,
    dweight: &Tensor,
    dbias: &Tensor,
    grads: Folded<&mut Tensor>,
) -> Result<()> {
    let &Sizes { dim, between, channels, pixels } = sizes;
    let (conv, conv_bias, proj) = (layers.conv.host::<T>()?, layers.conv_bias.host::<T>()?, layers.proj.host::<T>()?);
    let (dweight, dbias) = (dweight.host::<T>()?, dbias.host::<T>()?);
    let (dproj, dproj_bias) = (grads.proj.host_mut::<T>()?, grads.proj_bias.host_mut::<T>()?);
    let (dconv, dconv_bias) = (grads.conv.host_mut::<T>()?, grads.conv_bias.host_mut::<T>()?);
    for n in 0..dim {
        dproj_bias[n] += dbias[n];
        for e in 0..between {
            let (row, at) = (n * between + e, e * channels);
            let proj = &proj[row * pixels..][..pixels];
            for (i, (&p, dproj)) in proj.iter().zip(&mut dproj[row * pixels..]).enumerate() {
                let mut sum = dbias[n] * conv_bias[e];
                dconv_bias[e] += dbias[n] * p;
                for c in 0..channels {
                    let d = dweight[(n * channels + c) * pixels + i];
                    sum = d.mul_add(conv[at + c], sum);
                    dconv[at + c] = d.mul_add(p, dconv[at + c]);
                }
                *dproj += sum;
            }
        }
    }
    Ok(())
}
