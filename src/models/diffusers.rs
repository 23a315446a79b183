//! What the networks of the diffusers library share: residual blocks and attentions under its parameter names, and the
//! rules that their sizes keep.

pub mod heads;
pub mod layers;
pub mod transformer;

use super::shapes::Told;
use crate::nn::params::{ParamSpec, conv_specs, linear_specs, norm_specs};

/// Names of an attention's projections in older files, and today's.
const OLD_NAMES: [(&str, &str); 4] = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

/// Channels in and out of a residual block, and the width of the time embedding that it takes, if it takes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResBlock {
    /// In.
    pub from: usize,
    /// Out.
    pub to: usize,
    /// Width of the time embedding.
    pub time: Option<usize>,
}

impl ResBlock {
    /// Parameters: GroupNorm and 3x3 convolution, twice, and a 1x1 convolution around where channels change.
    pub fn specs(self, name: &str) -> Vec<ParamSpec> {
        let Self { from, to, time } = self;
        let mut specs = norm_specs(&format!("{name}.norm1"), from).to_vec();
        specs.extend(conv_specs(&format!("{name}.conv1"), [to, from, 3]));
        specs.extend(time.iter().flat_map(|&t| linear_specs(&format!("{name}.time_emb_proj"), to, t)));
        specs.extend(norm_specs(&format!("{name}.norm2"), to));
        specs.extend(conv_specs(&format!("{name}.conv2"), [to, to, 3]));
        if from != to {
            specs.extend(conv_specs(&format!("{name}.conv_shortcut"), [to, from, 1]));
        }
        specs
    }
}

/// Parameters of self-attention over pixels: GroupNorm, four projections with biases.
pub(super) fn attention_specs(name: &str, channels: usize) -> Vec<ParamSpec> {
    let mut specs = norm_specs(&format!("{name}.group_norm"), channels).to_vec();
    for part in ["to_q", "to_k", "to_v", "to_out.0"] {
        specs.extend(linear_specs(&format!("{name}.{part}"), channels, channels));
    }
    specs
}

/// Refuses sides of images that the network does not halve evenly down to its coarsest level: names the nearest that
/// fit.
pub(super) fn check_stride(size: usize, stride: usize) -> Told<()> {
    if size > 0 && size.is_multiple_of(stride) {
        return Ok(());
    }
    let (below, above) = (size / stride * stride, (size / stride + 1) * stride);
    let nearest = if below > 0 { format!("{below} or {above}") } else { above.to_string() };
    Err(format!("image_size is {size}, a multiple of the network's stride {stride} expected: {nearest} would fit"))
}

/// Refuses `groups` that do not divide the channels of every GroupNorm among `specs`.
pub(super) fn check_groups(specs: &[ParamSpec], groups: usize) -> Told<()> {
    // The norms of transformer blocks are LayerNorms.
    let norm = |name: &str| {
        let name = name.strip_suffix(".weight").filter(|_| !name.contains(".transformer_blocks."));
        name.and_then(|n| n.rsplit('.').next()).is_some_and(|last| last.contains("norm"))
    };
    for spec in specs.iter().filter(|s| norm(&s.name)) {
        let channels = spec.shape[0];
        if groups == 0 || channels % groups != 0 {
            let name = spec.name.trim_end_matches(".weight");
            return Err(format!(
                "norm_num_groups is {groups}, a divisor of the {channels} channels of {name} expected"
            ));
        }
    }
    Ok(())
}

/// Today's name for the older `name` of an attention's projection, if it is one.
pub(super) fn renamed(name: &str) -> Option<String> {
    let (block, rest) = name.split_once(".attentions.")?;
    let (number, rest) = rest.split_once('.')?;
    let (part, last) = rest.split_once('.')?;
    let (_, today) = OLD_NAMES.iter().find(|(old, _)| *old == part)?;
    Some(format!("{block}.attentions.{number}.{today}.{last}"))
}
