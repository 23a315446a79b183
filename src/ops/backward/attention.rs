//! Self-attention that leaves the logarithm of each row's sum, and its backward, which computes the probabilities again
//! from it (FlashAttention-2, Dao, arXiv 2307.08691): nothing of the size of the scores is kept.
//!
//! With s = q k^T / sqrt(HD), p = e^(s - lse) and o = p v: dv = p^T do, dp = do v^T, delta = rowsum(do o),
//! ds = p (dp - delta) / sqrt(HD), dq = ds k, dk = ds^T q.

mod gpu;

use gemm::Parallelism;
use rayon::prelude::*;

use super::product::matmul_add;
use super::sums::wanted;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::linear::{matmul, matmul_t};
use crate::ops::reduce::{dot, max, sum_of};
use crate::ops::simd::vectorized;
use crate::ops::{expect, round_on, with_real};
use crate::tensor::{Real, Tensor};

pub(in crate::ops) use gpu::LAYOUT;

/// Most queries of a step on the CPU: the scores of a step stay in the cache.
const CPU_QUERIES: usize = 64;

/// Sizes of a packed self-attention.
#[derive(Clone, Copy)]
struct Geometry {
    images: usize,
    tokens: usize,
    heads: usize,
    head_dim: usize,
}

impl Geometry {
    fn dim(&self) -> usize {
        self.heads * self.head_dim
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Queries of a step: about as many in each, by the length alone.
    fn step(&self) -> usize {
        self.tokens.div_ceil(self.tokens.div_ceil(CPU_QUERIES))
    }

    fn new(qkv: &Tensor, heads: usize, out: &Tensor, lse: &Tensor) -> Result<Self> {
        let &[images, tokens, dim] = out.shape() else {
            return Err(crate::ops::shape_error("attention output", out.shape(), &[0, 0, 0]));
        };
        let head_dim = dim / heads.max(1);
        if head_dim * heads != dim || !head_dim.is_multiple_of(8) || !(8..=128).contains(&head_dim) {
            return Err(Error::Runtime(format!(
                "attention: {heads} heads do not divide {dim} channels into a multiple of 8 up to 128"
            )));
        }
        expect("attention qkv", qkv, out.dtype(), &[images, tokens, 3 * dim])?;
        expect("attention lse", lse, out.dtype().wide(), &[images, heads, tokens])?;
        Ok(Self { images, tokens, heads, head_dim })
    }
}

/// out [B, T, D] = softmax(q k^T / sqrt(HD)) v for each of `heads` heads, with q, k and v packed in qkv [B, T, 3 D], and
/// lse [B, NH, T] (wide type) = log of the sum of e^score of each row.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or HD is not a multiple of 8 from 8 (CPU) or 32 (GPU) to 128.
pub fn attention_with_lse(
    device: &Device,
    qkv: &Tensor,
    heads: usize,
    out: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let g = Geometry::new(qkv, heads, out, lse)?;
    if out.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(cpu) => {
            with_real!(out.dtype(), T => {
                let rows = forward(g, qkv.host::<T>()?, out.host_mut::<T>()?);
                let lse = lse.host_mut::<T>()?;
                for (i, rows) in rows.iter().enumerate() {
                    let (image, first) = (i / g.tokens.div_ceil(g.step()), i % g.tokens.div_ceil(g.step()) * g.step());
                    for (head, rows) in rows.chunks_exact(rows.len() / heads).enumerate() {
                        lse[(image * heads + head) * g.tokens + first..][..rows.len()].copy_from_slice(rows);
                    }
                }
            });
            round_on(cpu, out)
        }
        Device::Cuda(cuda) => gpu::forward(cuda, g, qkv, out, lse),
    }
}

/// dqkv [B, T, 3 D] from dout [B, T, D] and what [`attention_with_lse`] read and left. `scratch` is of the wide type, of at
/// least B NH T elements.
///
/// # Errors
/// As [`attention_with_lse`]'s.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    device: &Device,
    qkv: &Tensor,
    heads: usize,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    dqkv: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    let g = Geometry::new(qkv, heads, out, lse)?;
    expect("attention dout", dout, out.dtype(), out.shape())?;
    expect("attention dqkv", dqkv, out.dtype(), qkv.shape())?;
    wanted(scratch, lse.len(), out)?;
    if out.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(cpu) => {
            with_real!(out.dtype(), T => {
                let (qkv, out, lse, dout) = (qkv.host::<T>()?, out.host::<T>()?, lse.host::<T>()?, dout.host::<T>()?);
                let (per_image, dim) = (g.tokens * g.dim(), g.dim());
                dqkv.host_mut::<T>()?.par_chunks_mut(3 * per_image).enumerate().for_each(|(image, dqkv)| {
                    let qkv = &qkv[image * 3 * per_image..][..3 * per_image];
                    let (out, dout) = (&out[image * per_image..][..per_image], &dout[image * per_image..][..per_image]);
                    let heads: Vec<Vec<T>> = (0..heads).into_par_iter().map(|head| {
                        let lse = &lse[(image * heads + head) * g.tokens..][..g.tokens];
                        head_backward(g, head, qkv, out, lse, dout)
                    }).collect();
                    // A head's dq, dk and dv to their columns.
                    for (head, grads) in heads.iter().enumerate() {
                        for (part, grads) in grads.chunks_exact(g.tokens * g.head_dim).enumerate() {
                            for (row, grad) in dqkv.chunks_exact_mut(3 * dim).zip(grads.chunks_exact(g.head_dim)) {
                                row[part * dim + head * g.head_dim..][..g.head_dim].copy_from_slice(grad);
                            }
                        }
                    }
                });
            });
            round_on(cpu, dqkv)
        }
        Device::Cuda(cuda) => gpu::backward(cuda, g, qkv, out, lse, dout, dqkv, scratch),
    }
}

/// Writes out and returns lse, step by step of queries: [NH, rows of the step].
fn forward<T: Real>(g: Geometry, qkv: &[T], out: &mut [T]) -> Vec<Vec<T>> {
    let (dim, tokens) = (g.dim(), g.tokens);
    let stride = 3 * dim as isize;
    let tasks: Vec<(usize, usize, &mut [T])> = out
        .chunks_mut(tokens * dim)
        .enumerate()
        .flat_map(|(b, image)| image.chunks_mut(g.step() * dim).enumerate().map(move |(step, o)| (b, step, o)))
        .collect();
    let task = |(image, step, out): (usize, usize, &mut [T])| {
        let rows = out.len() / dim;
        let qkv = &qkv[image * tokens * 3 * dim..];
        let mut scores = vec![T::default(); rows * tokens];
        let mut lse = vec![T::default(); g.heads * rows];
        for head in 0..g.heads {
            let part = |part: usize, token: usize| &qkv[token * 3 * dim + part * dim + head * g.head_dim..];
            let y = (&mut scores[..], tokens as isize);
            let (q, k) = ((part(0, step * g.step()), stride), (part(1, 0), stride));
            matmul_t(rows, tokens, g.head_dim, y, q, k, T::from_f64(g.scale()), Parallelism::None);
            let norms = &mut lse[head * rows..][..rows];
            softmax(&mut scores, tokens, norms);
            let (p, v) = ((&scores[..], tokens as isize, 1), (part(2, 0), stride, 1));
            let y = (&mut out[head * g.head_dim..], dim as isize);
            matmul(rows, g.head_dim, tokens, y, p, v, T::from_f64(1.0), Parallelism::None);
        }
        lse
    };
    tasks.into_par_iter().map(task).collect()
}

/// dq, dk and dv of one head of one image, [3, T, HD].
fn head_backward<T: Real>(g: Geometry, head: usize, qkv: &[T], out: &[T], lse: &[T], dout: &[T]) -> Vec<T> {
    let (dim, tokens, hd) = (g.dim(), g.tokens, g.head_dim);
    let (stride, scale, one) = (3 * dim, T::from_f64(g.scale()), T::from_f64(1.0));
    let part = |part: usize, token: usize| &qkv[token * stride + part * dim + head * hd..];
    let mut grads = vec![T::default(); 3 * tokens * hd];
    let (dq, rest) = grads.split_at_mut(tokens * hd);
    let (dk, dv) = rest.split_at_mut(tokens * hd);
    let mut p = vec![T::default(); g.step() * tokens];
    let mut ds = p.clone();
    let (wide, alone) = (stride as isize, Parallelism::None);
    for first in (0..tokens).step_by(g.step()) {
        let rows = g.step().min(tokens - first);
        let (p, ds) = (&mut p[..rows * tokens], &mut ds[..rows * tokens]);
        let (q, k, v) = (part(0, first), part(1, 0), part(2, 0));
        let dout_rows = &dout[first * dim + head * hd..];
        let columns = tokens as isize;
        matmul_t(rows, tokens, hd, (&mut *p, columns), (q, wide), (k, wide), scale, alone);
        matmul_t(rows, tokens, hd, (&mut *ds, columns), (dout_rows, dim as isize), (v, wide), one, alone);
        for (row, (p, ds)) in p.chunks_exact_mut(tokens).zip(ds.chunks_exact_mut(tokens)).enumerate() {
            let at = (first + row) * dim + head * hd;
            let delta = dot(&out[at..][..hd], &dout[at..][..hd]);
            slopes(p, ds, lse[first + row], delta, scale);
        }
        let transposed = |x| (x, 1, tokens);
        matmul_add([tokens, hd, rows], (dv, hd), transposed(&*p), (dout_rows, dim, 1), alone);
        matmul_add([tokens, hd, rows], (dk, hd), transposed(&*ds), (q, stride, 1), alone);
        let k = (k, wide, 1);
        matmul(rows, hd, tokens, (&mut dq[first * hd..], hd as isize), (&*ds, columns, 1), k, one, alone);
    }
    grads
}

vectorized! {
    /// scores [rows, L] = probabilities; lse [rows] = log of each row's sum of e^score.
    fn softmax(scores: &mut [T], len: usize, lse: &mut [T]) {
        for (row, lse) in scores.chunks_exact_mut(len).zip(lse) {
            let top = max(row);
            row.iter_mut().for_each(|s| *s = (*s - top).exp());
            let sum = sum_of(row, |p| p);
            let norm = T::from_f64(1.0) / sum;
            row.iter_mut().for_each(|p| *p = *p * norm);
            *lse = top + T::from_f64(sum.to_f64().ln());
        }
    }
}

vectorized! {
    /// p = e^(p - lse); ds = p (ds - delta) scale, over one row.
    fn slopes(p: &mut [T], ds: &mut [T], lse: T, delta: T, scale: T) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = (*p - lse).exp();
            *ds = *p * (*ds - delta) * scale;
        }
    }
}
