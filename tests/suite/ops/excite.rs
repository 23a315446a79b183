//! Channels times their shares.

use arclet::ops::excite::excite;
use arclet::tensor::{DType, Tensor};

use super::{tensor, values};
use crate::common::cpu;
use crate::engines::check;

#[test]
fn channels_are_weighted_by_their_images_gates() {
    // Fewer and more channels than a vector, more elements than a block.
    for [images, height, width, c] in [[1, 1, 1, 1], [2, 3, 5, 20], [3, 7, 4, 33]] {
        let (x, gate) = (values(images * height * width * c, 1, 2.0), values(images * c, 2, 6.0));
        let share = |i: usize| 1.0 / (1.0 + (-f64::from(gate[i / (height * width * c) * c + i % c])).exp());
        let want: Vec<f64> = x.iter().enumerate().map(|(i, &x)| f64::from(x) * share(i)).collect();
        check(&format!("excitation of {images} x {height} x {width} x {c}"), &want, |device, dtype| {
            let mut x = tensor(device, dtype, &[images, height, width, c], &x);
            let gate = tensor(device, dtype, &[images, 1, 1, c], &gate);
            device.run(|| excite(device, &mut x, &gate)).unwrap();
            x.to_f32(device).unwrap()
        });
    }
}

/// A gate that leaves nothing or everything gives no NaN.
#[test]
fn extreme_gates_close_and_open() {
    let device = cpu();
    let mut x = tensor(&device, DType::F32, &[1, 1, 1, 3], &[3.0, 3.0, 3.0]);
    let gate = tensor(&device, DType::F32, &[1, 1, 1, 3], &[-1000.0, 0.0, 1000.0]);
    excite(&device, &mut x, &gate).unwrap();
    assert_eq!(x.to_f32(&device).unwrap(), [0.0, 1.5, 3.0]);
}

#[test]
fn gates_of_other_channels_are_refused() {
    let device = cpu();
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&device, dtype, shape).unwrap();
    let mut x = zeros(DType::F32, &[2, 3, 3, 4]);
    for (dtype, shape) in [(DType::F32, [2, 1, 1, 3]), (DType::F32, [1, 1, 1, 4]), (DType::F64, [2, 1, 1, 4])] {
        let error = excite(&device, &mut x, &zeros(dtype, &shape)).unwrap_err().to_string();
        assert!(error.contains("excitation gate") && error.contains("f32 [2, 1, 1, 4] expected"), "{error}");
    }
}
