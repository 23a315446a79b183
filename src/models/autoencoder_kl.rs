//! The variational auto-encoder of latent diffusion (Rombach et al., arXiv 2112.10752), `AutoencoderKL` of the diffusers
//! library under its names.

pub mod coder;
pub mod latents;

use serde_json::{Map, Value, json};

use super::config::{ModelConfig, NetworkConfig};
use super::diffusers::{ResBlock, attention_specs, check_groups};
use super::fields::Fields;
use super::recognise::plain;
use super::shapes::{Shapes, Told};
use crate::nn::params::{ParamSpec, conv_specs, norm_specs};

/// Folder of the auto-encoder beside a model of its latents.
pub const FOLDER: &str = "autoencoder";

/// Groups of GroupNorm where the configuration does not say.
const GROUPS: usize = 32;
/// Size of images where the configuration does not say.
const IMAGE_SIZE: usize = 256;

/// Sizes of an auto-encoder. Levels are numbered from the finest.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Channels of each level.
    pub channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Whether the coarsest level attends in the middle.
    pub mid_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub quant_conv: bool,
    /// Whether a 1x1 convolution goes before the decoder.
    pub post_quant_conv: bool,
    /// Groups of each GroupNorm, whose eps is 1e-6.
    pub norm_groups: usize,
    /// Factor that brings latents to unit variance.
    pub scaling_factor: Option<f64>,
    /// Subtracted from latents before.
    pub shift_factor: f64,
}

impl VaeConfig {
    /// Sides of images are multiples of this, and as many times those of their latents.
    pub fn stride(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// The factor that brings latents to unit variance, which diffusion in the latent space needs.
    ///
    /// # Errors
    /// One line if the configuration does not have it.
    pub fn require_scaling_factor(&self) -> Result<f64, String> {
        self.scaling_factor.ok_or_else(|| {
            "scaling_factor is missing, 1 / the standard deviation of the training set's latents expected in config.json \
             (0.18215 for the auto-encoder of Stable Diffusion 1)"
                .into()
        })
    }

    /// Parameters.
    pub fn specs(&self, in_channels: usize, out_channels: usize) -> Vec<ParamSpec> {
        let (first, last) = (self.channels[0], self.channels[self.channels.len() - 1]);
        let (latent, levels) = (self.latent_channels, self.channels.len());
        let block = |name: String, from, to| ResBlock { from, to, time: None }.specs(&name);
        let middle = |side: &str| {
            let at = format!("{side}.mid_block");
            let mut specs: Vec<_> = (0..2).flat_map(|i| block(format!("{at}.resnets.{i}"), last, last)).collect();
            if self.mid_attention {
                specs.extend(attention_specs(&format!("{at}.attentions.0"), last));
            }
            specs
        };

        let mut specs = conv_specs("encoder.conv_in", [first, in_channels, 3]).to_vec();
        let mut from = first;
        for (level, &to) in self.channels.iter().enumerate() {
            let at = format!("encoder.down_blocks.{level}");
            for layer in 0..self.layers_per_block {
                specs.extend(block(format!("{at}.resnets.{layer}"), from, to));
                from = to;
            }
            if level + 1 < levels {
                specs.extend(conv_specs(&format!("{at}.downsamplers.0.conv"), [to, to, 3]));
            }
        }
        specs.extend(middle("encoder"));
        specs.extend(norm_specs("encoder.conv_norm_out", last));
        // Mean and logarithm of the variance.
        specs.extend(conv_specs("encoder.conv_out", [2 * latent, last, 3]));
        if self.quant_conv {
            specs.extend(conv_specs("quant_conv", [2 * latent, 2 * latent, 1]));
        }
        if self.post_quant_conv {
            specs.extend(conv_specs("post_quant_conv", [latent, latent, 1]));
        }
        specs.extend(conv_specs("decoder.conv_in", [last, latent, 3]));
        specs.extend(middle("decoder"));
        from = last;
        for (i, level) in (0..levels).rev().enumerate() {
            let (at, to) = (format!("decoder.up_blocks.{i}"), self.channels[level]);
            for layer in 0..=self.layers_per_block {
                specs.extend(block(format!("{at}.resnets.{layer}"), from, to));
                from = to;
            }
            if level > 0 {
                specs.extend(conv_specs(&format!("{at}.upsamplers.0.conv"), [to, to, 3]));
            }
        }
        specs.extend(norm_specs("decoder.conv_norm_out", first));
        specs.extend(conv_specs("decoder.conv_out", [out_channels, first, 3]));
        specs
    }

    /// Whether groups divide the channels.
    ///
    /// # Errors
    /// One line: what was found, what was expected.
    pub(super) fn check(&self, specs: &[ParamSpec]) -> Told<()> {
        check_groups(specs, self.norm_groups)
    }

    /// Its fields as `config.json` holds them, under diffusers' names.
    pub(super) fn describe(&self, map: &mut Map<String, Value>) {
        // What diffusers needs beside the sizes to build the same network.
        let blocks = |name: &str| json!(vec![name; self.channels.len()]);
        map.insert("_class_name".into(), "AutoencoderKL".into());
        map.insert("down_block_types".into(), blocks("DownEncoderBlock2D"));
        map.insert("up_block_types".into(), blocks("UpDecoderBlock2D"));
        map.insert("act_fn".into(), "silu".into());
        map.insert("block_out_channels".into(), json!(self.channels));
        map.insert("layers_per_block".into(), self.layers_per_block.into());
        map.insert("latent_channels".into(), self.latent_channels.into());
        map.insert("mid_block_add_attention".into(), self.mid_attention.into());
        map.insert("use_quant_conv".into(), self.quant_conv.into());
        map.insert("use_post_quant_conv".into(), self.post_quant_conv.into());
        map.insert("norm_num_groups".into(), self.norm_groups.into());
        map.insert("scaling_factor".into(), json!(self.scaling_factor));
        map.insert("shift_factor".into(), self.shift_factor.into());
    }

    /// Takes from a configuration what shapes cannot tell, compares what they can, and refuses what is not computed
    /// here.
    pub(super) fn overlay(&mut self, fields: &Fields) -> Told<()> {
        let levels = self.channels.len();
        fields.compare_list("block_out_channels", &self.channels)?;
        fields.compare(&["layers_per_block"], self.layers_per_block)?;
        fields.compare(&["latent_channels"], self.latent_channels)?;
        fields.only("down_block_types", &[json!(vec!["DownEncoderBlock2D"; levels])])?;
        fields.only("up_block_types", &[json!(vec!["UpDecoderBlock2D"; levels])])?;
        fields.only("mid_block_add_attention", &[json!(self.mid_attention)])?;
        fields.only("use_quant_conv", &[json!(self.quant_conv)])?;
        fields.only("use_post_quant_conv", &[json!(self.post_quant_conv)])?;
        fields.only("act_fn", &["silu", "swish"].map(Value::from))?;
        fields.only("latents_mean", &[])?;
        fields.only("latents_std", &[])?;
        if let Some((_, groups)) = fields.integer(&["norm_num_groups"])? {
            self.norm_groups = groups;
        }
        if let Some((name, factor)) = fields.number(&["scaling_factor"])? {
            if factor <= 0.0 || !(factor as f32).is_normal() {
                return Err(format!("{name} is {factor}, a positive number expected"));
            }
            self.scaling_factor = Some(factor);
        }
        if let Some((_, shift)) = fields.number(&["shift_factor"])? {
            self.shift_factor = shift;
        }
        Ok(())
    }
}

/// An auto-encoder of images of this size and of as many channels in and out.
pub fn config(vae: VaeConfig, image_size: usize, channels: usize) -> ModelConfig {
    plain(NetworkConfig::AutoencoderKl(vae), image_size, channels)
}

/// An `AutoencoderKL`.
pub(super) fn recognise(shapes: &Shapes) -> Told<ModelConfig> {
    let [_, in_channels, _, _] = shapes.get("encoder.conv_in.weight")?;
    let [_, latent_channels, _, _] = shapes.get("decoder.conv_in.weight")?;
    let [out_channels, _, _, _] = shapes.get("decoder.conv_out.weight")?;
    let conv = |level: usize, layer: usize| format!("encoder.down_blocks.{level}.resnets.{layer}.conv1.weight");
    let levels = shapes.count("blocks called encoder.down_blocks.N", |level| conv(level, 0))?;
    if levels > 16 {
        return Err(format!("{levels} blocks called encoder.down_blocks.N found, at most 16 expected"));
    }
    let config = VaeConfig {
        channels: (0..levels).map(|level| Ok(shapes.get::<4>(&conv(level, 0))?[0])).collect::<Told<Vec<usize>>>()?,
        layers_per_block: shapes.count("blocks called encoder.down_blocks.0.resnets.N", |layer| conv(0, layer))?,
        latent_channels,
        mid_attention: shapes.has("encoder.mid_block.attentions.0.to_q.weight"),
        quant_conv: shapes.has("quant_conv.weight"),
        post_quant_conv: shapes.has("post_quant_conv.weight"),
        norm_groups: GROUPS,
        scaling_factor: None,
        shift_factor: 0.0,
    };
    let size = IMAGE_SIZE.max(config.stride());
    Ok(ModelConfig { out_channels, ..plain(NetworkConfig::AutoencoderKl(config), size, in_channels) })
}
