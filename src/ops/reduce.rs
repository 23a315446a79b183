//! Reductions in one fixed order: sixteen running lanes, then the lanes pairwise. The order does not depend on the
//! vector width, so it is the same on every CPU that fuses multiply and add.

use crate::tensor::Real;

const LANES: usize = 16;

/// `step` folds elements into their lane, `join` folds two lanes. Whole lanes by arrays: element by element they would not
/// become a vector.
#[inline(always)]
pub fn lanes<T: Real, const N: usize>(
    x: [&[T]; N],
    init: T,
    step: impl Fn(T, [T; N]) -> T,
    join: impl Fn(T, T) -> T,
) -> T {
    let chunks = x.map(|x| x.as_chunks::<LANES>());
    let mut lane = [init; LANES];
    for i in 0..chunks[0].0.len() {
        let chunk = chunks.map(|(whole, _)| whole[i]);
        lane = std::array::from_fn(|j| step(lane[j], chunk.map(|c| c[j])));
    }
    for (j, l) in lane.iter_mut().enumerate().take(chunks[0].1.len()) {
        *l = step(*l, chunks.map(|(_, rest)| rest[j]));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lane[j] = join(lane[j], lane[j + width]);
        }
        width /= 2;
    }
    lane[0]
}

/// Sum of `f` over the elements.
#[inline(always)]
pub fn sum_of<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    lanes([x], T::default(), |acc, [v]| acc + f(v), |a, b| a + b)
}

/// Scalar product of two slices of one length.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    lanes([a, &b[..a.len()]], T::default(), |acc, [a, b]| a.mul_add(b, acc), |x, y| x + y)
}

/// Largest element; `T::default()` is not a candidate.
///
/// PRECOND: `x` is not empty.
#[inline(always)]
pub fn max<T: Real>(x: &[T]) -> T {
    lanes([x], x[0], |acc, [v]| if v > acc { v } else { acc }, |a, b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    #[test]
    fn reductions_match_f64_for_every_length() {
        for n in 1..70 {
            let a: Vec<f32> = (0..n).map(|i| ((i * 37 % 19) as f32 - 9.0) / 7.0).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 53 % 23) as f32 - 11.0) / 5.0).collect();
            let want: f64 = a.iter().zip(&b).map(|(x, y)| *x as f64 * *y as f64).sum();
            assert!((super::dot(&a, &b) as f64 - want).abs() < 1e-4);
            let want: f64 = a.iter().map(|x| *x as f64 * 2.0).sum();
            assert!((super::sum_of(&a, |x| x * 2.0) as f64 - want).abs() < 1e-4);
            assert_eq!(super::max(&a), a.iter().copied().fold(f32::MIN, f32::max));
        }
    }
}
