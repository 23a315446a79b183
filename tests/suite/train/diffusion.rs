//! Training of diffusion models: what is learned against the formulae, and runs that learn, go on bit for bit and leave models that
//! are sampled as what they are.

use arclet::flow::diffusion::{DiffusionSolver, alphas};
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::Schedule;
use arclet::io::Checkpoint;
use arclet::models::Model;
use arclet::models::config::{ModelConfig, Prediction};
use arclet::models::diffusion::{BetaSchedule, Diffusion};
use arclet::models::import::Import;
use arclet::tensor::DType;
use arclet::train::config::FlowSection;
use arclet::train::examples::{ExampleRule, Noising};
use arclet::train::trainer::End;

use super::{Bench, losses, settings};
use crate::common::cpu;

const ALL: [Prediction; 3] = [Prediction::Epsilon, Prediction::V, Prediction::Sample];

/// The small model of the tests, to learn `prediction` by `schedule`.
fn model(prediction: Prediction, schedule: BetaSchedule) -> ModelConfig {
    let name = format!("flow.prediction = \"{}\"", prediction.name());
    let schedule = match schedule {
        BetaSchedule::Linear => "linear",
        BetaSchedule::ScaledLinear => "scaled_linear",
        BetaSchedule::SquaredCosine => "squaredcos_cap_v2",
    };
    Bench::new().model(&settings(&[&name, &format!("flow.beta_schedule = \"{schedule}\"")]))
}

/// The share of data at timestep t, written out: Ho et al. 2020 section 4, and Nichol and Dhariwal 2021 equation 17 with the
/// betas that follow from it cut off at 0.999.
fn share(schedule: BetaSchedule, t: usize) -> f64 {
    let beta = |i: usize| match schedule {
        BetaSchedule::Linear => 1e-4 + (0.02 - 1e-4) * i as f64 / 999.0,
        _ => {
            let f = |i: usize| ((i as f64 / 1000.0 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            (1.0 - f(i + 1) / f(i)).min(0.999)
        }
    };
    (0..=t).map(|i| 1.0 - beta(i)).product()
}

#[test]
fn what_is_learned_follows_the_formulae() {
    let images: Vec<f32> = (0..4000).map(|i| (i % 100) as f32 / 50.0 - 1.0).collect();
    let labels = [1; 1000];
    for schedule in [BetaSchedule::Linear, BetaSchedule::SquaredCosine] {
        let mut seen = Vec::new();
        for prediction in ALL {
            let config = model(prediction, schedule);
            let noising = Noising::of(&config);
            let rule = ExampleRule { seed: 5, flow: FlowSection::default(), noising, null: Some(3) };
            let all = rule.examples(&images, &labels, 70);
            for (i, (&x, &target)) in all.x.iter().zip(&all.target).enumerate() {
                let t = all.times[i / 4];
                assert!(t.fract() == 0.0 && (0.0..1000.0).contains(&t), "{t}");
                let (a, data) = (share(schedule, t as usize), f64::from(images[i]));
                let (root, rest) = (a.sqrt(), (1.0 - a).sqrt());
                let noise = (f64::from(x) - root * data) / rest;
                let want = match prediction {
                    Prediction::Epsilon => noise,
                    Prediction::V => root * noise - rest * data,
                    _ => data,
                };
                // Where there is hardly any noise, it follows from x to a few digits only.
                assert!(
                    (f64::from(target) - want).abs() < 1e-6 / rest,
                    "{prediction:?} at {t}: {target}, {want} expected"
                );
            }
            seen.push((all.x, all.times));
        }
        assert!(seen[0] == seen[1] && seen[1] == seen[2], "the same places whatever is learned");
        // Every part of the way equally often, four standard errors of the mean.
        let mean = seen[0].1.iter().sum::<f64>() / 1000.0;
        assert!((mean - 499.5).abs() < 4.0 * 288.7 / 1000f64.sqrt(), "{mean}");
    }
    // The noise is that of flow matching: the same seed and number.
    let epsilon = Noising::of(&model(Prediction::Epsilon, BetaSchedule::Linear));
    let [flow, epsilon] = [Noising::Flow, epsilon].map(|noising| {
        let rule = ExampleRule { seed: 5, flow: FlowSection::default(), noising, null: None };
        rule.examples(&[0.0; 4], &[0], 70).target
    });
    assert_eq!(flow, epsilon);
}

#[test]
fn runs_learn_every_prediction_and_leave_models_that_say_it() {
    for (prediction, schedule) in [
        (Prediction::Epsilon, "linear"),
        (Prediction::V, "squaredcos_cap_v2"),
        (Prediction::Sample, "squaredcos_cap_v2"),
    ] {
        let bench = Bench::new();
        let config = settings(&[
            &format!("flow.prediction = \"{}\"", prediction.name()),
            &format!("flow.beta_schedule = \"{schedule}\""),
            "run.steps = 300",
            "run.validate_every = 100",
            "run.save_every = 300",
        ]);
        let (end, records) = bench.run("run", &config);
        assert_eq!(end, End::Done);
        let curve = losses(&records);
        let (first, last) = (curve[0], curve[curve.len() - 1]);
        assert!(last < 0.7 * first, "{prediction:?}: the loss went from {first} to {last}");
        let checkpoint = Checkpoint::open(bench.path("run")).unwrap();
        let import = Import::new(&checkpoint).unwrap();
        assert_eq!(import.config, bench.model(&config));
        assert_eq!((import.config.prediction, import.config.time.scale), (prediction, 1.0));
        let diffusion: Diffusion = import.config.sampling.diffusion;
        assert_eq!((diffusion.clip(), diffusion.train_steps), (Some(1.0), 1000));
        // Images of rows and columns are bright in one eighth: their mean is known to what the noise leaves.
        let model = Model::load(import.config.clone(), &import, &cpu(), DType::F32).unwrap();
        let ddim = DiffusionSolver::Ddim { eta: 0.0 };
        let schedule = Schedule::diffusion(ddim, 50, prediction, &diffusion).unwrap();
        let options = SamplerOptions { guidance: 1.0, clamp: true };
        let mut sampler = Sampler::new(&model, &schedule, 8, options).unwrap();
        sampler.draw_noise(1, 0).unwrap();
        sampler.run(&[0, 1, 0, 1, 0, 1, 0, 1]).unwrap();
        let images = sampler.state().unwrap();
        let mean = images.iter().sum::<f32>() / images.len() as f32;
        assert!((mean + 0.5).abs() < 0.25, "{prediction:?}: images of mean {mean}, -0.5 expected");
        assert_eq!(alphas(&diffusion).len(), 1000);
    }
}

/// 60 steps in one go, and as 30 and 30: the same bytes.
#[test]
fn a_diffusion_run_goes_on_bit_for_bit() {
    let bench = Bench::new();
    let with = |steps: u64| {
        let steps = format!("run.steps = {steps}");
        let rest = ["flow.prediction = \"epsilon\"", "optimizer.schedule = \"constant\"", "run.save_every = 30"];
        settings(&[&[steps.as_str()], &rest[..]].concat())
    };
    bench.run("whole", &with(60));
    bench.run("halves", &with(30));
    bench.run_on("halves", &with(60), &cpu(), true);
    assert!(bench.tensors("whole", 60) == bench.tensors("halves", 60));
}

/// Keys of the one kind mean nothing to the other, and a model learns on what it has learned.
#[test]
fn settings_of_another_kind_are_refused() {
    let refused = |text: &str, parts: &[&str]| {
        let reason = arclet::train::TrainConfig::from_table(&text.parse().unwrap()).unwrap_err();
        parts.iter().for_each(|part| assert!(reason.contains(part), "{reason} lacks {part}"));
    };
    refused("[flow]\nprediction = \"noise\"", &["[flow]", "\"prediction\"", "epsilon"]);
    refused("[flow]\nprediction = \"epsilon\"\ntime_shift = 0.5", &["time_shift", "predicts epsilon"]);
    refused("[flow]\nprediction = \"sample\"\nsolver = \"ab2\"", &["solver", "predicts sample"]);
    refused(
        "[flow]\nprediction = \"v_prediction\"\ntime = \"logit_normal\"",
        &["logit_normal", "predicts v_prediction"],
    );
    refused("[flow]\nprediction = \"velocity\"\nbeta_schedule = \"linear\"", &["beta_schedule", "predicts velocity"]);
    refused("[flow]\nbeta_schedule = \"cosine\"", &["\"beta_schedule\"", "squaredcos_cap_v2"]);
    let flow = |text: &str| arclet::train::TrainConfig::from_table(&text.parse().unwrap()).unwrap().flow;
    let epsilon = model(Prediction::Epsilon, BetaSchedule::SquaredCosine);
    for (text, parts) in [
        ("[flow]\nprediction = \"velocity\"", &["prediction is velocity", "predicts epsilon"][..]),
        ("[flow]\nsolver = \"heun\"", &["solver", "predicts epsilon"]),
    ] {
        let reason = flow(text).apply(&mut epsilon.clone(), false).unwrap_err();
        parts.iter().for_each(|part| assert!(reason.contains(part), "{reason} lacks {part}"));
    }
    // Without a word, it stays as it is.
    let mut same = epsilon.clone();
    flow("").apply(&mut same, false).unwrap();
    assert_eq!(same, epsilon);
    let mut learns_variance = ModelConfig { out_channels: 2, ..epsilon };
    let reason = flow("").apply(&mut learns_variance, false).unwrap_err();
    assert!(reason.contains("2 output channels, 1 expected"), "{reason}");
    let reason = flow("[flow]\nbeta_schedule = \"linear\"").apply(&mut bench_velocity(), true).unwrap_err();
    assert!(reason.contains("beta_schedule is given") && reason.contains("velocity"), "{reason}");
}

fn bench_velocity() -> ModelConfig {
    Bench::new().model(&settings(&[]))
}
