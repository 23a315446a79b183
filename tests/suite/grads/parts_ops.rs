//! Vectors out of adaLN rows, a vector on every token, and the input convolution folded into the patch embedding.

use arclet::device::Device;
use arclet::ops::backward::sums::sum_tokens;
use arclet::ops::fold::{Folded, fold, fold_backward};
use arclet::ops::parts::{add_to_tokens, put_part, take_part};
use arclet::tensor::{DType, Tensor};

use super::check::{Case, Differentiable, Input, Random, Role, on_cpu, on_gpu};
use crate::common::cpu;
use Role::{Activation as Act, Parameter as Par};

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

fn copy(device: &Device, from: &Tensor) -> Tensor {
    Tensor::from_f64(device, from.dtype(), from.shape(), &from.to_f64(device).unwrap()).unwrap()
}

/// The second of three parts, plus one.
fn part_case([rows, dim]: [usize; 2], seed: u64) -> impl Differentiable {
    Case {
        name: format!("part of {rows} rows of 3 x {dim}"),
        inputs: vec![Input::new("rows", Act, &[rows, 3 * dim], &mut Random::new(seed))],
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &[rows, dim]);
            take_part(device, &t[0], dim, 1.0, &mut y).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let none = zeros(device, dtype, &[rows, dim]);
            for (part, from) in [&none, dy, &none].into_iter().enumerate() {
                put_part(device, from, part * dim, &mut grads[0]).unwrap();
            }
        },
    }
}

fn tokens_case([images, tokens, dim]: [usize; 3], seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let inputs = vec![Input::new("x", Act, &[images, tokens, dim], r), Input::new("v", Act, &[images, dim], r)];
    Case {
        name: format!("a vector on {images} x {tokens} tokens of {dim}"),
        inputs,
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &[images, tokens, dim]);
            add_to_tokens(device, &t[0], &t[1], &mut y).unwrap();
            y
        },
        backward: move |device: &Device, _: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            grads[0] = copy(device, dy);
            sum_tokens(device, dy, &mut grads[1]).unwrap();
        },
    }
}

/// Folded weight and bias side by side, [D, C P + 1].
fn fold_case([dim, between, channels, pixels]: [usize; 4], seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let inputs = vec![
        Input::new("conv", Par, &[between, channels], r),
        Input::new("conv bias", Par, &[between], r),
        Input::new("proj", Par, &[dim, between * pixels], r),
        Input::new("proj bias", Par, &[dim], r),
    ];
    let width = channels * pixels;
    Case {
        name: format!("fold of {between} x {channels} into {dim} x {pixels}"),
        inputs,
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let (mut weight, mut bias) = (zeros(device, dtype, &[dim, width]), zeros(device, dtype, &[dim]));
            let layers = Folded { conv: &t[0], conv_bias: &t[1], proj: &t[2], proj_bias: &t[3] };
            fold(device, layers, &mut weight, &mut bias).unwrap();
            let (weight, bias) = (weight.to_f64(device).unwrap(), bias.to_f64(device).unwrap());
            let rows: Vec<f64> = weight.chunks(width).zip(bias).flat_map(|(w, b)| [w, &[b]].concat()).collect();
            Tensor::from_f64(device, dtype, &[dim, width + 1], &rows).unwrap()
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let rows = dy.to_f64(device).unwrap();
            let part = |range: std::ops::Range<usize>| -> Vec<f64> {
                rows.chunks(width + 1).flat_map(|row| row[range.clone()].to_vec()).collect()
            };
            let wide = dtype.wide();
            let dweight = Tensor::from_f64(device, wide, &[dim, width], &part(0..width)).unwrap();
            let dbias = Tensor::from_f64(device, wide, &[dim], &part(width..width + 1)).unwrap();
            let layers = Folded { conv: &t[0], conv_bias: &t[1], proj: &t[2], proj_bias: &t[3] };
            let [conv, conv_bias, proj, proj_bias] = grads else { unreachable!("four inputs") };
            fold_backward(device, layers, &dweight, &dbias, Folded { conv, conv_bias, proj, proj_bias }).unwrap();
        },
    }
}

#[test]
fn gradients_of_parts_and_folds() {
    let r = &mut Random::new(11);
    for seed in 0..20 {
        on_cpu(&part_case([r.size(1, 4), r.size(1, 6)], seed));
        on_cpu(&tokens_case([r.size(1, 3), r.size(1, 5), r.size(1, 6)], seed));
        on_cpu(&fold_case([r.size(1, 4), r.size(1, 3), r.size(1, 3), r.size(1, 5)], seed));
    }
}

#[test]
fn gradients_of_parts_and_folds_on_the_gpu() {
    on_gpu(&part_case([3, 100], 1));
    on_gpu(&tokens_case([2, 9, 40], 2));
    on_gpu(&fold_case([7, 3, 1, 64], 3));
    on_gpu(&fold_case([20, 3, 2, 17], 4));
}

#[test]
fn parts_past_the_end_of_a_row_are_refused() {
    let device = cpu();
    let (mut rows, mut part) = (zeros(&device, DType::F32, &[2, 6]), zeros(&device, DType::F32, &[2, 3]));
    assert!(take_part(&device, &rows, 4, 0.0, &mut part).is_err());
    assert!(put_part(&device, &part, usize::MAX, &mut rows).is_err());
    let mut other = zeros(&device, DType::F32, &[3, 3]);
    assert!(take_part(&device, &rows, 0, 0.0, &mut other).is_err());
}
