//! One matrix, written by several tasks at a time.

use std::marker::PhantomData;

/// A matrix whose rows several tasks write at the same time, each its own columns.
#[derive(Clone, Copy)]
pub struct SharedRows<'a, T> {
    first: *mut T,
    len: usize,
    row_len: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer stands for an exclusive borrow, and `columns` leaves it to its caller that no two parts overlap.
unsafe impl<T: Send> Send for SharedRows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedRows<'_, T> {}

impl<'a, T> SharedRows<'a, T> {
    /// `matrix` as rows of `row_len`.
    pub fn new(matrix: &'a mut [T], row_len: usize) -> Self {
        Self { first: matrix.as_mut_ptr(), len: matrix.len(), row_len, matrix: PhantomData }
    }

    /// Columns `first` to `first + count` of row `row`.
    ///
    /// # Safety
    /// While the slice lives nobody else asks for any of these columns of this row.
    ///
    /// # Panics
    /// If the matrix does not have them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn columns(&self, row: usize, first: usize, count: usize) -> &'a mut [T] {
        let at = row * self.row_len + first;
        assert!(first + count <= self.row_len && at + count <= self.len, "columns of the matrix");
        // SAFETY: the range was checked and lies in the borrow; the caller keeps it to itself.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(at), count) }
    }
}
