//! Optimizer steps of whole models against PyTorch in f64 (`scripts/cut_c_steps.py`): losses, norms of gradients, the weights
//! or averages that they come to, on the CPU and on the GPU, where all but the first step are replayed graphs.

use arclet::device::Device;
use arclet::models::training::Params;
use arclet::nn::training::Keeping;
use arclet::tensor::DType;
use arclet::train::config::{OptimizerKind, OptimizerSection};
use arclet::train::learner::{Learner, LearnerOptions};
use arclet::train::optimizer::{StepInputs, step_values};

use crate::common::{Golden, cpu, relative_error};
use crate::engines::cuda;
use crate::grads::torch::{Images, model};

struct Case {
    name: &'static str,
    folder: &'static str,
    steps: u64,
    optimizer: OptimizerSection,
    clip: Option<f64>,
    ema: f64,
    /// Largest error of PyTorch's own run in f32 in a weight at the end: Adam divides a gradient that is nothing but rounding
    /// by its own size. (Metadata of the reference.)
    f32_err: f64,
}

fn cases() -> [Case; 3] {
    let torch = OptimizerSection {
        kind: OptimizerKind::AdamW,
        betas: [0.9, 0.999],
        weight_decay: 0.01,
        ema_decay: 0.0,
        ..OptimizerSection::default()
    };
    let adam = OptimizerSection { kind: OptimizerKind::Adam, weight_decay: 0.0, learning_rate: 1e-4, ..torch.clone() };
    let averaged = OptimizerSection { learning_rate: 1e-4, ema_decay: 0.9, ..torch.clone() };
    let flow = |name, steps, optimizer, f32_err| {
        let folder = "a1_flow_vit";
        Case { name, folder, steps, optimizer, clip: None, ema: 1.0, f32_err }
    };
    [
        flow("flow_vit_adamw", 10, torch, 7.5e-4),
        flow("flow_vit_adam", 2, adam, 3.1e-5),
        Case {
            name: "nanodit_adamw_clip_ema",
            folder: "a3_nanodit",
            steps: 5,
            optimizer: averaged,
            clip: Some(1.0),
            ema: 0.9,
            f32_err: 4.7e-6,
        },
    ]
}

/// Losses, norms and last weights; of the weights f32 may be off by four times what PyTorch's own f32 is.
fn compare(case: &Case, device: Device, dtype: DType, loss_bound: f64) {
    let golden = Golden::open("c_training/steps.safetensors");
    let at = |name: &str| format!("{}.{name}", case.name);
    let number = |name: &str| f64::from(golden.f32(&at(name))[0]);
    let images = Images::of(&golden, &at(""));
    let (config, params, file_name): (_, Params, _) = model(case.folder, &device, dtype.wide());
    let start = params.read(&config, &device).unwrap();
    let mut read = |name: &str| Ok(start.iter().find(|(spec, _)| spec.name == name).expect("a parameter").1.clone());
    let options = LearnerOptions { optimizer: &case.optimizer, dtype, keeping: Keeping::default(), stop: || false };
    let mut learner = Learner::new(&config, &device, options, &mut read).unwrap();
    learner.prepare(images.batch()).unwrap();
    let near = |what: &str, got: f64, want: f64| {
        let error = (got - want).abs() / want;
        assert!(error <= loss_bound, "{what} on {} in {dtype}: {got}, {want} expected", device.name());
    };
    for step in 0..case.steps {
        let loss = learner.accumulate(&images.examples(), 1.0, 0).unwrap();
        near(&at(&format!("loss.{step}")), loss, number(&format!("loss.{step}")));
        let inputs =
            StepInputs { lr: case.optimizer.learning_rate, loss_scale: 1.0, clip: case.clip, ema_decay: case.ema };
        let report = learner.update(step_values(learner.rule(), step + 1, inputs)).unwrap();
        near(&at(&format!("norm {step}")), report.norm, number(&format!("grad_norm.{step}")));
    }
    let last = learner.accumulate(&images.examples(), 1.0, 0).unwrap();
    near("the loss behind the last step", last, number(&format!("loss.{}", case.steps)));
    let wanted: Vec<String> = golden.names().into_iter().filter(|n| n.starts_with(&at("last."))).collect();
    assert!(wanted.len() > 30);
    let result = learner.result().unwrap();
    for (i, name) in wanted.iter().enumerate() {
        let (_, values) = result
            .iter()
            .find(|(spec, _)| at(&format!("last.{}", file_name(&spec.name))) == *name)
            .unwrap_or_else(|| panic!("no {name}"));
        let cut: Vec<f32> = values.iter().skip(i % 7).step_by(7).copied().collect();
        let want = golden.f32(name);
        if dtype == DType::F64 {
            let error = relative_error(&cut, &want);
            assert!(error <= loss_bound, "{name}: relative error {error:.2e}");
        }
        assert_eq!(cut.len(), want.len());
        let off = cut.iter().zip(&want).fold(0f32, |off, (a, b)| off.max((a - b).abs()));
        assert!(f64::from(off) <= 4.0 * case.f32_err, "{name} on {} in {dtype}: off by {off:.2e}", device.name());
    }
}

#[test]
fn optimizer_steps_of_whole_models_are_pytorchs() {
    for case in cases() {
        compare(&case, cpu(), DType::F64, 1e-6);
        compare(&case, cpu(), DType::F32, 1e-5);
    }
}

#[test]
fn optimizer_steps_on_the_gpu_are_pytorchs() {
    let [adamw, _, nanodit] = cases();
    compare(&adamw, cuda(), DType::F32, 1e-5);
    compare(&nanodit, cuda(), DType::F32, 1e-5);
}
