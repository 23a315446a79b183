//! Attention on the CPU by packed products, head by head: keys and values are packed once, and the scores of a tile of queries
//! are made, turned into weights and used up while they are in the cache.

use rayon::prelude::*;

use super::Heads;
use super::cpu::{scale_rows, softmax};
use crate::device::packed::{Element, LANES, Line, PackedRows};
use crate::error::{Error, Result};
use crate::ops::product::{
    Block, Destination, Kernel, Registers, cut, cut_packed, pack_columns, pack_exponentials, pack_row, pack_row_panels,
    pack_rows_of, pack_tile, panels_of_columns, panels_of_rows,
};
use crate::ops::simd::vectorized;
use crate::tensor::Tensor;

/// Whether queries, keys, values and output [images, q_len, D] can be packed rows: tiles of rows belong to one image, and lines to
/// one head.
pub(super) fn can_pack(kernel: &Kernel, [images, q_len, dim]: [usize; 3], heads: usize) -> bool {
    let tile_rows = kernel.tile_rows(images * q_len);
    let whole_tiles = images == 1 || tile_rows == kernel.tile_rows(q_len) && q_len.is_multiple_of(tile_rows);
    whole_tiles && (dim / heads).is_multiple_of(LANES * kernel.element().per_word())
}

/// out = softmax(q k^T / sqrt(HD)) v by packed products; shapes as [`super::attention`] has checked them.
pub(super) fn attention(kernel: &Kernel, q: Heads, k: Heads, v: Heads, heads: usize, out: &mut Tensor) -> Result<()> {
    let (images, q_len, kv_len, dim) = (out.dim(0), q.len(), k.len(), out.last_dim());
    let head_dim = dim / heads;
    let [q, k, v] = [Rows::new(kernel, q, head_dim)?, Rows::new(kernel, k, head_dim)?, Rows::new(kernel, v, head_dim)?];
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
    let attend = Attend { kernel, q, k, v, q_len, kv_len, head_dim };
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

/// Queries, keys or values of all heads.
#[derive(Clone, Copy)]
struct Rows<'a> {
    heads: Heads<'a>,
    values: Values<'a>,
}

#[derive(Clone, Copy)]
enum Values<'a> {
    Plain(&'a [f32]),
    Packed(&'a PackedRows),
}

impl<'a> Rows<'a> {
    fn new(kernel: &Kernel, heads: Heads<'a>, head_dim: usize) -> Result<Self> {
        let values = match heads.tensor.packed_rows() {
            None => Values::Plain(heads.tensor.host::<f32>()?),
            Some(rows) => {
                let per_line = LANES * kernel.element().per_word();
                let tile_rows = kernel.tile_rows(heads.tensor.dim(0) * heads.len());
                let fits = rows.element() == kernel.element()
                    && rows.tile_rows() == tile_rows
                    && can_pack(kernel, [heads.tensor.dim(0), heads.len(), head_dim], 1)
                    && heads.offset.is_multiple_of(per_line);
                if !fits {
                    return Err(Error::Runtime("attention: rows that are packed for another product".into()));
                }
                Values::Packed(rows)
            }
        };
        Ok(Self { heads, values })
    }

    /// The numbers of `image` and `head` from row `token` on, if the rows are plain.
    fn plain(&self, values: &'a [f32], [image, head]: [usize; 2], token: usize, head_dim: usize) -> &'a [f32] {
        let Heads { offset, .. } = self.heads;
        &values[(image * self.heads.len() + token) * self.heads.stride() + offset + head * head_dim..]
    }
}

/// The operands of attention by packed products.
struct Attend<'a> {
    kernel: &'a Kernel,
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    q_len: usize,
    kv_len: usize,
    head_dim: usize,
}

/// What a thread needs for one head.
struct Scratch {
    /// Panels of K and V.
    keys: Vec<Line>,
    values: Vec<Line>,
    /// A tile of queries where they are not packed, and the weights of one.
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
        let &Self { kernel, q, q_len, kv_len, head_dim, .. } = self;
        let element = kernel.element();
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
            let of = [queries.start / q_len, block.columns().start / head_dim];
            self.pack_keys(of, keys);
            self.pack_values(of, values);
            let registers = Registers;
            for first in queries.clone().step_by(tile_rows) {
                let rows = tile_rows.min(queries.end - first);
                let weights = &mut weights[..rows * kv_lines];
                let queries = match q.values {
                    Values::Packed(packed) => packed.tile(first, self.line(q, of[1]), head_lines),
                    Values::Plain(x) => {
                        let packed = &mut packed[..rows * head_lines];
                        pack_rows_of(packed, rows, |row, to| {
                            let token = first - of[0] * q_len + row;
                            pack_row(element, &q.plain(x, of, token, head_dim)[..head_dim], to);
                        });
                        &*packed
                    }
                };
                kernel.multiply_all(queries, rows, keys, scores, width, &registers);
                let norms = &mut [0f32; 32][..rows];
                softmax_tile(element, (&mut scores[..rows * width], width), kv_len, scale, weights, norms);
                kernel.multiply_all(weights, rows, values, sums, stride, &registers);
                scale_rows(sums, stride, head_dim, norms);
                finish(first, &sums[..rows * stride], stride, &mut block);
            }
        });
    }

    /// The first line of a head in packed rows.
    fn line(&self, rows: Rows, head: usize) -> usize {
        (rows.heads.offset + head * self.head_dim) / (LANES * self.kernel.element().per_word())
    }

    /// The keys of an image and head as panels.
    fn pack_keys(&self, of: [usize; 2], panels: &mut [Line]) {
        let &Self { kernel, k, kv_len, head_dim, .. } = self;
        match k.values {
            Values::Plain(x) => {
                let keys = k.plain(x, of, 0, head_dim);
                pack_row_panels(kernel.element(), keys, k.heads.stride(), [kv_len, head_dim], panels);
            }
            Values::Packed(rows) => {
                let (first, line) = (of[0] * kv_len, self.line(k, of[1]));
                panels_of_rows(rows, first..first + kv_len, line..line + kernel.lines(head_dim), panels);
            }
        }
    }

    /// The values of an image and head as panels.
    fn pack_values(&self, of: [usize; 2], panels: &mut [Line]) {
        let &Self { kernel, v, kv_len, head_dim, .. } = self;
        match v.values {
            Values::Plain(x) => {
                let values = v.plain(x, of, 0, head_dim);
                pack_columns(kernel.element(), values, v.heads.stride(), [head_dim, kv_len], panels);
            }
            Values::Packed(rows) => {
                let (first, line) = (of[0] * kv_len, self.line(v, of[1]));
                panels_of_columns(rows, first..first + kv_len, line..line + kernel.lines(head_dim), panels);
            }
        }
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
