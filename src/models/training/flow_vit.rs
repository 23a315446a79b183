//! The flow-matching ViT with its backward: see [`crate::models::flow_vit`] for what it computes.

use super::{Named, NamedMut, Stop, go_on, name_block, name_pair, name_pair_mut};
use crate::device::Device;
use crate::error::Result;
use crate::models::config::ModelConfig;
use crate::models::flow_vit::ENCODER_CHANNELS;
use crate::nn::training::{BlockParams, BlockStack, Keeping, Pair, VectorMlp, VectorSaved};
use crate::ops::Columns;
use crate::ops::activation::{activate, activate_backward};
use crate::ops::backward::layernorm::scratch_len;
use crate::ops::backward::sums::{add_images, sum_tokens};
use crate::ops::fold::{Folded, fold, fold_backward};
use crate::ops::linear::{Activation, Operands, Residual, Workspace, WorkspaceSize, linear};
use crate::ops::optimizer::fill_zero;
use crate::ops::parts::add_to_tokens;
use crate::tensor::{DType, Tensor};

/// Parameters, or their gradients.
pub struct FlowVitParams {
    /// [E, C].
    input_conv: Pair,
    /// [D, E P P].
    patch_embed: Pair,
    /// Of the class token, which this model does without: no gradient reaches it, but weight decay does. `[D]`.
    class_position: Tensor,
    /// [T, D].
    positions: Tensor,
    blocks: Vec<BlockParams>,
    time: VectorMlp,
    output: [Pair; 2],
}

/// Memory for one batch.
pub struct FlowVitStep {
    time: VectorSaved,
    /// The input convolution in the patch embedding, and its gradient, in the types of parameters and of gradients.
    folded: Pair,
    d_folded: Pair,
    pub(super) stack: BlockStack,
    /// Tokens with the time; the first output layer's product, and its activation, [B, T, D].
    timed: Tensor,
    product: Tensor,
    hidden: Tensor,
    d_tokens: [Tensor; 2],
    d_time: Tensor,
    sums: Tensor,
    workspace: Workspace,
}

impl FlowVitParams {
    /// Zeros.
    pub fn zeros(config: &ModelConfig, device: &Device, dtype: DType) -> Result<Self> {
        let (d, p, c) = (config.transformer().hidden_size, config.transformer().patch_size, config.in_channels);
        let pair = |n: usize, k: usize| Pair::linear(device, dtype, n, k);
        let block = config.block();
        Ok(Self {
            input_conv: pair(ENCODER_CHANNELS, c)?,
            patch_embed: pair(d, ENCODER_CHANNELS * p * p)?,
            class_position: Tensor::zeros(device, dtype, &[d])?,
            positions: Tensor::zeros(device, dtype, &[config.tokens(), d])?,
            blocks: (0..config.transformer().depth)
                .map(|_| BlockParams::zeros(&block, device, dtype))
                .collect::<Result<_>>()?,
            time: VectorMlp::zeros(device, dtype, config.time.dim, d)?,
            output: [pair(d, d)?, pair(p * p * config.out_channels, d)?],
        })
    }

    /// Every tensor, by the names of [`crate::models::flow_vit::specs`]; the two of one name follow one another.
    pub fn tensors(&self) -> Vec<Named<'_>> {
        let mut all: Vec<Named> = name_pair("input_conv", &self.input_conv).into();
        all.push(Named::learned("pretrained_vit.pos_embed", &self.class_position));
        all.push(Named::learned("pretrained_vit.pos_embed", &self.positions));
        all.extend(name_pair("pretrained_vit.patch_embed.proj", &self.patch_embed));
        for (i, block) in self.blocks.iter().enumerate() {
            all.extend(name_block(&format!("pretrained_vit.blocks.{i}"), block.layers()));
        }
        let time = self.time.layers().into_iter();
        all.extend(time.flat_map(|(n, p)| name_pair(&format!("time_embed.time_mlp.{n}"), p)));
        all.extend(name_pair("output_proj.0", &self.output[0]));
        all.extend(name_pair("output_proj.2", &self.output[1]));
        all
    }

    /// The same in the same order, to be written.
    pub fn tensors_mut(&mut self) -> Vec<NamedMut<'_>> {
        let mut all: Vec<NamedMut> = name_pair_mut("input_conv", &mut self.input_conv).into();
        all.push(NamedMut::learned("pretrained_vit.pos_embed", &mut self.class_position));
        all.push(NamedMut::learned("pretrained_vit.pos_embed", &mut self.positions));
        all.extend(name_pair_mut("pretrained_vit.patch_embed.proj", &mut self.patch_embed));
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let layers = block.layers_mut().into_iter();
            all.extend(layers.flat_map(|(n, p)| name_pair_mut(&format!("pretrained_vit.blocks.{i}.{n}"), p)));
        }
        let time = self.time.layers_mut().into_iter();
        all.extend(time.flat_map(|(n, p)| name_pair_mut(&format!("time_embed.time_mlp.{n}"), p)));
        let [first, last] = &mut self.output;
        all.extend(name_pair_mut("output_proj.0", first));
        all.extend(name_pair_mut("output_proj.2", last));
        all
    }

    fn folded(&self) -> Folded<&Tensor> {
        Folded {
            conv: &self.input_conv.weight,
            conv_bias: &self.input_conv.bias,
            proj: &self.patch_embed.weight,
            proj_bias: &self.patch_embed.bias,
        }
    }
}

impl FlowVitStep {
    /// Buffers for `batch` images.
    pub fn new(
        config: &ModelConfig,
        params: &FlowVitParams,
        device: &Device,
        dtype: DType,
        batch: usize,
        keeping: Keeping,
    ) -> Result<Self> {
        let (d, tokens) = (config.transformer().hidden_size, config.tokens());
        let zeros = || Tensor::zeros(device, dtype, &[batch, tokens, d]);
        let pixels = config.in_channels * config.transformer().patch_size * config.transformer().patch_size;
        let folded = Pair::linear(device, dtype, d, pixels)?;
        let linears = [&folded, &params.output[0], &params.output[1]];
        let size = (params.blocks.iter().map(|b| b.workspace_size(device, batch, tokens)))
            .chain(linears.map(|l| l.workspace_size(device, batch, tokens)))
            .chain([params.time.workspace_size(device, batch)])
            .fold(WorkspaceSize::default(), WorkspaceSize::max);
        let sums = scratch_len(batch, tokens, d).max(batch * params.output[1].weight.dim(0).max(d));
        Ok(Self {
            time: VectorSaved::new(device, dtype, batch, config.time.dim, d)?,
            folded,
            d_folded: Pair::linear(device, dtype.wide(), d, pixels)?,
            stack: BlockStack::new(
                config.block(),
                device,
                dtype,
                [batch, tokens, config.transformer().depth],
                keeping,
            )?,
            timed: zeros()?,
            product: zeros()?,
            hidden: zeros()?,
            d_tokens: [zeros()?, zeros()?],
            d_time: Tensor::zeros(device, dtype, &[batch, d])?,
            sums: Tensor::zeros(device, dtype.wide(), &[sums])?,
            workspace: Workspace::new(device, dtype, size)?,
        })
    }

    /// Where the sinusoids of the times go, [B, F].
    pub fn sinusoids(&mut self) -> &mut Tensor {
        &mut self.time.x
    }

    /// out [B, T, C P P] of the patches [B, T, C P P].
    pub fn forward(
        &mut self,
        device: &Device,
        params: &FlowVitParams,
        patches: &Tensor,
        out: &mut Tensor,
        stop: Stop,
    ) -> Result<()> {
        let Self { time, folded, stack, timed, product, hidden, workspace, .. } = self;
        fold(device, params.folded(), &mut folded.weight, &mut folded.bias)?;
        let (bias, residual) = (Some(Columns::Shared(&folded.bias)), Residual::Rows(&params.positions));
        let embed = Operands { bias, residual, ..Operands::new(patches, &folded.weight) };
        linear(device, embed, &mut stack.x, None, workspace)?;
        for (i, block) in params.blocks.iter().enumerate() {
            go_on(stop)?;
            stack.forward(device, i, block, None, workspace)?;
        }
        params.time.forward(device, time, workspace)?;
        add_to_tokens(device, stack.y(), &time.y, timed)?;
        params.output[0].forward(device, timed, product, workspace)?;
        activate(device, product, Activation::Silu, None, None, hidden)?;
        params.output[1].forward(device, hidden, out, workspace)
    }

    /// The gradients of all parameters from dout [B, T, C P P].
    pub fn backward(
        &mut self,
        device: &Device,
        params: &FlowVitParams,
        patches: &Tensor,
        dout: &Tensor,
        grads: &mut FlowVitParams,
        stop: Stop,
    ) -> Result<()> {
        let Self { time, folded, d_folded, stack, timed, product, hidden, .. } = self;
        let Self { d_tokens: [d_hidden, d_product], d_time, sums, workspace, .. } = self;
        let [d_first, d_last] = &mut grads.output;
        params.output[1].backward(device, hidden, dout, Some(d_hidden), d_last, sums)?;
        activate_backward(device, product, Activation::Silu, None, d_hidden, d_product, None)?;
        let (_, dy) = stack.y_and_dy();
        params.output[0].backward(device, timed, d_product, Some(dy), d_first, sums)?;
        sum_tokens(device, dy, d_time)?;
        params.time.backward(device, time, d_time, &mut grads.time, sums)?;
        for (i, block) in params.blocks.iter().enumerate().rev() {
            go_on(stop)?;
            stack.backward(device, i, block, None, &mut grads.blocks[i], workspace)?;
        }
        add_images(device, stack.dx(), &mut grads.positions)?;
        fill_zero(device, &mut d_folded.weight)?;
        fill_zero(device, &mut d_folded.bias)?;
        folded.backward(device, patches, stack.dx(), None, d_folded, sums)?;
        let to = Folded {
            conv: &mut grads.input_conv.weight,
            conv_bias: &mut grads.input_conv.bias,
            proj: &mut grads.patch_embed.weight,
            proj_bias: &mut grads.patch_embed.bias,
        };
        fold_backward(device, params.folded(), &d_folded.weight, &d_folded.bias, to)
    }
}
