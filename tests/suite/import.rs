//! How a checkpoint is recognised: names, shapes, wrappers, and what a configuration may add. Small crafted files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arclet::error::Error;
use arclet::io::{Checkpoint, TensorBytes, write_safetensors};
use arclet::models::builtin::{self, sincos_positions};
use arclet::models::config::{Classes, ModelConfig, NetworkConfig, Prediction};
use arclet::models::diffusion::{Diffusion, Variance};
use arclet::models::import::{Import, KeyDifferences};
use arclet::models::parameters::Parameter;
use arclet::models::sampling::Sampling;
use arclet::models::transformer::TransformerConfig;
use arclet::models::{Model, specs};
use arclet::nn::params::WeightSource;
use arclet::tensor::DType;
use serde_json::{Value, json};

use crate::common::cpu;
use crate::engines::cuda;

/// A file to be written: names, shapes, a value for all elements of each, and metadata.
#[derive(Clone)]
struct Draft {
    tensors: BTreeMap<String, (Vec<usize>, f32)>,
    metadata: BTreeMap<String, String>,
}

impl Draft {
    fn of(config: &ModelConfig) -> Self {
        let tensors = specs(config).into_iter().map(|s| (s.name, (s.shape, 0.5))).collect();
        Self { tensors, metadata: BTreeMap::new() }
    }

    /// Every name through `rename`.
    fn named(mut self, rename: impl Fn(&str) -> String) -> Self {
        self.tensors = self.tensors.into_iter().map(|(name, rest)| (rename(&name), rest)).collect();
        self
    }

    fn set(mut self, name: &str, shape: &[usize], value: f32) -> Self {
        self.tensors.insert(name.into(), (shape.to_vec(), value));
        self
    }

    fn without(mut self, name: &str) -> Self {
        assert!(self.tensors.remove(name).is_some(), "no {name}");
        self
    }

    fn config(self, config: Value) -> Self {
        self.metadata("config", &config.to_string())
    }

    fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    fn write(&self, path: &Path) {
        let values: BTreeMap<_, _> =
            self.tensors.iter().map(|(n, (s, v))| (n, vec![*v; s.iter().product::<usize>()])).collect();
        let tensors = self.tensors.iter().map(|(n, (s, _))| TensorBytes::from_f32(n.as_str(), s, &values[n]));
        write_safetensors(path, tensors, &self.metadata).expect("written");
    }

    /// What becomes of the file: the result of `look` at the import.
    fn examine<T>(&self, look: impl Fn(&Import, KeyDifferences) -> T) -> Result<T, Error> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        self.write(&path);
        let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
        let (import, differences) = Import::examine(&checkpoint)?;
        Ok(look(&import, differences))
    }

    /// The model, all keys fitting.
    fn read(&self) -> ModelConfig {
        let (config, differences) = self.examine(|i, d| (i.config.clone(), d)).expect("an import");
        assert_eq!(differences, KeyDifferences::default());
        config
    }

    /// Refused as bad input, the message naming the file and all of `parts`.
    fn refused(&self, parts: &[&str]) {
        let error = self.examine(|i, _| i.config.clone()).expect_err(&format!("{parts:?}"));
        assert_refused(&error, parts);
    }
}

fn assert_refused(error: &Error, parts: &[&str]) {
    assert_eq!(error.exit_code(), 3, "{error}");
    let message = error.to_string();
    for part in parts.iter().chain(&["w.safetensors"]) {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// `config` with other sizes.
fn resized(mut config: ModelConfig, change: impl FnOnce(&mut TransformerConfig)) -> ModelConfig {
    change(config.transformer_mut());
    config
}

/// A DiT of 16 x 16 pixels, 64 tokens, two heads of 64.
fn dit() -> ModelConfig {
    let config = builtin::find("nanodit").expect("a built-in model").config().clone();
    let names = ["0", "1", "2"].map(String::from).to_vec();
    let config =
        ModelConfig { image_size: 16, classes: Some(Classes { names, aliases: BTreeMap::new(), null: 3 }), ..config };
    resized(config, |t| (t.hidden_size, t.depth, t.num_heads, t.mlp_hidden) = (128, 1, 2, 256))
}

fn flow_vit() -> ModelConfig {
    let config = builtin::find("vit-b16").expect("a built-in model").config().clone();
    let sizes = |t: &mut TransformerConfig| {
        (t.patch_size, t.hidden_size, t.depth, t.num_heads, t.mlp_hidden) = (4, 64, 1, 1, 128);
    };
    ModelConfig { image_size: 16, ..resized(config, sizes) }
}

fn vit() -> ModelConfig {
    let sizes = TransformerConfig { head_size: 5, ..flow_vit().transformer().clone() };
    ModelConfig { in_channels: 3, out_channels: 3, network: NetworkConfig::Vit(sizes), ..flow_vit() }
}

/// A model with `heads` heads.
fn headed(config: ModelConfig, heads: usize) -> ModelConfig {
    resized(config, |t| t.num_heads = heads)
}

/// What a `config` beside the draft makes of it.
fn with(draft: &Draft, config: Value) -> ModelConfig {
    draft.clone().config(config).read()
}

/// Weights tell how many parameters a model takes, and its configuration which.
#[test]
fn continuous_parameters_are_named_by_the_configuration() {
    let parameter = |name: &str, log| Parameter { name: name.into(), mean: 1.5, std: 0.25, log };
    let config = ModelConfig { parameters: vec![parameter("mass", true), parameter("x", false)], ..dit() };
    let draft = Draft::of(&config);
    assert_eq!(with(&draft, config.to_json()), config);
    assert!(dit().to_json().get("parameters").is_none() && Draft::of(&dit()).read().parameters.is_empty());
    let lacking = draft.clone().without("param_embed.2.bias").config(config.to_json());
    assert_eq!(lacking.examine(|_, d| d.missing).unwrap(), ["param_embed.2.bias"]);

    draft.refused(&["no parameters in the configuration", "the 2 that param_embed takes"]);
    let refused = |value: Value, parts: &[&str]| draft.clone().config(json!({ "parameters": value })).refused(parts);
    let x = json!({ "name": "x", "mean": 0.0, "std": 1.0 });
    refused(json!([x]), &["a list of 2 expected"]);
    refused(json!("x"), &["a list of 2 expected"]);
    refused(json!([x, x]), &["parameters has \"x\" twice"]);
    refused(json!([x, { "name": "y", "mean": 0.0 }]), &["parameters[1]", "std"]);
    refused(json!([x, { "name": "y", "mean": 0.0, "sdt": 1.0 }]), &["parameters[1]", "sdt"]);
    refused(json!([x, { "name": "y", "mean": 0.0, "std": 0.0 }]), &["parameters.y", "std is 0"]);
    refused(json!([x, { "name": "y=1", "mean": 0.0, "std": 1.0 }]), &["\"y=1\"", "without ="]);
    Draft::of(&dit()).config(json!({ "parameters": [x] })).refused(&["a list of 0 expected"]);
}

#[test]
fn keys_and_shapes_tell_the_architecture() {
    for config in [dit(), flow_vit(), vit()] {
        assert_eq!(Draft::of(&config).read(), config);
    }
    let diffusion = Diffusion { variance: Variance::LearnedRange, ..Diffusion::default() };
    let sampling = Sampling { diffusion, ..Sampling::default() };
    let original = resized(dit(), |t| t.gelu_tanh = true);
    let original = ModelConfig { out_channels: 2, prediction: Prediction::Epsilon, sampling, ..original };
    let read = Draft::of(&original).read();
    assert_eq!(read.time.scale, 1.0);
    assert_eq!(ModelConfig { time: original.time, ..read.clone() }, original);
    assert_eq!(read.sampling_problem(), None);
    let strange = ModelConfig { out_channels: 3, ..original };
    assert!(strange.sampling_problem().expect("channels").contains("3 output channels"));
    assert!(vit().sampling_problem().expect("no velocity").contains("classifies"));
    assert_eq!(dit().sampling_problem(), None);

    let odd = Draft::of(&dit()).set("final_layer.linear.weight", &[12, 128], 0.0);
    odd.refused(&["12 rows", "4 or 8"]);
    let other = Draft { tensors: BTreeMap::new(), metadata: BTreeMap::new() }.set("conv1.weight", &[3, 3], 0.0);
    other.refused(&["unknown architecture", "conv1.weight", "input_conv", "x_embedder", "patch_embed"]);
    Draft::of(&dit()).set("pos_embed", &[1, 63, 128], 0.0).refused(&["63 patches", "square"]);
    Draft::of(&dit()).set("x_embedder.proj.weight", &[128, 4], 0.0).refused(&["[128, 4]", "4 dimensions"]);
}

#[test]
fn pickles_are_refused_with_the_way_to_convert_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors.pt");
    for bytes in [&b"PK\x03\x04rest of an archive"[..], b"\x80\x02}q\x00."] {
        std::fs::write(&path, bytes).unwrap();
        assert_refused(&Checkpoint::open(&path).unwrap_err(), &["pickle", "tools/pt2safetensors.py"]);
    }
}

#[test]
fn wrappers_are_stripped() {
    for wrapper in ["unet.", "model.", "module.", "_orig_mod.", "ema_model.", "module._orig_mod.model.unet."] {
        assert_eq!(Draft::of(&flow_vit()).named(|n| format!("{wrapper}{n}")).read(), flow_vit(), "{wrapper}");
    }
    let twice = Draft::of(&dit()).set("model.pos_embed", &[1, 64, 128], 0.0);
    twice.refused(&["model.pos_embed", "both pos_embed"]);
}

#[test]
fn ema_weights_are_preferred() {
    let ema = Draft::of(&dit()).named(|n| format!("ema_model.module.{n}"));
    let raw = Draft::of(&dit()).named(|n| format!("online_model.{n}"));
    let mut both = ema.set("initted", &[1], 1.0).set("ema_model.module.pos_embed", &[1, 64, 128], 2.0);
    both.tensors.extend(raw.tensors.clone());
    let (value, unused, differences) =
        both.examine(|i, d| (i.read("pos_embed").expect("positions")[0], i.unused.clone(), d)).unwrap();
    assert_eq!((value, differences), (2.0, KeyDifferences::default()));
    let expected: Vec<String> = ["initted".to_string()].into_iter().chain(raw.tensors.into_keys()).collect();
    assert_eq!(unused, expected);
}

#[test]
fn all_key_differences_are_told_at_once() {
    let draft = Draft::of(&dit())
        .without("blocks.0.attn.proj.bias")
        .without("t_embedder.mlp.2.bias")
        .set("stray", &[1], 0.0)
        .set("x_embedder.proj.bias", &[127], 0.0);
    let differences = draft.examine(|_, d| d).unwrap();
    assert_eq!(differences.missing, ["t_embedder.mlp.2.bias", "blocks.0.attn.proj.bias"]);
    assert_eq!(differences.unexpected, ["stray"]);
    assert_eq!(differences.misshaped, ["x_embedder.proj.bias is [127], [128] expected"]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    draft.write(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let error = Import::new(&checkpoint).err().expect("refused");
    assert_refused(&error, &["2 missing", "blocks.0.attn.proj.bias", "1 unexpected (stray)", "1 mis-shaped", "[127]"]);

    // The notebooks' checkpoints hold what the flow ViT does without.
    let names = ["cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"];
    let draft = names.iter().fold(Draft::of(&flow_vit()), |d, n| d.set(&format!("pretrained_vit.{n}"), &[1], 0.0));
    let (unused, differences) = draft.examine(|i, d| (i.unused.len(), d)).unwrap();
    assert_eq!((unused, differences), (5, KeyDifferences::default()));
}

#[test]
fn aliases_mean_the_same_and_must_agree() {
    let (dit, flow) = (Draft::of(&dit()), Draft::of(&flow_vit()));
    for size in ["image_size", "img_size", "input_size"] {
        with(&dit, json!({ size: 16 }));
        dit.clone().config(json!({ size: 32 })).refused(&[size, "32", "16"]);
    }
    for width in ["hidden_size", "embed_dim"] {
        with(&flow, json!({ width: 64 }));
        flow.clone().config(json!({ width: 65 })).refused(&[width, "65", "64"]);
    }
    for eps in ["norm_eps", "ln_eps"] {
        assert_eq!(with(&flow, json!({ eps: 1e-5 })).transformer().norm_eps, 1e-5);
    }
    for scale in ["t_scale", "freq_scale"] {
        assert_eq!(with(&flow, json!({ scale: 7 })).time.scale, 7.0);
    }
    assert_eq!(with(&flow, json!({ "time_embedding": { "scale": 7 } })).time.scale, 7.0);
    assert!(with(&dit, json!({ "tanh_gelu": true })).transformer().gelu_tanh);
    assert!(
        with(&dit, json!({ "gelu": "tanh", "tanh_gelu": true, "t_scale": 1, "freq_scale": 1.0 }))
            .transformer()
            .gelu_tanh
    );

    for (config, parts) in [
        (json!({ "image_size": 16, "img_size": 32 }), ["image_size is 16", "img_size is 32"]),
        (json!({ "hidden_size": 128, "embed_dim": 64 }), ["hidden_size is 128", "embed_dim is 64"]),
        (json!({ "norm_eps": 1e-6, "ln_eps": 1e-5 }), ["norm_eps", "ln_eps"]),
        (json!({ "gelu": "erf", "tanh_gelu": true }), ["gelu is \"erf\"", "tanh_gelu is true"]),
        (
            json!({ "t_scale": 1, "time_embedding": { "scale": 1000 } }),
            ["t_scale is 1", "time_embedding.scale is 1000"],
        ),
    ] {
        dit.clone().config(config).refused(&parts);
    }
}

#[test]
fn plain_metadata_are_a_configuration_of_strings() {
    let draft = Draft::of(&dit()).metadata("format", "pt");
    let read = draft.clone().metadata("tanh_gelu", "True").metadata("t_scale", "1").metadata("ln_eps", "1e-5").read();
    assert_eq!((read.transformer().gelu_tanh, read.time.scale, read.transformer().norm_eps), (true, 1.0, 1e-5));
    assert_eq!(draft.clone().metadata("num_heads", "4").metadata("img_size", "16").read().transformer().num_heads, 4);
    draft.clone().metadata("img_size", "64").refused(&["img_size is 64", "16"]);
    draft.clone().metadata("num_heads", "four").refused(&["num_heads", "four", "whole number"]);

    // Without a table of positions the size comes from the configuration, and the table is computed.
    let bare = draft.without("pos_embed");
    for name in ["image_size", "img_size", "input_size"] {
        let bare = bare.clone().metadata(name, "16");
        assert_eq!(bare.read(), dit());
        assert_eq!(bare.examine(|i, _| i.read("pos_embed").unwrap()).unwrap(), sincos_positions(128, 8));
    }
    bare.refused(&["image_size", "pos_embed"]);
    for (size, part) in [("17", "multiple of the patch size 2"), ("1", "multiple"), ("0", "multiple")] {
        bare.clone().metadata("image_size", size).refused(&["image_size is", part]);
    }
    for size in ["514", "1048576"] {
        bare.clone().metadata("image_size", size).refused(&["at most 512"]);
    }
    bare.clone().metadata("image_size", "-16").refused(&["image_size"]);
    bare.clone().metadata("image_size", "1e300").refused(&["image_size"]);
}

#[test]
fn timm_configurations_are_read_as_such() {
    let timm = json!({
        "architecture": "vit_tiny_patch4_16", "num_classes": 5, "num_features": 64, "input_size": [3, 16, 16],
        "model_args": { "img_size": [16, 16], "num_heads": 2 }, "pretrained_cfg": { "input_size": [3, 224, 224] },
    });
    assert_eq!(with(&Draft::of(&vit()), timm.clone()), headed(vit(), 2));
    // Beside a flow-matching ViT it is the encoder's.
    assert_eq!(with(&Draft::of(&flow_vit()), timm.clone()), headed(flow_vit(), 2));
    for (name, value, parts) in [
        ("input_size", json!([3, 224, 224]), ["input_size is 224", "16"]),
        ("input_size", json!([1, 16, 16]), ["input_size is [1,16,16]", "3 channels"]),
        ("input_size", json!([3, 16, 8]), ["input_size is [3,16,8]", "square"]),
        ("num_classes", json!(1000), ["num_classes is 1000", "5"]),
        ("num_heads", json!(4), ["num_heads is 4", "model_args.num_heads is 2"]),
    ] {
        let mut config = timm.clone();
        config[name] = value;
        // Else the two sizes would contradict each other first.
        config["model_args"].as_object_mut().unwrap().remove("img_size");
        Draft::of(&vit()).config(config).refused(&parts);
    }
    for name in ["dit", "flow_vit", "vit"] {
        let fits = |config: &ModelConfig| config.architecture().name() == name;
        for draft in [dit(), flow_vit(), vit()] {
            let file = Draft::of(&draft).config(json!({ "architecture": name }));
            if fits(&draft) {
                file.read();
            } else {
                file.refused(&[&format!("architecture is {name}"), draft.architecture().name()]);
            }
        }
    }
}

#[test]
fn a_configuration_may_not_contradict_the_shapes() {
    let dit = Draft::of(&dit());
    for (config, part) in [
        (json!({ "patch_size": 4 }), "patch_size is 4"),
        (json!({ "depth": 2 }), "depth is 2"),
        (json!({ "in_channels": 3 }), "in_channels is 3"),
        (json!({ "mlp_ratio": 4 }), "mlp_ratio is 4"),
        (json!({ "num_classes": 4 }), "num_classes is 4"),
        (json!({ "null_class": 0 }), "null_class is 0"),
        (json!({ "learn_sigma": true }), "learn_sigma is true"),
        (json!({ "freq_dim": 128 }), "freq_dim is 128"),
        (json!({ "time_embedding": { "dim": 128 } }), "time_embedding.dim is 128"),
        (json!({ "gelu": "relu" }), "gelu is \"relu\""),
        (json!({ "prediction": "score" }), "prediction is \"score\""),
        (json!({ "depth": 1.5 }), "whole number"),
        (json!({ "num_heads": 3 }), "divisor of the hidden size 128"),
        (json!({ "num_heads": 0 }), "divisor of the hidden size 128"),
        (json!({ "num_heads": 32 }), "heads of 4 channels"),
        (json!({ "norm_eps": 0 }), "norm_eps is 0"),
        (json!({ "norm_eps": 1e-60 }), "norm_eps is"),
        (json!({ "time_shift": 0 }), "time_shift is 0, a number above 0 and up to 100 expected"),
        (json!({ "time_shift": 101 }), "time_shift is 101"),
        (json!({ "time_shift": "inf" }), "time_shift is \"inf\", a number expected"),
        (json!({ "time_shift": 2, "prediction": "epsilon" }), "only the times of velocity models"),
        (json!({ "diffusion": {} }), "the model predicts a velocity"),
        (json!({ "diffusion": { "variance_type": "learned_range" }, "prediction": "epsilon" }), "no output channels"),
        (json!({ "value_range": [0, 1e-60] }), "value_range"),
        (json!({ "value_range": [0, 1e60] }), "value_range"),
        (json!({ "value_range": [1, 0] }), "value_range"),
        (json!({ "value_range": [0, 1, 2] }), "value_range"),
        (json!({ "value_range": [0, "x", 1] }), "value_range"),
    ] {
        dit.clone().config(config).refused(&["configuration", part]);
    }
    assert_eq!(with(&dit, json!({ "value_range": [0, 2], "mlp_ratio": 2 })).value_range, (0.0, 2.0));
    for (name, prediction) in
        [("epsilon", Prediction::Epsilon), ("v_prediction", Prediction::V), ("sample", Prediction::Sample)]
    {
        let read = with(&dit, json!({ "prediction": name }));
        // Asked at timesteps as they are.
        assert_eq!((read.prediction, read.time.scale), (prediction, 1.0));
    }
    assert_eq!(with(&dit, json!({ "prediction": "epsilon", "t_scale": 1000 })).time.scale, 1000.0);
    assert_eq!(with(&dit, json!({ "time_shift": 0.5 })).sampling.time_shift, 0.5);
}

#[test]
fn heads_are_guessed_only_where_64_divides() {
    let config = resized(dit(), |t| (t.hidden_size, t.num_heads) = (96, 3));
    let draft = Draft::of(&config);
    draft.refused(&["num_heads", "96", "64"]);
    assert_eq!(with(&draft, json!({ "num_heads": 3 })), config);
    let notes = |draft: &Draft| draft.examine(|i, _| i.notes.clone()).unwrap();
    assert_eq!(notes(&Draft::of(&dit())), ["no num_heads in the configuration: taking 2 heads of 64"]);
    assert_eq!(notes(&Draft::of(&dit()).config(json!({ "num_heads": 2 }))), [""; 0]);
}

#[test]
fn time_embeddings_that_make_no_numbers_are_refused() {
    for (dim, base) in [(1, dit()), (3, dit()), (1, flow_vit()), (2, flow_vit())] {
        let time = arclet::ops::embed::Sinusoid { dim, ..base.time };
        Draft::of(&ModelConfig { time, ..base }).refused(&[&format!("time_embedding.dim is {dim}"), "even"]);
    }
    let time = arclet::ops::embed::Sinusoid { dim: 2, ..dit().time };
    let smallest = Draft::of(&ModelConfig { time, ..dit() }).read();
    assert!(smallest.time.embed(0.3).iter().all(|v| v.is_finite()));
    for (field, value) in [("scale", 1e308), ("max_period", 1.0), ("max_period", 1e300), ("half_shift", 0.5)] {
        let config = json!({ "time_embedding": { field: value } });
        Draft::of(&dit()).config(config).refused(&[&format!("time_embedding.{field} is")]);
    }
    Draft::of(&dit()).config(json!({ "t_scale": -1e308 })).refused(&["time_embedding.scale"]);
}

#[test]
fn class_names_are_unambiguous() {
    let draft = Draft::of(&dit());
    let names = |names: [&str; 3], aliases: Value| json!({ "class_names": names, "class_aliases": aliases });
    let read = with(&draft, names(["vort", "1", "no"], json!({ "axion": "vort", "no": "no" }))).classes.unwrap();
    let found = ["vort", "axion", "0", "1", "no", "2", "3", "x"].map(|n| read.find(n));
    assert_eq!(found, [Some(0), Some(0), Some(0), Some(1), Some(2), Some(2), None, None]);
    for (config, part) in [
        (names(["a", "b", "a"], json!({})), "\"a\" twice"),
        (names(["1", "b", "c"], json!({})), "\"1\" as class 0"),
        (names(["a", "b", "7"], json!({})), "\"7\" as class 2"),
        (names(["a", "b", "c"], json!({ "a": "b" })), "class_aliases.a"),
        (names(["a", "b", "c"], json!({ "1": "b" })), "class_aliases.1"),
        (names(["a", "b", "c"], json!({ "d": "e" })), "class_aliases.d"),
        (json!({ "class_names": ["a", "b"] }), "3 strings"),
    ] {
        draft.clone().config(config).refused(&[part]);
    }
}

/// The error of loading the draft's model, which imports well.
fn load_error(draft: &Draft, device: &arclet::device::Device, dtype: DType) -> Error {
    draft.examine(|i, _| Model::load(i.config.clone(), i, device, dtype).err().expect("refused")).expect("an import")
}

#[test]
fn weights_that_overflow_a_narrow_type_are_refused() {
    let stored = Draft::of(&dit()).set("blocks.0.adaLN_modulation.1.bias", &[768], 1e5);
    // Folded on the host: small in the file, large in the product.
    let folded = Draft::of(&flow_vit()).set("input_conv.weight", &[3, 1, 1, 1], 1e5);
    let names = ["blocks.0.adaLN_modulation.1.bias", "pretrained_vit.patch_embed.proj.weight"];
    for (draft, name) in [stored, folded].iter().zip(names) {
        let error = load_error(draft, &cpu(), DType::F16);
        assert_refused(&error, &[name, "element 0", "e5", "f16", "--dtype bf16 or f32"]);
        for dtype in [DType::BF16, DType::F32] {
            draft.examine(|i, _| Model::load(i.config.clone(), i, &cpu(), dtype).map(|_| ())).unwrap().unwrap();
        }
    }
    let largest = Draft::of(&dit()).set("pos_embed", &[1, 64, 128], f32::MAX);
    assert_refused(&load_error(&largest, &cpu(), DType::BF16), &["pos_embed", "bf16", "--dtype f32"]);
}

#[test]
fn heads_too_narrow_for_a_gpu_are_refused_on_load() {
    let narrow = Draft::of(&dit()).config(json!({ "num_heads": 8 }));
    assert_refused(&load_error(&narrow, &cuda(), DType::F32), &["heads of 16 channels", "32 to 128", "--device cpu"]);
    narrow.examine(|i, _| Model::load(i.config.clone(), i, &cpu(), DType::F32).map(|_| ())).unwrap().unwrap();
}

#[test]
fn a_folder_has_its_configuration_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    Draft::of(&dit()).config(json!({ "num_heads": 4 })).write(&file("model.safetensors"));
    let heads = |path: &Path| Import::new(&Checkpoint::open(path).unwrap()).unwrap().config.transformer().num_heads;
    assert_eq!(heads(folder.path()), 4);
    std::fs::write(file("config.json"), json!({ "num_heads": 2 }).to_string()).unwrap();
    assert_eq!((heads(folder.path()), heads(&file("model.safetensors"))), (2, 2));
}
