//! Where the results of a tile go that nothing follows but the sum with what is there.

use crate::device::packed::LANES;
use crate::ops::simd::vectorized;

/// Columns from `column` on of the rows of `to` [R, N] = those of a tile [R, P 16], as many as there are.
pub fn put_tile(to: &mut [f32], n: usize, column: usize, tile: &[f32]) {
    store(to, n, column, tile, false);
}

/// The same with `+=`.
pub fn add_tile(to: &mut [f32], n: usize, column: usize, tile: &[f32]) {
    store(to, n, column, tile, true);
}

vectorized! { plain
    fn store(to: &mut [f32], n: usize, column: usize, tile: &[f32], add: bool) {
        let stride = tile.len() / (to.len() / n);
        let width = stride.min(n - column);
        for (to, from) in to.chunks_exact_mut(n).zip(tile.chunks_exact(stride)) {
            // By vectors of a known length: a call of `memmove` would take longer than the copy.
            let (to, to_rest) = to[column..][..width].as_chunks_mut::<LANES>();
            let (from, from_rest) = from[..width].as_chunks::<LANES>();
            for (to, from) in to.iter_mut().zip(from) {
                *to = if add { std::array::from_fn(|i| to[i] + from[i]) } else { *from };
            }
            for (to, &from) in to_rest.iter_mut().zip(from_rest) {
                *to = if add { *to + from } else { from };
            }
        }
    }
}
