//! The CPU loops: products through `gemm`, everything else row by row.

use gemm::Parallelism;
use rayon::prelude::*;

use super::{Activation, Columns, ForNorm, Geometry, Operands, Residual, STATS_CHUNK, Workspace, round, too_small};
use crate::error::Result;
use crate::ops::condition_rows;
use crate::ops::reduce::{dot, sum_of};
use crate::ops::simd::vectorized;
use crate::tensor::{Real, Tensor};

/// Products of fewer rows per image take our own dot products: `gemm` branches on the shape.
const MIN_GEMM_ROWS: usize = 16;

/// Numbers for the columns, per condition or not.
#[derive(Clone, Copy)]
struct HostColumns<'a, T> {
    values: &'a [T],
    stride: usize,
    n: usize,
}

impl<'a, T: Real> HostColumns<'a, T> {
    fn new(columns: Option<Columns<'a>>, n: usize) -> Result<Option<Self>> {
        columns.map(|c| Ok(Self { values: c.tensor().host::<T>()?, stride: c.stride(), n })).transpose()
    }

    fn row(&self, condition: usize) -> &'a [T] {
        &self.values[condition * self.stride..][..self.n]
    }
}

pub(super) fn linear<T: Real>(
    g: Geometry,
    operands: Operands,
    y: &mut Tensor,
    next: Option<ForNorm>,
    workspace: &mut Workspace,
) -> Result<()> {
    let Operands { x, weight, norm, bias, act, residual, select } = operands;
    let (x, w) = (x.host::<T>()?, weight.host::<T>()?);
    let conditions = condition_rows(select, g.images)?;
    let bias = HostColumns::<T>::new(bias, g.n)?;
    let sums = HostColumns::<T>::new(norm.map(|n| n.sums), g.n)?;
    let stats = norm.map(|n| n.stats.host::<T>()).transpose()?.zip(sums);
    let eps = T::from_f64(norm.map_or(0.0, |n| n.eps));
    // v = act(norm(product) + bias)
    let finish = |row: usize, v: &mut [T]| {
        let condition = conditions[row / g.rows];
        if let Some((stats, sums)) = stats {
            let per_row = 2 * g.k.div_ceil(STATS_CHUNK);
            let (mean, rstd) = moments(&stats[row * per_row..][..per_row], g.k, eps);
            normalise(v, sums.row(condition), mean, rstd);
        }
        activate(act, bias.map(|b| b.row(condition)), v);
    };
    // A product that is added to y must not overwrite it first.
    if matches!(residual, Residual::InPlace | Residual::Gated(_)) {
        let y = y.host_mut::<T>()?;
        let product = workspace.sums.host_mut::<T>()?.get_mut(..y.len()).ok_or_else(too_small)?;
        products(g, x, w, product);
        let gate = match residual {
            Residual::Gated(gate) => HostColumns::<T>::new(Some(gate), g.n)?,
            _ => None,
        };
        y.par_chunks_mut(g.n).zip(product.par_chunks_mut(g.n)).enumerate().with_min_len(8).for_each(|(row, (y, v))| {
            finish(row, v);
            add(y, v, gate.map(|gate| gate.row(conditions[row / g.rows])));
        });
    } else {
        let y = y.host_mut::<T>()?;
        products(g, x, w, y);
        let rows = match residual {
            Residual::Rows(rows) => Some((rows.host::<T>()?, rows.dim(0))),
            _ => None,
        };
        y.par_chunks_mut(g.n).enumerate().with_min_len(8).for_each(|(row, y)| {
            finish(row, y);
            if let Some((rows, count)) = rows {
                add(y, &rows[row % count * g.n..][..g.n], None);
            }
        });
    }
    round(y)?;
    next.map_or(Ok(()), |next| for_norm::<T>(g, y.host::<T>()?, &conditions, next))
}

/// Statistics of the rows of y, and z.
fn for_norm<T: Real>(g: Geometry, y: &[T], conditions: &[usize], next: ForNorm) -> Result<()> {
    let per_row = 2 * g.n.div_ceil(STATS_CHUNK);
    let stats = next.stats.host_mut::<T>()?.par_chunks_mut(per_row);
    stats.zip(y.par_chunks(g.n)).with_min_len(8).for_each(|(stats, y)| describe(stats, y));
    let Some((scale, z)) = next.scaled else { return Ok(()) };
    let scale = HostColumns::<T> { values: scale.tensor().host::<T>()?, stride: scale.stride(), n: g.n };
    let rows = z.host_mut::<T>()?.par_chunks_mut(g.n).zip(y.par_chunks(g.n)).enumerate().with_min_len(8);
    rows.for_each(|(row, (z, y))| multiply(z, y, scale.row(conditions[row / g.rows])));
    round(z)
}

/// Mean and inverse deviation of a row of k numbers from the statistics of its chunks (Chan, Golub and LeVeque 1979).
fn moments<T: Real>(stats: &[T], k: usize, eps: T) -> (T, T) {
    let all = T::from_f64(k as f64);
    let mean = stats.chunks_exact(2).map(|s| s[0]).sum::<T>() / all;
    let squares = stats.chunks_exact(2).enumerate().map(|(chunk, s)| {
        let count = T::from_f64(STATS_CHUNK.min(k - chunk * STATS_CHUNK) as f64);
        let d = s[0] / count - mean;
        (count * d).mul_add(d, s[1])
    });
    (mean, T::from_f64(1.0) / (squares.sum::<T>() / all + eps).sqrt())
}

vectorized! {
    /// Of each 64 numbers of y: their sum, and the sum of the squared deviations from their mean.
    fn describe(stats: &mut [T], y: &[T]) {
        for (stats, y) in stats.chunks_exact_mut(2).zip(y.chunks(STATS_CHUNK)) {
            let sum = sum_of(y, |v| v);
            let mean = sum / T::from_f64(y.len() as f64);
            stats[0] = sum;
            stats[1] = sum_of(y, |v| (v - mean) * (v - mean));
        }
    }
}

vectorized! {
    /// z = y * scale.
    fn multiply(z: &mut [T], y: &[T], scale: &[T]) {
        for ((z, &y), &scale) in z.iter_mut().zip(y).zip(scale) {
            *z = y * scale;
        }
    }
}

vectorized! {
    /// v = rstd (v - mean * sums).
    fn normalise(v: &mut [T], sums: &[T], mean: T, rstd: T) {
        for (v, &sum) in v.iter_mut().zip(sums) {
            *v = rstd * (-mean).mul_add(sum, *v);
        }
    }
}

vectorized! {
    /// v = act(v + bias).
    fn activate(act: Activation, bias: Option<&[T]>, v: &mut [T]) {
        if let Some(bias) = bias {
            v.iter_mut().zip(bias).for_each(|(v, &b)| *v += b);
        }
        match act {
            Activation::None => {}
            Activation::Gelu => v.iter_mut().for_each(|v| *v = gelu(*v)),
            Activation::GeluTanh => v.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
            Activation::Silu => v.iter_mut().for_each(|v| *v = silu(*v)),
        }
    }
}

vectorized! {
    /// y += gate * v.
    fn add(y: &mut [T], v: &[T], gate: Option<&[T]>) {
        match gate {
            Some(gate) => {
                for ((y, &v), &gate) in y.iter_mut().zip(v).zip(gate) {
                    *y = gate.mul_add(v, *y);
                }
            }
            None => y.iter_mut().zip(v).for_each(|(y, &v)| *y += v),
        }
    }
}

vectorized! {
    /// y [N] = w [N, K] x [K].
    fn dots(y: &mut [T], w: &[T], x: &[T]) {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(x.len())) {
            *y = dot(x, w);
        }
    }
}

/// x Phi(x).
#[inline(always)]
pub(in crate::ops) fn gelu<T: Real>(x: T) -> T {
    let half = T::from_f64(0.5);
    half * x * (T::from_f64(1.0) + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// The tanh approximation of GELU.
#[inline(always)]
pub(in crate::ops) fn gelu_tanh<T: Real>(x: T) -> T {
    let sqrt_2_over_pi = T::from_f64(0.797_884_560_802_865_4);
    let inner = sqrt_2_over_pi * (x + T::from_f64(0.044715) * x * x * x);
    T::from_f64(0.5) * x * (T::from_f64(1.0) + inner.tanh())
}

/// x / (1 + e^-x).
#[inline(always)]
pub(in crate::ops) fn silu<T: Real>(x: T) -> T {
    x / (T::from_f64(1.0) + (-x).exp())
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
