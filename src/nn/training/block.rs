//! The pre-norm transformer block of ViT and DiT with its backward: see [`crate::nn::block`] for what it computes.

use super::Pair;
use crate::device::Device;
use crate::error::Result;
use crate::nn::block::BlockConfig;
use crate::ops::Columns;
use crate::ops::activation::{activate, activate_backward};
use crate::ops::backward::attention::{attention_backward, attention_with_lse};
use crate::ops::backward::layernorm::{AffineBackward, layernorm_backward, scratch_len};
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
    /// The block's output, [B, T, D].
    pub y: Tensor,
}

/// Memory that the blocks of a model share on their way back.
pub struct BlockScratch {
    d_hidden: [Tensor; 2],
    d_qkv: Tensor,
    d_tokens: [Tensor; 3],
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
    pub fn forward(
        &self,
        config: &BlockConfig,
        device: &Device,
        x: &Tensor,
        parts: Option<&Modulation>,
        saved: &mut BlockSaved,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let BlockSaved { normed: [h1, h2], qkv, attended, lse, proj, middle, fc1, hidden, fc2, y } = saved;
        layernorm(device, x, self.affine(0, parts), config.eps, h1)?;
        self.qkv.forward(device, h1, qkv, workspace)?;
        attention_with_lse(device, qkv, config.heads, attended, lse)?;
        self.proj.forward(device, attended, proj, workspace)?;
        activate(device, proj, Activation::None, parts.map(|p| &p[2]), Some(x), middle)?;
        layernorm(device, middle, self.affine(1, parts), config.eps, h2)?;
        self.fc1.forward(device, h2, fc1, workspace)?;
        activate(device, fc1, config.act, None, None, hidden)?;
        self.fc2.forward(device, hidden, fc2, workspace)?;
        activate(device, fc2, Activation::None, parts.map(|p| &p[5]), Some(middle), y)
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
        saved: &BlockSaved,
        dy: &Tensor,
        dx: &mut Tensor,
        grads: &mut Self,
        scratch: &mut BlockScratch,
    ) -> Result<()> {
        let BlockScratch { d_hidden: [d_hidden, d_fc1], d_qkv, d_tokens: [d_product, d_normed, d_middle], sums } =
            scratch;
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
        activate_backward(device, &saved.fc2, none, gate(5), dy, d_product, d_gate)?;
        self.fc2.backward(device, &saved.hidden, d_product, Some(d_hidden), &mut grads.fc2, sums)?;
        activate_backward(device, &saved.fc1, config.act, None, d_hidden, d_fc1, None)?;
        self.fc1.backward(device, &saved.normed[1], d_fc1, Some(d_normed), &mut grads.fc1, sums)?;
        let affine = self.affine_backward(1, parts, d_norm2, d_mlp_norm);
        layernorm_backward(device, &saved.middle, affine, config.eps, d_normed, Some(dy), d_middle, sums)?;

        let (d_attn_norm, d_gate) = split(d_attn);
        activate_backward(device, &saved.proj, none, gate(2), d_middle, d_product, d_gate)?;
        self.proj.backward(device, &saved.attended, d_product, Some(d_normed), &mut grads.proj, sums)?;
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

/// Shift and factor apart from the gate.
fn split(parts: Option<[&mut Tensor; 3]>) -> (Option<[&mut Tensor; 2]>, Option<&mut Tensor>) {
    parts.map_or((None, None), |[shift, scale, gate]| (Some([shift, scale]), Some(gate)))
}

impl BlockSaved {
    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        let Self { normed: [h1, h2], qkv, attended, lse, proj, middle, fc1, hidden, fc2, y } = self;
        [h1, h2, qkv, attended, lse, proj, middle, fc1, hidden, fc2, y].into_iter().map(Tensor::bytes).sum()
    }

    /// Buffers for `batch` images of `tokens` tokens.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn new(config: &BlockConfig, device: &Device, dtype: DType, batch: usize, tokens: usize) -> Result<Self> {
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
            y: zeros(d)?,
        })
    }
}

impl BlockScratch {
    /// Buffers for `batch` images of `tokens` tokens.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn new(config: &BlockConfig, device: &Device, dtype: DType, batch: usize, tokens: usize) -> Result<Self> {
        let zeros = |n: usize| Tensor::zeros(device, dtype, &[batch, tokens, n]);
        let (d, hidden) = (config.dim, config.hidden);
        let sums = scratch_len(batch, tokens, d).max(batch * hidden.max(3 * d)).max(batch * config.heads * tokens);
        Ok(Self {
            d_hidden: [zeros(hidden)?, zeros(hidden)?],
            d_qkv: zeros(3 * d)?,
            d_tokens: [zeros(d)?, zeros(d)?, zeros(d)?],
            sums: Tensor::zeros(device, dtype.wide(), &[sums])?,
        })
    }
}
