//! Which architecture the names and shapes of a checkpoint are.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::config::{Architecture, Classes, ModelConfig, NetworkConfig, Prediction};
use super::parameters::{MAX_PARAMETERS, Parameter};
use super::sampling::Sampling;
use super::shapes::{Shapes, Told};
use super::transformer::TransformerConfig;
use super::{autoencoder_kl, convnextv2, efficientnet, overlay, resnet, smp, unet2d};
use crate::ops::embed::Sinusoid;

/// Channels of a head where the configuration does not say.
const HEAD_DIM: usize = 64;

/// The time embedding of the lensing notebooks' models, `dim` wide.
pub(super) fn notebook_time(dim: usize) -> Sinusoid {
    Sinusoid { dim, cos_first: false, max_period: 10_000.0, half_shift: 1.0, scale: 1000.0 }
}

/// A model of `network` with what nothing says otherwise about.
pub(super) fn plain(network: NetworkConfig, image_size: usize, in_channels: usize) -> ModelConfig {
    ModelConfig {
        image_size,
        in_channels,
        out_channels: in_channels,
        time: notebook_time(256),
        classes: None,
        parameters: Vec::new(),
        value_range: (-1.0, 1.0),
        prediction: Prediction::Velocity,
        sampling: Sampling::default(),
        autoencoder: None,
        network,
    }
}

/// What the model is, as far as names and shapes tell.
///
/// # Errors
/// One line: an architecture that nobody knows here, or shapes that contradict each other.
pub(super) fn recognise(shapes: &Shapes) -> Told<ModelConfig> {
    if shapes.has("x_embedder.proj.weight") && shapes.has("final_layer.linear.weight") {
        dit(shapes)
    } else if shapes.has("input_conv.weight") && shapes.has("pretrained_vit.patch_embed.proj.weight") {
        flow_vit(shapes)
    } else if shapes.has("patch_embed.proj.weight") && shapes.has("cls_token") {
        vit(shapes)
    } else if shapes.has("encoder.conv_in.weight") && shapes.has("decoder.conv_in.weight") {
        autoencoder_kl::recognise(shapes)
    } else if shapes.has("encoder.conv1.weight") && shapes.has("segmentation_head.0.weight") {
        smp::recognise(shapes)
    } else if shapes.has("conv_in.weight") && shapes.has("time_embedding.linear_1.weight") {
        unet2d::recognise(shapes)
    } else if shapes.has("stem.0.weight") && shapes.has("stages.0.blocks.0.mlp.grn.weight") {
        convnextv2::recognise(shapes)
    } else if shapes.has("conv_stem.weight") && shapes.has("blocks.0.0.se.conv_reduce.weight") {
        efficientnet::recognise(shapes)
    } else if shapes.has("conv1.weight") && shapes.has("layer1.0.conv1.weight") {
        resnet::recognise(shapes)
    } else {
        let some: Vec<&str> = shapes.names.values().take(4).map(String::as_str).collect();
        Err(format!(
            "unknown architecture: keys like {} found; a flow-matching ViT (input_conv, pretrained_vit), a DiT \
             (x_embedder, final_layer), a timm ViT (patch_embed, cls_token), a U-Net of segmentation_models_pytorch \
             (encoder.conv1, segmentation_head) or diffusers (conv_in, time_embedding), an AutoencoderKL \
             (encoder.conv_in, decoder.conv_in), a ConvNeXt V2 (stem, grn), an EfficientNet (conv_stem, se) or a ResNet \
             (conv1, layer1) expected",
            some.join(", ")
        ))
    }
}

fn dit(shapes: &Shapes) -> Told<ModelConfig> {
    let [d, channels, p, _] = shapes.get("x_embedder.proj.weight")?;
    let [rows, _] = shapes.get("final_layer.linear.weight")?;
    let [label_rows, _] = shapes.get("y_embedder.embedding_table.weight")?;
    let [_, freq] = shapes.get("t_embedder.mlp.0.weight")?;
    let parameters = parameters(shapes)?;
    let per_patch = p * p * channels;
    // The original predicts noise and variance; the lensing project's variant a velocity.
    let original = rows == 2 * per_patch;
    if !original && rows != per_patch {
        return Err(format!("final_layer.linear has {rows} rows, {per_patch} or {} expected", 2 * per_patch));
    }
    let classes = label_rows - 1;
    let image_size = match shapes.get::<3>("pos_embed") {
        Ok([_, tokens, _]) => square(tokens)? * p,
        Err(_) if !shapes.has("pos_embed") => given_size(shapes.given, channels)?,
        Err(e) => return Err(e),
    };
    let sizes = TransformerConfig {
        patch_size: p,
        hidden_size: d,
        depth: depth(shapes, "blocks")?,
        num_heads: d / HEAD_DIM,
        mlp_hidden: shapes.get::<2>("blocks.0.mlp.fc1.weight")?[0],
        norm_eps: 1e-6,
        gelu_tanh: original,
        head_size: 0,
    };
    let scale = if original { 1.0 } else { 1000.0 };
    Ok(ModelConfig {
        out_channels: if original { 2 * channels } else { channels },
        time: Sinusoid { dim: freq, cos_first: true, max_period: 10_000.0, half_shift: 0.0, scale },
        classes: (classes > 0).then(|| Classes {
            names: (0..classes).map(|i| i.to_string()).collect(),
            aliases: BTreeMap::new(),
            null: classes,
        }),
        parameters,
        prediction: if original { Prediction::Epsilon } else { Prediction::Velocity },
        ..plain(NetworkConfig::Dit(sizes), image_size, channels)
    })
}

/// The continuous parameters that the weights have room for; the configuration has to name them.
fn parameters(shapes: &Shapes) -> Told<Vec<Parameter>> {
    if !shapes.has("param_embed.0.weight") {
        return Ok(Vec::new());
    }
    let [_, count] = shapes.get("param_embed.0.weight")?;
    if count > MAX_PARAMETERS {
        return Err(format!("param_embed.0.weight takes {count} parameters, at most {MAX_PARAMETERS} expected"));
    }
    Ok((0..count).map(|i| Parameter { name: i.to_string(), mean: 0.0, std: 1.0, log: false }).collect())
}

fn flow_vit(shapes: &Shapes) -> Told<ModelConfig> {
    let [_, channels, _, _] = shapes.get("input_conv.weight")?;
    let [rows, _] = shapes.get("output_proj.2.weight")?;
    let [_, freq] = shapes.get("time_embed.time_mlp.0.weight")?;
    let (sizes, image_size) = encoder(shapes, "pretrained_vit.")?;
    let pixels = sizes.patch_size * sizes.patch_size;
    if rows % pixels != 0 {
        return Err(format!("output_proj.2 has {rows} rows, a multiple of {pixels} expected"));
    }
    if rows / pixels != channels {
        return Err(format!("output_proj.2 makes {} channels, {channels} expected", rows / pixels));
    }
    let time = notebook_time(freq);
    Ok(ModelConfig { time, ..plain(NetworkConfig::FlowVit(sizes), image_size, channels) })
}

fn vit(shapes: &Shapes) -> Told<ModelConfig> {
    let [_, channels, _, _] = shapes.get("patch_embed.proj.weight")?;
    let head_size = shapes.get::<2>("head.weight")?[0];
    let (sizes, image_size) = encoder(shapes, "")?;
    Ok(plain(NetworkConfig::Vit(TransformerConfig { head_size, ..sizes }), image_size, channels))
}

/// What the timm encoder below `prefix` says: its sizes, and that of its images.
fn encoder(shapes: &Shapes, prefix: &str) -> Told<(TransformerConfig, usize)> {
    let at = |name: &str| format!("{prefix}{name}");
    let [d, _, p, _] = shapes.get(&at("patch_embed.proj.weight"))?;
    let [_, rows, _] = shapes.get(&at("pos_embed"))?;
    let sizes = TransformerConfig {
        patch_size: p,
        hidden_size: d,
        depth: depth(shapes, &at("blocks"))?,
        num_heads: d / HEAD_DIM,
        mlp_hidden: shapes.get::<2>(&at("blocks.0.mlp.fc1.weight"))?[0],
        norm_eps: 1e-6,
        gelu_tanh: false,
        head_size: 0,
    };
    Ok((sizes, square(rows - 1)? * p))
}

fn depth(shapes: &Shapes, blocks: &str) -> Told<usize> {
    shapes.count(&format!("blocks called {blocks}.N"), |i| format!("{blocks}.{i}.attn.qkv.weight"))
}

fn given_size(given: &Map<String, Value>, channels: usize) -> Told<usize> {
    match overlay::image_size(given, &[channels]).map_err(|e| format!("configuration: {e}"))? {
        Some((_, size)) => Ok(size),
        None => Err("neither pos_embed nor a configured image_size tells the size of images".into()),
    }
}

/// Side of a square of `tokens` patches.
fn square(tokens: usize) -> Told<usize> {
    let side = tokens.isqrt();
    if side > 0 && side * side == tokens {
        Ok(side)
    } else {
        Err(format!("positions for {tokens} patches, a square number expected"))
    }
}

impl ModelConfig {
    /// What neither the shapes nor the `given` configuration tell, and what is taken instead.
    ///
    /// # Errors
    /// One line: what cannot be guessed.
    pub(super) fn guesses(&self, given: &Map<String, Value>) -> Told<Vec<String>> {
        let absent = |names: &[&str]| !names.iter().any(|name| given.contains_key(*name));
        let mut notes = Vec::new();
        let mut note =
            |name: &str, taken: String| notes.push(format!("no {name} in the configuration: taking {taken}"));
        if let NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) | NetworkConfig::Vit(t) = &self.network {
            if absent(&["num_heads"]) {
                let (d, heads) = (t.hidden_size, t.num_heads);
                if d % HEAD_DIM != 0 {
                    return Err(format!(
                        "no num_heads in the configuration: needed for a hidden size of {d}, which heads of {HEAD_DIM} do not divide"
                    ));
                }
                note("num_heads", format!("{heads} heads of {HEAD_DIM}"));
            }
            if !self.parameters.is_empty() && absent(&["parameters"]) {
                let count = self.parameters.len();
                return Err(format!(
                    "no parameters in the configuration: needed for the {count} that param_embed takes"
                ));
            }
            return Ok(notes);
        }
        if absent(&overlay::SIZES) {
            note("image_size", self.image_size.to_string());
        }
        if let NetworkConfig::Unet2d(unet) = &self.network {
            if absent(&["attention_head_dim", "num_attention_heads"]) {
                let heads = if self.architecture() == Architecture::Unet2d { "heads of 8 channels" } else { "8 heads" };
                note("attention_head_dim", heads.into());
            }
            if absent(&["norm_num_groups"]) {
                note("norm_num_groups", unet.norm_groups.to_string());
            }
        }
        if let NetworkConfig::AutoencoderKl(vae) = &self.network {
            if absent(&["norm_num_groups"]) {
                note("norm_num_groups", vae.norm_groups.to_string());
            }
            if given.get("scaling_factor").is_none_or(Value::is_null) {
                notes.push("no scaling_factor in the configuration: diffusion in the latent space needs it".into());
            }
        }
        Ok(notes)
    }
}
