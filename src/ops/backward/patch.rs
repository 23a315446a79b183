//! Backward of images to rows of patches and back: the index maps the other way round. Both write with `=`.

use crate::device::Device;
use crate::error::Result;
use crate::ops::patch::{PatchSpec, for_patches};
use crate::ops::{expect, launch_elementwise, round, shape_error, with_real};
use crate::tensor::Tensor;

/// dx [B, C, H, W] (wide type) from dy [B, T, C p p], order (channel, row, column) within a patch: the gradient of
/// [`crate::ops::patch::patchify`] of as many images as it makes.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn patchify_backward(device: &Device, dy: &Tensor, patch: usize, dx: &mut Tensor) -> Result<()> {
    let &[batch, channels, height, width] = dx.shape() else {
        return Err(shape_error("patchify dx", dx.shape(), &[0, 0, 0, 0]));
    };
    let dtype = dy.dtype();
    expect("patchify dx", dx, dtype.wide(), dx.shape())?;
    expect("patchify dy", dy, dtype, &[batch, (height / patch) * (width / patch), channels * patch * patch])?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let per_image = channels * height * width;
                let images = dx.host_mut::<T>()?.chunks_mut(per_image).zip(dy.host::<T>()?.chunks(per_image));
                for (dx, dy) in images {
                    for_patches(channels, height, width, patch, |token, c, i, j, row, col| {
                        dx[(c * height + row) * width + col] =
                            dy[(token * channels + c) * patch * patch + i * patch + j];
                    });
                }
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let spec = PatchSpec::new([batch, batch, channels, height, width, patch])?;
            let (pointers, bytes) = ([dy.address(0)?, dx.address(0)?], dx.bytes() + dy.bytes());
            let kernel = format!("patchify_bwd_{dtype}");
            launch_elementwise(cuda, ("patch", kernel), dx.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// dtokens [B, T, p p C], order (row, column, channel) within a patch, from dimages [B, C, H, W]: the gradient of
/// [`crate::ops::patch::unpatchify`].
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn unpatchify_backward(device: &Device, dimages: &Tensor, patch: usize, dtokens: &mut Tensor) -> Result<()> {
    let &[batch, channels, height, width] = dimages.shape() else {
        return Err(shape_error("unpatchify dimages", dimages.shape(), &[0, 0, 0, 0]));
    };
    let dtype = dimages.dtype();
    let expected = [batch, (height / patch) * (width / patch), channels * patch * patch];
    expect("unpatchify dtokens", dtokens, dtype, &expected)?;
    match device {
        Device::Cpu(_) => {
            with_real!(dtype, T => {
                let per_image = channels * height * width;
                let to = dtokens.host_mut::<T>()?;
                for (to, from) in to.chunks_mut(per_image).zip(dimages.host::<T>()?.chunks(per_image)) {
                    for_patches(channels, height, width, patch, |token, c, i, j, row, col| {
                        to[((token * patch + i) * patch + j) * channels + c] = from[(c * height + row) * width + col];
                    });
                }
            });
            round(dtokens)
        }
        Device::Cuda(cuda) => {
            let spec = PatchSpec::new([batch, batch, channels, height, width, patch])?;
            let (pointers, bytes) = ([dimages.address(0)?, dtokens.address(0)?], dimages.bytes() + dtokens.bytes());
            let kernel = format!("unpatchify_bwd_{dtype}");
            launch_elementwise(cuda, ("patch", kernel), dtokens.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}
