//! The forward pass of an EfficientNet, BatchNorm folded into the convolutions. Images are [B, H, W, C].

use super::{EfficientNetConfig, SQUEEZE, STEM_KERNEL, Stage};
use crate::device::Device;
use crate::error::Result;
use crate::models::config::ModelConfig;
use crate::nn::Tap;
use crate::nn::classifier::{Head, images_last};
use crate::nn::conv::{Behind, Conv};
use crate::nn::params::{Loader, WeightSource};
use crate::nn::scratch::Scratch;
use crate::nn::tools::Tools;
use crate::ops::conv::{ConvSpec, Residual};
use crate::ops::excite::excite;
use crate::ops::linear::{Activation, Workspace, WorkspaceSize};
use crate::ops::pool::{Average, average_pool};
use crate::tensor::{DType, Tensor};

/// Weights on a device.
pub struct EfficientNet {
    in_channels: usize,
    device: Device,
    dtype: DType,
    stem: Conv,
    stages: Vec<Vec<Block>>,
    /// The 1x1 convolution behind the stages.
    last: Conv,
    head: Head,
}

/// Inverted bottleneck: channels are widened, filtered each by itself, weighted by what squeeze and excitation make of the
/// whole image, and projected.
struct Block {
    /// None where as many channels come in as are inside.
    widen: Option<Conv>,
    depthwise: Conv,
    squeeze: Conv,
    gate: Conv,
    project: Conv,
    /// Whether what comes in is added.
    adds: bool,
}

impl EfficientNet {
    /// Reads the weights of `efficientnet`, the network of `config`, from `source`.
    ///
    /// # Errors
    /// `source`'s and the device's.
    pub fn load(
        config: &ModelConfig,
        efficientnet: &EfficientNetConfig,
        source: &dyn WeightSource,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let loader = &Loader::new(source, device, dtype);
        let EfficientNetConfig { stem, stages, head, norm_eps, head_size } = efficientnet;
        let first = ConvSpec::new(STEM_KERNEL).stride(2).padding(STEM_KERNEL / 2);
        let mut from = *stem;
        let mut blocks = Vec::with_capacity(stages.len());
        for (s, stage) in stages.iter().enumerate() {
            let block = |b: usize| {
                let (from, stride) = if b == 0 { (from, stage.stride) } else { (stage.channels, 1) };
                Block::load(&loader.at(format!("blocks.{s}.{b}")), stage, from, stride, *norm_eps)
            };
            blocks.push((0..stage.blocks).map(block).collect::<Result<_>>()?);
            from = stage.channels;
        }
        Ok(Self {
            in_channels: config.in_channels,
            device: device.clone(),
            dtype,
            stem: Conv::load_folded(loader, ["conv_stem", "bn1"], first, [*stem, config.in_channels], *norm_eps)?,
            stages: blocks,
            last: Conv::load_folded(loader, ["conv_head", "bn2"], ConvSpec::new(1), [*head, from], *norm_eps)?,
            head: Head::load(&loader.at("classifier"), None, *head_size, *head)?,
        })
    }

    /// Of images x [B, C, H, W] (f32) the features behind the last convolution [B, h, w, channels]; `tap` sees the outputs of
    /// the `stem` and of the stages, `stage0` and so on, channels last.
    ///
    /// # Errors
    /// [`crate::error::Error::Usage`] for images of other channels or without pixels; the operations'.
    pub fn features(&self, x: &Tensor, tap: Tap) -> Result<Tensor> {
        let device = &self.device;
        let image = images_last(device, self.dtype, x, self.in_channels, 1)?;
        let need = self.workspace_size(x.dim(0), [x.dim(2), x.dim(3)])?;
        let (mut workspace, mut scratch) = (Workspace::new(device, self.dtype, need)?, Scratch::new(device));
        let tools = &mut Tools { device, scratch: &mut scratch, workspace: &mut workspace };
        let mut x = tools.conv(&self.stem, &image, Activation::Silu)?;
        tap("stem", &x);
        for (i, blocks) in self.stages.iter().enumerate() {
            for block in blocks {
                let y = block.forward(tools, &x)?;
                tools.scratch.put(std::mem::replace(&mut x, y));
            }
            tap(&format!("stage{i}"), &x);
        }
        tools.conv(&self.last, &x, Activation::Silu)
    }

    /// Of images x [B, C, H, W] (f32) the logits [B, classes], or without a classifier the averaged features
    /// [B, channels]; `tap` as of [`EfficientNet::features`].
    ///
    /// # Errors
    /// As of [`EfficientNet::features`].
    pub fn logits(&self, x: &Tensor, tap: Tap) -> Result<Tensor> {
        self.head.forward(&self.device, &self.features(x, tap)?)
    }

    /// What `batch` images of `size` need.
    fn workspace_size(&self, batch: usize, size: [usize; 2]) -> Result<WorkspaceSize> {
        let (device, mut size) = (&self.device, self.stem.output(size)?);
        let mut need = self.stem.workspace_size(device, batch, size);
        for block in self.stages.iter().flatten() {
            let inside = block.depthwise.output(size)?;
            let image = [1, 1];
            for (conv, size) in [(&block.squeeze, image), (&block.gate, image), (&block.project, inside)]
                .into_iter()
                .chain(block.widen.as_ref().map(|widen| (widen, size)))
            {
                need = need.max(conv.workspace_size(device, batch, size));
            }
            need = need.max(block.depthwise.workspace_size(device, batch, inside));
            size = inside;
        }
        Ok(need.max(self.last.workspace_size(device, batch, size)))
    }
}

impl Block {
    fn load(loader: &Loader, stage: &Stage, from: usize, stride: usize, eps: f64) -> Result<Self> {
        let Stage { channels, kernel, expansion, .. } = *stage;
        let (inside, squeezed) = (from * expansion, (from / SQUEEZE).max(1));
        let widened = expansion > 1;
        let folded = |names, spec, sizes| Conv::load_folded(loader, names, spec, sizes, eps);
        let depthwise = ConvSpec::new(kernel).stride(stride).padding(kernel / 2).groups(inside);
        let point = ConvSpec::new(1);
        let [second, third] =
            if widened { [["conv_dw", "bn2"], ["conv_pwl", "bn3"]] } else { [["conv_dw", "bn1"], ["conv_pw", "bn2"]] };
        Ok(Self {
            widen: widened.then(|| folded(["conv_pw", "bn1"], point, [inside, from])).transpose()?,
            depthwise: folded(second, depthwise, [inside; 2])?,
            squeeze: Conv::load(&loader.at("se.conv_reduce"), point, [squeezed, inside])?,
            gate: Conv::load(&loader.at("se.conv_expand"), point, [inside, squeezed])?,
            project: folded(third, point, [channels, inside])?,
            adds: stride == 1 && from == channels,
        })
    }

    fn forward(&self, tools: &mut Tools, x: &Tensor) -> Result<Tensor> {
        let wide = self.widen.as_ref().map(|widen| tools.conv(widen, x, Activation::Silu)).transpose()?;
        let mut y = tools.conv(&self.depthwise, wide.as_ref().unwrap_or(x), Activation::Silu)?;
        let mut averaged = tools.sized(&y, [1, 1], y.last_dim())?;
        average_pool(tools.device, &y, Average::Adaptive([1, 1]), &mut averaged)?;
        let squeezed = tools.conv(&self.squeeze, &averaged, Activation::Silu)?;
        let gate = tools.conv(&self.gate, &squeezed, Activation::None)?;
        excite(tools.device, &mut y, &gate)?;
        let residual = if self.adds { Residual::After(x) } else { Residual::None };
        let out = tools.conv_behind(&self.project, &y, Behind { residual, ..Behind::act(Activation::None) })?;
        for buffer in [y, averaged, squeezed, gate].into_iter().chain(wide) {
            tools.scratch.put(buffer);
        }
        Ok(out)
    }
}
