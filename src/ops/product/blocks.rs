//! One matrix cut into blocks that several tasks write at the same time.

use std::marker::PhantomData;
use std::ops::Range;

use super::prefetch;
use crate::device::packed::{Element, LANES, Line, PackedRows};

/// What a task writes results to: some columns of some rows.
pub trait Destination: Send {
    /// Which rows of the whole.
    fn rows(&self) -> Range<usize>;
    /// Which columns of the whole.
    fn columns(&self) -> Range<usize>;
    /// Asks for the memory of some rows, one tile, which will be written soon.
    fn fetch(&mut self, rows: Range<usize>);
}

/// Some columns of some rows of a matrix; nobody else has them.
pub struct Block<'a, T> {
    /// Element (first row, first column).
    first: *mut T,
    row_len: usize,
    /// Which rows of the matrix.
    pub rows: Range<usize>,
    /// Which columns of the matrix.
    pub columns: Range<usize>,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a block stands for an exclusive borrow of its elements.
unsafe impl<T: Send> Send for Block<'_, T> {}

impl<'a, T> Block<'a, T> {
    /// Columns from `first` on of one row.
    pub fn of_row(row: usize, first: usize, values: &'a mut [T]) -> Self {
        Self {
            first: values.as_mut_ptr(),
            row_len: values.len(),
            rows: row..row + 1,
            columns: first..first + values.len(),
            matrix: PhantomData,
        }
    }

    /// The block's columns of row `row` of the matrix.
    ///
    /// # Panics
    /// If the row is not in the block.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "a row of the block");
        // SAFETY: `cut` has checked the block's rows and columns against the matrix, and gave them to this block alone, which
        // is borrowed for as long as the slice lives.
        unsafe {
            let start = self.first.add((row - self.rows.start) * self.row_len);
            std::slice::from_raw_parts_mut(start, self.columns.len())
        }
    }
}

impl<T: Send> Destination for Block<'_, T> {
    fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    fn fetch(&mut self, rows: Range<usize>) {
        // They lie far apart, often a multiple of the cache's ways.
        rows.for_each(|row| prefetch(self.row(row)));
    }
}

/// Some columns of some rows of [`PackedRows`], whole lines of whole tiles; nobody else has them.
pub struct PackedBlock<'a> {
    /// A tile to a row.
    whole: Block<'a, Line>,
    /// The last tile, if it is smaller and of this block.
    last: Option<Block<'a, Line>>,
    element: Element,
    tile_rows: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl PackedBlock<'_> {
    /// What the words hold.
    pub fn element(&self) -> Element {
        self.element
    }

    /// The lines of the block's columns in the tile that begins with row `first`: line l of its row r is line `l R + r` of R
    /// rows.
    pub fn tile(&mut self, first: usize) -> &mut [Line] {
        let tile = first / self.tile_rows;
        match &mut self.last {
            Some(last) if !self.whole.rows.contains(&tile) => last.row(0),
            _ => self.whole.row(tile),
        }
    }
}

impl Destination for PackedBlock<'_> {
    fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    fn fetch(&mut self, rows: Range<usize>) {
        prefetch(self.tile(rows.start));
    }
}

/// [`cut`] for rows in packed form: `rows` are whole tiles, in order, and `width` whole lines.
pub fn cut_packed(
    to: &mut PackedRows,
    rows: impl IntoIterator<Item = Range<usize>>,
    width: usize,
) -> Vec<PackedBlock<'_>> {
    let (element, tile_rows, count, n) = (to.element(), to.tile_rows(), to.rows(), to.columns());
    let (lines, group) = (element.lines(n), width / (LANES * element.per_word()));
    let (tiles, rest) = (count / tile_rows, count % tile_rows);
    let (whole, last) = to.lines_mut().split_at_mut(tiles * tile_rows * lines);
    let rows: Vec<_> = rows.into_iter().collect();
    let tiles = rows.iter().map(|r| r.start / tile_rows..r.end / tile_rows);
    let mut whole = cut(whole, tile_rows * lines, tiles, tile_rows * group).into_iter();
    let mut last = match rest {
        0 => Vec::new(),
        rest => cut(last, rest * lines, std::iter::once(0..1), rest * group),
    }
    .into_iter();
    let mut blocks = Vec::new();
    for rows in rows {
        let ends = rows.contains(&(count - 1)) && rest > 0;
        for column in (0..n).step_by(width) {
            blocks.push(PackedBlock {
                whole: whole.next().expect("a block of each group of lines"),
                last: if ends { last.next() } else { None },
                element,
                tile_rows,
                rows: rows.clone(),
                columns: column..(column + width).min(n),
            });
        }
    }
    blocks
}

/// Cuts `matrix`, rows of `row_len`, into blocks of the given `rows` and of `width` columns, the last of which may be
/// narrower; those of the same rows are neighbours.
///
/// PRECOND: `row_len` and `width` are not 0.
///
/// # Panics
/// If a range of rows begins before the one in front of it ends, or ends behind the matrix.
pub fn cut<T>(
    matrix: &mut [T],
    row_len: usize,
    rows: impl IntoIterator<Item = Range<usize>>,
    width: usize,
) -> Vec<Block<'_, T>> {
    let (count, matrix) = (matrix.len() / row_len, matrix.as_mut_ptr());
    let mut end = 0;
    let mut blocks = Vec::new();
    for rows in rows {
        assert!(end <= rows.start && rows.start <= rows.end && rows.end <= count, "rows in order");
        end = rows.end;
        for column in (0..row_len).step_by(width) {
            blocks.push(Block {
                // SAFETY: at most one past the end of the matrix, for a range without rows at its end.
                first: unsafe { matrix.add(rows.start * row_len + if rows.is_empty() { 0 } else { column }) },
                row_len,
                rows: rows.clone(),
                columns: column..(column + width).min(row_len),
                matrix: PhantomData,
            });
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn blocks_cover_what_they_are_given_once() {
        let mut matrix = vec![0u32; 7 * 10];
        let blocks = cut(&mut matrix, 10, [0..3, 3..3, 4..7, 7..7], 4);
        assert_eq!(blocks.len(), 4 * 3);
        for mut block in blocks {
            for row in block.rows.clone() {
                block.row(row).iter_mut().for_each(|v| *v += 1);
            }
        }
        let want: Vec<u32> = (0..70).map(|i| u32::from(i / 10 != 3)).collect();
        assert_eq!(matrix, want);
    }

    #[test]
    #[should_panic(expected = "rows in order")]
    fn no_row_is_given_twice() {
        cut(&mut [0u8; 8], 2, [0..2, 1..3], 2);
    }
}
