//! Rows and columns of activations as the products read them.

#[cfg(target_arch = "x86_64")]
use super::avx;
#[cfg(target_arch = "x86_64")]
use crate::device::level::Level;
use crate::device::packed::{Element, LANES, Line, bf16_bits, put_row};
use crate::math::exp2_for_bf16;
use crate::ops::reduce::{max, sum_of};
use crate::ops::simd::vectorized;

/// Packs `rows` rows into one tile of lines: line l of row r is line `l rows + r` of `tile`. `fill(row, packed)` writes the
/// lines of row `row` through [`pack_row`].
///
/// PRECOND: `tile` holds as many lines for each row.
pub fn pack_rows_of(tile: &mut [Line], rows: usize, mut fill: impl FnMut(usize, RowLines)) {
    for row in 0..rows {
        fill(row, RowLines { tile, rows, row });
    }
}

/// Where the lines of one row of a tile are.
pub struct RowLines<'a> {
    tile: &'a mut [Line],
    rows: usize,
    row: usize,
}

impl RowLines<'_> {
    /// The lines of the row from `line` on.
    pub fn from(&mut self, line: usize) -> RowLines<'_> {
        RowLines { tile: &mut self.tile[line * self.rows..], rows: self.rows, row: self.row }
    }

    /// Writes zeros to the next `lines` lines.
    pub fn clear(self, lines: usize) {
        self.tile[self.row..].iter_mut().step_by(self.rows).take(lines).for_each(|line| *line = Line::default());
    }
}

/// Writes the numbers `x` of a row, and zeros up to the end of its last line.
#[inline]
pub fn pack_row(element: Element, x: &[f32], to: RowLines) {
    let RowLines { tile, rows, row } = to;
    match element {
        Element::F32 => pack_f32(x, tile, rows, row),
        Element::Bf16Pair => pack_bf16(x, tile, rows, row),
    }
}

/// Packs the first `width` numbers of each of the rows x [R, stride] into a tile of R rows, and zeros up to the end of the
/// last line.
#[inline]
pub fn pack_tile(element: Element, x: &[f32], stride: usize, width: usize, tile: &mut [Line]) {
    #[cfg(target_arch = "x86_64")]
    if element == Element::Bf16Pair && Level::detect().has_bf16() {
        // SAFETY: the processor has these features.
        return unsafe { avx::pack_bf16_tile(x, stride, width, tile) };
    }
    let rows = x.len() / stride;
    for (row, x) in x.chunks_exact(stride).enumerate() {
        pack_row(element, &x[..width], RowLines { tile, rows, row });
    }
}

/// Packs 2^(scale (x - maximum)) of the first `width` numbers of each of the rows x [R, stride] into a tile of R rows, as pairs of
/// bf16, and writes the sum of each row to `sums`. What is in `x` is lost.
#[inline]
pub fn pack_exponentials(x: &mut [f32], stride: usize, width: usize, scale: f32, tile: &mut [Line], sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if Level::detect().has_bf16() {
        // SAFETY: the processor has these features.
        return unsafe { avx::pack_exponentials(x, stride, width, scale, tile, sums) };
    }
    let rows = x.len() / stride;
    for (row, (x, sum)) in x.chunks_exact_mut(stride).zip(sums).enumerate() {
        *sum = exponentials(&mut x[..width], scale);
        pack_row(Element::Bf16Pair, &x[..width], RowLines { tile, rows, row });
    }
}

vectorized! { plain
    fn exponentials(x: &mut [f32], scale: f32) -> f32 {
        let top = scale * max(x);
        x.iter_mut().for_each(|x| *x = exp2_for_bf16(scale.mul_add(*x, -top)));
        sum_of(x, |v| v)
    }
}

vectorized! { plain
    fn pack_f32(x: &[f32], tile: &mut [Line], rows: usize, row: usize) {
        for (line, x) in tile[row..].iter_mut().step_by(rows).zip(x.chunks(LANES)) {
            match <&[f32; LANES]>::try_from(x) {
                // One copy of the whole line: number by number it is no vector instruction.
                Ok(x) => *line = bytemuck::cast(*x),
                Err(_) => line.0 = std::array::from_fn(|i| x.get(i).map_or(0, |v| v.to_bits())),
            }
        }
    }
}

/// A row as pairs of bf16.
fn pack_bf16(x: &[f32], tile: &mut [Line], rows: usize, row: usize) {
    #[cfg(target_arch = "x86_64")]
    if Level::detect().has_bf16() {
        // SAFETY: the processor has these features.
        return unsafe { avx::pack_bf16(x, tile, rows, row) };
    }
    pack_bf16_lines(x, tile, rows, row);
}

vectorized! { plain
    fn pack_bf16_lines(x: &[f32], tile: &mut [Line], rows: usize, row: usize) {
        for (line, x) in tile[row..].iter_mut().step_by(rows).zip(x.chunks(2 * LANES)) {
            let mut bits = [0u16; 2 * LANES];
            for (bits, &x) in bits.iter_mut().zip(x) {
                *bits = bf16_bits(x) as u16;
            }
            line.0 = bytemuck::cast(bits);
        }
    }
}

/// Packs the rows of a matrix [N, K], row n the K numbers from `n stride` on, as panels of 16 rows: the form of a
/// [`crate::device::packed::PackedMatrix`]. `panels` holds zeros before.
///
/// PRECOND: n, k > 0.
pub fn pack_row_panels(element: Element, x: &[f32], stride: usize, [n, k]: [usize; 2], panels: &mut [Line]) {
    let lines = element.lines(k);
    #[cfg(target_arch = "x86_64")]
    let mut packed = vec![Line::default(); LANES * lines];
    for (panel, first) in panels.chunks_exact_mut(lines * LANES).zip((0..n).step_by(LANES)) {
        let rows = LANES.min(n - first);
        let row = |row: usize| &x[(first + row) * stride..][..k];
        #[cfg(target_arch = "x86_64")]
        if Level::detect() >= Level::Avx512 {
            for (i, to) in packed.chunks_exact_mut(lines).take(rows).enumerate() {
                pack_row(element, row(i), RowLines { tile: to, rows: 1, row: 0 });
            }
            for (line, panel) in panel.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let row = |row: usize| if row < rows { packed[row * lines + line] } else { Line::default() };
                // SAFETY: the processor has the feature.
                unsafe { avx::turn(&std::array::from_fn(row), panel) };
            }
            continue;
        }
        (0..rows).for_each(|i| put_row(element, row(i), panel, i));
    }
}

/// Packs the columns of a matrix [K, N], whose row k is the N numbers from `k stride` on, as panels of 16 columns, each
/// of `element.lines(k)` lines of steps. `panels` holds them all; what it holds beyond N and K becomes zero.
///
/// PRECOND: n, k > 0.
pub fn pack_columns(element: Element, x: &[f32], stride: usize, [n, k]: [usize; 2], panels: &mut [Line]) {
    let per_panel = element.lines(k) * LANES;
    for (panel, lines) in panels.chunks_exact_mut(per_panel).enumerate().take(n.div_ceil(LANES)) {
        let first = panel * LANES;
        let width = LANES.min(n - first);
        #[cfg(target_arch = "x86_64")]
        if element == Element::Bf16Pair && width == LANES && Level::detect().has_bf16() {
            // SAFETY: the processor has these features.
            unsafe { avx::pack_pairs(&x[first..], stride, k, lines) };
            lines[k.div_ceil(2)..].fill(Line::default());
            continue;
        }
        match element {
            Element::F32 if width == LANES => pack_whole_panel(&x[first..], stride, k, lines),
            _ => pack_panel(element, x, stride, (first, width), k, lines),
        }
    }
}

vectorized! { plain
    /// Rows of 16 numbers, `stride` apart.
    fn pack_whole_panel(x: &[f32], stride: usize, k: usize, lines: &mut [Line]) {
        let (filled, rest) = lines.split_at_mut(k);
        for (x, line) in x.chunks(stride).zip(filled) {
            // One load: a closure that picks numbers would not become one.
            *line = bytemuck::cast(*x.first_chunk::<LANES>().expect("16 numbers of a row"));
        }
        rest.fill(Line::default());
    }
}

vectorized! { plain
    fn pack_panel(element: Element, x: &[f32], stride: usize, columns: (usize, usize), k: usize, lines: &mut [Line]) {
        let row = |k: usize| -> [f32; LANES] {
            let row = &x[k * stride + columns.0..][..columns.1];
            // Of a known length where there are that many: one load.
            match row.first_chunk() {
                Some(row) => *row,
                None => std::array::from_fn(|i| row.get(i).copied().unwrap_or(0.0)),
            }
        };
        let steps = k.div_ceil(element.per_word());
        let (filled, rest) = lines.split_at_mut(steps);
        match element {
            Element::F32 => {
                for (step, line) in filled.iter_mut().enumerate() {
                    line.0 = row(step).map(f32::to_bits);
                }
            }
            Element::Bf16Pair => {
                for (step, line) in filled.iter_mut().enumerate() {
                    let (lower, upper) = (row(2 * step), if 2 * step + 1 < k { row(2 * step + 1) } else { [0.0; LANES] });
                    line.0 = std::array::from_fn(|i| bf16_bits(lower[i]) | bf16_bits(upper[i]) << 16);
                }
            }
        }
        rest.fill(Line::default());
    }
}

/// Packs the columns of a matrix [K, M], whose row k is the M numbers from `k stride` on, as rows of a product: tiles of
/// `tile_rows` rows one behind the other, as [`pack_rows_of`] fills them; the last may have fewer.
///
/// PRECOND: `tiles` holds `element.lines(k)` lines for each column.
pub fn pack_columns_as_rows(
    element: Element,
    x: &[f32],
    stride: usize,
    [m, k]: [usize; 2],
    tile_rows: usize,
    tiles: &mut [Line],
) {
    #[cfg(target_arch = "x86_64")]
    if Level::detect() >= Level::Avx512 {
        return turn_panels(element, x, stride, [m, k], tile_rows, tiles);
    }
    turn(element, x, stride, (m, k), tile_rows, tiles);
}

/// [`pack_columns_as_rows`] by panels of 16 columns and one line of steps, turned in registers.
#[cfg(target_arch = "x86_64")]
fn turn_panels(element: Element, x: &[f32], stride: usize, [m, k]: [usize; 2], tile_rows: usize, tiles: &mut [Line]) {
    let (lines, depth) = (element.lines(k), LANES * element.per_word());
    let [mut steps, mut rows] = [[Line::default(); LANES]; 2];
    // Line by line: of a few rows of the matrix every column, while they are in the cache.
    for line in 0..lines {
        let (start, depth) = (line * depth, depth.min(k - line * depth));
        for first in (0..m).step_by(LANES) {
            let width = LANES.min(m - first);
            pack_columns(element, &x[start * stride + first..], stride, [width, depth], &mut steps);
            // SAFETY: the caller has seen that the processor has the feature.
            unsafe { avx::turn(&steps, &mut rows) };
            for (column, row) in (first..first + width).zip(&rows) {
                let tile = column / tile_rows * tile_rows;
                let height = tile_rows.min(m - tile);
                tiles[tile * lines + line * height + column - tile] = *row;
            }
        }
    }
}

vectorized! { plain
    fn turn(element: Element, x: &[f32], stride: usize, size: (usize, usize), tile_rows: usize, tiles: &mut [Line]) {
        let (m, k) = size;
        let lines = element.lines(k);
        // Line by line: of a few rows of the matrix every column, while they are in the cache.
        for line in 0..lines {
            for (tile, first) in tiles.chunks_mut(tile_rows * lines).zip((0..m).step_by(tile_rows)) {
                let rows = tile.len() / lines;
                let to = &mut tile[line * rows..][..rows];
                for step in 0..LANES {
                    let at = (line * LANES + step) * element.per_word();
                    let row = |k: usize| &x[k * stride + first..][..rows];
                    match element {
                        _ if at >= k => to.iter_mut().for_each(|to| to.0[step] = 0),
                        Element::F32 => to.iter_mut().zip(row(at)).for_each(|(to, v)| to.0[step] = v.to_bits()),
                        Element::Bf16Pair if at + 1 < k => turn_pairs(row(at), row(at + 1), to, step),
                        Element::Bf16Pair => {
                            to.iter_mut().zip(row(at)).for_each(|(to, &v)| to.0[step] = bf16_bits(v));
                        }
                    }
                }
            }
        }
    }
}

/// Word `step` of each line: the pair of two rows.
#[inline(always)]
fn turn_pairs(lower: &[f32], upper: &[f32], to: &mut [Line], step: usize) {
    // By eights, which most tiles consist of: they are rounded as vectors.
    let (lower, lower_rest) = lower.as_chunks::<8>();
    let (upper, upper_rest) = upper.as_chunks::<8>();
    let (to, to_rest) = to.as_chunks_mut::<8>();
    let pair = |lower: f32, upper: f32| bf16_bits(lower) | bf16_bits(upper) << 16;
    for ((to, lower), upper) in to.iter_mut().zip(lower).zip(upper) {
        let words: [u32; 8] = std::array::from_fn(|i| pair(lower[i], upper[i]));
        to.iter_mut().zip(words).for_each(|(to, word)| to.0[step] = word);
    }
    for ((to, &lower), &upper) in to_rest.iter_mut().zip(lower_rest).zip(upper_rest) {
        to.0[step] = pair(lower, upper);
    }
}
