//! Whole models against PyTorch in f64 (`tests/data/goldens`): activations, outputs, trajectories, guidance.

use std::collections::BTreeMap;

use arclet::device::Device;
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::io::Checkpoint;
use arclet::models::import::Import;
use arclet::models::vit::Vit;
use arclet::models::{Inputs, Model, builtin};
use arclet::tensor::{DType, Tensor};

use crate::common::{Golden, cpu, data, relative_error, rms_error};

fn load(folder: &str, device: &Device, dtype: DType) -> Model {
    let checkpoint = Checkpoint::open(data("goldens").join(folder).join("weights.safetensors")).expect("weights");
    let import = Import::new(&checkpoint).expect("import");
    Model::load(import.config.clone(), &import, device, dtype).expect("load")
}

/// f32 for a model of any type but f64.
fn image_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Output and tapped activations of each image of the golden `in.x` at its own time, concatenated over the images.
fn run_images(model: &Model, golden: &Golden, labels: &[u32]) -> BTreeMap<String, Vec<f32>> {
    let device = &model.device;
    let (x, shape) = (golden.f32("in.x"), golden.shape("in.x"));
    let times: Vec<f64> = golden.f32("in.t").iter().map(|&t| t as f64).collect();
    let table = model.time_table(&times).unwrap();
    let mut acts = model.acts(1).unwrap();
    let per_image = x.len() / shape[0];
    let mut all: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for b in 0..shape[0] {
        let image = &x[b * per_image..][..per_image];
        let x = Tensor::from_f32(device, image_dtype(model.dtype), &[1, shape[1], shape[2], shape[3]], image).unwrap();
        let counter = Tensor::from_u32(device, &[1], &[b as u32]).unwrap();
        let label = Tensor::from_u32(device, &[1], &[labels.get(b).copied().unwrap_or(0)]).unwrap();
        let inputs = Inputs { x: &x, times: &table, counter: &counter, labels: &label };
        let mut tap = |name: &str, t: &Tensor| {
            all.entry(format!("act.{name}")).or_default().extend(t.to_f32(device).unwrap());
        };
        device.run(|| model.forward(inputs, &mut acts, &mut tap)).unwrap();
        all.entry("out".into()).or_default().extend(acts.output.to_f32(device).unwrap());
    }
    all
}

/// Compares every tapped activation that the golden file has, and the output.
fn compare(got: &BTreeMap<String, Vec<f32>>, golden: &Golden, names: &[&str], output: &str, bound: f64) {
    for (name, want) in names.iter().map(|n| (*n, *n)).chain([("out", output)]) {
        let got = got.get(name).unwrap_or_else(|| panic!("{name} was not tapped"));
        let error = relative_error(got, &golden.f32(want));
        println!("{want}: {error:.2e}");
        assert!(error <= golden.bound(want, bound), "{want}: relative error {error:.2e}");
    }
}

const FLOW_VIT_ACTS: [&str; 10] = [
    "act.tokens_plus_pos",
    "act.block0.norm1",
    "act.block0.attn.qkv",
    "act.block0.norm2",
    "act.block0",
    "act.block1.norm1",
    "act.block1.attn.qkv",
    "act.block1.norm2",
    "act.block1",
    "act.t_emb",
];

#[test]
fn flow_vit_matches_pytorch_in_every_activation() {
    let golden = Golden::open("a1_flow_vit/io.safetensors");
    for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-5)] {
        let got = run_images(&load("a1_flow_vit", &cpu(), dtype), &golden, &[]);
        compare(&got, &golden, &FLOW_VIT_ACTS, "out.v", bound);
    }
}

#[test]
fn dit_matches_pytorch_in_every_activation() {
    for (folder, output) in [("a3_dit", "out.eps_sigma"), ("a3_nanodit", "out.v")] {
        let golden = Golden::open(&format!("{folder}/io.safetensors"));
        let labels: Vec<u32> = golden.i64("in.y").iter().map(|&y| y as u32).collect();
        let names = ["act.t_emb", "act.block0.adaLN", "act.block0", "act.block1", "act.final"];
        for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-5)] {
            let got = run_images(&load(folder, &cpu(), dtype), &golden, &labels);
            compare(&got, &golden, &names, output, bound);
        }
    }
}

#[test]
fn timm_vit_matches_pytorch() {
    let golden = Golden::open("a2_timm_vit/io.safetensors");
    let checkpoint = Checkpoint::open(data("goldens/a2_timm_vit/weights.safetensors")).unwrap();
    let import = Import::new(&checkpoint).unwrap();
    let device = cpu();
    for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-5)] {
        let vit = Vit::load(import.config.clone(), &import, &device, dtype).unwrap();
        let x = Tensor::from_f32(&device, image_dtype(dtype), &golden.shape("in.x"), &golden.f32("in.x")).unwrap();
        let mut got = BTreeMap::new();
        let mut tap = |name: &str, t: &Tensor| {
            got.insert(format!("act.{name}"), t.to_f32(&device).unwrap());
        };
        let logits = device.run(|| vit.logits(&x, &mut tap)).unwrap().to_f32(&device).unwrap();
        got.insert("out".into(), logits);
        compare(&got, &golden, &["act.block0", "act.block1", "act.norm"], "out.logits", bound);
    }
}

/// The state after a whole trajectory from given noise.
#[allow(clippy::too_many_arguments)]
fn trajectory(
    model: &Model,
    noise: &[f32],
    classes: &[usize],
    solver: Solver,
    steps: usize,
    convention: TimeConvention,
    guidance: f32,
    clamp: bool,
) -> Vec<f32> {
    let c = &model.config;
    let batch = noise.len() / (c.in_channels * c.image_size * c.image_size);
    let schedule = Schedule::new(solver, steps, convention).unwrap();
    let mut sampler = Sampler::new(model, &schedule, batch, SamplerOptions { guidance, clamp }).unwrap();
    sampler.set_noise(noise).unwrap();
    sampler.run(classes).unwrap();
    sampler.state().unwrap()
}

#[test]
fn every_solver_follows_the_golden_trajectory() {
    use Solver::{Euler, Heun, Midpoint};
    use TimeConvention::{Notebook, Train};
    let golden = Golden::open("b_samplers/flow_vit_io.safetensors");
    let noise = golden.f32("in.x_noise");
    for dtype in [DType::F64, DType::F32] {
        let model = load("a1_flow_vit", &cpu(), dtype);
        for (name, solver, steps, convention, clamp) in [
            ("out.euler1", Euler, 1, Train, false),
            ("out.euler10", Euler, 10, Train, false),
            ("out.euler50", Euler, 50, Train, false),
            ("out.euler50_notebook", Euler, 50, Notebook, false),
            ("out.euler50_notebook_clamped", Euler, 50, Notebook, true),
            ("out.heun10", Heun, 10, Train, false),
            ("out.midpoint10", Midpoint, 10, Train, false),
        ] {
            let got = trajectory(&model, &noise, &[], solver, steps, convention, 1.0, clamp);
            let error = relative_error(&got, &golden.f32(name));
            println!("{name} {dtype}: {error:.2e}");
            assert!(error <= golden.bound(name, if dtype == DType::F64 { 1e-6 } else { 1e-4 }), "{name}: {error:.2e}");
        }
    }
}

#[test]
fn guided_trajectories_match_pytorch() {
    let golden = Golden::open("b_samplers/nanodit_cfg_io.safetensors");
    let classes: Vec<usize> = golden.i64("in.y").iter().map(|&y| y as usize).collect();
    let model = load("a3_nanodit", &cpu(), DType::F32);
    let run = |guidance, clamp| {
        let train = TimeConvention::Train;
        trajectory(&model, &golden.f32("in.z"), &classes, Solver::Euler, 20, train, guidance, clamp)
    };
    for (name, guidance) in [("out.cfg_w1", 1.0), ("out.cfg_w3", 3.0), ("out.cfg_w5", 5.0)] {
        let error = relative_error(&run(guidance, false), &golden.f32(name));
        println!("{name}: {error:.2e}");
        assert!(error <= golden.bound(name, 1e-4), "{name}: {error:.2e}");
    }
}

/// f16 and bf16 follow the f64 golden about as closely as rounding every activation lets them.
#[test]
fn rounded_types_stay_near_the_golden() {
    let golden = Golden::open("b_samplers/flow_vit_io.safetensors");
    let want = golden.f32("out.euler10");
    let rms = |dtype| {
        let model = load("a1_flow_vit", &cpu(), dtype);
        let train = TimeConvention::Train;
        let got = trajectory(&model, &golden.f32("in.x_noise"), &[], Solver::Euler, 10, train, 1.0, false);
        rms_error(&got, &want) / rms_error(&want, &vec![0.0; want.len()])
    };
    let (f16, bf16) = (rms(DType::F16), rms(DType::BF16));
    println!("relative RMS error: f16 {f16:.2e}, bf16 {bf16:.2e}");
    assert!((1e-5..5e-3).contains(&f16) && (1e-4..4e-2).contains(&bf16));
    assert!(bf16 / f16 > 3.0, "bf16 has three bits less than f16");
}

#[test]
fn full_size_models_from_hashed_weights_match_pytorch() {
    let device = cpu();
    for (name, file, label) in [("vit-b16", "flow_vit_b16_224", 0), ("nanodit", "nanodit_64", 2)] {
        let golden = Golden::open(&format!("f_fullsize_hash/{file}.safetensors"));
        let source = builtin::find(name).unwrap();
        let config = source.config().clone();
        let side = config.image_size;
        let x: Vec<f32> = builtin::hash_uniform("input.x", side * side).map(|s| (1.5 * s) as f32).collect();
        assert_eq!(x[..8], golden.f32("in.x_first8"));
        let model = Model::load(config, &source, &device, DType::F32).unwrap();
        let x = Tensor::from_f32(&device, DType::F32, &[1, 1, side, side], &x).unwrap();
        let times = model.time_table(&[golden.f32("in.t")[0] as f64]).unwrap();
        let counter = Tensor::from_u32(&device, &[1], &[0]).unwrap();
        let labels = Tensor::from_u32(&device, &[1], &[label]).unwrap();
        let mut acts = model.acts(1).unwrap();
        let inputs = Inputs { x: &x, times: &times, counter: &counter, labels: &labels };
        device.run(|| model.forward(inputs, &mut acts, &mut |_, _| {})).unwrap();
        let error = relative_error(&acts.output.to_f32(&device).unwrap(), &golden.f32("out"));
        println!("{name}: {error:.2e}");
        assert!(error <= golden.bound("out", 1e-4), "{name}: {error:.2e}");
    }
}
