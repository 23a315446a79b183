//! The step of DDPM and DDIM: guidance of some channels, clipping, a learned variance, and noise to the bit.

use arclet::device::Device;
use arclet::ops::diffusion::*;
use arclet::ops::solver::advance;
use arclet::rng;
use arclet::tensor::{DType, Tensor};

use super::{tensor, values, wide};
use crate::common::{Golden, cpu, relative_error};
use crate::engines::{check, cuda, every_mode};

/// A step that makes the prediction the state.
const TAKE: DiffusionStep =
    DiffusionStep { x0_x: 0.0, x0_m: 0.0, k_0: 0.0, k_x: 0.0, k_m: 1.0, sigma: 0.0, log_ratio: 0.0, flags: 0 };

const PLAIN: DiffusionOptions = DiffusionOptions { guidance: None, guided_channels: 4, clip: None, clamp: None };

/// The state after row `at` of `rows`, for images from 2^32 - 1 on of seed 2^40 + 9.
fn step(
    device: &Device,
    x: Tensor,
    output: &Tensor,
    rows: &[DiffusionStep],
    at: u32,
    options: DiffusionOptions,
) -> Vec<f32> {
    let mut x = x;
    let table = step_table(device, rows).unwrap();
    let mut counter = Tensor::from_u32(device, &[1], &[at.saturating_sub(1)]).unwrap();
    if at > 0 {
        advance(device, &mut counter).unwrap();
    }
    let key = Tensor::from_u32(device, &[4], &noise_key(SEED, FIRST)).unwrap();
    let inputs = DiffusionInputs { output, table: &table, counter: &counter, key: &key };
    diffusion_step(device, &mut x, inputs, options).unwrap();
    x.to_f32(device).unwrap()
}

const SEED: u64 = (1 << 40) + 9;
const FIRST: u64 = u32::MAX as u64;

/// Images of three channels, whose sizes no vector divides.
const SHAPE: [usize; 4] = [2, 3, 5, 5];
const LEN: usize = 75;

#[test]
fn diffusion_steps() {
    let row = |sigma, log_ratio, flags| DiffusionStep {
        x0_x: 1.25,
        x0_m: -0.75,
        k_0: 0.5,
        k_x: 0.375,
        k_m: 0.25,
        sigma,
        log_ratio,
        flags,
    };
    let rows = [row(0.0, 0.0, 0), row(0.5, 0.0, 0), row(0.25, 1.5, LEARNED), row(0.5, 0.75, LEARNED | LAST)];
    let (x, all) = (values(2 * LEN, 1, 2.0), values(8 * LEN, 2, 1.0));
    for (at, row) in rows.iter().enumerate() {
        let learned = row.flags & LEARNED != 0;
        for (guidance, guided_channels) in [(None, 3), (Some(2.5f32), 3), (Some(-1.5), 2)] {
            let range = |on: bool, lo: f32, hi: f32| on.then_some((lo, hi));
            let (clip, clamp) = ((at != 1).then_some(1.0f32), range(at > 1, -0.5, 0.75));
            let per_image = if learned { 2 * LEN } else { LEN };
            let images = if guidance.is_some() { 4 } else { 2 };
            let output = &all[..images * per_image];
            let mut want = Vec::new();
            for b in 0..2 {
                let mut z = [0f32; LEN];
                rng::normals(SEED, FIRST + b as u64, STEP_STREAM + at as u32, &mut z);
                for e in 0..LEN {
                    let (c, u) = (f64::from(output[b * per_image + e]), (b + 2) * per_image + e);
                    let guide = |g: f32| f64::from(output[u]) + f64::from(g) * (c - f64::from(output[u]));
                    let m = guidance.filter(|_| e < 25 * guided_channels).map_or(c, guide);
                    let old = f64::from(x[b * LEN + e]);
                    let limit = clip.map_or(f64::INFINITY, f64::from);
                    let x0 = (1.25 * old - 0.75 * m).clamp(-limit, limit);
                    let mut new = 0.5 * x0 + 0.375 * old + 0.25 * m;
                    if row.sigma != 0.0 {
                        let r = if learned { f64::from(output[b * per_image + LEN + e]) } else { -1.0 };
                        let scale = (f64::from(row.log_ratio) * (1.0 + r) / 2.0).exp();
                        new += f64::from(row.sigma) * scale * f64::from(z[e]);
                    }
                    let end = clamp.filter(|_| row.flags & LAST != 0);
                    want.push(end.map_or(new, |(lo, hi)| new.clamp(lo.into(), hi.into())));
                }
            }
            let options = DiffusionOptions { guidance, guided_channels, clip, clamp };
            check(&format!("diffusion row {at} {guidance:?}"), &want, |device, dtype| {
                let shape = [images, if learned { 6 } else { 3 }, 5, 5];
                let output = tensor(device, dtype, &shape, output);
                step(device, tensor(device, wide(dtype), &SHAPE, &x), &output, &rows, at as u32, options)
            });
        }
    }
}

/// The same bits on both devices: those of the stream of the step, for each image by itself.
#[test]
fn the_noise_of_a_step_is_that_of_its_image_and_step() {
    let rows = [DiffusionStep { k_m: 0.0, sigma: 1.0, ..TAKE }; 3];
    for at in [0, 2] {
        let draw = |device: &Device| {
            let zeros = |shape: &[usize]| Tensor::zeros(device, DType::F32, shape).unwrap();
            step(device, zeros(&SHAPE), &zeros(&SHAPE), &rows, at, PLAIN)
        };
        let mut want = vec![0f32; 2 * LEN];
        for (b, image) in want.chunks_mut(LEN).enumerate() {
            rng::normals(SEED, FIRST + b as u64, STEP_STREAM + at, image);
        }
        // A zero is added to each, which has no sign of its own.
        let bits = |v: &[f32]| v.iter().map(|v| (v + 0.0).to_bits()).collect::<Vec<_>>();
        assert!(bits(&draw(&cpu())) == bits(&want), "CPU, step {at}");
        assert!(bits(&every_mode("noise of a step", || draw(&cuda()))) == bits(&want), "GPU, step {at}");
    }
}

/// The original DiT's `forward_with_cfg` guides the first three of four channels; diffusers' pipeline all.
#[test]
fn channels_are_guided_as_in_the_original_dit() {
    let golden = Golden::open("a3_dit/io.safetensors");
    let output = [golden.f32("out.cfg_cond"), golden.f32("out.cfg_uncond")].concat();
    let (three, four) = (golden.f32("out.cfg_w3_first3ch"), golden.f32("out.cfg_w3_all4ch"));
    for device in [cpu(), cuda()] {
        let output = tensor(&device, DType::F32, &[4, 8, 8, 8], &output);
        let guided = |guided_channels| {
            let x = Tensor::zeros(&device, DType::F32, &[2, 4, 8, 8]).unwrap();
            step(&device, x, &output, &[TAKE], 0, DiffusionOptions { guidance: Some(3.0), guided_channels, ..PLAIN })
        };
        assert!(relative_error(&guided(4), &four) < 1e-6);
        let got = guided(3);
        let per_image = |v: &[f32], b: usize, n: usize| v[b * n..][..192].to_vec();
        for b in 0..2 {
            assert!(relative_error(&per_image(&got, b, 256), &per_image(&three, b, 192)) < 1e-6);
            let conditional = &golden.f32("out.cfg_cond")[b * 512 + 192..][..64];
            assert_eq!(&got[b * 256 + 192..][..64], conditional);
        }
    }
}

#[test]
fn broken_images_and_operands_that_do_not_fit_are_noticed() {
    for device in [cpu(), cuda()] {
        let ones = |shape: &[usize], v: f32| tensor(&device, DType::F32, shape, &vec![v; shape.iter().product()]);
        let options = DiffusionOptions { clip: Some(1.0), clamp: Some((-1.0, 1.0)), ..PLAIN };
        let row = DiffusionStep { x0_x: 1.0, k_0: 1.0, flags: LAST, ..TAKE };
        let shape = [1, 1, 2, 2];
        let got = step(&device, ones(&shape, f32::NAN), &ones(&shape, 1.0), &[row], 0, options);
        assert!(got.iter().all(|v| v.is_nan()), "a broken image must not look like a grey one");

        let table = step_table(&device, &[TAKE]).unwrap();
        let [counter, key] = [1, 4].map(|n| Tensor::from_u32(&device, &[n], &vec![0; n]).unwrap());
        let narrow = Tensor::from_u32(&device, &[1, 4], &[0; 4]).unwrap();
        for (output, table, key, part) in [
            (ones(&[1, 1, 2, 3], 0.0), &table, &key, "output"),
            (ones(&[1, 3, 2, 2], 0.0), &table, &key, "output"),
            (ones(&[2, 1, 2, 2], 0.0), &table, &key, "output"),
            (ones(&shape, 0.0), &narrow, &key, "table"),
            (ones(&shape, 0.0), &table, &counter, "key"),
        ] {
            let inputs = DiffusionInputs { output: &output, table, counter: &counter, key };
            let error = diffusion_step(&device, &mut ones(&shape, 0.0), inputs, PLAIN).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
