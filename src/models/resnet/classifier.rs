//! A ResNet as a classifier, and as a source of features.

use super::trunk::Trunk;
use super::{ResNetConfig, STAGES};
use crate::device::Device;
use crate::error::Result;
use crate::models::config::ModelConfig;
use crate::nn::Tap;
use crate::nn::linear::Linear;
use crate::nn::params::{Loader, WeightSource};
use crate::ops::layout::channels_last;
use crate::ops::linear::{Activation, Residual, Workspace};
use crate::ops::pool::{Average, average_pool};
use crate::tensor::{DType, Tensor};

/// Weights on a device.
pub struct ResNet {
    in_channels: usize,
    features: usize,
    device: Device,
    dtype: DType,
    trunk: Trunk,
    head: Option<Linear>,
}

impl ResNet {
    /// Reads the weights of `resnet`, the network of `config`, from `source`.
    ///
    /// # Errors
    /// `source`'s and the device's.
    pub fn load(
        config: &ModelConfig,
        resnet: &ResNetConfig,
        source: &dyn WeightSource,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let loader = Loader::new(source, device, dtype);
        let features = resnet.features()[STAGES];
        let head = (resnet.head_size > 0).then(|| Linear::load(&loader.at("fc"), resnet.head_size, features));
        Ok(Self {
            in_channels: config.in_channels,
            features,
            device: device.clone(),
            dtype,
            trunk: Trunk::load(resnet, &loader, config.in_channels)?,
            head: head.transpose()?,
        })
    }

    /// Of images x [B, C, H, W] (f32) the logits [B, classes], or without a classifier the averaged features
    /// [B, channels]; `tap` sees `enc1` to `enc5`, channels last.
    ///
    /// # Errors
    /// The operations'.
    pub fn logits(&self, x: &Tensor, tap: Tap) -> Result<Tensor> {
        let (device, dtype) = (&self.device, self.dtype);
        let [batch, height, width] = [0, 2, 3].map(|axis| x.dim(axis));
        let zeros = |shape: &[usize]| Tensor::zeros(device, dtype, shape);
        let mut image = zeros(&[batch, height, width, self.in_channels])?;
        let mut acts = self.trunk.acts(device, dtype, batch, [height, width])?;
        let mut workspace = Workspace::new(device, dtype, self.trunk.workspace_size(device, batch, &acts))?;
        channels_last(device, x, &mut image)?;
        self.trunk.forward(device, &image, &mut acts, &mut workspace, tap)?;
        let mut averaged = zeros(&[batch, 1, 1, self.features])?;
        average_pool(device, acts.feature(STAGES), Average::Adaptive([1, 1]), &mut averaged)?;
        let averaged = averaged.reshape(&[batch, self.features])?;
        let Some(head) = &self.head else { return Ok(averaged) };
        let mut logits = zeros(&[batch, head.bias.len()])?;
        let mut workspace = head.workspace(device, batch, 1)?;
        head.forward(device, &averaged, Activation::None, Residual::None, &mut logits, &mut workspace)?;
        Ok(logits)
    }
}
