//! The diffusion transformer with adaLN-zero (Peebles and Xie, arXiv 2212.09748), under the names of the original
//! repository: the class-conditional lensing model ("NanoDiT") and the original's own configurations.

use super::Inputs;
use super::config::ModelConfig;
use super::vit::{BlockActs, workspace_dtype};
use crate::device::Device;
use crate::error::Result;
use crate::nn::Tap;
use crate::nn::attention::SelfAttention;
use crate::nn::linear::Linear;
use crate::nn::mlp::Mlp;
use crate::nn::params::{Loader, ParamSpec, linear_specs};
use crate::nn::time::{TimeActs, TimeMlp};
use crate::ops::PerImage;
use crate::ops::embed::label_embedding;
use crate::ops::layernorm::{Affine, layernorm};
use crate::ops::linear::{Activation, Residual};
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
    modulation: Linear,
}

/// Weights on a device.
pub struct Dit {
    patch_embed: Linear,
    positions: Tensor,
    time: TimeMlp,
    labels: Tensor,
    blocks: Vec<Block>,
    final_linear: Linear,
    final_modulation: Linear,
}

/// Activations of one batch.
pub struct DitActs {
    patches: Tensor,
    x: Tensor,
    block: BlockActs,
    time: TimeActs,
    /// silu(time + label), [B, D].
    c: Tensor,
    /// Shift, scale and gate of attention, then of the MLP, [B, 6 D].
    modulation: Tensor,
    /// Shift and scale of the last norm, [B, 2 D].
    final_modulation: Tensor,
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
                        modulation: Linear::load(&loader.at("adaLN_modulation.1"), 6 * d, d)?,
                    })
                })
                .collect::<Result<_>>()?,
            final_linear: Linear::load(&loader.at("final_layer.linear"), p * p * config.out_channels, d)?,
            final_modulation: Linear::load(&loader.at("final_layer.adaLN_modulation.1"), 2 * d, d)?,
        })
    }

    /// Buffers for `batch` images.
    pub fn acts(&self, config: &ModelConfig, device: &Device, dtype: DType, batch: usize) -> Result<DitActs> {
        let (d, p, tokens) = (config.hidden_size, config.patch_size, config.tokens());
        let per_token = |n| Tensor::zeros(device, dtype, &[batch, tokens, n]);
        let per_image = |n| Tensor::zeros(device, dtype, &[batch, n]);
        let token_layers = (self.blocks.iter())
            .flat_map(|b| [&b.attn.qkv, &b.attn.proj, &b.mlp.fc1, &b.mlp.fc2])
            .chain([&self.patch_embed, &self.final_linear])
            .map(|l| l.workspace_len(device, batch, tokens));
        let image_layers = (self.blocks.iter().map(|b| &b.modulation))
            .chain([&self.final_modulation])
            .map(|l| l.workspace_len(device, batch, 1));
        let workspace = token_layers.chain(image_layers).chain([self.time.workspace_len(device, batch)]).max();
        Ok(DitActs {
            patches: per_token(config.in_channels * p * p)?,
            x: per_token(d)?,
            block: BlockActs::new(config, device, dtype, batch, tokens)?,
            time: TimeActs::new(device, dtype, batch, config.time.dim, d)?,
            c: per_image(d)?,
            modulation: per_image(6 * d)?,
            final_modulation: per_image(2 * d)?,
            out: per_token(p * p * config.out_channels)?,
            workspace: Tensor::zeros(device, workspace_dtype(dtype), &[workspace.unwrap_or(0)])?,
        })
    }

    /// output [B, C, H, W]; `tap` sees `tokens_plus_pos`, `t_emb`, `block<i>.adaLN`, `block<i>`, `final`.
    pub fn forward(
        &self,
        config: &ModelConfig,
        device: &Device,
        inputs: Inputs,
        acts: &mut DitActs,
        output: &mut Tensor,
        tap: Tap,
    ) -> Result<()> {
        let DitActs { patches, x, block, time, c, modulation, final_modulation, out, workspace } = acts;
        let (d, eps) = (config.hidden_size, config.norm_eps);
        patchify(device, inputs.x, config.patch_size, patches)?;
        let positions = Residual::Rows(&self.positions);
        self.patch_embed.forward(device, patches, Activation::None, positions, x, workspace)?;
        tap("tokens_plus_pos", x);
        self.time.forward(device, inputs.times, inputs.counter, time, workspace)?;
        tap("t_emb", &time.out);
        label_embedding(device, &time.out, &self.labels, inputs.labels, c)?;
        for (i, layer) in self.blocks.iter().enumerate() {
            layer.modulation.forward(device, c, Activation::None, Residual::None, modulation, workspace)?;
            tap(&format!("block{i}.adaLN"), modulation);
            let part = |i: usize| PerImage { tensor: &*modulation, offset: i * d };
            let affine = Affine::Modulated { shift: part(0), scale: part(1) };
            layernorm(device, x, affine, eps, &mut block.h)?;
            layer.attn.forward(device, &mut block.h, &mut block.qkv, Residual::Gated(part(2)), x, workspace)?;
            let affine = Affine::Modulated { shift: part(3), scale: part(4) };
            layernorm(device, x, affine, eps, &mut block.h)?;
            layer.mlp.forward(device, &block.h, &mut block.hidden, Residual::Gated(part(5)), x, workspace)?;
            tap(&format!("block{i}"), x);
        }
        self.final_modulation.forward(device, c, Activation::None, Residual::None, final_modulation, workspace)?;
        let part = |i: usize| PerImage { tensor: &*final_modulation, offset: i * d };
        let affine = Affine::Modulated { shift: part(0), scale: part(1) };
        layernorm(device, x, affine, eps, &mut block.h)?;
        self.final_linear.forward(device, &block.h, Activation::None, Residual::None, out, workspace)?;
        tap("final", out);
        unpatchify(device, out, config.patch_size, output)
    }
}
