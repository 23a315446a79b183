//! A model that is trained on continuous parameters and asked for by them, from the table beside the images to the recipe.

use super::refusals::refused;
use super::{Desk, golden_weights};
use crate::data::write_image;

/// Settings of the smallest model that learns a mass and a position.
const SETTINGS: &str = r#"
[model]
image_size = 8
patch_size = 4
hidden_size = 32
depth = 1
num_heads = 1

[data]
batch_size = 4
threads = 1

[conditions]
parameters = ["mass", "x"]
dropout = 0.2

[optimizer]
learning_rate = 0.05
schedule = "constant"
warmup_steps = 0

[run]
steps = 4
save_every = 2
sample_every = 4
sample_images = 2
sample_steps = 2
validate_every = 2
"#;
const TRAIN: &str = "train --config settings.toml --data lenses --device cpu --threads 2 --quiet";

/// A desk with lenses of two classes, of which one has masses over three decades, and the settings.
fn desk() -> Desk {
    let desk = Desk::new();
    let mut table = String::from("file,class,mass,x,halo\n");
    for i in 0..8 {
        for (class, mass) in [("no", "0".to_owned()), ("vort", format!("1e-{}", 21 + i % 4))] {
            let split = if i < 6 { "train" } else { "val" };
            let file = format!("{split}/{class}/{i}.npy");
            write_image(desk.path("lenses").join(&file), 8, i as f32 / 8.0);
            table += &format!("{file},{class},{mass},{:?},1e12\n", f64::from(i) / 8.0 - 0.4);
        }
    }
    std::fs::write(desk.path("lenses/params.csv"), table).unwrap();
    std::fs::write(desk.path("settings.toml"), SETTINGS).unwrap();
    desk
}

/// Training goes on bit for bit, and the model is drawn from by its parameters' names.
#[test]
fn a_model_learns_parameters_and_is_asked_for_by_them() {
    let desk = desk();
    desk.ok(&format!("{TRAIN} --out whole"));
    desk.ok(&format!("{TRAIN} --steps 2 --out parts"));
    desk.ok("train --resume --steps 4 --device cpu --threads 1 --quiet --out parts");
    for file in ["model.safetensors", "config.json", "run.json"] {
        assert!(desk.bytes(&format!("whole/{file}")) == desk.bytes(&format!("parts/{file}")), "{file}");
    }
    let config = desk.recipe("whole/config.json");
    let [mass, x] = [0, 1].map(|i| &config["parameters"][i]);
    assert_eq!((mass["name"].as_str(), mass["log"].as_bool()), (Some("mass"), Some(true)));
    assert_eq!((x["name"].as_str(), x["log"].as_bool()), (Some("x"), Some(false)));
    let about = desk.ok("inspect whole").stdout;
    assert!(about.contains("  name mass, mean -22.") && about.contains("log yes"), "{about}");
    assert!(about.contains("  name x, mean -0.08"), "{about}");

    let sample = |more: &str| {
        desk.ok(&format!("sample --model whole --n 3 --steps 2 --device cpu --dtype f32 --no-clamp --quiet {more}"))
    };
    let asked = "--param mass=1e-22 --param x=-0.1";
    sample(&format!("{asked} --out asked"));
    sample("--out unasked");
    sample("--param mass=1e-22,x=0.3 --out elsewhere");
    sample(&format!("{asked} --cfg-scale 2 --out guided"));
    let images = ["asked", "unasked", "elsewhere", "guided"].map(|out| desk.images(&format!("{out}/samples.npy")).1);
    assert!((1..4).all(|i| images[..i].iter().all(|other| *other != images[i])));
    let recipe = desk.recipe("asked/samples.json");
    assert_eq!(recipe["parameters"], serde_json::json!({ "mass": 1e-22, "x": -0.1 }));
    assert!(desk.recipe("unasked/samples.json")["parameters"].is_null());

    // A file of settings, before which the flags go; and the parts of a run.
    std::fs::write(desk.path("asked.toml"), "param = [\"mass=1e-22\", \"x=0.3\"]\n").unwrap();
    sample("--config asked.toml --param x=-0.1 --out settings");
    assert_eq!(desk.bytes("settings/samples.npy"), desk.bytes("asked/samples.npy"));
    for shard in ["1/2", "2/2"] {
        sample(&format!("{asked} --shard {shard} --out shards"));
    }
    sample("--param mass=1e-22,x=0.3 --shard 2/2 --out other");
    desk.ok("merge shards/samples-1of2.npy shards/samples-2of2.npy --out merged");
    for end in ["npy", "json"] {
        assert_eq!(desk.bytes(&format!("merged/samples.{end}")), desk.bytes(&format!("asked/samples.{end}")));
    }
    let parts = ["another run", "parameters is"];
    refused(&desk, "merge shards/samples-1of2.npy other/samples-2of2.npy --out mixed", 3, &parts);

    let refused = |more: &str, parts: &[&str]| refused(&desk, &format!("sample --model whole {more}"), 2, parts);
    refused("--param mas=1e-22,x=0", &["--param mas=1e-22", "did you mean \"mass\"?"]);
    refused("--param mass=1e-22,x=left", &["--param x=left", "a finite number expected"]);
    refused("--param mass=1e-22,x=nan", &["--param x=nan", "a finite number expected"]);
    refused("--param x", &["--param x", "NAME=VALUE expected"]);
    refused("--param x=0.1", &["mass missing", "all of its parameters or none"]);
    refused("--param x=0.1,mass=-1", &["mass is -1.0, a positive number"]);
    refused("--param x=1e9,mass=0", &["x is 1000000000.0", "deviations"]);
}

/// A model without parameters gets some when training goes on from it; those that it has then stay as they are.
#[test]
fn parameters_are_added_once() {
    let desk = desk();
    std::fs::write(desk.path("settings.toml"), SETTINGS.replace("parameters = [\"mass\", \"x\"]", "")).unwrap();
    desk.ok(&format!("{TRAIN} --steps 1 --out plain"));
    assert!(desk.recipe("plain/config.json").get("parameters").is_none());
    refused(&desk, "sample --model plain --param x=0", 2, &["--param x=0", "plain takes no parameters"]);
    let flow_vit = format!("sample --model {} --param x=0", golden_weights("a1_flow_vit"));
    refused(&desk, &flow_vit, 2, &["takes no parameters"]);

    let small = "[data]\nbatch_size = 4\nthreads = 1\n[run]\nvalidate_every = 0\nsample_every = 0\n";
    let settings = |parameters: &str| {
        std::fs::write(desk.path("settings.toml"), format!("{small}[conditions]\nparameters = [{parameters}]\n"))
            .unwrap();
    };
    settings("\"x\"");
    desk.ok(&format!("{TRAIN} --init plain --steps 1 --out added"));
    let added = desk.recipe("added/config.json")["parameters"].clone();
    assert_eq!(added[0]["name"], "x");
    settings("");
    desk.ok(&format!("{TRAIN} --init added --steps 1 --out again"));
    assert_eq!(desk.recipe("again/config.json")["parameters"], added);

    settings("\"mass\"");
    let fixed = ["[conditions] parameters are [mass]", "the model to go on from takes [x]"];
    refused(&desk, &format!("{TRAIN} --init added --steps 1 --out other"), 2, &fixed);
    let fixed = ["[conditions] parameters are [mass]", "the run takes [x]"];
    refused(&desk, "train --resume --config settings.toml --data lenses --steps 2 --out added", 2, &fixed);
    settings("\"halo\"");
    let train = format!("{TRAIN} --init plain --steps 1 --out other");
    refused(&desk, &train, 3, &["\"halo\" is 1000000000000 in every image"]);
    settings("\"mas\"");
    refused(&desk, &train, 3, &["params.csv", "unknown column \"mas\", did you mean \"mass\"?"]);
    std::fs::write(
        desk.path("settings.toml"),
        "[model]\narchitecture = \"flow_vit\"\nimage_size = 8\npatch_size = 4\n[conditions]\nparameters = [\"x\"]\n",
    )
    .unwrap();
    refused(&desk, &format!("{TRAIN} --steps 1 --out vit"), 2, &["parameters: a flow_vit takes none"]);
}
