//! The products of the CPU at every level: any shape, and the same bits whatever the batch and the threads.

use arclet::device::Device;
use arclet::device::cpu::Cpu;
use arclet::device::level::Level;
use arclet::ops::Columns;
use arclet::ops::attention::{Heads, around_attention, attention};
use arclet::ops::layernorm::{Affine, layernorm};
use arclet::ops::linear::{Activation, Operands, Residual, RowNorm, Workspace, between, linear, workspace_size};
use arclet::tensor::{DType, Tensor};

use crate::common::{cpu_at, relative_error, rms_error};

/// Numbers in [-1, 1) that bf16 has to round.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn product(device: &Device, dtype: DType, [images, rows, n, k]: [usize; 4]) -> Vec<f32> {
    let tensor =
        |shape: &[usize], seed| Tensor::from_f32(device, dtype, shape, &values(shape.iter().product(), seed)).unwrap();
    // Images of one batch have the numbers that they have alone.
    let x: Vec<f32> = (0..images).flat_map(|image| values(rows * k, image as u32)).collect();
    let x = Tensor::from_f32(device, dtype, &[images, rows, k], &x).unwrap();
    let w = Tensor::matrix(device, dtype, [n, k], &values(n * k, 90)).unwrap();
    let (bias, mut y) = (tensor(&[n], 91), Tensor::zeros(device, dtype, &[images, rows, n]).unwrap());
    let mut space = Workspace::new(device, dtype, workspace_size(device, dtype, images, rows, n, k)).unwrap();
    let row_norm = Some(RowNorm { affine: Affine::None, eps: 1e-6 });
    let operands = Operands {
        row_norm,
        bias: Some(Columns::Shared(&bias)),
        act: Activation::Gelu,
        residual: Residual::InPlace,
        ..Operands::new(&x, &w)
    };
    device.run(|| linear(device, operands, &mut y, None, &mut space)).unwrap();
    y.to_f32(device).unwrap()
}

fn attend(device: &Device, dtype: DType, [images, tokens, heads, head_dim]: [usize; 4]) -> Vec<f32> {
    let dim = heads * head_dim;
    let qkv: Vec<f32> = (0..images).flat_map(|image| values(tokens * 3 * dim, 7 + image as u32)).collect();
    let qkv = Tensor::from_f32(device, dtype, &[images, tokens, 3 * dim], &qkv).unwrap();
    let part = |i: usize| Heads { tensor: &qkv, offset: i * dim };
    let mut out = Tensor::zeros(device, dtype, &[images, tokens, dim]).unwrap();
    device.run(|| attention(device, part(0), part(1), part(2), heads, &mut out)).unwrap();
    out.to_f32(device).unwrap()
}

/// One token, sizes that are prime, sizes one above and below what tiles and panels take.
#[test]
fn any_shape_is_computed_at_every_level() {
    let exact = cpu_at(Level::Portable);
    let compare = |what: &str, run: &dyn Fn(&Device, DType) -> Vec<f32>| {
        let want = run(&exact, DType::F64);
        let rounded = rms_error(&run(&exact, DType::BF16), &want);
        for level in Level::ALL {
            let device = cpu_at(level);
            let error = relative_error(&run(&device, DType::F32), &want);
            assert!(error <= 1e-5, "{what} at {}: {error:.2e}", level.name());
            let error = rms_error(&run(&device, DType::BF16), &want);
            assert!(error <= 2.0 * rounded, "{what} at {} in bf16: {error:.2e} of {rounded:.2e}", level.name());
        }
    };
    for shape in [[1, 1, 1, 2], [1, 1, 17, 31], [2, 7, 47, 33], [1, 33, 49, 65], [3, 13, 31, 97], [1, 65, 97, 16]] {
        compare(&format!("linear {shape:?}"), &|device, dtype| product(device, dtype, shape));
    }
    for shape in [[1, 1, 1, 8], [2, 7, 3, 24], [1, 53, 2, 64], [1, 67, 1, 128]] {
        compare(&format!("attention {shape:?}"), &|device, dtype| attend(device, dtype, shape));
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_batch() {
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for level in Level::ALL {
        for dtype in [DType::F32, DType::BF16] {
            let one = Device::Cpu(Cpu::at(1, level).unwrap());
            let want = bits(product(&one, dtype, [3, 19, 70, 40]));
            let heads = bits(attend(&one, dtype, [2, 37, 2, 16]));
            // More threads than cores, and than there are tiles.
            for threads in [2, 3, 64] {
                let device = Device::Cpu(Cpu::at(threads, level).unwrap());
                assert!(want == bits(product(&device, dtype, [3, 19, 70, 40])), "{} {dtype}", level.name());
                assert!(heads == bits(attend(&device, dtype, [2, 37, 2, 16])), "{} {dtype}", level.name());
            }
            let alone = bits(product(&one, dtype, [1, 19, 70, 40]));
            assert!(want[..alone.len()] == alone, "{} {dtype}: the batch changes an image", level.name());
        }
    }
}

/// Two products, the activations between them in the layout of the second or in a tensor.
fn two_products(
    device: &Device,
    dtype: DType,
    [images, rows, n, k]: [usize; 4],
    act: Activation,
    packed: bool,
) -> Vec<f32> {
    let tensor =
        |shape: &[usize], seed| Tensor::from_f32(device, dtype, shape, &values(shape.iter().product(), seed)).unwrap();
    let (x, bias) = (tensor(&[images, rows, k], 1), tensor(&[n], 2));
    let w1 = Tensor::matrix(device, dtype, [n, k], &values(n * k, 3)).unwrap();
    let w2 = Tensor::matrix(device, dtype, [k, n], &values(n * k, 4)).unwrap();
    let size = workspace_size(device, dtype, images, rows, n, k).max(workspace_size(device, dtype, images, rows, k, n));
    let mut space = Workspace::new(device, dtype, size).unwrap();
    let (shape, mut y) = ([images, rows, n], tensor(&[images, rows, k], 5));
    let mut hidden =
        if packed { between(device, dtype, &shape) } else { Tensor::zeros(device, dtype, &shape) }.unwrap();
    // Twice, so that what the first pass has left is written over.
    for _ in 0..2 {
        let first = Operands { bias: Some(Columns::Shared(&bias)), act, ..Operands::new(&x, &w1) };
        device.run(|| linear(device, first, &mut hidden, None, &mut space)).unwrap();
        let second = Operands { residual: Residual::InPlace, ..Operands::new(&hidden, &w2) };
        device.run(|| linear(device, second, &mut y, None, &mut space)).unwrap();
    }
    y.to_f32(device).unwrap()
}

/// Widths that end within a line, a group or a panel; rows that do not fill a tile, and more than a part has.
#[test]
fn activations_between_products_are_those_of_a_tensor() {
    for level in Level::ALL {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for shape in [[1, 1, 1, 3], [2, 7, 33, 16], [1, 67, 96, 31], [3, 13, 131, 40], [1, 700, 50, 70]] {
                let device = cpu_at(level);
                let both = |act| [true, false].map(|packed| two_products(&device, dtype, shape, act, packed));
                let [packed, plain] = both(Activation::Silu);
                assert!(packed == plain, "{shape:?} {} {dtype}", level.name());
                // GELU of what is rounded to bf16 on the way is a shorter polynomial, below half the rounding of the sums it enters.
                let [packed, plain] = both(Activation::Gelu);
                let error = relative_error(&packed, &plain);
                let bound = if dtype == DType::BF16 && level.has_bf16() { 2f64.powi(-10) } else { 0.0 };
                assert!(error <= bound, "{shape:?} {} {dtype}: {error:.2e}", level.name());
            }
        }
    }
}

/// Two products with an attention between them, on rows in the layout of the products or in tensors.
fn attend_between(
    device: &Device,
    dtype: DType,
    [images, tokens, heads, head_dim]: [usize; 4],
    packed: bool,
) -> Vec<f32> {
    let (d, k) = (heads * head_dim, 24);
    let x = Tensor::from_f32(device, dtype, &[images, tokens, k], &values(images * tokens * k, 1)).unwrap();
    let w1 = Tensor::matrix(device, dtype, [3 * d, k], &values(3 * d * k, 2)).unwrap();
    let w2 = Tensor::matrix(device, dtype, [k, d], &values(k * d, 3)).unwrap();
    let sizes = [(3 * d, k), (k, d)].map(|(n, k)| workspace_size(device, dtype, images, tokens, n, k));
    let mut space = Workspace::new(device, dtype, sizes[0].max(sizes[1])).unwrap();
    let around = |parts: usize| match packed {
        true => around_attention(device, dtype, [images, tokens, parts * d], parts * heads),
        false => Tensor::zeros(device, dtype, &[images, tokens, parts * d]),
    };
    let (mut qkv, mut h) = (around(3).unwrap(), around(1).unwrap());
    let mut y = Tensor::zeros(device, dtype, &[images, tokens, k]).unwrap();
    for _ in 0..2 {
        device.run(|| linear(device, Operands::new(&x, &w1), &mut qkv, None, &mut space)).unwrap();
        let part = |i: usize| Heads { tensor: &qkv, offset: i * d };
        device.run(|| attention(device, part(0), part(1), part(2), heads, &mut h)).unwrap();
        device.run(|| linear(device, Operands::new(&h, &w2), &mut y, None, &mut space)).unwrap();
    }
    y.to_f32(device).unwrap()
}

/// Tokens that fill tiles and panels and that do not, images whose tiles are shared, heads that end within a line.
#[test]
fn attention_between_products_is_that_of_tensors() {
    for level in Level::ALL {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for shape in
                [[1, 1, 1, 32], [1, 37, 3, 64], [1, 197, 2, 32], [2, 64, 2, 32], [3, 37, 2, 32], [2, 64, 3, 24]]
            {
                let device = cpu_at(level);
                let [packed, plain] = [true, false].map(|packed| attend_between(&device, dtype, shape, packed));
                assert!(packed == plain, "{shape:?} {} {dtype}", level.name());
            }
        }
    }
}

#[test]
fn packed_activations_are_neither_normalised_nor_added_to() {
    let device = cpu_at(Level::Avx2);
    let (dtype, shape) = (DType::F32, [1, 5, 16]);
    let mut packed = between(&device, dtype, &shape).unwrap();
    let (x, mut y) = (Tensor::zeros(&device, dtype, &shape).unwrap(), Tensor::zeros(&device, dtype, &shape).unwrap());
    let w = Tensor::matrix(&device, dtype, [16, 16], &values(256, 1)).unwrap();
    let mut space = Workspace::new(&device, dtype, workspace_size(&device, dtype, 1, 5, 16, 16)).unwrap();
    let row_norm = Some(RowNorm { affine: Affine::None, eps: 1e-6 });
    let normalised = Operands { row_norm, ..Operands::new(&packed, &w) };
    let error = linear(&device, normalised, &mut y, None, &mut space).unwrap_err().to_string();
    assert!(error.contains("packed rows are neither normalised nor added to"), "{error}");
    let added = Operands { residual: Residual::InPlace, ..Operands::new(&x, &w) };
    let error = linear(&device, added, &mut packed, None, &mut space).unwrap_err().to_string();
    assert!(error.contains("packed rows are neither normalised nor added to"), "{error}");
}

/// What a norm in front of a product gives is what it gives as an operation of its own.
#[test]
fn a_norm_before_a_product_is_the_operation() {
    for level in Level::ALL {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let device = cpu_at(level);
            let (rows, n, k) = (19, 33, 70);
            let x = Tensor::from_f32(&device, dtype, &[1, rows, k], &values(rows * k, 3)).unwrap();
            let w = Tensor::matrix(&device, dtype, [n, k], &values(n * k, 4)).unwrap();
            let run = |row_norm: Option<RowNorm>, x: &Tensor| {
                let mut space = Workspace::new(&device, dtype, workspace_size(&device, dtype, 1, rows, n, k)).unwrap();
                let mut y = Tensor::zeros(&device, dtype, &[1, rows, n]).unwrap();
                let operands = Operands { row_norm, ..Operands::new(x, &w) };
                device.run(|| linear(&device, operands, &mut y, None, &mut space)).unwrap();
                y.to_f32(&device).unwrap()
            };
            let mut normed = Tensor::zeros(&device, dtype, &[1, rows, k]).unwrap();
            device.run(|| layernorm(&device, &x, Affine::None, 1e-6, &mut normed)).unwrap();
            let inline = run(Some(RowNorm { affine: Affine::None, eps: 1e-6 }), &x);
            assert_eq!(inline, run(None, &normed), "{} {dtype}", level.name());
        }
    }
}
