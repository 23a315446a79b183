//! The source: an elliptical Sersic profile.

use super::exp::exp;
use super::lens::axes;
use crate::ops::simd::vectorized;

/// Surface brightness of an elliptical Sersic profile, in lenstronomy's convention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sersic {
    /// Surface brightness at `radius`, counts per second and square arcsec.
    pub amplitude: f64,
    /// Half-light radius of the product average, arcsec.
    pub radius: f64,
    /// Sersic index; 1 is an exponential disc.
    pub n: f64,
    /// Ellipticity (1 - q) / (1 + q) along x and y ...
    pub e1: f64,
    /// ... and along the diagonals.
    pub e2: f64,
}

/// A profile made ready for many positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Profile {
    amplitude: f64,
    /// 1.9992 n - 0.3271 (Capaccioli 1989), within 0.4 % of what encloses half of the light, as lenstronomy has it.
    b: f64,
    inverse_n: f64,
    /// From a position to elliptical coordinates in half-light radii: [[a, b], [c, d]].
    map: [f64; 4],
}

impl Sersic {
    /// Ready for many positions.
    pub(super) fn profile(&self) -> Profile {
        let (angle, q) = axes(self.e1, self.e2);
        let (sin, cos) = libm::sincos(angle);
        let (along, across) = (q.sqrt() / self.radius, 1.0 / (q.sqrt() * self.radius));
        Profile {
            amplitude: self.amplitude,
            b: 1.9992 * self.n - 0.3271,
            inverse_n: 1.0 / self.n,
            map: [along * cos, along * sin, -across * sin, across * cos],
        }
    }

    /// Surface brightness at (x, y) arcsec from the centre.
    pub fn brightness(&self, x: f64, y: f64) -> f64 {
        self.profile().brightness(x, y)
    }
}

impl Profile {
    #[inline(always)]
    fn brightness(&self, x: f64, y: f64) -> f64 {
        let [a, b, c, d] = self.map;
        let (u, v) = (a * x + b * y, c * x + d * y);
        let r = (u * u + v * v).sqrt();
        let r = if self.inverse_n == 1.0 { r } else { libm::pow(r, self.inverse_n) };
        self.amplitude * exp(self.b * (1.0 - r))
    }

    /// `factor` times the brightness at (axis - alpha_x, y - alpha_y) from the centre, for a row of pixels.
    pub(super) fn row(&self, to: &mut [f64], axis: &[f64], y: f64, alpha: (&[f64], &[f64]), factor: f64) {
        if self.inverse_n == 1.0 {
            exponential_row::<f64>(to, axis, y, alpha, (self.map, self.b, factor * self.amplitude));
        } else {
            for (((to, x), alpha_x), alpha_y) in to.iter_mut().zip(axis).zip(alpha.0).zip(alpha.1) {
                *to = factor * self.brightness(x - alpha_x, y - alpha_y);
            }
        }
    }
}

vectorized! {
    /// [`Profile::row`] of a disc (n = 1), with its map, its b and its amplitude.
    fn exponential_row(to: &mut [T], axis: &[T], y: T, alpha: (&[T], &[T]), profile: ([f64; 4], f64, f64)) {
        let ([a, b, c, d], steepness, amplitude) = profile;
        for (((to, &x), &alpha_x), &alpha_y) in to.iter_mut().zip(axis).zip(alpha.0).zip(alpha.1) {
            let (x, y) = ((x - alpha_x).to_f64(), (y - alpha_y).to_f64());
            let (u, v) = (a * x + b * y, c * x + d * y);
            let r = (u * u + v * v).sqrt();
            *to = T::from_f64(amplitude * exp(steepness * (1.0 - r)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amplitude_is_at_the_half_light_ellipse() {
        let q = 0.6f64;
        for n in [1.0, 2.5, 4.0] {
            let source = Sersic { amplitude: 3.0, radius: 0.4, n, e1: (1.0 - q) / (1.0 + q), e2: 0.0 };
            assert!((source.brightness(0.4 / q.sqrt(), 0.0) / 3.0 - 1.0).abs() < 1e-13);
            assert!((source.brightness(0.0, -0.4 * q.sqrt()) / 3.0 - 1.0).abs() < 1e-13);
            let b = 1.9992 * n - 0.3271;
            let doubled = source.brightness(0.8 / q.sqrt(), 0.0) / 3.0;
            assert!((doubled / (-b * (2f64.powf(1.0 / n) - 1.0)).exp() - 1.0).abs() < 1e-12, "n {n}: {doubled}");
        }
    }

    /// Bit for bit, whatever the vector instructions: the amplitudes are powers of two.
    #[test]
    fn a_row_is_the_brightness_of_its_pixels() {
        for n in [1.0, 3.0] {
            let source = Sersic { amplitude: 2.0, radius: 0.3, n, e1: 0.1, e2: -0.2 };
            let axis: Vec<f64> = (0..37).map(|i| f64::from(i) * 0.1 - 1.8).collect();
            let (alpha_x, alpha_y): (Vec<f64>, Vec<f64>) = axis.iter().map(|x| (0.3 * x + 0.1, x * x - 0.5)).unzip();
            let mut row = vec![f64::NAN; 37];
            source.profile().row(&mut row, &axis, 0.4, (&alpha_x, &alpha_y), 0.5);
            for i in 0..37 {
                let want = 0.5 * source.brightness(axis[i] - alpha_x[i], 0.4 - alpha_y[i]);
                assert_eq!(row[i].to_bits(), want.to_bits(), "n {n}, pixel {i}: {}, expected {want}", row[i]);
            }
        }
    }

    #[test]
    fn half_of_the_light_is_inside() {
        for n in [1.0, 2.0, 4.0] {
            let source = Sersic { amplitude: 1.0, radius: 1.0, n, e1: 0.0, e2: 0.0 };
            // In steps of the logarithm of the radius.
            let light = |from: f64, to: f64| {
                let steps = 4000;
                let step = (to / from).ln() / f64::from(steps);
                (0..steps)
                    .map(|i| from * ((f64::from(i) + 0.5) * step).exp())
                    .map(|r| r * r * source.brightness(r, 0.0))
                    .sum::<f64>()
                    * step
            };
            let (inside, outside) = (light(1e-6, 1.0), light(1.0, 1e4));
            assert!((inside / (inside + outside) - 0.5).abs() < 4e-3, "n {n}: {inside} {outside}");
        }
    }
}
