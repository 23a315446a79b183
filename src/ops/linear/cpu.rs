//! Products on the CPU through `gemm`: in f64, and on processors without vector instructions of our own.

use gemm::Parallelism;
use rayon::prelude::*;

use super::epilogue::Epilogue;
use super::{Geometry, Operands, Workspace, too_small};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::ops::layernorm::RowNormaliser;
use crate::ops::reduce::dot;
use crate::ops::simd::vectorized;
use crate::tensor::{Real, Tensor};

/// Products of fewer rows per image take our own dot products: `gemm` branches on the shape.
const MIN_GEMM_ROWS: usize = 16;

pub(super) fn linear<T: Real>(
    device: &Cpu,
    g: Geometry,
    operands: &Operands,
    y: &mut Tensor,
    workspace: &mut Workspace,
) -> Result<()> {
    let epilogue = Epilogue::<T>::new(g, operands)?;
    let (x, w) = (operands.x.host::<T>()?, operands.weight.host::<T>()?);
    let rows = g.images * g.rows;
    let space = workspace.sums.host_mut::<T>()?.get_mut(..rows * (g.n + g.k)).ok_or_else(too_small)?;
    let (product, normed) = space.split_at_mut(rows * g.n);
    let rounded_to = Some(y.dtype()).filter(|dtype| dtype.rounds_on(device));
    let x = match operands.row_norm {
        Some(norm) => {
            let norm = RowNormaliser::<T>::new(operands.x, norm.affine, norm.eps, rounded_to)?;
            let rows = normed.par_chunks_mut(g.k).zip(x.par_chunks(g.k)).enumerate();
            rows.with_min_len(8).for_each(|(row, (normed, x))| norm.apply(row, x, normed));
            &*normed
        }
        None => x,
    };
    products(g, x, w, product);
    let rows = y.host_mut::<T>()?.par_chunks_mut(g.n).zip(product.par_chunks(g.n)).enumerate();
    rows.with_min_len(8).for_each(|(row, (y, v))| epilogue.finish_row(row, v, y));
    Ok(())
}

vectorized! {
    /// y [N] = w [N, K] x [K].
    fn dots(y: &mut [T], w: &[T], x: &[T]) {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(x.len())) {
            *y = dot(x, w);
        }
    }
}

/// y [images, rows, N] = x [images, rows, K] w [N, K]^T, image by image.
fn products<T: Real>(g: Geometry, x: &[T], w: &[T], y: &mut [T]) {
    if g.rows < MIN_GEMM_ROWS {
        y.par_chunks_mut(g.n).zip(x.par_chunks(g.k)).for_each(|(y, x)| {
            y.par_chunks_mut(64).zip(w.par_chunks(64 * g.k)).for_each(|(y, w)| dots(y, w, x));
        });
        return;
    }
    let image = |(y, x): (&mut [T], &[T]), parallelism| {
        let (n, k) = (g.n as isize, g.k as isize);
        matmul_t(g.rows, g.n, g.k, (y, n), (x, k), (w, k), T::from_f64(1.0), parallelism);
    };
    let pairs = (y, x);
    if g.images >= rayon::current_num_threads() {
        pairs.0.par_chunks_mut(g.rows * g.n).zip(pairs.1.par_chunks(g.rows * g.k)).for_each(|p| {
            image(p, Parallelism::None);
        });
    } else {
        for p in pairs.0.chunks_mut(g.rows * g.n).zip(pairs.1.chunks(g.rows * g.k)) {
            image(p, Parallelism::Rayon(0));
        }
    }
}

/// y [m, n] = scale * a [m, k] b [n, k]^T on the CPU; each operand comes with its row stride.
///
/// # Panics
/// If a dimension is 0 or an operand too small.
#[allow(clippy::too_many_arguments)]
pub fn matmul_t<T: Real>(
    m: usize,
    n: usize,
    k: usize,
    y: (&mut [T], isize),
    a: (&[T], isize),
    b: (&[T], isize),
    scale: T,
    parallelism: Parallelism,
) {
    matmul(m, n, k, y, (a.0, a.1, 1), (b.0, 1, b.1), scale, parallelism);
}

/// y [m, n] = scale * a [m, k] b [k, n] on the CPU; operands come with their row and column strides.
///
/// # Panics
/// If a dimension is 0 or an operand too small.
#[allow(clippy::too_many_arguments)]
pub fn matmul<T: Real>(
    m: usize,
    n: usize,
    k: usize,
    y: (&mut [T], isize),
    a: (&[T], isize, isize),
    b: (&[T], isize, isize),
    scale: T,
    parallelism: Parallelism,
) {
    let last = |rows: usize, cols: usize, rs: isize, cs: isize| (rows - 1) * rs as usize + (cols - 1) * cs as usize;
    assert!(m > 0 && n > 0 && k > 0, "matrix products have at least one element");
    assert!(
        last(m, n, y.1, 1) < y.0.len() && last(m, k, a.1, a.2) < a.0.len() && last(k, n, b.1, b.2) < b.0.len(),
        "matrix operands are large enough"
    );
    // SAFETY: the strides are positive and the assertion above keeps the last element of each operand in its slice.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.0.as_mut_ptr(),
            1,
            y.1,
            false,
            a.0.as_ptr(),
            a.2,
            a.1,
            b.0.as_ptr(),
            b.2,
            b.1,
            T::default(),
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
