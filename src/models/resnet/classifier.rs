//! A ResNet as a classifier, and as a source of features.

use super::trunk::Trunk;
use super::{ResNetConfig, STAGES};
use crate::device::Device;
use crate::error::Result;
use crate::models::config::ModelConfig;
use crate::nn::Tap;
use crate::nn::classifier::{Head, images_last};
use crate::nn::params::{Loader, WeightSource};
use crate::ops::linear::Workspace;
use crate::tensor::{DType, Tensor};

/// Weights on a device.
pub struct ResNet {
    in_channels: usize,
    device: Device,
    dtype: DType,
    trunk: Trunk,
    head: Head,
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
        Ok(Self {
            in_channels: config.in_channels,
            device: device.clone(),
            dtype,
            trunk: Trunk::load(resnet, &loader, config.in_channels)?,
            head: Head::load(&loader.at("fc"), None, resnet.head_size, resnet.features()[STAGES])?,
        })
    }

    /// Of images x [B, C, H, W] (f32) the logits [B, classes], or without a classifier the averaged features
    /// [B, channels]; `tap` sees `enc1` to `enc5`, channels last.
    ///
    /// # Errors
    /// [`crate::error::Error::Usage`] for images of other channels; the operations'.
    pub fn logits(&self, x: &Tensor, tap: Tap) -> Result<Tensor> {
        let (device, dtype) = (&self.device, self.dtype);
        let image = images_last(device, dtype, x, self.in_channels, 1)?;
        let (batch, size) = (x.dim(0), [x.dim(2), x.dim(3)]);
        let mut acts = self.trunk.acts(device, dtype, batch, size)?;
        let mut workspace = Workspace::new(device, dtype, self.trunk.workspace_size(device, batch, &acts))?;
        self.trunk.forward(device, &image, &mut acts, &mut workspace, tap)?;
        self.head.forward(device, acts.feature(STAGES))
    }
}
