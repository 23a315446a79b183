//! U-Net (Ronneberger et al., arXiv 1505.04597) and U-Net++ (Zhou et al., arXiv 1912.05074) with a ResNet encoder, under the
//! names of segmentation_models_pytorch 0.4 to 0.6, and the flow-matching wrapper of the lensing notebooks around them: a
//! time embedding through two 1x1 convolutions, one number per image and channel, added to the output.

pub mod forward;

use serde_json::{Map, Value, json};

use super::config::{ModelConfig, NetworkConfig};
use super::fields::Fields;
use super::recognise::{notebook_time, plain};
use super::resnet::ResNetConfig;
use super::shapes::{Shapes, Told};
use crate::nn::params::{ParamSpec, batch_norm_specs, conv_specs, linear_specs};

/// Levels of the decoder: the encoder halves the image as often.
pub const LEVELS: usize = 5;
/// Sides of images are multiples of this.
pub const STRIDE: usize = 1 << LEVELS;
/// Size of images where the configuration does not say.
const IMAGE_SIZE: usize = 224;

/// How the decoder is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// One block a level.
    Unet,
    /// Nested blocks, each fed by all before it on its level.
    UnetPlusPlus,
}

/// Widths of the time embedding of the flow-matching wrapper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWidths {
    /// Of the embedding.
    pub embedding: usize,
    /// Between the two 1x1 convolutions.
    pub hidden: usize,
}

/// Sizes of a U-Net with a ResNet encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct SmpConfig {
    /// The encoder; its `norm_eps` is the decoder's too.
    pub encoder: ResNetConfig,
    /// Wiring of the decoder.
    pub decoder: Decoder,
    /// Channels of each level of the decoder, coarsest first.
    pub decoder_channels: [usize; LEVELS],
    /// The flow-matching wrapper, if there is one.
    pub time: Option<TimeWidths>,
}

/// What a block of the decoder reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Features of the encoder, finest first.
    Feature(usize),
    /// The output of another block, by its place in [`SmpConfig::decoder_blocks`].
    Block(usize),
}

/// One block of the decoder: two 3x3 convolutions with BatchNorm and ReLU over [upsampled, skips].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderBlock {
    /// Name below `decoder.blocks`.
    pub name: String,
    /// Level of the decoder, coarsest first: its output has 1 / 2^(4 - level) of the image's side.
    pub level: usize,
    /// What is upsampled.
    pub input: Source,
    /// What stands beside it, in this order.
    pub skips: Vec<Source>,
    /// Channels of the input that is upsampled.
    pub from: usize,
    /// Channels of all skips together.
    pub skip: usize,
    /// Channels that come out.
    pub to: usize,
}

impl SmpConfig {
    /// The blocks of the decoder, each behind those that it reads.
    pub fn decoder_blocks(&self) -> Vec<DecoderBlock> {
        let features = self.encoder.features();
        // Of each level: what is upsampled comes in, and the encoder's features of the upsampled size beside it.
        let coarse: Vec<usize> = [features[LEVELS - 1]].into_iter().chain(self.decoder_channels).collect();
        let skips: Vec<usize> = features[..LEVELS - 1].iter().rev().copied().chain([0]).collect();
        let last = LEVELS - 1;
        if self.decoder == Decoder::Unet {
            let level = |level: usize| DecoderBlock {
                name: level.to_string(),
                level,
                input: level.checked_sub(1).map_or(Source::Feature(last), Source::Block),
                skips: last.checked_sub(level + 1).map(Source::Feature).into_iter().collect(),
                from: coarse[level],
                skip: skips[level],
                to: self.decoder_channels[level],
            };
            return (0..LEVELS).map(level).collect();
        }
        let mut blocks: Vec<DecoderBlock> = Vec::new();
        for level in 0..LEVELS {
            // Deepest first: the others read it. The last level has one block alone, without skips.
            for depth in (0..=if level < last { level } else { 0 }).rev() {
                let find = |depth: usize, level: usize| {
                    let name = format!("x_{depth}_{level}");
                    blocks.iter().position(|b| b.name == name).map(Source::Block)
                };
                let (from, to) = match depth {
                    0 => (coarse[level], self.decoder_channels[level]),
                    _ => (skips[level - 1], skips[level]),
                };
                let before = level.checked_sub(1).and_then(|before| find(depth, before));
                let deeper = (depth + 1..=level).filter_map(|depth| find(depth, level));
                let feature = last.checked_sub(level + 1).map(Source::Feature);
                let block = DecoderBlock {
                    name: format!("x_{depth}_{level}"),
                    level,
                    input: before.unwrap_or(Source::Feature(last - level)),
                    skips: if level < last { deeper.chain(feature).collect() } else { Vec::new() },
                    from,
                    skip: skips[level] * (level + 1 - depth),
                    to,
                };
                blocks.push(block);
            }
        }
        blocks
    }

    /// Parameters, under smp's names without the notebooks' outer `unet.unet.`.
    pub fn specs(&self, in_channels: usize, out_channels: usize, freq: usize) -> Vec<ParamSpec> {
        let mut specs = self.encoder.trunk_specs("encoder.", in_channels);
        for DecoderBlock { name, from, skip, to, .. } in self.decoder_blocks() {
            for (conv, inputs) in [("conv1", from + skip), ("conv2", to)] {
                let at = format!("decoder.blocks.{name}.{conv}");
                specs.push(ParamSpec::new(format!("{at}.0.weight"), &[to, inputs, 3, 3]));
                specs.extend(batch_norm_specs(&format!("{at}.1"), to));
            }
        }
        specs.extend(conv_specs("segmentation_head.0", [out_channels, self.decoder_channels[LEVELS - 1], 3]));
        if let Some(TimeWidths { embedding, hidden }) = self.time {
            specs.extend(linear_specs("time_embed.time_mlp.0", embedding, freq));
            specs.extend(linear_specs("time_embed.time_mlp.2", embedding, embedding));
            specs.extend(conv_specs("time_proj.0", [hidden, embedding, 1]));
            specs.extend(conv_specs("time_proj.2", [out_channels, hidden, 1]));
        }
        specs
    }

    /// Its fields as `config.json` holds them.
    pub(super) fn describe(&self, map: &mut Map<String, Value>) {
        if let Some(name) = self.encoder.variant() {
            map.insert("encoder_name".into(), name.into());
        }
        map.insert("encoder_stem".into(), self.encoder.stem.into());
        map.insert("encoder_layers".into(), json!(self.encoder.layers));
        map.insert("encoder_channels".into(), json!(self.encoder.channels));
        map.insert("decoder_channels".into(), json!(self.decoder_channels));
        map.insert("norm_eps".into(), self.encoder.norm_eps.into());
    }

    /// Takes from a configuration what shapes cannot tell, and compares what they can. Knows the keys that smp's
    /// `save_pretrained` writes.
    pub(super) fn overlay(&mut self, fields: &Fields, out_channels: usize) -> Told<()> {
        let found = self.encoder.variant();
        if let Some((name, given)) = fields.text("encoder_name")?.filter(|(_, given)| Some(*given) != found) {
            let found = found.unwrap_or("no published ResNet");
            return Err(format!("{name} is {given}, but the shapes of the weights say {found}"));
        }
        fields.compare(&["encoder_depth"], LEVELS)?;
        fields.compare(&["encoder_stem"], self.encoder.stem)?;
        fields.compare_list("encoder_layers", &self.encoder.layers)?;
        fields.compare_list("encoder_channels", &self.encoder.channels)?;
        fields.compare_list("decoder_channels", &self.decoder_channels)?;
        fields.compare(&["classes"], out_channels)?;
        fields.compare(&["out_channels"], out_channels)?;
        fields.only("activation", &[json!("identity")])?;
        fields.only("decoder_attention_type", &[])?;
        fields.only("decoder_interpolation", &[json!("nearest")])?;
        fields.epsilon(&["norm_eps", "bn_eps"], &mut self.encoder.norm_eps)
    }
}

/// A U-Net or U-Net++, with or without the wrapper.
pub(super) fn recognise(shapes: &Shapes) -> Told<ModelConfig> {
    let (encoder, in_channels) = ResNetConfig::trunk(shapes, "encoder.")?;
    let nested = shapes.has("decoder.blocks.x_0_0.conv1.0.weight");
    let mut decoder_channels = [0; LEVELS];
    for (level, channels) in decoder_channels.iter_mut().enumerate() {
        let name = if nested { format!("x_0_{level}") } else { level.to_string() };
        [*channels, _, _, _] = shapes.get(&format!("decoder.blocks.{name}.conv1.0.weight"))?;
    }
    let [out_channels, _, _, _] = shapes.get("segmentation_head.0.weight")?;
    let (mut time, mut freq) = (None, 0);
    if shapes.has("time_embed.time_mlp.0.weight") {
        let [embedding, sinusoid] = shapes.get("time_embed.time_mlp.0.weight")?;
        let [hidden, _, _, _] = shapes.get("time_proj.0.weight")?;
        (time, freq) = (Some(TimeWidths { embedding, hidden }), sinusoid);
    }
    let decoder = if nested { Decoder::UnetPlusPlus } else { Decoder::Unet };
    let network = NetworkConfig::Smp(SmpConfig { encoder, decoder, decoder_channels, time });
    Ok(ModelConfig { out_channels, time: notebook_time(freq), ..plain(network, IMAGE_SIZE, in_channels) })
}
