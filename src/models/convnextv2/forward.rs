//! The forward pass of a ConvNeXt V2. Images are [B, H, W, C].

use super::{ConvNextV2Config, KERNEL, MLP_RATIO, STAGES};
use crate::device::Device;
use crate::error::Result;
use crate::models::config::ModelConfig;
use crate::nn::Tap;
use crate::nn::classifier::{Head, images_last};
use crate::nn::conv::Conv;
use crate::nn::linear::Linear;
use crate::nn::norm::LayerNorm;
use crate::nn::params::{Loader, WeightSource};
use crate::nn::scratch::Scratch;
use crate::nn::tools::Tools;
use crate::ops::conv::ConvSpec;
use crate::ops::grn::{Grn, grn, scratch_len};
use crate::ops::linear::{Activation, Residual, Workspace, WorkspaceSize};
use crate::tensor::{DType, Tensor};

/// Added to the mean of the norms in global response normalisation.
const GRN_EPS: f64 = 1e-6;

/// Weights on a device.
pub struct ConvNextV2 {
    in_channels: usize,
    /// Sides of images that leave a pixel at the end.
    least: usize,
    device: Device,
    dtype: DType,
    /// Each pixel of its output by itself.
    stem: (Conv, LayerNorm),
    stages: Vec<Stage>,
    head: Head,
}

struct Stage {
    /// What halves its input, in all but the first.
    down: Option<(LayerNorm, Conv)>,
    blocks: Vec<Block>,
}

/// Depthwise convolution, norm, and two linear layers with GELU and global response normalisation between them, added to
/// what comes in.
struct Block {
    depthwise: Conv,
    norm: LayerNorm,
    wide: Linear,
    /// Weight and bias.
    grn: [Tensor; 2],
    narrow: Linear,
}

impl ConvNextV2 {
    /// Reads the weights of `convnext`, the network of `config`, from `source`.
    ///
    /// # Errors
    /// `source`'s and the device's.
    pub fn load(
        config: &ModelConfig,
        convnext: &ConvNextV2Config,
        source: &dyn WeightSource,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let loader = &Loader::new(source, device, dtype);
        let (patch, dims, eps) = (convnext.patch_size, &convnext.dims, convnext.norm_eps);
        let patches = |size: usize| ConvSpec::new(size).stride(size);
        let stages = loader.each(STAGES, |i| {
            let (at, d) = (loader.at(format!("stages.{i}")), dims[i]);
            let down = i.checked_sub(1).map(|before| {
                let norm = LayerNorm::load(&at.at("downsample.0"), dims[before], eps)?;
                Ok::<_, crate::error::Error>((norm, Conv::load(&at.at("downsample.1"), patches(2), [d, dims[before]])?))
            });
            let blocks = (0..convnext.depths[i]).map(|b| Block::load(&at.at(format!("blocks.{b}")), d, eps));
            Ok(Stage { down: down.transpose()?, blocks: blocks.collect::<Result<_>>()? })
        })?;
        let last = dims[STAGES - 1];
        let norm = LayerNorm::load(&loader.at("head.norm"), last, eps)?;
        Ok(Self {
            in_channels: config.in_channels,
            least: patch << (STAGES - 1),
            device: device.clone(),
            dtype,
            stem: (
                Conv::load(&loader.at("stem.0"), patches(patch), [dims[0], config.in_channels])?,
                LayerNorm::load(&loader.at("stem.1"), dims[0], eps)?,
            ),
            stages,
            head: Head::load(&loader.at("head.fc"), Some(norm), convnext.head_size, last)?,
        })
    }

    /// Of images x [B, C, H, W] (f32) the features of the last stage [B, h, w, channels], before the norm that belongs to
    /// the classifier; `tap` sees the outputs of the `stem` and of `stage0` to `stage3`, channels last. Rows and columns that
    /// a halving leaves over are dropped, as PyTorch does.
    ///
    /// # Errors
    /// [`crate::error::Error::Usage`] for images of other channels or too small; the operations'.
    pub fn features(&self, x: &Tensor, tap: Tap) -> Result<Tensor> {
        let device = &self.device;
        let image = images_last(device, self.dtype, x, self.in_channels, self.least)?;
        let need = self.workspace_size(x.dim(0), [x.dim(2), x.dim(3)])?;
        let (mut workspace, mut scratch) = (Workspace::new(device, self.dtype, need)?, Scratch::new(device));
        let tools = &mut Tools { device, scratch: &mut scratch, workspace: &mut workspace };
        let y = tools.conv(&self.stem.0, &image, Activation::None)?;
        let mut x = tools.norm(&self.stem.1, &y)?;
        tools.scratch.put(y);
        tap("stem", &x);
        for (i, stage) in self.stages.iter().enumerate() {
            if let Some((norm, conv)) = &stage.down {
                let normed = tools.norm(norm, &x)?;
                x = tools.conv(conv, &normed, Activation::None)?;
            }
            for block in &stage.blocks {
                block.forward(tools, &mut x)?;
            }
            tap(&format!("stage{i}"), &x);
        }
        Ok(x)
    }

    /// Of images x [B, C, H, W] (f32) the logits [B, classes], or without a classifier the features, averaged and normed
    /// [B, channels]; `tap` as of [`ConvNextV2::features`].
    ///
    /// # Errors
    /// As of [`ConvNextV2::features`].
    pub fn logits(&self, x: &Tensor, tap: Tap) -> Result<Tensor> {
        self.head.forward(&self.device, &self.features(x, tap)?)
    }

    /// What `batch` images of `size` need.
    fn workspace_size(&self, batch: usize, size: [usize; 2]) -> Result<WorkspaceSize> {
        let device = &self.device;
        let mut size = self.stem.0.output(size)?;
        let mut need = self.stem.0.workspace_size(device, batch, size);
        for Stage { down, blocks } in &self.stages {
            if let Some((_, conv)) = down {
                size = conv.output(size)?;
                need = need.max(conv.workspace_size(device, batch, size));
            }
            // All blocks of a stage are alike.
            if let Some(block) = blocks.first() {
                let linear = |layer: &Linear| layer.workspace_size(device, batch, size[0] * size[1]);
                need = need.max(block.depthwise.workspace_size(device, batch, size));
                need = need.max(linear(&block.wide)).max(linear(&block.narrow));
            }
        }
        Ok(need)
    }
}

impl Block {
    fn load(loader: &Loader, d: usize, eps: f64) -> Result<Self> {
        let spec = ConvSpec::new(KERNEL).padding(KERNEL / 2).groups(d);
        let (hidden, mlp) = (MLP_RATIO * d, loader.at("mlp"));
        let response = mlp.at("grn");
        let [weight, bias] = ["weight", "bias"].map(|part| response.tensor(part, &[hidden]));
        Ok(Self {
            depthwise: Conv::load(&loader.at("conv_dw"), spec, [d, d])?,
            norm: LayerNorm::load(&loader.at("norm"), d, eps)?,
            wide: Linear::load(&mlp.at("fc1"), hidden, d)?,
            grn: [weight?, bias?],
            narrow: Linear::load(&mlp.at("fc2"), d, hidden)?,
        })
    }

    /// x += block(x).
    fn forward(&self, tools: &mut Tools, x: &mut Tensor) -> Result<()> {
        let y = tools.conv(&self.depthwise, x, Activation::None)?;
        let normed = tools.norm(&self.norm, &y)?;
        tools.scratch.put(y);
        let mut hidden = tools.like(x, self.wide.bias.len())?;
        self.wide.forward(tools.device, &normed, Activation::Gelu, Residual::None, &mut hidden, tools.workspace)?;
        tools.scratch.put(normed);
        let mut response = tools.like(x, hidden.last_dim())?;
        let mut sums = tools.scratch.take(x.dtype().wide(), &[scratch_len(&hidden)?])?;
        let norm = Grn { eps: GRN_EPS, weight: &self.grn[0], bias: &self.grn[1] };
        grn(tools.device, &hidden, norm, &mut response, &mut sums)?;
        tools.scratch.put(sums);
        tools.scratch.put(hidden);
        self.narrow.forward(tools.device, &response, Activation::None, Residual::InPlace, x, tools.workspace)?;
        tools.scratch.put(response);
        Ok(())
    }
}
