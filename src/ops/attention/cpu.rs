//! Attention on the CPU through `gemm`: in f64, and on processors without vector instructions of our own.

use gemm::Parallelism;
use rayon::prelude::*;

use super::Heads;
use crate::error::Result;
use crate::ops::linear::{matmul, matmul_t};
use crate::ops::reduce::{max, sum_of};
use crate::ops::simd::vectorized;
use crate::tensor::{Real, Tensor};

/// Most queries of a task: enough to make up for packing the keys, few enough for the scores to stay in the cache.
const QUERIES: usize = 64;

/// out = softmax(q k^T / sqrt(HD)) v; shapes as [`super::attention`] has checked them.
pub(super) fn attention<T: Real>(q: Heads, k: Heads, v: Heads, heads: usize, out: &mut Tensor) -> Result<()> {
    let (q_len, kv_len, dim) = (q.len(), k.len(), out.last_dim());
    let head_dim = dim / heads;
    let (q_stride, kv_stride) = (q.stride(), k.stride());
    let (qs, ks, vs) = (q.tensor.host::<T>()?, k.tensor.host::<T>()?, v.tensor.host::<T>()?);
    let scale = T::from_f64(1.0 / (head_dim as f64).sqrt());
    // Tiles of about one size, which depends on the length alone.
    let queries_per_tile = q_len.div_ceil(q_len.div_ceil(QUERIES));
    // Image by image, so that tiles never straddle two images.
    let tasks: Vec<(usize, usize, &mut [T])> = out
        .host_mut::<T>()?
        .chunks_mut(q_len * dim)
        .enumerate()
        .flat_map(|(b, image)| image.chunks_mut(queries_per_tile * dim).enumerate().map(move |(tile, o)| (b, tile, o)))
        .collect();
    tasks.into_par_iter().for_each(|(b, tile, out)| {
        let rows = out.len() / dim;
        let mut scores = vec![T::default(); rows * kv_len];
        for head in 0..heads {
            let at = |x: Heads, token: usize| (b * x.len() + token) * x.stride() + x.offset + head * head_dim;
            let queries = (&qs[at(q, tile * queries_per_tile)..], q_stride as isize);
            let keys = (&ks[at(k, 0)..], kv_stride as isize);
            let y = (&mut scores[..], kv_len as isize);
            matmul_t(rows, kv_len, head_dim, y, queries, keys, scale, Parallelism::None);
            let mut norms = [T::default(); QUERIES];
            for (row, norm) in scores.chunks_exact_mut(kv_len).zip(&mut norms) {
                *norm = softmax(row, T::from_f64(1.0));
            }
            let out = &mut out[head * head_dim..];
            let values = (&vs[at(v, 0)..], kv_stride as isize, 1);
            let weights = (&scores[..], kv_len as isize, 1);
            let y = (&mut *out, dim as isize);
            matmul(rows, head_dim, kv_len, y, weights, values, T::from_f64(1.0), Parallelism::None);
            scale_rows(out, dim, head_dim, &norms[..rows]);
        }
    });
    Ok(())
}

vectorized! {
    /// row = e^(scale (score - maximum)); returns 1 / its sum.
    pub(super) fn softmax(row: &mut [T], scale: T) -> T {
        let top = max(row);
        row.iter_mut().for_each(|s| *s = (scale * (*s - top)).exp_of_nonpositive());
        T::from_f64(1.0) / sum_of(row, |p| p)
    }
}

vectorized! {
    /// The first `head_dim` elements of each row of `out` [rows, stride] *= norms [rows].
    pub(super) fn scale_rows(out: &mut [T], stride: usize, head_dim: usize, norms: &[T]) {
        for (row, &norm) in norms.iter().enumerate() {
            out[row * stride..][..head_dim].iter_mut().for_each(|o| *o = *o * norm);
        }
    }
}
