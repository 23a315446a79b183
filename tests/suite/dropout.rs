//! Dropout: the same mask on every device, in forward and backward, and another one wherever it has to be another.

use arclet::device::Device;
use arclet::ops::dropout::{Dropout, dropout};
use arclet::tensor::{DType, Tensor};

use crate::common::{cpu, rounding_cpu};
use crate::engines::{CUDA_DTYPES, cuda, every_mode};

const PLACE: Dropout = Dropout { rate: 0.3, seed: 0x0123_4567_89ab_cdef, layer: 7 };

fn run(device: &Device, dtype: DType, place: Dropout, step: u32, x: &[f32]) -> Vec<f32> {
    let step = Tensor::from_u32(device, &[1], &[step]).unwrap();
    let x = Tensor::from_f32(device, dtype, &[x.len()], x).unwrap();
    let mut y = Tensor::from_f32(device, dtype, x.shape(), &vec![f32::NAN; x.len()]).unwrap();
    device.run(|| dropout(device, place, &step, &x, &mut y)).unwrap();
    y.to_f32(device).unwrap()
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| 1.0 + i as f32 / 64.0).collect()
}

fn mask(place: Dropout, step: u32, n: usize) -> Vec<bool> {
    run(&cpu(), DType::F32, place, step, &vec![1.0; n]).iter().map(|&y| y != 0.0).collect()
}

#[test]
fn masks_have_the_same_bits_on_every_device() {
    for n in [1, 5, 4096, 4099] {
        for dtype in CUDA_DTYPES {
            let want = run(&rounding_cpu(), dtype, PLACE, 3, &ramp(n));
            let device = cuda();
            let got = every_mode("dropout", || run(&device, dtype, PLACE, 3, &ramp(n)));
            assert!(want == got, "{n} elements in {dtype}");
        }
        let exact = run(&cpu(), DType::F64, PLACE, 3, &ramp(n));
        assert!(exact == run(&cpu(), DType::F32, PLACE, 3, &ramp(n)), "f64 keeps the same elements");
    }
}

#[test]
fn elements_are_dropped_at_the_rate_and_the_rest_grows() {
    let x = ramp(1 << 16);
    for rate in [0.0, 0.1, 0.5, 0.9] {
        let y = run(&cpu(), DType::F32, Dropout { rate, ..PLACE }, 0, &x);
        let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64;
        let (n, scale) = (x.len() as f64, (1.0 / (1.0 - rate)) as f32);
        let spread = (n * rate * (1.0 - rate)).sqrt();
        assert!((dropped - n * rate).abs() <= 4.0 * spread, "{dropped} of {n} dropped at a rate of {rate}");
        assert!(x.iter().zip(&y).all(|(x, y)| *y == 0.0 || *y == x * scale));
    }
}

#[test]
fn backward_drops_what_forward_dropped() {
    let kept = mask(PLACE, 5, 3000);
    let dx = run(&cpu(), DType::F32, PLACE, 5, &vec![-0.25; 3000]);
    assert!(kept.iter().zip(dx).all(|(&kept, dx)| dx == if kept { -0.25 * (1.0 / 0.7) as f32 } else { 0.0 }));
}

#[test]
fn steps_layers_and_seeds_have_masks_of_their_own() {
    let n = 20_000;
    let masks = [
        mask(PLACE, 5, n),
        mask(PLACE, 6, n),
        mask(Dropout { layer: 8, ..PLACE }, 5, n),
        mask(Dropout { seed: PLACE.seed + 1, ..PLACE }, 5, n),
        mask(Dropout { seed: PLACE.seed ^ (1 << 40), ..PLACE }, 5, n),
    ];
    for (i, a) in masks.iter().enumerate() {
        for b in &masks[..i] {
            // Independent masks agree where both keep or both drop.
            let (agree, p) = (a.iter().zip(b).filter(|(a, b)| a == b).count() as f64, 0.7 * 0.7 + 0.3 * 0.3);
            assert!((agree - p * n as f64).abs() < 4.0 * (n as f64 * p * (1.0 - p)).sqrt(), "{agree} of {n} agree");
        }
    }
    assert_eq!(mask(PLACE, 5, n)[..100], mask(PLACE, 5, 100), "an element's fate does not depend on those behind it");
}

#[test]
fn rates_and_operands_that_do_not_fit_are_refused() {
    let device = cpu();
    let step = Tensor::from_u32(&device, &[1], &[0]).unwrap();
    let [x, mut y] = [0; 2].map(|_| Tensor::zeros(&device, DType::F32, &[4]).unwrap());
    for rate in [-0.1, 1.0, f64::NAN] {
        let error = dropout(&device, Dropout { rate, ..PLACE }, &step, &x, &mut y).unwrap_err().to_string();
        assert!(error.contains("rate"), "{error}");
    }
    let mut short = Tensor::zeros(&device, DType::F32, &[3]).unwrap();
    assert!(dropout(&device, PLACE, &step, &x, &mut short).is_err());
    assert!(dropout(&device, PLACE, &x, &x, &mut y).is_err(), "a step is an integer");
}
