//! The Vision Transformer encoder (Dosovitskiy et al., arXiv 2010.11929) with timm's parameter names, and the plain
//! classifier made of it.

use super::config::ModelConfig;
use crate::device::Device;
use crate::error::Result;
use crate::nn::Tap;
use crate::nn::block::{Block, BlockActs};
use crate::nn::linear::Linear;
use crate::nn::norm::{LayerNorm, Layers};
use crate::nn::params::{Loader, ParamSpec, WeightSource, linear_specs};
use crate::ops::embed::{prepend_token, take_token};
use crate::ops::linear::{Activation, Residual, Workspace, WorkspaceSize};
use crate::ops::patch::patchify;
use crate::tensor::{DType, Tensor};

/// Parameters of a block below `name`, its learned norms included.
pub fn block_specs(name: &str, config: &ModelConfig) -> Vec<ParamSpec> {
    let d = config.transformer().hidden_size;
    let norms = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"];
    let mut specs: Vec<ParamSpec> = norms.iter().map(|n| ParamSpec::new(format!("{name}.{n}"), &[d])).collect();
    specs.extend(Block::specs(name, d, config.transformer().mlp_hidden));
    specs
}

/// Parameters of the plain classifier: class token, final norm and head included.
pub fn specs(config: &ModelConfig) -> Vec<ParamSpec> {
    let (d, p) = (config.transformer().hidden_size, config.transformer().patch_size);
    let mut specs = vec![
        ParamSpec::new("cls_token", &[1, 1, d]),
        ParamSpec::new("pos_embed", &[1, config.tokens() + 1, d]),
        ParamSpec::new("patch_embed.proj.weight", &[d, config.in_channels, p, p]),
        ParamSpec::new("patch_embed.proj.bias", &[d]),
    ];
    for i in 0..config.transformer().depth {
        specs.extend(block_specs(&format!("blocks.{i}"), config));
    }
    specs.extend([ParamSpec::new("norm.weight", &[d]), ParamSpec::new("norm.bias", &[d])]);
    specs.extend(linear_specs("head", config.transformer().head_size, d));
    specs
}

/// A timm ViT classifier: patches and class token through the blocks, class token through norm and head.
pub struct Vit {
    config: ModelConfig,
    device: Device,
    dtype: DType,
    patch_embed: Linear,
    positions: Tensor,
    first: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl Vit {
    /// Reads the weights from `source`.
    ///
    /// # Errors
    /// `source`'s and the device's.
    pub fn load(config: ModelConfig, source: &dyn WeightSource, device: &Device, dtype: DType) -> Result<Self> {
        let loader = Loader::new(source, device, dtype);
        let d = config.transformer().hidden_size;
        let positions = loader.stored("pos_embed")?;
        let first: Vec<f64> = loader.read("cls_token")?.iter().zip(&positions).map(|(&c, &p)| (c + p) as f64).collect();
        let patch_len = config.in_channels * config.transformer().patch_size * config.transformer().patch_size;
        Ok(Self {
            patch_embed: Linear::load(&loader.at("patch_embed.proj"), d, patch_len)?,
            positions: loader.given(&[config.tokens(), d], &positions[d..])?,
            first: loader.computed("cls_token", &[d], &first)?,
            blocks: loader
                .each(config.transformer().depth, |i| Block::load(config.block(), &loader.at(format!("blocks.{i}"))))?,
            norm: LayerNorm::load(&loader.at("norm"), d, config.transformer().norm_eps)?,
            head: Linear::load(&loader.at("head"), config.transformer().head_size, d)?,
            device: device.clone(),
            config,
            dtype,
        })
    }

    /// Logits [B, classes] of images x [B, C, H, W] (f32); `tap` sees the blocks' activations and `norm`.
    ///
    /// # Errors
    /// The operations'.
    pub fn logits(&self, x: &Tensor, tap: Tap) -> Result<Tensor> {
        let (c, device, batch) = (&self.config, &self.device, x.dim(0));
        let (tokens, d) = (c.tokens(), c.transformer().hidden_size);
        let zeros = |shape: &[usize]| Tensor::zeros(device, self.dtype, shape);
        let mut patches =
            zeros(&[batch, tokens, c.in_channels * c.transformer().patch_size * c.transformer().patch_size])?;
        let mut embedded = zeros(&[batch, tokens, d])?;
        let mut x_tokens = zeros(&[batch, tokens + 1, d])?;
        // The class token joins after the embedding, so nobody leaves statistics of the first block's input.
        let mut acts = BlockActs::new(c.block(), Layers::Separate, device, self.dtype, batch, tokens + 1)?;
        let mut normed = zeros(&[batch, tokens + 1, d])?;
        let (mut top, mut logits) = (zeros(&[batch, d])?, zeros(&[batch, c.transformer().head_size])?);
        let blocks = self.blocks.iter().map(|b| b.workspace_size(device, batch, tokens + 1));
        let embed = self.patch_embed.workspace_size(device, batch, tokens);
        let need = blocks.chain([embed, self.head.workspace_size(device, batch, 1)]);
        let need = need.fold(WorkspaceSize::default(), WorkspaceSize::max);
        let mut workspace = Workspace::new(device, self.dtype, need)?;

        patchify(device, x, c.transformer().patch_size, &mut patches)?;
        let positions = Residual::Rows(&self.positions);
        self.patch_embed.forward(device, &patches, Activation::None, positions, &mut embedded, &mut workspace)?;
        prepend_token(device, &self.first, &embedded, &mut x_tokens)?;
        for (i, block) in self.blocks.iter().enumerate() {
            block.forward(device, &format!("block{i}"), &mut x_tokens, None, &mut acts, &mut workspace, tap)?;
        }
        self.norm.forward(device, &x_tokens, &mut normed)?;
        tap("norm", &normed);
        take_token(device, &normed, &mut top)?;
        self.head.forward(device, &top, Activation::None, Residual::None, &mut logits, &mut workspace)?;
        Ok(logits)
    }
}
