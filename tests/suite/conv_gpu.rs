//! Convolutional networks on the GPU against PyTorch in f64, in every type.

use arclet::device::Device;
use arclet::flow::diffusion::DiffusionSolver;
use arclet::flow::sampler::{MAX_GRAPH_EVALUATIONS, Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::models::Model;
use arclet::models::config::Prediction;
use arclet::nn::no_tap;
use arclet::tensor::{DType, Tensor};
use serde_json::json;

use crate::classifiers::{channels_first, convnextv2, efficientnet, resnet, uneven};
use crate::common::{Golden, cpu};
use crate::conv_models::{Hashed, autoencoded, context_goldens, input, small_unetpp, velocities};
use crate::engines::{cuda, every_mode};
use crate::goldens::gpu_trajectory;
use crate::zoo::Table;

const OPTIONS: SamplerOptions = SamplerOptions { guidance: 1.0, clamp: false };
/// Evaluations of a graph.
const ALL: Option<usize> = Some(MAX_GRAPH_EVALUATIONS);

/// The images that `model` draws from noise [B, C, H, W] by Euler's steps, in batches of `batch` and graphs of `limit` evaluations.
fn drawn(model: &Model, steps: usize, noise: &[f32], batch: usize, limit: Option<usize>) -> Vec<f32> {
    let schedule = Schedule::new(Solver::Euler, steps, TimeConvention::Train).unwrap();
    let mut sampler = Sampler::with_graphs_of(limit, model, &schedule, batch, OPTIONS).unwrap();
    let len = batch * sampler.image_len();
    let batches = noise.chunks_exact(len).flat_map(|noise| {
        sampler.set_noise(noise).unwrap();
        sampler.run(&[]).unwrap();
        sampler.state().unwrap()
    });
    batches.collect()
}

/// BatchNorm folded, an image of one channel, blocks of up to five inputs, and the time in the head's bias of each image; recorded
/// and replayed. Of the golden's two images the second.
#[test]
fn a_flow_unetpp_follows_the_golden_trajectory_on_the_gpu() {
    let (golden, name) = (Golden::open("g_conv_hash/unetpp_flow.safetensors"), "out.euler10");
    let (source, noise) = (small_unetpp(), input("x", 2 * 64 * 64));
    gpu_trajectory(name, &golden.f32(name)[64 * 64..], golden.bound(name, 1e-4), |device, dtype| {
        let model = Model::load(source.0.clone(), &source, device, dtype).unwrap();
        drawn(&model, 10, &noise[64 * 64..], 1, ALL)
    });
}

/// The same bits in every order of threads and blocks, under the checker, whatever the batch.
#[test]
fn a_flow_unetpp_depends_on_neither_schedule_nor_batch_on_the_gpu() {
    let (source, noise) = (small_unetpp(), input("x", 2 * 64 * 64));
    let model = Model::load(source.0.clone(), &source, &cuda(), DType::F16).unwrap();
    let two = every_mode("flow U-Net++", || drawn(&model, 1, &noise, 2, None));
    assert!(drawn(&model, 1, &noise, 1, ALL) == two, "an image depends on its batch");
}

/// Both ways of halving and of ordering the time's sines; heads of 16 channels, which the kernels take with zeros behind.
#[test]
fn unets_of_diffusers_match_pytorch_on_the_gpu() {
    let table = Table::open("a5_unet2d");
    let other = table.with("downsample_padding", json!(0)).with("flip_sin_to_cos", json!(false));
    for (name, table) in [("unet2d", &table), ("unet2d_padding0", &other.with("freq_shift", json!(1)))] {
        let golden = Golden::open(&format!("g_conv_hash/{name}.safetensors"));
        let (source, x) = (Hashed(table.read()), input("x", 2 * 16 * 16));
        gpu_trajectory(name, &golden.f32("out.eps"), golden.bound("out.eps", 1e-4), |device, dtype| {
            let model = Model::load(source.0.clone(), &source, device, dtype).unwrap();
            velocities(&model, &x, &[17.0, 803.0])
        });
    }
}

/// DDIM, and DDPM with noise at every step, against the CPU in f64; the same bits in one graph, in one for each step, and in
/// none in another batch.
#[test]
fn a_unet_of_diffusers_is_sampled_on_the_gpu() {
    let source = Hashed(Table::open("a5_unet2d").read());
    let load = |device: &Device, dtype: DType| Model::load(source.0.clone(), &source, device, dtype).unwrap();
    let draw = |model: &Model, solver: DiffusionSolver, batch: usize, limit: Option<usize>| {
        let schedule = Schedule::diffusion(solver, 3, Prediction::Epsilon, &source.0.sampling.diffusion).unwrap();
        let mut sampler = Sampler::with_graphs_of(limit, model, &schedule, batch, OPTIONS).unwrap();
        let batches = (0..2 / batch).flat_map(|i| {
            sampler.draw_noise(11, (i * batch) as u64).unwrap();
            sampler.run(&[]).unwrap();
            sampler.state().unwrap()
        });
        batches.collect::<Vec<f32>>()
    };
    for (name, solver) in [("ddim", DiffusionSolver::Ddim { eta: 0.0 }), ("ddpm", DiffusionSolver::Ddpm)] {
        let want = draw(&load(&cpu(), DType::F64), solver, 2, None);
        gpu_trajectory(name, &want, 1e-4, |device, dtype| draw(&load(device, dtype), solver, 2, ALL));
    }
    let model = load(&cuda(), DType::F16);
    let two = draw(&model, DiffusionSolver::Ddpm, 2, ALL);
    for (batch, limit) in [(2, Some(1)), (1, None)] {
        let again = draw(&model, DiffusionSolver::Ddpm, batch, limit);
        assert!(again == two, "batches of {batch}, graphs of {limit:?} evaluations: other images");
    }
}

#[test]
fn unets_that_attend_to_a_context_match_pytorch_on_the_gpu() {
    for case in context_goldens() {
        let (golden, name) = (case.golden(), "out.eps");
        gpu_trajectory(case.name, &golden.f32(name), golden.bound(name, 1e-4), |device, dtype| {
            case.predicted(device, dtype, 0..2)
        });
        let both = case.predicted(&cuda(), DType::F16, 0..2);
        assert!(both[both.len() / 2..] == case.predicted(&cuda(), DType::F16, 1..2), "an image depends on its batch");
    }
}

#[test]
fn an_autoencoder_matches_pytorch_on_the_gpu() {
    let golden = Golden::open("g_conv_hash/autoencoder_kl.safetensors");
    for (i, name) in ["out.mean", "out.logvar", "out.decoded"].into_iter().enumerate() {
        gpu_trajectory(name, &golden.f32(name), golden.bound(name, 1e-4), |device, dtype| {
            let (found, values) = autoencoded(device, dtype)[i].clone();
            assert_eq!(found, name);
            values
        });
    }
}

#[test]
fn features_of_classifiers_match_pytorch_on_the_gpu() {
    let (golden, source) = (Golden::open("g_conv_hash/resnet.safetensors"), Hashed(Table::open("a7_resnet").read()));
    for name in ["out.features", "out.logits"] {
        gpu_trajectory(name, &golden.f32(name), golden.bound(name, 1e-4), |device, dtype| {
            let mut features = Vec::new();
            let mut tap = |tapped: &str, t: &Tensor| {
                if tapped == "enc5" {
                    features = channels_first(t, device);
                }
            };
            let x = uneven(device);
            let logits = device.run(|| resnet(&source, device, dtype).logits(&x, &mut tap)).unwrap();
            if name == "out.logits" { logits.to_f32(device).unwrap() } else { features }
        });
    }
    let golden = Golden::open("g_conv_hash/convnextv2.safetensors");
    let source = Hashed(Table::open("a6_convnextv2").read());
    for name in ["out.features", "out.logits"] {
        gpu_trajectory(name, &golden.f32(name), golden.bound(name, 1e-4), |device, dtype| {
            let (convnext, x) = (convnextv2(&source, device, dtype), uneven(device));
            device.run(|| match name {
                "out.logits" => convnext.logits(&x, &mut no_tap).unwrap().to_f32(device).unwrap(),
                _ => channels_first(&convnext.features(&x, &mut no_tap).unwrap(), device),
            })
        });
    }
    let source = Hashed(Table::open("a7_efficientnet").read());
    let golden = Golden::open("g_conv_hash/efficientnet.safetensors");
    for name in ["out.features", "out.logits"] {
        gpu_trajectory(name, &golden.f32(name), golden.bound(name, 1e-4), |device, dtype| {
            let (net, x) = (efficientnet(&source, &source.0, device, dtype), uneven(device));
            device.run(|| match name {
                "out.logits" => net.logits(&x, &mut no_tap).unwrap().to_f32(device).unwrap(),
                _ => channels_first(&net.features(&x, &mut no_tap).unwrap(), device),
            })
        });
    }
}
