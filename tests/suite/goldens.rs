//! Whole models against PyTorch in f64 (`tests/data/goldens`): activations, outputs, trajectories, guidance.

use std::collections::BTreeMap;

use arclet::device::Device;
use arclet::device::level::Level;
use arclet::flow::sampler::{MAX_GRAPH_EVALUATIONS, Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::io::Checkpoint;
use arclet::models::import::Import;
use arclet::models::vit::Vit;
use arclet::models::{Conditions, Inputs, Model, Tables, builtin};
use arclet::nn::block::{Block, BlockActs, BlockConditions};
use arclet::nn::norm::Layers;
use arclet::nn::params::Loader;
use arclet::ops::linear::Workspace;
use arclet::tensor::{DType, Tensor};

use crate::common::{Golden, cpu, cpu_at, data, relative_error, rms_error, rounding_cpu};
use crate::engines::{CUDA_DTYPES, cuda, every_mode};

/// A golden model.
pub fn load(folder: &str, device: &Device, dtype: DType) -> Model {
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
    // Image b is evaluation b of a run: its conditions stand in row b of the table, under its own label.
    let conditions = model.conditions(&times, labels).unwrap();
    let per_step = labels.len().max(1);
    let mut acts = model.acts(1).unwrap();
    let per_image = x.len() / shape[0];
    let mut all: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for b in 0..shape[0] {
        let image = &x[b * per_image..][..per_image];
        let x = Tensor::from_f32(device, image_dtype(model.dtype), &[1, shape[1], shape[2], shape[3]], image).unwrap();
        let counter = Tensor::from_u32(device, &[1], &[b as u32]).unwrap();
        let row = b.min(per_step - 1);
        let rows = Tensor::from_u32(device, &[1], &[row as u32]).unwrap();
        let inputs = Inputs { x: &x, conditions: &conditions, counter: &counter, rows: &rows };
        let mut tap = |name: &str, t: &Tensor| {
            all.entry(format!("act.{name}")).or_default().extend(t.to_f32(device).unwrap());
        };
        device.run(|| model.forward(inputs, &mut acts, &mut tap)).unwrap();
        all.entry("out".into()).or_default().extend(acts.output.to_f32(device).unwrap());
        for (name, table) in tables(&conditions) {
            let (all_rows, width) = (table.to_f32(device).unwrap(), table.last_dim());
            all.entry(name).or_default().extend(&all_rows[(b * per_step + row) * width..][..width]);
        }
    }
    all
}

/// Conditions that PyTorch has too: time embeddings, or the modulation of block 0, part by part.
fn tables(conditions: &Conditions) -> Vec<(String, &Tensor)> {
    match &conditions.tables {
        Tables::FlowVit(c) => vec![("time".into(), &c.time)],
        Tables::FlowUnet(_) | Tables::Unet2d(_) => Vec::new(),
        Tables::Dit(c) => {
            let BlockConditions { attn, attn_gate, mlp, mlp_gate } = &c.blocks[0];
            let parts = [attn.shift(), attn.scale(), attn_gate, mlp.shift(), mlp.scale(), mlp_gate];
            parts.into_iter().enumerate().map(|(i, part)| (format!("adaLN.{i}"), part)).collect()
        }
    }
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

/// The ways that a device has of computing layer norms.
fn ways(device: &Device) -> &'static [Layers] {
    match device {
        Device::Cpu(_) => &[Layers::Inline, Layers::Fused, Layers::Separate],
        Device::Cuda(_) => &[Layers::Fused, Layers::Separate, Layers::Unfused],
    }
}

const FLOW_VIT_ACTS: [&str; 5] =
    ["act.tokens_plus_pos", "act.block0.attn.qkv", "act.block0", "act.block1.attn.qkv", "act.block1"];

#[test]
fn flow_vit_matches_pytorch_in_every_activation() {
    let golden = Golden::open("a1_flow_vit/io.safetensors");
    for (device, dtype, bound) in [(cpu(), DType::F64, 1e-6), (cpu(), DType::F32, 1e-5), (cuda(), DType::F32, 1e-5)] {
        for &layers in ways(&device) {
            let mut model = load("a1_flow_vit", &device, dtype);
            model.layers = layers;
            let mut got = run_images(&model, &golden, &[]);
            let embeddings = got.remove("time").unwrap();
            assert!(relative_error(&embeddings, &golden.f32("act.t_emb")) <= golden.bound("act.t_emb", bound));
            compare(&got, &golden, &FLOW_VIT_ACTS, "out.v", bound);
        }
    }
}

#[test]
fn dit_matches_pytorch_in_every_activation() {
    for (folder, output) in [("a3_dit", "out.eps_sigma"), ("a3_nanodit", "out.v")] {
        let golden = Golden::open(&format!("{folder}/io.safetensors"));
        let labels: Vec<u32> = golden.i64("in.y").iter().map(|&y| y as u32).collect();
        let names = ["act.block0", "act.block1", "act.final"];
        for (device, dtype, bound) in [(cpu(), DType::F64, 1e-6), (cpu(), DType::F32, 1e-5), (cuda(), DType::F32, 1e-5)]
        {
            for &layers in ways(&device) {
                let mut model = load(folder, &device, dtype);
                model.layers = layers;
                let got = run_images(&model, &golden, &labels);
                let error = relative_error(&modulation(&got, labels.len()), &golden.f32("act.block0.adaLN"));
                assert!(error <= golden.bound("act.block0.adaLN", bound));
                compare(&got, &golden, &names, output, bound);
            }
        }
    }
}

/// The modulation of block 0 as one adaLN layer gives it, image by image and part by part: our scales are the factors
/// 1 + scale.
fn modulation(got: &BTreeMap<String, Vec<f32>>, images: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for b in 0..images {
        for i in 0..6 {
            let part = &got[&format!("adaLN.{i}")];
            let d = part.len() / images;
            all.extend(part[b * d..][..d].iter().map(|v| if i % 3 == 1 { v - 1.0 } else { *v }));
        }
    }
    all
}

#[test]
fn timm_vit_matches_pytorch() {
    let golden = Golden::open("a2_timm_vit/io.safetensors");
    let checkpoint = Checkpoint::open(data("goldens/a2_timm_vit/weights.safetensors")).unwrap();
    let import = Import::new(&checkpoint).unwrap();
    for (device, dtype, bound) in [(cpu(), DType::F64, 1e-6), (cpu(), DType::F32, 1e-5), (cuda(), DType::F32, 1e-5)] {
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

/// A trajectory on the GPU in every type: f32 near the golden, f16 and bf16 within twice the error that rounding every
/// operation's output gives.
pub fn gpu_trajectory(name: &str, want: &[f32], bound: f64, run: impl Fn(&Device, DType) -> Vec<f32>) {
    for dtype in CUDA_DTYPES {
        let got = run(&cuda(), dtype);
        if dtype == DType::F32 {
            let error = relative_error(&got, want);
            assert!(error <= bound, "{name} on cuda: relative error {error:.2e}");
            continue;
        }
        let (error, yardstick) = (rms_error(&got, want), rms_error(&run(&rounding_cpu(), dtype), want));
        println!("{name} {dtype}: RMS error {error:.2e}, rounding gives {yardstick:.2e}");
        assert!(error <= 2.0 * yardstick, "{name} in {dtype}: RMS error {error:.2e}, rounding gives {yardstick:.2e}");
    }
}

/// The same on a CPU at every level of its products; bf16 only where it has instructions.
fn cpu_trajectory(name: &str, want: &[f32], bound: f64, run: impl Fn(&Device, DType) -> Vec<f32>) {
    let yardstick = rms_error(&run(&rounding_cpu(), DType::BF16), want);
    for level in Level::ALL {
        let (device, level) = (cpu_at(level), level.name());
        let error = relative_error(&run(&device, DType::F32), want);
        println!("{name} at {level}: {error:.2e}");
        assert!(error <= bound, "{name} at {level}: relative error {error:.2e}");
        let error = rms_error(&run(&device, DType::BF16), want);
        println!("{name} at {level} in bf16: RMS error {error:.2e}, rounding gives {yardstick:.2e}");
        assert!(error <= 2.0 * yardstick, "{name} at {level} in bf16: RMS error {error:.2e} of {yardstick:.2e}");
    }
}

#[test]
fn every_level_of_the_cpu_follows_the_golden_trajectories() {
    let golden = Golden::open("b_samplers/flow_vit_io.safetensors");
    let name = "out.euler10";
    cpu_trajectory(name, &golden.f32(name), golden.bound(name, 1e-4), |device, dtype| {
        let model = load("a1_flow_vit", device, dtype);
        trajectory(&model, &golden.f32("in.x_noise"), &[], Solver::Euler, 10, TimeConvention::Train, 1.0, false)
    });
    let golden = Golden::open("b_samplers/nanodit_cfg_io.safetensors");
    let classes: Vec<usize> = golden.i64("in.y").iter().map(|&y| y as usize).collect();
    let name = "out.cfg_w3";
    cpu_trajectory(name, &golden.f32(name), golden.bound(name, 1e-4), |device, dtype| {
        let model = load("a3_nanodit", device, dtype);
        trajectory(&model, &golden.f32("in.z"), &classes, Solver::Euler, 20, TimeConvention::Train, 3.0, false)
    });
}

#[test]
fn gpu_trajectories_match_pytorch() {
    let golden = Golden::open("b_samplers/flow_vit_io.safetensors");
    for (name, solver) in [("out.euler10", Solver::Euler), ("out.heun10", Solver::Heun)] {
        gpu_trajectory(name, &golden.f32(name), golden.bound(name, 1e-4), |device, dtype| {
            let model = load("a1_flow_vit", device, dtype);
            trajectory(&model, &golden.f32("in.x_noise"), &[], solver, 10, TimeConvention::Train, 1.0, false)
        });
    }
}

#[test]
fn gpu_guided_trajectory_matches_pytorch() {
    let golden = Golden::open("b_samplers/nanodit_cfg_io.safetensors");
    let classes: Vec<usize> = golden.i64("in.y").iter().map(|&y| y as usize).collect();
    gpu_trajectory("out.cfg_w3", &golden.f32("out.cfg_w3"), golden.bound("out.cfg_w3", 1e-4), |device, dtype| {
        let model = load("a3_nanodit", device, dtype);
        let train = TimeConvention::Train;
        trajectory(&model, &golden.f32("in.z"), &classes, Solver::Euler, 20, train, 3.0, false)
    });
}

/// Whole models, recorded and replayed, in every schedule and under the checker.
#[test]
fn gpu_trajectories_do_not_depend_on_the_schedule() {
    let golden = Golden::open("b_samplers/flow_vit_io.safetensors");
    every_mode("flow ViT", || {
        let model = load("a1_flow_vit", &cuda(), DType::F16);
        let train = TimeConvention::Train;
        trajectory(&model, &golden.f32("in.x_noise"), &[], Solver::Ab2, 3, train, 1.0, true)
    });
    let golden = Golden::open("b_samplers/nanodit_cfg_io.safetensors");
    let classes: Vec<usize> = golden.i64("in.y").iter().map(|&y| y as usize).collect();
    every_mode("NanoDiT", || {
        let model = load("a3_nanodit", &cuda(), DType::F16);
        let train = TimeConvention::Train;
        trajectory(&model, &golden.f32("in.z"), &classes, Solver::Midpoint, 1, train, 3.0, true)
    });
}

/// Once recorded, the loop is one graph launch, and a later run replays it on new noise.
#[test]
fn the_whole_loop_is_one_graph() {
    let model = load("a1_flow_vit", &cuda(), DType::F16);
    let schedule = Schedule::new(Solver::Ab2, 6, TimeConvention::Train).unwrap();
    let options = SamplerOptions { guidance: 1.0, clamp: true };
    let mut sampler = Sampler::new(&model, &schedule, 2, options).unwrap();
    let mut draw = |first| {
        sampler.draw_noise(7, first).unwrap();
        let launches = || if arclet_emu::real_driver() { 0 } else { arclet_emu::stats().graph_launches };
        let before = launches();
        sampler.run(&[]).unwrap();
        if !arclet_emu::real_driver() {
            assert_eq!(launches() - before, 1);
        }
        sampler.state().unwrap()
    };
    let (first, other, again) = (draw(0), draw(2), draw(0));
    assert!(first == again && first != other);
    let mut single = Sampler::new(&model, &schedule, 1, options).unwrap();
    single.draw_noise(7, 1).unwrap();
    single.run(&[]).unwrap();
    assert_eq!(single.state().unwrap(), first[first.len() / 2..], "image 1 alone and as the second of a batch");
}

/// The labels of a batch share one table of conditions; an image must not see which others are there.
#[test]
fn an_image_does_not_depend_on_its_neighbours_classes() {
    let golden = Golden::open("b_samplers/nanodit_cfg_io.safetensors");
    let noise = golden.f32("in.z");
    for (device, dtype) in [(cpu(), DType::F32), (cuda(), DType::F16)] {
        let model = load("a3_nanodit", &device, dtype);
        let image = |noise: &[f32], classes: &[usize], guidance| {
            let train = TimeConvention::Train;
            let mut all = trajectory(&model, noise, classes, Solver::Euler, 2, train, guidance, false);
            all.truncate(256);
            all
        };
        for guidance in [1.0, 2.0] {
            let alone = image(&noise[..256], &[1], guidance);
            assert_eq!(alone, image(&noise, &[1, 0], guidance));
            assert_eq!(alone, image(&noise, &[1, 2], guidance));
            assert_eq!(alone, image(&noise, &[1, 1], guidance));
            assert_ne!(alone, image(&noise, &[0, 1], guidance));
        }
    }
}

/// A run that is too long for one graph records one evaluation and replays it: the images stay the same.
#[test]
fn a_long_loop_replays_one_evaluation() {
    let model = load("a3_nanodit", &cuda(), DType::F16);
    let options = SamplerOptions { guidance: 2.0, clamp: true };
    let draw = |limit: Option<usize>, solver: Solver, steps: usize, launches: u64| {
        let schedule = Schedule::new(solver, steps, TimeConvention::Train).unwrap();
        let mut sampler = Sampler::with_graphs_of(limit, &model, &schedule, 1, options).unwrap();
        // Twice, so that the second run starts from the counter that the first one left.
        let mut images = Vec::new();
        for first in [0, 1] {
            sampler.draw_noise(3, first).unwrap();
            let before = if arclet_emu::real_driver() { 0 } else { arclet_emu::stats().graph_launches };
            sampler.run(&[first as usize]).unwrap();
            if !arclet_emu::real_driver() {
                assert_eq!(arclet_emu::stats().graph_launches - before, launches);
            }
            images.extend(sampler.state().unwrap());
        }
        images.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    for solver in [Solver::Heun, Solver::Ab2] {
        let evaluations = Schedule::new(solver, 6, TimeConvention::Train).unwrap().evaluations();
        let whole = draw(Some(evaluations), solver, 6, 1);
        assert!(whole == draw(Some(evaluations - 1), solver, 6, evaluations as u64), "{}", solver.name());
        assert!(whole == draw(None, solver, 6, 0), "{} without a graph", solver.name());
    }
    let long = MAX_GRAPH_EVALUATIONS + 1;
    let limited = draw(Some(MAX_GRAPH_EVALUATIONS), Solver::Euler, long, long as u64);
    assert!(limited == draw(Some(long), Solver::Euler, long, 1));
}

#[test]
fn guidance_and_batches_that_cannot_be_are_usage_errors() {
    let model = load("a3_nanodit", &cpu(), DType::F32);
    let schedule = Schedule::new(Solver::Euler, 1, TimeConvention::Train).unwrap();
    for (guidance, batch, part) in [
        (f32::NAN, 1, "finite"),
        (f32::INFINITY, 1, "finite"),
        (2.0, usize::MAX / 2 + 1, "too large"),
        (2.0, 0, "at least 1"),
    ] {
        let options = SamplerOptions { guidance, clamp: true };
        let error = Sampler::new(&model, &schedule, batch, options).err().expect("a usage error");
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let options = SamplerOptions { guidance: 2.0, clamp: true };
    let error = Sampler::new(&model, &schedule, 1 << 40, options).err().expect("no memory");
    assert!(matches!(error, arclet::error::Error::OutOfMemory { .. }), "{error}");
}

/// One transformer block at full size: ViT-B/16, 196 tokens of 768 channels.
#[test]
fn full_size_block_on_the_gpu() {
    let source = builtin::find("vit-b16").unwrap();
    let config = source.config();
    let shape = [1, config.tokens(), config.transformer().hidden_size];
    let x: Vec<f32> = builtin::hash_uniform("block.x", shape.iter().product()).map(|s| s as f32).collect();
    let run = |device: &Device, dtype: DType| {
        let loader = Loader::new(&source, device, dtype).at("pretrained_vit.blocks.5");
        let block = Block::load(config.block(), &loader).unwrap();
        // Nobody leaves statistics of this block's input.
        let mut acts = BlockActs::new(config.block(), Layers::Separate, device, dtype, 1, config.tokens()).unwrap();
        let mut workspace = Workspace::new(device, dtype, block.workspace_size(device, 1, config.tokens())).unwrap();
        let mut x = Tensor::from_f32(device, dtype, &shape, &x).unwrap();
        device.run(|| block.forward(device, "", &mut x, None, &mut acts, &mut workspace, &mut |_, _| {})).unwrap();
        x.to_f32(device).unwrap()
    };
    let want = run(&cpu(), DType::F64);
    assert!(relative_error(&run(&cpu(), DType::F32), &want) <= 1e-5);
    assert!(relative_error(&run(&cuda(), DType::F32), &want) <= 1e-5);
    for dtype in [DType::F16, DType::BF16] {
        let (error, yardstick) =
            (rms_error(&run(&cuda(), dtype), &want), rms_error(&run(&rounding_cpu(), dtype), &want));
        println!("{dtype}: RMS error {error:.2e}, rounding gives {yardstick:.2e}");
        assert!(error <= 2.0 * yardstick);
    }
}

#[test]
fn full_size_models_from_hashed_weights_match_pytorch() {
    let device = cpu();
    for (name, file, label) in
        [("vit-b16", "flow_vit_b16_224", 0), ("nanodit", "nanodit_64", 2), ("unetpp-r34", "flow_unetpp_resnet34", 0)]
    {
        let golden = Golden::open(&format!("f_fullsize_hash/{file}.safetensors"));
        let source = builtin::find(name).unwrap();
        let config = source.config().clone();
        let side = config.image_size;
        let x: Vec<f32> = builtin::hash_uniform("input.x", side * side).map(|s| (1.5 * s) as f32).collect();
        assert_eq!(x[..8], golden.f32("in.x_first8"));
        let model = Model::load(config, &source, &device, DType::F32).unwrap();
        let x = Tensor::from_f32(&device, DType::F32, &[1, 1, side, side], &x).unwrap();
        let conditions = model.conditions(&[golden.f32("in.t")[0] as f64], &[label]).unwrap();
        let zero = Tensor::from_u32(&device, &[1], &[0]).unwrap();
        let mut acts = model.acts(1).unwrap();
        let inputs = Inputs { x: &x, conditions: &conditions, counter: &zero, rows: &zero };
        device.run(|| model.forward(inputs, &mut acts, &mut |_, _| {})).unwrap();
        let error = relative_error(&acts.output.to_f32(&device).unwrap(), &golden.f32("out"));
        println!("{name}: {error:.2e}");
        assert!(error <= golden.bound("out", 1e-4), "{name}: {error:.2e}");
    }
}
