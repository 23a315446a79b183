//! The lens simulator against lenstronomy (the golden of `cut_lensing_parity.py`), and against what the sets that it
//! imitates look like.

use std::path::PathBuf;

use arclet::data::simulate::{Class, Distances, GaussianPsf, PointMass, Population, Simulator, Split};
use arclet::io::Checkpoint;

use crate::common::data;

fn simulator(seed: u64, size: usize) -> Simulator {
    Simulator::new(Population::public_sets(Distances::PublicSets), seed, size).expect("a simulator")
}

/// The pixels that the golden keeps.
fn cut(field: &[f64], stride: usize, offset: usize) -> Vec<f64> {
    let rows = field.chunks_exact(150).skip(offset).step_by(stride);
    rows.flat_map(|row| row.iter().copied().skip(offset).step_by(stride)).collect()
}

/// Largest difference, and largest value of `want`.
fn largest(got: &[f64], want: &[f64]) -> (f64, f64) {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|v| v.is_finite()));
    let difference = got.iter().zip(want).fold(0f64, |m, (g, w)| m.max((g - w).abs()));
    (difference, want.iter().fold(0f64, |m, w| m.max(w.abs())))
}

/// Deflections within 1e-5 arcsec, light before and after the PSF within 1e-3 of the peak. (Measured: 5e-7 arcsec and
/// 6e-8 of the peak, which is the rounding of the golden to f32.)
#[test]
fn fields_and_images_are_lenstronomys() {
    let path = std::env::var_os("ARCLET_LENSING_PARITY").map(PathBuf::from);
    let file =
        Checkpoint::open(path.unwrap_or_else(|| data("goldens/lensing/lensing_parity.safetensors"))).expect("golden");
    let number = |key: &str| file.metadata()[key].parse::<usize>().expect("a number");
    let (stride, offset) = (number("stride"), number("offset"));
    let simulator = simulator(0, 64);
    let population = simulator.population();
    let read = |name: &str| file.read_f64(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!((population.halo().theta_e / read("theta_E_halo")[0] - 1.0).abs() < 1e-9);
    assert!((population.einstein_radius() / read("theta_E_1_Msun")[0] - 1.0).abs() < 1e-9);
    let psf = GaussianPsf::new(population.psf_fwhm, population.grid.scale, population.psf_truncation);
    for (i, want) in read("psf_kernel").iter().enumerate() {
        assert!((psf.weights()[i / 5] * psf.weights()[i % 5] - want).abs() < 1e-12);
    }
    let mut worst = [0f64; 3];
    for class in Class::ALL {
        for number in 0..3 {
            let read = |what: &str| read(&format!("{}{number}.{what}", class.name()));
            let points = if class == Class::No { Vec::new() } else { read("points") };
            let points: Vec<PointMass> =
                points.chunks_exact(4).map(|p| PointMass { x: p[0], y: p[1], mass: p[2] }).collect();
            assert_eq!(points.is_empty(), class == Class::No);
            let source = read("source");
            let field = simulator.deflection(&points);
            let light = simulator.light(&field, [source[0], source[1]]);
            let seen = simulator.blur(&light);
            let compare = |got: &[f64], what: &str| largest(&cut(got, stride, offset), &read(what));
            worst[0] = worst[0].max(compare(&field.x, "alpha_x").0).max(compare(&field.y, "alpha_y").0);
            for (slot, got, what) in [(1, &light, "raw"), (2, &seen, "psf")] {
                let (difference, peak) = compare(got, what);
                assert!(peak > 0.05, "{what} shows nothing");
                worst[slot] = worst[slot].max(difference / peak);
            }
        }
    }
    println!("deflection {:e} arcsec, light {:e} and, blurred, {:e} of the peak", worst[0], worst[1], worst[2]);
    assert!(worst[0] < 1e-5 && worst[1] < 1e-3 && worst[2] < 1e-3, "{worst:?}");
}
