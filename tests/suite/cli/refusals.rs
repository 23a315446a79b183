//! Bad input: each case has a clear message, the right exit code, and leaves nothing behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arclet::io::{Checkpoint, TensorBytes, write_npy_f32, write_safetensors};

use super::{Desk, golden_weights};

/// Runs the program and wants this exit code, one line on stderr that holds all `parts`, and no new file.
pub fn refused(desk: &Desk, arguments: &str, code: i32, parts: &[&str]) {
    let before = desk.listing();
    let end = desk.run(arguments);
    assert_eq!(end.code, code, "arclet {arguments}: {}", end.stderr);
    let errors: Vec<&str> = end.stderr.lines().filter(|l| l.starts_with("arclet: error: ")).collect();
    assert_eq!(errors.len(), 1, "arclet {arguments}: {}", end.stderr);
    assert!(end.stderr.ends_with(&format!("{}\n", errors[0])), "the error comes last: {}", end.stderr);
    for part in parts {
        assert!(errors[0].contains(part), "arclet {arguments}: {part:?} is not in: {}", errors[0]);
    }
    assert!(end.stdout.is_empty(), "arclet {arguments} printed {}", end.stdout);
    assert_eq!(desk.listing(), before, "arclet {arguments} left files behind");
}

/// A copy of golden weights with one tensor changed or, as `None`, left out.
fn altered(desk: &Desk, tensor: &str, change: impl Fn(Vec<usize>, Vec<f32>) -> Option<(Vec<usize>, Vec<f32>)>) {
    let file = Checkpoint::open(golden_weights("a1_flow_vit")).unwrap();
    assert!(file.contains(tensor));
    let mut all = Vec::new();
    for name in file.names() {
        let (shape, values) = (file.shape(name).unwrap().to_vec(), file.read_f32(name).unwrap());
        all.extend(if name == tensor { change(shape, values) } else { Some((shape, values)) }.map(|t| (name, t)));
    }
    let tensors = all.iter().map(|(name, (shape, values))| TensorBytes::from_f32(*name, shape, values));
    let metadata: BTreeMap<_, _> = file.metadata().clone();
    write_safetensors(desk.path("w.safetensors"), tensors, &metadata).unwrap();
}

#[test]
fn weights_that_are_missing_or_damaged() {
    let desk = Desk::new();
    refused(&desk, "sample --model none.safetensors", 3, &["none.safetensors", "no such file", "lens-dit-s"]);
    let weights = std::fs::read(golden_weights("a1_flow_vit")).unwrap();
    for (length, parts) in [(5, vec!["5 bytes"]), (200, vec!["header"]), (weights.len() - 3, vec!["bytes"])] {
        std::fs::write(desk.path("w.safetensors"), &weights[..length]).unwrap();
        refused(&desk, "sample --model w.safetensors", 3, &[vec!["w.safetensors"], parts].concat());
    }
    std::fs::write(desk.path("w.pt"), b"\x80\x02}q\x00.").unwrap();
    refused(&desk, "sample --model w.pt", 3, &["w.pt", "pickle", "safetensors", "tools/pt2safetensors.py"]);
    std::fs::create_dir(desk.path("empty")).unwrap();
    refused(&desk, "sample --model empty", 3, &["empty", "model.safetensors"]);
}

#[test]
fn weights_that_do_not_fit() {
    let desk = Desk::new();
    let tensor = "unet.time_embed.time_mlp.0.weight";
    altered(&desk, tensor, |shape, values| Some((vec![shape[1], shape[0]], values)));
    refused(&desk, "sample --model w.safetensors", 3, &["w.safetensors"]);
    let block = "unet.pretrained_vit.blocks.1.mlp.fc2.weight";
    altered(&desk, block, |shape, values| Some((vec![shape[1], shape[0]], values)));
    refused(&desk, "sample --model w.safetensors", 3, &["mis-shaped", block, "[256, 64]", "[64, 256]"]);
    altered(&desk, block, |_, _| None);
    refused(&desk, "sample --model w.safetensors", 3, &["1 missing", "blocks.1.mlp.fc2.weight"]);
    altered(&desk, block, |shape, mut values| {
        values[7] = f32::NAN;
        Some((shape, values))
    });
    refused(&desk, "sample --model w.safetensors --device cpu", 3, &[block, "element 7", "NaN", "finite"]);
}

#[test]
fn models_that_cannot_be_sampled() {
    let desk = Desk::new();
    let classifier = golden_weights("a2_timm_vit");
    refused(&desk, &format!("sample --model {classifier}"), 3, &["classifies", "velocity"]);
}

#[test]
fn classes_and_guidance_that_the_model_lacks() {
    let desk = Desk::new();
    let all = ["\"halo\"", "vort (0)", "sphere (1)", "no (2)", "axion for vort"];
    refused(&desk, "sample --class vort,halo", 2, &all);
    refused(&desk, "sample --class 3", 2, &["\"3\"", "no (2)"]);
    refused(&desk, "sample --class=", 2, &["\"\"", "vort (0)"]);
    let unconditional = golden_weights("a1_flow_vit");
    refused(&desk, &format!("sample --model {unconditional} --class 0"), 2, &["--class", "unconditional"]);
    refused(
        &desk,
        &format!("sample --model {unconditional} --cfg-scale 2"),
        2,
        &["--guidance-scale 2", "unconditional"],
    );
}

#[test]
fn flags_that_make_no_sense() {
    let desk = Desk::new();
    for (flags, parts) in [
        ("--steps 0", vec!["--steps 0", "at least 1"]),
        ("--steps 4294967295", vec!["--steps 4294967295", "at most 100000"]),
        ("--steps 1 --time notebook", vec!["--steps 1", "at least 2", "notebook"]),
        ("--steps -1", vec!["-1"]),
        ("--shift 0", vec!["'0'", "--shift", "above 0 and up to 100"]),
        ("--shift -2", vec!["'-2'", "above 0"]),
        ("--shift 101", vec!["'101'", "up to 100"]),
        ("--shift nan", vec!["'nan'", "a number"]),
        ("--shift 0.5 --time notebook", vec!["--shift 0.5", "notebook"]),
        ("--n 0", vec!["'0'", "--n"]),
        ("--batch 0", vec!["'0'", "--batch"]),
        ("--solver rk4", vec!["'rk4'", "euler, heun, midpoint, ab2, ddim, ddpm"]),
        ("--shard 4/3", vec!["'4/3'", "I/N"]),
        ("--device gpu", vec!["'gpu'", "cuda:N"]),
        ("--guidance-scale nan", vec!["NaN", "finite"]),
        ("--seed -1", vec!["-1"]),
        ("--seed 1 --noise x.npy", vec!["--seed", "--noise"]),
        ("--stepps 3", vec!["'--stepps'", "'--steps'"]),
        ("--out x.png", vec![".png", ".npy"]),
        ("--out x.npz", vec![".npz", ".npy"]),
    ] {
        refused(&desk, &format!("sample {flags}"), 2, &parts);
    }
    refused(&desk, "paint", 2, &["'paint'"]);
    refused(&desk, "merge --out x", 2, &["SHARD"]);
}

#[test]
fn noise_that_does_not_fit() {
    let desk = Desk::new();
    let zeros = |shape: &[usize]| write_npy_f32(desk.path("z.npy"), shape, &vec![0.0; shape.iter().product()]).unwrap();
    for shape in [&[2, 1, 32, 64][..], &[2, 3, 64, 64], &[2, 64, 64], &[0, 1, 64, 64]] {
        zeros(shape);
        refused(&desk, "sample --noise z.npy", 3, &["z.npy", &format!("{shape:?}"), "[n, 1, 64, 64]"]);
    }
    zeros(&[2, 1, 64, 64]);
    refused(&desk, "sample --noise z.npy --n 3", 2, &["--n 3", "2 images"]);
    let mut values = vec![0.0; 4096];
    values[5] = f32::INFINITY;
    write_npy_f32(desk.path("z.npy"), &[1, 1, 64, 64], &values).unwrap();
    refused(&desk, "sample --noise z.npy", 3, &["element 5", "inf"]);
    std::fs::write(desk.path("z.npy"), b"not an array").unwrap();
    refused(&desk, "sample --noise z.npy", 3, &["z.npy"]);
    refused(&desk, "sample --noise none.npy", 3, &["none.npy"]);
}

/// Found before sampling starts: each run would take a minute.
#[test]
fn outputs_that_cannot_be_written() {
    let desk = Desk::new();
    std::fs::write(desk.path("file"), b"").unwrap();
    let start = Instant::now();
    let run = "sample --n 40 --steps 100 --device cpu --quiet --out";
    refused(&desk, &format!("{run} file/x.npy"), 5, &["cannot write", "file"]);
    refused(&desk, &format!("{run} file"), 5, &["cannot write", "file"]);
    std::fs::create_dir_all(desk.path("a/x.npy")).unwrap();
    refused(&desk, &format!("{run} a/x.npy"), 5, &["x.npy", "folder"]);
    std::fs::create_dir_all(desk.path("b/x.json")).unwrap();
    refused(&desk, &format!("{run} b/x.npy"), 5, &["x.json", "folder"]);
    assert!(start.elapsed() < Duration::from_secs(10), "images were drawn first");
    refused(&desk, "convert lens-dit-s b", 5, &["not empty", "--force"]);
    refused(&desk, "convert lens-dit-s file", 5, &["file"]);
}
