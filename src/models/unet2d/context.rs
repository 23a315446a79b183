//! `UNet2DConditionModel`: a U-Net that attends to a context.

use super::UnetConfig;
use super::forward::Unet2d;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::config::ModelConfig;
use crate::models::diffusers::check_stride;
use crate::nn::params::{Loader, WeightSource};
use crate::ops::Select;
use crate::tensor::{DType, Tensor};

/// Weights on a device.
pub struct ContextUnet {
    config: ModelConfig,
    stride: usize,
    /// Channels of a context token.
    dim: usize,
    device: Device,
    dtype: DType,
    unet: Unet2d,
}

impl ContextUnet {
    /// Reads the weights of `unet`, the network of `config`, from `source`.
    ///
    /// # Errors
    /// `source`'s and the device's; [`Error::Input`] for a network without a context or with heads that are too large.
    pub fn load(
        config: &ModelConfig,
        unet: &UnetConfig,
        source: &dyn WeightSource,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let Some(context) = &unet.context else {
            let reason = "found a U-Net that attends to itself alone, one with cross-attention expected";
            return Err(Error::input(source.origin(), reason));
        };
        Ok(Self {
            config: config.clone(),
            stride: unet.stride(),
            dim: context.dim,
            device: device.clone(),
            dtype,
            unet: Unet2d::load(config, unet, &Loader::new(source, device, dtype))?,
        })
    }

    /// What the network predicts of images x [B, C, H, W] (f32), each at its own time and with its own context [B, L, D]
    /// (f32): [B, C', H, W].
    ///
    /// # Errors
    /// [`Error::Usage`] for images, times or contexts that do not fit the network or each other; the operations'.
    pub fn predict(&self, x: &Tensor, times: &[f64], context: &Tensor) -> Result<Tensor> {
        let (device, dtype, channels) = (&self.device, self.dtype, self.config.in_channels);
        let usage = |found: String| Err(Error::Usage(found));
        let &[batch, found, height, width] = x.shape() else {
            return usage(format!("images are {:?}, [batch, channels, height, width] expected", x.shape()));
        };
        if batch == 0 || found != channels {
            return usage(format!("{batch} images of {found} channels, images of {channels} channels expected"));
        }
        for side in [height, width] {
            check_stride(side, self.stride).map_err(Error::Usage)?;
        }
        if times.len() != batch {
            return usage(format!("{} times for {batch} images, one for each expected", times.len()));
        }
        match *context.shape() {
            [images, tokens, dim] if images == batch && tokens > 0 && dim == self.dim => {}
            _ => {
                let expected = format!("[{batch}, tokens, {}] expected", self.dim);
                return usage(format!("the context is {:?}, {expected}", context.shape()));
            }
        }
        let numbers: Vec<u32> = (0..batch as u32).collect();
        let (counter, rows) = (Tensor::from_u32(device, &[1], &[0])?, Tensor::from_u32(device, &[batch], &numbers)?);
        let select = Select { counter: &counter, rows: &rows, conditions: batch };
        let context = Tensor::from_f32(device, dtype, context.shape(), &context.to_f32(device)?)?;
        let mut conditions = self.unet.new_conditions(device, batch)?;
        self.unet.conditions(&self.config, device, times, &mut conditions)?;
        self.unet.attend_to(device, &context, &mut conditions)?;
        let mut acts = self.unet.acts(device, dtype, batch, [height, width])?;
        let mut output = Tensor::zeros(device, dtype, &[batch, self.config.out_channels, height, width])?;
        self.unet.forward(device, x, select, &conditions, &mut acts, &mut output)?;
        Ok(output)
    }
}
