//! One matrix cut into blocks that several tasks write at the same time.

use std::marker::PhantomData;
use std::ops::Range;

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

impl<T> Block<'_, T> {
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
