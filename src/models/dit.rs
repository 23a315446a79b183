//! The diffusion transformer with adaLN-zero (Peebles and Xie, arXiv 2212.09748), under the names of the original
//! repository: the class-conditional lensing model ("NanoDiT") and the original's own configurations. A model may also take
//! continuous parameters, which none of those does: two linear layers, `param_embed`, whose result is added to the embeddings of
//! time and label (as in FlowLensing, arXiv 2510.07878).

use super::config::ModelConfig;
use super::{Condition, Inputs};
use crate::device::Device;
use crate::error::Result;
use crate::nn::Tap;
use crate::nn::block::{Block, BlockActs, BlockConditions, Conditioned};
use crate::nn::linear::Linear;
use crate::nn::norm::{Layers, Modulated, NormLinear};
use crate::nn::params::{Loader, ParamSpec, linear_specs};
use crate::nn::time::TimeMlp;
use crate::ops::backward::embed::label_add;
use crate::ops::embed::label_embedding;
use crate::ops::linear::{Activation, Operands, Residual, Workspace, WorkspaceSize, linear};
use crate::ops::patch::{patchify, unpatchify};
use crate::tensor::{DType, Tensor};

/// Name of the layers that embed continuous parameters.
pub(super) const PARAMETERS: &str = "param_embed";

/// Parameters, under the original repository's names.
pub fn specs(config: &ModelConfig) -> Vec<ParamSpec> {
    let (d, p) = (config.transformer().hidden_size, config.transformer().patch_size);
    let mut specs = vec![
        ParamSpec::new("pos_embed", &[1, config.tokens(), d]),
        ParamSpec::new("x_embedder.proj.weight", &[d, config.in_channels, p, p]),
        ParamSpec::new("x_embedder.proj.bias", &[d]),
    ];
    specs.extend(TimeMlp::specs("t_embedder.mlp", config.time.dim, d));
    specs.push(ParamSpec::new("y_embedder.embedding_table.weight", &[config.label_rows(), d]));
    for i in 0..config.transformer().depth {
        let block = format!("blocks.{i}");
        specs.extend(Block::specs(&block, d, config.transformer().mlp_hidden));
        specs.extend(linear_specs(&format!("{block}.adaLN_modulation.1"), 6 * d, d));
    }
    specs.extend(linear_specs("final_layer.linear", p * p * config.out_channels, d));
    specs.extend(linear_specs("final_layer.adaLN_modulation.1", 2 * d, d));
    // Last, so that the others keep their starting weights, which follow from their place.
    if !config.parameters.is_empty() {
        specs.extend(TimeMlp::specs(PARAMETERS, config.parameters.len(), d));
    }
    specs
}

/// Weights on a device.
pub struct Dit {
    patch_embed: Linear,
    positions: Tensor,
    time: TimeMlp,
    labels: Tensor,
    /// Of a model that takes continuous parameters.
    parameters: Option<TimeMlp>,
    blocks: Vec<Block>,
    /// Of each block: shift, scale and gate of the attention, then of the MLP.
    block_adaln: Vec<[Linear; 6]>,
    last: NormLinear,
    /// Shift and scale of the last norm.
    last_adaln: [Linear; 2],
}

/// Activations of one batch.
pub struct DitActs {
    patches: Tensor,
    x: Tensor,
    block: BlockActs,
    out: Tensor,
    workspace: Workspace,
}

/// What differs from evaluation to evaluation and from label to label, R = E L rows of each.
pub struct DitConditions {
    /// One per block.
    pub blocks: Vec<BlockConditions>,
    last: Modulated,
}

impl Dit {
    /// Reads the weights.
    pub fn load(config: &ModelConfig, loader: &Loader) -> Result<Self> {
        let (d, p) = (config.transformer().hidden_size, config.transformer().patch_size);
        let block = |i: usize| loader.at(format!("blocks.{i}"));
        let out = p * p * config.out_channels;
        Ok(Self {
            patch_embed: Linear::load(&loader.at("x_embedder.proj"), d, config.in_channels * p * p)?,
            positions: loader.tensor("pos_embed", &[config.tokens(), d])?,
            time: TimeMlp::load(&loader.at("t_embedder.mlp"), config.time.dim, d)?,
            labels: loader.tensor("y_embedder.embedding_table.weight", &[config.label_rows(), d])?,
            parameters: match config.parameters.len() {
                0 => None,
                count => Some(TimeMlp::load(&loader.at(PARAMETERS), count, d)?),
            },
            blocks: loader.each(config.transformer().depth, |i| Block::load(config.block(), &block(i)))?,
            block_adaln: loader.each(config.transformer().depth, |i| load_adaln(&block(i), d))?,
            last: NormLinear::load_modulated(&loader.at("final_layer.linear"), out, d, config.transformer().norm_eps)?,
            last_adaln: load_adaln(&loader.at("final_layer"), d)?,
        })
    }

    /// Memory for `rows` conditions.
    pub fn new_conditions(
        &self,
        config: &ModelConfig,
        layers: Layers,
        device: &Device,
        dtype: DType,
        rows: usize,
    ) -> Result<DitConditions> {
        let block = || BlockConditions::new(config.block(), layers, device, dtype, rows);
        let weight = &self.last.linear().weight;
        let last = Modulated::new(layers, device, dtype, [rows, weight.dim(0), weight.last_dim()])?;
        Ok(DitConditions { blocks: (0..config.transformer().depth).map(|_| block()).collect::<Result<_>>()?, last })
    }

    /// What [`Self::conditions`] reads of continuous parameters with these normalised values, [2, D]: zeros, and their
    /// embedding. `None` for a model that takes none.
    pub fn embed_parameters(&self, device: &Device, normalised: &[f64]) -> Result<Option<Tensor>> {
        let Some(layers) = &self.parameters else { return Ok(None) };
        let (dtype, d) = (self.labels.dtype(), self.labels.last_dim());
        let x = Tensor::from_f64(device, dtype, &[1, normalised.len()], normalised)?;
        let mut embedding = Tensor::zeros(device, dtype, &[1, d])?;
        layers.forward(device, &x, &mut embedding)?;
        let rows = [vec![0.0; d], embedding.to_f64(device)?].concat();
        Tensor::from_f64(device, dtype, &[2, d], &rows).map(Some)
    }

    /// What follows from times and conditions alone: row e L + l belongs to evaluation e and condition l; `parameters` are
    /// those of [`Self::embed_parameters`].
    pub fn conditions(
        &self,
        config: &ModelConfig,
        device: &Device,
        times: &[f64],
        wanted: &[Condition],
        parameters: Option<&Tensor>,
        to: &mut DitConditions,
    ) -> Result<()> {
        let (dtype, d, rows) = (self.labels.dtype(), config.transformer().hidden_size, times.len() * wanted.len());
        let mut time = Tensor::zeros(device, dtype, &[times.len(), d])?;
        self.time.embed(device, &config.time, times, &mut time)?;
        let numbers = |number: fn((usize, &Condition)) -> u32| {
            let numbers: Vec<u32> = wanted.iter().enumerate().map(number).collect();
            Tensor::from_u32(device, &[wanted.len()], &numbers)
        };
        let labels = numbers(|(_, condition)| condition.label)?;
        let mut c = Tensor::zeros(device, dtype, &[rows, d])?;
        match parameters {
            None => label_embedding(device, &time, &self.labels, &labels, &mut c)?,
            Some(parameters) => {
                // A table of the conditions, label and parameters together, takes the place of that of the labels.
                let zeros = || Tensor::zeros(device, dtype, &[wanted.len(), d]);
                let (nothing, mut given, mut table) = (zeros()?, zeros()?, zeros()?);
                let which = numbers(|(_, condition)| condition.parameters.into())?;
                label_add(device, &nothing, parameters, &which, &mut given)?;
                label_add(device, &given, &self.labels, &labels, &mut table)?;
                label_embedding(device, &time, &table, &numbers(|(row, _)| row as u32)?, &mut c)?;
            }
        }
        let sizes = (self.blocks.iter().map(|b| b.workspace_size(device, rows, 1)))
            .chain(self.last_adaln.iter().chain([self.last.linear()]).map(|l| l.workspace_size(device, rows, 1)));
        let mut workspace = Workspace::new(device, dtype, sizes.fold(WorkspaceSize::default(), WorkspaceSize::max))?;
        let workspace = &mut workspace;
        let fill = |layers: &[Linear], parts: &mut [&mut Tensor], workspace: &mut Workspace| {
            layers.iter().zip(parts.iter_mut()).try_for_each(|(layer, part)| {
                layer.forward(device, &c, Activation::None, Residual::None, part, workspace)
            })
        };
        for ((block, adaln), to) in self.blocks.iter().zip(&self.block_adaln).zip(&mut to.blocks) {
            fill(adaln, &mut to.parts(), workspace)?;
            block.prepare(device, to, workspace)?;
        }
        fill(&self.last_adaln, &mut to.last.shift_and_scale(), workspace)?;
        self.last.prepare(device, &mut to.last, workspace)
    }

    /// Buffers for `batch` images.
    pub fn acts(
        &self,
        config: &ModelConfig,
        layers: Layers,
        device: &Device,
        dtype: DType,
        batch: usize,
    ) -> Result<DitActs> {
        let (d, p, tokens) = (config.transformer().hidden_size, config.transformer().patch_size, config.tokens());
        let per_token = |n| Tensor::zeros(device, dtype, &[batch, tokens, n]);
        let linears = [&self.patch_embed, self.last.linear()];
        let workspace = (self.blocks.iter().map(|b| b.workspace_size(device, batch, tokens)))
            .chain(linears.map(|l| l.workspace_size(device, batch, tokens)))
            .fold(WorkspaceSize::default(), WorkspaceSize::max);
        Ok(DitActs {
            patches: per_token(config.in_channels * p * p)?,
            x: per_token(d)?,
            block: BlockActs::new(config.block(), layers, device, dtype, batch, tokens)?,
            out: per_token(p * p * config.out_channels)?,
            workspace: Workspace::new(device, dtype, workspace)?,
        })
    }

    /// output [B, C, H, W]; `tap` sees `tokens_plus_pos`, `block<i>`, `final`.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        config: &ModelConfig,
        device: &Device,
        inputs: Inputs,
        conditions: &DitConditions,
        acts: &mut DitActs,
        output: &mut Tensor,
        tap: Tap,
    ) -> Result<()> {
        let DitActs { patches, x, block, out, workspace } = acts;
        let DitConditions { blocks, last } = conditions;
        let select = inputs.select();
        // The scales of the norms in front of the attentions, then of the last norm.
        let scale = |i: usize| blocks.get(i).map_or(last, |b| &b.attn).scale();
        patchify(device, inputs.x, config.transformer().patch_size, patches)?;
        let residual = Residual::Rows(&self.positions);
        let embed = Operands { residual, select: Some(select), ..self.patch_embed.on(patches) };
        linear(device, embed, x, block.normed.wanted(Some(scale(0))), workspace)?;
        tap("tokens_plus_pos", x);
        for (i, (layer, conditions)) in self.blocks.iter().zip(blocks).enumerate() {
            let conditioned = Conditioned { block: conditions, next_scale: scale(i + 1), select };
            layer.forward(device, &format!("block{i}"), x, Some(conditioned), block, workspace, tap)?;
        }
        let modulated = Some((last, select));
        self.last.forward(device, x, &mut block.normed, modulated, Activation::None, out, workspace)?;
        tap("final", out);
        unpatchify(device, out, config.transformer().patch_size, output)
    }
}

/// An adaLN layer as `N` layers, one for each vector that it makes; those that make scales, second of every three, make the
/// factor 1 + scale.
fn load_adaln<const N: usize>(loader: &Loader, d: usize) -> Result<[Linear; N]> {
    let layer = loader.at("adaLN_modulation.1");
    let (weight, bias) = (layer.stored("weight")?, layer.read("bias")?);
    let layers = weight.chunks_exact(d * d).zip(bias.chunks_exact(d)).enumerate().map(|(i, (weight, bias))| {
        let one = if i % 3 == 1 { 1.0 } else { 0.0 };
        let bias: Vec<f64> = bias.iter().map(|&b| b as f64 + one).collect();
        Ok(Linear { weight: layer.given_matrix(d, d, weight)?, bias: layer.computed("bias", &[d], &bias)? })
    });
    let layers: Vec<Linear> = layers.collect::<Result<_>>()?;
    Ok(layers.try_into().unwrap_or_else(|_| unreachable!("the specs give the layer {N} D rows")))
}
