//! The attention of `UNet2DConditionModel`: transformer blocks over the pixels, which attend to each other and to the tokens
//! of a context. Images are [B, H, W, C].

use super::heads::HeadSizes;
use super::layers::Norm;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::unet2d::ContextConfig;
use crate::nn::linear::Linear;
use crate::nn::norm::LayerNorm;
use crate::nn::params::Loader;
use crate::nn::tools::Tools;
use crate::ops::attention::{Heads, attention};
use crate::ops::geglu::geglu;
use crate::ops::linear::{Activation, Residual, WorkspaceSize};
use crate::tensor::Tensor;

/// Added to the variance in the GroupNorm in front ...
const GROUP_EPS: f64 = 1e-6;
/// ... and in the LayerNorms.
const EPS: f64 = 1e-5;
/// Width of the feed-forward layers over that of the block.
const MLP_RATIO: usize = 4;

/// Norm, projection, blocks, projection, added to what comes in.
pub struct Transformer {
    norm: Norm,
    ends: [Linear; 2],
    blocks: Vec<Block>,
}

/// Self-attention, attention to the context, and the feed-forward layers, each behind a norm and added to its input.
struct Block {
    heads: usize,
    norms: [LayerNorm; 3],
    /// Queries, keys and values of the pixels.
    qkv: Linear,
    /// Queries of the pixels, and keys and values of the context.
    query: Linear,
    context: Linear,
    /// Behind the two attentions.
    out: [Linear; 2],
    /// GEGLU lies between them.
    feed_forward: [Linear; 2],
}

impl Transformer {
    /// Reads the weights below the loader's path.
    ///
    /// # Errors
    /// The loader's, and [`Error::Input`] for heads that are too large.
    pub fn load(
        loader: &Loader,
        channels: usize,
        heads: usize,
        groups: usize,
        context: &ContextConfig,
    ) -> Result<Self> {
        let blocks = (0..context.layers).map(|i| {
            let at = loader.at(format!("transformer_blocks.{i}"));
            let [own, other] = ["attn1", "attn2"].map(|part| at.at(part));
            let sizes = HeadSizes::new(&own, channels, heads)?;
            let norm = |name: &str| LayerNorm::load(&at.at(name), channels, EPS);
            let hidden = MLP_RATIO * channels;
            Ok(Block {
                heads,
                norms: [norm("norm1")?, norm("norm2")?, norm("norm3")?],
                qkv: sizes.into(&own, &["to_q", "to_k", "to_v"], channels, false)?,
                query: sizes.into(&other, &["to_q"], channels, false)?,
                context: sizes.into(&other, &["to_k", "to_v"], context.dim, false)?,
                out: [sizes.out_of(&own)?, sizes.out_of(&other)?],
                feed_forward: [
                    Linear::load(&at.at("ff.net.0.proj"), 2 * hidden, channels)?,
                    Linear::load(&at.at("ff.net.2"), channels, hidden)?,
                ],
            })
        });
        // Stored as layers or as 1x1 convolutions, which hold the same numbers.
        let end = |name: &str| Linear::load(&loader.at(name), channels, channels);
        Ok(Self {
            norm: Norm::load(&loader.at("norm"), channels, (groups, GROUP_EPS))?,
            ends: [end("proj_in")?, end("proj_out")?],
            blocks: blocks.collect::<Result<_>>()?,
        })
    }

    /// The layers that make keys and values of a context, in the order in which their blocks run.
    pub fn contexts(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().map(|block| &block.context)
    }

    /// x += transformer(x); `contexts` are keys and values [B, L, 2 W] for each block.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward<'a>(
        &self,
        tools: &mut Tools,
        x: &mut Tensor,
        contexts: &mut impl Iterator<Item = &'a Tensor>,
    ) -> Result<()> {
        let [first, last] = &self.ends;
        let normed = self.norm.forward(tools, x, false)?;
        let (pixels, channels) = (x.dim(1) * x.dim(2), x.last_dim());
        let mut tokens = tools.scratch.take(x.dtype(), &[x.dim(0), pixels, channels])?;
        first.forward(tools.device, &normed, Activation::None, Residual::None, &mut tokens, tools.workspace)?;
        tools.scratch.put(normed);
        for block in &self.blocks {
            let context = contexts.next().ok_or_else(|| Error::Runtime("a context of another network".into()))?;
            block.forward(tools, &mut tokens, context)?;
        }
        last.forward(tools.device, &tokens, Activation::None, Residual::InPlace, x, tools.workspace)?;
        tools.scratch.put(tokens);
        Ok(())
    }

    /// What images of `size` need.
    pub fn workspace_size(&self, device: &Device, batch: usize, size: [usize; 2]) -> WorkspaceSize {
        let blocks =
            self.blocks.iter().flat_map(|b| [&b.qkv, &b.query].into_iter().chain(&b.out).chain(&b.feed_forward));
        let layers = blocks.chain(&self.ends).map(|layer| layer.workspace_size(device, batch, size[0] * size[1]));
        layers.fold(WorkspaceSize::default(), WorkspaceSize::max)
    }
}

impl Block {
    /// x [B, T, C] += block(x).
    fn forward(&self, tools: &mut Tools, x: &mut Tensor, context: &Tensor) -> Result<()> {
        let width = self.query.bias.len();
        let qkv = self.projected(tools, 0, &self.qkv, x)?;
        self.attend(tools, &self.out[0], [part(&qkv, 0, width), part(&qkv, 1, width), part(&qkv, 2, width)], x)?;
        tools.scratch.put(qkv);

        let query = self.projected(tools, 1, &self.query, x)?;
        self.attend(
            tools,
            &self.out[1],
            [part(&query, 0, width), part(context, 0, width), part(context, 1, width)],
            x,
        )?;
        tools.scratch.put(query);

        let [wide, narrow] = &self.feed_forward;
        let both = self.projected(tools, 2, wide, x)?;
        let mut hidden = tools.scratch.take(x.dtype(), &[x.dim(0), x.dim(1), narrow.weight.last_dim()])?;
        geglu(tools.device, &both, &mut hidden)?;
        tools.scratch.put(both);
        narrow.forward(tools.device, &hidden, Activation::None, Residual::InPlace, x, tools.workspace)?;
        tools.scratch.put(hidden);
        Ok(())
    }

    /// `layer` of the norm of that number of x.
    fn projected(&self, tools: &mut Tools, norm: usize, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        let normed = tools.norm(&self.norms[norm], x)?;
        let mut y = tools.scratch.take(x.dtype(), &[x.dim(0), x.dim(1), layer.bias.len()])?;
        layer.forward(tools.device, &normed, Activation::None, Residual::None, &mut y, tools.workspace)?;
        tools.scratch.put(normed);
        Ok(y)
    }

    /// x += out(attention(q, k, v)).
    fn attend(&self, tools: &mut Tools, out: &Linear, [q, k, v]: [Heads; 3], x: &mut Tensor) -> Result<()> {
        let mut mixed = tools.scratch.take(x.dtype(), &[x.dim(0), x.dim(1), out.weight.last_dim()])?;
        attention(tools.device, q, k, v, self.heads, &mut mixed)?;
        out.forward(tools.device, &mixed, Activation::None, Residual::InPlace, x, tools.workspace)?;
        tools.scratch.put(mixed);
        Ok(())
    }
}

/// Part `i` of several of `width` channels that lie side by side in `tensor`.
fn part(tensor: &Tensor, i: usize, width: usize) -> Heads<'_> {
    Heads { tensor, offset: i * width }
}
