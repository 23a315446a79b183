//! The blocks of a model behind one another, keeping what their backward reads: all of it, or each block's input alone, from
//! which the way back computes the rest again (Chen et al., arXiv 1604.06174).

use super::{BlockParams, BlockSaved, BlockScratch, Modulation};
use crate::device::Device;
use crate::error::Result;
use crate::nn::block::BlockConfig;
use crate::ops::activation::activate;
use crate::ops::linear::{Activation, Workspace};
use crate::tensor::{DType, Tensor};

/// Memory of the blocks for one batch.
pub struct BlockStack {
    config: BlockConfig,
    depth: usize,
    /// What the first block reads, [B, T, D].
    pub x: Tensor,
    /// One a block, or one for all.
    saved: Vec<BlockSaved>,
    /// With one for all: what the blocks behind the first read.
    kept: Vec<Tensor>,
    scratch: BlockScratch,
    /// The gradients of a block's output and input, [B, T, D] each.
    d: [Tensor; 2],
}

impl BlockStack {
    /// Buffers for `batch` images of `tokens` tokens through `depth` blocks; `recompute`: activation checkpointing.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn new(
        config: BlockConfig,
        device: &Device,
        dtype: DType,
        [batch, tokens, depth]: [usize; 3],
        recompute: bool,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros(device, dtype, &[batch, tokens, config.dim]);
        let saved = || BlockSaved::new(&config, device, dtype, batch, tokens);
        let (saves, keeps) = if recompute { (1, depth.saturating_sub(1)) } else { (depth, 0) };
        Ok(Self {
            config,
            depth,
            x: zeros()?,
            saved: (0..saves).map(|_| saved()).collect::<Result<_>>()?,
            kept: (0..keeps).map(|_| zeros()).collect::<Result<_>>()?,
            scratch: BlockScratch::new(&config, device, dtype, batch, tokens)?,
            d: [zeros()?, zeros()?],
        })
    }

    /// Bytes that are kept for the way back, and what would be kept if no block were run again.
    pub fn bytes(&self) -> [usize; 2] {
        let block = self.saved.first().map_or(0, BlockSaved::bytes);
        let kept: usize = self.kept.iter().map(Tensor::bytes).sum();
        [block * self.saved.len() + kept, block * self.depth]
    }

    /// What the last block made, [B, T, D].
    pub fn y(&self) -> &Tensor {
        self.saved.last().map_or(&self.x, |saved| &saved.y)
    }

    /// What the last block made, and where its gradient goes.
    pub fn y_and_dy(&mut self) -> (&Tensor, &mut Tensor) {
        (self.saved.last().map_or(&self.x, |saved| &saved.y), &mut self.d[0])
    }

    /// The gradient of `x`, after the backward of all blocks.
    pub fn dx(&self) -> &Tensor {
        &self.d[0]
    }

    /// Block `i`, all before it having run.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(
        &mut self,
        device: &Device,
        i: usize,
        block: &BlockParams,
        parts: Option<&Modulation>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.run(device, i, block, parts, workspace)?;
        match self.kept.get_mut(i) {
            Some(next) => activate(device, &self.saved[0].y, Activation::None, None, None, next),
            None => Ok(()),
        }
    }

    fn run(
        &mut self,
        device: &Device,
        i: usize,
        block: &BlockParams,
        parts: Option<&Modulation>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (before, rest) = self.saved.split_at_mut(if self.kept.is_empty() { i } else { 0 });
        let x = if i == 0 { &self.x } else { self.kept.get(i - 1).unwrap_or_else(|| &before[i - 1].y) };
        block.forward(&self.config, device, x, parts, &mut rest[0], workspace)
    }

    /// The gradients of block `i`, all behind it being done, and where it is modulated those of its parts.
    ///
    /// # Errors
    /// The operations'.
    pub fn backward(
        &mut self,
        device: &Device,
        i: usize,
        block: &BlockParams,
        modulated: Option<(&Modulation, &mut Modulation)>,
        grads: &mut BlockParams,
        workspace: &mut Workspace,
    ) -> Result<()> {
        // The last block's are still there.
        if i < self.kept.len() {
            self.run(device, i, block, modulated.as_ref().map(|(parts, _)| &**parts), workspace)?;
        }
        let Self { config, x, saved, kept, scratch, d: [dy, dx], .. } = self;
        let own = if kept.is_empty() { i } else { 0 };
        let x = if i == 0 { &*x } else { kept.get(i - 1).unwrap_or_else(|| &saved[i - 1].y) };
        block.backward(config, device, x, modulated, &saved[own], dy, dx, grads, scratch)?;
        self.d.swap(0, 1);
        Ok(())
    }
}
