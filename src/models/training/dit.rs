//! The diffusion transformer with its backward: see [`crate::models::dit`] for what it computes.

use super::parameters::ParameterStep;
use super::{Conditions, Named, NamedMut, Stop, go_on, name_block, name_pair, name_pair_mut};
use crate::device::Device;
use crate::error::Result;
use crate::models::config::ModelConfig;
use crate::models::dit::PARAMETERS;
use crate::nn::training::{BlockParams, BlockStack, Keeping, Modulation, Pair, VectorMlp, VectorSaved};
use crate::ops::Columns;
use crate::ops::activation::{activate, activate_backward};
use crate::ops::backward::embed::{label_add, label_add_backward};
use crate::ops::backward::layernorm::{AffineBackward, layernorm_backward, scratch_len};
use crate::ops::layernorm::{Affine, layernorm};
use crate::ops::linear::{Activation, Operands, Residual, Workspace, WorkspaceSize, linear};
use crate::ops::parts::{put_part, take_part};
use crate::tensor::{DType, Tensor};

/// Parameters, or their gradients.
pub struct DitParams {
    patch_embed: Pair,
    /// [T, D]; they do not learn.
    positions: Tensor,
    time: VectorMlp,
    labels: Tensor,
    /// Of a model that takes continuous parameters.
    parameters: Option<VectorMlp>,
    blocks: Vec<BlockParams>,
    /// [6 D, D] of each block: shift, scale and gate of the attention, then of the MLP.
    adaln: Vec<Pair>,
    last: Pair,
    /// [2 D, D].
    last_adaln: Pair,
}

/// Memory for one batch.
pub struct DitStep {
    time: VectorSaved,
    parameters: Option<ParameterStep>,
    /// Time, label and parameters, and the activation of their sum, [B, D].
    sum: Tensor,
    c: Tensor,
    parts: Vec<Modulation>,
    last_parts: [Tensor; 2],
    pub(super) stack: BlockStack,
    normed: Tensor,
    /// Rows of the adaLN layers and their gradients, [B, 6 D] and [B, 2 D].
    rows: Tensor,
    last_rows: Tensor,
    d_parts: Modulation,
    d_normed: Tensor,
    /// The gradient of c so far, another layer's share, and their sum.
    dc: [Tensor; 3],
    sums: Tensor,
    workspace: Workspace,
}

impl DitParams {
    /// Zeros.
    pub fn zeros(config: &ModelConfig, device: &Device, dtype: DType) -> Result<Self> {
        let (d, p) = (config.transformer().hidden_size, config.transformer().patch_size);
        let pair = |n: usize, k: usize| Pair::linear(device, dtype, n, k);
        let block = config.block();
        Ok(Self {
            patch_embed: pair(d, config.in_channels * p * p)?,
            positions: Tensor::zeros(device, dtype, &[config.tokens(), d])?,
            time: VectorMlp::zeros(device, dtype, config.time.dim, d)?,
            labels: Tensor::zeros(device, dtype, &[config.label_rows(), d])?,
            parameters: match config.parameters.len() {
                0 => None,
                count => Some(VectorMlp::zeros(device, dtype, count, d)?),
            },
            blocks: (0..config.transformer().depth)
                .map(|_| BlockParams::zeros(&block, device, dtype))
                .collect::<Result<_>>()?,
            adaln: (0..config.transformer().depth).map(|_| pair(6 * d, d)).collect::<Result<_>>()?,
            last: pair(p * p * config.out_channels, d)?,
            last_adaln: pair(2 * d, d)?,
        })
    }

    /// Every tensor, by the names of [`crate::models::dit::specs`].
    pub fn tensors(&self) -> Vec<Named<'_>> {
        let mut all = vec![Named::fixed("pos_embed", &self.positions)];
        all.extend(name_pair("x_embedder.proj", &self.patch_embed));
        all.extend(self.time.layers().into_iter().flat_map(|(n, p)| name_pair(&format!("t_embedder.mlp.{n}"), p)));
        all.push(Named::learned("y_embedder.embedding_table.weight", &self.labels));
        for (i, (block, adaln)) in self.blocks.iter().zip(&self.adaln).enumerate() {
            all.extend(name_block(&format!("blocks.{i}"), block.layers()));
            all.extend(name_pair(&format!("blocks.{i}.adaLN_modulation.1"), adaln));
        }
        all.extend(name_pair("final_layer.linear", &self.last));
        all.extend(name_pair("final_layer.adaLN_modulation.1", &self.last_adaln));
        let parameters = self.parameters.iter().flat_map(VectorMlp::layers);
        all.extend(parameters.flat_map(|(n, p)| name_pair(&format!("{PARAMETERS}.{n}"), p)));
        all
    }

    /// The same in the same order, to be written.
    pub fn tensors_mut(&mut self) -> Vec<NamedMut<'_>> {
        let mut all = vec![NamedMut::fixed("pos_embed", &mut self.positions)];
        all.extend(name_pair_mut("x_embedder.proj", &mut self.patch_embed));
        let time = self.time.layers_mut().into_iter();
        all.extend(time.flat_map(|(n, p)| name_pair_mut(&format!("t_embedder.mlp.{n}"), p)));
        all.push(NamedMut::learned("y_embedder.embedding_table.weight", &mut self.labels));
        for (i, (block, adaln)) in self.blocks.iter_mut().zip(&mut self.adaln).enumerate() {
            let layers = block.layers_mut().into_iter();
            all.extend(layers.flat_map(|(n, p)| name_pair_mut(&format!("blocks.{i}.{n}"), p)));
            all.extend(name_pair_mut(&format!("blocks.{i}.adaLN_modulation.1"), adaln));
        }
        all.extend(name_pair_mut("final_layer.linear", &mut self.last));
        all.extend(name_pair_mut("final_layer.adaLN_modulation.1", &mut self.last_adaln));
        let parameters = self.parameters.iter_mut().flat_map(VectorMlp::layers_mut);
        all.extend(parameters.flat_map(|(n, p)| name_pair_mut(&format!("{PARAMETERS}.{n}"), p)));
        all
    }
}

impl DitStep {
    /// Buffers for `batch` images.
    pub fn new(
        config: &ModelConfig,
        params: &DitParams,
        device: &Device,
        dtype: DType,
        batch: usize,
        keeping: Keeping,
    ) -> Result<Self> {
        let (d, tokens) = (config.transformer().hidden_size, config.tokens());
        let vector = || Tensor::zeros(device, dtype, &[batch, d]);
        let six = || -> Result<Modulation> { Ok([vector()?, vector()?, vector()?, vector()?, vector()?, vector()?]) };
        let size = (params.blocks.iter().map(|b| b.workspace_size(device, batch, tokens)))
            .chain([&params.patch_embed, &params.last].map(|l| l.workspace_size(device, batch, tokens)))
            .chain(params.adaln.iter().chain([&params.last_adaln]).map(|l| l.workspace_size(device, batch, 1)))
            .chain([&params.time].into_iter().chain(&params.parameters).map(|mlp| mlp.workspace_size(device, batch)))
            .fold(WorkspaceSize::default(), WorkspaceSize::max);
        let sums = scratch_len(batch, tokens, d).max(batch * (6 * d).max(params.last.weight.dim(0)));
        Ok(Self {
            time: VectorSaved::new(device, dtype, batch, config.time.dim, d)?,
            parameters: match config.parameters.len() {
                0 => None,
                count => Some(ParameterStep::new(device, dtype, batch, count, d)?),
            },
            sum: vector()?,
            c: vector()?,
            parts: (0..config.transformer().depth).map(|_| six()).collect::<Result<_>>()?,
            last_parts: [vector()?, vector()?],
            stack: BlockStack::new(
                config.block(),
                device,
                dtype,
                [batch, tokens, config.transformer().depth],
                keeping,
            )?,
            normed: Tensor::zeros(device, dtype, &[batch, tokens, d])?,
            rows: Tensor::zeros(device, dtype, &[batch, 6 * d])?,
            last_rows: Tensor::zeros(device, dtype, &[batch, 2 * d])?,
            d_parts: six()?,
            d_normed: Tensor::zeros(device, dtype, &[batch, tokens, d])?,
            dc: [vector()?, vector()?, vector()?],
            sums: Tensor::zeros(device, dtype.wide(), &[sums])?,
            workspace: Workspace::new(device, dtype, size)?,
        })
    }

    /// Where the sinusoids of the times go, [B, F].
    pub fn sinusoids(&mut self) -> &mut Tensor {
        &mut self.time.x
    }

    /// Uploads normalised parameters [B, P], and which images have them; nothing in a model without.
    ///
    /// # Errors
    /// As of [`ParameterStep::set`].
    pub fn set_parameters(&mut self, device: &Device, normalised: &[f32], given: &[bool]) -> Result<()> {
        self.parameters.as_mut().map_or(Ok(()), |step| step.set(device, normalised, given))
    }

    /// out [B, T, C P P] of the patches [B, T, C P P].
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &mut self,
        config: &ModelConfig,
        device: &Device,
        params: &DitParams,
        conditions: &Conditions,
        patches: &Tensor,
        out: &mut Tensor,
        stop: Stop,
    ) -> Result<()> {
        let Self { time, parameters, sum, c, parts, last_parts, stack, normed, rows, last_rows, workspace, .. } = self;
        params.time.forward(device, time, workspace)?;
        label_add(device, &time.y, &params.labels, &conditions.labels, sum)?;
        if let Some((step, layers)) = parameters.as_mut().zip(params.parameters.as_ref()) {
            step.forward(device, layers, sum, workspace)?;
        }
        activate(device, sum, Activation::Silu, None, None, c)?;
        let residual = Residual::Rows(&params.positions);
        let bias = Some(Columns::Shared(&params.patch_embed.bias));
        let embed = Operands { bias, residual, ..Operands::new(patches, &params.patch_embed.weight) };
        linear(device, embed, &mut stack.x, None, workspace)?;
        for (i, (block, adaln)) in params.blocks.iter().zip(&params.adaln).enumerate() {
            go_on(stop)?;
            adaln.forward(device, c, rows, workspace)?;
            split(device, rows, &mut parts[i])?;
            stack.forward(device, i, block, Some(&parts[i]), workspace)?;
        }
        params.last_adaln.forward(device, c, last_rows, workspace)?;
        split(device, last_rows, last_parts)?;
        let [shift, scale] = [0, 1].map(|i| Columns::PerImage(&last_parts[i]));
        layernorm(
            device,
            stack.y(),
            Affine::Modulated { shift, scale, select: None },
            config.transformer().norm_eps,
            normed,
        )?;
        params.last.forward(device, normed, out, workspace)
    }

    /// The gradients of all parameters from dout [B, T, C P P].
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &mut self,
        config: &ModelConfig,
        device: &Device,
        params: &DitParams,
        conditions: &Conditions,
        patches: &Tensor,
        dout: &Tensor,
        grads: &mut DitParams,
        stop: Stop,
    ) -> Result<()> {
        let Self { time, parameters, sum, c, parts, last_parts, stack, normed, rows, last_rows, .. } = self;
        let Self { d_parts, d_normed, dc: [dc, share, joined], sums, workspace, .. } = self;
        params.last.backward(device, normed, dout, Some(d_normed), &mut grads.last, sums)?;
        let [dshift, dscale, ..] = d_parts;
        let affine = AffineBackward::Modulated { scale: &last_parts[1], dshift, dscale };
        let (y, dy) = stack.y_and_dy();
        layernorm_backward(device, y, affine, config.transformer().norm_eps, d_normed, None, dy, sums)?;
        join(device, &d_parts[..2], last_rows)?;
        params.last_adaln.backward(device, c, last_rows, Some(dc), &mut grads.last_adaln, sums)?;
        for (i, (block, adaln)) in params.blocks.iter().zip(&params.adaln).enumerate().rev() {
            go_on(stop)?;
            let modulated = Some((&parts[i], &mut *d_parts));
            stack.backward(device, i, block, modulated, &mut grads.blocks[i], workspace)?;
            join(device, d_parts, rows)?;
            adaln.backward(device, c, rows, Some(share), &mut grads.adaln[i], sums)?;
            activate(device, share, Activation::None, None, Some(dc), joined)?;
            std::mem::swap(dc, joined);
        }
        params.patch_embed.backward(device, patches, stack.dx(), None, &mut grads.patch_embed, sums)?;
        activate_backward(device, sum, Activation::Silu, None, dc, share, None)?;
        label_add_backward(device, &conditions.labels, share, &mut grads.labels)?;
        let both = params.parameters.as_ref().zip(grads.parameters.as_mut());
        if let Some((step, (layers, grads))) = parameters.as_mut().zip(both) {
            step.backward(device, layers, share, grads, sums)?;
        }
        params.time.backward(device, time, share, &mut grads.time, sums)
    }
}

/// The vectors of an adaLN layer's rows; those that make scales, second of every three, get the 1 of 1 + scale.
fn split(device: &Device, rows: &Tensor, parts: &mut [Tensor]) -> Result<()> {
    let d = parts[0].last_dim();
    parts.iter_mut().enumerate().try_for_each(|(i, part)| {
        let one = if i % 3 == 1 { 1.0 } else { 0.0 };
        take_part(device, rows, i * d, one, part)
    })
}

fn join(device: &Device, parts: &[Tensor], rows: &mut Tensor) -> Result<()> {
    parts.iter().enumerate().try_for_each(|(i, part)| put_part(device, part, i * part.last_dim(), rows))
}
