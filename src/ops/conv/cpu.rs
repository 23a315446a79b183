//! Convolutions on the CPU as products. A few rows of the matrix of patches are packed at a time, by the thread that multiplies
//! them, into a part of the workspace that is its own; in f64 and without vector instructions `gemm` does the products.
//!
//! The sum of an output runs over (tap row, tap column, channel) in one order, whatever the rows and the threads.

use std::ops::Range;
use std::sync::Mutex;

use gemm::Parallelism;
use rayon::prelude::*;

use super::patches::Patches;
use crate::device::packed::{LANES, Line, PackedMatrix};
use crate::ops::linear::matmul_t;
use crate::ops::product::{Block, Kernel, Tile, cut, pack_rows_of};
use crate::tensor::Real;

/// Outputs that share a weight and read the same taps: a group and a phase.
pub(super) struct Part<'a, T, W> {
    pub patches: Patches<'a, T>,
    /// [N / groups, K].
    pub weight: W,
}

/// y [rows, n]; of each group its parts, one a phase.
pub(super) struct Products<'a, T, W> {
    pub groups: Vec<Vec<Part<'a, T, W>>>,
    pub rows: usize,
    /// Rows of an image.
    pub pixels: usize,
    pub n: usize,
}

impl<T: Real, W> Products<'_, T, W> {
    fn width(&self) -> usize {
        self.n / self.groups.len()
    }

    fn part_of(&self, block: &Block<T>) -> &[Part<'_, T, W>] {
        &self.groups[block.columns.start / self.width()]
    }

    fn k(&self) -> usize {
        longest(self.groups.iter().flatten().map(|part| part.patches.k()))
    }
}

fn longest(k: impl Iterator<Item = usize>) -> usize {
    k.max().unwrap_or(0)
}

/// Packed rows of a convolution that are all packed before the product: 1 MiB.
const ALL_LINES: usize = 16384;
/// Packed rows that a thread has at a time, where the weights fill the second-level cache: 384 KiB.
const SOME_LINES: usize = 6144;
/// Weights that stay in the second-level cache beside all else: 256 KiB.
const SMALL_WEIGHT: usize = 4096;
/// Rows of one call of `gemm`.
const GEMM_ROWS: usize = 64;

/// Lines of a thread's part of the workspace for rows of `k` numbers.
fn lines_of_thread(kernel: &Kernel, k: usize) -> usize {
    SOME_LINES.max(kernel.tile_rows(usize::MAX / 2) * kernel.lines(k))
}

/// Lines that [`packed`] asks for.
pub(super) fn packed_workspace(kernel: &Kernel, rows: usize, k: usize, threads: usize) -> usize {
    let all = rows.saturating_mul(kernel.lines(k));
    let apart = threads * lines_of_thread(kernel, k);
    if all <= ALL_LINES { all.max(apart) } else { apart }
}

/// Numbers that [`plain`] asks for, `width` columns to a group.
pub(super) fn plain_workspace(k: usize, width: usize, threads: usize) -> usize {
    threads * GEMM_ROWS * (k + width)
}

/// Products on packed operands. `finish(row, column, sums, y)` is given the columns from `column` on of the sums of each row,
/// and the same columns of y [rows, n] to write. False: the space is too small.
pub(super) fn packed(
    kernel: &Kernel,
    p: &Products<f32, &PackedMatrix>,
    y: &mut [f32],
    space: &mut [Line],
    finish: impl Fn(usize, usize, &mut [f32], &mut [f32]) + Sync,
) -> bool {
    let lines = kernel.lines(p.k());
    if let [group] = p.groups.as_slice()
        && let [part] = group.as_slice()
        && p.rows * lines <= ALL_LINES
        && lines > 0
    {
        let Some(a) = space.get_mut(..p.rows * lines) else { return false };
        let tile_rows = kernel.tile_rows(p.rows);
        a.par_chunks_mut(tile_rows * lines).enumerate().for_each(|(tile, to)| {
            let rows = tile * tile_rows..(tile * tile_rows + to.len() / lines);
            pack(kernel, &part.patches, &rows.collect::<Vec<_>>(), to);
        });
        let blocks = cut(y, p.n, kernel.parts([p.rows, p.n, p.k()]), kernel.width());
        let panels = |first, count| part.weight.group(first, count);
        kernel.products((a, p.rows), panels, blocks, |first, sums, stride, y| {
            let columns = y.columns.clone();
            for (row, sums) in (first..).zip(sums.chunks_exact_mut(stride)) {
                finish(row, columns.start, &mut sums[..columns.len()], y.row(row));
            }
        });
        return true;
    }
    let each = lines_of_thread(kernel, p.k());
    let threads = rayon::current_num_threads().min(space.len() / each);
    if threads == 0 {
        return false;
    }
    // A few ranges of rows for each thread, as many for all; weights that do not stay in the cache are read once for each.
    let weights =
        longest(p.groups.iter().flatten().map(|part| part.weight.panels() * kernel.lines(part.patches.k()) * LANES));
    let small = weights <= SMALL_WEIGHT;
    let ranges = if small { 8 * threads } else { (p.rows * lines).div_ceil(SOME_LINES).next_multiple_of(threads) };
    let tile_rows = kernel.tile_rows(p.rows);
    let ranges = shares(p.rows.div_ceil(tile_rows), ranges.max(2 * threads));
    let rows = ranges.into_iter().map(|r| r.start * tile_rows..(r.end * tile_rows).min(p.rows));
    let blocks = cut(y, p.n, rows, p.width());
    share(space.chunks_mut(each).take(threads), blocks, |space, mut block| {
        let mut out = Tile::default();
        for part in p.part_of(&block) {
            let rows = part.patches.rows(block.rows.clone());
            let lines = kernel.lines(part.patches.k());
            if lines == 0 {
                // No tap reads anything: what follows the product has zeros.
                for row in rows {
                    finish(row, block.columns.start, &mut vec![0.0; block.columns.len()], block.row(row));
                }
                continue;
            }
            let tile_rows = kernel.tile_rows(rows.len());
            let tiles = if small { 1 } else { (space.len() / (lines * tile_rows)).max(1) };
            for rows in rows.chunks(tiles * tile_rows) {
                let tiles = || rows.chunks(tile_rows);
                for (rows, to) in tiles().zip(space.chunks_mut(tile_rows * lines)) {
                    pack(kernel, &part.patches, rows, &mut to[..rows.len() * lines]);
                }
                // Groups of one size: a last one of a single panel would leave registers empty.
                let count = part.weight.panels();
                let per_group = count.div_ceil(count.div_ceil(kernel.panels()));
                for panel in (0..count).step_by(per_group) {
                    let panels = part.weight.group(panel, per_group);
                    let first = panel * LANES;
                    let width = (per_group * LANES).min(block.columns.len() - first);
                    for (rows, a) in tiles().zip(space.chunks(tile_rows * lines)) {
                        let sums = kernel.multiply(&a[..rows.len() * lines], rows.len(), panels, &mut out);
                        let stride = sums.len() / rows.len();
                        for (&row, sums) in rows.iter().zip(sums.chunks_exact_mut(stride)) {
                            let column = block.columns.start + first;
                            finish(row, column, &mut sums[..width], &mut block.row(row)[first..][..width]);
                        }
                    }
                }
            }
        }
    });
    true
}

/// One tile of packed rows.
fn pack(kernel: &Kernel, patches: &Patches<f32>, rows: &[usize], to: &mut [Line]) {
    let mut scratch = vec![0.0; if patches.is_aligned(kernel.element()) { 0 } else { patches.k() }];
    pack_rows_of(to, rows.len(), |i, to| patches.pack(kernel.element(), rows[i], to, &mut scratch));
}

/// Products by `gemm`, image by image, so that the shape of each depends on an image's alone. `finish` as in [`packed`].
/// False: the space is too small.
pub(super) fn plain<T: Real>(
    p: &Products<T, &[T]>,
    y: &mut [T],
    space: &mut [T],
    finish: impl Fn(usize, usize, &mut [T], &mut [T]) + Sync,
) -> bool {
    let each = plain_workspace(p.k(), p.width(), 1);
    let threads = rayon::current_num_threads().min(space.len() / each);
    if threads == 0 {
        return false;
    }
    let images = (0..p.rows).step_by(p.pixels);
    let rows = images.flat_map(|image| {
        (0..p.pixels).step_by(GEMM_ROWS).map(move |at| image + at..image + (at + GEMM_ROWS).min(p.pixels))
    });
    let blocks = cut(y, p.n, rows, p.width());
    share(space.chunks_mut(each).take(threads), blocks, |space, mut block| {
        for part in p.part_of(&block) {
            let (rows, k, n) = (part.patches.rows(block.rows.clone()), part.patches.k(), block.columns.len());
            if rows.is_empty() {
                continue;
            }
            let (patches, sums) = space.split_at_mut(GEMM_ROWS * p.k());
            let sums = &mut sums[..rows.len() * n];
            if k == 0 {
                sums.fill(T::default());
            } else {
                for (&row, to) in rows.iter().zip(patches.chunks_mut(k)) {
                    part.patches.gather(row, to);
                }
                let (one, stride) = (T::from_f64(1.0), k as isize);
                let (patches, weight) = ((&*patches, stride), (part.weight, stride));
                matmul_t(rows.len(), n, k, (&mut *sums, n as isize), patches, weight, one, Parallelism::None);
            }
            for (row, sums) in rows.into_iter().zip(sums.chunks_exact_mut(n)) {
                finish(row, block.columns.start, sums, block.row(row));
            }
        }
    });
    true
}

/// `count` things in `parts` ranges that differ by one at most; none is empty.
fn shares(count: usize, parts: usize) -> Vec<Range<usize>> {
    let parts = parts.clamp(1, count.max(1));
    (0..parts).map(|i| i * count / parts..(i + 1) * count / parts).collect()
}

/// Does `work` on all of `items`, each in the first of the `places` that is free.
fn share<'s, S: Send + 's, I: Send>(
    places: impl Iterator<Item = &'s mut [S]>,
    items: Vec<I>,
    work: impl Fn(&mut [S], I) + Sync,
) {
    let items = Mutex::new(items.into_iter());
    let next = || items.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let (work, next) = (&work, &next);
    let places: Vec<&mut [S]> = places.collect();
    rayon::scope(|scope| {
        for place in places {
            scope.spawn(move |_| {
                while let Some(item) = next() {
                    work(place, item);
                }
            });
        }
    });
}
