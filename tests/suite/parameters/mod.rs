//! Models that take continuous parameters: gradients, examples, and what is drawn with them.

mod examples;
mod gradients;
mod sampling;

use arclet::models::builtin::{self, hash_uniform};
use arclet::models::config::{Classes, ModelConfig, NetworkConfig};
use arclet::models::export::Parameters;
use arclet::models::parameters::Parameter;
use arclet::models::specs;
use arclet::models::transformer::TransformerConfig;

/// A DiT of four tokens and one block that takes a mass, by its logarithm, and a position; with three classes or none.
fn model(classes: bool) -> ModelConfig {
    let nanodit = builtin::find("nanodit").expect("a built-in model").config().clone();
    let parameter = |name: &str, mean, std, log| Parameter { name: name.into(), mean, std, log };
    let names = ["no", "sphere", "vort"].map(String::from).to_vec();
    ModelConfig {
        image_size: 8,
        classes: classes.then(|| Classes { names, aliases: Default::default(), null: 3 }),
        parameters: vec![parameter("mass", -23.0, 0.5, true), parameter("x", 0.0, 0.2, false)],
        network: NetworkConfig::Dit(TransformerConfig {
            patch_size: 4,
            hidden_size: 32,
            depth: 1,
            num_heads: 1,
            mlp_hidden: 64,
            ..nanodit.transformer().clone()
        }),
        ..nanodit
    }
}

/// Weights of which none is 0, unlike those that training begins with.
fn weight(config: &ModelConfig, name: &str) -> Vec<f32> {
    let spec = specs(config).into_iter().find(|spec| spec.name == name).expect("a parameter of the model");
    hash_uniform(name, spec.shape.iter().product()).map(|u| (0.3 * u) as f32).collect()
}

/// All of them.
fn weights(config: &ModelConfig) -> Parameters {
    Parameters::new("test", specs(config).into_iter().map(|spec| (spec.clone(), weight(config, &spec.name))).collect())
}
