//! From light to counts.

use super::draws::Draws;
use super::exp::exp;
use crate::ops::simd::vectorized;
use crate::rng::normals;

/// Counts of one exposure of `seconds`: to the `flux` of each pixel (counts per second) comes a sky of standard deviation
/// `sky`, and the whole is the mean of a Poisson number. A negative mean gives no counts. `streams` are those of the
/// sky and of the shot noise of image `index`.
pub(super) fn expose(flux: &mut [f64], seconds: f64, sky: f64, seed: u64, index: u64, streams: [u32; 2]) {
    let mut background = vec![0.0; flux.len()];
    normals(seed, index, streams[0], &mut background);
    let mut none = vec![0.0; flux.len()];
    means::<f64>(flux, &mut none, &background, seconds, sky);
    let mut shots = Draws::new(seed, index, streams[1]);
    flux.iter_mut().zip(none).for_each(|(pixel, none)| *pixel = shots.poisson_from(*pixel, none));
}

vectorized! {
    /// Turns `flux` into the means of Poisson numbers, and puts the probabilities that those are 0 into `none`.
    fn means(flux: &mut [T], none: &mut [T], background: &[f32], seconds: T, sky: T) {
        for ((pixel, none), &background) in flux.iter_mut().zip(none).zip(background) {
            *pixel = seconds * (*pixel + sky * T::from_f64(f64::from(background)));
            *none = T::from_f64(exp(-pixel.to_f64()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Variance of a bright pixel: of its counts, and of the sky in counts squared.
    #[test]
    fn noise_has_the_variance_of_sky_and_shots() {
        let n = 40_000;
        let mut counts = vec![0.2; n];
        expose(&mut counts, 2000.0, 0.01, 3, 4, [1, 2]);
        let mean = counts.iter().sum::<f64>() / n as f64;
        let variance = counts.iter().map(|c| (c - mean) * (c - mean)).sum::<f64>() / n as f64;
        let want = 400.0 + 20.0 * 20.0;
        assert!((mean - 400.0).abs() < 4.0 * (want / n as f64).sqrt(), "{mean}");
        assert!((variance / want - 1.0).abs() < 4.0 * (2.0 / n as f64).sqrt(), "{variance}, expected {want}");
    }

    /// Without light half of the sky is negative and gives nothing; the other half is a half-normal of counts.
    #[test]
    fn an_empty_sky_is_cut_at_zero() {
        let n = 40_000;
        let mut counts = vec![0.0; n];
        expose(&mut counts, 3000.0, 0.01, 3, 5, [1, 2]);
        let dark = counts.iter().filter(|&&c| c == 0.0).count() as f64 / n as f64;
        assert!((0.5..0.54).contains(&dark), "{dark}");
        let mean = counts.iter().sum::<f64>() / n as f64;
        let want = 30.0 / std::f64::consts::TAU.sqrt();
        assert!((mean / want - 1.0).abs() < 0.04, "{mean}, expected {want}");
    }
}
