//! softmax(q k^T / sqrt(HD)) v per head, fused: scores never leave the cache (CPU) or the block (GPU).
//!
//! The CUDA kernel keeps a running maximum and sum over tiles of keys (FlashAttention-2, Dao, arXiv 2307.08691).

mod cpu;
mod packed;
mod unfused;

use super::linear::between;
use super::product::Kernel;
use super::{expect, round, shape_error, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

spec! {
    /// Geometry of `attention_fwd_*`.
    AttentionSpec {
        heads: i32, head_dim: i32, q_len: i32, kv_len: i32, q_stride: i32, kv_stride: i32, out_stride: i32, scale: f32,
    }
}
pub(super) const LAYOUT: super::SpecLayout = AttentionSpec::LAYOUT;
pub(super) use unfused::LAYOUT as UNFUSED_LAYOUT;
pub use unfused::attention_unfused;

/// Queries, keys or values of all heads: head h of token t of image b is the HD elements from `offset + h HD` of
/// row (b, t) of `tensor` [B, L, S].
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// [B, L, S].
    pub tensor: &'a Tensor,
    /// First element of a row that belongs to these heads.
    pub offset: usize,
}

impl Heads<'_> {
    fn len(&self) -> usize {
        self.tensor.dim(1)
    }
    fn stride(&self) -> usize {
        self.tensor.last_dim()
    }
    /// Whether `dim` elements from the offset on are in a row.
    fn holds(&self, dim: usize) -> bool {
        self.stride().checked_sub(self.offset).is_some_and(|rest| rest >= dim)
    }
}

/// Channels of the narrowest head that the kernels take.
pub const MIN_GPU_HEAD: usize = 32;
/// Queries per block of the f32 kernel.
const F32_QUERIES: usize = 32;
/// Queries per block of the tensor-core kernel.
const QUERIES: usize = 64;

/// out [B, LQ, NH HD] = softmax(q k^T / sqrt(HD)) v for each of `heads` heads; self-attention with q, k, v out of one
/// packed tensor, or cross-attention with k and v of another length.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, HD is not a multiple of 8 from 8 (CPU) or 32 (GPU) to 128, or on a
/// GPU an offset or row length is not a multiple of 8.
pub fn attention(device: &Device, q: Heads, k: Heads, v: Heads, heads: usize, out: &mut Tensor) -> Result<()> {
    let head_dim = check(q, k, v, heads, out)?;
    match device {
        Device::Cpu(device) => {
            let dtype = out.dtype();
            match dtype.packing(device) {
                Some(element) => packed::attention(&Kernel::new(device, element), q, k, v, heads, out)?,
                None => with_real!(dtype, T => cpu::attention::<T>(q, k, v, heads, out))?,
            }
            if dtype.rounds_on(device) { round(out) } else { Ok(()) }
        }
        Device::Cuda(cuda) => launch(cuda, q, k, v, heads, head_dim, out),
    }
}

/// Zeros [B, T, NH HD] for queries, keys and values out of one product, or for what [`attention`] hands on to another:
/// [`between`], where heads fill whole lines of it and tiles of rows belong to one image.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn around_attention(device: &Device, dtype: DType, shape: [usize; 3], heads: usize) -> Result<Tensor> {
    let packing = match device {
        Device::Cpu(cpu) => dtype.packing(cpu).map(|element| Kernel::new(cpu, element)),
        Device::Cuda(_) => None,
    };
    match packing {
        Some(kernel) if packed::can_pack(&kernel, shape, heads) => between(device, dtype, &shape),
        _ => Tensor::zeros(device, dtype, &shape),
    }
}

/// Refuses what does not fit together, and returns HD.
fn check(q: Heads, k: Heads, v: Heads, heads: usize, out: &Tensor) -> Result<usize> {
    let (images, dim, dtype) = (out.dim(0), out.last_dim(), out.dtype());
    let head_dim = dim / heads.max(1);
    if head_dim * heads != dim || !head_dim.is_multiple_of(8) || !(8..=128).contains(&head_dim) {
        return Err(Error::Runtime(format!(
            "attention: {heads} heads do not divide {dim} channels into a multiple of 8 up to 128"
        )));
    }
    expect("attention output", out, dtype, &[images, q.len(), dim])?;
    for (name, x) in [("q", q), ("k", k), ("v", v)] {
        if x.tensor.shape().len() != 3 || x.tensor.dim(0) != images || !x.holds(dim) {
            return Err(shape_error(
                &format!("attention {name}"),
                x.tensor.shape(),
                &[images, x.len(), x.offset.saturating_add(dim)],
            ));
        }
        expect(&format!("attention {name}"), x.tensor, dtype, x.tensor.shape())?;
    }
    if k.len() != v.len() || k.stride() != v.stride() {
        return Err(shape_error("attention v", v.tensor.shape(), k.tensor.shape()));
    }
    Ok(head_dim)
}

/// Refuses what the kernels cannot read.
fn check_gpu(operands: [Heads; 3], head_dim: usize) -> Result<()> {
    if head_dim < MIN_GPU_HEAD {
        return Err(Error::Runtime(format!(
            "attention on a GPU: head size {head_dim}, {MIN_GPU_HEAD} to 128 expected"
        )));
    }
    if let Some(x) = operands.iter().find(|x| x.offset % 8 != 0 || x.stride() % 8 != 0) {
        let (offset, stride) = (x.offset, x.stride());
        let message = format!("attention on a GPU: offset {offset} in rows of {stride}, multiples of 8 expected");
        return Err(Error::Runtime(message));
    }
    Ok(())
}

fn launch(cuda: &Cuda, q: Heads, k: Heads, v: Heads, heads: usize, head_dim: usize, out: &mut Tensor) -> Result<()> {
    check_gpu([q, k, v], head_dim)?;
    let spec = AttentionSpec {
        heads: to_i32(heads)?,
        head_dim: to_i32(head_dim)?,
        q_len: to_i32(q.len())?,
        kv_len: to_i32(k.len())?,
        q_stride: to_i32(q.stride())?,
        kv_stride: to_i32(k.stride())?,
        out_stride: to_i32(out.last_dim())?,
        scale: (1.0 / (head_dim as f64).sqrt()) as f32,
    };
    let dtype = out.dtype();
    // Shared memory as the head of `attention.cu` states it.
    let (kernel, queries, shared_bytes) = match dtype {
        DType::F32 => ("attention_fwd_f32".to_string(), F32_QUERIES, 640 * (head_dim + 4) + 4608),
        _ => {
            let padded = head_dim.next_multiple_of(16);
            (format!("attention_fwd_{dtype}_hd{padded}"), QUERIES, 512 * (padded + 8))
        }
    };
    // Of the rows of q, k and v the part that belongs to these heads, and as much again as of q to the output.
    let rows = out.dim(0) * 2 * (q.len() + k.len());
    let (bytes, products) = (rows * out.last_dim() * dtype.size(), out.dim(0) * q.len() * k.len());
    cuda.launch(&Launch {
        module: "attention",
        kernel,
        grid: [to_u32(q.len().div_ceil(queries))?, to_u32(heads)?, to_u32(out.dim(0))?],
        threads: 128,
        shared_bytes: to_u32(shared_bytes)?,
        pointers: &[
            q.tensor.address(q.offset)?,
            k.tensor.address(k.offset)?,
            v.tensor.address(v.offset)?,
            out.address(0)?,
        ],
        spec: bytemuck::bytes_of(&spec),
        work: Work { flops: 4 * (products * out.last_dim()) as u64, bytes: bytes as u64, weights: 0 },
        ..Launch::default()
    })
}
