//! Every operation but attention.

use arclet::device::Device;
use arclet::ops::activation::{activate, activate_backward};
use arclet::ops::backward::embed::{label_add, label_add_backward};
use arclet::ops::backward::layernorm::{AffineBackward, layernorm_backward, scratch_len};
use arclet::ops::backward::linear::linear_backward;
use arclet::ops::backward::patch::{patchify_backward, unpatchify_backward};
use arclet::ops::backward::sums::{add_columns, add_images, sum_tokens};
use arclet::ops::geglu::{geglu, geglu_backward};
use arclet::ops::layernorm::{Affine, layernorm};
use arclet::ops::linear::{Activation, Operands, Workspace, linear, workspace_size};
use arclet::ops::loss::{mse, mse_backward};
use arclet::ops::patch::{patchify, unpatchify};
use arclet::ops::{Columns, backward};
use arclet::tensor::{DType, Tensor};

use super::attention::attention_case;
use super::check::{
    Case, Differentiable, Input, Random, Role, at_every_level, f32_on_cpu, on_cpu, on_gpu, same_bits_in_any_batch,
    same_bits_on_any_threads,
};
use crate::common::cpu;
use Role::{Activation as Act, Image, Parameter as Par};

const EPS: f64 = 1e-5;

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

/// x [images, rows, k] through a weight [n, k] and a bias.
fn linear_case([images, rows, n, k]: [usize; 4], seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let inputs = vec![
        Input::new("x", Act, &[images, rows, k], r),
        Input::new("weight", Par, &[n, k], r),
        Input::new("bias", Par, &[n], r),
    ];
    Case {
        name: format!("linear {images}x{rows}x{k} to {n}"),
        inputs,
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &[images, rows, n]);
            let size = workspace_size(device, dtype, images, rows, n, k);
            let mut space = Workspace::new(device, dtype, size).unwrap();
            let operands = Operands { bias: Some(Columns::Shared(&t[2])), ..Operands::new(&t[0], &t[1]) };
            linear(device, operands, &mut y, None, &mut space).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let [dx, dw, db] = grads else { unreachable!("three inputs") };
            let mut scratch = zeros(device, dtype.wide(), &[images * n]);
            linear_backward(device, &t[0], &t[1], dy, Some(dx), dw, Some(db), &mut scratch).unwrap();
        },
    }
}

#[test]
fn linear_gradients() {
    let r = &mut Random::new(1);
    for seed in 0..20 {
        let shape = [r.size(1, 3), [1, 2, 3, 17][r.size(0, 3)], r.size(1, 7), r.size(1, 7)];
        on_cpu(&linear_case(shape, seed));
    }
    let large = linear_case([3, 40, 200, 136], 5);
    f32_on_cpu(&large);
    same_bits_on_any_threads(&large);
    same_bits_on_any_threads(&linear_case([5, 1, 300, 260], 6));
    // The sum over the rows in three parts, the last of which is not whole.
    same_bits_on_any_threads(&linear_case([3, 200, 70, 50], 7));
}

#[test]
fn linear_gradients_at_every_level() {
    // Sizes about those of tiles, panels and lines; rows in parts and of odd number; few rows, whose dx has loops of its own.
    for (i, shape) in
        [[1, 17, 1, 1], [3, 31, 47, 33], [1, 97, 17, 49], [3, 401, 50, 35], [9, 1, 65, 97]].into_iter().enumerate()
    {
        at_every_level(&linear_case(shape, i as u64));
    }
}

#[test]
fn linear_gradients_on_the_gpu() {
    // One tile with remainders; several tiles each way and three steps of depth; sizes without whole 16-byte blocks.
    for (i, shape) in [[1, 1, 1, 1], [2, 5, 72, 40], [2, 50, 104, 72], [3, 7, 19, 23]].into_iter().enumerate() {
        on_gpu(&linear_case(shape, i as u64));
    }
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Relu];

/// residual + gate * act(a), with and without gate and residual.
fn activation_case([images, rows, n]: [usize; 3], act: Activation, gated: bool, seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let shape = [images, rows, n];
    let mut inputs = vec![Input::new("a", Act, &shape, r)];
    inputs[0].values.iter_mut().for_each(|v| *v *= 3.0);
    if gated {
        inputs.extend([Input::new("gate", Act, &[images, n], r), Input::new("residual", Act, &shape, r)]);
    }
    Case {
        name: format!("activation {act:?} {shape:?}, gated: {gated}"),
        inputs,
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &shape);
            activate(device, &t[0], act, t.get(1), t.get(2), &mut y).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| match grads {
            [da, dgate, dresidual] => {
                activate_backward(device, &t[0], act, Some(&t[1]), dy, da, Some(dgate)).unwrap();
                *dresidual = Tensor::from_f64(device, dtype, dy.shape(), &dy.to_f64(device).unwrap()).unwrap();
            }
            [da] => activate_backward(device, &t[0], act, None, dy, da, None).unwrap(),
            _ => unreachable!("one or three inputs"),
        },
    }
}

#[test]
fn activation_gradients() {
    let r = &mut Random::new(2);
    for seed in 0..20 {
        let shape = [r.size(1, 3), r.size(1, 4), r.size(1, 9)];
        for gated in [false, true] {
            on_cpu(&activation_case(shape, ACTIVATIONS[seed % 5], gated, seed as u64));
        }
    }
    same_bits_on_any_threads(&activation_case([3, 20, 130], Activation::GeluTanh, true, 3));
}

#[test]
fn activation_gradients_on_the_gpu() {
    for act in ACTIVATIONS {
        on_gpu(&activation_case([2, 3, 40], act, false, 4));
        on_gpu(&activation_case([2, 30, 35], act, true, 5));
    }
}

/// The first half of the columns times GELU of the second.
fn geglu_case(shape: [usize; 3], seed: u64) -> impl Differentiable {
    let [images, rows, n] = shape;
    let mut x = Input::new("x", Act, &[images, rows, 2 * n], &mut Random::new(seed));
    x.values.iter_mut().for_each(|v| *v *= 3.0);
    Case {
        name: format!("GEGLU {shape:?}"),
        inputs: vec![x],
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &shape);
            geglu(device, &t[0], &mut y).unwrap();
            y
        },
        backward: move |device: &Device, _: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            geglu_backward(device, &t[0], dy, &mut grads[0]).unwrap();
        },
    }
}

#[test]
fn geglu_gradients() {
    let r = &mut Random::new(9);
    for seed in 0..20 {
        on_cpu(&geglu_case([r.size(1, 3), r.size(1, 5), r.size(1, 9)], seed));
    }
    f32_on_cpu(&geglu_case([2, 7, 150], 1));
    same_bits_on_any_threads(&geglu_case([2, 30, 150], 1));
}

#[test]
fn geglu_gradients_on_the_gpu() {
    // Several blocks; rows of odd length; one number.
    for shape in [[2, 9, 40], [1, 5, 77], [1, 1, 1]] {
        on_gpu(&geglu_case(shape, 6));
    }
}

/// Layer norm: plain, learned or modulated, with the gradient of a residual stream beside.
fn layernorm_case([images, tokens, dim]: [usize; 3], kind: &'static str, seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let shape = [images, tokens, dim];
    let mut inputs = vec![Input::new("x", Act, &shape, r)];
    // A mean beside the spread, as residual streams have it.
    inputs[0].values.iter_mut().for_each(|v| *v += 0.5);
    match kind {
        "learned" => inputs.extend([Input::new("weight", Par, &[dim], r), Input::new("bias", Par, &[dim], r)]),
        "modulated" => {
            let mut vectors = |name| Input::new(name, Act, &[images, dim], r);
            inputs.extend([vectors("shift"), vectors("scale")]);
        }
        _ => {}
    }
    Case {
        name: format!("layernorm {kind} {shape:?}"),
        inputs,
        // y and x itself, so that the gradient beside is that of x.
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &shape);
            let affine = match kind {
                "learned" => Affine::Learned(&t[1], &t[2]),
                "modulated" => {
                    let (shift, scale) = (Columns::PerImage(&t[1]), Columns::PerImage(&t[2]));
                    Affine::Modulated { shift, scale, select: None }
                }
                _ => Affine::None,
            };
            layernorm(device, &t[0], affine, EPS, &mut y).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let mut scratch = zeros(device, dtype.wide(), &[scratch_len(images, tokens, dim)]);
            let (dx, rest) = grads.split_first_mut().unwrap();
            let affine = match rest {
                [dweight, dbias] if kind == "learned" => AffineBackward::Learned { weight: &t[1], dweight, dbias },
                [dshift, dscale] => AffineBackward::Modulated { scale: &t[2], dshift, dscale },
                _ => AffineBackward::None,
            };
            layernorm_backward(device, &t[0], affine, EPS, dy, None, dx, &mut scratch).unwrap();
        },
    }
}

#[test]
fn layernorm_gradients() {
    let r = &mut Random::new(3);
    for seed in 0..20 {
        // With two channels the norm is a sign, and its gradient what is left of rounding.
        let shape = [r.size(1, 3), r.size(1, 4), r.size(4, 9)];
        for kind in ["plain", "learned", "modulated"] {
            on_cpu(&layernorm_case(shape, kind, seed));
        }
    }
    for kind in ["plain", "learned", "modulated"] {
        f32_on_cpu(&layernorm_case([2, 5, 200], kind, 4));
    }
    same_bits_on_any_threads(&layernorm_case([3, 20, 130], "learned", 5));
}

#[test]
fn layernorm_gradients_on_the_gpu() {
    for (i, shape) in [[2, 19, 40], [3, 1, 33], [1, 5, 264]].into_iter().enumerate() {
        for kind in ["plain", "learned", "modulated"] {
            on_gpu(&layernorm_case(shape, kind, i as u64));
        }
    }
}

/// The gradient that reaches x past the norm is added to the norm's own.
#[test]
fn layernorm_adds_the_gradient_beside() {
    let shape = [2, 3, 12];
    let values = |seed| Random::new(seed).values(72);
    let run = |device: &Device, with: bool| {
        let t = |seed| Tensor::from_f64(device, DType::F32, &shape, &values(seed)).unwrap();
        let (x, dy, beside, mut dx) = (t(1), t(2), t(3), t(4));
        let mut scratch = zeros(device, DType::F32, &[scratch_len(2, 3, 12)]);
        let affine = AffineBackward::None;
        let beside = with.then_some(&beside);
        layernorm_backward(device, &x, affine, EPS, &dy, beside, &mut dx, &mut scratch).unwrap();
        dx.to_f64(device).unwrap()
    };
    for device in [cpu(), crate::engines::cuda()] {
        let (alone, both) = (run(&device, false), run(&device, true));
        let off = alone.iter().zip(both).zip(values(3)).fold(0f64, |m, ((a, b), c)| m.max((a + c - b).abs()));
        assert!(off < 1e-6, "{off:.2e} on {}", device.name());
    }
}

/// time + table[labels], two images of one label and a label of no image.
fn label_case(batch: usize, classes: usize, dim: usize, seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let inputs = vec![Input::new("time", Act, &[batch, dim], r), Input::new("table", Par, &[classes, dim], r)];
    let labels: Vec<u32> = (0..batch).map(|_| r.size(0, classes - 1) as u32).collect();
    let of = move |device: &Device| Tensor::from_u32(device, &[batch], &labels).unwrap();
    let again = of.clone();
    Case {
        name: format!("label sum of {batch} and {classes} by {dim}"),
        inputs,
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &[batch, dim]);
            label_add(device, &t[0], &t[1], &of(device), &mut y).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            grads[0] = Tensor::from_f64(device, dtype, dy.shape(), &dy.to_f64(device).unwrap()).unwrap();
            label_add_backward(device, &again(device), dy, &mut grads[1]).unwrap();
        },
    }
}

#[test]
fn label_gradients() {
    let r = &mut Random::new(4);
    for seed in 0..20 {
        on_cpu(&label_case(r.size(1, 6), r.size(1, 4), r.size(1, 8), seed));
    }
    same_bits_on_any_threads(&label_case(9, 3, 70, 1));
}

#[test]
fn label_gradients_on_the_gpu() {
    on_gpu(&label_case(7, 4, 40, 1));
    on_gpu(&label_case(1, 3, 5, 2));
}

#[test]
fn labels_past_the_table_are_refused() {
    let device = cpu();
    let labels = Tensor::from_u32(&device, &[1], &[3]).unwrap();
    let (dy, mut dtable) = (zeros(&device, DType::F32, &[1, 2]), zeros(&device, DType::F32, &[3, 2]));
    let error = label_add_backward(&device, &labels, &dy, &mut dtable).unwrap_err().to_string();
    assert!(error.contains("label 3 found, below 3 expected"), "{error}");
}

fn patch_case([images, channels, grid, patch]: [usize; 4], to_tokens: bool, seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let pixels = [images, channels, 2 * grid * patch, grid * patch];
    let tokens = [images, 2 * grid * grid, channels * patch * patch];
    let input = if to_tokens { Input::new("x", Image, &pixels, r) } else { Input::new("tokens", Act, &tokens, r) };
    Case {
        name: format!("patches of {patch}, {pixels:?}, to tokens: {to_tokens}"),
        inputs: vec![input],
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, if to_tokens { &tokens } else { &pixels });
            let way = if to_tokens { patchify } else { unpatchify };
            way(device, &t[0], patch, &mut y).unwrap();
            y
        },
        backward: move |device: &Device, _: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let way = if to_tokens { patchify_backward } else { unpatchify_backward };
            way(device, dy, patch, &mut grads[0]).unwrap();
        },
    }
}

#[test]
fn patch_gradients() {
    let r = &mut Random::new(5);
    for seed in 0..20 {
        let sizes = [r.size(1, 2), r.size(1, 3), r.size(1, 2), r.size(1, 3)];
        for to_tokens in [false, true] {
            on_cpu(&patch_case(sizes, to_tokens, seed));
        }
    }
}

#[test]
fn patch_gradients_on_the_gpu() {
    for to_tokens in [false, true] {
        on_gpu(&patch_case([2, 3, 2, 4], to_tokens, 1));
    }
}

/// Losses of the images, then the mean over all: of the mean's gradient by the scale that is asked for.
fn mse_case(shape: [usize; 4], seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let inputs = vec![Input::new("prediction", Act, &shape, r)];
    let target = r.values(shape.iter().product());
    let of = move |device: &Device, dtype: DType| Tensor::from_f64(device, dtype.wide(), &shape, &target).unwrap();
    let again = of.clone();
    Case {
        name: format!("mean squared error {shape:?}"),
        inputs,
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| {
            let [mut per_image, mut loss] = [shape[0], 1].map(|n| zeros(device, dtype.wide(), &[n]));
            mse(device, &t[0], &of(device, dtype), &mut per_image, &mut loss).unwrap();
            let mean = per_image.to_f64(device).unwrap().iter().sum::<f64>() / shape[0] as f64;
            let loss_value = loss.to_f64(device).unwrap()[0];
            assert!((mean - loss_value).abs() < 1e-6 * mean.max(1.0), "{mean} and {loss_value}");
            loss
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            mse_backward(device, &t[0], &again(device, dtype), dy, &mut grads[0]).unwrap();
        },
    }
}

#[test]
fn mse_gradients() {
    let r = &mut Random::new(6);
    for seed in 0..20 {
        let mut size = |high| r.size(1, high);
        on_cpu(&mse_case([size(3), size(3), size(4), size(4)], seed));
    }
    same_bits_on_any_threads(&mse_case([5, 1, 30, 33], 3));
}

#[test]
fn mse_gradients_on_the_gpu() {
    on_gpu(&mse_case([3, 1, 30, 33], 1));
    on_gpu(&mse_case([1, 1, 2, 3], 2));
}

/// x [B, T, N] plus positions [T, N] plus a vector per image [B, N] plus a bias `[N]`: the sums that these take.
fn sums_case([images, tokens, n]: [usize; 3], seed: u64) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let inputs = vec![
        Input::new("positions", Par, &[tokens, n], r),
        Input::new("vectors", Act, &[images, n], r),
        Input::new("bias", Par, &[n], r),
    ];
    Case {
        name: format!("sums of [{images}, {tokens}, {n}]"),
        inputs,
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let [p, v, b] = [0, 1, 2].map(|i| t[i].to_f64(device).unwrap());
            let y: Vec<f64> = (0..images * tokens * n)
                .map(|i| p[i % (tokens * n)] + v[i / (tokens * n) * n + i % n] + b[i % n])
                .collect();
            Tensor::from_f64(device, dtype, &[images, tokens, n], &y).unwrap()
        },
        backward: move |device: &Device, dtype: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            add_images(device, dy, &mut grads[0]).unwrap();
            sum_tokens(device, dy, &mut grads[1]).unwrap();
            let mut scratch = zeros(device, dtype.wide(), &[images * n]);
            add_columns(device, dy, &mut grads[2], &mut scratch).unwrap();
        },
    }
}

#[test]
fn sums_are_gradients_of_what_is_shared() {
    let r = &mut Random::new(7);
    for seed in 0..20 {
        on_cpu(&sums_case([r.size(1, 4), r.size(1, 4), r.size(1, 9)], seed));
    }
    same_bits_on_any_threads(&sums_case([5, 30, 170], 3));
}

#[test]
fn sums_on_the_gpu() {
    on_gpu(&sums_case([3, 27, 40], 1));
    on_gpu(&sums_case([2, 1, 5], 2));
}

#[test]
fn a_scratch_that_is_too_small_is_refused() {
    let device = cpu();
    let t = |shape: &[usize]| zeros(&device, DType::F32, shape);
    let error = add_columns(&device, &t(&[2, 3, 4]), &mut t(&[4]), &mut t(&[7])).unwrap_err().to_string();
    assert!(error.contains("7 elements of f32 found, 8 of f32 expected"), "{error}");
    let mut dx = t(&[2, 3, 4]);
    let (x, dy) = (t(&[2, 3, 4]), t(&[2, 3, 4]));
    let none = backward::layernorm::AffineBackward::None;
    let error = layernorm_backward(&device, &x, none, EPS, &dy, None, &mut dx, &mut t(&[8])).unwrap_err().to_string();
    assert!(error.contains("28 of f32 expected"), "{error}");
}

#[test]
fn gradients_of_an_image_do_not_depend_on_the_batch() {
    // Above and below the rows from which the CPU leaves products to `gemm`, and more images than threads.
    for rows in [3, 17] {
        same_bits_in_any_batch(&mut linear_case([1, rows, 40, 24], 1), &linear_case([4, rows, 40, 24], 2));
    }
    let act = Activation::Gelu;
    same_bits_in_any_batch(&mut activation_case([1, 5, 24], act, true, 1), &activation_case([4, 5, 24], act, true, 2));
    let kind = "modulated";
    same_bits_in_any_batch(&mut layernorm_case([1, 5, 24], kind, 1), &layernorm_case([4, 5, 24], kind, 2));
    same_bits_in_any_batch(&mut attention_case([1, 2, 32, 40], 1.5, 1), &attention_case([4, 2, 32, 40], 1.5, 2));
}
