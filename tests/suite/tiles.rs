//! The table of tuned products, `kernels/tiles.tsv`: what it holds without a GPU, and how a measurement gets into it.
//!
//! `ARCLET_WRITE_TABLES=1 cargo test --release --test suite tiles` writes the predicted rows anew, and
//! `static_table` what follows from them.

use std::path::Path;
use std::process::Command;

use arclet::device::Device;
use arclet::device::gpus::KNOWN;
use arclet::ops::linear::{Plan, candidates, plan, predicted};
use arclet::tensor::DType;

use crate::common::{data, root};
use crate::engines::cuda;

/// Whether the GPU can be any of the table's; where it is the machine's own there may be no table either.
fn emulated() -> bool {
    let emulated = !arclet_emu::real_driver();
    if !emulated {
        println!("the table is compared on emulated GPUs");
    }
    emulated
}

fn bench(flags: &[&str], table: &Path, arch: &str, multiprocessors: u32) {
    let manifest = table.with_extension("kernels");
    std::fs::write(&manifest, arclet_emu::manifest("80")).expect("manifest");
    let capability = arch.trim_start_matches("sm_").trim_end_matches('a');
    let output = Command::new(env!("CARGO_BIN_EXE_arclet"))
        .args(["bench", "--quiet", "--tune"])
        .arg(table)
        .args(flags)
        .envs(arclet_emu::env_for_child())
        .env("ARCLET_KERNEL_MANIFEST", manifest)
        .env("ARCLET_EMU_CC", capability)
        .env("ARCLET_EMU_MULTIPROCESSORS", multiprocessors.to_string())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Rows for the GPUs and models that arclet is tuned for: measured ones stay, the others hold what the program would choose.
#[test]
fn the_table_has_a_row_for_every_product_that_matters() {
    if !emulated() {
        return;
    }
    let path = root().join("kernels/tiles.tsv");
    let committed = std::fs::read_to_string(&path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("tiles.tsv");
    let measured = |line: &&str| line.split('\t').nth(7) != Some("-");
    let kept: Vec<&str> = committed.lines().filter(measured).collect();
    std::fs::write(&table, kept.join("\n") + "\n").unwrap();
    for gpu in KNOWN {
        for model in ["vit-b16", "nanodit", "lens-dit-s"] {
            bench(&["--launches", "--model", model], &table, gpu.arch, gpu.multiprocessors);
        }
    }
    let made = std::fs::read_to_string(&table).unwrap();
    if std::env::var_os("ARCLET_WRITE_TABLES").is_some() {
        std::fs::write(&path, &made).unwrap();
    } else {
        assert_eq!(committed, made, "ARCLET_WRITE_TABLES=1 cargo test --release --test suite tiles");
    }
}

#[test]
fn tuning_replaces_the_rows_of_the_gpu_at_hand() {
    if !emulated() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("tiles.tsv");
    let foreign = "sm_80\t7\t1\t2\t3\t64x64\t1\t1.50\tsome GPU";
    std::fs::write(&table, format!("# columns\n{foreign}\n")).unwrap();
    let model = data("goldens/a1_flow_vit/weights.safetensors");
    let model = ["--model", model.to_str().unwrap()];
    bench(&[&model[..], &["--launches"]].concat(), &table, "sm_80", 108);
    let rows = |kind: &str| {
        let text = std::fs::read_to_string(&table).unwrap();
        text.lines().filter(|l| l.split('\t').nth(7).is_some_and(|us| (us == "-") == (kind == "predicted"))).count()
    };
    let products = rows("predicted");
    assert!(products >= 3, "{products}");
    assert_eq!(rows("measured"), 2, "the header's and the other GPU's");
    bench(&[&model[..], &["--device", "cuda", "--iterations", "1"]].concat(), &table, "sm_80", 108);
    assert_eq!((rows("predicted"), rows("measured")), (0, products + 2));
    bench(&[&model[..], &["--launches"]].concat(), &table, "sm_80", 108);
    assert_eq!((rows("predicted"), rows("measured")), (0, products + 2), "a prediction does not replace a measurement");
    assert!(std::fs::read_to_string(&table).unwrap().contains(foreign));
}

/// A product in the table is cut up as its row says, if the GPU at hand can; any other as the model of a GPU prefers.
#[test]
fn products_outside_the_table_take_the_general_path() {
    let Device::Cuda(gpu) = cuda() else { unreachable!("the GPU's device") };
    let table = include_str!("../../kernels/tiles.tsv");
    let key = format!("{}\t{}\t", gpu.arch(), gpu.multiprocessors());
    let of = |rows, n, k| plan(&gpu, DType::F16, 1, rows, n, k);
    let is_candidate = |p: &Plan, rows, n, k| candidates(&gpu, DType::F16, rows, n, k).contains(p);
    let mut listed = Vec::new();
    for line in table.lines().filter_map(|line| line.strip_prefix(&key)) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [rows, n, k] = [0, 1, 2].map(|i| fields[i].parse().unwrap());
        let chosen = of(rows, n, k);
        assert!(gpu.hopper() || !chosen.tile.is_hopper());
        if fields[3].starts_with("hopper") && !gpu.hopper() {
            continue;
        }
        assert_eq!((chosen.tile.name().as_str(), chosen.splits.to_string().as_str()), (fields[3], fields[4]), "{line}");
        listed.push([rows, n, k]);
    }
    assert!(arclet_emu::real_driver() || !listed.is_empty(), "the emulated GPU has rows: {key}");
    for [rows, n, k] in [[196, 768, 3080], [195, 768, 3072], [1, 1, 1], [100_000, 24, 40], [7, 13, 1096]] {
        assert!(!listed.contains(&[rows, n, k]));
        assert_eq!(of(rows, n, k), predicted(&gpu, DType::F16, rows, n, k));
        assert!(is_candidate(&of(rows, n, k), rows, n, k));
    }
    // A row that the GPU may not follow counts as none.
    gpu.set_hopper_tiles(false);
    for &[rows, n, k] in &listed {
        assert!(!of(rows, n, k).tile.is_hopper() && is_candidate(&of(rows, n, k), rows, n, k));
    }
    gpu.set_hopper_tiles(true);
}
