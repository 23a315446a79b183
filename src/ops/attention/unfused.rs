//! Attention as three launches with the scores in device memory, to compare the fused kernel with: its results, and what
//! fusing is worth.

use super::{Heads, attention, check, check_gpu};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::Result;
use crate::ops::{expect, moves, spec, to_i32, to_u32};
use crate::tensor::{DType, Tensor};

spec! {
    /// Geometry of the kernels of `kernels/attention_unfused.cu`.
    AttentionUnfusedSpec {
        heads: i32, head_dim: i32, q_len: i32, kv_len: i32, q_stride: i32, kv_stride: i32, out_stride: i32, scale: f32,
    }
}
pub(in crate::ops) const LAYOUT: crate::ops::SpecLayout = AttentionUnfusedSpec::LAYOUT;

const MODULE: &str = "attention_unfused";
const THREADS: u32 = 128;
/// Rows and columns of a product that a block makes.
const TILE: usize = 64;
/// Rows of the softmax that a block makes.
const SOFTMAX_ROWS: usize = 4;

/// The same as [`attention`] with `scores` [B, NH, LQ, LK], f32 (f64 in f64), as memory between three launches: q k^T,
/// softmax, and the product with v. Afterwards it holds the weights of the values.
///
/// On the CPU this is [`attention`] itself, which leaves `scores` alone: there is no launch that fusing could save.
///
/// # Errors
/// As [`attention`]'s, and [`Error::Runtime`](crate::error::Error::Runtime) if `scores` do not fit.
pub fn attention_unfused(
    device: &Device,
    [q, k, v]: [Heads; 3],
    heads: usize,
    scores: &mut Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let head_dim = check(q, k, v, heads, out)?;
    let shape = [out.dim(0), heads, q.len(), k.len()];
    expect("attention scores", scores, out.dtype().wide(), &shape)?;
    match device {
        Device::Cpu(_) => attention(device, q, k, v, heads, out),
        Device::Cuda(cuda) => {
            check_gpu([q, k, v], head_dim)?;
            launch(cuda, [q, k, v], heads, head_dim, scores, out)
        }
    }
}

fn launch(
    cuda: &Cuda,
    [q, k, v]: [Heads; 3],
    heads: usize,
    head_dim: usize,
    scores: &mut Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let (images, dim, dtype) = (out.dim(0), out.last_dim(), out.dtype());
    let spec = AttentionUnfusedSpec {
        heads: to_i32(heads)?,
        head_dim: to_i32(head_dim)?,
        q_len: to_i32(q.len())?,
        kv_len: to_i32(k.len())?,
        q_stride: to_i32(q.stride())?,
        kv_stride: to_i32(k.stride())?,
        out_stride: to_i32(dim)?,
        scale: (1.0 / (head_dim as f64).sqrt()) as f32,
    };
    let weights = scores.address(0)?;
    // Of the rows of q, k and v the part that belongs to these heads.
    let bytes = |rows: usize| images * rows * dim * dtype.size();
    let product = |others: usize| Work {
        flops: 2 * (images * q.len() * k.len() * dim) as u64,
        ..moves(scores.bytes() + bytes(others))
    };
    let launch = |kernel: String, blocks: usize, shared_bytes: u32, pointers: &[u64], work: Work| {
        cuda.launch(&Launch {
            module: MODULE,
            kernel,
            grid: [to_u32(blocks)?, to_u32(heads)?, to_u32(images)?],
            threads: THREADS,
            shared_bytes,
            pointers,
            spec: bytemuck::bytes_of(&spec),
            work,
            ..Launch::default()
        })
    };
    let tiles = |n: usize| q.len().div_ceil(TILE) * n.div_ceil(TILE);
    // As the head of the kernels' file states it.
    let shared_bytes = if dtype == DType::F32 { 18432 } else { 10240 };
    let operands = [q.tensor.address(q.offset)?, k.tensor.address(k.offset)?, weights];
    let work = product(q.len() + k.len());
    launch(format!("attention_scores_fwd_{dtype}"), tiles(k.len()), shared_bytes, &operands, work)?;
    let rows = q.len().div_ceil(SOFTMAX_ROWS);
    launch("attention_softmax_fwd_f32".into(), rows, 0, &[weights], moves(2 * scores.bytes()))?;
    let operands = [weights, v.tensor.address(v.offset)?, out.address(0)?];
    let work = product(k.len() + q.len());
    launch(format!("attention_values_fwd_{dtype}"), tiles(head_dim), shared_bytes, &operands, work)
}
