//! The U-Nets of the diffusers library: `UNet2DModel`, and `UNet2DConditionModel`, which attends to a context.

pub mod context;
pub mod forward;

use serde_json::{Map, Value, json};

use super::config::{ModelConfig, NetworkConfig, Prediction};
use super::diffusers::{ResBlock, attention_specs, check_groups};
use super::fields::Fields;
use super::recognise::plain;
use super::shapes::{Shapes, Told};
use crate::nn::params::{ParamSpec, conv_specs, linear_specs, norm_specs};
use crate::ops::embed::Sinusoid;

/// Groups of GroupNorm where the configuration does not say.
const GROUPS: usize = 32;
/// diffusers' `attention_head_dim`: channels of a head of a `UNet2DModel`, but heads of a `UNet2DConditionModel`.
const HEADS: usize = 8;
/// Size of images where the configuration does not say.
const IMAGE_SIZE: usize = 64;

/// How attentions are split into heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heads {
    /// One head.
    One,
    /// Heads of this many channels.
    OfSize(usize),
    /// This many heads, by level.
    Count(Vec<usize>),
}

/// The context that a `UNet2DConditionModel` attends to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextConfig {
    /// Channels of a context token.
    pub dim: usize,
    /// Transformer layers of each attention.
    pub layers: usize,
    /// Whether the projections around them are stored as linear layers instead of 1x1 convolutions.
    pub linear_projection: bool,
}

/// Sizes of a U-Net. Levels are numbered from the finest.
#[derive(Clone, Debug, PartialEq)]
pub struct UnetConfig {
    /// Channels of each level.
    pub channels: Vec<usize>,
    /// Residual blocks of each level on the way down; on the way up there is one more.
    pub layers_per_block: usize,
    /// Which levels attend on the way down.
    pub down_attention: Vec<bool>,
    /// Which blocks attend on the way up, coarsest first.
    pub up_attention: Vec<bool>,
    /// Whether the coarsest level attends in the middle.
    pub mid_attention: bool,
    /// Heads of the attentions.
    pub heads: Heads,
    /// Groups of each GroupNorm.
    pub norm_groups: usize,
    /// Added to the variance in GroupNorm.
    pub norm_eps: f64,
    /// Width of the time embedding.
    pub time_dim: usize,
    /// Padding of the convolutions that halve: 1 on all sides, or 0, which stands for one row and column behind.
    pub downsample_padding: usize,
    /// What it attends to besides itself.
    pub context: Option<ContextConfig>,
}

impl UnetConfig {
    /// Sides of images are multiples of this.
    pub fn stride(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// Channels of the skip that residual block `layer` of a level reads on the way up. Skips are the outputs on the way
    /// down, last first: the last of a level is the input of its first block, with the channels of the finer level.
    fn skip(&self, level: usize, layer: usize) -> usize {
        self.channels[if layer < self.layers_per_block { level } else { level.saturating_sub(1) }]
    }

    /// About how many numbers the activations of one image of `size` pixels a side take.
    pub fn activations(&self, size: usize) -> usize {
        let levels = self.channels.iter().enumerate();
        // Skips, what lies in a block on the way up, queries, keys and values.
        let level =
            |(level, channels): (usize, &usize)| (self.layers_per_block + 10) * channels * (size >> level).pow(2);
        levels.map(level).sum()
    }

    /// Heads of the attentions of a level.
    pub fn heads(&self, level: usize) -> usize {
        match &self.heads {
            Heads::One => 1,
            Heads::OfSize(size) => self.channels[level] / size,
            Heads::Count(counts) => counts[level],
        }
    }

    /// Parameters.
    pub fn specs(&self, in_channels: usize, out_channels: usize, freq: usize) -> Vec<ParamSpec> {
        let (first, levels, time) = (self.channels[0], self.channels.len(), Some(self.time_dim));
        let mut specs = conv_specs("conv_in", [first, in_channels, 3]).to_vec();
        specs.extend(linear_specs("time_embedding.linear_1", self.time_dim, freq));
        specs.extend(linear_specs("time_embedding.linear_2", self.time_dim, self.time_dim));
        let mut from = first;
        for (level, &to) in self.channels.iter().enumerate() {
            let at = format!("down_blocks.{level}");
            for layer in 0..self.layers_per_block {
                specs.extend(ResBlock { from, to, time }.specs(&format!("{at}.resnets.{layer}")));
                if self.down_attention[level] {
                    specs.extend(self.attention(&format!("{at}.attentions.{layer}"), to));
                }
                from = to;
            }
            if level + 1 < levels {
                specs.extend(conv_specs(&format!("{at}.downsamplers.0.conv"), [to, to, 3]));
            }
        }
        for layer in 0..2 {
            specs.extend(ResBlock { from, to: from, time }.specs(&format!("mid_block.resnets.{layer}")));
        }
        if self.mid_attention {
            specs.extend(self.attention("mid_block.attentions.0", from));
        }
        for (block, level) in (0..levels).rev().enumerate() {
            let (at, to) = (format!("up_blocks.{block}"), self.channels[level]);
            for layer in 0..=self.layers_per_block {
                specs.extend(
                    ResBlock { from: from + self.skip(level, layer), to, time }.specs(&format!("{at}.resnets.{layer}")),
                );
                if self.up_attention[block] {
                    specs.extend(self.attention(&format!("{at}.attentions.{layer}"), to));
                }
                from = to;
            }
            if level > 0 {
                specs.extend(conv_specs(&format!("{at}.upsamplers.0.conv"), [to, to, 3]));
            }
        }
        specs.extend(norm_specs("conv_norm_out", first));
        specs.extend(conv_specs("conv_out", [out_channels, first, 3]));
        specs
    }

    /// Parameters of the attention called `name`.
    fn attention(&self, name: &str, channels: usize) -> Vec<ParamSpec> {
        let Some(ContextConfig { dim, layers, linear_projection }) = self.context else {
            return attention_specs(name, channels);
        };
        let projection = |end: &str| {
            let name = format!("{name}.{end}");
            let sizes = [channels, channels, 1];
            if linear_projection { linear_specs(&name, channels, channels) } else { conv_specs(&name, sizes) }
        };
        let mut specs = norm_specs(&format!("{name}.norm"), channels).to_vec();
        specs.extend(projection("proj_in"));
        for layer in 0..layers {
            let at = |part: &str| format!("{name}.transformer_blocks.{layer}.{part}");
            for (attn, norm, from) in [("attn1", "norm1", channels), ("attn2", "norm2", dim)] {
                specs.extend(norm_specs(&at(norm), channels));
                let sizes = [("to_q", channels), ("to_k", from), ("to_v", from)];
                let weight = |(part, k)| ParamSpec::new(at(&format!("{attn}.{part}.weight")), &[channels, k]);
                specs.extend(sizes.map(weight));
                specs.extend(linear_specs(&at(&format!("{attn}.to_out.0")), channels, channels));
            }
            specs.extend(norm_specs(&at("norm3"), channels));
            // GEGLU: twice four times the channels, one half gating the other.
            specs.extend(linear_specs(&at("ff.net.0.proj"), 8 * channels, channels));
            specs.extend(linear_specs(&at("ff.net.2"), channels, 4 * channels));
        }
        specs.extend(projection("proj_out"));
        specs
    }

    /// Whether groups and heads divide the channels.
    ///
    /// # Errors
    /// One line: what was found, what was expected.
    pub(super) fn check(&self, specs: &[ParamSpec]) -> Told<()> {
        check_groups(specs, self.norm_groups)?;
        for (level, &channels) in self.channels.iter().enumerate() {
            let heads = match &self.heads {
                Heads::OfSize(size) if *size == 0 || channels % size != 0 => 0,
                _ => self.heads(level),
            };
            let attends = self.down_attention[level] || self.up_attention[self.channels.len() - 1 - level];
            let attends = attends || (self.mid_attention && level + 1 == self.channels.len());
            if attends && (heads == 0 || channels % heads != 0) {
                let found = self.heads_json();
                return Err(format!(
                    "attention_head_dim is {found}, heads that divide the {channels} channels of level {level} expected"
                ));
            }
        }
        Ok(())
    }

    fn heads_json(&self) -> Value {
        match &self.heads {
            Heads::One => Value::Null,
            Heads::OfSize(size) => json!(size),
            Heads::Count(counts) => json!(counts),
        }
    }

    /// diffusers' names for the blocks of the two ways.
    fn block_types(&self) -> [Vec<&'static str>; 2] {
        let [down, up] = match self.context {
            None => [["DownBlock2D", "AttnDownBlock2D"], ["UpBlock2D", "AttnUpBlock2D"]],
            Some(_) => [["DownBlock2D", "CrossAttnDownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]],
        };
        [
            self.down_attention.iter().map(|&a| down[usize::from(a)]).collect(),
            self.up_attention.iter().map(|&a| up[usize::from(a)]).collect(),
        ]
    }

    /// Its fields as `config.json` holds them, under diffusers' names.
    pub(super) fn describe(&self, map: &mut Map<String, Value>) {
        let [down, up] = self.block_types();
        map.insert("block_out_channels".into(), json!(self.channels));
        map.insert("layers_per_block".into(), self.layers_per_block.into());
        map.insert("down_block_types".into(), json!(down));
        map.insert("up_block_types".into(), json!(up));
        map.insert("add_attention".into(), self.mid_attention.into());
        map.insert("attention_head_dim".into(), self.heads_json());
        map.insert("norm_num_groups".into(), self.norm_groups.into());
        map.insert("norm_eps".into(), self.norm_eps.into());
        map.insert("time_embedding_dim".into(), self.time_dim.into());
        map.insert("downsample_padding".into(), self.downsample_padding.into());
        if let Some(context) = &self.context {
            map.insert("cross_attention_dim".into(), context.dim.into());
            map.insert("transformer_layers_per_block".into(), context.layers.into());
            map.insert("use_linear_projection".into(), context.linear_projection.into());
        }
    }

    /// Takes from a configuration what shapes cannot tell, compares what they can, and refuses what is not computed
    /// here.
    pub(super) fn overlay(&mut self, fields: &Fields, time: &mut Sinusoid) -> Told<()> {
        let [down, up] = self.block_types();
        fields.compare_list("block_out_channels", &self.channels)?;
        fields.compare(&["layers_per_block"], self.layers_per_block)?;
        fields.only("down_block_types", &[json!(down)])?;
        fields.only("up_block_types", &[json!(up)])?;
        fields.only("mid_block_type", &["UNetMidBlock2D", "UNetMidBlock2DCrossAttn"].map(Value::from))?;
        fields.only("add_attention", &[json!(self.mid_attention)])?;
        fields.compare(&["time_embedding_dim"], self.time_dim)?;
        if let Some(context) = &self.context {
            fields.compare(&["cross_attention_dim"], context.dim)?;
            fields.compare(&["transformer_layers_per_block"], context.layers)?;
            fields.only("use_linear_projection", &[json!(context.linear_projection)])?;
        }
        for (name, computed) in [
            ("act_fn", &["silu", "swish"].map(Value::from)[..]),
            ("time_embedding_type", &["positional"].map(Value::from)),
            ("resnet_time_scale_shift", &["default"].map(Value::from)),
            ("downsample_type", &["conv"].map(Value::from)),
            ("upsample_type", &["conv"].map(Value::from)),
            ("attention_type", &["default"].map(Value::from)),
            ("center_input_sample", &[json!(false)]),
            ("only_cross_attention", &[json!(false)]),
            ("dual_cross_attention", &[json!(false)]),
            ("resnet_skip_time_act", &[json!(false)]),
            ("class_embeddings_concat", &[json!(false)]),
            ("mid_block_scale_factor", &[json!(1), json!(1.0)]),
            ("resnet_out_scale_factor", &[json!(1), json!(1.0)]),
            ("conv_in_kernel", &[json!(3)]),
            ("conv_out_kernel", &[json!(3)]),
            ("attn_norm_num_groups", &[]),
            ("class_embed_type", &[]),
            ("num_class_embeds", &[]),
            ("encoder_hid_dim", &[]),
            ("addition_embed_type", &[]),
            ("time_cond_proj_dim", &[]),
            ("timestep_post_act", &[]),
            ("time_embedding_act_fn", &[]),
            ("cross_attention_norm", &[]),
        ] {
            fields.only(name, computed)?;
        }
        self.overlay_heads(fields)?;
        if let Some((_, groups)) = fields.integer(&["norm_num_groups"])? {
            self.norm_groups = groups;
        }
        fields.epsilon(&["norm_eps"], &mut self.norm_eps)?;
        if let Some((name, padding)) = fields.integer(&["downsample_padding"])? {
            if padding > 1 {
                return Err(format!("{name} is {padding}, 0 or 1 expected"));
            }
            self.downsample_padding = padding;
        }
        if let Some((_, cosines_first)) = fields.flag("flip_sin_to_cos")? {
            time.cos_first = cosines_first;
        }
        if let Some((_, shift)) = fields.number(&["freq_shift"])? {
            time.half_shift = shift;
        }
        Ok(())
    }

    fn overlay_heads(&mut self, fields: &Fields) -> Told<()> {
        let levels = self.channels.len();
        if self.context.is_none() {
            if fields.0.get("attention_head_dim").is_some_and(Value::is_null) {
                self.heads = Heads::One;
            } else if let Some((_, size)) = fields.integer(&["attention_head_dim"])? {
                self.heads = Heads::OfSize(size);
            }
            return Ok(());
        }
        // By history a number of heads; the later name goes before it.
        for name in ["attention_head_dim", "num_attention_heads"] {
            let counts = match fields.0.get(name) {
                Some(Value::Array(_)) => fields.list(name)?.map(|(_, counts)| counts),
                _ => fields.integer(&[name])?.map(|(_, count)| vec![count; levels]),
            };
            match counts {
                Some(counts) if counts.len() != levels => {
                    return Err(format!(
                        "{name} has {} numbers, one for each of {levels} levels expected",
                        counts.len()
                    ));
                }
                Some(counts) => self.heads = Heads::Count(counts),
                None => {}
            }
        }
        Ok(())
    }
}

/// A `UNet2DModel`, or with a context a `UNet2DConditionModel`.
pub(super) fn recognise(shapes: &Shapes) -> Told<ModelConfig> {
    let [_, in_channels, _, _] = shapes.get("conv_in.weight")?;
    let [out_channels, _, _, _] = shapes.get("conv_out.weight")?;
    let [time_dim, freq] = shapes.get("time_embedding.linear_1.weight")?;
    let conv = |level: usize, layer: usize| format!("down_blocks.{level}.resnets.{layer}.conv1.weight");
    let levels = shapes.count("blocks called down_blocks.N", |level| conv(level, 0))?;
    if levels > 16 {
        return Err(format!("{levels} blocks called down_blocks.N found, at most 16 expected"));
    }
    let channels = (0..levels).map(|level| Ok(shapes.get::<4>(&conv(level, 0))?[0])).collect::<Told<Vec<usize>>>()?;
    let layers_per_block = shapes.count("blocks called down_blocks.0.resnets.N", |layer| conv(0, layer))?;
    let transformer = |at: &str| format!("{at}.attentions.0.transformer_blocks.0.attn2.to_k.weight");
    let attends =
        |at: String| [format!("{at}.attentions.0.to_q.weight"), transformer(&at)].iter().any(|name| shapes.has(name));
    let blocks = |way: &str| (0..levels).map(|i| attends(format!("{way}_blocks.{i}"))).collect::<Vec<bool>>();
    let at = (0..levels).map(|i| format!("down_blocks.{i}")).chain(["mid_block".into()]);
    let context = match at.into_iter().find(|at| shapes.has(&transformer(at))) {
        None => None,
        Some(at) => {
            let layer = |i: usize| format!("{at}.attentions.0.transformer_blocks.{i}.attn2.to_k.weight");
            Some(ContextConfig {
                dim: shapes.get::<2>(&layer(0))?[1],
                layers: shapes.count("transformer blocks of an attention", layer)?,
                linear_projection: shapes.rank(&format!("{at}.attentions.0.proj_in.weight")) == 2,
            })
        }
    };
    let heads = if context.is_some() { Heads::Count(vec![HEADS; levels]) } else { Heads::OfSize(HEADS) };
    let config = UnetConfig {
        layers_per_block,
        down_attention: blocks("down"),
        up_attention: blocks("up"),
        mid_attention: attends("mid_block".into()),
        heads,
        norm_groups: GROUPS,
        norm_eps: 1e-5,
        time_dim,
        downsample_padding: 1,
        context,
        channels,
    };
    let size = IMAGE_SIZE.max(config.stride());
    Ok(ModelConfig {
        out_channels,
        time: Sinusoid { dim: freq, cos_first: true, max_period: 10_000.0, half_shift: 0.0, scale: 1.0 },
        prediction: Prediction::Epsilon,
        ..plain(NetworkConfig::Unet2d(config), size, in_channels)
    })
}
