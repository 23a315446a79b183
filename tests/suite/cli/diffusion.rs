//! `sample` with a diffusion model: the solver follows from the model, the noise of every step from seed and image.

use arclet::io::write_npy_f32;
use serde_json::{Value, json};

use super::refusals::refused;
use super::{Desk, golden_weights, small_sample};
use crate::common::{Golden, relative_error};

/// `sample` of the small original DiT on the CPU in f32.
fn dit(more: &str) -> String {
    format!("sample --model {} --device cpu --dtype f32 --threads 2 --quiet {more}", golden_weights("a3_dit"))
}

#[test]
fn the_original_dit_is_sampled_by_ddim() {
    let (desk, golden) = (Desk::new(), Golden::open("b_samplers/dit_ddim_cfg_io.safetensors"));
    write_npy_f32(desk.path("noise.npy"), &golden.shape("in.x"), &golden.f32("in.x")).unwrap();
    let classes: Vec<String> = golden.i64("in.y").iter().map(i64::to_string).collect();
    let flags = format!("--noise noise.npy --class {} --steps 20 --guidance-scale 3", classes.join(","));
    desk.ok(&dit(&format!("{flags} --out x.npy")));
    let error = relative_error(&desk.images("x.npy").1, &golden.f32("out.ddim20_cfg3"));
    assert!(error <= golden.bound("out.ddim20_cfg3", 1e-4), "{error:.2e}");
    let recipe = desk.recipe("x.json");
    let expected = json!({
        "solver": "ddim", "steps": 20, "evaluations": 20, "time": "timesteps", "seed": null, "clamp": false,
        "diffusion": {
            "prediction": "epsilon", "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4,
            "beta_end": 0.02, "timestep_spacing": "leading", "steps_offset": 0, "clip_sample": false, "clip_sample_range": 1.0,
            "set_alpha_to_one": true, "variance_type": "learned_range", "eta": 0.0, "guidance_channels": 4,
        },
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&recipe[field], value, "{field}");
    }
    // Every flag changes the images, and stands in the recipe.
    for (flag, field, value) in [
        ("--spacing trailing", "timestep_spacing", json!("trailing")),
        ("--clip-sample", "clip_sample", json!(true)),
        ("--guidance-channels 3", "guidance_channels", json!(3)),
        ("--eta 0.5", "eta", json!(0.5)),
    ] {
        desk.ok(&dit(&format!("{flags} {flag} --out y.npy")));
        assert_eq!(desk.recipe("y.json")["diffusion"][field], value);
        assert_ne!(desk.images("y.npy").1, desk.images("x.npy").1, "{flag}");
    }
}

#[test]
fn ancestral_shards_are_the_whole_run_whatever_the_batch() {
    let desk = Desk::new();
    for (folder, solver) in [("a", "ddpm"), ("b", "ddim --eta 1")] {
        let flags = format!("--n 5 --steps 4 --solver {solver} --seed 8");
        desk.ok(&dit(&format!("{flags} --out {folder}/whole.npy")));
        for shard in 1..=2 {
            desk.ok(&dit(&format!("{flags} --batch {shard} --shard {shard}/2 --out {folder}/part.npy")));
        }
        desk.ok(&format!("merge {folder}/part-1of2.npy {folder}/part-2of2.npy --out {folder}/all.npy"));
        assert!(desk.bytes(&format!("{folder}/all.npy")) == desk.bytes(&format!("{folder}/whole.npy")));
        assert!(desk.bytes(&format!("{folder}/all.json")) == desk.bytes(&format!("{folder}/whole.json")));
    }
    // The seed of the steps goes with given noise too, and only where steps draw any.
    write_npy_f32(desk.path("noise.npy"), &[1, 4, 8, 8], &[0.5; 256]).unwrap();
    let given = |seed: u64| {
        desk.ok(&dit(&format!("--noise noise.npy --seed {seed} --steps 4 --solver ddpm --out c.npy")));
        assert_eq!(desk.recipe("c.json")["seed"], seed);
        desk.images("c.npy").1
    };
    assert_ne!(given(1), given(2));
    refused(&desk, &dit("--noise noise.npy --seed 1 --steps 4"), 2, &["--seed 1", "--noise", "ddim"]);
}

#[test]
fn solvers_and_flags_for_another_kind_of_model() {
    let desk = Desk::new();
    for (flags, parts) in [
        ("--solver euler", vec!["--solver euler", "predicts epsilon", "ddim or ddpm"]),
        ("--solver ab2", vec!["--solver ab2", "predicts epsilon"]),
        ("--shift 0.5", vec!["--shift", "predicts epsilon"]),
        ("--time notebook", vec!["--time notebook", "predicts epsilon"]),
        ("--solver ddpm --eta 0.5", vec!["--eta", "not for this solver"]),
        ("--eta 1.5", vec!["--eta 1.5", "0 to 1"]),
        ("--steps 1001", vec!["--steps 1001", "1 to 1000"]),
        ("--guidance-channels 0", vec!["'0'", "--guidance-channels"]),
        ("--spacing sparse", vec!["'sparse'", "leading, trailing, linspace"]),
    ] {
        refused(&desk, &dit(flags), 2, &parts);
    }
    for (flags, parts) in [
        ("--solver ddim", vec!["--solver ddim", "predicts velocity", "euler, heun"]),
        ("--solver ddpm", vec!["--solver ddpm", "predicts velocity"]),
        ("--eta 0", vec!["--eta", "not for velocity models"]),
        ("--spacing leading", vec!["--spacing", "velocity"]),
        ("--clip-sample", vec!["--clip-sample", "velocity"]),
        ("--guidance-channels 1", vec!["--guidance-channels", "velocity"]),
    ] {
        refused(&desk, &small_sample(flags), 2, &parts);
    }
    let bench = format!("bench --model {} --device cpu", golden_weights("a3_dit"));
    refused(&desk, &bench, 3, &["predicts epsilon", "velocity models"]);
}

/// Settings of the scheduler come from the configuration; imported and written, they stay.
#[test]
fn schedulers_are_configured_beside_the_weights() {
    let desk = Desk::new();
    desk.ok(&format!("convert {} model", golden_weights("a3_dit")));
    let about = desk.json("inspect model --json");
    assert_eq!((&about["samples"], &about["config"]["prediction"]), (&json!(true), &json!("epsilon")));
    let mut config: Value = desk.recipe("model/config.json");
    assert_eq!(config["diffusion"], about["config"]["diffusion"]);
    config["prediction"] = json!("v_prediction");
    config["diffusion"] =
        json!({ "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace", "clip_sample": true });
    let write = |config: &Value| std::fs::write(desk.path("model/config.json"), config.to_string()).unwrap();
    write(&config);
    desk.ok("sample --model model --device cpu --n 1 --steps 3 --solver ddpm --out x.npy --quiet");
    let used = desk.recipe("x.json")["diffusion"].clone();
    let got = ["prediction", "beta_schedule", "timestep_spacing", "clip_sample", "eta"].map(|f| used[f].clone());
    assert_eq!(json!(got), json!(["v_prediction", "squaredcos_cap_v2", "linspace", true, null]));
    for (settings, part) in [
        (json!({ "beta_shedule": "linear" }), "unknown key \"beta_shedule\""),
        (json!({ "beta_schedule": "sigmoid" }), "linear, scaled_linear, squaredcos_cap_v2"),
        (json!({ "beta_start": 0.0 }), "0 < beta_start"),
        (json!({ "num_train_timesteps": 0 }), "num_train_timesteps is 0"),
        (json!({ "steps_offset": 1000 }), "steps_offset is 1000"),
        (json!({ "clip_sample": 1 }), "clip_sample is 1, true or false"),
        (json!({ "clip_sample_range": -1 }), "clip_sample_range is -1"),
        (json!({ "variance_type": "learned" }), "fixed_small, fixed_large, learned_range"),
        (json!("leading"), "no object"),
    ] {
        config["diffusion"] = settings;
        write(&config);
        refused(&desk, "sample --model model --device cpu", 3, &[part]);
    }
}
