//! Self-attention: the logarithm that the forward pass leaves, and the gradients of q, k and v.

use arclet::device::Device;
use arclet::ops::attention::{Heads, attention};
use arclet::ops::backward::attention::{attention_backward, attention_with_lse};
use arclet::tensor::{DType, Tensor};

use super::check::{Case, Differentiable, Input, Random, Role, f32_on_cpu, on_cpu, on_gpu, same_bits_on_any_threads};
use crate::common::cpu;

/// qkv [images, tokens, 3 D], numbers up to `spread`.
pub fn attention_case([images, heads, head_dim, tokens]: [usize; 4], spread: f64, seed: u64) -> impl Differentiable {
    let d = heads * head_dim;
    let mut qkv = Input::new("qkv", Role::Activation, &[images, tokens, 3 * d], &mut Random::new(seed));
    qkv.values.iter_mut().for_each(|v| *v = f64::from((*v * spread) as f32));
    let run = move |device: &Device, dtype: DType, qkv: &Tensor| {
        let mut out = Tensor::zeros(device, dtype, &[images, tokens, d]).unwrap();
        let mut lse = Tensor::zeros(device, dtype.wide(), &[images, heads, tokens]).unwrap();
        attention_with_lse(device, qkv, heads, &mut out, &mut lse).unwrap();
        (out, lse)
    };
    Case {
        name: format!("attention {images}x{heads}x{head_dim} over {tokens}"),
        inputs: vec![qkv],
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| run(device, dtype, &t[0]).0,
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let (out, lse) = run(device, dtype, &t[0]);
            let mut scratch = Tensor::zeros(device, dtype.wide(), &[lse.len()]).unwrap();
            attention_backward(device, &t[0], heads, &out, &lse, dy, &mut grads[0], &mut scratch).unwrap();
        },
    }
}

#[test]
fn attention_gradients() {
    let r = &mut Random::new(8);
    for seed in 0..20 {
        let shape = [r.size(1, 2), r.size(1, 2), 8 * r.size(1, 2), r.size(1, 5)];
        on_cpu(&attention_case(shape, 1.5, seed));
    }
    // Several steps of queries, the last one shorter.
    f32_on_cpu(&attention_case([2, 2, 16, 150], 1.5, 3));
    f32_on_cpu(&attention_case([1, 1, 64, 70], 5.0, 4));
    same_bits_on_any_threads(&attention_case([3, 2, 16, 130], 1.5, 5));
}

#[test]
fn attention_gradients_on_the_gpu() {
    // Three tiles each way; head sizes of every forward kernel, and between those of the kernels; one token.
    let long = [[2, 2, 32, 17], [1, 1, 40, 70], [1, 1, 32, 130], [1, 1, 128, 34]];
    let short = [[1, 1, 88, 5], [1, 1, 64, 1], [1, 1, 80, 6], [1, 1, 112, 7]];
    for (i, shape) in long.into_iter().chain(short).enumerate() {
        on_gpu(&attention_case(shape, 1.5, i as u64));
    }
}

/// lse is what e^score sums to, and out what attention without it writes.
#[test]
fn attention_leaves_the_logarithm_of_each_row() {
    let (images, heads, head_dim, tokens) = (2, 2, 32, 70);
    let d = heads * head_dim;
    let qkv = Random::new(1).values(images * tokens * 3 * d);
    for (device, dtype) in [(cpu(), DType::F64), (cpu(), DType::F32), (crate::engines::cuda(), DType::F32)] {
        let packed = Tensor::from_f64(&device, dtype, &[images, tokens, 3 * d], &qkv).unwrap();
        let mut out = Tensor::zeros(&device, dtype, &[images, tokens, d]).unwrap();
        let mut plain = Tensor::zeros(&device, dtype, &[images, tokens, d]).unwrap();
        let mut lse = Tensor::zeros(&device, dtype, &[images, heads, tokens]).unwrap();
        device.run(|| attention_with_lse(&device, &packed, heads, &mut out, &mut lse)).unwrap();
        let part = |i: usize| Heads { tensor: &packed, offset: i * d };
        device.run(|| attention(&device, part(0), part(1), part(2), heads, &mut plain)).unwrap();
        let [out, plain, lse] = [out, plain, lse].map(|t| t.to_f64(&device).unwrap());
        for (i, &got) in lse.iter().enumerate() {
            let (b, h, row) = (i / heads / tokens, i / tokens % heads, i % tokens);
            let at = |part: usize, t: usize, c: usize| qkv[((b * tokens + t) * 3 + part) * d + h * head_dim + c];
            let score = |t: usize| (0..head_dim).map(|c| at(0, row, c) * at(1, t, c)).sum::<f64>();
            let want = (0..tokens).map(|t| (score(t) / (head_dim as f64).sqrt()).exp()).sum::<f64>().ln();
            assert!((got - want).abs() < 1e-5, "lse {i} on {} in {dtype}: {got}, {want} expected", device.name());
        }
        let off = out.iter().zip(plain).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(off < 1e-5, "{off:.2e} on {} in {dtype}", device.name());
    }
}
