//! Convolutions and transposed ones, of one input and of several.

use arclet::device::Device;
use arclet::ops::Columns;
use arclet::ops::conv::backward::{
    Gradients, backward_workspace_size, conv_transpose2d_backward, conv2d_backward, scratch_len,
    transposed_backward_workspace_size, transposed_scratch_len,
};
use arclet::ops::conv::{
    ConvSpec, Operands, channels_last, conv_transpose2d, conv2d, transposed_workspace_size, workspace_size,
};
use arclet::ops::linear::Workspace;
use arclet::tensor::{DType, Tensor};

use super::check::{
    Case, Differentiable, Input, Random, Role, f32_on_cpu, on_cpu, on_gpu, same_bits_in_any_batch,
    same_bits_on_any_threads,
};
use crate::common::{cpu, relative_error};
use crate::engines::cuda;
use crate::ops::conv::Golden;

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

const NAMES: [&str; 6] = ["x0", "x1", "x2", "x3", "x4", "x5"];

/// Inputs of [images, size.., channels], weight and bias.
fn conv_case(
    images: usize,
    size: [usize; 2],
    channels: &'static [usize],
    n: usize,
    spec: ConvSpec,
    seed: u64,
) -> impl Differentiable {
    let (r, c, parts) = (&mut Random::new(seed), channels.iter().sum::<usize>(), channels.len());
    let input = |(name, &c): (&&'static str, &usize)| (*name, [images, size[0], size[1], c]);
    let mut inputs: Vec<Input> = NAMES
        .iter()
        .zip(channels)
        .map(input)
        .map(|(name, shape)| Input::new(name, Role::Activation, &shape, r))
        .collect();
    let weight = [n, spec.kernel[0], spec.kernel[1], c / spec.groups];
    inputs.push(Input::new("weight", Role::Parameter, &weight, r));
    inputs.push(Input::new("bias", Role::Parameter, &[n], r));
    let [height, width] = spec.output(size).unwrap();
    let output = [height, width];
    Case {
        name: format!("convolution of {images} {size:?} x {channels:?} to {n}, {spec:?}"),
        inputs,
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &[images, height, width, n]);
            let size = workspace_size(device, dtype, spec, [images, c, n], output);
            let mut space = Workspace::new(device, dtype, size).unwrap();
            let x: Vec<&Tensor> = t[..parts].iter().collect();
            let bias = Some(Columns::Shared(&t[parts + 1]));
            conv2d(device, Operands { bias, ..Operands::new(spec, &x, &t[parts]) }, &mut y, &mut space).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let (dx, rest) = grads.split_at_mut(parts);
            let [dw, db] = rest else { unreachable!("weight and bias") };
            let space = backward_workspace_size(device, dtype, spec, [images, n], channels, size);
            let mut space = Workspace::new(device, dtype, space).unwrap();
            let mut scratch = zeros(device, dtype.wide(), &[scratch_len(device, spec, [images, c, n], output)]);
            let (x, mut dx): (Vec<&Tensor>, Vec<&mut Tensor>) = (t[..parts].iter().collect(), dx.iter_mut().collect());
            let gradients = Gradients { dx: &mut dx, dw, db: Some(db), scratch: &mut scratch };
            conv2d_backward(device, spec, &x, &t[parts], dy, gradients, &mut space).unwrap();
        },
    }
}

fn transposed_case(
    images: usize,
    size: [usize; 2],
    [c, n]: [usize; 2],
    spec: ConvSpec,
    extra: usize,
    seed: u64,
) -> impl Differentiable {
    let r = &mut Random::new(seed);
    let inputs = vec![
        Input::new("x", Role::Activation, &[images, size[0], size[1], c], r),
        Input::new("weight", Role::Parameter, &[c, spec.kernel[0], spec.kernel[1], n / spec.groups], r),
        Input::new("bias", Role::Parameter, &[n], r),
    ];
    let [height, width] = spec.transposed_output(size, [extra; 2]).unwrap();
    Case {
        name: format!("transposed convolution of {images} {size:?} x {c} to {n}, {spec:?}"),
        inputs,
        forward: move |device: &Device, dtype, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &[images, height, width, n]);
            let size = transposed_workspace_size(device, dtype, spec, [images, c, n], [height, width]);
            let mut space = Workspace::new(device, dtype, size).unwrap();
            let (x, bias) = ([&t[0]], Some(Columns::Shared(&t[2])));
            conv_transpose2d(device, Operands { bias, ..Operands::new(spec, &x, &t[1]) }, &mut y, &mut space).unwrap();
            y
        },
        backward: move |device: &Device, dtype: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let [dx, dw, db] = grads else { unreachable!("three inputs") };
            let space = transposed_backward_workspace_size(device, dtype, spec, [images, c, n], size);
            let mut space = Workspace::new(device, dtype, space).unwrap();
            let len = transposed_scratch_len(device, spec, [images, c, n], size);
            let mut scratch = zeros(device, dtype.wide(), &[len]);
            let gradients = Gradients { dx: &mut [dx], dw, db: Some(db), scratch: &mut scratch };
            conv_transpose2d_backward(device, spec, &t[0], &t[1], dy, gradients, &mut space).unwrap();
        },
    }
}

#[test]
fn convolution_gradients() {
    let r = &mut Random::new(21);
    for seed in 0..24 {
        let spec = ConvSpec {
            kernel: [r.size(1, 3), r.size(1, 3)],
            stride: [r.size(1, 3), r.size(1, 2)],
            padding: [[r.size(0, 2), r.size(0, 2)], [r.size(0, 2), r.size(0, 2)]],
            dilation: [r.size(1, 2), r.size(1, 2)],
            groups: 1,
        };
        let size = [r.size(5, 7), r.size(5, 7)];
        match seed % 4 {
            0 => on_cpu(&conv_case(2, size, &[3], 4, spec, seed)),
            1 => on_cpu(&conv_case(1, size, &[2, 1, 3], 2, spec, seed)),
            2 => on_cpu(&conv_case(1, size, &[4], 6, spec.groups(2), seed)),
            _ => on_cpu(&conv_case(2, size, &[1, 3], 4, spec.groups(4), seed)),
        }
        on_cpu(&transposed_case(1, [3, 4], [4, 2], spec, 0, seed));
    }
    on_cpu(&transposed_case(1, [3, 3], [4, 6], ConvSpec::new(3).stride(2).padding(1).groups(2), 1, 5));
    on_cpu(&transposed_case(1, [3, 3], [4, 4], ConvSpec::new(4).stride(2).padding(1).groups(4), 0, 6));
    let three = ConvSpec::new(3).padding(1);
    let large = conv_case(2, [13, 17], &[32, 16], 70, three, 7);
    f32_on_cpu(&large);
    same_bits_on_any_threads(&large);
    same_bits_on_any_threads(&conv_case(2, [9, 9], &[40], 40, three.stride(2).groups(40), 8));
    same_bits_on_any_threads(&transposed_case(2, [9, 5], [32, 20], ConvSpec::new(4).stride(2).padding(1), 0, 9));
    let batch = |images| conv_case(images, [9, 8], &[24], 20, three.stride(2), 10);
    same_bits_in_any_batch(&mut batch(1), &batch(3));
}

#[test]
fn convolution_gradients_on_the_gpu() {
    let three = ConvSpec::new(3).padding(1);
    // Several tiles each way and planes of dw; channels that are no whole blocks; groups; depthwise; one input of several.
    on_gpu(&conv_case(2, [14, 20], &[24], 72, three, 1));
    on_gpu(&conv_case(1, [7, 6], &[3], 5, ConvSpec::new(5).stride(2).padding(2), 2));
    on_gpu(&conv_case(1, [6, 5], &[16, 8], 16, three.dilation(2), 3));
    on_gpu(&conv_case(1, [5, 5], &[16], 24, three.groups(2), 4));
    on_gpu(&conv_case(2, [6, 9], &[20, 15], 35, three.stride(2).groups(35), 5));
    on_gpu(&transposed_case(1, [5, 6], [16, 72], ConvSpec::new(4).stride(2).padding(1), 0, 6));
    on_gpu(&transposed_case(1, [3, 4], [6, 4], ConvSpec::new(3).stride(2).padding(1).groups(2), 1, 7));
    on_gpu(&transposed_case(1, [3, 3], [9, 9], ConvSpec::new(2).stride(3).groups(9), 1, 8));
}

#[test]
fn convolution_gradients_are_pytorchs() {
    for golden in Golden::all() {
        for (device, dtype, bound) in [(cpu(), DType::F64, 3e-7), (cpu(), DType::F32, 1e-5), (cuda(), DType::F32, 1e-5)]
        {
            let (device, spec) = (&device, golden.spec);
            let ((x_shape, x), (y_shape, dy)) = (golden.images("x"), golden.images("dy"));
            let t = |shape: &[usize], v: &[f32]| Tensor::from_f32(device, dtype, shape, v).unwrap();
            let shape: [usize; 4] = golden.shape("weight").try_into().unwrap();
            let rows = [shape[0], shape[2], shape[3], shape[1]];
            let (x, dy, w) =
                (t(&x_shape, &x), t(&y_shape, &dy), t(&rows, &channels_last(&golden.values("weight"), shape)));
            let mut dx = zeros(device, dtype, &x_shape);
            let [mut dw, mut db] = [&rows[..], &y_shape[3..]].map(|shape| zeros(device, dtype, shape));
            let (sizes, size) = ([x_shape[0], x_shape[3], y_shape[3]], [x_shape[1], x_shape[2]]);
            let (len, space) = match golden.transposed {
                true => (
                    transposed_scratch_len(device, spec, sizes, size),
                    transposed_backward_workspace_size(device, dtype, spec, sizes, size),
                ),
                false => (
                    scratch_len(device, spec, sizes, [y_shape[1], y_shape[2]]),
                    backward_workspace_size(device, dtype, spec, [sizes[0], sizes[2]], &x_shape[3..], size),
                ),
            };
            let (mut scratch, mut space) =
                (zeros(device, dtype, &[len]), Workspace::new(device, dtype, space).unwrap());
            let mut dxs = [&mut dx];
            let gradients = Gradients { dx: &mut dxs, dw: &mut dw, db: Some(&mut db), scratch: &mut scratch };
            device
                .run(|| match golden.transposed {
                    true => conv_transpose2d_backward(device, spec, &x, &w, &dy, gradients, &mut space),
                    false => conv2d_backward(device, spec, &[&x], &w, &dy, gradients, &mut space),
                })
                .unwrap();
            let want = [golden.images("dx").1, channels_last(&golden.values("dweight"), shape), golden.values("dbias")];
            for (name, (got, want)) in ["x", "weight", "bias"].iter().zip([dx, dw, db].iter().zip(want)) {
                let error = relative_error(&got.to_f32(device).unwrap(), &want);
                let what = format!("{}: gradient of {name} on {} in {dtype}", golden.name, device.name());
                assert!(error <= bound, "{what}: relative error {error:.2e}");
            }
        }
    }
}
