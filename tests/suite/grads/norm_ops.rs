//! Norms of images: group norm, batch norm, global response norm.

use arclet::device::Device;
use arclet::ops::batchnorm::{self, BatchNorm, Running, batchnorm, batchnorm_backward};
use arclet::ops::grn::{self, Grn, grn, grn_backward};
use arclet::ops::groupnorm::{self, GroupNorm, groupnorm, groupnorm_backward};
use arclet::tensor::{DType, Tensor};

use super::check::{
    Case, Differentiable, Input, Random, Role, f32_on_cpu, on_cpu, on_gpu, same_bits_in_any_batch,
    same_bits_on_any_threads,
};
use crate::common::cpu;
use Role::{Activation as Act, Parameter as Par};

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

/// x with a mean beside its spread, weight and bias.
fn inputs(shape: [usize; 4], seed: u64) -> Vec<Input> {
    let r = &mut Random::new(seed);
    let c = [shape[3]];
    let mut all =
        vec![Input::new("x", Act, &shape, r), Input::new("weight", Par, &c, r), Input::new("bias", Par, &c, r)];
    all[0].values.iter_mut().for_each(|v| *v += 0.5);
    all[1].values.iter_mut().for_each(|v| *v += 1.0);
    all
}

/// Images of `shape` in `groups`, with SiLU or without.
pub fn groupnorm_case(
    shape: [usize; 4],
    groups: usize,
    silu: bool,
    eps: f64,
    seed: u64,
) -> impl Differentiable + use<> {
    Case {
        name: format!("groupnorm {shape:?} in {groups}, SiLU: {silu}"),
        inputs: inputs(shape, seed),
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| {
            let norm = GroupNorm { groups, eps, weight: &t[1], bias: &t[2], silu };
            let mut y = zeros(device, dtype, &shape);
            let mut scratch = zeros(device, dtype.wide(), &[groupnorm::scratch_len(&t[0]).unwrap()]);
            groupnorm(device, &t[0], norm, &mut y, &mut scratch).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let norm = GroupNorm { groups, eps, weight: &t[1], bias: &t[2], silu };
            let [dx, dweight, dbias] = grads else { unreachable!("three inputs") };
            let mut scratch = zeros(device, dtype.wide(), &[groupnorm::backward_scratch_len(&t[0]).unwrap()]);
            groupnorm_backward(device, &t[0], norm, dy, dx, dweight, dbias, &mut scratch).unwrap();
        },
    }
}

#[test]
fn groupnorm_gradients() {
    let r = &mut Random::new(11);
    for seed in 0..20 {
        // Groups of one number are not normalised: their gradient is what is left of rounding.
        let (groups, per_group) = (r.size(1, 3), r.size(1, 3));
        let shape = [r.size(1, 2), r.size(1, 3), r.size(3, 4), groups * per_group];
        for silu in [false, true] {
            on_cpu(&groupnorm_case(shape, groups, silu, 1e-5, seed));
        }
    }
    let large = groupnorm_case([2, 9, 11, 96], 32, true, 1e-5, 3);
    f32_on_cpu(&large);
    same_bits_on_any_threads(&large);
}

#[test]
fn groupnorm_gradients_on_the_gpu() {
    // Several chunks and tiles, groups that cross a block's 32 channels, every other number of 16-byte blocks; groups of
    // one channel, more than a block takes; one group; one pixel.
    for (shape, groups, silu) in [
        ([2, 21, 20, 40], 4, true),
        ([1, 5, 7, 70], 70, false),
        ([2, 3, 3, 33], 1, true),
        ([2, 1, 1, 24], 3, false),
        ([1, 19, 7, 1], 1, true),
    ] {
        on_gpu(&groupnorm_case(shape, groups, silu, 1e-5, 4));
    }
}

/// Images of `shape` by their own statistics; the backward from what the forward saved.
pub fn batchnorm_case(shape: [usize; 4], eps: f64, seed: u64) -> impl Differentiable + use<> {
    let run = move |device: &Device, dtype: DType, t: &[Tensor]| {
        let norm = BatchNorm { eps, weight: &t[1], bias: &t[2] };
        let (mut y, mut saved) = (zeros(device, dtype, &shape), zeros(device, dtype.wide(), &[2, shape[3]]));
        let mut scratch = zeros(device, dtype.wide(), &[batchnorm::scratch_len(&t[0]).unwrap()]);
        batchnorm(device, &t[0], norm, None, &mut saved, &mut y, &mut scratch).unwrap();
        (y, saved, scratch)
    };
    Case {
        name: format!("batchnorm {shape:?}"),
        inputs: inputs(shape, seed),
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| run(device, dtype, t).0,
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let norm = BatchNorm { eps, weight: &t[1], bias: &t[2] };
            let (_, saved, mut scratch) = run(device, dtype, t);
            let [dx, dweight, dbias] = grads else { unreachable!("three inputs") };
            batchnorm_backward(device, &t[0], norm, &saved, dy, dx, dweight, dbias, &mut scratch).unwrap();
        },
    }
}

#[test]
fn batchnorm_gradients() {
    let r = &mut Random::new(12);
    for seed in 0..20 {
        on_cpu(&batchnorm_case([r.size(1, 3), r.size(1, 3), r.size(4, 5), r.size(1, 5)], 1e-5, seed));
    }
    let large = batchnorm_case([3, 9, 11, 40], 1e-5, 3);
    f32_on_cpu(&large);
    same_bits_on_any_threads(&large);
}

#[test]
fn batchnorm_gradients_on_the_gpu() {
    // Several chunks; one chunk of odd sizes; one channel; one pixel an image.
    for shape in [[3, 13, 11, 40], [1, 5, 3, 35], [2, 4, 4, 1], [5, 1, 1, 9]] {
        on_gpu(&batchnorm_case(shape, 1e-5, 5));
    }
}

/// Running averages of a tensor of every device after two batches.
pub fn running_after(
    device: &Device,
    dtype: DType,
    batches: [&Tensor; 2],
    momentum: f64,
    before: [&[f64]; 2],
) -> [Vec<f64>; 2] {
    let c = batches[0].last_dim();
    let [mut mean, mut var] = before.map(|v| Tensor::from_f64(device, dtype.wide(), &[c], v).unwrap());
    let weight = zeros(device, dtype, &[c]);
    let norm = BatchNorm { eps: 1e-5, weight: &weight, bias: &weight };
    for x in batches {
        let (mut y, mut saved) = (zeros(device, dtype, x.shape()), zeros(device, dtype.wide(), &[2, c]));
        let mut scratch = zeros(device, dtype.wide(), &[batchnorm::scratch_len(x).unwrap()]);
        let running = Running { mean: &mut mean, var: &mut var, momentum };
        batchnorm(device, x, norm, Some(running), &mut saved, &mut y, &mut scratch).unwrap();
    }
    [mean, var].map(|t| t.to_f64(device).unwrap())
}

#[test]
fn one_value_a_channel_has_no_variance() {
    let device = cpu();
    let t = |shape: &[usize]| zeros(&device, DType::F32, shape);
    let (x, weight) = (t(&[1, 1, 1, 3]), t(&[3]));
    let norm = BatchNorm { eps: 1e-5, weight: &weight, bias: &weight };
    let result = batchnorm(&device, &x, norm, None, &mut t(&[2, 3]), &mut t(&[1, 1, 1, 3]), &mut t(&[64]));
    assert!(result.unwrap_err().to_string().contains("one value a channel"));
    let norm = GroupNorm { groups: 2, eps: 1e-5, weight: &weight, bias: &weight, silu: false };
    let result = groupnorm(&device, &x, norm, &mut t(&[1, 1, 1, 3]), &mut t(&[64]));
    assert!(result.unwrap_err().to_string().contains("3 channels in 2 groups"));
    let norm = GroupNorm { groups: 3, ..norm };
    let result = groupnorm(&device, &x, norm, &mut t(&[1, 1, 1, 3]), &mut t(&[5]));
    assert!(result.unwrap_err().to_string().contains("5 elements of f32 found, 6 of f32 expected"));
}

/// Images of `shape`.
pub fn grn_case(shape: [usize; 4], eps: f64, seed: u64) -> impl Differentiable + use<> {
    Case {
        name: format!("grn {shape:?}"),
        inputs: inputs(shape, seed),
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| {
            let norm = Grn { eps, weight: &t[1], bias: &t[2] };
            let mut y = zeros(device, dtype, &shape);
            let mut scratch = zeros(device, dtype.wide(), &[grn::scratch_len(&t[0]).unwrap()]);
            grn(device, &t[0], norm, &mut y, &mut scratch).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let norm = Grn { eps, weight: &t[1], bias: &t[2] };
            let [dx, dweight, dbias] = grads else { unreachable!("three inputs") };
            let mut scratch = zeros(device, dtype.wide(), &[grn::backward_scratch_len(&t[0]).unwrap()]);
            grn_backward(device, &t[0], norm, dy, dx, dweight, dbias, &mut scratch).unwrap();
        },
    }
}

#[test]
fn grn_gradients() {
    let r = &mut Random::new(13);
    for seed in 0..20 {
        on_cpu(&grn_case([r.size(1, 3), r.size(1, 3), r.size(1, 4), r.size(1, 7)], 1e-6, seed));
    }
    let large = grn_case([3, 9, 11, 130], 1e-6, 3);
    f32_on_cpu(&large);
    same_bits_on_any_threads(&large);
}

#[test]
fn grn_gradients_on_the_gpu() {
    // Several chunks of pixels; more channels than threads; one channel; one pixel.
    for shape in [[2, 21, 20, 40], [1, 3, 5, 300], [2, 3, 3, 1], [3, 1, 1, 33]] {
        on_gpu(&grn_case(shape, 1e-6, 6));
    }
}

#[test]
fn norms_of_an_image_do_not_depend_on_the_batch() {
    let [one, four] = [1, 4].map(|images| [images, 11, 13, 24]);
    same_bits_in_any_batch(&mut groupnorm_case(one, 3, true, 1e-5, 1), &groupnorm_case(four, 3, true, 1e-5, 2));
    same_bits_in_any_batch(&mut grn_case(one, 1e-6, 1), &grn_case(four, 1e-6, 2));
}

/// As many pixels as networks have, and a mean beside a small spread: neither costs digits.
#[test]
fn many_pixels_and_a_large_mean_cost_no_digits() {
    let raised = |mut case: Box<dyn Differentiable>| {
        case.inputs_mut()[0].values.iter_mut().for_each(|v| *v += 4.0);
        f32_on_cpu(&*case);
        case
    };
    raised(Box::new(groupnorm_case([1, 64, 64, 16], 4, true, 1e-5, 7)));
    raised(Box::new(batchnorm_case([2, 48, 48, 8], 1e-5, 8)));
    on_gpu(&*raised(Box::new(groupnorm_case([1, 17, 16, 12], 4, false, 1e-5, 9))));
    on_gpu(&*raised(Box::new(batchnorm_case([2, 12, 12, 9], 1e-5, 10))));
}
