//! Backward of a linear layer on the CPU through the packed products of the forward pass.

use std::ops::Range;

use rayon::prelude::*;

use crate::device::packed::{LANES, Line};
use crate::ops::backward::sums::accumulate;
use crate::ops::product::{
    Kernel, Tile, add_tile, pack_columns, pack_columns_as_rows, pack_row, pack_rows_of, put_tile,
};

/// Rows of dx of a task: whole tiles of every kernel, few enough to be packed in the second-level cache.
const INPUT_ROWS: usize = 96;
/// Words along the sum over the rows that stay in registers: a group of panels as long fits the first levels of the cache.
const STEPS: usize = 256;
/// Most rows of dw of a task.
const BLOCK_ROWS: usize = 192;
/// Most parts that the sum over the rows is cut into, and most numbers of all their sums.
const PARTS: usize = 8;
const PARTIAL_SUMS: usize = 1 << 22;

/// dx [rows, K] = dy [rows, N] w [N, K]. The sum of an element runs over N in one order, whatever the other rows.
pub(super) fn inputs(kernel: &Kernel, dy: &[f32], w: &[f32], dx: &mut [f32], [n, k]: [usize; 2]) {
    let (element, lines) = (kernel.element(), kernel.lines(n));
    let per_panel = lines * LANES;
    let mut panels = vec![Line::default(); k.div_ceil(LANES) * per_panel];
    panels.par_chunks_mut(per_panel).enumerate().for_each(|(panel, to)| {
        let first = panel * LANES;
        pack_columns(element, &w[first..], k, [LANES.min(k - first), n], to);
    });
    let tasks = dx.par_chunks_mut(INPUT_ROWS * k).zip(dy.par_chunks(INPUT_ROWS * n));
    let space = || (vec![Line::default(); INPUT_ROWS * lines], Tile::default());
    tasks.for_each_init(space, |(packed, out), (dx, dy)| {
        let rows = dx.len() / k;
        let tile_rows = kernel.tile_rows(rows);
        let packed = &mut packed[..rows * lines];
        for (tile, dy) in packed.chunks_mut(tile_rows * lines).zip(dy.chunks(tile_rows * n)) {
            pack_rows_of(tile, dy.len() / n, |row, to| pack_row(element, &dy[row * n..][..n], to));
        }
        for (group, panels) in panels.chunks(kernel.panels() * per_panel).enumerate() {
            let first = group * kernel.panels() * LANES;
            for (tile, dx) in packed.chunks(tile_rows * lines).zip(dx.chunks_mut(tile_rows * k)) {
                let products = kernel.multiply(tile, dx.len() / k, panels, out);
                put_tile(dx, k, first, products);
            }
        }
    });
}

/// dw [N, K] += dy^T x of dy [rows, N] and x [rows, K].
///
/// The sum over the rows is cut into parts, and these into lengths that are summed in registers, by the sizes alone; parts
/// are added in their order.
pub(super) fn weights(kernel: &Kernel, dy: &[f32], x: &[f32], dw: &mut [f32], [n, k]: [usize; 2]) {
    let (rows, length) = (x.len() / k, STEPS * kernel.element().per_word());
    let most = (PARTIAL_SUMS / (n * k)).clamp(1, PARTS);
    let per_part = rows.div_ceil(length).div_ceil(most) * length;
    let parts = rows.div_ceil(per_part);
    let blocks = (2 * rayon::current_num_threads()).div_ceil(parts).max(n.div_ceil(BLOCK_ROWS));
    let height = n.div_ceil(blocks).next_multiple_of(LANES);
    let product = Transposed { kernel, dy, x, n, k, length };
    let part = |part: usize, to: &mut [f32]| {
        let rows = part * per_part..rows.min((part + 1) * per_part);
        let blocks = to.par_chunks_mut(height * k).enumerate();
        blocks.for_each(|(block, to)| product.add(rows.clone(), block * height, to));
    };
    if parts == 1 {
        return part(0, dw);
    }
    let mut sums = vec![0f32; parts * n * k];
    sums.par_chunks_mut(n * k).enumerate().for_each(|(i, to)| part(i, to));
    dw.par_chunks_mut(4096).enumerate().for_each(|(chunk, dw)| {
        sums.chunks_exact(n * k).for_each(|sums| accumulate(dw, &sums[chunk * 4096..][..dw.len()]));
    });
}

/// dy^T x.
struct Transposed<'a> {
    kernel: &'a Kernel,
    dy: &'a [f32],
    x: &'a [f32],
    n: usize,
    k: usize,
    /// Rows that are summed in registers.
    length: usize,
}

impl Transposed<'_> {
    /// to [.., K] += the product's rows from `first` on, summed over `rows` of dy and x.
    fn add(&self, rows: Range<usize>, first: usize, to: &mut [f32]) {
        let &Self { kernel, dy, x, n, k, length } = self;
        let (element, height, width) = (kernel.element(), to.len() / k, kernel.panels() * LANES);
        let (tile_rows, most) = (kernel.tile_rows(height), kernel.lines(length));
        let mut left = vec![Line::default(); height * most];
        let mut right = vec![Line::default(); width * most];
        let mut out = Tile::default();
        for start in rows.clone().step_by(length) {
            let depth = length.min(rows.end - start);
            let lines = kernel.lines(depth);
            let left = &mut left[..height * lines];
            pack_columns_as_rows(element, &dy[start * n + first..], n, [height, depth], tile_rows, left);
            for column in (0..k).step_by(width) {
                let columns = width.min(k - column);
                let right = &mut right[..columns.div_ceil(LANES) * LANES * lines];
                pack_columns(element, &x[start * k + column..], k, [columns, depth], right);
                for (tile, to) in left.chunks(tile_rows * lines).zip(to.chunks_mut(tile_rows * k)) {
                    let products = kernel.multiply(tile, to.len() / k, right, &mut out);
                    add_tile(to, k, column, products);
                }
            }
        }
    }
}
