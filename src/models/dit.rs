//! The diffusion transformer with adaLN-zero (Peebles and Xie, arXiv 2212.09748), under the names of the original
//! repository: the class-conditional lensing model ("NanoDiT") and the original's own configurations.

use super::Inputs;
use super::config::ModelConfig;
use super::vit::BlockActs;
use crate::device::Device;
use crate::error::Result;
use crate::nn::Tap;
use crate::nn::attention::SelfAttention;
use crate::nn::linear::Linear;
use crate::nn::mlp::Mlp;
use crate::nn::params::{Loader, ParamSpec, linear_specs};
use crate::nn::time::TimeMlp;
use crate::ops::PerImage;
use crate::ops::embed::label_embedding;
use crate::ops::layernorm::{Affine, layernorm};
use crate::ops::linear::{Activation, Residual, workspace_dtype};
use crate::ops::patch::{patchify, unpatchify};
use crate::tensor::{DType, Tensor};

/// Parameters, under the original repository's names.
pub fn specs(config: &ModelConfig) -> Vec<ParamSpec> {
    let (d, p) = (config.hidden_size, config.patch_size);
    let mut specs = vec![
        ParamSpec::new("pos_embed", &[1, config.tokens(), d]),
        ParamSpec::new("x_embedder.proj.weight", &[d, config.in_channels, p, p]),
        ParamSpec::new("x_embedder.proj.bias", &[d]),
    ];
    specs.extend(TimeMlp::specs("t_embedder.mlp", config.time.dim, d));
    specs.push(ParamSpec::new("y_embedder.embedding_table.weight", &[config.label_rows(), d]));
    for i in 0..config.depth {
        let block = format!("blocks.{i}");
        specs.extend(SelfAttention::specs(&format!("{block}.attn"), d));
        specs.extend(Mlp::specs(&format!("{block}.mlp"), d, config.mlp_hidden));
        specs.extend(linear_specs(&format!("{block}.adaLN_modulation.1"), 6 * d, d));
    }
    specs.extend(linear_specs("final_layer.linear", p * p * config.out_channels, d));
    specs.extend(linear_specs("final_layer.adaLN_modulation.1", 2 * d, d));
    specs
}

struct Block {
    attn: SelfAttention,
    mlp: Mlp,
}

/// Weights on a device.
pub struct Dit {
    patch_embed: Linear,
    positions: Tensor,
    time: TimeMlp,
    labels: Tensor,
    blocks: Vec<Block>,
    final_linear: Linear,
    /// The adaLN layers of all blocks and of the last layer, as one product: [(6 depth + 2) D, D].
    modulation: Linear,
}

/// Activations of one batch.
pub struct DitActs {
    patches: Tensor,
    x: Tensor,
    block: BlockActs,
    /// Of each block: shift, scale and gate of attention, then of the MLP; shift and scale of the last norm.
    /// [B, (6 depth + 2) D].
    modulation: Tensor,
    out: Tensor,
    workspace: Tensor,
}

impl Dit {
    /// Reads the weights.
    pub fn load(config: &ModelConfig, loader: &Loader) -> Result<Self> {
        let (d, p) = (config.hidden_size, config.patch_size);
        Ok(Self {
            patch_embed: Linear::load(&loader.at("x_embedder.proj"), d, config.in_channels * p * p)?,
            positions: loader.tensor("pos_embed", &[config.tokens(), d])?,
            time: TimeMlp::load(&loader.at("t_embedder.mlp"), config.time.dim, d)?,
            labels: loader.tensor("y_embedder.embedding_table.weight", &[config.label_rows(), d])?,
            blocks: (0..config.depth)
                .map(|i| {
                    let loader = loader.at(format!("blocks.{i}"));
                    Ok(Block {
                        attn: SelfAttention::load(&loader.at("attn"), d, config.num_heads)?,
                        mlp: Mlp::load(&loader.at("mlp"), d, config.mlp_hidden, config.activation())?,
                    })
                })
                .collect::<Result<_>>()?,
            final_linear: Linear::load(&loader.at("final_layer.linear"), p * p * config.out_channels, d)?,
            modulation: load_modulation(config, loader)?,
        })
    }

    /// S: elements of one row of conditions.
    pub fn condition_len(&self) -> usize {
        self.modulation.weight.dim(0)
    }

    /// table [E L, S] = what differs from evaluation to evaluation and from label to label: the modulation of every layer.
    pub fn conditions(
        &self,
        config: &ModelConfig,
        device: &Device,
        times: &[f64],
        labels: &[u32],
        table: &mut Tensor,
    ) -> Result<()> {
        let (dtype, d, rows) = (table.dtype(), config.hidden_size, times.len() * labels.len());
        let mut time = Tensor::zeros(device, dtype, &[times.len(), d])?;
        self.time.embed(device, &config.time, times, &mut time)?;
        let labels = Tensor::from_u32(device, &[labels.len()], labels)?;
        let mut c = Tensor::zeros(device, dtype, &[rows, d])?;
        label_embedding(device, &time, &self.labels, &labels, &mut c)?;
        let mut workspace = self.modulation.workspace(device, dtype, rows, 1)?;
        self.modulation.forward(device, &c, Activation::None, Residual::None, table, &mut workspace)
    }

    /// Buffers for `batch` images.
    pub fn acts(&self, config: &ModelConfig, device: &Device, dtype: DType, batch: usize) -> Result<DitActs> {
        let (d, p, tokens) = (config.hidden_size, config.patch_size, config.tokens());
        let per_token = |n| Tensor::zeros(device, dtype, &[batch, tokens, n]);
        let workspace = (self.blocks.iter())
            .flat_map(|b| [&b.attn.qkv, &b.attn.proj, &b.mlp.fc1, &b.mlp.fc2])
            .chain([&self.patch_embed, &self.final_linear])
            .map(|l| l.workspace_len(device, batch, tokens))
            .max();
        Ok(DitActs {
            patches: per_token(config.in_channels * p * p)?,
            x: per_token(d)?,
            block: BlockActs::new(config, device, dtype, batch, tokens)?,
            modulation: Tensor::zeros(device, dtype, &[batch, self.modulation.weight.dim(0)])?,
            out: per_token(p * p * config.out_channels)?,
            workspace: Tensor::zeros(device, workspace_dtype(dtype), &[workspace.unwrap_or(0)])?,
        })
    }

    /// output [B, C, H, W]; `tap` sees `tokens_plus_pos`, `block<i>`, `final`.
    pub fn forward(
        &self,
        config: &ModelConfig,
        device: &Device,
        inputs: Inputs,
        acts: &mut DitActs,
        output: &mut Tensor,
        tap: Tap,
    ) -> Result<()> {
        let DitActs { patches, x, block, modulation, out, workspace } = acts;
        let (d, eps) = (config.hidden_size, config.norm_eps);
        patchify(device, inputs.x, config.patch_size, patches)?;
        let positions = Residual::Rows(&self.positions);
        self.patch_embed.forward(device, patches, Activation::None, positions, x, workspace)?;
        tap("tokens_plus_pos", x);
        inputs.conditions.select(device, inputs, modulation)?;
        let modulation = &*modulation;
        for (i, layer) in self.blocks.iter().enumerate() {
            let part = |j: usize| PerImage { tensor: modulation, offset: (6 * i + j) * d };
            let affine = Affine::Modulated { shift: part(0), scale: part(1) };
            layernorm(device, x, affine, eps, &mut block.h)?;
            layer.attn.forward(device, &mut block.h, &mut block.qkv, Residual::Gated(part(2)), x, workspace)?;
            let affine = Affine::Modulated { shift: part(3), scale: part(4) };
            layernorm(device, x, affine, eps, &mut block.h)?;
            layer.mlp.forward(device, &block.h, &mut block.hidden, Residual::Gated(part(5)), x, workspace)?;
            tap(&format!("block{i}"), x);
        }
        let part = |j: usize| PerImage { tensor: modulation, offset: (6 * config.depth + j) * d };
        let affine = Affine::Modulated { shift: part(0), scale: part(1) };
        layernorm(device, x, affine, eps, &mut block.h)?;
        self.final_linear.forward(device, &block.h, Activation::None, Residual::None, out, workspace)?;
        tap("final", out);
        unpatchify(device, out, config.patch_size, output)
    }
}

/// All adaLN layers, their rows one behind the other.
fn load_modulation(config: &ModelConfig, loader: &Loader) -> Result<Linear> {
    let d = config.hidden_size;
    let blocks = (0..config.depth).map(|i| loader.at(format!("blocks.{i}")));
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    for layer in blocks.chain([loader.at("final_layer")]) {
        let layer = layer.at("adaLN_modulation.1");
        weight.extend(layer.stored("weight")?);
        bias.extend(layer.stored("bias")?);
    }
    let rows = (6 * config.depth + 2) * d;
    Ok(Linear { weight: loader.given(&[rows, d], &weight)?, bias: loader.given(&[rows], &bias)? })
}
