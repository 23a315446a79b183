//! From a population to images.

use std::ops::RangeInclusive;

use super::grid::Grid;
use super::lens::{Deflection, PointMass, add_points, add_shear, add_sie};
use super::noise::expose;
use super::population::{Class, Lens, Population, Purpose, Split, stream};
use super::psf::GaussianPsf;
use super::resample::AreaAverage;
use super::source::Profile;
use crate::error::{Error, Result};

/// Pixels that a side of an image may have: up to those of the detector.
pub const SIZES: RangeInclusive<usize> = 8..=150;

/// Draws lenses of one population with one seed.
#[derive(Clone, Debug)]
pub struct Simulator {
    population: Population,
    seed: u64,
    /// Deflection of halo and shear, which all lenses share.
    smooth: Deflection,
    /// Einstein radius of one solar mass, arcsec.
    theta_e: f64,
    source: Profile,
    psf: GaussianPsf,
    resample: AreaAverage,
    size: usize,
}

/// One image and what it shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulated {
    /// Size x size pixels, row = y, the least at 0 and the largest at 1.
    pub image: Vec<f32>,
    /// The lens.
    pub lens: Lens,
    /// Least and largest count of a pixel of the detector; what normalising has lost.
    pub counts: (f64, f64),
}

impl Simulator {
    /// Images of `size` pixels a side, averaged down from the detector.
    ///
    /// # Errors
    /// [`Error::Usage`] for a size outside of [`SIZES`] or beyond the detector of `population`.
    pub fn new(population: Population, seed: u64, size: usize) -> Result<Self> {
        let grid = population.grid;
        if !SIZES.contains(&size) || size > grid.side {
            let (least, most) = (SIZES.start(), grid.side.min(*SIZES.end()));
            return Err(Error::usage(format!("size {size}: {least} to {most} pixels a side expected")));
        }
        let mut smooth = Deflection::zeros(grid);
        add_sie(&mut smooth, grid, &population.halo());
        add_shear(&mut smooth, grid, population.shear);
        Ok(Self {
            seed,
            smooth,
            theta_e: population.einstein_radius(),
            source: population.source.profile(),
            psf: GaussianPsf::new(population.psf_fwhm, grid.scale, population.psf_truncation),
            resample: AreaAverage::new(grid.side, size),
            size,
            population,
        })
    }

    /// What the lenses have in common.
    pub fn population(&self) -> &Population {
        &self.population
    }

    /// Seed of all random numbers.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Pixels of a side of an image.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Deflection of halo, shear and `points` in each pixel of the detector.
    pub fn deflection(&self, points: &[PointMass]) -> Deflection {
        let mut field = self.smooth.clone();
        add_points(&mut field, self.population.grid, points, self.theta_e);
        field
    }

    /// Light of the lensed source at `centre` (arcsec) in each pixel of the detector, counts per second, before the PSF:
    /// brightness at the middle of the pixel times its area.
    pub fn light(&self, field: &Deflection, centre: [f64; 2]) -> Vec<f64> {
        let Grid { side, scale } = self.population.grid;
        let axis = self.population.grid.axis();
        // Relative to the centre of the source, which the profile is about.
        let columns: Vec<f64> = axis.iter().map(|x| x - centre[0]).collect();
        let mut light = vec![0.0; side * side];
        let rows = field.x.chunks_exact(side).zip(field.y.chunks_exact(side)).zip(light.chunks_exact_mut(side));
        for (((alpha_x, alpha_y), to), y) in rows.zip(&axis) {
            self.source.row(to, &columns, y - centre[1], (alpha_x, alpha_y), scale * scale);
        }
        light
    }

    /// `light` as the telescope sees it, without noise.
    pub fn blur(&self, light: &[f64]) -> Vec<f64> {
        self.psf.blur(light, self.population.grid.side)
    }

    /// Image `index` of a class and part.
    pub fn image(&self, class: Class, split: Split, index: u64) -> Simulated {
        let lens = self.population.lens(self.seed, class, split, index);
        let light = if lens.points.is_empty() {
            self.light(&self.smooth, lens.source)
        } else {
            self.light(&self.deflection(&lens.points), lens.source)
        };
        let mut counts = self.blur(&light);
        let streams = [Purpose::Sky, Purpose::Shots].map(|purpose| stream(class, split, purpose));
        expose(&mut counts, lens.exposure, self.population.sky, self.seed, index, streams);
        let image = normalised(&self.resample.apply(&counts));
        Simulated { image, lens, counts: range(&counts) }
    }
}

/// Least and largest of `values`.
fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

/// `values` with the least at 0 and the largest at 1; all 0 if they are equal.
fn normalised(values: &[f64]) -> Vec<f32> {
    let (low, high) = range(values);
    let scale = if high > low { high - low } else { 1.0 };
    values.iter().map(|v| ((v - low) / scale) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::simulate::Distances;

    fn simulator(seed: u64, size: usize) -> Simulator {
        Simulator::new(Population::public_sets(Distances::PublicSets), seed, size).unwrap()
    }

    #[test]
    fn images_fill_the_range_from_zero_to_one() {
        let simulator = simulator(3, 64);
        for class in Class::ALL {
            let got = simulator.image(class, Split::Train, 5);
            assert_eq!(got.image.len(), 64 * 64);
            let of = |f: fn(f32, f32) -> f32| got.image.iter().copied().reduce(f).unwrap();
            assert_eq!((of(f32::min), of(f32::max)), (0.0, 1.0));
            assert!(got.counts.0 == 0.0 && got.counts.1 > 200.0, "{:?}", got.counts);
        }
        assert_eq!(normalised(&[2.5; 4]), [0.0; 4]);
    }

    #[test]
    fn an_image_depends_on_seed_class_split_and_index() {
        let one = |seed, class, split, index| simulator(seed, 16).image(class, split, index).image;
        let base = one(0, Class::No, Split::Train, 0);
        assert_eq!(base, one(0, Class::No, Split::Train, 0));
        for other in [
            one(1, Class::No, Split::Train, 0),
            one(0, Class::Sphere, Split::Train, 0),
            one(0, Class::No, Split::Val, 0),
            one(0, Class::No, Split::Train, 1),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn sizes_outside_of_the_detector_are_refused() {
        for size in [0, 7, 151] {
            let error = Simulator::new(Population::public_sets(Distances::Angular), 0, size).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("8 to 150"), "{error}");
        }
    }
}
