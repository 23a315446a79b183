//! Panels of columns out of packed rows: the keys and values of an attention whose operands are products.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::avx;
#[cfg(target_arch = "x86_64")]
use crate::device::level::Level;
use crate::device::packed::{Element, LANES, Line, PackedRows};

/// The given lines of the given rows as panels of 16 rows: each row is a column of the product. What `panels` holds beyond the
/// rows becomes zero.
pub fn panels_of_rows(x: &PackedRows, rows: Range<usize>, lines: Range<usize>, panels: &mut [Line]) {
    for (panel, first) in panels.chunks_exact_mut(lines.len() * LANES).zip(rows.clone().step_by(LANES)) {
        let count = LANES.min(rows.end - first);
        for (line, panel) in lines.clone().zip(panel.as_chunks_mut::<LANES>().0) {
            let row = |row: usize| if row < count { *x.line(first + row, line) } else { Line::default() };
            let block: [Line; LANES] = std::array::from_fn(row);
            turn(&block, panel);
        }
    }
}

/// Word s of row r becomes word r of step s.
fn turn(rows: &[Line; LANES], steps: &mut [Line; LANES]) {
    #[cfg(target_arch = "x86_64")]
    if Level::detect() >= Level::Avx512 {
        // SAFETY: the processor has the feature.
        return unsafe { avx::turn(rows, steps) };
    }
    for (s, step) in steps.iter_mut().enumerate() {
        step.0 = std::array::from_fn(|r| rows[r].0[s]);
    }
}

/// The given lines of the given rows as panels of 16 columns: each row is a step of the product, or a half of one. What `panels`
/// holds beyond the rows becomes zero.
pub fn panels_of_columns(x: &PackedRows, rows: Range<usize>, lines: Range<usize>, panels: &mut [Line]) {
    let per_word = x.element().per_word();
    let (steps, per_panel) = (rows.len().div_ceil(per_word), x.element().lines(rows.len()) * LANES);
    for (line, panels) in lines.zip(panels.chunks_exact_mut(per_word * per_panel)) {
        match x.element() {
            Element::F32 => {
                for (row, to) in rows.clone().zip(&mut *panels) {
                    *to = *x.line(row, line);
                }
            }
            Element::Bf16Pair => {
                let (left, right) = panels.split_at_mut(per_panel);
                for (first, to) in rows.clone().step_by(2).zip(left.iter_mut().zip(right)) {
                    let upper = if first + 1 < rows.end { *x.line(first + 1, line) } else { Line::default() };
                    pair(x.line(first, line), &upper, to);
                }
            }
        }
        panels.chunks_exact_mut(per_panel).for_each(|panel| panel[steps..].fill(Line::default()));
    }
}

/// Pairs of the numbers of two rows, the first 16 and the last 16 of 32 columns.
fn pair(lower: &Line, upper: &Line, to: (&mut Line, &mut Line)) {
    #[cfg(target_arch = "x86_64")]
    if Level::detect() >= Level::Avx512 {
        // SAFETY: the processor has the features.
        return unsafe { avx::pair(lower, upper, to) };
    }
    let number = |row: &Line, column: usize| row.0[column / 2] >> (16 * (column % 2)) & 0xffff;
    let word = |column: usize| number(lower, column) | number(upper, column) << 16;
    to.0.0 = std::array::from_fn(word);
    to.1.0 = std::array::from_fn(|column| word(LANES + column));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::packed::bf16_bits;
    use crate::ops::product::{pack_columns, pack_row_panels, pack_tile};

    /// As many rows as fill tiles of 5, and panels, and as do not; lines from the second on.
    #[test]
    fn panels_are_those_of_plain_rows() {
        for element in [Element::F32, Element::Bf16Pair] {
            for rows in [1, 2, 16, 37] {
                let (per_line, tile_rows) = (LANES * element.per_word(), 5);
                let columns = 4 * per_line;
                let x: Vec<f32> = (0..rows * columns).map(|i| (i % 509) as f32 / 8.0).collect();
                let x: Vec<f32> = x.iter().map(|&x| f32::from_bits(bf16_bits(x) << 16)).collect();
                let mut lines = vec![Line::default(); rows * 4];
                for (x, tile) in x.chunks(tile_rows * columns).zip(lines.chunks_mut(tile_rows * 4)) {
                    pack_tile(element, x, columns, columns, tile);
                }
                let packed = PackedRows::new(lines, element, [rows, columns], tile_rows);
                assert_eq!(packed.unpack(), x);
                let (part, width) = (&x[per_line..], 2 * per_line);
                for first in [0, rows / 2] {
                    let (part, count) = (&part[first * columns..], rows - first);
                    let [mut got, mut want] = [0; 2].map(|_| vec![Line::default(); count.div_ceil(LANES) * 2 * LANES]);
                    panels_of_rows(&packed, first..rows, 1..3, &mut got);
                    pack_row_panels(element, part, columns, [count, width], &mut want);
                    assert!(bytemuck::cast_slice::<_, u32>(&got) == bytemuck::cast_slice::<_, u32>(&want));
                    let size = width / LANES * element.lines(count) * LANES;
                    // What is there before is written over.
                    let [mut got, mut want] = [0; 2].map(|_| vec![Line([7; LANES]); size]);
                    panels_of_columns(&packed, first..rows, 1..3, &mut got);
                    pack_columns(element, part, columns, [width, count], &mut want);
                    assert!(bytemuck::cast_slice::<_, u32>(&got) == bytemuck::cast_slice::<_, u32>(&want));
                }
            }
        }
    }
}
