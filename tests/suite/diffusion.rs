//! DDPM and DDIM: the tables of steps against diffusers, trajectories against PyTorch, the noise of ancestral steps.

use arclet::device::Device;
use arclet::flow::diffusion::{Coefficients, DiffusionSolver, coefficients};
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, Steps, TimeConvention};
use arclet::io::Checkpoint;
use arclet::models::Model;
use arclet::models::config::Prediction;
use arclet::models::diffusion::{BetaSchedule, Diffusion, Spacing, Variance};
use arclet::models::import::Import;
use arclet::ops::diffusion::DiffusionStep;
use arclet::tensor::DType;
use serde_json::Value;

use crate::common::{Golden, cpu, data, relative_error};
use crate::engines::cuda;
use crate::goldens::{gpu_trajectory, load};

const DDIM: DiffusionSolver = DiffusionSolver::Ddim { eta: 0.0 };

fn prediction(name: &str) -> Prediction {
    Prediction::ALL.into_iter().find(|p| p.name() == name).expect("a known prediction")
}

/// The settings of a case of the golden tables.
fn settings(given: &Value) -> Diffusion {
    let text = |key: &str| given[key].as_str().unwrap_or("");
    Diffusion {
        train_steps: given["num_train_timesteps"].as_u64().unwrap() as usize,
        beta_schedule: match text("beta_schedule") {
            "linear" => BetaSchedule::Linear,
            "scaled_linear" => BetaSchedule::ScaledLinear,
            "squaredcos_cap_v2" => BetaSchedule::SquaredCosine,
            other => panic!("{other}"),
        },
        spacing: match text("timestep_spacing") {
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            "linspace" => Spacing::Linspace,
            other => panic!("{other}"),
        },
        steps_offset: given["steps_offset"].as_u64().unwrap() as usize,
        set_alpha_to_one: given["set_alpha_to_one"].as_bool().unwrap_or(true),
        variance: match text("variance_type") {
            "learned_range" => Variance::LearnedRange,
            "fixed_large" => Variance::FixedLarge,
            _ => Variance::FixedSmall,
        },
        ..Diffusion::default()
    }
}

#[test]
fn tables_are_those_of_diffusers() {
    let text = std::fs::read_to_string(data("goldens/b_samplers/diffusion_tables.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 30);
    for case in &cases {
        let solver = match case["solver"].as_str().unwrap() {
            "ddim" => DiffusionSolver::Ddim { eta: case["eta"].as_f64().unwrap() },
            _ => DiffusionSolver::Ddpm,
        };
        let what = format!("{} {} {}", solver.name(), case["steps"], case["settings"]);
        let steps = case["steps"].as_u64().unwrap() as usize;
        let predicted = prediction(case["settings"]["prediction_type"].as_str().unwrap());
        let (times, rows) = coefficients(solver, steps, predicted, &settings(&case["settings"])).unwrap();
        let want: Vec<usize> = serde_json::from_value(case["timesteps"].clone()).unwrap();
        assert_eq!(times, want, "{what}");
        let want: Vec<[f64; 3]> = serde_json::from_value(case["rows"].clone()).unwrap();
        assert_eq!(rows.len(), want.len(), "{what}");
        for (i, (row, want)) in rows.iter().zip(&want).enumerate() {
            let share = case["learned"].as_f64().map_or(0.0, |r| (1.0 + r) / 2.0);
            let sigma = row.sigma * (row.log_ratio * share).exp();
            let got = [row.k_0 * row.x0_x + row.k_x, row.k_0 * row.x0_m + row.k_m, sigma];
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-9 * want.abs().max(1e-3), "{what}, step {i}: {got}, expected {want}");
            }
        }
    }
}

/// What a perfect model says about x where the data is N(0, sigma^2): a factor of x.
fn perfect(predicted: Prediction, a: f64, sigma: f64) -> f64 {
    let variance = a * sigma * sigma + 1.0 - a;
    let (sample, noise) = (a.sqrt() * sigma * sigma / variance, (1.0 - a).sqrt() / variance);
    match predicted {
        Prediction::Sample => sample,
        Prediction::V => a.sqrt() * noise - (1.0 - a).sqrt() * sample,
        _ => noise,
    }
}

/// Deviation of the images that `steps` steps make of N(0, 1) with a perfect model of data N(0, sigma^2).
fn deviation(solver: DiffusionSolver, steps: usize, predicted: Prediction, settings: &Diffusion, sigma: f64) -> f64 {
    let alphas = arclet::flow::diffusion::alphas(settings);
    let (times, rows) = coefficients(solver, steps, predicted, settings).unwrap();
    let step = |variance: f64, (t, c): (&usize, &Coefficients)| {
        let m = perfect(predicted, alphas[*t], sigma);
        let factor = c.k_0 * (c.x0_x + c.x0_m * m) + c.k_x + c.k_m * m;
        factor * factor * variance + c.sigma * c.sigma
    };
    times.iter().zip(&rows).fold(1.0, step).sqrt()
}

#[test]
fn perfect_models_give_the_data_back() {
    let cosine = Diffusion { beta_schedule: BetaSchedule::SquaredCosine, ..Diffusion::default() };
    let scaled = Diffusion { beta_schedule: BetaSchedule::ScaledLinear, ..Diffusion::default() };
    for settings in [Diffusion::default(), cosine, scaled] {
        for solver in [DDIM, DiffusionSolver::Ddim { eta: 1.0 }, DiffusionSolver::Ddpm] {
            let all = [Prediction::Epsilon, Prediction::V, Prediction::Sample].map(|p| {
                let got = deviation(solver, 1000, p, &settings, 0.5);
                assert!((got - 0.5).abs() < 0.01, "{} of {p:?}: {got}, {settings:?}", solver.name());
                deviation(solver, 20, p, &settings, 0.5)
            });
            assert!(all.iter().all(|d| (d - all[0]).abs() < 1e-9), "the prediction makes a difference: {all:?}");
        }
    }
}

/// The state after a whole run from given noise.
fn run(model: &Model, schedule: &Schedule, noise: &[f32], classes: &[usize], guidance: f32) -> Vec<f32> {
    let c = &model.config;
    let batch = noise.len() / (c.in_channels * c.image_size * c.image_size);
    let mut sampler = Sampler::new(model, schedule, batch, SamplerOptions { guidance, clamp: false }).unwrap();
    sampler.set_noise(noise).unwrap();
    sampler.run(classes).unwrap();
    sampler.state().unwrap()
}

fn classes(golden: &Golden) -> Vec<usize> {
    golden.i64("in.y").iter().map(|&y| y as usize).collect()
}

/// The original DiT with guidance, as it was published for.
#[test]
fn guided_ddim_of_the_original_dit_matches_pytorch() {
    let (golden, name) = (Golden::open("b_samplers/dit_ddim_cfg_io.safetensors"), "out.ddim20_cfg3");
    let images = |device: &Device, dtype: DType| {
        let model = load("a3_dit", device, dtype);
        let schedule = Schedule::diffusion(DDIM, 20, Prediction::Epsilon, &model.config.sampling.diffusion).unwrap();
        run(&model, &schedule, &golden.f32("in.x"), &classes(&golden), 3.0)
    };
    for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-4)] {
        let error = relative_error(&images(&cpu(), dtype), &golden.f32(name));
        println!("{name} {dtype}: {error:.2e}");
        assert!(error <= golden.bound(name, bound), "{name} {dtype}: {error:.2e}");
    }
    gpu_trajectory(name, &golden.f32(name), golden.bound(name, 1e-4), images);
}

/// The lensing ViT, taken for a model of noise.
fn epsilon_vit(device: &Device, dtype: DType) -> Model {
    let checkpoint = Checkpoint::open(data("goldens/a1_flow_vit/weights.safetensors")).unwrap();
    let import = Import::new(&checkpoint).unwrap();
    let mut config = import.config.clone();
    (config.prediction, config.time.scale) = (Prediction::Epsilon, 1.0);
    Model::load(config, &import, device, dtype).unwrap()
}

#[test]
fn ddim_follows_the_golden_trajectories() {
    let golden = Golden::open("b_samplers/flow_vit_io.safetensors");
    let noise = golden.f32("in.x_noise");
    for (name, clip_sample) in [("out.ddim20_eta0", false), ("out.ddim20_eta0_clip", true)] {
        let settings = Diffusion { clip_sample, ..Diffusion::default() };
        let schedule = Schedule::diffusion(DDIM, 20, Prediction::Epsilon, &settings).unwrap();
        for (device, dtype, bound) in [(cpu(), DType::F64, 1e-6), (cpu(), DType::F32, 1e-4), (cuda(), DType::F32, 1e-4)]
        {
            let got = run(&epsilon_vit(&device, dtype), &schedule, &noise, &[], 1.0);
            let error = relative_error(&got, &golden.f32(name));
            println!("{name} {dtype}: {error:.2e}");
            assert!(error <= golden.bound(name, bound), "{name} {dtype}: {error:.2e}");
        }
    }
}

/// Step by step with the golden file's noise, which is added here: [`super::ops::diffusion`] holds our own to its bits.
#[test]
fn ancestral_steps_follow_the_golden_trajectories() {
    let golden = Golden::open("b_samplers/flow_vit_io.safetensors");
    let (start, noise) = (golden.f32("in.x_noise"), golden.f32("in.step_noise"));
    let model = epsilon_vit(&cpu(), DType::F32);
    let settings = Diffusion { clip_sample: true, ..Diffusion::default() };
    let eta1 = DiffusionSolver::Ddim { eta: 1.0 };
    for (name, solver) in [("out.ddim20_eta1_clip", eta1), ("out.ddpm20_clip", DiffusionSolver::Ddpm)] {
        let schedule = Schedule::diffusion(solver, 20, Prediction::Epsilon, &settings).unwrap();
        let Steps::Diffusion(all) = &schedule.steps else { panic!("steps of diffusion") };
        let mut x = start.clone();
        for (i, row) in all.rows.iter().enumerate() {
            let mut one = all.clone();
            one.rows = vec![DiffusionStep { sigma: 0.0, ..*row }];
            let one = Schedule { times: vec![schedule.times[i]], steps: Steps::Diffusion(one) };
            x = run(&model, &one, &x, &[], 1.0);
            x.iter_mut().zip(&noise[i * start.len()..]).for_each(|(x, z)| *x += row.sigma * z);
        }
        let error = relative_error(&x, &golden.f32(name));
        println!("{name}: {error:.2e}");
        assert!(error <= golden.bound(name, 1e-4), "{name}: {error:.2e}");
    }
}

/// With a learned variance and noise at every step: near each other on both devices, one graph or none, and every image
/// the same whatever the batch.
#[test]
fn ancestral_images_depend_on_seed_and_index_alone() {
    let settings = load("a3_dit", &cpu(), DType::F32).config.sampling.diffusion;
    assert_eq!(settings.variance, Variance::LearnedRange);
    let schedule = Schedule::diffusion(DiffusionSolver::Ddpm, 4, Prediction::Epsilon, &settings).unwrap();
    let options = SamplerOptions { guidance: 2.0, clamp: false };
    let draw = |model: &Model, batch: usize, first: u64, limit: Option<usize>| {
        let mut sampler = Sampler::with_graphs_of(limit, model, &schedule, batch, options).unwrap();
        sampler.draw_noise(11, first).unwrap();
        let classes: Vec<usize> = (first..first + batch as u64).map(|i| i as usize).collect();
        sampler.run(&classes).unwrap();
        sampler.state().unwrap()
    };
    let images = [cpu(), cuda()].map(|device| {
        let model = load("a3_dit", &device, DType::F32);
        let both = draw(&model, 2, 4, Some(200));
        let half = both.len() / 2;
        assert_eq!(both[half..], draw(&model, 1, 5, Some(200)), "alone and as the second of a batch");
        assert_eq!(both, draw(&model, 2, 4, Some(1)), "one graph for all steps and for each");
        assert_eq!(both, draw(&model, 2, 4, None), "without a graph");
        assert_ne!(both, draw(&model, 2, 5, None));
        both
    });
    let error = relative_error(&images[1], &images[0]);
    assert!(error <= 1e-4, "CPU and GPU differ by {error:.2e}");
}

#[test]
fn schedules_of_another_kind_of_model_are_usage_errors() {
    let device = cpu();
    let (velocity, noise) = (load("a3_nanodit", &device, DType::F32), load("a3_dit", &device, DType::F32));
    let settings = noise.config.sampling.diffusion;
    let flow = Schedule::new(Solver::Euler, 2, TimeConvention::Train).unwrap();
    let of = |p| Schedule::diffusion(DiffusionSolver::Ddpm, 2, p, &settings).unwrap();
    let refused = |model: &Model, schedule: &Schedule, part: &str| {
        let options = SamplerOptions { guidance: 1.0, clamp: true };
        let error = Sampler::new(model, schedule, 1, options).err().expect("a usage error");
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(&noise, &flow, "predicts epsilon");
    refused(&velocity, &of(Prediction::Epsilon), "predicts velocity");
    refused(&noise, &of(Prediction::V), "for v_prediction");
    // The table would read channels that are not there.
    refused(&epsilon_vit(&device, DType::F32), &of(Prediction::Epsilon), "no output channels for a variance");
    for (solver, steps, p) in [
        (DiffusionSolver::Ddpm, 0, Prediction::Epsilon),
        (DiffusionSolver::Ddpm, 1001, Prediction::Epsilon),
        (DiffusionSolver::Ddim { eta: 1.5 }, 5, Prediction::Epsilon),
        (DiffusionSolver::Ddim { eta: f64::NAN }, 5, Prediction::Epsilon),
        (DDIM, 5, Prediction::Velocity),
    ] {
        assert!(Schedule::diffusion(solver, steps, p, &settings).is_err(), "{solver:?} {steps} {p:?}");
    }
    let late = Diffusion { steps_offset: 1, ..settings };
    assert!(
        Schedule::diffusion(DDIM, 1000, Prediction::Epsilon, &late).unwrap_err().contains("first timestep is 1000")
    );
}
