//! What each switch of a training run promises.

use arclet::tensor::DType;
use arclet::train::checkpoint;
use arclet::train::metrics::Record;

use super::{Bench, losses, settings};
use crate::common::relative_error;
use crate::engines::cuda;

/// A parameter of the newest checkpoint.
fn weight(bench: &Bench, run: &str, name: &str) -> Vec<f32> {
    let found = checkpoint::newest(&bench.path(run)).unwrap().unwrap();
    found.checkpoint.groups["weights"].iter().find(|t| t.name == name).unwrap().values.to_vec()
}

#[test]
fn accumulation_makes_the_same_steps() {
    let bench = Bench::new();
    bench.run("whole", &settings(&["run.steps = 10"]));
    bench.run("parts", &settings(&["run.steps = 10", "data.batch_size = 2", "optimizer.accumulate = 4"]));
    for name in ["final_layer.linear.weight", "blocks.0.attn.qkv.weight", "t_embedder.mlp.0.bias"] {
        let error = relative_error(&weight(&bench, "parts", name), &weight(&bench, "whole", name));
        assert!(error < 1e-4, "{name}: relative error {error:.2e}");
    }
}

#[test]
fn checkpointed_activations_change_no_bit_and_take_less_memory() {
    let bench = Bench::new();
    let drop = "regularisation.dropout = 0.2";
    bench.run("kept", &settings(&["run.steps = 10", drop]));
    let config = settings(&["run.steps = 10", drop, "memory.checkpoint_activations = true", "model.depth = 2"]);
    let mut trainer = bench.trainer("again", &config, &crate::common::cpu(), false).unwrap();
    let [kept, otherwise] = trainer.activation_bytes();
    assert!(kept < 6 * otherwise / 10, "{kept} bytes instead of {otherwise}");
    trainer.run(&mut |_, _| {}).unwrap();
    assert!(bench.tensors("kept", 10) == bench.tensors("again", 10));
}

#[test]
fn dropout_drops_in_training_and_not_in_validations() {
    let bench = Bench::new();
    // No step changes a weight that counts: what differs is what was dropped.
    let still = ["run.steps = 2", "run.log_every = 1", "run.validate_every = 1", "optimizer.learning_rate = 1e-9"];
    let (_, plain) = bench.run("plain", &settings(&[&still[..], &["model.architecture = \"flow_vit\""]].concat()));
    let dropping = ["model.architecture = \"flow_vit\"", "regularisation.dropout = 0.5"];
    let (_, dropped) = bench.run("dropped", &settings(&[&still[..], &dropping].concat()));
    let validation = |records: &[Record]| {
        records.iter().find_map(|r| match r {
            Record::Validation { loss, .. } => Some(*loss),
            _ => None,
        })
    };
    assert_eq!(validation(&plain), validation(&dropped));
    assert!(losses(&plain)[0] != losses(&dropped)[0], "nothing was dropped");
}

/// f16 and bf16 follow the curve of f32, on the CPU and on the GPU.
#[test]
fn narrow_types_follow_the_curve_of_f32() {
    let bench = Bench::new();
    let steps = "run.steps = 60";
    let (_, want) = bench.run("f32", &settings(&[steps]));
    let want = losses(&want);
    for dtype in ["bf16", "f16"] {
        let config = settings(&[steps, &format!("precision.dtype = \"{dtype}\"")]);
        let (_, records) = bench.run(dtype, &config);
        let got = losses(&records);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 0.02 * want, "{dtype}: {got}, {want} in f32");
        }
    }
}

#[test]
fn a_loss_scale_that_overflows_is_halved_until_it_fits() {
    let bench = Bench::new();
    let config = settings(&["run.steps = 30", "precision.dtype = \"f16\"", "precision.loss_scale = 16777216.0"]);
    let (_, records) = bench.run("run", &config);
    let scales: Vec<f64> = records
        .iter()
        .filter_map(|r| match r {
            Record::Train { loss_scale, .. } => *loss_scale,
            _ => None,
        })
        .collect();
    assert!(scales[0] < 16_777_216.0, "nothing overflowed: {scales:?}");
    assert!(scales[0] >= 1.0 && scales.windows(2).all(|w| w[1] <= w[0]), "{scales:?}");
    let found = checkpoint::newest(&bench.path("run")).unwrap().unwrap();
    assert_eq!(found.step, 30, "skipped steps do not count");
    assert!(found.checkpoint.groups.values().flatten().all(|t| t.values.iter().all(|v| v.is_finite())));
}

/// On the GPU a step is two graphs from the second step on; the curve is the CPU's.
#[test]
fn a_run_on_the_gpu_follows_the_cpu() {
    let bench = Bench::new();
    let config =
        settings(&["run.steps = 8", "run.log_every = 1", "regularisation.dropout = 0.1", "data.batch_size = 2"]);
    let (_, want) = bench.run("cpu", &config);
    let (_, got) = bench.run_on("cuda", &config, &cuda(), false);
    for (got, want) in losses(&got).iter().zip(losses(&want)) {
        assert!((got - want).abs() < 1e-4 * want, "{got}, {want} on the CPU");
    }
    let narrow = settings(&["run.steps = 3", "run.log_every = 1", "precision.dtype = \"f16\"", "data.batch_size = 2"]);
    let (_, narrow) = bench.run_on("narrow", &narrow, &cuda(), false);
    for (got, want) in losses(&narrow).iter().zip(losses(&want)) {
        assert!((got - want).abs() < 0.02 * want, "{got} in {}, {want} in f32", DType::F16);
    }
}
