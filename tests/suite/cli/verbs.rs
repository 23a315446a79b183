//! The other verbs: inspect, convert, doctor, bench, completions, help.

use arclet::io::{Checkpoint, FileDType, TensorBytes, write_safetensors};
use arclet::models::import::Import;
use arclet::models::specs;
use arclet::nn::params::WeightSource;

use super::{Desk, golden_weights, small_sample};
use crate::zoo::Table;

#[test]
fn inspect_names_each_architecture() {
    let desk = Desk::new();
    for (model, architecture, samples) in [
        ("a1_flow_vit", "flow_vit", true),
        ("a2_timm_vit", "vit", false),
        ("a3_dit", "dit", true),
        ("a3_nanodit", "dit", true),
    ] {
        let path = golden_weights(model);
        let about = desk.json(&format!("inspect {path} --json"));
        assert_eq!((&about["architecture"], &about["samples"]), (&architecture.into(), &samples.into()), "{model}");
        assert_eq!(about["fits"], true);
        let words = desk.ok(&format!("inspect {path}")).stdout;
        assert!(words.lines().any(|l| l.starts_with("architecture") && l.ends_with(architecture)), "{words}");
    }
    let about = desk.json(&format!("inspect {} --json", golden_weights("a1_flow_vit")));
    assert_eq!(about["unused"].as_array().unwrap().len(), 5);
    assert_eq!(about["dtypes"], serde_json::json!({ "F32": 42 }));
}

/// Convolutional networks are named and converted, and refused where images are to be drawn.
#[test]
fn convolutional_networks_are_shown_and_converted_but_not_sampled() {
    let desk = Desk::new();
    for (table, architecture, parameters, refusal) in [
        ("a7_resnet", "resnet", 159_811, "classifies images"),
        ("a6_convnextv2", "convnextv2", 115_347, "classifies images"),
        ("a5_unet2d_condition", "unet2d_condition", 447_844, "attends to a context"),
        ("a5_autoencoder_kl", "autoencoder_kl", 167_959, "latents"),
    ] {
        Table::open(table).write(&desk.path("w.safetensors"));
        let about = desk.json("inspect w.safetensors --json");
        assert_eq!(
            (&about["architecture"], &about["parameters"]),
            (&architecture.into(), &parameters.into()),
            "{table}"
        );
        assert_eq!((&about["fits"], &about["samples"]), (&true.into(), &false.into()), "{table}");
        let end = desk.run("sample --model w.safetensors --device cpu");
        assert_eq!(end.code, 3, "{}", end.stderr);
        assert!(end.stderr.contains(refusal) && end.stderr.contains(architecture), "{}", end.stderr);
        desk.ok(&format!("convert w.safetensors {table}"));
        let converted = desk.json(&format!("inspect {table} --json"));
        assert_eq!((&converted["config"], &converted["unused"]), (&about["config"], &serde_json::json!([])), "{table}");
    }
    Table::open("timm_resnet18").write(&desk.path("w.safetensors"));
    let words = desk.ok("inspect w.safetensors").stdout;
    assert!(words.contains("resnet18") && words.contains("11689512"), "{words}");
    // Twenty counters of batches are not worth twenty lines.
    assert!(words.contains("and 12 more"), "{words}");
}

#[test]
fn inspect_counts_the_published_parameters() {
    let desk = Desk::new();
    assert_eq!(desk.json("inspect vit-b16 --json")["parameters"], 87_371_014);
    assert_eq!(desk.json("inspect nanodit --json")["parameters"], 29_283_844);
    assert_eq!(desk.json("inspect unetpp-r34 --json")["parameters"], 26_236_946);
}

/// What does not fit is shown, key by key, and is an error.
#[test]
fn inspect_shows_keys_that_do_not_fit() {
    let desk = Desk::new();
    let file = Checkpoint::open(golden_weights("a1_flow_vit")).unwrap();
    let (gone, odd) = ("unet.output_proj.0.bias", "unet.time_embed.time_mlp.2.bias");
    let values = vec![0f32; 65];
    let kept = file.names().filter(|n| ![gone, odd].contains(n)).map(|name| TensorBytes {
        name: name.into(),
        dtype: file.dtype(name).unwrap(),
        shape: file.shape(name).unwrap().to_vec(),
        bytes: file.bytes(name).unwrap().into(),
    });
    let more = [TensorBytes::from_f32(odd, &[65], &values), TensorBytes::from_f32("unet.extra", &[65], &values)];
    write_safetensors(desk.path("w.safetensors"), kept.chain(more), file.metadata()).unwrap();
    let end = desk.run("inspect w.safetensors --json");
    assert_eq!(end.code, 3, "{}", end.stderr);
    let about: serde_json::Value = serde_json::from_str(&end.stdout).unwrap();
    assert_eq!(about["fits"], false);
    assert_eq!(about["missing"], serde_json::json!(["output_proj.0.bias"]));
    assert_eq!(about["unexpected"], serde_json::json!(["unet.extra"]));
    assert_eq!(about["misshaped"], serde_json::json!([format!("{odd} is [65], [64] expected")]));
    assert!(["1 missing", "1 unexpected", "1 mis-shaped"].iter().all(|p| end.stderr.contains(p)), "{}", end.stderr);

    write_safetensors(desk.path("x.safetensors"), [TensorBytes::from_f32("a", &[65], &values)], &Default::default())
        .unwrap();
    let end = desk.run("inspect x.safetensors");
    assert_eq!(end.code, 3);
    assert!(end.stderr.contains("unknown architecture") && end.stdout.contains("tensors"), "{}", end.stdout);
}

#[test]
fn converted_models_are_the_same_models() {
    let desk = Desk::new();
    for model in ["a1_flow_vit", "a2_timm_vit", "a3_dit", "a3_nanodit"] {
        desk.ok(&format!("convert {} {model}", golden_weights(model)));
        let (before, after) =
            (Checkpoint::open(golden_weights(model)).unwrap(), Checkpoint::open(desk.path(model)).unwrap());
        let (before, after) = (Import::new(&before).unwrap(), Import::new(&after).unwrap());
        assert_eq!(before.config, after.config);
        assert!(after.unused.is_empty() && after.notes.is_empty());
        for spec in specs(&before.config) {
            let bits = |i: &Import| i.read(&spec.name).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&before) == bits(&after), "{model}: {}", spec.name);
            assert_eq!(after.file_name(&spec.name), Some(&spec.name[..]));
        }
    }
    // A single file with its configuration inside is enough.
    std::fs::rename(desk.path("a3_nanodit/model.safetensors"), desk.path("alone.safetensors")).unwrap();
    desk.ok(&small_sample("--n 2 --out a.npy"));
    desk.ok("sample --model alone.safetensors --device cpu --steps 3 --n 2 --out b.npy");
    assert!(desk.bytes("a.npy") == desk.bytes("b.npy"));
}

#[test]
fn converting_to_half_halves_and_refuses_what_overflows() {
    let desk = Desk::new();
    let end = desk.ok(&format!("convert {} m --dtype f16", golden_weights("a1_flow_vit")));
    assert!(end.stderr.contains("5 unused left out"), "{}", end.stderr);
    let half = Checkpoint::open(desk.path("m")).unwrap();
    assert!(half.names().all(|n| half.dtype(n) == Some(FileDType::F16)));
    let file = Checkpoint::open(golden_weights("a1_flow_vit")).unwrap();
    let tensor = "unet.output_proj.0.bias";
    let big = vec![7e4f32; 64];
    let tensors = file.names().map(|name| match name == tensor {
        true => TensorBytes::from_f32(tensor, &[64], &big),
        false => TensorBytes {
            name: name.into(),
            dtype: FileDType::F32,
            shape: file.shape(name).unwrap().to_vec(),
            bytes: file.bytes(name).unwrap().into(),
        },
    });
    write_safetensors(desk.path("big.safetensors"), tensors, file.metadata()).unwrap();
    let end = desk.run("convert big.safetensors out --dtype f16");
    assert_eq!(end.code, 3, "{}", end.stderr);
    assert!(end.stderr.contains("output_proj.0.bias") && end.stderr.contains("7e4"), "{}", end.stderr);
    assert!(!desk.path("out").exists());
    desk.ok("convert big.safetensors out --dtype bf16");
}

#[test]
fn doctor_is_content_with_any_machine() {
    let desk = Desk::new();
    let about = desk.json("doctor --json");
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert!(about["cpu"]["threads"].as_u64().unwrap() > 0 && about["cpu"]["dispatch"].is_string());
    let words = desk.ok("doctor").stdout;
    assert!(["cpu ", "driver ", "kernels "].iter().all(|p| words.lines().any(|l| l.starts_with(p))), "{words}");
}

#[test]
fn bench_compares_with_the_products_alone() {
    let desk = Desk::new();
    let model = golden_weights("a3_nanodit");
    let rows = desk.json(&format!(
        "bench --model {model} --device cpu --threads 2 --seconds 0 --steps 4 --batch 2 --dtype f32 --json"
    ));
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        for field in ["p50_ms", "p90_ms", "p99_ms", "min_ms", "ms_per_evaluation", "gflops"] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field}: {row}");
        }
        assert_eq!((&row["batch"], &row["steps"], &row["evaluations"]), (&2.into(), &4.into(), &4.into()));
        assert_eq!((&row["dtype"], &row["threads"]), (&"f32".into(), &2.into()));
    }
    let ratio = rows[0]["p50_ms"].as_f64().unwrap() / rows[1]["p50_ms"].as_f64().unwrap();
    assert!((rows[0]["ratio_to_products"].as_f64().unwrap() - ratio).abs() < 1e-9);
    assert!(rows[0]["load_ms"].as_f64().unwrap() > 0.0);
    #[cfg(target_os = "linux")]
    assert!(rows[0]["peak_rss_mb"].as_f64().unwrap() > 1.0);
    let words = desk.ok(&format!("bench --model {model} --device cpu --seconds 0")).stdout;
    assert!(words.contains("x the time of the matrix products alone"), "{words}");
}

const DATA_VERBS: [&str; 4] = ["data simulate", "data check", "data stats", "data convert"];

#[test]
fn every_help_ends_with_two_examples() {
    let desk = Desk::new();
    let help = desk.ok("--help").stdout;
    let verbs = ["sample", "inspect", "convert", "merge", "data", "bench", "doctor", "completions"];
    for verb in [""].into_iter().chain(verbs).chain(DATA_VERBS) {
        let help = desk.ok(&format!("{verb} --help")).stdout;
        let examples: Vec<&str> = help.lines().skip_while(|l| *l != "Examples:").skip(1).collect();
        assert!(examples.len() == 2 && examples.iter().all(|l| l.starts_with("  arclet ")), "{verb}: {help}");
    }
    assert!(verbs.iter().all(|v| help.contains(v.split(' ').next().unwrap())));
    assert!(desk.ok("--version").stdout.contains(env!("CARGO_PKG_VERSION")));
}

/// An example that does not parse is worse than none: every one is tried with an unknown flag behind it, which is then
/// the first thing to be wrong with it.
#[test]
fn examples_parse() {
    let desk = Desk::new();
    let verbs = ["", "sample", "inspect", "convert", "merge", "data", "bench", "doctor", "completions"];
    for verb in verbs.into_iter().chain(DATA_VERBS) {
        let help = desk.ok(&format!("{verb} --help")).stdout;
        for example in help.lines().skip_while(|l| *l != "Examples:").skip(1) {
            let arguments = example.trim().trim_start_matches("arclet ").split(" > ").next().unwrap();
            let end = desk.run(&format!("{arguments} --no-such-flag"));
            assert!(end.code == 2 && end.stderr.contains("'--no-such-flag'"), "{example}: {}", end.stderr);
        }
    }
}

#[test]
fn completions_exist_for_each_shell() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(desk.ok(&format!("completions {shell}")).stdout.contains("guidance-scale"), "{shell}");
    }
}
