//! Training in the latents of an auto-encoder: both stages stop and go on bit for bit, and what was trained is drawn from.

use std::time::{Duration, Instant};

use serde_json::json;

use super::refusals::refused;
use super::{Desk, ended};

/// Settings of two networks of a few thousand parameters.
const SETTINGS: &str = r#"
[model]
image_size = 32
patch_size = 4
hidden_size = 32
depth = 1
num_heads = 1

[autoencoder]
latent_channels = 2
block_channels = [4, 8]
norm_groups = 2
batch_size = 4
steps = 80

[data]
batch_size = 4
threads = 1

[data.transform]
normalize = "min_max"
output_range = [-1, 1]

[optimizer]
warmup_steps = 2
ema_decay = 0.9

[run]
steps = 80
log_every = 1
validate_every = 40
save_every = 40
sample_every = 80
sample_images = 2
sample_steps = 2
"#;

fn desk() -> Desk {
    let desk = Desk::new();
    desk.ok("data simulate --n 4 --size 32 --out d --quiet");
    std::fs::write(desk.path("s.toml"), SETTINGS).unwrap();
    desk
}

/// Runs the program, interrupts it once `file` has a line, and wants it to say so.
fn interrupted(desk: &Desk, arguments: &str, file: &str) {
    let command = &mut desk.command(arguments);
    let child = command.stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
    let waiting = Instant::now();
    while std::fs::read(desk.path(file)).map_or(0, |text| text.len()) == 0 {
        assert!(waiting.elapsed() < Duration::from_secs(60), "nothing was ever logged");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let end = ended(child.wait_with_output());
    assert_eq!(end.code, 130, "{}", end.stderr);
    assert!(end.stderr.contains("--resume goes on from it"), "{}", end.stderr);
}

#[test]
fn both_stages_go_on_to_the_same_bytes_and_are_sampled() {
    let desk = desk();
    let train = |out: &str| format!("train --config s.toml --data d --device cpu --out {out} --quiet");
    let whole = desk.json(&format!("{} --json", train("whole")));
    assert_eq!((&whole["steps"], &whole["images"]), (&80.into(), &320.into()));
    interrupted(&desk, &train("parts"), "parts/autoencoder/metrics.jsonl");
    assert!(!desk.path("parts/metrics.jsonl").exists(), "the first stage is not over");
    interrupted(&desk, "train --resume --out parts --device cpu --threads 1 --quiet", "parts/metrics.jsonl");
    desk.ok("train --resume --out parts --device cpu --quiet");
    let checkpoint = |stage: &str| {
        ["weights", "average", "mean", "square"]
            .map(|group| format!("{stage}checkpoints/step-00000080/{group}.safetensors"))
    };
    let files = ["config.json", "model.safetensors", "autoencoder/config.json", "autoencoder/model.safetensors"];
    let files = files.map(String::from).into_iter().chain(checkpoint("")).chain(checkpoint("autoencoder/"));
    for file in files {
        assert!(desk.bytes(&format!("whole/{file}")) == desk.bytes(&format!("parts/{file}")), "{file}");
    }
    for file in ["curve.svg", "samples/step-00000080.png", "checkpoints/step-00000080"] {
        assert!(desk.path("whole").join(file).exists(), "{file}");
        assert!(desk.path("whole/autoencoder").join(file).exists(), "autoencoder/{file}");
    }

    let model = desk.recipe("whole/config.json");
    assert_eq!(
        (&model["autoencoder"], &model["image_size"], &model["in_channels"]),
        (&"autoencoder".into(), &16.into(), &2.into())
    );
    let about = desk.ok("inspect whole").stdout;
    assert!(
        about.contains("draws latents of 2 x 16 x 16, of which the auto-encoder in autoencoder/ makes images"),
        "{about}"
    );
    let sample = |model: &str, more: &str| {
        desk.ok(&format!("sample --model {model} --n 3 --steps 3 --device cpu --dtype f32 --quiet {more}"));
    };
    sample("whole", "--out s");
    let (shape, images) = desk.images("s/samples.npy");
    assert_eq!(shape, [3, 1, 32, 32]);
    assert!(images.iter().all(|v| (-1.0..=1.0).contains(v)), "images keep the range of the data");
    let recipe = desk.recipe("s/samples.json");
    assert_eq!((&recipe["shape"], &recipe["clamp"]), (&json!([3, 1, 32, 32]), &true.into()));
    let sha256 = recipe["model"]["autoencoder_sha256"].as_str().expect("a digest");
    assert_eq!(desk.json("inspect whole/autoencoder --json")["sha256"], sha256);
    sample("whole", "--batch 1 --threads 1 --out t");
    desk.ok("convert whole ours --quiet");
    sample("ours", "--out u");
    for other in ["t", "u"] {
        assert!(desk.bytes("s/samples.npy") == desk.bytes(&format!("{other}/samples.npy")), "{other}");
    }

    // What cannot be drawn from, or gone on from.
    refused(&desk, "train --init whole --data d --device cpu --steps 1 --out other", 3, &["whole", "latents"]);
    refused(&desk, &format!("{} --init lens-dit-s", train("other")), 2, &["init", "[autoencoder]"]);
    let mut config = desk.recipe("ours/autoencoder/config.json");
    config["scaling_factor"] = json!(null);
    std::fs::write(desk.path("ours/autoencoder/config.json"), config.to_string()).unwrap();
    refused(&desk, "sample --model ours --device cpu --out v", 3, &["ours/autoencoder", "scaling_factor is missing"]);
    std::fs::remove_dir_all(desk.path("ours/autoencoder")).unwrap();
    refused(&desk, "sample --model ours --device cpu --out v", 3, &["ours/autoencoder", "no such folder"]);
}
