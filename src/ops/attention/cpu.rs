//! Attention on the CPU, head by head: keys and values are packed once, and the scores of a tile of queries are made, turned
//! into weights and used up while they are in the cache.

use gemm::Parallelism;
use rayon::prelude::*;

use super::Heads;
use crate::device::packed::{Element, LANES, Line};
use crate::error::{Error, Result};
use crate::ops::linear::{matmul, matmul_t};
use crate::ops::product::{
    Block, Destination, Kernel, Registers, cut, cut_packed, pack_columns, pack_exponentials, pack_row, pack_row_panels,
    pack_rows_of, pack_tile,
};
use crate::ops::reduce::{max, sum_of};
use crate::ops::simd::vectorized;
use crate::tensor::{Real, Tensor};

/// Most queries of a task of [`plain`]: enough to make up for packing the keys, few enough for the scores to stay in the cache.
const QUERIES: usize = 64;

/// Whether the product behind the attention can read its output [images, q_len, D] packed: tiles of rows belong to one image,
/// and lines to one head.
pub(super) fn can_pack(kernel: &Kernel, [images, q_len, dim]: [usize; 3], heads: usize) -> bool {
    let tile_rows = kernel.tile_rows(images * q_len);
    let whole_tiles = images == 1 || tile_rows == kernel.tile_rows(q_len) && q_len.is_multiple_of(tile_rows);
    whole_tiles && (dim / heads).is_multiple_of(LANES * kernel.element().per_word())
}

/// out = softmax(q k^T / sqrt(HD)) v by packed products; shapes as [`super::attention`] has checked them.
pub(super) fn packed(kernel: &Kernel, q: Heads, k: Heads, v: Heads, heads: usize, out: &mut Tensor) -> Result<()> {
    let (images, q_len, dim) = (out.dim(0), q.len(), out.last_dim());
    let head_dim = dim / heads;
    let [qs, ks, vs] = [q.tensor.host::<f32>()?, k.tensor.host::<f32>()?, v.tensor.host::<f32>()?];
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
    let attend = Attend { kernel, q: (q, qs), k: (k, ks), v: (v, vs), head_dim };
    let element = kernel.element();
    match out.packed_rows_mut() {
        Some(out) if (out.element(), out.tile_rows()) == (element, tile_rows) => {
            let blocks = cut_packed(out, ranges, head_dim);
            attend.heads(blocks, |first, values, stride, to| {
                pack_tile(element, values, stride, head_dim, to.tile(first));
            });
        }
        Some(_) => {
            return Err(Error::Runtime("attention: the rows of the output are packed for another kernel".into()));
        }
        None => {
            let blocks = cut(out.host_mut::<f32>()?, dim, ranges, head_dim);
            attend.heads(blocks, |first, values, stride, to| put_rows(values, stride, first, to));
        }
    }
    Ok(())
}

/// The operands of attention by packed products.
struct Attend<'a> {
    kernel: &'a Kernel,
    q: (Heads<'a>, &'a [f32]),
    k: (Heads<'a>, &'a [f32]),
    v: (Heads<'a>, &'a [f32]),
    head_dim: usize,
}

/// What a thread needs for one head.
struct Scratch {
    /// Panels of K and V.
    keys: Vec<Line>,
    values: Vec<Line>,
    /// A tile of queries, and their weights.
    queries: Vec<Line>,
    weights: Vec<Line>,
    /// Their scores and their values.
    scores: Vec<f32>,
    sums: Vec<f32>,
}

impl Attend<'_> {
    /// Each of the `blocks`, queries of one image by the columns of one head, is a task. `finish(first, values, stride, block)`
    /// is given the values of a tile of rows, [.., stride], to write from row `first` on.
    fn heads<D: Destination>(&self, blocks: Vec<D>, finish: impl Fn(usize, &[f32], usize, &mut D) + Sync) {
        let &Self { kernel, q, k, v, head_dim } = self;
        let (q_len, kv_len, element) = (q.0.len(), k.0.len(), kernel.element());
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (tile_rows, head_lines, kv_lines) = (kernel.tile_rows(q_len), kernel.lines(head_dim), kernel.lines(kv_len));
        // A vector more than the keys take: rows whole pages apart would share the sets of the cache.
        let width = kv_len.next_multiple_of(LANES) + LANES;
        let stride = head_dim.next_multiple_of(LANES);
        let scratch = || Scratch {
            keys: vec![Line::default(); kv_len.div_ceil(LANES) * head_lines * LANES],
            values: vec![Line::default(); head_dim.div_ceil(LANES) * kv_lines * LANES],
            queries: vec![Line::default(); tile_rows * head_lines],
            weights: vec![Line::default(); tile_rows * kv_lines],
            scores: vec![0.0; tile_rows * width],
            sums: vec![0.0; tile_rows * stride],
        };
        blocks.into_par_iter().for_each_init(scratch, |scratch, mut block| {
            let Scratch { keys, values, queries: packed, weights, scores, sums } = scratch;
            let queries = block.rows();
            if queries.is_empty() {
                return;
            }
            let (image, head) = (queries.start / q_len, block.columns().start / head_dim);
            let at = |x: Heads, token: usize| (image * x.len() + token) * x.stride() + x.offset + head * head_dim;
            pack_row_panels(element, &k.1[at(k.0, 0)..], k.0.stride(), [kv_len, head_dim], keys);
            pack_columns(element, &v.1[at(v.0, 0)..], v.0.stride(), [head_dim, kv_len], values);
            let registers = Registers;
            for first in queries.clone().step_by(tile_rows) {
                let rows = tile_rows.min(queries.end - first);
                let (packed, weights) = (&mut packed[..rows * head_lines], &mut weights[..rows * kv_lines]);
                pack_rows_of(packed, rows, |row, to| {
                    pack_row(element, &q.1[at(q.0, first - image * q_len + row)..][..head_dim], to);
                });
                kernel.multiply_all(packed, rows, keys, scores, width, &registers);
                let norms = &mut [0f32; 32][..rows];
                softmax_tile(element, (&mut scores[..rows * width], width), kv_len, scale, weights, norms);
                kernel.multiply_all(weights, rows, values, sums, stride, &registers);
                scale_rows(sums, stride, head_dim, norms);
                finish(first, &sums[..rows * stride], stride, &mut block);
            }
        });
    }
}

vectorized! { plain
    /// The block's columns of its rows from `first` on = those of rows of `stride`.
    fn put_rows(from: &[f32], stride: usize, first: usize, to: &mut Block<f32>) {
        for (row, from) in (first..).zip(from.chunks_exact(stride)) {
            // By vectors, where a call of `memmove` would take longer than the copy.
            let (to, to_rest) = to.row(row).as_chunks_mut::<LANES>();
            let (whole, rest) = from.split_at(to.len() * LANES);
            for (to, from) in to.iter_mut().zip(whole.as_chunks::<LANES>().0) {
                *to = *from;
            }
            to_rest.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
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

/// Packs weights = e^(scale (score - maximum)) of the first `kv_len` scores of rows of `stride`, which are overwritten, and
/// writes 1 / the sum of each row to `norms`.
fn softmax_tile(
    element: Element,
    (scores, stride): (&mut [f32], usize),
    kv_len: usize,
    scale: f32,
    weights: &mut [Line],
    norms: &mut [f32],
) {
    if element == Element::Bf16Pair {
        pack_exponentials(scores, stride, kv_len, scale * std::f32::consts::LOG2_E, weights, norms);
        norms.iter_mut().for_each(|norm| *norm = 1.0 / *norm);
        return;
    }
    for (scores, norm) in scores.chunks_exact_mut(stride).zip(norms) {
        *norm = softmax(&mut scores[..kv_len], scale);
    }
    pack_tile(element, scores, stride, kv_len, weights);
}

vectorized! {
    /// The first `head_dim` elements of each row of `out` [rows, stride] *= norms [rows].
    fn scale_rows(out: &mut [T], stride: usize, head_dim: usize, norms: &[T]) {
        for (row, &norm) in norms.iter().enumerate() {
            out[row * stride..][..head_dim].iter_mut().for_each(|o| *o = *o * norm);
        }
    }
}
