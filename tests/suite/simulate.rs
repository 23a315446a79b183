//! The lens simulator against lenstronomy (the golden of `cut_lensing_parity.py`), and against what the sets that it
//! imitates look like.

use std::path::PathBuf;

use arclet::data::simulate::{Class, Distances, GaussianPsf, PointMass, Population, Simulator, Split};
use arclet::io::{Checkpoint, sha256_hex};
use rayon::prelude::*;

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

/// One machine's last bit is another's, on any number of threads: what was drawn once is drawn for ever.
#[test]
fn images_keep_their_bits() {
    let simulator = simulator(42, 64);
    let digest = |class| {
        let image = simulator.image(class, Split::Train, 7).image;
        sha256_hex(&image.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())[..16].to_owned()
    };
    assert_eq!(Class::ALL.map(digest), ["20ad6bc9e6f9ecf3", "c57a44bdde56c100", "0564405f8dee9faa"]);
}

/// The numbers that `gen_lensing_features.py` has of the sets made with lenstronomy, in its order.
const FEATURES: [&str; 9] =
    ["mean", "std", "sky_level", "sky_noise", "ring_radius", "ring_width", "dipole", "quadrupole", "bright_fraction"];
/// Side of the field, arcsec.
const FIELD: f64 = 7.5;

/// The same of one image of 64 x 64 pixels.
fn features(image: &[f32]) -> [f64; 9] {
    let side = 64;
    let c = |i: usize| (i as f64 - (side as f64 - 1.0) / 2.0) * FIELD / side as f64;
    let x: Vec<f64> = image.iter().map(|&v| v.into()).collect();
    let place: Vec<(f64, f64)> = (0..side * side).map(|i| (c(i % side), c(i / side))).collect();
    let describe = |v: &[f64]| {
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        (mean, (v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / v.len() as f64).sqrt())
    };
    let outside: Vec<f64> = x.iter().zip(&place).filter(|(_, (a, b))| a.hypot(*b) > 3.2).map(|(&x, _)| x).collect();
    let ((mean, std), (sky_level, sky_noise)) = (describe(&x), describe(&outside));
    let mut sorted = x.clone();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted[2047] + sorted[2048]) / 2.0;
    let weights: Vec<f64> =
        x.iter().map(|v| (v - median).max(0.0)).map(|y| if y > 3.0 * sky_noise { y } else { 0.0 }).collect();
    let flux = weights.iter().sum::<f64>().max(1e-9);
    let average =
        |f: &dyn Fn(f64, f64) -> f64| weights.iter().zip(&place).map(|(w, &(a, b))| w * f(a, b)).sum::<f64>() / flux;
    let ring = average(&|a, b| a.hypot(b));
    let width = average(&|a, b| (a.hypot(b) - ring).powi(2)).sqrt();
    let moment = |m: f64| {
        let angle = |a: f64, b: f64| m * b.atan2(a);
        average(&|a, b| angle(a, b).cos()).hypot(average(&|a, b| angle(a, b).sin()))
    };
    let bright = x.iter().filter(|&&v| v > 0.5).count() as f64 / x.len() as f64;
    [mean, std, sky_level, sky_noise, ring, width, moment(1.0), moment(2.0), bright]
}

/// Means in 32 rings around the centre.
fn profile(image: &[f32]) -> [f64; 32] {
    let c = |i: usize| (i as f64 - 31.5) * FIELD / 64.0;
    let (mut sums, mut counts) = ([0.0; 32], [0.0; 32]);
    for (i, &v) in image.iter().enumerate() {
        let ring = (c(i % 64).hypot(c(i / 64)) / (FIELD / 2.0) * 32.0) as usize;
        if ring < 32 {
            sums[ring] += f64::from(v);
            counts[ring] += 1.0;
        }
    }
    std::array::from_fn(|k| sums[k] / counts[k])
}

/// Two-sample Kolmogorov-Smirnov distance.
fn ks(mut a: Vec<f64>, mut b: Vec<f64>) -> f64 {
    a.sort_by(f64::total_cmp);
    b.sort_by(f64::total_cmp);
    let below = |v: &[f64], x: f64| v.partition_point(|&y| y <= x) as f64 / v.len() as f64;
    a.iter().chain(&b).fold(0f64, |d, &x| d.max((below(&a, x) - below(&b, x)).abs()))
}

/// 300 images of each class against 1200 made with lenstronomy: no feature differs more than one pair in 2000 of sets of
/// one origin would (27 comparisons), the mean profile nowhere by more than four standard errors.
#[test]
fn the_population_is_that_of_the_sets_made_with_lenstronomy() {
    let real = Checkpoint::open(data("goldens/lensing/lensing_features.safetensors")).expect("golden");
    let simulator = simulator(1, 64);
    let n = 300;
    let mut failures = Vec::new();
    for class in Class::ALL {
        let read = |key: &str| real.read_f64(&format!("{}.{key}", class.name())).expect("a feature");
        let images: Vec<Vec<f32>> =
            (0..n as u64).into_par_iter().map(|i| simulator.image(class, Split::Train, i).image).collect();
        let found: Vec<[f64; 9]> = images.par_iter().map(|image| features(image)).collect();
        for (k, name) in FEATURES.iter().enumerate() {
            let (mine, theirs) = (found.iter().map(|f| f[k]).collect::<Vec<f64>>(), read(name));
            let (m, t) = (n as f64, theirs.len() as f64);
            let bound = 2.04 * ((m + t) / (m * t)).sqrt();
            let means = (mine.iter().sum::<f64>() / m, theirs.iter().sum::<f64>() / t);
            let distance = ks(mine, theirs);
            println!("{:6} {name:15} {:.4} v {:.4}: KS {distance:.3} of {bound:.3}", class.name(), means.0, means.1);
            if distance > bound {
                failures.push(format!("{} {name}: KS {distance}", class.name()));
            }
        }
        let (mean, std, count) = (read("profile_mean"), read("profile_std"), read("mean").len() as f64);
        let profiles: Vec<[f64; 32]> = images.iter().map(|image| profile(image)).collect();
        let mut worst = 0f64;
        for k in 0..32 {
            let mine = profiles.iter().map(|p| p[k]).sum::<f64>() / n as f64;
            let error = std[k] * (1.0 / n as f64 + 1.0 / count).sqrt();
            worst = worst.max((mine - mean[k]).abs() / error);
        }
        println!("{:6} radial profile: {worst:.2} standard errors at most", class.name());
        if worst > 4.0 {
            failures.push(format!("{} profile: {worst} standard errors", class.name()));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}
