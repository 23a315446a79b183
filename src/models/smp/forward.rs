//! The forward pass of the flow-matching U-Net and U-Net++, BatchNorm folded into the convolutions.

use super::{LEVELS, SmpConfig, Source, TimeWidths};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::Inputs;
use crate::models::config::ModelConfig;
use crate::models::resnet::trunk::{Trunk, TrunkActs};
use crate::nn::Tap;
use crate::nn::conv::{Behind, Conv};
use crate::nn::linear::Linear;
use crate::nn::params::Loader;
use crate::nn::time::TimeMlp;
use crate::ops::conv::ConvSpec;
use crate::ops::layout::{channels_first, channels_last};
use crate::ops::linear::{Activation, Operands, Residual, Workspace, WorkspaceSize, linear};
use crate::ops::upsample::{Resize, upsample};
use crate::ops::{Columns, Select};
use crate::tensor::{DType, Tensor};

/// Inputs of the product that picks a row of the conditions: as few as the products take.
const NOTHING: usize = 8;

/// Weights on a device.
pub struct FlowUnet {
    trunk: Trunk,
    /// Two convolutions a block, in the order of [`SmpConfig::decoder_blocks`], and where their inputs come from.
    decoder: Vec<(super::DecoderBlock, [Conv; 2])>,
    head: Conv,
    time: TimeMlp,
    /// From the embedding to one number a channel; the head's bias is part of the last bias.
    time_proj: [Linear; 2],
    /// [C, NOTHING] zeros: the product that only its bias comes out of.
    nothing: Tensor,
}

/// What differs from evaluation to evaluation: [E, C], the bias of the head with the time in it.
pub struct FlowUnetConditions {
    bias: Tensor,
}

/// Activations of one batch.
pub struct FlowUnetActs {
    /// [B, H, W, C].
    image: Tensor,
    trunk: TrunkActs,
    /// Inputs of blocks at twice their size, one of each shape, and which each block has.
    upsampled: Shared,
    /// What lies between the two convolutions of blocks, likewise.
    hidden: Shared,
    /// Outputs of the blocks.
    blocks: Vec<Tensor>,
    /// [B, NOTHING] zeros, and [B, C]: the head's bias of each image.
    nothing: Tensor,
    bias: Tensor,
    /// [B, H, W, C].
    out: Tensor,
    workspace: Workspace,
}

/// Buffers that several blocks use one after the other.
struct Shared {
    buffers: Vec<Tensor>,
    of_block: Vec<usize>,
}

impl Shared {
    /// One buffer for each different shape.
    fn new(device: &Device, dtype: DType, shapes: impl Iterator<Item = [usize; 4]>) -> Result<Self> {
        let (mut buffers, mut of_block) = (Vec::<Tensor>::new(), Vec::new());
        for shape in shapes {
            let known = buffers.iter().position(|b| b.shape() == shape);
            of_block.push(known.unwrap_or(buffers.len()));
            if known.is_none() {
                buffers.push(Tensor::zeros(device, dtype, &shape)?);
            }
        }
        Ok(Self { buffers, of_block })
    }

    fn get(&mut self, block: usize) -> &mut Tensor {
        &mut self.buffers[self.of_block[block]]
    }
}

impl FlowUnet {
    /// Reads the weights.
    ///
    /// # Errors
    /// The loader's; a network without the flow-matching wrapper.
    pub fn load(config: &ModelConfig, smp: &SmpConfig, loader: &Loader) -> Result<Self> {
        let Some(TimeWidths { embedding, hidden }) = smp.time else {
            return Err(Error::Runtime("a U-Net without a time embedding has no velocity".into()));
        };
        let (c, eps) = (config.out_channels, smp.encoder.norm_eps);
        let conv3 = ConvSpec::new(3).padding(1);
        let blocks = smp.decoder_blocks();
        let decoder = loader.each(blocks.len(), |i| {
            let block = blocks[i].clone();
            let at = loader.at(format!("decoder.blocks.{}", block.name));
            let convs = [
                Conv::load_folded(&at, ["conv1.0", "conv1.1"], conv3, [block.to, block.from + block.skip], eps)?,
                Conv::load_folded(&at, ["conv2.0", "conv2.1"], conv3, [block.to, block.to], eps)?,
            ];
            Ok((block, convs))
        })?;
        let head = loader.at("segmentation_head.0");
        let last = loader.at("time_proj.2");
        let bias = head.read("bias")?.into_iter().zip(last.read("bias")?);
        let bias: Vec<f64> = bias.map(|(a, b)| f64::from(a) + f64::from(b)).collect();
        Ok(Self {
            trunk: Trunk::load(&smp.encoder, &loader.at("encoder"), config.in_channels)?,
            decoder,
            head: Conv::load(&head, conv3, [c, smp.decoder_channels[LEVELS - 1]])?,
            time: TimeMlp::load(&loader.at("time_embed.time_mlp"), config.time.dim, embedding)?,
            time_proj: [
                Linear::load(&loader.at("time_proj.0"), hidden, embedding)?,
                Linear { weight: last.matrix("weight", c, hidden)?, bias: last.computed("bias", &[c], &bias)? },
            ],
            nothing: loader.given_matrix(c, NOTHING, &vec![0.0; c * NOTHING])?,
        })
    }

    /// Memory for what differs between `evaluations` evaluations.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new_conditions(&self, device: &Device, evaluations: usize) -> Result<FlowUnetConditions> {
        let bias = &self.time_proj[1].bias;
        Ok(FlowUnetConditions { bias: Tensor::zeros(device, bias.dtype(), &[evaluations, bias.len()])? })
    }

    /// What follows from the times alone.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and the operations'.
    pub fn conditions(
        &self,
        config: &ModelConfig,
        device: &Device,
        times: &[f64],
        to: &mut FlowUnetConditions,
    ) -> Result<()> {
        let [first, last] = &self.time_proj;
        let zeros = |layer: &Linear, n: usize| Tensor::zeros(device, layer.bias.dtype(), &[times.len(), n]);
        let mut embedding = zeros(first, first.weight.last_dim())?;
        self.time.embed(device, &config.time, times, &mut embedding)?;
        let mut hidden = zeros(first, first.bias.len())?;
        let mut workspace = first.workspace(device, times.len(), 1)?;
        first.forward(device, &embedding, Activation::Silu, Residual::None, &mut hidden, &mut workspace)?;
        let mut workspace = last.workspace(device, times.len(), 1)?;
        last.forward(device, &hidden, Activation::None, Residual::None, &mut to.bias, &mut workspace)
    }

    /// Buffers for `batch` images.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn acts(&self, config: &ModelConfig, device: &Device, dtype: DType, batch: usize) -> Result<FlowUnetActs> {
        let (size, c) = (config.image_size, config.out_channels);
        let zeros = |shape: &[usize]| Tensor::zeros(device, dtype, shape);
        let side = |block: &super::DecoderBlock| size >> (LEVELS - 1 - block.level);
        let shapes = |channels: fn(&super::DecoderBlock) -> usize| {
            self.decoder.iter().map(move |(b, _)| [batch, side(b), side(b), channels(b)])
        };
        let trunk = self.trunk.acts(device, dtype, batch, [size; 2])?;
        let convs = self.decoder.iter().flat_map(|(b, convs)| convs.iter().map(move |conv| (conv, side(b))));
        let picked = crate::ops::linear::workspace_size(device, dtype, batch, 1, c, NOTHING);
        let workspace = convs
            .chain([(&self.head, size)])
            .map(|(conv, side)| conv.workspace_size(device, batch, [side; 2]))
            .chain([picked, self.trunk.workspace_size(device, batch, &trunk)])
            .fold(WorkspaceSize::default(), WorkspaceSize::max);
        Ok(FlowUnetActs {
            image: zeros(&[batch, size, size, config.in_channels])?,
            trunk,
            upsampled: Shared::new(device, dtype, shapes(|b| b.from))?,
            hidden: Shared::new(device, dtype, shapes(|b| b.to))?,
            blocks: shapes(|b| b.to).map(|shape| zeros(&shape)).collect::<Result<_>>()?,
            nothing: zeros(&[batch, NOTHING])?,
            bias: zeros(&[batch, c])?,
            out: zeros(&[batch, size, size, c])?,
            workspace: Workspace::new(device, dtype, workspace)?,
        })
    }

    /// output [B, C, H, W] = velocity; `tap` sees `enc1` to `enc5` and the decoder's blocks by name, channels last.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(
        &self,
        device: &Device,
        inputs: Inputs,
        conditions: &FlowUnetConditions,
        acts: &mut FlowUnetActs,
        output: &mut Tensor,
        tap: Tap,
    ) -> Result<()> {
        let FlowUnetActs { image, trunk, upsampled, hidden, blocks, nothing, bias, out, workspace } = acts;
        channels_last(device, inputs.x, image)?;
        self.trunk.forward(device, image, trunk, workspace, tap)?;
        let relu = Behind::act(Activation::Relu);
        for (i, (block, [first, second])) in self.decoder.iter().enumerate() {
            let (before, rest) = blocks.split_at_mut(i);
            let source = |source: Source| match source {
                Source::Feature(feature) => trunk.feature(feature),
                Source::Block(block) => &before[block],
            };
            let up = upsampled.get(i);
            upsample(device, source(block.input), Resize::Nearest, up)?;
            let inputs: Vec<&Tensor> = [&*up].into_iter().chain(block.skips.iter().map(|&s| source(s))).collect();
            let between = hidden.get(i);
            first.forward(device, &inputs, relu, between, workspace)?;
            second.forward(device, &[&*between], relu, &mut rest[0], workspace)?;
            tap(&block.name, &rest[0]);
        }
        // The row of this evaluation, for each image.
        let select = Select { counter: inputs.counter, rows: inputs.rows, conditions: 1 };
        let row = Operands {
            bias: Some(Columns::PerImage(&conditions.bias)),
            select: Some(select),
            ..Operands::new(nothing, &self.nothing)
        };
        linear(device, row, bias, None, workspace)?;
        let decoded = &blocks[blocks.len() - 1];
        let timed = Behind { bias: Some(Columns::PerImage(bias)), ..Behind::act(Activation::None) };
        self.head.forward(device, &[decoded], timed, out, workspace)?;
        channels_first(device, out, output)
    }
}

/// Numbers that the activations of one image of `size` pixels a side take, about.
pub fn activations(smp: &SmpConfig, size: usize) -> usize {
    let features = smp.encoder.features().into_iter().enumerate();
    let encoder: usize = features.map(|(i, channels)| 5 * channels * (size >> (i + 1)).pow(2)).sum();
    let blocks = smp.decoder_blocks();
    let decoder = blocks.iter().map(|b| (b.from + 2 * b.to) * (size >> (LEVELS - 1 - b.level)).pow(2));
    encoder + decoder.sum::<usize>() + 4 * size * size
}
