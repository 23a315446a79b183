//! Distances in a flat universe of matter and a cosmological constant, and the Einstein radius of a mass.

/// Speed of light, km/s.
const C: f64 = 299_792.458;
/// Heliocentric gravitational constant G Msun, m^3/s^2 (nominal value of the IAU, 2015 resolution B3).
const GM_SUN: f64 = 1.327_124_4e20;
/// Megaparsec in metres (IAU, 2015 resolution B2).
const MPC: f64 = 3.085_677_581_491_367e22;
/// Arcseconds of a radian.
pub const ARCSEC: f64 = 648_000.0 / std::f64::consts::PI;

/// Which distances turn a mass into an Einstein radius.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distances {
    /// Luminosity distances, and their difference between lens and source, as the public sets were made with: ring sizes
    /// agree with those, and all masses are 0.593 times (z = 0.5 and 1) what is quoted.
    PublicSets,
    /// Angular-diameter distances, as lensing theory has it.
    Angular,
}

impl Distances {
    /// Name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::PublicSets => "public-sets",
            Self::Angular => "angular",
        }
    }
}

/// A flat universe of matter and a cosmological constant (no radiation).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlatLambda {
    /// Hubble constant, km/s/Mpc.
    pub h0: f64,
    /// Share of matter in today's density.
    pub omega_m: f64,
}

impl FlatLambda {
    /// Line-of-sight comoving distance to redshift `z`, Mpc: c/H0 times the integral of 1 / E, by Simpson's rule.
    pub fn comoving(&self, z: f64) -> f64 {
        const INTERVALS: usize = 512;
        let step = z / INTERVALS as f64;
        let inverse_e = |i: usize| {
            let a = 1.0 + i as f64 * step;
            1.0 / (self.omega_m * a * a * a + (1.0 - self.omega_m)).sqrt()
        };
        let inner: f64 = (1..INTERVALS).map(|i| inverse_e(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        C / self.h0 * step / 3.0 * (inverse_e(0) + inner + inverse_e(INTERVALS))
    }

    /// Angular-diameter distance to `z`, Mpc.
    pub fn angular(&self, z: f64) -> f64 {
        self.comoving(z) / (1.0 + z)
    }

    /// Luminosity distance to `z`, Mpc.
    pub fn luminosity(&self, z: f64) -> f64 {
        self.comoving(z) * (1.0 + z)
    }

    /// Einstein radius in arcsec of a point of one solar mass at `z_lens` before a source at `z_source`,
    /// sqrt(4 G M / c^2 D_ls / (D_l D_s)). It grows with the root of the mass.
    pub fn einstein_radius(&self, distances: Distances, z_lens: f64, z_source: f64) -> f64 {
        let (d_l, d_s, d_ls) = match distances {
            Distances::PublicSets => {
                let (d_l, d_s) = (self.luminosity(z_lens), self.luminosity(z_source));
                (d_l, d_s, d_s - d_l)
            }
            Distances::Angular => {
                let d_ls = (self.comoving(z_source) - self.comoving(z_lens)) / (1.0 + z_source);
                (self.angular(z_lens), self.angular(z_source), d_ls)
            }
        };
        let c = C * 1e3;
        (4.0 * GM_SUN / (c * c) * d_ls / (d_l * d_s * MPC)).sqrt() * ARCSEC
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSMOLOGY: FlatLambda = FlatLambda { h0: 70.0, omega_m: 0.3 };

    /// Closed forms exist without a cosmological constant: D_C = 2 c/H0 (1 - 1/sqrt(1 + z)), and without matter: c z/H0.
    #[test]
    fn distances_match_closed_forms() {
        for z in [0.1, 0.5, 1.0, 3.0] {
            let matter = FlatLambda { h0: 70.0, omega_m: 1.0 }.comoving(z);
            let want = 2.0 * C / 70.0 * (1.0 - 1.0 / (1.0 + z).sqrt());
            assert!((matter / want - 1.0).abs() < 1e-9, "{matter}, expected {want}");
            let empty = FlatLambda { h0: 50.0, omega_m: 0.0 }.comoving(z);
            assert!((empty / (C * z / 50.0) - 1.0).abs() < 1e-12);
            assert!((COSMOLOGY.luminosity(z) / COSMOLOGY.angular(z) / (1.0 + z).powi(2) - 1.0).abs() < 1e-14);
        }
    }

    /// The radii that the public sets' convention and lensing theory give for the halo of 1e12 solar masses.
    #[test]
    fn both_conventions_give_their_known_rings() {
        let radius = |distances| COSMOLOGY.einstein_radius(distances, 0.5, 1.0) * 1e6;
        assert!((radius(Distances::PublicSets) - 1.281_489_363_862_327_7).abs() < 1e-8);
        assert!((radius(Distances::Angular) - 1.665).abs() < 5e-4);
        let masses = (radius(Distances::PublicSets) / radius(Distances::Angular)).powi(2);
        assert!((masses - 0.593).abs() < 5e-4, "{masses}");
    }
}
