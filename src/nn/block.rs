//! The pre-norm transformer block that ViT and DiT share: five operations, the layer norms folded into the products
//! behind them.

use super::Tap;
use super::linear::Linear;
use super::norm::{Layers, Modulated, NormLinear, Normed};
use super::params::{Loader, ParamSpec, linear_specs};
use crate::device::Device;
use crate::error::Result;
use crate::ops::attention::{Heads, around_attention, attention, attention_unfused};
use crate::ops::linear::{Activation, Operands, Residual, Workspace, WorkspaceSize, between, linear, workspace_dtype};
use crate::ops::{Columns, Select};
use crate::tensor::{DType, Tensor};

/// Sizes of a block.
#[derive(Clone, Copy)]
pub struct BlockConfig {
    /// Channels D.
    pub dim: usize,
    /// Attention heads NH.
    pub heads: usize,
    /// Channels inside the MLP.
    pub hidden: usize,
    /// Between the MLP's layers.
    pub act: Activation,
    /// Of the norms.
    pub eps: f64,
    /// Whether the norms are modulated per image and the residuals gated (adaLN-zero), or the norms have learned weights.
    pub modulated: bool,
}

/// x += gate * proj(attention(qkv(norm1(x)))); x += gate * fc2(act(fc1(norm2(x)))).
pub struct Block {
    qkv: NormLinear,
    proj: Linear,
    fc1: NormLinear,
    fc2: Linear,
    config: BlockConfig,
}

/// Scratch of one block, shared by all blocks of a model.
pub struct BlockActs {
    /// What the norms need of x, written by whoever writes x.
    pub normed: Normed,
    /// Attention output, [B, T, D], between two products.
    pub h: Tensor,
    /// [B, T, 3 D].
    pub qkv: Tensor,
    /// [B, T, hidden].
    pub hidden: Tensor,
    /// Of the attention where it is not fused, [B, NH, T, T].
    pub scores: Option<Tensor>,
}

impl BlockActs {
    /// Buffers for `batch` images of `tokens` tokens.
    pub fn new(
        config: BlockConfig,
        layers: Layers,
        device: &Device,
        dtype: DType,
        batch: usize,
        tokens: usize,
    ) -> Result<Self> {
        let d = config.dim;
        let normed = Normed::new(layers, config.modulated, device, dtype, [batch, tokens, d])?;
        let scores = || Tensor::zeros(device, workspace_dtype(dtype), &[batch, config.heads, tokens, tokens]);
        let scores = (layers == Layers::Unfused).then(scores).transpose()?;
        let hidden = between(device, dtype, &[batch, tokens, config.hidden])?;
        let around = |parts: usize| match scores {
            None => around_attention(device, dtype, [batch, tokens, parts * d], parts * config.heads),
            Some(_) => Tensor::zeros(device, dtype, &[batch, tokens, parts * d]),
        };
        let (h, qkv) = (around(1)?, around(3)?);
        Ok(Self { normed, h, qkv, hidden, scores })
    }
}

/// What adaLN-zero makes of a block, a row per condition.
pub struct BlockConditions {
    /// In front of the attention.
    pub attn: Modulated,
    /// On what the attention adds, [R, D].
    pub attn_gate: Tensor,
    /// In front of the MLP.
    pub mlp: Modulated,
    /// On what the MLP adds, [R, D].
    pub mlp_gate: Tensor,
}

impl BlockConditions {
    /// Memory for `rows` conditions.
    pub fn new(config: BlockConfig, layers: Layers, device: &Device, dtype: DType, rows: usize) -> Result<Self> {
        let d = config.dim;
        let gate = || Tensor::zeros(device, dtype, &[rows, d]);
        Ok(Self {
            attn: Modulated::new(layers, device, dtype, [rows, 3 * d, d])?,
            attn_gate: gate()?,
            mlp: Modulated::new(layers, device, dtype, [rows, config.hidden, d])?,
            mlp_gate: gate()?,
        })
    }

    /// Shift, scale and gate of the attention, then of the MLP, in the order of the adaLN layer, to be written before
    /// [`Block::prepare`]. Scales hold the factor 1 + scale.
    pub fn parts(&mut self) -> [&mut Tensor; 6] {
        let [shift_attn, scale_attn] = self.attn.shift_and_scale();
        let [shift_mlp, scale_mlp] = self.mlp.shift_and_scale();
        [shift_attn, scale_attn, &mut self.attn_gate, shift_mlp, scale_mlp, &mut self.mlp_gate]
    }
}

/// The conditions of one forward pass of a block.
#[derive(Clone, Copy)]
pub struct Conditioned<'a> {
    /// This block's.
    pub block: &'a BlockConditions,
    /// Scale of the norm behind the block, [R, D].
    pub next_scale: &'a Tensor,
    /// Which of them the images have.
    pub select: Select<'a>,
}

impl Block {
    /// Parameters below `name`, but for those of norms and adaLN.
    pub fn specs(name: &str, dim: usize, hidden: usize) -> Vec<ParamSpec> {
        let layer = |layer: &str, n, k| linear_specs(&format!("{name}.{layer}"), n, k);
        [
            layer("attn.qkv", 3 * dim, dim),
            layer("attn.proj", dim, dim),
            layer("mlp.fc1", hidden, dim),
            layer("mlp.fc2", dim, hidden),
        ]
        .concat()
    }

    /// Reads the block below the loader's path.
    pub fn load(config: BlockConfig, loader: &Loader) -> Result<Self> {
        let BlockConfig { dim, hidden, eps, .. } = config;
        let behind_norm = |norm: &str, layer: &str, n| match config.modulated {
            true => NormLinear::load_modulated(&loader.at(layer), n, dim, eps),
            false => NormLinear::load(&loader.at(norm), &loader.at(layer), n, dim, eps),
        };
        Ok(Self {
            qkv: behind_norm("norm1", "attn.qkv", 3 * dim)?,
            proj: Linear::load(&loader.at("attn.proj"), dim, dim)?,
            fc1: behind_norm("norm2", "mlp.fc1", hidden)?,
            fc2: Linear::load(&loader.at("mlp.fc2"), dim, hidden)?,
            config,
        })
    }

    /// What follows from shifts and scales, for every condition.
    pub fn prepare(&self, device: &Device, to: &mut BlockConditions, workspace: &mut Workspace) -> Result<()> {
        self.qkv.prepare(device, &mut to.attn, workspace)?;
        self.fc1.prepare(device, &mut to.mlp, workspace)
    }

    /// x [B, T, D] is updated in place; `tap` sees `<name>.attn.qkv` and the block's output. `conditions` come with a
    /// block whose norms are modulated.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        device: &Device,
        name: &str,
        x: &mut Tensor,
        conditions: Option<Conditioned>,
        acts: &mut BlockActs,
        workspace: &mut Workspace,
        tap: Tap,
    ) -> Result<()> {
        let BlockActs { normed, h, qkv, hidden, scores } = acts;
        let dim = self.config.dim;
        let select = conditions.map(|c| c.select);

        let modulated = conditions.map(|c| (&c.block.attn, c.select));
        self.qkv.forward(device, x, normed, modulated, Activation::None, qkv, workspace)?;
        tap(&format!("{name}.attn.qkv"), qkv);
        let part = |i: usize| Heads { tensor: &*qkv, offset: i * dim };
        match scores {
            None => attention(device, part(0), part(1), part(2), self.config.heads, h)?,
            Some(scores) => attention_unfused(device, [0, 1, 2].map(part), self.config.heads, scores, h)?,
        }
        let residual = gated(conditions.map(|c| &c.block.attn_gate));
        let next = normed.wanted(conditions.map(|c| c.block.mlp.scale()));
        linear(device, Operands { residual, select, ..self.proj.on(h) }, x, next, workspace)?;

        let modulated = conditions.map(|c| (&c.block.mlp, c.select));
        self.fc1.forward(device, x, normed, modulated, self.config.act, hidden, workspace)?;
        let residual = gated(conditions.map(|c| &c.block.mlp_gate));
        let next = normed.wanted(conditions.map(|c| c.next_scale));
        linear(device, Operands { residual, select, ..self.fc2.on(hidden) }, x, next, workspace)?;
        tap(name, x);
        Ok(())
    }

    /// What `batch` images of `tokens` tokens need.
    pub fn workspace_size(&self, device: &Device, batch: usize, tokens: usize) -> WorkspaceSize {
        [self.qkv.linear(), &self.proj, self.fc1.linear(), &self.fc2]
            .map(|l| l.workspace_size(device, batch, tokens))
            .into_iter()
            .fold(WorkspaceSize::default(), WorkspaceSize::max)
    }
}

/// What is added to x: gated where there is a gate per condition.
fn gated(gate: Option<&Tensor>) -> Residual<'_> {
    gate.map_or(Residual::InPlace, |gate| Residual::Gated(Columns::PerImage(gate)))
}
