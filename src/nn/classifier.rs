//! Both ends of a network that looks at images: how they come in, and what is made of the features of all their pixels.

use super::linear::Linear;
use super::norm::LayerNorm;
use super::params::Loader;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::layout::channels_last;
use crate::ops::linear::{Activation, Residual};
use crate::ops::pool::{Average, average_pool};
use crate::tensor::{DType, Tensor};

/// Images x [B, C, H, W] (f32) as [B, H, W, C] of `dtype`; C is `channels`, and no side is shorter than `least`.
///
/// # Errors
/// [`Error::Usage`] for other images; [`Error::OutOfMemory`].
pub fn images_last(device: &Device, dtype: DType, x: &Tensor, channels: usize, least: usize) -> Result<Tensor> {
    let &[batch, found, height, width] = x.shape() else {
        return Err(Error::Usage(format!("images are {:?}, [batch, channels, height, width] expected", x.shape())));
    };
    if found != channels {
        return Err(Error::Usage(format!("images have {found} channels, {channels} expected")));
    }
    if batch == 0 || height.min(width) < least {
        let found = format!("{batch} images of {height} x {width} pixels");
        return Err(Error::Usage(format!("{found}, at least one of at least {least} x {least} expected")));
    }
    let mut image = Tensor::zeros(device, dtype, &[batch, height, width, channels])?;
    channels_last(device, x, &mut image)?;
    Ok(image)
}

/// The average of features over the pixels of an image, and a norm and a linear layer behind it where there are any.
pub struct Head {
    norm: Option<LayerNorm>,
    linear: Option<Linear>,
}

impl Head {
    /// Reads the linear layer of `outputs` outputs below the loader's path; 0: there is none.
    ///
    /// # Errors
    /// The loader's.
    pub fn load(loader: &Loader, norm: Option<LayerNorm>, outputs: usize, channels: usize) -> Result<Self> {
        let linear = (outputs > 0).then(|| Linear::load(loader, outputs, channels));
        Ok(Self { norm, linear: linear.transpose()? })
    }

    /// The logits [B, outputs] of features [B, H, W, C], or without a linear layer their averages [B, C].
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(&self, device: &Device, features: &Tensor) -> Result<Tensor> {
        let (batch, channels, dtype) = (features.dim(0), features.last_dim(), features.dtype());
        let mut averaged = Tensor::zeros(device, dtype, &[batch, 1, 1, channels])?;
        average_pool(device, features, Average::Adaptive([1, 1]), &mut averaged)?;
        let mut averaged = averaged.reshape(&[batch, channels])?;
        if let Some(norm) = &self.norm {
            let mut normed = Tensor::zeros(device, dtype, &[batch, channels])?;
            norm.forward(device, &averaged, &mut normed)?;
            averaged = normed;
        }
        let Some(linear) = &self.linear else { return Ok(averaged) };
        let mut logits = Tensor::zeros(device, dtype, &[batch, linear.bias.len()])?;
        let mut workspace = linear.workspace(device, batch, 1)?;
        linear.forward(device, &averaged, Activation::None, Residual::None, &mut logits, &mut workspace)?;
        Ok(logits)
    }
}
