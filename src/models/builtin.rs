//! Models without files: full-size networks whose weights are an integer hash of (name, index), so that speed and
//! goldens need no download, and the fixed position table of DiT.

use std::path::Path;

use super::config::{Architecture, Classes, ModelConfig, NetworkConfig, Prediction};
use super::resnet::{ResBlock, ResNetConfig};
use super::sampling::Sampling;
use super::smp::{Decoder, SmpConfig, TimeWidths};
use super::specs;
use super::transformer::TransformerConfig;
use crate::error::{Error, Result};
use crate::nn::params::WeightSource;
use crate::ops::embed::Sinusoid;

/// A network whose parameters follow from their names.
pub struct HashWeights {
    name: &'static str,
    config: ModelConfig,
}

/// Names that [`find`] knows.
pub const NAMES: [&str; 3] = ["vit-b16", "nanodit", "unetpp-r34"];

/// The hash-weighted model called `name`, if it is one.
pub fn find(name: &str) -> Option<HashWeights> {
    match name {
        "vit-b16" => Some(HashWeights { name: NAMES[0], config: vit_b16() }),
        "nanodit" => Some(HashWeights { name: NAMES[1], config: nanodit() }),
        "unetpp-r34" => Some(HashWeights { name: NAMES[2], config: unetpp_r34() }),
        _ => None,
    }
}

impl HashWeights {
    /// Its name among [`NAMES`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What the network is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
}

impl WeightSource for HashWeights {
    fn origin(&self) -> &Path {
        Path::new(self.name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let spec = specs(&self.config).into_iter().find(|s| s.name == name);
        let shape = spec.ok_or_else(|| Error::Runtime(format!("no parameter {name}")))?.shape;
        if self.config.architecture() == Architecture::Dit && name == "pos_embed" {
            return Ok(sincos_positions(
                self.config.transformer().hidden_size,
                self.config.image_size / self.config.transformer().patch_size,
            ));
        }
        // The hashed names are those of the notebooks' files.
        let prefix = match &self.config.network {
            NetworkConfig::FlowVit(_) => "unet.",
            NetworkConfig::Smp(_) if name.starts_with("time_") => "unet.",
            NetworkConfig::Smp(_) => "unet.unet.",
            _ => "",
        };
        Ok(hashed(&format!("{prefix}{name}"), &shape))
    }
}

/// Uniform numbers in [-1, 1) from the FNV-1a hash of `key` and the splitmix64 sequence that starts there.
pub fn hash_uniform(key: &str, n: usize) -> impl Iterator<Item = f64> {
    let start = key.bytes().fold(14_695_981_039_346_656_037u64, |h, b| (h ^ b as u64).wrapping_mul(1_099_511_628_211));
    (0..n as u64).map(move |i| {
        let mut z = start.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z ^= z >> 30;
        z = z.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z ^= z >> 27;
        z = z.wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        2.0 * ((z >> 40) as f64 / (1u64 << 24) as f64) - 1.0
    })
}

/// Numbers of the parameter called `key`, scaled so that activations keep their size through the network.
pub fn hashed(key: &str, shape: &[usize]) -> Vec<f32> {
    let values = hash_uniform(key, shape.iter().product());
    let last = key.rsplit('.').next().unwrap_or(key);
    let fan_in: usize = shape[1..].iter().product();
    let scale = (3.0 / fan_in as f64).sqrt();
    let value = |s: f64| match (last, shape.len()) {
        ("pos_embed" | "cls_token", _) => 0.5 * s,
        ("weight", 1) => 1.0 + 0.2 * s,
        ("running_mean", _) => 0.2 * s,
        ("running_var", _) => 1.0 + 0.5 * s,
        (_, 1) => 0.1 * s,
        _ => s * scale,
    };
    values.map(|s| value(s) as f32).collect()
}

/// DiT's fixed positions [side^2, dim]: half of a row encodes the column, half the row, each as sines then cosines
/// (Peebles and Xie, arXiv 2212.09748). PRECOND: dim is a multiple of 4, and both are as bounded as a checked
/// [`ModelConfig`]'s.
pub fn sincos_positions(dim: usize, side: usize) -> Vec<f32> {
    let quarter = dim / 4;
    let omega = |i: usize| 1.0 / 10_000f64.powf(i as f64 / quarter as f64);
    let mut table = Vec::with_capacity(side * side * dim);
    for row in 0..side {
        for column in 0..side {
            for at in [column as f64, row as f64] {
                table.extend((0..quarter).map(|i| (at * omega(i)).sin() as f32));
                table.extend((0..quarter).map(|i| (at * omega(i)).cos() as f32));
            }
        }
    }
    table
}

/// The lensing notebooks' flow-matching ViT-B/16 at 224 x 224.
fn vit_b16() -> ModelConfig {
    ModelConfig {
        image_size: 224,
        in_channels: 1,
        out_channels: 1,
        time: Sinusoid { dim: 256, cos_first: false, max_period: 10_000.0, half_shift: 1.0, scale: 1000.0 },
        classes: None,
        parameters: Vec::new(),
        value_range: (-1.0, 1.0),
        prediction: Prediction::Velocity,
        sampling: Sampling::default(),
        autoencoder: None,
        network: NetworkConfig::FlowVit(TransformerConfig {
            patch_size: 16,
            hidden_size: 768,
            depth: 12,
            num_heads: 12,
            mlp_hidden: 3072,
            norm_eps: 1e-6,
            gelu_tanh: false,
            head_size: 0,
        }),
    }
}

/// The class-conditional DiT of the lensing project: 1024 tokens of 2 x 2 pixels.
fn nanodit() -> ModelConfig {
    let names = ["axion", "cdm", "no_sub"].map(String::from).to_vec();
    let flow_vit = vit_b16();
    let sizes = TransformerConfig {
        patch_size: 2,
        hidden_size: 512,
        depth: 6,
        num_heads: 8,
        mlp_hidden: 2048,
        ..flow_vit.transformer().clone()
    };
    ModelConfig {
        image_size: 64,
        time: Sinusoid { dim: 256, cos_first: true, max_period: 10_000.0, half_shift: 0.0, scale: 1000.0 },
        classes: Some(Classes { names, aliases: Default::default(), null: 3 }),
        network: NetworkConfig::Dit(sizes),
        ..flow_vit
    }
}

/// The lensing notebooks' flow-matching U-Net++ at 224 x 224: segmentation_models_pytorch's with a ResNet-34.
fn unetpp_r34() -> ModelConfig {
    let encoder = ResNetConfig {
        block: ResBlock::Basic,
        stem: 64,
        layers: [3, 4, 6, 3],
        channels: [64, 128, 256, 512],
        norm_eps: 1e-5,
        head_size: 0,
    };
    let network = NetworkConfig::Smp(SmpConfig {
        encoder,
        decoder: Decoder::UnetPlusPlus,
        decoder_channels: [256, 128, 64, 32, 16],
        time: Some(TimeWidths { embedding: 256, hidden: 128 }),
    });
    ModelConfig { network, ..vit_b16() }
}
