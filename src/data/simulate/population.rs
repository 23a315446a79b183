//! What lenses there are: classes, fixed parameters, and the distributions of the others.

use super::cosmology::{Distances, FlatLambda};
use super::draws::Draws;
use super::grid::Grid;
use super::lens::{PointMass, Sie};
use super::source::Sersic;

/// Dark matter below the scale of the halo, by the folder names of the public sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// None: a smooth halo.
    No,
    /// Subhaloes of cold dark matter.
    Sphere,
    /// A vortex of ultralight axions.
    Vort,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::No, Self::Sphere, Self::Vort];

    /// Name of the folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Sphere => "sphere",
            Self::Vort => "vort",
        }
    }
}

/// Part of a set; the images of two parts have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// To train on.
    Train,
    /// Held back.
    Val,
}

impl Split {
    /// All parts.
    pub const ALL: [Self; 2] = [Self::Train, Self::Val];

    /// Name of the folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }
}

/// What the numbers of a stream are for.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Parameters,
    Sky,
    Shots,
}

/// Philox stream of one use in one image. The upper half keeps clear of every other use of a seed.
pub(super) fn stream(class: Class, split: Split, purpose: Purpose) -> u32 {
    0x4c45_0000 | (split as u32) << 8 | (class as u32) << 4 | purpose as u32
}

/// Parameters that all lenses share, and ranges of those that they do not.
#[derive(Clone, Debug, PartialEq)]
pub struct Population {
    /// Expansion of the universe.
    pub cosmology: FlatLambda,
    /// How masses become Einstein radii.
    pub distances: Distances,
    /// Redshift of the lens.
    pub z_lens: f64,
    /// Redshift of the source.
    pub z_source: f64,
    /// Pixels of the detector.
    pub grid: Grid,
    /// Full width at half maximum of the PSF, arcsec.
    pub psf_fwhm: f64,
    /// Where the PSF is cut off, standard deviations.
    pub psf_truncation: f64,
    /// Standard deviation of the sky in a pixel, counts per second.
    pub sky: f64,
    /// Range of log10 of the exposure in seconds, uniform.
    pub log10_exposure: (f64, f64),
    /// Mass of the halo, solar masses.
    pub halo_mass: f64,
    /// Ellipticity of the halo.
    pub halo_e: [f64; 2],
    /// External shear.
    pub shear: [f64; 2],
    /// Profile of the source.
    pub source: Sersic,
    /// The source lies within plus and minus this of the optical axis in x and in y, uniformly, arcsec.
    pub source_offset: f64,
    /// `sphere`: mean of the Poisson number of subhaloes.
    pub subhaloes: f64,
    /// `sphere`: least and largest mass, solar masses.
    pub subhalo_mass: (f64, f64),
    /// `sphere`: slope of dN/dm.
    pub subhalo_slope: f64,
    /// `sphere`: range of the distance from the axis, uniform, arcsec.
    pub subhalo_radius: (f64, f64),
    /// `vort`: mass of the vortex, solar masses.
    pub vortex_mass: f64,
    /// `vort`: equal point masses that make it up.
    pub vortex_points: usize,
    /// `vort`: range of log10 of the axion's mass in eV, uniform.
    pub log10_axion_mass: (f64, f64),
}

impl Population {
    /// The public DeepLense sets ("Model I"), with a Poisson number of subhaloes and shot noise drawn once.
    pub fn public_sets(distances: Distances) -> Self {
        Self {
            cosmology: FlatLambda { h0: 70.0, omega_m: 0.3 },
            distances,
            z_lens: 0.5,
            z_source: 1.0,
            grid: Grid { side: 150, scale: 0.05 },
            psf_fwhm: 0.087,
            psf_truncation: 3.0,
            sky: 0.01,
            log10_exposure: (3.0, 3.5),
            halo_mass: 1e12,
            halo_e: [0.1, 0.0],
            shear: [0.05, 0.0],
            source: Sersic { amplitude: 20.0, radius: 0.25, n: 1.0, e1: -0.1, e2: 0.1 },
            source_offset: 0.35,
            subhaloes: 25.0,
            subhalo_mass: (1e6, 1e10),
            subhalo_slope: -0.9,
            subhalo_radius: (0.25, 2.0),
            vortex_mass: 3e10,
            vortex_points: 100,
            log10_axion_mass: (-24.0, -22.0),
        }
    }

    /// Einstein radius of one solar mass, arcsec.
    pub fn einstein_radius(&self) -> f64 {
        self.cosmology.einstein_radius(self.distances, self.z_lens, self.z_source)
    }

    /// The halo.
    pub fn halo(&self) -> Sie {
        Sie { theta_e: self.einstein_radius() * self.halo_mass.sqrt(), e1: self.halo_e[0], e2: self.halo_e[1] }
    }

    /// Lens `index` of a class and part.
    pub fn lens(&self, seed: u64, class: Class, split: Split, index: u64) -> Lens {
        let mut draws = Draws::new(seed, index, stream(class, split, Purpose::Parameters));
        let mut lens = Lens {
            source: [0; 2].map(|_| draws.uniform((-self.source_offset, self.source_offset))),
            exposure: libm::pow(10.0, draws.uniform(self.log10_exposure)),
            points: Vec::new(),
            axion_mass: 0.0,
            vortex_half_length: 0.0,
            vortex_angle: 0.0,
        };
        match class {
            Class::No => {}
            Class::Sphere => {
                let n = draws.poisson(self.subhaloes) as usize;
                lens.points = (0..n).map(|_| self.subhalo(&mut draws)).collect();
            }
            Class::Vort => {
                lens.axion_mass = libm::pow(10.0, draws.uniform(self.log10_axion_mass));
                // De Broglie length at z = 0.5.
                lens.vortex_half_length = 0.06 / (2.0 * lens.axion_mass) * 1e-22;
                lens.vortex_angle = draws.uniform((0.0, std::f64::consts::TAU));
                lens.points = self.vortex(lens.vortex_half_length, lens.vortex_angle);
            }
        }
        lens
    }

    fn subhalo(&self, draws: &mut Draws) -> PointMass {
        // dN/dm ~ m^slope by inversion of its integral.
        let power = self.subhalo_slope + 1.0;
        let (low, high) = (libm::pow(self.subhalo_mass.0, power), libm::pow(self.subhalo_mass.1, power));
        let mass = libm::pow(draws.uniform((low, high)), 1.0 / power);
        let r = draws.uniform(self.subhalo_radius);
        let (sin, cos) = libm::sincos(draws.uniform((0.0, std::f64::consts::TAU)));
        PointMass { x: r * cos, y: r * sin, mass }
    }

    /// Equal points from one end of a line through the axis to the other.
    fn vortex(&self, half_length: f64, angle: f64) -> Vec<PointMass> {
        let n = self.vortex_points;
        let (sin, cos) = libm::sincos(angle);
        let mass = self.vortex_mass / n as f64;
        let along = |i: usize| half_length * (2.0 * i as f64 / (n as f64 - 1.0) - 1.0);
        (0..n).map(|i| PointMass { x: along(i) * cos, y: along(i) * sin, mass }).collect()
    }
}

/// What sets one lens apart from others of its population. Numbers that do not apply to its class are 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Lens {
    /// Centre of the source, arcsec.
    pub source: [f64; 2],
    /// Exposure, seconds.
    pub exposure: f64,
    /// Substructure.
    pub points: Vec<PointMass>,
    /// Mass of the axion, eV.
    pub axion_mass: f64,
    /// Half of the vortex's length, arcsec.
    pub vortex_half_length: f64,
    /// Its angle, counted from x to y, radian.
    pub vortex_angle: f64,
}

impl Lens {
    /// Mass of all substructure, solar masses.
    pub fn substructure_mass(&self) -> f64 {
        self.points.iter().fold(0.0, |sum, p| sum + p.mass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lenses(class: Class, n: u64) -> Vec<Lens> {
        let population = Population::public_sets(Distances::PublicSets);
        (0..n).map(|i| population.lens(11, class, Split::Train, i)).collect()
    }

    /// Kolmogorov-Smirnov distance of `sample` to a uniform distribution over a range, in units of 1 / sqrt(n).
    fn unevenness(mut sample: Vec<f64>, (low, high): (f64, f64)) -> f64 {
        sample.sort_by(f64::total_cmp);
        assert!(sample[0] >= low && sample[sample.len() - 1] <= high, "outside {low}..{high}");
        let n = sample.len() as f64;
        let at = |x: f64| (x - low) / (high - low);
        sample.iter().enumerate().fold(0f64, |d, (i, &x)| d.max((at(x) - (i as f64 + 0.5) / n).abs())) * n.sqrt()
    }

    #[test]
    fn parameters_are_spread_as_documented() {
        let all = lenses(Class::Sphere, 2000);
        let check = |what: &str, sample: Vec<f64>, range| {
            let distance = unevenness(sample, range);
            assert!(distance < 1.63, "{what}: {distance}"); // 1 % of fair samples exceed it
        };
        check("source x", all.iter().map(|l| l.source[0]).collect(), (-0.35, 0.35));
        check("source y", all.iter().map(|l| l.source[1]).collect(), (-0.35, 0.35));
        check("exposure", all.iter().map(|l| l.exposure.log10()).collect(), (3.0, 3.5));
        let points: Vec<PointMass> = all.iter().flat_map(|l| l.points.clone()).collect();
        let mean = points.len() as f64 / all.len() as f64;
        assert!((mean - 25.0).abs() < 4.0 * (25.0 / all.len() as f64).sqrt(), "{mean} subhaloes");
        check("subhalo radius", points.iter().map(|p| p.x.hypot(p.y)).collect(), (0.25, 2.0));
        check(
            "subhalo angle",
            points.iter().map(|p| p.y.atan2(p.x)).collect(),
            (-std::f64::consts::PI, std::f64::consts::PI),
        );
        check("subhalo mass^0.1", points.iter().map(|p| p.mass.powf(0.1)).collect(), (1e6f64.powf(0.1), 10.0));
        let vortices = lenses(Class::Vort, 2000);
        check("axion mass", vortices.iter().map(|l| l.axion_mass.log10()).collect(), (-24.0, -22.0));
        check("angle", vortices.iter().map(|l| l.vortex_angle).collect(), (0.0, std::f64::consts::TAU));
    }

    #[test]
    fn a_vortex_is_a_centred_line_of_its_mass() {
        for lens in lenses(Class::Vort, 20) {
            assert_eq!(lens.points.len(), 100);
            assert!((lens.substructure_mass() / 3e10 - 1.0).abs() < 1e-12);
            let (first, last) = (lens.points[0], lens.points[99]);
            assert!((first.x + last.x).abs() < 1e-12 && (first.y + last.y).abs() < 1e-12);
            assert!((last.x.hypot(last.y) / lens.vortex_half_length - 1.0).abs() < 1e-12);
            assert!((lens.vortex_half_length * lens.axion_mass / 3e-24 - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn every_use_of_a_seed_has_its_own_stream() {
        let mut all = Vec::new();
        for class in Class::ALL {
            for split in Split::ALL {
                all.extend([Purpose::Parameters, Purpose::Sky, Purpose::Shots].map(|p| stream(class, split, p)));
            }
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 18);
        assert!(all.iter().all(|s| s >> 16 == 0x4c45));
    }
}
