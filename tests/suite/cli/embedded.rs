//! The model inside the program against PyTorch in f64.

use arclet::io::{Checkpoint, write_npy_f32};
use arclet::models::import::Import;
use arclet::models::{Inputs, Model};
use arclet::tensor::{DType, Tensor};

use super::Desk;
use crate::common::{Golden, cpu, relative_error, root};

const NAME: &str = "lens-dit-s";
const SHA256: &str = "be902a9faaa77a0872217ccc8a67d0474b026a5a7dfccf8494908d2dee5e03a5";

fn golden() -> Golden {
    Golden::at(&root().join("weights/lens-dit-s/golden.safetensors"))
}

#[test]
fn embedded_weights_are_the_published_ones() {
    let about = Desk::new().json("inspect lens-dit-s --json");
    assert_eq!(about["sha256"], SHA256);
    assert_eq!(
        (&about["architecture"], &about["fits"], &about["samples"]),
        (&"dit".into(), &true.into(), &true.into())
    );
    assert_eq!(about["config"]["class_names"], serde_json::json!(["vort", "sphere", "no"]));
}

/// f16 weights in f32 are the same numbers, so this is the embedded model.
#[test]
fn embedded_velocity_matches_pytorch() {
    let desk = Desk::new();
    desk.ok("convert lens-dit-s model --dtype f32");
    let checkpoint = Checkpoint::open(desk.path("model")).unwrap();
    let import = Import::new(&checkpoint).unwrap();
    let device = cpu();
    let model = Model::load(import.config.clone(), &import, &device, DType::F32).unwrap();
    let golden = golden();
    let (shape, noise) = (golden.shape("in.noise"), golden.f32("in.noise"));
    let times: Vec<f64> = golden.f32("in.t").iter().map(|&t| t as f64).collect();
    let labels: Vec<u32> = golden.i64("in.class").iter().map(|&class| class as u32).collect();
    let conditions = model.conditions(&times, &labels).unwrap();
    let mut acts = model.acts(1).unwrap();
    let mut velocity = Vec::new();
    for b in 0..labels.len() {
        let image = &noise[b * noise.len() / shape[0]..][..noise.len() / shape[0]];
        let x = Tensor::from_f32(&device, DType::F32, &[1, shape[1], shape[2], shape[3]], image).unwrap();
        let counter = Tensor::from_u32(&device, &[1], &[(b % times.len()) as u32]).unwrap();
        let rows = Tensor::from_u32(&device, &[1], &[b as u32]).unwrap();
        let inputs = Inputs { x: &x, conditions: &conditions, counter: &counter, rows: &rows };
        device.run(|| model.forward(inputs, &mut acts, &mut |_, _| {})).unwrap();
        velocity.extend(acts.output.to_f32(&device).unwrap());
    }
    let error = relative_error(&velocity, &golden.f32("out.velocity"));
    println!("velocity: {error:.2e}");
    assert!(error <= 1e-4, "velocity: {error:.2e}");
}

#[test]
fn embedded_trajectories_match_pytorch() {
    trajectories_match(NAME, &golden());
}

/// The model that the embedded one was trained on from, as PyTorch left it.
#[test]
fn imported_trajectories_match_pytorch() {
    let folder = root().join("weights/lens-dit-s-pytorch");
    // A bundle for a GPU has no room for it.
    if root().join("Cargo.toml").exists() {
        trajectories_match(&folder.display().to_string(), &Golden::at(&folder.join("golden.safetensors")));
    }
}

fn trajectories_match(model: &str, golden: &Golden) {
    let desk = Desk::new();
    let classes: Vec<String> = golden.i64("in.class").iter().map(i64::to_string).collect();
    write_npy_f32(desk.path("noise.npy"), &golden.shape("in.noise"), &golden.f32("in.noise")).unwrap();
    for (name, flags) in [
        ("out.euler10_g1", "--steps 10"),
        ("out.euler50_g1", "--steps 50"),
        ("out.euler50_g2", "--steps 50 --cfg-scale 2"),
    ] {
        let class = classes.join(",");
        desk.ok(&format!(
            "sample --model {model} --noise noise.npy --class {class} --solver euler --shift 1 --device cpu --dtype f32 --no-clamp {flags} --out x.npy"
        ));
        let (shape, images) = desk.images("x.npy");
        assert_eq!(shape, golden.shape(name));
        let error = relative_error(&images, &golden.f32(name));
        println!("{model}, {name}: {error:.2e}");
        assert!(error <= 1e-4, "{model}, {name}: {error:.2e}");
    }
}

/// Images of a small network are shared out among the threads; their bits depend on neither their neighbours nor the threads,
/// whether there are as many images as threads or fewer.
#[test]
fn images_are_the_same_alone_and_shared_out() {
    let desk = Desk::new();
    let sample = |out: &str, how: &str| {
        let what = "--n 3 --class vort,no --cfg-scale 2 --steps 2 --seed 4 --device cpu";
        desk.ok(&format!("sample {what} {how} --out {out}"));
        std::fs::read(desk.path(out)).unwrap()
    };
    let apart = sample("apart.npy", "--batch 3 --threads 2");
    for (out, how) in [
        ("together.npy", "--batch 3 --threads 64"),
        ("one.npy", "--batch 3 --threads 1"),
        ("alone.npy", "--batch 1 --threads 2"),
    ] {
        assert!(sample(out, how) == apart, "{how}");
    }
}
