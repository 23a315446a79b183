//! What changes the size or the layout of images: pooling, resizing, concatenation, channels last and first.

use arclet::device::Device;
use arclet::ops::concat::{concat, split};
use arclet::ops::layout::{channels_first, channels_first_backward, channels_last, channels_last_backward};
use arclet::ops::pool::{Average, Window, average_pool, average_pool_backward, max_pool, max_pool_backward};
use arclet::ops::upsample::{Resize, upsample, upsample_backward};
use arclet::tensor::{DType, Tensor};

use super::check::{
    Case, Differentiable, Input, Random, Role, on_cpu, on_gpu, same_bits_in_any_batch, same_bits_on_any_threads,
};
use crate::common::{cpu, relative_error};
use crate::engines::{check, cuda};
use Role::{Activation as Act, Image};

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

fn one_input(shape: [usize; 4], seed: u64) -> Vec<Input> {
    vec![Input::new("x", Act, &shape, &mut Random::new(seed))]
}

/// The largest of windows over images of `shape`.
pub fn max_pool_case(shape: [usize; 4], window: Window, seed: u64) -> impl Differentiable + use<> {
    Case {
        name: format!("max pool {shape:?} by {window:?}"),
        inputs: one_input(shape, seed),
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| {
            let [height, width] = window.output([shape[1], shape[2]]).unwrap();
            let mut y = zeros(device, dtype, &[shape[0], height, width, shape[3]]);
            max_pool(device, &t[0], window, &mut y).unwrap();
            y
        },
        backward: move |device: &Device, _: DType, t: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            max_pool_backward(device, &t[0], window, dy, &mut grads[0]).unwrap();
        },
    }
}

/// Averages over images of `shape`.
pub fn average_case(shape: [usize; 4], average: Average, seed: u64) -> impl Differentiable + use<> {
    Case {
        name: format!("average pool {shape:?} by {average:?}"),
        inputs: one_input(shape, seed),
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| {
            let [height, width] = average.output([shape[1], shape[2]]).unwrap();
            let mut y = zeros(device, dtype, &[shape[0], height, width, shape[3]]);
            average_pool(device, &t[0], average, &mut y).unwrap();
            y
        },
        backward: move |device: &Device, _: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            average_pool_backward(device, average, dy, &mut grads[0]).unwrap();
        },
    }
}

/// Images of `shape` resized to `size`.
pub fn resize_case(shape: [usize; 4], size: [usize; 2], resize: Resize, seed: u64) -> impl Differentiable + use<> {
    Case {
        name: format!("{resize:?} {shape:?} to {size:?}"),
        inputs: one_input(shape, seed),
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &[shape[0], size[0], size[1], shape[3]]);
            upsample(device, &t[0], resize, &mut y).unwrap();
            y
        },
        backward: move |device: &Device, _: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            upsample_backward(device, resize, dy, &mut grads[0]).unwrap();
        },
    }
}

fn random_window(r: &mut Random, size: [usize; 2]) -> Window {
    let kernel = size.map(|n| r.size(1, n.min(4)));
    let padding = kernel.map(|k| r.size(0, k / 2));
    Window { kernel, stride: [r.size(1, 3), r.size(1, 3)], padding }
}

#[test]
fn pooling_gradients() {
    let r = &mut Random::new(21);
    for seed in 0..20 {
        let shape = [r.size(1, 2), r.size(1, 7), r.size(1, 7), r.size(1, 4)];
        let window = random_window(r, [shape[1], shape[2]]);
        on_cpu(&max_pool_case(shape, window, seed));
        for include_pad in [false, true] {
            on_cpu(&average_case(shape, Average::Windows(window, include_pad), seed));
        }
        on_cpu(&average_case(shape, Average::Adaptive([r.size(1, 9), r.size(1, 9)]), seed));
    }
    let large = [3, 17, 19, 20];
    same_bits_on_any_threads(&max_pool_case(large, Window::square(3, 2, 1), 1));
    same_bits_on_any_threads(&average_case(large, Average::Adaptive([1, 1]), 1));
}

#[test]
fn pooling_gradients_on_the_gpu() {
    let strip = Window { kernel: [3, 2], stride: [1, 2], padding: [1, 0] };
    for (shape, window) in
        [([2, 9, 8, 5], Window::square(3, 2, 1)), ([1, 6, 7, 16], strip), ([1, 1, 1, 1], Window::square(1, 1, 0))]
    {
        on_gpu(&max_pool_case(shape, window, 2));
        for include_pad in [false, true] {
            on_gpu(&average_case(shape, Average::Windows(window, include_pad), 3));
        }
    }
    for (shape, size) in [([2, 9, 7, 5], [4, 3]), ([1, 3, 2, 40], [5, 4]), ([2, 7, 9, 35], [1, 1])] {
        on_gpu(&average_case(shape, Average::Adaptive(size), 4));
    }
}

/// Equal numbers, infinities and NaN: forward and backward of the GPU are the CPU's, bit by bit.
#[test]
fn ties_and_nan_are_pooled_alike() {
    let shape = [1, 6, 7, 3];
    let mut values: Vec<f32> = Random::new(5).values(126).iter().map(|v| (v * 2.0).round() as f32).collect();
    values[40] = f32::NAN;
    values[43] = f32::NAN;
    values[60..90].fill(f32::NEG_INFINITY);
    let window = Window::square(3, 2, 1);
    let run = |device: &Device| {
        let x = Tensor::from_f32(device, DType::F32, &shape, &values).unwrap();
        let mut y = zeros(device, DType::F32, &[1, 3, 4, 3]);
        max_pool(device, &x, window, &mut y).unwrap();
        let dy: Vec<f32> = (1..=36).map(|v| v as f32).collect();
        let (dy, mut dx) =
            (Tensor::from_f32(device, DType::F32, &[1, 3, 4, 3], &dy).unwrap(), zeros(device, DType::F32, &shape));
        max_pool_backward(device, &x, window, &dy, &mut dx).unwrap();
        [y.to_f32(device).unwrap(), dx.to_f32(device).unwrap()].concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let want = run(&cpu());
    assert!(want == run(&cuda()));
    // Every gradient went somewhere, and to one place.
    let dx: f32 = want[36..].iter().map(|&bits| f32::from_bits(bits)).sum();
    assert_eq!(dx, 36.0 * 37.0 / 2.0);
}

#[test]
fn windows_that_do_not_fit_are_refused() {
    for (window, size) in [
        (Window::square(3, 1, 2), [5, 5]),
        (Window::square(3, 0, 1), [5, 5]),
        (Window::square(0, 1, 0), [5, 5]),
        (Window::square(4, 2, 0), [5, 3]),
    ] {
        assert!(window.output(size).is_err(), "{window:?} over {size:?}");
    }
    assert!(Average::Adaptive([0, 1]).output([4, 4]).is_err());
    let device = cpu();
    let (x, mut y) = (zeros(&device, DType::F32, &[1, 5, 5, 2]), zeros(&device, DType::F32, &[1, 2, 3, 2]));
    let error = max_pool(&device, &x, Window::square(3, 2, 1), &mut y).unwrap_err().to_string();
    assert!(error.contains("[1, 2, 3, 2] found, f32 [1, 3, 3, 2] expected"), "{error}");
}

#[test]
fn resizing_gradients() {
    let r = &mut Random::new(22);
    for seed in 0..20 {
        let shape = [r.size(1, 2), r.size(1, 5), r.size(1, 5), r.size(1, 3)];
        // Larger, smaller, and the double.
        let size = if seed % 3 == 0 { [2 * shape[1], 2 * shape[2]] } else { [r.size(1, 9), r.size(1, 9)] };
        for resize in [Resize::Nearest, Resize::Bilinear] {
            on_cpu(&resize_case(shape, size, resize, seed));
        }
    }
    same_bits_on_any_threads(&resize_case([3, 9, 7, 20], [17, 15], Resize::Bilinear, 1));
}

#[test]
fn resizing_gradients_on_the_gpu() {
    for (shape, size) in
        [([2, 5, 4, 8], [10, 8]), ([1, 7, 3, 5], [4, 11]), ([1, 1, 1, 16], [3, 2]), ([2, 3, 9, 1], [8, 2])]
    {
        for resize in [Resize::Nearest, Resize::Bilinear] {
            on_gpu(&resize_case(shape, size, resize, 3));
        }
    }
}

/// Parts of `widths` channels side by side, the backward of which splits; or the splitting, whose parts are put one behind the
/// other by the test.
fn concat_case(shape: [usize; 3], widths: &'static [usize], seed: u64) -> impl Differentiable + use<> {
    let r = &mut Random::new(seed);
    let [images, height, width] = shape;
    let whole = [images, height, width, widths.iter().sum()];
    let part = move |c: usize| [images, height, width, c];
    Case {
        name: format!("concatenation of {widths:?} at {shape:?}"),
        inputs: widths.iter().map(|&c| Input::new("part", Act, &part(c), r)).collect(),
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &whole);
            concat(device, &t.iter().collect::<Vec<_>>(), &mut y).unwrap();
            y
        },
        backward: move |device: &Device, _: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            split(device, dy, &mut grads.iter_mut().collect::<Vec<_>>()).unwrap();
        },
    }
}

/// `channels_last`, or `channels_first`.
fn layout_case([images, height, width, c]: [usize; 4], last: bool, seed: u64) -> impl Differentiable + use<> {
    let (first_shape, last_shape) = ([images, c, height, width], [images, height, width, c]);
    let (role, from, to) = if last { (Image, first_shape, last_shape) } else { (Act, last_shape, first_shape) };
    Case {
        name: format!("layout {last_shape:?}, channels last: {last}"),
        inputs: vec![Input::new("x", role, &from, &mut Random::new(seed))],
        forward: move |device: &Device, dtype: DType, t: &[Tensor]| {
            let mut y = zeros(device, dtype, &to);
            let way = if last { channels_last } else { channels_first };
            way(device, &t[0], &mut y).unwrap();
            y
        },
        backward: move |device: &Device, _: DType, _: &[Tensor], dy: &Tensor, grads: &mut [Tensor]| {
            let way = if last { channels_last_backward } else { channels_first_backward };
            way(device, dy, &mut grads[0]).unwrap();
        },
    }
}

#[test]
fn copies_are_their_own_gradients() {
    let r = &mut Random::new(23);
    for seed in 0..20 {
        let shape = [r.size(1, 3), r.size(1, 3), r.size(1, 3)];
        on_cpu(&concat_case(shape, [&[1][..], &[2, 3], &[4, 1, 2], &[1, 1, 1, 1]][seed as usize % 4], seed));
        let shape = [r.size(1, 3), r.size(1, 3), r.size(1, 3), r.size(1, 4)];
        on_cpu(&layout_case(shape, seed % 2 == 0, seed));
    }
}

#[test]
fn copies_on_the_gpu() {
    // Whole 16-byte blocks; odd widths; whole blocks of f32 only.
    for widths in [&[8, 24][..], &[3, 1, 5], &[4, 12]] {
        on_gpu(&concat_case([2, 3, 11], widths, 1));
    }
    for last in [false, true] {
        on_gpu(&layout_case([2, 5, 7, 3], last, 2));
        on_gpu(&layout_case([3, 4, 1, 1], last, 2));
    }
}

#[test]
fn images_are_repeated_for_guidance() {
    let x = Random::new(4).values(2 * 3 * 4 * 5);
    let want: Vec<f64> = (0..4 * 20 * 3).map(|i| x[((i / 60 % 2) * 3 + i % 3) * 20 + i / 3 % 20]).collect();
    check("channels last, repeated", &want, |device, dtype| {
        let x = Tensor::from_f64(device, dtype.wide(), &[2, 3, 4, 5], &x).unwrap();
        let mut y = zeros(device, dtype, &[4, 4, 5, 3]);
        channels_last(device, &x, &mut y).unwrap();
        y.to_f32(device).unwrap()
    });
    let device = cpu();
    let (x, mut y) = (zeros(&device, DType::F32, &[2, 3, 4, 5]), zeros(&device, DType::F32, &[3, 4, 5, 3]));
    assert!(channels_last(&device, &x, &mut y).is_err());
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let device = cpu();
    let t = |shape: &[usize]| zeros(&device, DType::F32, shape);
    let (a, b) = (t(&[1, 2, 2, 3]), t(&[1, 2, 2, 2]));
    let error = concat(&device, &[&a, &b], &mut t(&[1, 2, 2, 6])).unwrap_err().to_string();
    assert!(error.contains("5 channels together, 6 expected"), "{error}");
    let error = concat(&device, &[&a, &t(&[1, 2, 1, 2])], &mut t(&[1, 2, 2, 5])).unwrap_err().to_string();
    assert!(error.contains("part 1"), "{error}");
}

/// x2 both ways, PyTorch's rule for bilinear borders and the means of windows, by hand.
#[test]
fn small_images_by_hand() {
    let device = cpu();
    let x = Tensor::from_f32(&device, DType::F32, &[1, 1, 2, 1], &[0.0, 4.0]).unwrap();
    let run = |resize| {
        let mut y = zeros(&device, DType::F32, &[1, 2, 4, 1]);
        upsample(&device, &x, resize, &mut y).unwrap();
        y.to_f32(&device).unwrap()
    };
    assert_eq!(run(Resize::Nearest), [0.0, 0.0, 4.0, 4.0, 0.0, 0.0, 4.0, 4.0]);
    assert_eq!(run(Resize::Bilinear), [0.0, 1.0, 3.0, 4.0, 0.0, 1.0, 3.0, 4.0]);
    let mean = |include_pad| {
        let mut y = zeros(&device, DType::F32, &[1, 1, 1, 1]);
        let window = Window { kernel: [2, 4], stride: [2, 4], padding: [1, 1] };
        average_pool(&device, &x, Average::Windows(window, include_pad), &mut y).unwrap();
        y.to_f32(&device).unwrap()[0]
    };
    assert!(relative_error(&[mean(true), mean(false)], &[0.5, 2.0]) < 1e-6);
}

#[test]
fn images_do_not_depend_on_the_batch() {
    let [one, four] = [1, 4].map(|images| [images, 9, 7, 5]);
    let window = Window::square(3, 2, 1);
    same_bits_in_any_batch(&mut max_pool_case(one, window, 1), &max_pool_case(four, window, 2));
    for average in [Average::Windows(window, false), Average::Adaptive([1, 1]), Average::Adaptive([4, 3])] {
        same_bits_in_any_batch(&mut average_case(one, average, 1), &average_case(four, average, 2));
    }
    for resize in [Resize::Nearest, Resize::Bilinear] {
        same_bits_in_any_batch(&mut resize_case(one, [13, 5], resize, 1), &resize_case(four, [13, 5], resize, 2));
    }
}
