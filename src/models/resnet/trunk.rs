//! The forward pass of a ResNet's trunk, BatchNorm folded into the convolutions. Images are [B, H, W, C].

use super::{ResBlock, ResNetConfig, STAGES};
use crate::device::Device;
use crate::error::Result;
use crate::nn::Tap;
use crate::nn::conv::{Behind, Conv};
use crate::nn::params::Loader;
use crate::ops::conv::{ConvSpec, Residual};
use crate::ops::linear::{Activation, Workspace, WorkspaceSize};
use crate::ops::pool::{Window, max_pool};
use crate::tensor::{DType, Tensor};

/// Between stem and stages: 3x3, every other pixel.
fn stem_pool() -> Window {
    Window::square(3, 2, 1)
}

/// Weights on a device.
pub struct Trunk {
    stem: Conv,
    stages: Vec<Vec<Block>>,
}

/// A residual block: its convolutions, and the one around them where size or channels change.
struct Block {
    convs: Vec<Conv>,
    around: Option<Conv>,
}

/// Activations of one batch.
pub struct TrunkActs {
    /// [B, H / 2, W / 2, stem].
    stem: Tensor,
    /// [B, H / 4, W / 4, stem].
    pooled: Tensor,
    stages: Vec<StageActs>,
}

struct StageActs {
    /// Behind the first convolution of the first block, where it is larger than all others: of a bottleneck that halves.
    wide: Option<Tensor>,
    /// Inside the blocks.
    inside: [Option<Tensor>; 2],
    /// What goes around the first block.
    around: Tensor,
    /// Outputs of the blocks in turns.
    out: [Tensor; 2],
    /// Which of them is the stage's.
    last: usize,
}

impl Trunk {
    /// Reads the weights below the loader's path.
    ///
    /// # Errors
    /// The loader's.
    pub fn load(config: &ResNetConfig, loader: &Loader, in_channels: usize) -> Result<Self> {
        let eps = config.norm_eps;
        let stem = ConvSpec::new(super::STEM_KERNEL).stride(2).padding(super::STEM_KERNEL / 2);
        let stem = Conv::load_folded(loader, ["conv1", "bn1"], stem, [config.stem, in_channels], eps)?;
        let features = config.features();
        let block = |i: usize, b: usize| {
            let from = if b == 0 { features[i] } else { features[i + 1] };
            let stride = if b == 0 && i > 0 { 2 } else { 1 };
            load_block(&loader.at(format!("layer{}.{b}", i + 1)), config, i, from, stride)
        };
        let stages =
            loader.each(STAGES, |i| (0..config.layers[i]).map(|b| block(i, b)).collect::<Result<Vec<Block>>>())?;
        Ok(Self { stem, stages })
    }

    /// Buffers for `batch` images of `size`.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`], and images that are too small.
    pub fn acts(&self, device: &Device, dtype: DType, batch: usize, size: [usize; 2]) -> Result<TrunkActs> {
        let zeros = |[h, w]: [usize; 2], c: usize| Tensor::zeros(device, dtype, &[batch, h, w, c]);
        let half = self.stem.output(size)?;
        let quarter = stem_pool().output(half)?;
        let mut input = quarter;
        let mut stages = Vec::with_capacity(STAGES);
        for blocks in &self.stages {
            let first = &blocks[0].convs;
            let sizes = first.iter().try_fold(vec![input], |mut sizes, conv| {
                sizes.push(conv.output(sizes[sizes.len() - 1])?);
                Ok::<_, crate::error::Error>(sizes)
            })?;
            let output = sizes[first.len()];
            let inner = &first[..first.len() - 1];
            let wide = sizes[1] != output;
            let mut inside = inner.iter().map(|conv| zeros(output, conv.outputs()));
            let n = first[first.len() - 1].outputs();
            stages.push(StageActs {
                wide: wide.then(|| zeros(sizes[1], first[0].outputs())).transpose()?,
                inside: [inside.next().transpose()?, inside.next().transpose()?],
                around: zeros(output, n)?,
                out: [zeros(output, n)?, zeros(output, n)?],
                last: (blocks.len() - 1) % 2,
            });
            input = output;
        }
        Ok(TrunkActs { stem: zeros(half, self.stem.outputs())?, pooled: zeros(quarter, self.stem.outputs())?, stages })
    }

    /// What `batch` images need beside `acts`.
    pub fn workspace_size(&self, device: &Device, batch: usize, acts: &TrunkActs) -> WorkspaceSize {
        let size = |t: &Tensor| [t.dim(1), t.dim(2)];
        let stem = self.stem.workspace_size(device, batch, size(&acts.stem));
        let all = self.stages.iter().zip(&acts.stages).flat_map(|(blocks, acts)| {
            let output = size(&acts.out[0]);
            let first = acts.wide.as_ref().map_or(output, size);
            let convs = blocks.iter().flat_map(|b| b.convs.iter().chain(&b.around));
            convs.flat_map(move |conv| [first, output].map(|size| conv.workspace_size(device, batch, size)))
        });
        all.fold(stem, WorkspaceSize::max)
    }

    /// Fills `acts` from x [B, H, W, C]; `tap` sees the features as `enc1` to `enc5`.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(
        &self,
        device: &Device,
        x: &Tensor,
        acts: &mut TrunkActs,
        workspace: &mut Workspace,
        tap: Tap,
    ) -> Result<()> {
        let TrunkActs { stem, pooled, stages } = acts;
        self.stem.forward(device, &[x], Behind::act(Activation::Relu), stem, workspace)?;
        tap("enc1", stem);
        max_pool(device, stem, stem_pool(), pooled)?;
        for (i, blocks) in self.stages.iter().enumerate() {
            let (before, rest) = stages.split_at_mut(i);
            let input = before.last().map_or(&*pooled, StageActs::output);
            rest[0].forward(device, blocks, input, workspace)?;
            tap(&format!("enc{}", i + 2), rest[0].output());
        }
        Ok(())
    }
}

impl TrunkActs {
    /// The features at 1/2, 1/4, ... 1/32 of the image's side, finest first.
    pub fn feature(&self, i: usize) -> &Tensor {
        if i == 0 { &self.stem } else { self.stages[i - 1].output() }
    }
}

impl StageActs {
    fn output(&self) -> &Tensor {
        &self.out[self.last]
    }

    fn forward(&mut self, device: &Device, blocks: &[Block], input: &Tensor, workspace: &mut Workspace) -> Result<()> {
        let Self { wide, inside: [first, second], around, out: [even, odd], .. } = self;
        for (b, block) in blocks.iter().enumerate() {
            let (x, y) = match b {
                0 => (input, &mut *even),
                _ if b % 2 == 1 => (&*even, &mut *odd),
                _ => (&*odd, &mut *even),
            };
            let residual = match &block.around {
                Some(conv) => {
                    conv.forward(device, &[x], Behind::act(Activation::None), around, workspace)?;
                    &*around
                }
                None => x,
            };
            let relu = Behind::act(Activation::Relu);
            let end = Behind { residual: Residual::Before(residual), ..relu };
            let hidden = if b == 0 { wide.as_mut().or(first.as_mut()) } else { first.as_mut() };
            let hidden = hidden.ok_or_else(no_buffer)?;
            block.convs[0].forward(device, &[x], relu, hidden, workspace)?;
            match &block.convs[1..] {
                [last] => last.forward(device, &[&*hidden], end, y, workspace)?,
                [middle, last] => {
                    let second = second.as_mut().ok_or_else(no_buffer)?;
                    middle.forward(device, &[&*hidden], relu, second, workspace)?;
                    last.forward(device, &[&*second], end, y, workspace)?;
                }
                _ => return Err(no_buffer()),
            }
        }
        Ok(())
    }
}

fn no_buffer() -> crate::error::Error {
    crate::error::Error::Runtime("activations of another residual network".into())
}

/// Block of stage `i` that takes `from` channels.
fn load_block(loader: &Loader, config: &ResNetConfig, i: usize, from: usize, stride: usize) -> Result<Block> {
    let (eps, width) = (config.norm_eps, config.channels[i]);
    let to = width * config.block.expansion();
    let square = |k: usize| ConvSpec::new(k).padding(k / 2);
    let convs = match config.block {
        ResBlock::Basic => vec![(square(3).stride(stride), [width, from]), (square(3), [to, width])],
        ResBlock::Bottleneck => {
            vec![(square(1), [width, from]), (square(3).stride(stride), [width, width]), (square(1), [to, width])]
        }
    };
    let convs = convs.into_iter().enumerate().map(|(c, (spec, sizes))| {
        let names = [format!("conv{}", c + 1), format!("bn{}", c + 1)];
        Conv::load_folded(loader, [&names[0], &names[1]], spec, sizes, eps)
    });
    let around = (stride > 1 || from != to).then(|| {
        let spec = ConvSpec::new(1).stride(stride);
        Conv::load_folded(loader, ["downsample.0", "downsample.1"], spec, [to, from], eps)
    });
    Ok(Block { convs: convs.collect::<Result<_>>()?, around: around.transpose()? })
}
