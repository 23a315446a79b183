//! The launches of `kernels/attention_backward.cu`.

use super::Geometry;
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::{Error, Result};
use crate::ops::{SpecLayout, moves, spec, to_i32, to_u32};
use crate::tensor::Tensor;

spec! {
    /// Geometry of `attention_lse_fwd_*`, `attention_delta_bwd_*`, `attention_dq_bwd_*` and `attention_dkv_bwd_*`.
    AttentionBackwardSpec { images: i32, heads: i32, head_dim: i32, tokens: i32, scale: f32 }
}
pub(in crate::ops) const LAYOUT: SpecLayout = AttentionBackwardSpec::LAYOUT;

/// Rows of a block's tile.
const ROWS: usize = 32;

fn spec_of(g: Geometry) -> Result<AttentionBackwardSpec> {
    if g.head_dim < 32 {
        return Err(Error::Runtime(format!("attention on a GPU: head size {}, 32 to 128 expected", g.head_dim)));
    }
    let (heads, head_dim, tokens) = (to_i32(g.heads)?, to_i32(g.head_dim)?, to_i32(g.tokens)?);
    Ok(AttentionBackwardSpec { images: to_i32(g.images)?, heads, head_dim, tokens, scale: g.scale() as f32 })
}

/// A launch of a block per tile of tokens, head and image.
fn tiles(
    cuda: &Cuda,
    g: Geometry,
    kernel: String,
    pointers: &[u64],
    tensors: usize,
    bytes: usize,
    products: usize,
) -> Result<()> {
    let multiplied = 2 * products * g.images * g.tokens * g.tokens * g.dim();
    cuda.launch(&Launch {
        module: "attention_backward",
        kernel,
        grid: [to_u32(g.tokens.div_ceil(ROWS))?, to_u32(g.heads)?, to_u32(g.images)?],
        threads: 128,
        // Tiles of 32 rows in f32 with a padded stride, and two tiles of scores.
        shared_bytes: to_u32(4 * (tensors * ROWS * (g.head_dim + 4) + 2 * ROWS * (ROWS + 1)))?,
        pointers,
        spec: bytemuck::bytes_of(&spec_of(g)?),
        work: Work { flops: multiplied as u64, bytes: bytes as u64, weights: 0 },
        ..Launch::default()
    })
}

pub(super) fn forward(cuda: &Cuda, g: Geometry, qkv: &Tensor, out: &mut Tensor, lse: &mut Tensor) -> Result<()> {
    let pointers = [qkv.address(0)?, out.address(0)?, lse.address(0)?];
    let kernel = format!("attention_lse_fwd_{}", out.dtype());
    tiles(cuda, g, kernel, &pointers, 3, qkv.bytes() + out.bytes() + lse.bytes(), 2)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    cuda: &Cuda,
    g: Geometry,
    qkv: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    dqkv: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let (dtype, delta, spec) = (out.dtype(), scratch.address(0)?, spec_of(g)?);
    let rows = g.images * g.tokens * g.heads;
    cuda.launch(&Launch {
        module: "attention_backward",
        kernel: format!("attention_delta_bwd_{dtype}"),
        grid: [to_u32(rows.div_ceil(4))?, 1, 1],
        threads: 128,
        pointers: &[out.address(0)?, dout.address(0)?, delta],
        spec: bytemuck::bytes_of(&spec),
        work: moves(out.bytes() + dout.bytes() + 4 * rows),
        ..Launch::default()
    })?;
    let pointers = [qkv.address(0)?, dout.address(0)?, lse.address(0)?, delta, dqkv.address(0)?];
    let bytes = qkv.bytes() + dout.bytes() + lse.bytes();
    tiles(cuda, g, format!("attention_dq_bwd_{dtype}"), &pointers, 4, bytes + dqkv.bytes() / 3, 3)?;
    tiles(cuda, g, format!("attention_dkv_bwd_{dtype}"), &pointers, 4, bytes + 2 * dqkv.bytes() / 3, 4)
}
