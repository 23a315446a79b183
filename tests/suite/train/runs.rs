//! How a run goes on, ends and fails.

use std::sync::atomic::{AtomicU32, Ordering};

use arclet::device::Device;
use arclet::device::cpu::Cpu;
use arclet::error::Error;
use arclet::io::Checkpoint;
use arclet::models::import::Import;
use arclet::train::checkpoint;
use arclet::train::metrics::Record;
use arclet::train::trainer::End;

use super::{Bench, losses, settings};
use crate::common::cpu;

#[test]
fn a_run_learns_and_leaves_a_model() {
    let bench = Bench::new();
    let config = settings(&["run.steps = 300", "run.validate_every = 100", "run.save_every = 100"]);
    let (end, records) = bench.run("run", &config);
    assert_eq!(end, End::Done);
    let curve = losses(&records);
    let (first, last) = (curve[0], curve[curve.len() - 1]);
    assert!(last < 0.6 * first, "the loss went from {first} to {last}");
    let checkpoint = Checkpoint::open(bench.path("run")).unwrap();
    let import = Import::new(&checkpoint).unwrap();
    assert_eq!(import.config, bench.model(&config));
    assert!(import.unused.is_empty(), "{:?}", import.unused);
    assert_eq!(import.config.classes.unwrap().names, ["columns", "rows"], "classes by their names");
    let found = checkpoint::newest(&bench.path("run")).unwrap().unwrap();
    assert_eq!(found.step, 300);
    let names: Vec<_> =
        std::fs::read_dir(bench.path("run/checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "the last two are kept: {names:?}");
    for file in ["config.toml", "run.json", "metrics.jsonl", "curve.svg", "config.json", "model.safetensors"] {
        assert!(bench.path("run").join(file).is_file(), "no {file}");
    }
}

/// 200 steps in one go, and as 100, a stop and 100, with one thread and with two: the same bytes.
#[test]
fn a_run_that_was_stopped_comes_to_the_same_bytes() {
    let bench = Bench::new();
    let config = settings(&["run.steps = 200", "run.save_every = 100", "regularisation.dropout = 0.1"]);
    bench.run("whole", &config);
    let half = settings(&["run.steps = 200", "run.save_every = 100", "regularisation.dropout = 0.1"]);
    for threads in [1, 2] {
        let (run, device) = (format!("halves-{threads}"), Device::Cpu(Cpu::new(threads).unwrap()));
        let mut trainer = bench.stoppable(&run, &half, &device, false, stop_behind_100).unwrap();
        PASSES.store(0, Ordering::SeqCst);
        let error = trainer.run(&mut |_, _| {}).unwrap_err();
        let Error::Interrupted(message) = &error else { panic!("{error}") };
        assert!(message.contains("is saved"), "{message}");
        assert_eq!(trainer.steps(), 100);
        drop(trainer);
        bench.run_on(&run, &config, &device, true);
        assert!(bench.tensors("whole", 200) == bench.tensors(&run, 200), "with {threads} threads");
        let state = |run: &str| -> serde_json::Value {
            let path = bench.path(run).join("checkpoints/step-00000200/state.json");
            let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            state["state"]["seconds"] = 0.into();
            state["state"]["recent"]["seconds"] = 0.into();
            state
        };
        assert_eq!(state("whole"), state(&run));
        let lines = |run: &str| losses_of(&bench, run);
        assert_eq!(lines("whole"), lines(&run), "the metrics are one record");
    }
}

static PASSES: AtomicU32 = AtomicU32::new(0);

/// Asked four times a step (two blocks, both ways), and in validations, of which there are five of two batches each; stops in
/// the middle of step 101.
fn stop_behind_100() -> bool {
    PASSES.fetch_add(1, Ordering::SeqCst) >= 100 * 4 + 5 * 2 * 2 + 2
}

fn losses_of(bench: &Bench, run: &str) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(bench.path(run).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap())).collect()
}

#[test]
fn patience_ends_a_run_that_gets_no_better_and_keeps_the_best_model() {
    let bench = Bench::new();
    // Weights that are thrown about: the first validation is the best one.
    let config = settings(&[
        "run.steps = 400",
        "run.validate_every = 10",
        "run.patience = 3",
        "optimizer.learning_rate = 2.0",
        "optimizer.warmup_steps = 0",
        "optimizer.schedule = \"constant\"",
        "optimizer.clip_norm = 1e-3",
        "optimizer.ema_decay = 0.0",
    ]);
    let (end, records) = bench.run("run", &config);
    assert_eq!(end, End::Patience);
    let validations: Vec<(u64, f64, bool)> = records
        .iter()
        .filter_map(|r| match r {
            Record::Validation { step, loss, best, .. } => Some((*step, *loss, *best)),
            _ => None,
        })
        .collect();
    let (at, &(best_step, ..)) = validations.iter().enumerate().rfind(|(_, v)| v.2).unwrap();
    assert_eq!(validations.len() - 1 - at, 3, "{validations:?}");
    // The exported weights are those of the best validation, not of the end.
    let exported = Checkpoint::open(bench.path("run")).unwrap();
    let end = checkpoint::newest(&bench.path("run")).unwrap().unwrap();
    let last = end.checkpoint.groups["weights"].iter().find(|t| t.name == "final_layer.linear.weight").unwrap();
    assert!(end.step > best_step && exported.read_f32("final_layer.linear.weight").unwrap() != last.values[..]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_leaves_the_checkpoint() {
    let bench = Bench::new();
    bench.run("run", &settings(&["run.steps = 20"]));
    let before = bench.tensors("run", 20);
    let config = settings(&[
        "run.steps = 60",
        "optimizer.learning_rate = 10.0",
        "optimizer.warmup_steps = 0",
        "optimizer.clip_norm = 0.0",
        "optimizer.weight_decay = 10.0",
        "optimizer.schedule = \"constant\"",
    ]);
    let mut trainer = bench.trainer("run", &config, &cpu(), true).unwrap();
    let error = trainer.run(&mut |_, _| {}).unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    let text = error.to_string();
    assert!(text.contains("step 2") || text.contains("step 3") || text.contains("step 4"), "{text}");
    assert!(text.contains("training stopped, the last checkpoint is as it was"), "{text}");
    drop(trainer);
    assert!(bench.tensors("run", 20) == before);
    assert_eq!(checkpoint::newest(&bench.path("run")).unwrap().unwrap().step, 20);
}

#[test]
fn images_of_another_size_than_the_models_are_refused() {
    let bench = Bench::new();
    let config = settings(&["model.image_size = 16"]);
    let error = bench.trainer("run", &config, &cpu(), false).err().expect("a refusal");
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.to_string().contains("images of 1 x 8 x 8") && error.to_string().contains("1 x 16 x 16"), "{error}");
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let bench = Bench::new();
    bench.run("run", &settings(&["run.steps = 5"]));
    let error = bench.trainer("run", &settings(&["model.depth = 3"]), &cpu(), true).err().expect("a refusal");
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(error.to_string().contains("blocks.2"), "{error}");
}
