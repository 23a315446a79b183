//! ResNet (He et al., arXiv 1512.03385) under torchvision's parameter names, which are timm's too: classifiers, and the
//! encoders of U-Nets.

pub mod classifier;
pub mod trunk;

use serde_json::{Map, Value, json};

use super::config::{ModelConfig, NetworkConfig};
use super::fields::Fields;
use super::recognise::plain;
use super::shapes::{Shapes, Told};
use crate::nn::params::{ParamSpec, batch_norm_specs, linear_specs};

/// Stages of residual blocks, each half as large as the one before it.
pub const STAGES: usize = 4;
/// Height and width of the stem's kernel.
const STEM_KERNEL: usize = 7;
/// Size of images where the configuration does not say: ImageNet's.
const IMAGE_SIZE: usize = 224;

/// The residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResBlock {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3, 1x1, the last with four times the channels.
    Bottleneck,
}

impl ResBlock {
    /// Channels that come out for each channel inside.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Bottleneck => "bottleneck",
        }
    }
}

/// Sizes of a ResNet.
#[derive(Clone, Debug, PartialEq)]
pub struct ResNetConfig {
    /// Kind of its blocks.
    pub block: ResBlock,
    /// Channels of the 7x7 convolution in front.
    pub stem: usize,
    /// Blocks of each stage.
    pub layers: [usize; STAGES],
    /// Channels inside the blocks of each stage.
    pub channels: [usize; STAGES],
    /// Added to the variance in BatchNorm.
    pub norm_eps: f64,
    /// Outputs of the classifier; 0: there is none.
    pub head_size: usize,
}

impl ResNetConfig {
    /// Channels of the stem's output and of each stage's, at 1/2, 1/4, ... 1/32 of the image's side.
    pub fn features(&self) -> [usize; STAGES + 1] {
        let stage = |i: usize| self.channels[i] * self.block.expansion();
        [self.stem, stage(0), stage(1), stage(2), stage(3)]
    }

    /// The published name of these sizes.
    pub fn variant(&self) -> Option<&'static str> {
        use ResBlock::{Basic, Bottleneck};
        if self.stem != 64 || self.channels != [64, 128, 256, 512] {
            return None;
        }
        match (self.block, self.layers) {
            (Basic, [2, 2, 2, 2]) => Some("resnet18"),
            (Basic, [3, 4, 6, 3]) => Some("resnet34"),
            (Bottleneck, [3, 4, 6, 3]) => Some("resnet50"),
            (Bottleneck, [3, 4, 23, 3]) => Some("resnet101"),
            (Bottleneck, [3, 8, 36, 3]) => Some("resnet152"),
            _ => None,
        }
    }

    /// Parameters of the trunk below `prefix` (empty, or with a dot at its end), for images of `in_channels`.
    pub fn trunk_specs(&self, prefix: &str, in_channels: usize) -> Vec<ParamSpec> {
        let mut specs = Vec::new();
        let mut conv_norm = |conv: String, norm: String, [n, c, k]: [usize; 3]| {
            specs.push(ParamSpec::new(format!("{prefix}{conv}.weight"), &[n, c, k, k]));
            specs.extend(batch_norm_specs(&format!("{prefix}{norm}"), n));
        };
        conv_norm("conv1".into(), "bn1".into(), [self.stem, in_channels, STEM_KERNEL]);
        let mut from = self.stem;
        for (stage, (&blocks, &width)) in self.layers.iter().zip(&self.channels).enumerate() {
            let to = width * self.block.expansion();
            for b in 0..blocks {
                let at = format!("layer{}.{b}", stage + 1);
                let convs: &[[usize; 3]] = match self.block {
                    ResBlock::Basic => &[[width, from, 3], [width, width, 3]],
                    ResBlock::Bottleneck => &[[width, from, 1], [width, width, 3], [to, width, 1]],
                };
                for (i, &sizes) in convs.iter().enumerate() {
                    conv_norm(format!("{at}.conv{}", i + 1), format!("{at}.bn{}", i + 1), sizes);
                }
                // The way around the block needs a convolution where size or channels change.
                if b == 0 && (stage > 0 || from != to) {
                    conv_norm(format!("{at}.downsample.0"), format!("{at}.downsample.1"), [to, from, 1]);
                }
                from = to;
            }
        }
        specs
    }

    /// The sizes that the shapes below `prefix` say, and the number of image channels.
    pub(super) fn trunk(shapes: &Shapes, prefix: &str) -> Told<(Self, usize)> {
        let [stem, in_channels, _, _] = shapes.get(&format!("{prefix}conv1.weight"))?;
        let bottleneck = shapes.has(&format!("{prefix}layer1.0.conv3.weight"));
        let (mut layers, mut channels) = ([0; STAGES], [0; STAGES]);
        for (i, (blocks, width)) in layers.iter_mut().zip(&mut channels).enumerate() {
            let stage = format!("{prefix}layer{}", i + 1);
            *blocks = shapes.count(&format!("blocks called {stage}.N"), |b| format!("{stage}.{b}.conv1.weight"))?;
            [*width, _, _, _] = shapes.get(&format!("{stage}.0.conv1.weight"))?;
        }
        let block = if bottleneck { ResBlock::Bottleneck } else { ResBlock::Basic };
        Ok((Self { block, stem, layers, channels, norm_eps: 1e-5, head_size: 0 }, in_channels))
    }

    /// Parameters of the classifier.
    pub fn specs(&self, in_channels: usize) -> Vec<ParamSpec> {
        let mut specs = self.trunk_specs("", in_channels);
        if self.head_size > 0 {
            specs.extend(linear_specs("fc", self.head_size, self.features()[STAGES]));
        }
        specs
    }

    /// Its fields as `config.json` holds them.
    pub(super) fn describe(&self, map: &mut Map<String, Value>) {
        map.insert("block".into(), self.block.name().into());
        map.insert("stem_channels".into(), self.stem.into());
        map.insert("layers".into(), json!(self.layers));
        map.insert("channels".into(), json!(self.channels));
        map.insert("norm_eps".into(), self.norm_eps.into());
        map.insert("num_classes".into(), self.head_size.into());
    }

    /// Takes from a configuration what shapes cannot tell, and compares what they can.
    pub(super) fn overlay(&mut self, fields: &Fields) -> Told<()> {
        if let Some((name, block)) = fields.text("block")? {
            let known = [self.block.name(), if self.block == ResBlock::Basic { "BasicBlock" } else { "Bottleneck" }];
            if !known.contains(&block) {
                return Err(format!("{name} is {block}, but the shapes of the weights say {}", known[0]));
            }
        }
        fields.compare(&["stem_channels"], self.stem)?;
        fields.compare_list("layers", &self.layers)?;
        fields.compare_list("channels", &self.channels)?;
        fields.epsilon(&["norm_eps", "bn_eps"], &mut self.norm_eps)?;
        fields.compare_head(self.head_size)
    }
}

/// A ResNet classifier, or its trunk alone.
pub(super) fn recognise(shapes: &Shapes) -> Told<ModelConfig> {
    let (mut config, in_channels) = ResNetConfig::trunk(shapes, "")?;
    if shapes.has("fc.weight") {
        [config.head_size, _] = shapes.get("fc.weight")?;
    }
    Ok(plain(NetworkConfig::ResNet(config), IMAGE_SIZE, in_channels))
}
