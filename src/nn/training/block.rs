//! The pre-norm transformer block of ViT and DiT with its backward: see [`crate::nn::block`] for what it computes.

use super::Pair;
use crate::device::Device;
use crate::error::Result;
use crate::nn::block::BlockConfig;
use crate::ops::Columns;
use crate::ops::activation::{activate, activate_backward};
use crate::ops::backward::attention::{attention_backward, attention_with_lse};
use crate::ops::backward::layernorm::{AffineBackward, layernorm_backward, scratch_len};
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::layernorm::{Affine, layernorm};
use crate::ops::linear::{Activation, Workspace, WorkspaceSize, workspace_size};
use crate::tensor::{DType, Tensor};

/// Parameters of a block, or their gradients.
pub struct BlockParams {
    /// Weights of the two norms; none where they are modulated per image.
    pub norms: Option<[Pair; 2]>,
    /// [3 D, D].
    pub qkv: Pair,
    /// [D, D].
    pub proj: Pair,
    /// [hidden, D].
    pub fc1: Pair,
    /// [D, hidden].
    pub fc2: Pair,
}

/// What adaLN-zero makes of a block, [B, D] each, or the gradients: shift, factor and gate of the attention, then of the
/// MLP. The factors hold the 1 of 1 + scale.
pub type Modulation = [Tensor; 6];

/// Dropout behind the attention and behind the MLP, in front of their gates.
#[derive(Clone, Copy)]
pub struct Drop<'a> {
    /// Part that is dropped, in (0, 1).
    pub rate: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the block.
    pub block: u32,
    /// Number of the forward pass, `[1]`, which the backward finds unchanged.
    pub pass: &'a Tensor,
}

impl Drop<'_> {
    /// y = x without what the mask behind branch 0 (attention) or 1 (MLP) drops.
    fn apply(&self, device: &Device, branch: u32, x: &Tensor, y: &mut Tensor) -> Result<()> {
        let rule = Dropout { rate: self.rate, seed: self.seed, layer: 2 * self.block + branch };
        dropout(device, rule, self.pass, x, y)
    }
}

/// What a block's backward reads, for one batch.
pub struct BlockSaved {
    normed: [Tensor; 2],
    qkv: Tensor,
    attended: Tensor,
    lse: Tensor,
    proj: Tensor,
    middle: Tensor,
    fc1: Tensor,
    hidden: Tensor,
    fc2: Tensor,
    /// What dropout left of `proj` and `fc2`, in training with dropout.
    dropped: Option<[Tensor; 2]>,
    /// The block's output, [B, T, D].
    pub y: Tensor,
}

/// Memory that the blocks of a model share on their way back.
pub struct BlockScratch {
    d_hidden: [Tensor; 2],
    d_qkv: Tensor,
    d_tokens: [Tensor; 3],
    /// The gradient of a product in front of its dropout.
    d_dropped: Option<Tensor>,
    sums: Tensor,
}

impl BlockParams {
    /// Zeros.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn zeros(config: &BlockConfig, device: &Device, dtype: DType) -> Result<Self> {
        let (d, hidden) = (config.dim, config.hidden);
        let norm = || Pair::norm(device, dtype, d);
        Ok(Self {
            norms: if config.modulated { None } else { Some([norm()?, norm()?]) },
            qkv: Pair::linear(device, dtype, 3 * d, d)?,
            proj: Pair::linear(device, dtype, d, d)?,
            fc1: Pair::linear(device, dtype, hidden, d)?,
            fc2: Pair::linear(device, dtype, d, hidden)?,
        })
    }

    /// Every layer with its name below the block's.
    pub fn layers(&self) -> Vec<(&'static str, &Pair)> {
        let norms = self.norms.iter().flat_map(|[first, second]| [("norm1", first), ("norm2", second)]);
        let layers = [("attn.qkv", &self.qkv), ("attn.proj", &self.proj)];
        norms.chain(layers).chain([("mlp.fc1", &self.fc1), ("mlp.fc2", &self.fc2)]).collect()
    }

    /// The same, to be written.
    pub fn layers_mut(&mut self) -> Vec<(&'static str, &mut Pair)> {
        let norms = self.norms.iter_mut().flat_map(|[first, second]| [("norm1", first), ("norm2", second)]);
        let layers = [("attn.qkv", &mut self.qkv), ("attn.proj", &mut self.proj)];
        norms.chain(layers).chain([("mlp.fc1", &mut self.fc1), ("mlp.fc2", &mut self.fc2)]).collect()
    }

    fn affine<'a>(&'a self, i: usize, parts: Option<&'a Modulation>) -> Affine<'a> {
        match (&self.norms, parts) {
            (Some(norms), _) => Affine::Learned(&norms[i].weight, &norms[i].bias),
            (None, Some(parts)) => {
                let (shift, scale) = (Columns::PerImage(&parts[3 * i]), Columns::PerImage(&parts[3 * i + 1]));
                Affine::Modulated { shift, scale, select: None }
            }
            (None, None) => Affine::None,
        }
    }

    /// `saved.y` [B, T, D] of x [B, T, D].
    ///
    /// # Errors
    /// The operations'.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        config: &BlockConfig,
        device: &Device,
        x: &Tensor,
        parts: Option<&Modulation>,
        drop: Option<Drop>,
        saved: &mut BlockSaved,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let BlockSaved { normed: [h1, h2], qkv, attended, lse, proj, middle, fc1, hidden, fc2, dropped, y } = saved;
        let mut dropped = dropped.as_mut().zip(drop);
        layernorm(device, x, self.affine(0, parts), config.eps, h1)?;
        self.qkv.forward(device, h1, qkv, workspace)?;
        attention_with_lse(device, qkv, config.heads, attended, lse)?;
        self.proj.forward(device, attended, proj, workspace)?;
        let left = drop_out(device, &mut dropped, 0, proj)?;
        activate(device, left, Activation::None, parts.map(|p| &p[2]), Some(x), middle)?;
        layernorm(device, middle, self.affine(1, parts), config.eps, h2)?;
        self.fc1.forward(device, h2, fc1, workspace)?;
        activate(device, fc1, config.act, None, None, hidden)?;
        self.fc2.forward(device, hidden, fc2, workspace)?;
        let left = drop_out(device, &mut dropped, 1, fc2)?;
        activate(device, left, Activation::None, parts.map(|p| &p[5]), Some(middle), y)
    }

    /// dx [B, T, D] from dy [B, T, D] and what [`Self::forward`] read and left, the gradients of the parameters and, where
    /// the block is modulated, those of its parts.
    ///
    /// # Errors
    /// The operations'.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        config: &BlockConfig,
        device: &Device,
        x: &Tensor,
        modulated: Option<(&Modulation, &mut Modulation)>,
        drop: Option<Drop>,
        saved: &BlockSaved,
        dy: &Tensor,
        dx: &mut Tensor,
        grads: &mut Self,
        scratch: &mut BlockScratch,
    ) -> Result<()> {
        let BlockScratch { d_hidden: [d_hidden, d_fc1], d_qkv, d_tokens, d_dropped, sums } = scratch;
        let [d_product, d_normed, d_middle] = d_tokens;
        let left = |branch: usize, product| drop.zip(saved.dropped.as_ref()).map_or(product, |(_, left)| &left[branch]);
        let mut d_dropped = d_dropped.as_mut().zip(drop);
        let (parts, d_parts) = modulated.unzip();
        let gate = |i: usize| parts.map(|p| &p[i]);
        let [d_attn, d_mlp] = match d_parts {
            Some([a, b, c, d, e, f]) => [Some([a, b, c]), Some([d, e, f])],
            None => [None, None],
        };
        let [d_norm1, d_norm2] = match &mut grads.norms {
            Some([first, second]) => [Some(first), Some(second)],
            None => [None, None],
        };
        let none = Activation::None;

        let (d_mlp_norm, d_gate) = split(d_mlp);
        activate_backward(device, left(1, &saved.fc2), none, gate(5), dy, d_product, d_gate)?;
        let d_fc2 = drop_back(device, &mut d_dropped, 1, d_product)?;
        self.fc2.backward(device, &saved.hidden, d_fc2, Some(d_hidden), &mut grads.fc2, sums)?;
        activate_backward(device, &saved.fc1, config.act, None, d_hidden, d_fc1, None)?;
        self.fc1.backward(device, &saved.normed[1], d_fc1, Some(d_normed), &mut grads.fc1, sums)?;
        let affine = self.affine_backward(1, parts, d_norm2, d_mlp_norm);
        layernorm_backward(device, &saved.middle, affine, config.eps, d_normed, Some(dy), d_middle, sums)?;

        let (d_attn_norm, d_gate) = split(d_attn);
        activate_backward(device, left(0, &saved.proj), none, gate(2), d_middle, d_product, d_gate)?;
        let d_proj = drop_back(device, &mut d_dropped, 0, d_product)?;
        self.proj.backward(device, &saved.attended, d_proj, Some(d_normed), &mut grads.proj, sums)?;
        let (lse, heads) = (&saved.lse, config.heads);
        attention_backward(device, &saved.qkv, heads, &saved.attended, lse, d_normed, d_qkv, sums)?;
        self.qkv.backward(device, &saved.normed[0], d_qkv, Some(d_normed), &mut grads.qkv, sums)?;
        let affine = self.affine_backward(0, parts, d_norm1, d_attn_norm);
        layernorm_backward(device, x, affine, config.eps, d_normed, Some(d_middle), dx, sums)
    }

    fn affine_backward<'a>(
        &'a self,
        i: usize,
        parts: Option<&'a Modulation>,
        grads: Option<&'a mut Pair>,
        d_parts: Option<[&'a mut Tensor; 2]>,
    ) -> AffineBackward<'a> {
        match (&self.norms, grads, parts, d_parts) {
            (Some(norms), Some(grads), _, _) => {
                AffineBackward::Learned { weight: &norms[i].weight, dweight: &mut grads.weight, dbias: &mut grads.bias }
            }
            (_, _, Some(parts), Some([dshift, dscale])) => {
                AffineBackward::Modulated { scale: &parts[3 * i + 1], dshift, dscale }
            }
            _ => AffineBackward::None,
        }
    }

    /// What the products of `batch` images of `tokens` tokens need.
    pub fn workspace_size(&self, device: &Device, batch: usize, tokens: usize) -> WorkspaceSize {
        let size = |pair: &Pair| {
            let (n, k) = (pair.weight.dim(0), pair.weight.last_dim());
            workspace_size(device, pair.weight.dtype(), batch, tokens, n, k)
        };
        [&self.qkv, &self.proj, &self.fc1, &self.fc2]
            .map(size)
            .into_iter()
            .fold(WorkspaceSize::default(), WorkspaceSize::max)
    }
}

/// What is left of a product.
fn drop_out<'a>(
    device: &Device,
    dropped: &'a mut Option<(&mut [Tensor; 2], Drop)>,
    branch: u32,
    product: &'a Tensor,
) -> Result<&'a Tensor> {
    let Some((left, drop)) = dropped else { return Ok(product) };
    let left = &mut left[branch as usize];
    drop.apply(device, branch, product, left)?;
    Ok(left)
}

/// The gradient of a product from that of what was left of it: the same mask.
fn drop_back<'a>(
    device: &Device,
    dropped: &'a mut Option<(&mut Tensor, Drop)>,
    branch: u32,
    d_left: &'a Tensor,
) -> Result<&'a Tensor> {
    let Some((d_product, drop)) = dropped else { return Ok(d_left) };
    drop.apply(device, branch, d_left, d_product)?;
    Ok(d_product)
}

/// Shift and factor apart from the gate.
fn split(parts: Option<[&mut Tensor; 3]>) -> (Option<[&mut Tensor; 2]>, Option<&mut Tensor>) {
    parts.map_or((None, None), |[shift, scale, gate]| (Some([shift, scale]), Some(gate)))
}

impl BlockSaved {
    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        let Self { normed: [h1, h2], qkv, attended, lse, proj, middle, fc1, hidden, fc2, dropped, y } = self;
        let all = [h1, h2, qkv, attended, lse, proj, middle, fc1, hidden, fc2, y].into_iter();
        all.chain(dropped.iter().flatten()).map(Tensor::bytes).sum()
    }

    /// Buffers for `batch` images of `tokens` tokens, `drops`: with dropout.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn new(
        config: &BlockConfig,
        device: &Device,
        dtype: DType,
        [batch, tokens]: [usize; 2],
        drops: bool,
    ) -> Result<Self> {
        let zeros = |n: usize| Tensor::zeros(device, dtype, &[batch, tokens, n]);
        let (d, hidden) = (config.dim, config.hidden);
        Ok(Self {
            normed: [zeros(d)?, zeros(d)?],
            qkv: zeros(3 * d)?,
            attended: zeros(d)?,
            lse: Tensor::zeros(device, dtype.wide(), &[batch, config.heads, tokens])?,
            proj: zeros(d)?,
            middle: zeros(d)?,
            fc1: zeros(hidden)?,
            hidden: zeros(hidden)?,
            fc2: zeros(d)?,
            dropped: if drops { Some([zeros(d)?, zeros(d)?]) } else { None },
            y: zeros(d)?,
        })
    }
}

impl BlockScratch {
    /// Buffers for `batch` images of `tokens` tokens, `drops`: with dropout.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn new(
        config: &BlockConfig,
        device: &Device,
        dtype: DType,
        [batch, tokens]: [usize; 2],
        drops: bool,
    ) -> Result<Self> {
        let zeros = |n: usize| Tensor::zeros(device, dtype, &[batch, tokens, n]);
        let (d, hidden) = (config.dim, config.hidden);
        let sums = scratch_len(batch, tokens, d).max(batch * hidden.max(3 * d)).max(batch * config.heads * tokens);
        Ok(Self {
            d_hidden: [zeros(hidden)?, zeros(hidden)?],
            d_qkv: zeros(3 * d)?,
            d_tokens: [zeros(d)?, zeros(d)?, zeros(d)?],
            d_dropped: if drops { Some(zeros(d)?) } else { None },
            sums: Tensor::zeros(device, dtype.wide(), &[sums])?,
        })
    }
}
