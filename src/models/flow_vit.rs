//! The flow-matching ViT of the lensing notebooks: a timm ViT encoder without class token and final norm, the time
//! embedding added to every token after the last block, and a two-layer head back to pixels.

use super::Inputs;
use super::config::ModelConfig;
use super::vit::block_specs;
use crate::device::Device;
use crate::error::Result;
use crate::nn::Tap;
use crate::nn::block::{Block, BlockActs};
use crate::nn::linear::Linear;
use crate::nn::norm::Layers;
use crate::nn::params::{Loader, ParamSpec, linear_specs};
use crate::nn::time::TimeMlp;
use crate::ops::linear::{Activation, Operands, Residual, Workspace, WorkspaceSize, linear};
use crate::ops::patch::{patchify, unpatchify};
use crate::ops::{Columns, Select};
use crate::tensor::{DType, Tensor};

/// Channels that the 1x1 input convolution makes for the ImageNet encoder behind it.
pub(super) const ENCODER_CHANNELS: usize = 3;

/// Parameters, under the notebooks' names without their outer `unet.`.
pub fn specs(config: &ModelConfig) -> Vec<ParamSpec> {
    let (d, p, c) = (config.transformer().hidden_size, config.transformer().patch_size, config.in_channels);
    let mut specs = vec![
        ParamSpec::new("input_conv.weight", &[ENCODER_CHANNELS, c, 1, 1]),
        ParamSpec::new("input_conv.bias", &[ENCODER_CHANNELS]),
        ParamSpec::new("pretrained_vit.pos_embed", &[1, config.tokens() + 1, d]),
        ParamSpec::new("pretrained_vit.patch_embed.proj.weight", &[d, ENCODER_CHANNELS, p, p]),
        ParamSpec::new("pretrained_vit.patch_embed.proj.bias", &[d]),
    ];
    for i in 0..config.transformer().depth {
        specs.extend(block_specs(&format!("pretrained_vit.blocks.{i}"), config));
    }
    specs.extend(TimeMlp::specs("time_embed.time_mlp", config.time.dim, d));
    specs.extend(linear_specs("output_proj.0", d, d));
    specs.extend(linear_specs("output_proj.2", p * p * config.out_channels, d));
    specs
}

/// Weights on a device; the input convolution is folded into the patch embedding.
pub struct FlowVit {
    patch_embed: Linear,
    positions: Tensor,
    blocks: Vec<Block>,
    time: TimeMlp,
    output: [Linear; 2],
}

/// Activations of one batch.
pub struct FlowVitActs {
    patches: Tensor,
    x: Tensor,
    block: BlockActs,
    out: Tensor,
    workspace: Workspace,
}

/// What differs from evaluation to evaluation.
pub struct FlowVitConditions {
    /// Time embeddings, [E, D].
    pub time: Tensor,
    /// The time embedding is added to every token in front of the first output layer: seen from behind that layer it is a
    /// bias, [E, D].
    bias: Tensor,
}

impl FlowVit {
    /// Reads the weights.
    pub fn load(config: &ModelConfig, loader: &Loader) -> Result<Self> {
        let (d, p) = (config.transformer().hidden_size, config.transformer().patch_size);
        let vit = loader.at("pretrained_vit");
        let positions = vit.read("pos_embed")?;
        Ok(Self {
            patch_embed: fold_input_conv(config, loader)?,
            // Row 0 belongs to the class token, which this model does without.
            positions: vit.computed("pos_embed", &[config.tokens(), d], &widen(&positions[d..]))?,
            blocks: loader
                .each(config.transformer().depth, |i| Block::load(config.block(), &vit.at(format!("blocks.{i}"))))?,
            time: TimeMlp::load(&loader.at("time_embed.time_mlp"), config.time.dim, d)?,
            output: [
                Linear::load(&loader.at("output_proj.0"), d, d)?,
                Linear::load(&loader.at("output_proj.2"), p * p * config.out_channels, d)?,
            ],
        })
    }

    /// Memory for what differs between `evaluations` evaluations.
    pub fn new_conditions(
        &self,
        config: &ModelConfig,
        device: &Device,
        dtype: DType,
        evaluations: usize,
    ) -> Result<FlowVitConditions> {
        let zeros = || Tensor::zeros(device, dtype, &[evaluations, config.transformer().hidden_size]);
        Ok(FlowVitConditions { time: zeros()?, bias: zeros()? })
    }

    /// What follows from the times alone.
    pub fn conditions(
        &self,
        config: &ModelConfig,
        device: &Device,
        times: &[f64],
        to: &mut FlowVitConditions,
    ) -> Result<()> {
        self.time.embed(device, &config.time, times, &mut to.time)?;
        let first = &self.output[0];
        let mut workspace = first.workspace(device, times.len(), 1)?;
        first.forward(device, &to.time, Activation::None, Residual::None, &mut to.bias, &mut workspace)
    }

    /// Buffers for `batch` images.
    pub fn acts(
        &self,
        config: &ModelConfig,
        layers: Layers,
        device: &Device,
        dtype: DType,
        batch: usize,
    ) -> Result<FlowVitActs> {
        let (d, p, tokens) = (config.transformer().hidden_size, config.transformer().patch_size, config.tokens());
        let zeros = |n| Tensor::zeros(device, dtype, &[batch, tokens, n]);
        let linears = [&self.patch_embed, &self.output[0], &self.output[1]];
        let workspace = (self.blocks.iter().map(|b| b.workspace_size(device, batch, tokens)))
            .chain(linears.map(|l| l.workspace_size(device, batch, tokens)))
            .fold(WorkspaceSize::default(), WorkspaceSize::max);
        Ok(FlowVitActs {
            patches: zeros(config.in_channels * p * p)?,
            x: zeros(d)?,
            block: BlockActs::new(config.block(), layers, device, dtype, batch, tokens)?,
            out: zeros(p * p * config.out_channels)?,
            workspace: Workspace::new(device, dtype, workspace)?,
        })
    }

    /// output [B, C, H, W] = velocity; `tap` sees `tokens_plus_pos`, `block<i>` and its parts.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        config: &ModelConfig,
        device: &Device,
        inputs: Inputs,
        conditions: &FlowVitConditions,
        acts: &mut FlowVitActs,
        output: &mut Tensor,
        tap: Tap,
    ) -> Result<()> {
        let FlowVitActs { patches, x, block, out, workspace } = acts;
        patchify(device, inputs.x, config.transformer().patch_size, patches)?;
        let embed = Operands { residual: Residual::Rows(&self.positions), ..self.patch_embed.on(patches) };
        linear(device, embed, x, block.normed.wanted(None), workspace)?;
        tap("tokens_plus_pos", x);
        for (i, layer) in self.blocks.iter().enumerate() {
            layer.forward(device, &format!("block{i}"), x, None, block, workspace, tap)?;
        }
        let [first, last] = &self.output;
        let timed = Operands {
            bias: Some(Columns::PerImage(&conditions.bias)),
            select: Some(Select { counter: inputs.counter, rows: inputs.rows, conditions: 1 }),
            act: Activation::Silu,
            ..first.on(x)
        };
        linear(device, timed, &mut block.h, None, workspace)?;
        last.forward(device, &block.h, Activation::None, Residual::None, out, workspace)?;
        unpatchify(device, out, config.transformer().patch_size, output)
    }
}

/// The 1x1 convolution in front of the patch embedding, folded into its weights in f64: exact, because there is no
/// padding.
fn fold_input_conv(config: &ModelConfig, loader: &Loader) -> Result<Linear> {
    let (d, c, pp) = (
        config.transformer().hidden_size,
        config.in_channels,
        config.transformer().patch_size * config.transformer().patch_size,
    );
    let conv = (loader.read("input_conv.weight")?, loader.read("input_conv.bias")?);
    let proj = loader.at("pretrained_vit.patch_embed.proj");
    let (weight, bias) = (proj.read("weight")?, proj.read("bias")?);
    let mut folded = vec![0f64; d * c * pp];
    let mut folded_bias = widen(&bias);
    for n in 0..d {
        for e in 0..ENCODER_CHANNELS {
            let kernel = &weight[(n * ENCODER_CHANNELS + e) * pp..][..pp];
            for (i, &w) in kernel.iter().enumerate() {
                folded_bias[n] += w as f64 * conv.1[e] as f64;
                for from in 0..c {
                    folded[(n * c + from) * pp + i] += w as f64 * conv.0[e * c + from] as f64;
                }
            }
        }
    }
    Ok(Linear {
        weight: proj.computed_matrix("weight", d, c * pp, &folded)?,
        bias: proj.computed("bias", &[d], &folded_bias)?,
    })
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}
