//! The scheduler that diffusers keeps beside a model: what it says is what `sample` does, and what is not computed is refused.

use arclet::io::{TensorBytes, write_safetensors};
use arclet::models::specs;
use arclet::nn::params::WeightSource;
use serde_json::{Value, json};

use super::Desk;
use super::refusals::refused;
use crate::conv_models::Hashed;
use crate::zoo::Table;

/// A pipeline of diffusers in the folder `pipe`: a small U-Net, whose scheduler is written by `scheduler`.
fn pipeline() -> Desk {
    let (desk, source) = (Desk::new(), Hashed(Table::open("a5_unet2d").read()));
    let named = specs(&source.0).into_iter().map(|s| (source.read(&s.name).unwrap(), s));
    let named: Vec<_> = named.collect();
    let tensors = named.iter().map(|(values, s)| TensorBytes::from_f32(&*s.name, &s.shape, values));
    for folder in ["pipe/unet", "pipe/scheduler"] {
        std::fs::create_dir_all(desk.path(folder)).unwrap();
    }
    write_safetensors(desk.path("pipe/unet/diffusion_pytorch_model.safetensors"), tensors, &Default::default())
        .unwrap();
    let config =
        json!({ "_class_name": "UNet2DModel", "sample_size": 16, "norm_num_groups": 8, "attention_head_dim": 16 });
    write(&desk, "pipe/unet/config.json", &config);
    write(&desk, "pipe/model_index.json", &json!({ "_class_name": "DDPMPipeline" }));
    desk
}

fn write(desk: &Desk, name: &str, value: &Value) {
    std::fs::write(desk.path(name), value.to_string()).unwrap();
}

fn sample(model: &str) -> String {
    format!("sample --model {model} --device cpu --dtype f32 --threads 2 --n 1 --steps 2 --out x.npy")
}

#[test]
fn the_scheduler_of_a_pipeline_is_used() {
    let desk = pipeline();
    // Without one there are the defaults of a diffusion model.
    desk.ok(&sample("pipe/unet"));
    let plain = (desk.recipe("x.json")["diffusion"].clone(), desk.images("x.npy").1);
    assert_eq!(plain.0["clip_sample"], false);
    // As in google/ddpm-cifar10-32, but for the values.
    let settings = json!({
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.03, "beta_schedule": "scaled_linear",
        "beta_start": 0.0002, "num_train_timesteps": 500, "prediction_type": "v_prediction", "trained_betas": null,
        "timestep_spacing": "trailing", "variance_type": "fixed_large", "thresholding": false,
        "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 2.0,
    });
    write(&desk, "pipe/scheduler/scheduler_config.json", &settings);
    let mut seen = Vec::new();
    for model in ["pipe", "pipe/unet", "pipe/unet/diffusion_pytorch_model.safetensors"] {
        let end = desk.ok(&sample(model));
        assert!(end.stderr.contains("as its DDPMScheduler says"), "{}", end.stderr);
        let used = desk.recipe("x.json")["diffusion"].clone();
        for (key, value) in settings.as_object().unwrap() {
            let key = if key == "prediction_type" { "prediction" } else { key };
            let carried = !key.starts_with('_')
                && !["trained_betas", "thresholding", "dynamic_thresholding_ratio"].contains(&key);
            assert!(!carried || used[key] == *value, "{key}: {used}");
        }
        // A scheduler clips unless it says otherwise.
        assert_eq!(used["clip_sample"], true);
        seen.push((used, desk.images("x.npy").1));
    }
    assert!(seen[0] == seen[1] && seen[1] == seen[2] && seen[0].1 != plain.1);
    // Converted, the model has them itself.
    desk.ok("convert pipe ours");
    desk.ok(&sample("ours"));
    assert_eq!((desk.recipe("x.json")["diffusion"].clone(), desk.images("x.npy").1), seen[0]);
    // Beside the weights goes before the pipeline's, and the model's own settings before both.
    write(
        &desk,
        "pipe/unet/scheduler_config.json",
        &json!({ "_class_name": "PNDMScheduler", "steps_offset": 1, "skip_prk_steps": true }),
    );
    desk.ok(&sample("pipe"));
    let used = &desk.recipe("x.json")["diffusion"];
    let got = ["prediction", "steps_offset", "clip_sample", "set_alpha_to_one"].map(|key| used[key].clone());
    assert_eq!(json!(got), json!(["epsilon", 1, false, false]));
    let own =
        json!({ "sample_size": 16, "norm_num_groups": 8, "attention_head_dim": 16, "diffusion": { "beta_end": 0.05 } });
    write(&desk, "pipe/unet/config.json", &own);
    desk.ok(&sample("pipe"));
    let used = &desk.recipe("x.json")["diffusion"];
    assert_eq!((&used["beta_end"], &used["steps_offset"]), (&json!(0.05), &json!(0)));
}

#[test]
fn what_a_scheduler_asks_for_and_is_not_computed_is_refused() {
    let desk = pipeline();
    for (settings, parts) in [
        (json!({ "beta_shedule": "linear" }), vec!["unknown key \"beta_shedule\"", "did you mean \"beta_schedule\"?"]),
        (json!({ "clip_smaple": false }), vec!["did you mean \"clip_sample\"?"]),
        (json!({ "predicton_type": "sample" }), vec!["did you mean \"prediction_type\"?"]),
        (json!({ "use_karras_sigmas": true }), vec!["unknown key \"use_karras_sigmas\"", "expected one of"]),
        (json!({ "thresholding": true }), vec!["thresholding is true, false expected", "not computed here"]),
        (json!({ "rescale_betas_zero_snr": true }), vec!["rescale_betas_zero_snr is true"]),
        (json!({ "trained_betas": [0.1, 0.2] }), vec!["trained_betas is [0.1,0.2], nothing expected"]),
        (
            json!({ "prediction_type": "flow" }),
            vec!["prediction_type is \"flow\", one of epsilon, v_prediction, sample"],
        ),
        (json!({ "beta_schedule": "sigmoid" }), vec!["beta_schedule is \"sigmoid\"", "squaredcos_cap_v2"]),
        (json!({ "variance_type": "learned_range" }), vec!["no output channels for a variance"]),
        (json!({ "_class_name": "EulerDiscreteScheduler" }), vec!["EulerDiscreteScheduler", "DDPMScheduler"]),
        (json!([1]), vec!["expected an object"]),
    ] {
        write(&desk, "pipe/scheduler/scheduler_config.json", &settings);
        refused(&desk, &sample("pipe/unet"), 3, &[&parts[..], &["scheduler_config.json"]].concat());
    }
    // A model that is said to predict something else.
    write(&desk, "pipe/scheduler/scheduler_config.json", &json!({ "prediction_type": "sample" }));
    let config = json!({ "sample_size": 16, "norm_num_groups": 8, "attention_head_dim": 16, "prediction": "epsilon" });
    write(&desk, "pipe/unet/config.json", &config);
    refused(&desk, &sample("pipe/unet"), 3, &["prediction_type is \"sample\"", "config.json is \"epsilon\""]);
}
