//! The Vision Transformer encoder (Dosovitskiy et al., arXiv 2010.11929) with timm's parameter names, and the plain
//! classifier made of it.

use super::config::ModelConfig;
use crate::device::Device;
use crate::error::Result;
use crate::nn::Tap;
use crate::nn::attention::SelfAttention;
use crate::nn::linear::Linear;
use crate::nn::mlp::Mlp;
use crate::nn::norm::LayerNorm;
use crate::nn::params::{Loader, ParamSpec, WeightSource, linear_specs};
use crate::ops::embed::{prepend_token, take_token};
use crate::ops::linear::{Activation, Residual, workspace_dtype};
use crate::ops::patch::patchify;
use crate::tensor::{DType, Tensor};

/// One pre-norm block: x += attention(norm1(x)); x += mlp(norm2(x)).
pub struct Block {
    norm1: LayerNorm,
    attn: SelfAttention,
    norm2: LayerNorm,
    mlp: Mlp,
}

/// Scratch of one block, shared by all blocks of a model.
pub struct BlockActs {
    /// [B, T, D]: normalised input, then attention output.
    pub h: Tensor,
    /// [B, T, 3 D].
    pub qkv: Tensor,
    /// [B, T, mlp hidden].
    pub hidden: Tensor,
}

impl BlockActs {
    /// Buffers for `batch` images of `tokens` tokens.
    pub fn new(config: &ModelConfig, device: &Device, dtype: DType, batch: usize, tokens: usize) -> Result<Self> {
        let zeros = |n| Tensor::zeros(device, dtype, &[batch, tokens, n]);
        let d = config.hidden_size;
        Ok(Self { h: zeros(d)?, qkv: zeros(3 * d)?, hidden: zeros(config.mlp_hidden)? })
    }
}

impl Block {
    /// Parameters below `name`.
    pub fn specs(name: &str, config: &ModelConfig) -> Vec<ParamSpec> {
        let d = config.hidden_size;
        let norm = |n: &str| {
            [ParamSpec::new(format!("{name}.{n}.weight"), &[d]), ParamSpec::new(format!("{name}.{n}.bias"), &[d])]
        };
        let mut specs = norm("norm1").to_vec();
        specs.extend(SelfAttention::specs(&format!("{name}.attn"), d));
        specs.extend(norm("norm2"));
        specs.extend(Mlp::specs(&format!("{name}.mlp"), d, config.mlp_hidden));
        specs
    }

    /// Reads the block below the loader's path.
    pub fn load(config: &ModelConfig, loader: &Loader) -> Result<Self> {
        let d = config.hidden_size;
        Ok(Self {
            norm1: LayerNorm::load(&loader.at("norm1"), d, config.norm_eps)?,
            attn: SelfAttention::load(&loader.at("attn"), d, config.num_heads)?,
            norm2: LayerNorm::load(&loader.at("norm2"), d, config.norm_eps)?,
            mlp: Mlp::load(&loader.at("mlp"), d, config.mlp_hidden, config.activation())?,
        })
    }

    /// x [B, T, D] is updated in place; `tap` sees `<name>.norm1`, `.attn.qkv`, `.norm2` and the block's output.
    pub fn forward(
        &self,
        device: &Device,
        name: &str,
        x: &mut Tensor,
        acts: &mut BlockActs,
        workspace: &mut Tensor,
        tap: Tap,
    ) -> Result<()> {
        self.norm1.forward(device, x, &mut acts.h)?;
        tap(&format!("{name}.norm1"), &acts.h);
        self.attn.forward(device, &mut acts.h, &mut acts.qkv, Residual::InPlace, x, workspace)?;
        tap(&format!("{name}.attn.qkv"), &acts.qkv);
        self.norm2.forward(device, x, &mut acts.h)?;
        tap(&format!("{name}.norm2"), &acts.h);
        self.mlp.forward(device, &acts.h, &mut acts.hidden, Residual::InPlace, x, workspace)?;
        tap(name, x);
        Ok(())
    }

    /// Elements of workspace for `batch` images of `tokens` tokens.
    pub fn workspace_len(&self, device: &Device, batch: usize, tokens: usize) -> usize {
        [&self.attn.qkv, &self.attn.proj, &self.mlp.fc1, &self.mlp.fc2]
            .map(|l| l.workspace_len(device, batch, tokens))
            .into_iter()
            .max()
            .unwrap_or(0)
    }
}

/// Parameters of the plain classifier: class token, final norm and head included.
pub fn specs(config: &ModelConfig) -> Vec<ParamSpec> {
    let (d, p) = (config.hidden_size, config.patch_size);
    let mut specs = vec![
        ParamSpec::new("cls_token", &[1, 1, d]),
        ParamSpec::new("pos_embed", &[1, config.tokens() + 1, d]),
        ParamSpec::new("patch_embed.proj.weight", &[d, config.in_channels, p, p]),
        ParamSpec::new("patch_embed.proj.bias", &[d]),
    ];
    for i in 0..config.depth {
        specs.extend(Block::specs(&format!("blocks.{i}"), config));
    }
    specs.extend([ParamSpec::new("norm.weight", &[d]), ParamSpec::new("norm.bias", &[d])]);
    specs.extend(linear_specs("head", config.head_size, d));
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
        let d = config.hidden_size;
        let positions = loader.stored("pos_embed")?;
        let first: Vec<f64> = loader.read("cls_token")?.iter().zip(&positions).map(|(&c, &p)| (c + p) as f64).collect();
        let patch_len = config.in_channels * config.patch_size * config.patch_size;
        Ok(Self {
            patch_embed: Linear::load(&loader.at("patch_embed.proj"), d, patch_len)?,
            positions: loader.given(&[config.tokens(), d], &positions[d..])?,
            first: loader.computed("cls_token", &[d], &first)?,
            blocks: (0..config.depth)
                .map(|i| Block::load(&config, &loader.at(format!("blocks.{i}"))))
                .collect::<Result<_>>()?,
            norm: LayerNorm::load(&loader.at("norm"), d, config.norm_eps)?,
            head: Linear::load(&loader.at("head"), config.head_size, d)?,
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
        let (tokens, d) = (c.tokens(), c.hidden_size);
        let zeros = |shape: &[usize]| Tensor::zeros(device, self.dtype, shape);
        let mut patches = zeros(&[batch, tokens, c.in_channels * c.patch_size * c.patch_size])?;
        let mut embedded = zeros(&[batch, tokens, d])?;
        let mut x_tokens = zeros(&[batch, tokens + 1, d])?;
        let mut acts = BlockActs::new(c, device, self.dtype, batch, tokens + 1)?;
        let (mut top, mut logits) = (zeros(&[batch, d])?, zeros(&[batch, c.head_size])?);
        let layers = self.blocks.iter().map(|b| b.workspace_len(device, batch, tokens + 1));
        let embed = self.patch_embed.workspace_len(device, batch, tokens);
        let len = layers.chain([embed, self.head.workspace_len(device, batch, 1)]).max().unwrap_or(0);
        let mut workspace = Tensor::zeros(device, workspace_dtype(self.dtype), &[len])?;

        patchify(device, x, c.patch_size, &mut patches)?;
        let positions = Residual::Rows(&self.positions);
        self.patch_embed.forward(device, &patches, Activation::None, positions, &mut embedded, &mut workspace)?;
        prepend_token(device, &self.first, &embedded, &mut x_tokens)?;
        for (i, block) in self.blocks.iter().enumerate() {
            block.forward(device, &format!("block{i}"), &mut x_tokens, &mut acts, &mut workspace, tap)?;
        }
        self.norm.forward(device, &x_tokens, &mut acts.h)?;
        tap("norm", &acts.h);
        take_token(device, &acts.h, &mut top)?;
        self.head.forward(device, &top, Activation::None, Residual::None, &mut logits, &mut workspace)?;
        Ok(logits)
    }
}
