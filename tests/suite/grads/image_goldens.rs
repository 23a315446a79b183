//! Operations on images, forward and backward, against PyTorch in f64 (`tests/data/goldens/scripts/gen_image_ops.py`).

use arclet::ops::pool::{Average, Window};
use arclet::ops::upsample::Resize;
use arclet::tensor::{DType, Tensor};

use super::check::{Differentiable, agrees_with};
use super::image_ops::{average_case, max_pool_case, resize_case};
use super::norm_ops::{batchnorm_case, grn_case, groupnorm_case, running_after};
use crate::common::{Golden, cpu, relative_error};
use crate::engines::cuda;

/// The cases `name.0`, `name.1`, .. by what `case` makes of the shape of x and the configuration, and how many there are.
fn all<C: Differentiable>(name: &str, case: impl Fn([usize; 4], &[usize]) -> C) -> usize {
    let golden = Golden::open("image_ops.safetensors");
    let names = golden.names();
    let count = (0..).take_while(|i| names.contains(&format!("{name}.{i}.x"))).count();
    for i in 0..count {
        let read =
            |what: &str| golden.f32(&format!("{name}.{i}.{what}")).into_iter().map(f64::from).collect::<Vec<_>>();
        let config: Vec<usize> = golden.i64(&format!("{name}.{i}.config")).iter().map(|&v| v as usize).collect();
        let shape = golden.shape(&format!("{name}.{i}.x")).try_into().unwrap();
        let mut case = case(shape, &config);
        let mut want = vec![read("y")];
        for input in case.inputs_mut() {
            input.values = read(input.name);
            want.push(read(&format!("d{}", input.name)));
        }
        agrees_with(&case, &read("dy"), &want);
    }
    count
}

fn window(config: &[usize]) -> Window {
    let &[kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, ..] = config else { panic!("six numbers") };
    Window { kernel: [kernel_h, kernel_w], stride: [stride_h, stride_w], padding: [pad_h, pad_w] }
}

#[test]
fn norms_agree_with_pytorch() {
    assert_eq!(all("groupnorm", |shape, config| groupnorm_case(shape, config[0], config[1] == 1, 1e-5, 0)), 5);
    assert_eq!(all("batchnorm", |shape, _| batchnorm_case(shape, 1e-5, 0)), 3);
    assert_eq!(all("grn", |shape, _| grn_case(shape, 1e-6, 0)), 4);
}

#[test]
fn pooling_agrees_with_pytorch() {
    assert_eq!(all("max_pool", |shape, config| max_pool_case(shape, window(config), 0)), 5);
    let windows = |shape, config: &[usize]| average_case(shape, Average::Windows(window(config), config[6] == 1), 0);
    assert_eq!(all("average_pool", windows), 8);
    let adaptive = |shape, config: &[usize]| average_case(shape, Average::Adaptive([config[0], config[1]]), 0);
    assert_eq!(all("adaptive_pool", adaptive), 4);
}

#[test]
fn resizing_agrees_with_pytorch() {
    for (name, resize) in [("nearest", Resize::Nearest), ("bilinear", Resize::Bilinear)] {
        assert_eq!(all(name, |shape, config| resize_case(shape, [config[0], config[1]], resize, 0)), 11);
    }
}

/// Running averages after two batches, of the unbiased variance, on the CPU and the GPU.
#[test]
fn running_averages_agree_with_pytorch() {
    let golden = Golden::open("image_ops.safetensors");
    for i in 0..3 {
        let read = |what: &str| golden.f32(&format!("batchnorm.{i}.{what}"));
        let (shape, x) = (golden.shape(&format!("batchnorm.{i}.x")), read("x"));
        let second: Vec<f32> = x.iter().map(|v| 2.0 * v - 1.0).collect();
        let before =
            ["before_mean", "before_var"].map(|what| read(what).into_iter().map(f64::from).collect::<Vec<_>>());
        for (device, dtype) in [(cpu(), DType::F64), (cpu(), DType::F32), (cuda(), DType::F32)] {
            let batches = [&x, &second].map(|v| Tensor::from_f32(&device, dtype, &shape, v).unwrap());
            let got = running_after(&device, dtype, [&batches[0], &batches[1]], 0.3, [&before[0], &before[1]]);
            for (got, what) in got.iter().zip(["after_mean", "after_var"]) {
                let got: Vec<f32> = got.iter().map(|&v| v as f32).collect();
                let error = relative_error(&got, &read(what));
                assert!(error < 1e-6, "{what} of {i} on {} in {dtype}: {error:.2e}", device.name());
            }
        }
    }
}

/// A norm folded into the convolution in front gives what both do: each output is a dot product with a window.
#[test]
fn a_norm_folds_into_a_convolution() {
    use arclet::ops::batchnorm::{Trained, fold_into_convolution};
    let values =
        |seed, n: usize| -> Vec<f32> { super::check::Random::new(seed).values(n).iter().map(|&v| v as f32).collect() };
    let (n, k) = (5, 18);
    let (weight, bias, window) = (values(1, n * k), values(2, n), values(3, k));
    let var: Vec<f32> = values(6, n).iter().map(|v| v.abs() + 0.1).collect();
    let (gamma, beta, mean) = (values(4, n), values(5, n), values(7, n));
    let norm = Trained { weight: &gamma, bias: &beta, mean: &mean, var: &var, eps: 1e-5 };
    let dot = |weight: &[f32], i: usize| -> f64 {
        weight[i * k..][..k].iter().zip(&window).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
    };
    for bias in [None, Some(&bias[..])] {
        let (folded, addend) = fold_into_convolution(&weight, bias, norm).unwrap();
        for i in 0..n {
            let before = dot(&weight, i) + bias.map_or(0.0, |b| f64::from(b[i])) - f64::from(mean[i]);
            let scale = f64::from(gamma[i]) / (f64::from(var[i]) + 1e-5).sqrt();
            let (want, got) = (before * scale + f64::from(beta[i]), dot(&folded, i) + f64::from(addend[i]));
            assert!((got - want).abs() < 2e-6 * want.abs().max(1.0), "output {i}: {got} and {want}");
        }
    }
    assert!(fold_into_convolution(&weight[1..], None, norm).is_err());
    let negative = vec![-1.0; n];
    let error = fold_into_convolution(&weight, None, Trained { var: &negative, ..norm }).unwrap_err().to_string();
    assert!(error.contains("variance -1 of channel 0"), "{error}");
}
