//! Attention in three launches: the cases of the fused kernel, the scores that it leaves, and what it refuses.

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::ops::attention::{Heads, attention, attention_unfused};
use arclet::tensor::{DType, Tensor};

use super::{attention_by, tensor, values};
use crate::common::{cpu, relative_error};
use crate::engines::{cuda, every_mode};

fn unfused(device: &Device, operands: [Heads; 3], heads: usize, out: &mut Tensor) -> Result<()> {
    let [q_len, kv_len] = [0, 1].map(|i| operands[i].tensor.dim(1));
    let mut scores = Tensor::zeros(device, out.dtype().wide(), &[out.dim(0), heads, q_len, kv_len])?;
    attention_unfused(device, operands, heads, &mut scores, out)
}

#[test]
fn attention_unfused_self() {
    // One and several tiles each way, with remainders; four steps along the channels, then along the keys.
    for [images, heads, head_dim, len] in
        [[2, 2, 32, 17], [1, 2, 40, 65], [1, 1, 72, 33], [1, 1, 128, 70], [2, 1, 48, 1], [1, 1, 96, 128]]
    {
        attention_by(unfused, [images, heads, head_dim, len, len], 1.5);
    }
}

#[test]
fn attention_unfused_cross() {
    for (q_len, kv_len) in [(5, 77), (70, 1), (1, 130), (64, 200)] {
        attention_by(unfused, [2, 2, 32, q_len, kv_len], 1.5);
    }
}

#[test]
fn attention_unfused_with_peaked_scores() {
    attention_by(unfused, [1, 1, 64, 50, 200], 6.0);
    attention_by(unfused, [1, 1, 112, 20, 200], 5.0);
}

/// Rows of numbers from 0 on that add up to 1, and lead to the fused kernel's output.
#[test]
fn attention_unfused_leaves_its_weights() {
    let (device, heads, len, dim) = (cuda(), 2, 70, 64);
    let x = values(2 * len * 3 * dim, 1, 1.5);
    let run = |fused: bool| {
        let qkv = tensor(&device, DType::F32, &[2, len, 3 * dim], &x);
        let [q, k, v] = [0, 1, 2].map(|i| Heads { tensor: &qkv, offset: i * dim });
        let mut out = Tensor::zeros(&device, DType::F32, &[2, len, dim]).unwrap();
        let mut scores = Tensor::zeros(&device, DType::F32, &[2, heads, len, len]).unwrap();
        match fused {
            true => attention(&device, q, k, v, heads, &mut out).unwrap(),
            false => attention_unfused(&device, [q, k, v], heads, &mut scores, &mut out).unwrap(),
        }
        (out.to_f32(&device).unwrap(), scores.to_f32(&device).unwrap())
    };
    let weights = every_mode("weights", || run(false).1);
    for row in weights.chunks(len) {
        assert!(row.iter().all(|&w| (0.0..=1.0).contains(&w)));
        let sum: f64 = row.iter().map(|&w| f64::from(w)).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }
    let error = relative_error(&run(false).0, &run(true).0);
    assert!(error < 1e-5, "relative error {error:.2e}");
}

#[test]
fn attention_unfused_refuses_what_does_not_fit() {
    let refused = |device: &Device, heads: usize, stride: usize, scores: (DType, &[usize]), part: &str| {
        let qkv = Tensor::zeros(device, DType::F16, &[1, 4, stride]).unwrap();
        let operands = [0, 32, 64].map(|offset| Heads { tensor: &qkv, offset });
        let mut scores = Tensor::zeros(device, scores.0, scores.1).unwrap();
        let mut out = Tensor::zeros(device, DType::F16, &[1, 4, 32]).unwrap();
        match attention_unfused(device, operands, heads, &mut scores, &mut out) {
            Err(Error::Runtime(message)) => assert!(message.contains(part), "{part:?} is not in: {message}"),
            other => panic!("{other:?}"),
        }
    };
    for device in [cpu(), cuda()] {
        refused(&device, 1, 96, (DType::F32, &[1, 1, 4, 3]), "attention scores");
        refused(&device, 1, 96, (DType::F16, &[1, 1, 4, 4]), "attention scores");
        refused(&device, 3, 96, (DType::F32, &[1, 3, 4, 4]), "heads do not divide");
    }
    refused(&cuda(), 1, 100, (DType::F32, &[1, 1, 4, 4]), "multiples of 8");
    refused(&cuda(), 2, 96, (DType::F32, &[1, 2, 4, 4]), "head size 16");
}
