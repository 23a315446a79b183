//! Images to rows of patches and back: index maps, so that patch embedding and the last layer are plain products.

use super::{expect, launch_elementwise, round, shape_error, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

spec! {
    /// Geometry of `patchify_fwd_*` and `unpatchify_fwd_*`.
    PatchSpec { batch: i32, x_batch: i32, channels: i32, height: i32, width: i32, patch: i32 }
}
pub(super) const LAYOUT: super::SpecLayout = PatchSpec::LAYOUT;

impl PatchSpec {
    /// Fields in order.
    pub(super) fn new(sizes: [usize; 6]) -> Result<Self> {
        let [batch, x_batch, channels, height, width, patch] = sizes;
        Ok(Self {
            batch: to_i32(batch)?,
            x_batch: to_i32(x_batch)?,
            channels: to_i32(channels)?,
            height: to_i32(height)?,
            width: to_i32(width)?,
            patch: to_i32(patch)?,
        })
    }
}

/// y [B, T, C p p], order (channel, row, column) within a patch as a convolution's weights have it, from images
/// x [X, C, H, W] (always f32, or f64 in f64 models): image b is x[b mod X], so that guidance's two halves share x.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn patchify(device: &Device, x: &Tensor, patch: usize, y: &mut Tensor) -> Result<()> {
    let &[x_batch, channels, height, width] = x.shape() else {
        return Err(shape_error("patchify image", x.shape(), &[0, 0, 0, 0]));
    };
    let batch = y.dim(0);
    let dtype = y.dtype();
    expect("patchify image", x, dtype.wide(), x.shape())?;
    expect("patchify output", y, dtype, &[batch, (height / patch) * (width / patch), channels * patch * patch])?;
    match device {
        Device::Cpu(_) => {
            with_real!(y.dtype(), T => {
                let (x, y) = (x.host::<T>()?, y.host_mut::<T>()?);
                for (b, y) in y.chunks_mut(channels * height * width).enumerate() {
                    let x = &x[b % x_batch * channels * height * width..][..channels * height * width];
                    let at = |c: usize, row: usize, col: usize| (c * height + row) * width + col;
                    for_patches(channels, height, width, patch, |token, c, i, j, row, col| {
                        y[(token * channels + c) * patch * patch + i * patch + j] = x[at(c, row, col)];
                    });
                }
            });
            round(y)
        }
        Device::Cuda(cuda) => {
            let spec = PatchSpec::new([batch, x_batch, channels, height, width, patch])?;
            let pointers = [x.address(0)?, y.address(0)?];
            let kernel = format!("patchify_fwd_{}", y.dtype());
            let bytes = x.bytes() + y.bytes();
            launch_elementwise(cuda, ("patch", kernel), y.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// images [B, C, H, W] from tokens [B, T, p p C], order (row, column, channel) within a patch as DiT's last layer has
/// it.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn unpatchify(device: &Device, tokens: &Tensor, patch: usize, images: &mut Tensor) -> Result<()> {
    let &[batch, channels, height, width] = images.shape() else {
        return Err(shape_error("unpatchify image", images.shape(), &[0, 0, 0, 0]));
    };
    let expected = [batch, (height / patch) * (width / patch), channels * patch * patch];
    expect("unpatchify tokens", tokens, images.dtype(), &expected)?;
    match device {
        Device::Cpu(_) => {
            with_real!(images.dtype(), T => {
                let (y, v) = (tokens.host::<T>()?, images.host_mut::<T>()?);
                for (y, v) in y.chunks(channels * height * width).zip(v.chunks_mut(channels * height * width)) {
                    for_patches(channels, height, width, patch, |token, c, i, j, row, col| {
                        v[(c * height + row) * width + col] = y[((token * patch + i) * patch + j) * channels + c];
                    });
                }
            });
            round(images)
        }
        Device::Cuda(cuda) => {
            let spec = PatchSpec::new([batch, batch, channels, height, width, patch])?;
            let pointers = [tokens.address(0)?, images.address(0)?];
            let kernel = format!("unpatchify_fwd_{}", images.dtype());
            let bytes = tokens.bytes() + images.bytes();
            launch_elementwise(cuda, ("patch", kernel), images.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// Calls `visit(token, channel, i, j, row, column)` for every element of one image; (i, j) is the place in the patch.
pub(super) fn for_patches(
    channels: usize,
    height: usize,
    width: usize,
    patch: usize,
    mut visit: impl FnMut(usize, usize, usize, usize, usize, usize),
) {
    for token in 0..(height / patch) * (width / patch) {
        let (top, left) = (token / (width / patch) * patch, token % (width / patch) * patch);
        for c in 0..channels {
            for i in 0..patch {
                for j in 0..patch {
                    visit(token, c, i, j, top + i, left + j);
                }
            }
        }
    }
}
