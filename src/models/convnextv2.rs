//! ConvNeXt V2 (Woo et al., arXiv 2301.00808) under timm's parameter names: convolutions with global response
//! normalisation.

pub mod forward;

use serde_json::{Map, Value, json};

use super::config::{ModelConfig, NetworkConfig};
use super::fields::Fields;
use super::recognise::plain;
use super::shapes::{Shapes, Told};
use crate::nn::params::{ParamSpec, conv_specs, linear_specs, norm_specs};

/// Stages of blocks, each half as large as the one before it.
pub const STAGES: usize = 4;
/// Width of the feed-forward layers over that of the block.
const MLP_RATIO: usize = 4;
/// Height and width of the depthwise kernels.
const KERNEL: usize = 7;
/// Size of images where the configuration does not say: ImageNet's.
const IMAGE_SIZE: usize = 224;

/// Published sizes.
const VARIANTS: [(&str, [usize; STAGES], usize); 8] = [
    ("convnextv2_atto", [2, 2, 6, 2], 40),
    ("convnextv2_femto", [2, 2, 6, 2], 48),
    ("convnextv2_pico", [2, 2, 6, 2], 64),
    ("convnextv2_nano", [2, 2, 8, 2], 80),
    ("convnextv2_tiny", [3, 3, 9, 3], 96),
    ("convnextv2_base", [3, 3, 27, 3], 128),
    ("convnextv2_large", [3, 3, 27, 3], 192),
    ("convnextv2_huge", [3, 3, 27, 3], 352),
];

/// Sizes of a ConvNeXt V2.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvNextV2Config {
    /// Height, width and stride of the stem's convolution.
    pub patch_size: usize,
    /// Blocks of each stage.
    pub depths: [usize; STAGES],
    /// Channels of each stage.
    pub dims: [usize; STAGES],
    /// Whether the feed-forward layers are stored as 1x1 convolutions, as timm does for the small sizes. They compute
    /// the same.
    pub conv_mlp: bool,
    /// Added to the variance in the norms.
    pub norm_eps: f64,
    /// Outputs of the classifier; 0: there is none.
    pub head_size: usize,
}

impl ConvNextV2Config {
    /// The published name of these sizes.
    pub fn variant(&self) -> Option<&'static str> {
        let doubled = |first: usize| [first, 2 * first, 4 * first, 8 * first];
        let found = VARIANTS.iter().find(|(_, depths, first)| *depths == self.depths && doubled(*first) == self.dims);
        found.map(|(name, ..)| *name)
    }

    /// Parameters.
    pub fn specs(&self, in_channels: usize) -> Vec<ParamSpec> {
        let mut specs = conv_specs("stem.0", [self.dims[0], in_channels, self.patch_size]).to_vec();
        specs.extend(norm_specs("stem.1", self.dims[0]));
        for (stage, (&depth, &d)) in self.depths.iter().zip(&self.dims).enumerate() {
            if stage > 0 {
                let (at, from) = (format!("stages.{stage}.downsample"), self.dims[stage - 1]);
                specs.extend(norm_specs(&format!("{at}.0"), from));
                specs.extend(conv_specs(&format!("{at}.1"), [d, from, 2]));
            }
            for block in 0..depth {
                let at = format!("stages.{stage}.blocks.{block}");
                specs.extend(conv_specs(&format!("{at}.conv_dw"), [d, 1, KERNEL]));
                specs.extend(norm_specs(&format!("{at}.norm"), d));
                specs.extend(self.feed_forward(&format!("{at}.mlp.fc1"), MLP_RATIO * d, d));
                specs.extend(norm_specs(&format!("{at}.mlp.grn"), MLP_RATIO * d));
                specs.extend(self.feed_forward(&format!("{at}.mlp.fc2"), d, MLP_RATIO * d));
            }
        }
        let last = self.dims[STAGES - 1];
        specs.extend(norm_specs("head.norm", last));
        if self.head_size > 0 {
            specs.extend(linear_specs("head.fc", self.head_size, last));
        }
        specs
    }

    fn feed_forward(&self, name: &str, n: usize, k: usize) -> [ParamSpec; 2] {
        if self.conv_mlp { conv_specs(name, [n, k, 1]) } else { linear_specs(name, n, k) }
    }

    /// Its fields as `config.json` holds them.
    pub(super) fn describe(&self, map: &mut Map<String, Value>) {
        map.insert("patch_size".into(), self.patch_size.into());
        map.insert("depths".into(), json!(self.depths));
        map.insert("dims".into(), json!(self.dims));
        map.insert("conv_mlp".into(), self.conv_mlp.into());
        map.insert("norm_eps".into(), self.norm_eps.into());
        map.insert("num_classes".into(), self.head_size.into());
    }

    /// Takes from a configuration what shapes cannot tell, and compares what they can.
    pub(super) fn overlay(&mut self, fields: &Fields) -> Told<()> {
        fields.compare(&["patch_size"], self.patch_size)?;
        fields.compare_list("depths", &self.depths)?;
        fields.compare_list("dims", &self.dims)?;
        fields.only("conv_mlp", &[json!(self.conv_mlp)])?;
        fields.only("use_grn", &[json!(true)])?;
        fields.epsilon(&["norm_eps", "ln_eps"], &mut self.norm_eps)?;
        fields.compare_head(self.head_size)
    }
}

/// A ConvNeXt V2 classifier, or its trunk alone.
pub(super) fn recognise(shapes: &Shapes) -> Told<ModelConfig> {
    let [_, in_channels, patch_size, _] = shapes.get("stem.0.weight")?;
    let (mut depths, mut dims) = ([0; STAGES], [0; STAGES]);
    for (stage, (depth, d)) in depths.iter_mut().zip(&mut dims).enumerate() {
        let blocks = format!("stages.{stage}.blocks");
        *depth = shapes.count(&format!("blocks called {blocks}.N"), |b| format!("{blocks}.{b}.conv_dw.weight"))?;
        [*d, _, _, _] = shapes.get(&format!("{blocks}.0.conv_dw.weight"))?;
    }
    let conv_mlp = shapes.rank("stages.0.blocks.0.mlp.fc1.weight") == 4;
    let head_size = if shapes.has("head.fc.weight") { shapes.get::<2>("head.fc.weight")?[0] } else { 0 };
    let config = ConvNextV2Config { patch_size, depths, dims, conv_mlp, norm_eps: 1e-6, head_size };
    Ok(plain(NetworkConfig::ConvNextV2(config), IMAGE_SIZE, in_channels))
}
