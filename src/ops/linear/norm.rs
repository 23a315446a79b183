//! Statistics of rows on the CPU: what a layer leaves for the layer norm behind it, and what that makes of them.

use rayon::prelude::*;

use super::epilogue::HostColumns;
use super::{ForNorm, Geometry, STATS_CHUNK};
use crate::error::Result;
use crate::ops::reduce::sum_of;
use crate::ops::simd::vectorized;
use crate::ops::{Select, condition_rows, round};
use crate::tensor::{Real, Tensor};

/// Statistics of the rows of y, and z.
pub(super) fn for_norm<T: Real>(g: Geometry, y: &Tensor, select: Option<Select>, next: ForNorm) -> Result<()> {
    let y = y.host::<T>()?;
    let per_row = 2 * g.n.div_ceil(STATS_CHUNK);
    let stats = next.stats.host_mut::<T>()?.par_chunks_mut(per_row);
    stats.zip(y.par_chunks(g.n)).with_min_len(8).for_each(|(stats, y)| describe(stats, y));
    let Some((scale, z)) = next.scaled else { return Ok(()) };
    let conditions = condition_rows(select, g.images, scale.rows())?;
    let scale = HostColumns::<T>::new(scale, g.n)?;
    let rows = z.host_mut::<T>()?.par_chunks_mut(g.n).zip(y.par_chunks(g.n)).enumerate().with_min_len(8);
    rows.for_each(|(row, (z, y))| multiply(z, y, scale.row(conditions[row / g.rows])));
    round(z)
}

/// Mean and inverse deviation of a row.
pub(super) type Moments<T> = (T, T);

/// Those of each row of k numbers from `stats`.
pub(super) fn all_moments<T: Real>(stats: &[T], k: usize, eps: f64) -> Vec<Moments<T>> {
    stats.par_chunks(2 * k.div_ceil(STATS_CHUNK)).with_min_len(8).map(|s| moments(s, k, T::from_f64(eps))).collect()
}

/// Mean and inverse deviation of a row of k numbers from the statistics of its chunks (Chan, Golub and LeVeque 1979).
fn moments<T: Real>(stats: &[T], k: usize, eps: T) -> Moments<T> {
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
