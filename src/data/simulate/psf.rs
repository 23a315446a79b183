//! The point-spread function of the telescope.

/// A Gaussian sampled at pixel centres, cut off and normalised; separable.
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianPsf {
    /// Weights along one axis, an odd number of them, with sum 1.
    weights: Vec<f64>,
}

impl GaussianPsf {
    /// Full width at half maximum `fwhm` and pixel `scale` in arcsec; cut off after `truncation` standard deviations,
    /// rounded to whole pixels (as `scipy.ndimage.gaussian_filter` does).
    pub fn new(fwhm: f64, scale: f64, truncation: f64) -> Self {
        let sigma = fwhm / (8.0 * std::f64::consts::LN_2).sqrt() / scale;
        let radius = (truncation * sigma + 0.5).floor() as i32;
        let mut weights: Vec<f64> =
            (-radius..=radius).map(|i| libm::exp(-0.5 * f64::from(i * i) / (sigma * sigma))).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        Self { weights }
    }

    /// Weights along one axis.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The square image (row-major, `side` pixels a side) as the telescope sees it; beyond its border it goes on as there.
    pub fn blur(&self, image: &[f64], side: usize) -> Vec<f64> {
        let radius = self.weights.len() / 2;
        let mut rows = vec![0.0; image.len()];
        let mut padded = vec![0.0; side + 2 * radius];
        for (to, from) in rows.chunks_exact_mut(side).zip(image.chunks_exact(side)) {
            padded[radius..][..side].copy_from_slice(from);
            padded[..radius].fill(from[0]);
            padded[radius + side..].fill(from[side - 1]);
            for (k, &weight) in self.weights.iter().enumerate() {
                add_scaled(to, &padded[k..][..side], weight);
            }
        }
        let mut blurred = vec![0.0; image.len()];
        for (row, to) in blurred.chunks_exact_mut(side).enumerate() {
            for (k, &weight) in self.weights.iter().enumerate() {
                let from = (row + k).saturating_sub(radius).min(side - 1);
                add_scaled(to, &rows[from * side..][..side], weight);
            }
        }
        blurred
    }
}

/// to += weight from.
fn add_scaled(to: &mut [f64], from: &[f64], weight: f64) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += weight * from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_becomes_the_kernel_and_no_light_is_lost() {
        let psf = GaussianPsf::new(0.087, 0.05, 3.0);
        assert_eq!(psf.weights().len(), 5);
        let mut image = vec![0.0; 81];
        image[4 * 9 + 3] = 2.0;
        let seen = psf.blur(&image, 9);
        for row in 0..9usize {
            for column in 0..9usize {
                let weight = |i: usize, centre: usize| {
                    (i + 2).checked_sub(centre).and_then(|k| psf.weights().get(k)).unwrap_or(&0.0)
                };
                let want = 2.0 * weight(row, 4) * weight(column, 3);
                assert!((seen[row * 9 + column] - want).abs() < 1e-15, "{row} {column}");
            }
        }
        assert!((seen.iter().sum::<f64>() - 2.0).abs() < 1e-14);
        assert!(psf.blur(&[7.0; 81], 9).iter().all(|v| (v - 7.0).abs() < 1e-14), "a flat sky stays flat");
        // Half of the peak at half of the width.
        let fine = GaussianPsf::new(8.0, 1.0, 3.0);
        let middle = fine.weights().len() / 2;
        assert!((fine.weights()[middle + 4] / fine.weights()[middle] - 0.5).abs() < 1e-14);
    }
}
