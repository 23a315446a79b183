//! Matrices in the layout that the products of the CPU read: made once, when weights are loaded.

use rayon::prelude::*;

/// A cache line: one step along k of 16 columns, or 16 steps of one row.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Line(pub [u32; LANES]);

/// Columns of a panel, and 32-bit words of a [`Line`].
pub const LANES: usize = 16;

/// What a 32-bit word of a packed matrix holds: one step along k of one row or column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// An f32.
    F32,
    /// Two bf16, that of the smaller k in the lower half.
    Bf16Pair,
}

impl Element {
    /// Elements of a word.
    pub fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16Pair => 2,
        }
    }

    /// Lines that k numbers of a row take; the last is filled up with zeros.
    pub fn lines(self, k: usize) -> usize {
        k.div_ceil(LANES * self.per_word())
    }

    /// Bytes of a matrix [n, k] in this form.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        n.div_ceil(LANES) * LANES * self.lines(k) * size_of::<Line>()
    }
}

/// The upper half of an f32, rounded to nearest even; NaN stays NaN.
#[inline(always)]
pub fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    if x.is_nan() { quiet } else { rounded }
}

/// Writes a row of a matrix into column `column` of its panel.
#[inline]
pub fn put_row(element: Element, row: &[f32], panel: &mut [Line], column: usize) {
    match element {
        Element::F32 => panel.iter_mut().zip(row).for_each(|(line, v)| line.0[column] = v.to_bits()),
        Element::Bf16Pair => panel.iter_mut().zip(row.chunks(2)).for_each(|(line, pair)| {
            let upper = pair.get(1).map_or(0, |&v| bf16_bits(v));
            line.0[column] = bf16_bits(pair[0]) | upper << 16;
        }),
    }
}

/// A matrix [N, K] as panels of 16 rows, of each panel the words of one step along k in one line. Both directions are
/// filled up with zeros: N to whole panels, K to whole lines of a row.
pub struct PackedMatrix {
    lines: Vec<Line>,
    element: Element,
    n: usize,
    k: usize,
}

impl PackedMatrix {
    /// Packs `values` [n, k], row by row.
    ///
    /// PRECOND: `values` holds n k numbers.
    pub fn pack(element: Element, n: usize, k: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), n * k, "a number for each element");
        let per_panel = element.lines(k) * LANES;
        let mut lines = vec![Line::default(); n.div_ceil(LANES) * per_panel];
        lines.par_chunks_mut(per_panel.max(1)).zip(values.par_chunks(LANES * k.max(1))).for_each(|(panel, rows)| {
            rows.chunks_exact(k).enumerate().for_each(|(column, row)| put_row(element, row, panel, column));
        });
        Self { lines, element, n, k }
    }

    /// The numbers again, [n, k], as far as the form keeps them.
    pub fn unpack(&self) -> Vec<f32> {
        let per_panel = self.element.lines(self.k) * LANES;
        let at = |row: usize, k: usize| {
            let word = |step: usize| self.lines[row / LANES * per_panel + step].0[row % LANES];
            match self.element {
                Element::F32 => f32::from_bits(word(k)),
                Element::Bf16Pair if k.is_multiple_of(2) => f32::from_bits(word(k / 2) << 16),
                Element::Bf16Pair => f32::from_bits(word(k / 2) & 0xffff_0000),
            }
        };
        (0..self.n).flat_map(|row| (0..self.k).map(move |k| (row, k))).map(|(row, k)| at(row, k)).collect()
    }

    /// What the words hold.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Panels of 16 rows.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Panels `first` up to `first + count`, or as many of them as there are.
    pub fn group(&self, first: usize, count: usize) -> &[Line] {
        let per_panel = self.element.lines(self.k) * LANES;
        let end = (first + count).min(self.panels());
        &self.lines[first.min(end) * per_panel..end * per_panel]
    }
}

/// A matrix [M, K] as the rows of a product: tiles of `tile_rows` rows one behind the other, the last with what is left; line
/// l of row r of a tile of R rows is its line `l R + r`.
pub struct PackedRows {
    lines: Vec<Line>,
    element: Element,
    rows: usize,
    columns: usize,
    tile_rows: usize,
}

impl PackedRows {
    /// In `lines`, all of which are zero.
    ///
    /// PRECOND: as many lines for each row as `columns` numbers take.
    pub fn new(lines: Vec<Line>, element: Element, [rows, columns]: [usize; 2], tile_rows: usize) -> Self {
        assert_eq!(lines.len(), rows * element.lines(columns), "lines for each row");
        Self { lines, element, rows, columns, tile_rows }
    }

    /// All tiles.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// All tiles, to be written.
    pub fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }

    /// `count` lines from `line` on of each row of the tile that begins with row `first`.
    pub fn tile(&self, first: usize, line: usize, count: usize) -> &[Line] {
        let rows = self.tile_rows.min(self.rows - first);
        &self.lines[first * self.element.lines(self.columns)..][line * rows..(line + count) * rows]
    }

    /// Line `line` of row `row`.
    #[inline(always)]
    pub fn line(&self, row: usize, line: usize) -> &Line {
        let first = row - row % self.tile_rows;
        &self.tile(first, line, 1)[row - first]
    }

    /// All numbers, row by row.
    pub fn unpack(&self) -> Vec<f32> {
        let per_word = self.element.per_word();
        let number = |row: usize, column: usize| {
            let word = self.line(row, column / (LANES * per_word)).0[column / per_word % LANES];
            match self.element {
                Element::F32 => f32::from_bits(word),
                Element::Bf16Pair if column.is_multiple_of(2) => f32::from_bits(word << 16),
                Element::Bf16Pair => f32::from_bits(word & 0xffff_0000),
            }
        };
        (0..self.rows).flat_map(|row| (0..self.columns).map(move |column| number(row, column))).collect()
    }

    /// What the words hold.
    pub fn element(&self) -> Element {
        self.element
    }

    /// M.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows of all tiles but the last.
    pub fn tile_rows(&self) -> usize {
        self.tile_rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_every_number() {
        for element in [Element::F32, Element::Bf16Pair] {
            for (n, k) in [(1, 1), (16, 32), (17, 33), (5, 64), (50, 7)] {
                // Integers that bf16 holds.
                let values: Vec<f32> = (0..n * k).map(|i| (i % 251) as f32 - 125.0).collect();
                let packed = PackedMatrix::pack(element, n, k, &values);
                assert_eq!(packed.unpack(), values, "{element:?} {n} x {k}");
                assert_eq!(size_of_val(packed.group(0, usize::MAX / 2)), element.bytes(n, k));
            }
        }
    }

    #[test]
    fn bf16_rounds_as_the_type_does() {
        let numbers = [0.0, -0.0, 1.0, 1.003_906_3, 1.011_718_8, f32::MAX, f32::INFINITY, -1e-40, std::f32::consts::PI];
        for x in numbers {
            assert_eq!(bf16_bits(x), u32::from(half::bf16::from_f32(x).to_bits()), "{x}");
        }
        assert!(half::bf16::from_bits(bf16_bits(f32::NAN) as u16).is_nan());
    }
}
