//! EfficientNet (Tan and Le, arXiv 1905.11946) under timm's parameter names; torchvision's are mapped to them.

pub mod forward;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::config::{ModelConfig, NetworkConfig};
use super::fields::Fields;
use super::recognise::plain;
use super::shapes::{Shapes, Told};
use crate::nn::params::{ParamSpec, batch_norm_specs, conv_specs, linear_specs};

/// Strides of the stages of B0 to B7.
const STRIDES: [usize; 7] = [1, 2, 2, 2, 1, 2, 1];
/// Height and width of the stem's kernel.
const STEM_KERNEL: usize = 3;
/// Channels that come into a block for each of its squeezed ones.
const SQUEEZE: usize = 4;
/// Size of images where the configuration does not say: what timm trained B3 with.
const IMAGE_SIZE: usize = 288;

/// Published sizes: channels of the stem and of the head, blocks of all stages.
const VARIANTS: [(&str, [usize; 3]); 8] = [
    ("efficientnet_b0", [32, 1280, 16]),
    ("efficientnet_b1", [32, 1280, 23]),
    ("efficientnet_b2", [32, 1408, 23]),
    ("efficientnet_b3", [40, 1536, 26]),
    ("efficientnet_b4", [48, 1792, 32]),
    ("efficientnet_b5", [48, 2048, 39]),
    ("efficientnet_b6", [56, 2304, 45]),
    ("efficientnet_b7", [64, 2560, 55]),
];

/// Blocks of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// How many.
    pub blocks: usize,
    /// Channels that come out.
    pub channels: usize,
    /// Height and width of the depthwise kernels.
    pub kernel: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Channels inside a block for each that comes in; 1: there is no convolution to widen them.
    pub expansion: usize,
}

/// Sizes of an EfficientNet.
#[derive(Clone, Debug, PartialEq)]
pub struct EfficientNetConfig {
    /// Channels of the 3x3 convolution in front.
    pub stem: usize,
    /// Stages of inverted bottlenecks with squeeze and excitation.
    pub stages: Vec<Stage>,
    /// Channels of the 1x1 convolution behind them.
    pub head: usize,
    /// Added to the variance in BatchNorm.
    pub norm_eps: f64,
    /// Outputs of the classifier; 0: there is none.
    pub head_size: usize,
}

impl EfficientNetConfig {
    /// The published name of these sizes.
    pub fn variant(&self) -> Option<&'static str> {
        let sizes = [self.stem, self.head, self.stages.iter().map(|s| s.blocks).sum()];
        VARIANTS.iter().find(|(_, published)| *published == sizes).map(|(name, _)| *name)
    }

    /// Parameters.
    pub fn specs(&self, in_channels: usize) -> Vec<ParamSpec> {
        let mut specs = Vec::new();
        let mut from = self.stem;
        conv_norm(&mut specs, ["conv_stem", "bn1"].map(String::from), [from, in_channels, STEM_KERNEL]);
        for (s, stage) in self.stages.iter().enumerate() {
            for b in 0..stage.blocks {
                let at = |name: &str| format!("blocks.{s}.{b}.{name}");
                let (inside, squeezed) = (from * stage.expansion, (from / SQUEEZE).max(1));
                let widened = stage.expansion > 1;
                if widened {
                    conv_norm(&mut specs, [at("conv_pw"), at("bn1")], [inside, from, 1]);
                }
                let [depthwise, project] = if widened { ["bn2", "bn3"] } else { ["bn1", "bn2"] };
                conv_norm(&mut specs, [at("conv_dw"), at(depthwise)], [inside, 1, stage.kernel]);
                specs.extend(conv_specs(&at("se.conv_reduce"), [squeezed, inside, 1]));
                specs.extend(conv_specs(&at("se.conv_expand"), [inside, squeezed, 1]));
                let name = if widened { "conv_pwl" } else { "conv_pw" };
                conv_norm(&mut specs, [at(name), at(project)], [stage.channels, inside, 1]);
                from = stage.channels;
            }
        }
        conv_norm(&mut specs, ["conv_head", "bn2"].map(String::from), [self.head, from, 1]);
        if self.head_size > 0 {
            specs.extend(linear_specs("classifier", self.head_size, self.head));
        }
        specs
    }

    /// Its fields as `config.json` holds them.
    pub(super) fn describe(&self, map: &mut Map<String, Value>) {
        let each = |of: fn(&Stage) -> usize| json!(self.stages.iter().map(of).collect::<Vec<_>>());
        map.insert("stem_channels".into(), self.stem.into());
        map.insert("depths".into(), each(|s| s.blocks));
        map.insert("dims".into(), each(|s| s.channels));
        map.insert("kernels".into(), each(|s| s.kernel));
        map.insert("strides".into(), each(|s| s.stride));
        map.insert("expansions".into(), each(|s| s.expansion));
        map.insert("num_features".into(), self.head.into());
        map.insert("norm_eps".into(), self.norm_eps.into());
        map.insert("num_classes".into(), self.head_size.into());
    }

    /// Takes from a configuration what shapes cannot tell, and compares what they can. The strides were read before.
    pub(super) fn overlay(&mut self, fields: &Fields) -> Told<()> {
        let each = |of: fn(&Stage) -> usize| self.stages.iter().map(of).collect::<Vec<_>>();
        fields.compare(&["stem_channels", "stem_size"], self.stem)?;
        fields.compare_list("depths", &each(|s| s.blocks))?;
        fields.compare_list("dims", &each(|s| s.channels))?;
        fields.compare_list("kernels", &each(|s| s.kernel))?;
        fields.compare_list("expansions", &each(|s| s.expansion))?;
        fields.compare(&["num_features"], self.head)?;
        fields.epsilon(&["norm_eps", "bn_eps"], &mut self.norm_eps)?;
        fields.compare_head(self.head_size)
    }
}

fn conv_norm(specs: &mut Vec<ParamSpec>, [conv, norm]: [String; 2], [n, c, k]: [usize; 3]) {
    specs.push(ParamSpec::new(format!("{conv}.weight"), &[n, c, k, k]));
    specs.extend(batch_norm_specs(&norm, n));
}

/// An EfficientNet classifier, or its trunk alone.
pub(super) fn recognise(shapes: &Shapes) -> Told<ModelConfig> {
    let [stem, in_channels, _, _] = shapes.get("conv_stem.weight")?;
    let [head, _, _, _] = shapes.get("conv_head.weight")?;
    let depthwise = |s: usize, b: usize| format!("blocks.{s}.{b}.conv_dw.weight");
    let count = shapes.count("stages called blocks.N", |s| depthwise(s, 0))?;
    let strides = strides(shapes.given, count).map_err(|e| format!("configuration: {e}"))?;
    let stages = strides.into_iter().enumerate().map(|(s, stride)| {
        let [inside, _, kernel, _] = shapes.get(&depthwise(s, 0))?;
        let widened = shapes.has(&format!("blocks.{s}.0.conv_pwl.weight"));
        let last = if widened { "conv_pwl" } else { "conv_pw" };
        let [channels, _, _, _] = shapes.get(&format!("blocks.{s}.0.{last}.weight"))?;
        let from = if widened { shapes.get::<4>(&format!("blocks.{s}.0.conv_pw.weight"))?[1] } else { inside };
        let blocks = shapes.count(&format!("blocks called blocks.{s}.N"), |b| depthwise(s, b))?;
        Ok(Stage { blocks, channels, kernel, stride, expansion: inside / from })
    });
    let stages = stages.collect::<Told<Vec<Stage>>>()?;
    let head_size = if shapes.has("classifier.weight") { shapes.get::<2>("classifier.weight")?[0] } else { 0 };
    let config = EfficientNetConfig { stem, stages, head, norm_eps: 1e-5, head_size };
    Ok(plain(NetworkConfig::EfficientNet(config), IMAGE_SIZE, in_channels))
}

/// The strides of `count` stages, which shapes do not tell: as configured, by `strides` or timm's `arch`
/// (`ir_r2_k3_s2_e6_c16_se0.25`), else those of B0 to B7.
fn strides(given: &Map<String, Value>, count: usize) -> Told<Vec<usize>> {
    let expected = || format!("strides of 1 or 2 for each of the {count} stages expected");
    let found: Option<Vec<usize>> = if given.contains_key("strides") {
        Fields(given).list("strides")?.map(|(_, strides)| strides)
    } else if let Some(Value::Array(stages)) = given.get("arch") {
        let stride = |stage: &Value| {
            let text = stage.as_array()?.first()?.as_str()?;
            text.split('_').find_map(|part| part.strip_prefix('s')?.parse().ok())
        };
        Some(stages.iter().map(stride).collect::<Option<_>>().ok_or_else(|| format!("arch: {}", expected()))?)
    } else {
        (count == STRIDES.len()).then(|| STRIDES.to_vec())
    };
    match found {
        Some(strides) if strides.len() == count && strides.iter().all(|s| [1, 2].contains(s)) => Ok(strides),
        Some(strides) => Err(format!("strides are {strides:?}, {}", expected())),
        None => Err(format!("strides are unknown, {}", expected())),
    }
}

/// timm's name for torchvision's `name` among `names`, if it is one.
pub(super) fn renamed(name: &str, names: &BTreeMap<String, String>) -> Option<String> {
    if !names.contains_key("features.1.0.block.0.0.weight") {
        return None;
    }
    if let Some(last) = name.strip_prefix("classifier.1.") {
        return Some(format!("classifier.{last}"));
    }
    let parts: Vec<&str> = name.strip_prefix("features.")?.split('.').collect();
    match parts[..] {
        ["0", "0", last] => Some(format!("conv_stem.{last}")),
        ["0", "1", last] => Some(format!("bn1.{last}")),
        // Stages have blocks, the 1x1 convolution behind them has none.
        [_, "0", last] => Some(format!("conv_head.{last}")),
        [_, "1", last] => Some(format!("bn2.{last}")),
        [stage, block, "block", layer, part, last] => {
            let widened = names.contains_key(&format!("features.{stage}.{block}.block.3.0.weight"));
            let stage = stage.parse::<usize>().ok()?.checked_sub(1)?;
            let layer = layer.parse::<usize>().ok()?.checked_add(usize::from(!widened))?;
            let ours = match (layer, part, widened) {
                (0, "0", _) => "conv_pw",
                (0, "1", _) => "bn1",
                (1, "0", _) => "conv_dw",
                (1, "1", true) => "bn2",
                (1, "1", false) => "bn1",
                (2, "fc1", _) => "se.conv_reduce",
                (2, "fc2", _) => "se.conv_expand",
                (3, "0", true) => "conv_pwl",
                (3, "0", false) => "conv_pw",
                (3, "1", true) => "bn3",
                (3, "1", false) => "bn2",
                _ => return None,
            };
            Some(format!("blocks.{stage}.{block}.{ours}.{last}"))
        }
        _ => None,
    }
}
