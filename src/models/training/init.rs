//! Starting weights: those of the original DiT (Peebles and Xie, arXiv 2212.09748), of timm's ViT, and PyTorch's own for the
//! layers that the notebooks add to it.

use crate::models::builtin::sincos_positions;
use crate::models::config::{Architecture, ModelConfig};
use crate::models::dit::PARAMETERS;
use crate::models::specs;
use crate::nn::params::ParamSpec;
use crate::rng::{normals, philox4x32_10};

/// Streams of the random numbers below.
const NORMAL: u32 = 0x5452_0000;
const UNIFORM: u32 = 0x5452_0001;

/// How a parameter begins.
enum Rule {
    Zeros,
    Ones,
    /// Of this deviation, cut at two of them.
    TruncatedNormal(f64),
    Normal(f64),
    /// Between minus and plus this.
    Uniform(f64),
    Positions,
}

/// The elements that parameter `name` begins with; they depend on the seed, the model and the name alone.
///
/// `None` for a name that the model does not have.
pub fn initial(config: &ModelConfig, name: &str, seed: u64) -> Option<Vec<f32>> {
    let all = specs(config);
    let at = all.iter().position(|spec| spec.name == name)?;
    let n: usize = all[at].shape.iter().product();
    let rule = match config.architecture() {
        Architecture::Dit => dit(&all[at]),
        Architecture::AutoencoderKl => autoencoder(&all[at], &all),
        _ => flow_vit(&all[at], &all),
    };
    let normal = |deviation: f64| {
        let mut values = vec![0.0; n];
        normals(seed, at as u64, NORMAL, &mut values);
        values.into_iter().map(|v| (f64::from(v) * deviation) as f32).collect::<Vec<f32>>()
    };
    Some(match rule {
        Rule::Zeros => vec![0.0; n],
        Rule::Ones => vec![1.0; n],
        Rule::Normal(deviation) => normal(deviation),
        Rule::TruncatedNormal(deviation) => {
            let limit = (2.0 * deviation) as f32;
            normal(deviation).into_iter().map(|v| v.clamp(-limit, limit)).collect()
        }
        Rule::Uniform(limit) => uniform(seed, at as u64, n).map(|u| (limit * (2.0 * u - 1.0)) as f32).collect(),
        Rule::Positions => {
            sincos_positions(config.transformer().hidden_size, config.image_size / config.transformer().patch_size)
        }
    })
}

fn dit(spec: &ParamSpec) -> Rule {
    let name = spec.name.as_str();
    if name == "pos_embed" {
        return Rule::Positions;
    }
    if name.starts_with("final_layer") || name.contains("adaLN_modulation") || name.ends_with("bias") {
        return Rule::Zeros;
    }
    if ["t_embedder", "y_embedder", PARAMETERS].iter().any(|embedder| name.starts_with(embedder)) {
        return Rule::Normal(0.02);
    }
    // Glorot and Bengio 2010.
    let (n, k) = (spec.shape[0], spec.shape[1..].iter().product::<usize>());
    Rule::Uniform((6.0 / (n + k) as f64).sqrt())
}

fn flow_vit(spec: &ParamSpec, all: &[ParamSpec]) -> Rule {
    let name = spec.name.as_str();
    if name.ends_with("pos_embed") {
        return Rule::Normal(0.02);
    }
    if name.contains(".blocks.") {
        return match (name.contains(".norm"), name.ends_with("weight")) {
            (true, true) => Rule::Ones,
            (false, true) => Rule::TruncatedNormal(0.02),
            _ => Rule::Zeros,
        };
    }
    pytorch(spec, all)
}

fn autoencoder(spec: &ParamSpec, all: &[ParamSpec]) -> Rule {
    match (spec.name.contains("norm"), spec.name.ends_with("weight")) {
        (true, true) => Rule::Ones,
        (true, false) => Rule::Zeros,
        _ => pytorch(spec, all),
    }
}

/// Both parameters of a layer within one over the root of its inputs.
fn pytorch(spec: &ParamSpec, all: &[ParamSpec]) -> Rule {
    let name = spec.name.as_str();
    let weight = name.strip_suffix(".bias").map(|layer| format!("{layer}.weight"));
    let weight = weight.and_then(|weight| all.iter().find(|s| s.name == weight)).unwrap_or(spec);
    Rule::Uniform(1.0 / (weight.shape[1..].iter().product::<usize>() as f64).sqrt())
}

/// Numbers in [0, 1).
fn uniform(seed: u64, index: u64, n: usize) -> impl Iterator<Item = f64> {
    let key = [seed as u32, (seed >> 32) as u32];
    let words = (0..n.div_ceil(4) as u32)
        .flat_map(move |four| philox4x32_10([index as u32, (index >> 32) as u32, four, UNIFORM], key));
    words.take(n).map(|word| f64::from(word) / 4_294_967_296.0)
}
