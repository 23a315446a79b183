//! Fewer, larger pixels.

/// Averages over areas: each new pixel is the mean of what it covers.
#[derive(Clone, Debug)]
pub struct AreaAverage {
    side_in: usize,
    /// Of each new pixel along one axis: the first old one that it covers, and the share of each.
    covers: Vec<(usize, Vec<f64>)>,
}

impl AreaAverage {
    /// From `side_in` to `side_out` pixels a side, which are not more, and at least one.
    pub fn new(side_in: usize, side_out: usize) -> Self {
        assert!(0 < side_out && side_out <= side_in, "{side_out} pixels from {side_in}");
        let edge = |i: usize| (i * side_in) as f64 / side_out as f64;
        let covers = (0..side_out).map(|i| {
            let (low, high) = (edge(i), edge(i + 1));
            let first = i * side_in / side_out;
            let last = ((i + 1) * side_in).div_ceil(side_out);
            let overlap = |j: usize| ((j + 1) as f64).min(high) - (j as f64).max(low);
            let mut shares: Vec<f64> = (first..last).map(overlap).collect();
            let sum: f64 = shares.iter().sum();
            shares.iter_mut().for_each(|s| *s /= sum);
            (first, shares)
        });
        Self { side_in, covers: covers.collect() }
    }

    /// The row-major square `image` with its new number of pixels.
    pub fn apply(&self, image: &[f64]) -> Vec<f64> {
        let (side_in, side_out) = (self.side_in, self.covers.len());
        let mut out = Vec::with_capacity(side_out * side_out);
        let mut line = vec![0.0; side_in];
        for (first, shares) in &self.covers {
            line.fill(0.0);
            for (row, share) in image[first * side_in..].chunks_exact(side_in).zip(shares) {
                line.iter_mut().zip(row).for_each(|(to, from)| *to += share * from);
            }
            out.extend(
                self.covers
                    .iter()
                    .map(|(first, shares)| line[*first..].iter().zip(shares).map(|(v, s)| v * s).sum::<f64>()),
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_averaged() {
        // Three pixels to two: a whole one and half of the middle one each.
        let image = [0.0, 3.0, 6.0, 0.0, 3.0, 6.0, 9.0, 9.0, 9.0];
        let want = [1.0, 5.0, (1.0 + 2.0 * 9.0) / 3.0, (5.0 + 2.0 * 9.0) / 3.0];
        for (got, want) in AreaAverage::new(3, 2).apply(&image).iter().zip(want) {
            assert!((got - want).abs() < 1e-14, "{got}, expected {want}");
        }
        assert_eq!(AreaAverage::new(3, 3).apply(&image), image);
        assert_eq!(AreaAverage::new(4, 2).apply(&[1.0; 16]), [1.0; 4]);
    }

    #[test]
    fn the_mean_is_kept() {
        let image: Vec<f64> = (0..150 * 150).map(|i| ((i * 7919) % 1009) as f64).collect();
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        for side in [1, 16, 64, 149] {
            let small = AreaAverage::new(150, side).apply(&image);
            assert_eq!(small.len(), side * side);
            assert!((mean(&small) / mean(&image) - 1.0).abs() < 1e-12, "side {side}");
        }
    }
}
