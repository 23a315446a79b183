//! A simulator of galaxy-galaxy strong lenses in the style of the public DeepLense sets ("Model I"): a singular
//! isothermal ellipsoid with external shear, point-mass substructure, a Sersic source, a Gaussian PSF, sky and shot noise.
//!
//! Angles are arcsec, masses solar masses, everything is f64 until the finished image. The conventions (ellipticities,
//! normalisation of the source, truncation of the PSF) are those of lenstronomy 1.14, whose deflection fields and images
//! this module is held to by a test. An image depends on (seed, class, split, index) and the population alone: its random
//! numbers come from Philox, its functions from `libm` and not from the system, and no operation is fused or reordered, so
//! its bits are the same for any number of threads and on any machine.

mod cosmology;
mod draws;
mod exp;
mod grid;
mod lens;
mod noise;
mod population;
mod psf;
mod resample;
mod set;
mod simulator;
mod source;

pub use cosmology::{Distances, FlatLambda};
pub use grid::Grid;
pub use lens::{Deflection, PointMass, Sie, add_points, add_shear, add_sie};
pub use population::{Class, Lens, Population, Split};
pub use psf::GaussianPsf;
pub use resample::AreaAverage;
pub use set::{Plan, write_set};
pub use simulator::{SIZES, Simulated, Simulator};
pub use source::Sersic;
