//! The blocks of a model behind one another, keeping what their backward reads: all of it, or each block's input alone, from
//! which the way back computes the rest again (Chen et al., arXiv 1604.06174).

use super::{BlockParams, BlockSaved, BlockScratch, Drop, Modulation};
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
    keeping: Keeping,
    /// Number of the forward pass, for dropout, `[1]`.
    pass: Tensor,
    /// Whether the next passes drop anything.
    training: bool,
}

/// What the blocks of a model keep and drop in training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Keeping {
    /// Blocks keep their inputs alone, and are run again on the way back: activation checkpointing.
    pub recompute: bool,
    /// Part of what attention and MLP make that is dropped, in [0, 1).
    pub dropout: f64,
    /// Seed of the masks.
    pub seed: u64,
}

impl BlockStack {
    /// Buffers for `batch` images of `tokens` tokens through `depth` blocks.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn new(
        config: BlockConfig,
        device: &Device,
        dtype: DType,
        [batch, tokens, depth]: [usize; 3],
        keeping: Keeping,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros(device, dtype, &[batch, tokens, config.dim]);
        let (shape, drops) = ([batch, tokens], keeping.dropout > 0.0);
        let saved = || BlockSaved::new(&config, device, dtype, shape, drops);
        let (saves, keeps) = if keeping.recompute { (1, depth.saturating_sub(1)) } else { (depth, 0) };
        Ok(Self {
            config,
            depth,
            x: zeros()?,
            saved: (0..saves).map(|_| saved()).collect::<Result<_>>()?,
            kept: (0..keeps).map(|_| zeros()).collect::<Result<_>>()?,
            scratch: BlockScratch::new(&config, device, dtype, shape, drops)?,
            d: [zeros()?, zeros()?],
            keeping,
            pass: Tensor::zeros(device, DType::U32, &[1])?,
            training: true,
        })
    }

    /// Bytes that are kept for the way back, and what would be kept if no block were run again.
    pub fn bytes(&self) -> [usize; 2] {
        let block = self.saved.first().map_or(0, BlockSaved::bytes);
        let kept: usize = self.kept.iter().map(Tensor::bytes).sum();
        [block * self.saved.len() + kept, block * self.depth]
    }

    /// Of the passes from here on: whether they drop anything, and the number that decides what.
    ///
    /// # Errors
    /// The driver's.
    pub fn set_pass(&mut self, device: &Device, training: bool, pass: u32) -> Result<()> {
        self.training = training;
        self.pass.write_u32(device, &[pass])
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
        let drop = drop(self.keeping, self.training, i, &self.pass);
        block.forward(&self.config, device, x, parts, drop, &mut rest[0], workspace)
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
        let Self { config, x, saved, kept, scratch, d: [dy, dx], keeping, pass, training, .. } = self;
        let drop = drop(*keeping, *training, i, pass);
        let own = if kept.is_empty() { i } else { 0 };
        let x = if i == 0 { &*x } else { kept.get(i - 1).unwrap_or_else(|| &saved[i - 1].y) };
        block.backward(config, device, x, modulated, drop, &saved[own], dy, dx, grads, scratch)?;
        self.d.swap(0, 1);
        Ok(())
    }
}

fn drop(keeping: Keeping, training: bool, block: usize, pass: &Tensor) -> Option<Drop<'_>> {
    let Keeping { dropout: rate, seed, .. } = keeping;
    (training && rate > 0.0).then_some(Drop { rate, seed, block: block as u32, pass })
}
