//! Matrix products that add to what is there.

use gemm::Parallelism;

use crate::tensor::Real;

/// y [m, n] += a [m, k] b [k, n] on the CPU; y comes with its row stride, a and b with their row and column strides.
///
/// # Panics
/// If a dimension is 0 or an operand too small.
pub fn matmul_add<T: Real>(
    [m, n, k]: [usize; 3],
    y: (&mut [T], usize),
    a: (&[T], usize, usize),
    b: (&[T], usize, usize),
    parallelism: Parallelism,
) {
    assert!(m > 0 && n > 0 && k > 0, "matrix products have at least one element");
    let last = |rows: usize, cols: usize, rs: usize, cs: usize| (rows - 1) * rs + (cols - 1) * cs;
    assert!(
        last(m, n, y.1, 1) < y.0.len() && last(m, k, a.1, a.2) < a.0.len() && last(k, n, b.1, b.2) < b.0.len(),
        "matrix operands are large enough"
    );
    let one = T::from_f64(1.0);
    // SAFETY: the strides are positive and the assertion above keeps the last element of each operand in its slice.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.0.as_mut_ptr(),
            1,
            y.1 as isize,
            true,
            a.0.as_ptr(),
            a.2 as isize,
            a.1 as isize,
            b.0.as_ptr(),
            b.2 as isize,
            b.1 as isize,
            one,
            one,
            false,
            false,
            false,
            parallelism,
        );
    }
}
