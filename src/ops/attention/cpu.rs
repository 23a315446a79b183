//! Attention on the CPU, head by head: keys and values are packed once, and the scores of a tile of queries are made, turned
//! into weights and used up while they are in the cache.

use gemm::Parallelism;
use rayon::prelude::*;

use super::Heads;
use crate::device::packed::{LANES, Line};
use crate::error::Result;
use crate::ops::linear::{matmul, matmul_t};
use crate::ops::product::{Kernel, Tile, cut, pack_columns, pack_row, pack_row_panels, pack_rows_of, pack_tile};
use crate::ops::reduce::{max, sum_of};
use crate::ops::simd::vectorized;
use crate::tensor::{Real, Tensor};

/// Most queries of a task of [`plain`]: enough to make up for packing the keys, few enough for the scores to stay in the cache.
const QUERIES: usize = 64;

/// out = softmax(q k^T / sqrt(HD)) v by packed products; shapes as [`super::attention`] has checked them.
pub(super) fn packed(kernel: &Kernel, q: Heads, k: Heads, v: Heads, heads: usize, out: &mut Tensor) -> Result<()> {
    let (images, q_len, kv_len, dim) = (out.dim(0), q.len(), k.len(), out.last_dim());
    let head_dim = dim / heads;
    let (qs, ks, vs) = (q.tensor.host::<f32>()?, k.tensor.host::<f32>()?, v.tensor.host::<f32>()?);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let element = kernel.element();
    let tile_rows = kernel.tile_rows(q_len);
    // Few heads for many threads are cut along the queries; each part packs the keys and values again.
    let tiles = q_len.div_ceil(tile_rows);
    let parts = (2 * rayon::current_num_threads()).div_ceil(images * heads).min(tiles);
    let per_part = tiles.div_ceil(parts);
    let part = |image: usize, i: usize| {
        let row = |tile: usize| image * q_len + (tile * tile_rows).min(q_len);
        row(i * per_part)..row((i + 1) * per_part)
    };
    let ranges = (0..images).flat_map(|image| (0..parts).map(move |i| part(image, i)));
    cut(out.host_mut::<f32>()?, dim, ranges, head_dim).into_par_iter().for_each(|mut out| {
        if out.rows.is_empty() {
            return;
        }
        let (image, head) = (out.rows.start / q_len, out.columns.start / head_dim);
        let from = |x: Heads, token: usize| (image * x.len() + token) * x.stride() + x.offset + head * head_dim;
        let mut keys = vec![Line::default(); kv_len.div_ceil(LANES) * kernel.lines(head_dim) * LANES];
        pack_row_panels(element, &ks[from(k, 0)..], k.stride(), [kv_len, head_dim], &mut keys);
        let mut values = vec![Line::default(); head_dim.div_ceil(LANES) * kernel.lines(kv_len) * LANES];
        pack_columns(element, &vs[from(v, 0)..], v.stride(), [head_dim, kv_len], &mut values);
        let mut queries = vec![Line::default(); tile_rows * kernel.lines(head_dim)];
        let mut weights = vec![Line::default(); tile_rows * kernel.lines(kv_len)];
        let width = kv_len.next_multiple_of(LANES);
        let mut scores = vec![0f32; tile_rows * width];
        let mut tile = Tile::default();
        for first in out.rows.clone().step_by(tile_rows) {
            let rows = tile_rows.min(out.rows.end - first);
            let token = first - image * q_len;
            let queries = &mut queries[..rows * kernel.lines(head_dim)];
            pack_rows_of(queries, rows, |row, to| {
                pack_row(element, &qs[from(q, token + row)..][..head_dim], to);
            });
            kernel.multiply_all(queries, rows, &keys, &mut tile, |column, products, stride| {
                put_columns(&mut scores, width, column, products, stride);
            });
            let mut norms = [0f32; 32];
            let weights = &mut weights[..rows * kernel.lines(kv_len)];
            for (scores, norm) in scores.chunks_exact_mut(width).zip(&mut norms[..rows]) {
                *norm = softmax(&mut scores[..kv_len], scale);
            }
            pack_tile(element, &scores[..rows * width], width, kv_len, weights);
            kernel.multiply_all(weights, rows, &values, &mut tile, |column, products, stride| {
                let width = stride.min(head_dim - column);
                for (row, products) in products.chunks_exact(stride).enumerate() {
                    let out = &mut out.row(first + row)[column..][..width];
                    out.iter_mut().zip(products).for_each(|(out, &sum)| *out = sum * norms[row]);
                }
            });
        }
    });
    Ok(())
}

vectorized! { plain
    /// Columns from `column` on of rows of `width` = rows of `stride`, all of them.
    fn put_columns(to: &mut [f32], width: usize, column: usize, from: &[f32], stride: usize) {
        for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(stride)) {
            // Panels of 16: by vectors, where a call of `memmove` would take longer than the copy.
            let (to, _) = to[column..][..stride].as_chunks_mut::<LANES>();
            for (to, from) in to.iter_mut().zip(from.as_chunks::<LANES>().0) {
                *to = *from;
            }
        }
    }
}

/// The same through `gemm`.
pub(super) fn plain<T: Real>(q: Heads, k: Heads, v: Heads, heads: usize, out: &mut Tensor) -> Result<()> {
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
    fn softmax(row: &mut [T], scale: T) -> T {
        let top = max(row);
        row.iter_mut().for_each(|s| *s = (scale * (*s - top)).exp_of_nonpositive());
        T::from_f64(1.0) / sum_of(row, |p| p)
    }
}

vectorized! {
    /// The first `head_dim` elements of each row of `out` [rows, stride] *= norms [rows].
    fn scale_rows(out: &mut [T], stride: usize, head_dim: usize, norms: &[T]) {
        for (row, &norm) in norms.iter().enumerate() {
            out[row * stride..][..head_dim].iter_mut().for_each(|o| *o = *o * norm);
        }
    }
}
