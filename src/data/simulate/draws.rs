//! Random numbers of one image from Philox: uniform and Poisson.

use super::exp::exp;
use crate::rng::philox4x32_10;

/// Mean below which a walk along the distribution is the quicker way to a Poisson number.
const INVERSION: f64 = 30.0;

/// 1 / k, for a walk along the Poisson distribution (entry 0 is not used).
const RECIPROCALS: [f64; 101] = {
    let mut table = [0.0; 101];
    let mut k = 1;
    while k < table.len() {
        table[k] = 1.0 / k as f64;
        k += 1;
    }
    table
};

/// Numbers of one stream, one after another: words of `philox4x32_10` with key = seed and counter = (index, block, stream).
pub(super) struct Draws {
    key: [u32; 2],
    index: [u32; 2],
    stream: u32,
    block: u32,
    /// The second number of the last block, if that has not been drawn.
    waiting: Option<f64>,
}

impl Draws {
    pub(super) fn new(seed: u64, index: u64, stream: u32) -> Self {
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        Self { key: halves(seed), index: halves(index), stream, block: 0, waiting: None }
    }

    /// Uniform in the open interval (0, 1), of 52 bits: neither end can come out.
    #[inline]
    pub(super) fn unit(&mut self) -> f64 {
        if let Some(unit) = self.waiting.take() {
            return unit;
        }
        let words = philox4x32_10([self.index[0], self.index[1], self.block, self.stream], self.key);
        self.block = self.block.wrapping_add(1);
        let unit = |high: u32, low: u32| {
            ((u64::from(high) << 20 | u64::from(low) >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
        };
        self.waiting = Some(unit(words[2], words[3]));
        unit(words[0], words[1])
    }

    /// Uniform between the two ends.
    pub(super) fn uniform(&mut self, (low, high): (f64, f64)) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A Poisson number of this mean; 0 for a mean of 0 or less.
    pub(super) fn poisson(&mut self, mean: f64) -> f64 {
        self.poisson_from(mean, exp(-mean))
    }

    /// [`Draws::poisson`] of a mean whose `none` = [`exp`] (-mean) is known.
    #[inline]
    pub(super) fn poisson_from(&mut self, mean: f64, none: f64) -> f64 {
        if mean <= 0.0 {
            0.0
        } else if mean < INVERSION {
            self.poisson_by_inversion(mean, none)
        } else {
            self.poisson_by_rejection(mean)
        }
    }

    /// Walks along the distribution until it has used up a uniform number.
    fn poisson_by_inversion(&mut self, mean: f64, none: f64) -> f64 {
        let (mut left, mut p, mut k) = (self.unit(), none, 0);
        // The tail from 100 on is under 1e-21: only rounding could lead there.
        while left > p && k < RECIPROCALS.len() - 1 {
            left -= p;
            k += 1;
            p *= mean * RECIPROCALS[k];
        }
        k as f64
    }

    /// PTRS of Hörmann (1993), "The transformed rejection method for generating Poisson random variables"; valid from a mean
    /// of 10 on.
    fn poisson_by_rejection(&mut self, mean: f64) -> f64 {
        let b = 0.931 + 2.53 * mean.sqrt();
        let a = -0.059 + 0.024_83 * b;
        let squeeze = 0.927_7 - 3.622_4 / (b - 2.0);
        loop {
            let u = self.unit() - 0.5;
            let v = self.unit();
            let distance = 0.5 - u.abs();
            let real = (2.0 * a / distance + b) * u + mean + 0.43;
            if real < 0.0 {
                continue;
            }
            let k = real as u64 as f64;
            if distance >= 0.07 && v <= squeeze {
                return k;
            }
            if distance < 0.013 && v > distance {
                continue;
            }
            let inverse_alpha = 1.123_9 + 1.132_8 / (b - 3.4);
            if v * inverse_alpha / (a / (distance * distance) + b) <= probability(mean, k) {
                return k;
            }
        }
    }
}

/// Probability of k under a Poisson distribution, within 1e-10 of itself.
fn probability(mean: f64, k: f64) -> f64 {
    if k < 10.0 {
        return (1..=k as usize).fold(exp(-mean), |p, i| p * mean * RECIPROCALS[i]);
    }
    // Stirling's series of the factorial, from 10 on.
    let square = 1.0 / (k * k);
    let rest = (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0))) / k;
    exp(k * libm::log(mean / k) + k - mean - rest) / (std::f64::consts::TAU * k).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_uniform_and_never_an_end() {
        let mut draws = Draws::new(1, 2, 3);
        let mut sample: Vec<f64> = (0..100_000).map(|_| draws.unit()).collect();
        sample.sort_by(f64::total_cmp);
        let n = sample.len() as f64;
        let distance = sample.iter().enumerate().fold(0f64, |d, (i, x)| d.max((x - (i as f64 + 0.5) / n).abs()));
        assert!(distance * n.sqrt() < 1.63, "{}", distance * n.sqrt()); // 1 % of fair samples exceed it
        assert!(sample[0] > 0.0 && sample[99_999] < 1.0);
        let top = ((1u64 << 52) - 1) as f64 + 0.5;
        assert!(top * (1.0 / (1u64 << 52) as f64) < 1.0, "the largest word stays below one");
    }

    #[test]
    fn probabilities_are_those_of_the_definition() {
        for mean in [10.0, 31.7, 500.0] {
            for k in [0.0, 1.0, 9.0, 10.0, 11.0, 30.0, 480.0, 700.0] {
                let want = k * libm::log(mean) - mean - libm::lgamma(k + 1.0);
                // Both lose digits to cancelling terms; far tails underflow.
                let got = libm::log(probability(mean, k));
                assert!(want < -690.0 || (got - want).abs() < 1e-9, "{mean}, {k}: {got}, expected {want}");
            }
        }
    }

    /// Chi-square against the distribution itself, on both sides of where the method changes.
    #[test]
    fn poisson_numbers_follow_their_distribution() {
        let n = 100_000;
        for mean in [0.05, 0.7, 4.0, 12.0, 29.99, 30.01, 400.0] {
            let mut draws = Draws::new(5, 6, 7);
            let mut counts = vec![0.0; 4 * mean as usize + 40];
            for _ in 0..n {
                let k = draws.poisson(mean);
                assert!(k >= 0.0 && k.fract() == 0.0);
                counts[k as usize] += 1.0;
            }
            // Cells of at least 20 expected numbers, neighbours joined until there are as many.
            let (mut chi, mut cells, mut expected, mut found) = (0.0, 0.0, 0.0, 0.0);
            for (k, count) in counts.iter().enumerate() {
                let k = k as f64;
                expected += f64::from(n) * libm::exp(k * libm::log(mean) - mean - libm::lgamma(k + 1.0));
                found += count;
                if expected >= 20.0 {
                    chi += (found - expected) * (found - expected) / expected;
                    cells += 1.0;
                    (expected, found) = (0.0, 0.0);
                }
            }
            let freedom = f64::max(cells - 1.0, 1.0);
            // Three standard deviations of chi-square above its mean.
            assert!(chi < freedom + 3.0 * (2.0 * freedom).sqrt(), "mean {mean}: chi-square {chi} of {freedom}");
            assert!(cells > 1.0, "mean {mean}: nothing was compared");
        }
        assert_eq!(Draws::new(0, 0, 0).poisson(0.0), 0.0);
        assert_eq!(Draws::new(0, 0, 0).poisson(-3.0), 0.0);
    }

    #[test]
    fn streams_images_and_seeds_differ() {
        let first = |seed, index, stream| Draws::new(seed, index, stream).unit();
        let all = [
            first(0, 0, 0),
            first(1, 0, 0),
            first(0, 1, 0),
            first(0, 0, 1),
            first(1 << 32, 0, 0),
            first(0, 1 << 32, 0),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b), "{all:?}");
        }
    }
}
