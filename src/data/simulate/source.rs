//! The source: an elliptical Sersic profile.

use super::lens::axes;

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
    pub(super) fn brightness(&self, x: f64, y: f64) -> f64 {
        let [a, b, c, d] = self.map;
        let (u, v) = (a * x + b * y, c * x + d * y);
        let r = (u * u + v * v).sqrt();
        let r = if self.inverse_n == 1.0 { r } else { libm::pow(r, self.inverse_n) };
        self.amplitude * libm::exp(self.b * (1.0 - r))
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
