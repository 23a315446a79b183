//! The launches of `kernels/attention_backward.cu`, and of the forward kernels of `kernels/attention.cu` that leave the
//! logarithm.

use super::Geometry;
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::{Error, Result};
use crate::ops::attention::AttentionSpec;
use crate::ops::{SpecLayout, moves, spec, to_i32, to_u32};
use crate::tensor::{DType, Tensor};

spec! {
    /// Geometry of `attention_lse_fwd_f32`, `attention_delta_bwd_*`, `attention_dq_bwd_*` and `attention_dkv_bwd_*`.
    AttentionBackwardSpec { images: i32, heads: i32, head_dim: i32, tokens: i32, scale: f32 }
}
pub(in crate::ops) const LAYOUT: SpecLayout = AttentionBackwardSpec::LAYOUT;

/// Rows of a block's tile in f32, and in f16 and bf16.
const ROWS: [usize; 2] = [32, 64];

fn spec_of(g: Geometry) -> Result<AttentionBackwardSpec> {
    if g.head_dim < 32 {
        return Err(Error::Runtime(format!("attention on a GPU: head size {}, 32 to 128 expected", g.head_dim)));
    }
    let [images, heads, head_dim, tokens] = [g.images, g.heads, g.head_dim, g.tokens].map(to_i32);
    let scale = g.scale() as f32;
    Ok(AttentionBackwardSpec { images: images?, heads: heads?, head_dim: head_dim?, tokens: tokens?, scale })
}

/// A launch of a block per tile of `rows` tokens, head and image, that multiplies `products` matrices of the size of the
/// scores and moves `bytes`.
fn tiles(cuda: &Cuda, g: Geometry, rows: usize, products: usize, bytes: usize, rest: Launch) -> Result<()> {
    let flops = 2 * products * g.images * g.tokens * g.tokens * g.dim();
    cuda.launch(&Launch {
        grid: [to_u32(g.tokens.div_ceil(rows))?, to_u32(g.heads)?, to_u32(g.images)?],
        threads: 128,
        work: Work { flops: flops as u64, bytes: bytes as u64, weights: 0 },
        ..rest
    })
}

/// Shared memory of the f32 kernels with `tensors` tiles, as the head of `attention_backward.cu` states it.
fn shared_f32(g: Geometry, tensors: usize) -> Result<u32> {
    to_u32(128 * tensors * (g.head_dim + 4) + 8448)
}

pub(super) fn forward(cuda: &Cuda, g: Geometry, qkv: &Tensor, out: &mut Tensor, lse: &mut Tensor) -> Result<()> {
    let (dtype, bytes, spec) = (out.dtype(), qkv.bytes() + out.bytes() + lse.bytes(), spec_of(g)?);
    if dtype == DType::F32 {
        let (pointers, kernel) = ([qkv.address(0)?, out.address(0)?, lse.address(0)?], "attention_lse_fwd_f32".into());
        let (module, shared_bytes, spec) = ("attention_backward", shared_f32(g, 3)?, bytemuck::bytes_of(&spec));
        let launch = Launch { module, kernel, shared_bytes, pointers: &pointers, spec, ..Launch::default() };
        return tiles(cuda, g, ROWS[0], 2, bytes, launch);
    }
    let (dim, padded) = (g.dim(), g.head_dim.next_multiple_of(16));
    let (tokens, stride) = (to_i32(g.tokens)?, to_i32(3 * dim)?);
    let spec = AttentionSpec {
        heads: spec.heads,
        head_dim: spec.head_dim,
        q_len: tokens,
        kv_len: tokens,
        q_stride: stride,
        kv_stride: stride,
        out_stride: to_i32(dim)?,
        scale: spec.scale,
    };
    let [q, k, v] = [0, dim, 2 * dim].map(|offset| qkv.address(offset));
    let launch = Launch {
        module: "attention",
        kernel: format!("attention_lse_fwd_{dtype}_hd{padded}"),
        shared_bytes: to_u32(512 * (padded + 8))?,
        pointers: &[q?, k?, v?, out.address(0)?, lse.address(0)?],
        spec: bytemuck::bytes_of(&spec),
        ..Launch::default()
    };
    tiles(cuda, g, ROWS[1], 2, bytes, launch)
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
    let padded = g.head_dim.next_multiple_of(32);
    let (suffix, tile, shared_bytes) = match dtype {
        DType::F32 => ("f32".to_string(), ROWS[0], shared_f32(g, 4)?),
        _ => (format!("{dtype}_hd{padded}"), ROWS[1], to_u32(512 * (padded + 8) + 512)?),
    };
    let read = qkv.bytes() + dout.bytes() + lse.bytes();
    for (name, products, parts) in [("dq", 3, 1), ("dkv", 4, 2)] {
        let launch = Launch {
            module: "attention_backward",
            kernel: format!("attention_{name}_bwd_{suffix}"),
            shared_bytes,
            pointers: &pointers,
            spec: bytemuck::bytes_of(&spec),
            ..Launch::default()
        };
        tiles(cuda, g, tile, products, read + parts * dqkv.bytes() / 3, launch)?;
    }
    Ok(())
}
