//! Every architecture is named by its keys and shapes: the tables of `tests/data/keys`, as PyTorch has them, become files
//! of zeros (holes in them, in truth) that have to be recognised, completely.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use arclet::io::Checkpoint;
use arclet::models::config::{ModelConfig, NetworkConfig, Prediction};
use arclet::models::import::{Import, KeyDifferences};
use arclet::models::unet2d::Heads;
use arclet::models::{Model, parameters, specs};
use arclet::tensor::DType;
use serde_json::{Map, Value, json};

use crate::common::{cpu, data};

/// Keys, shapes and types of a model, and what the head of its table says about it.
#[derive(Clone)]
pub struct Table {
    keys: BTreeMap<String, (Vec<usize>, &'static str)>,
    parameters: Option<usize>,
    config: Map<String, Value>,
}

impl Table {
    /// Reads `tests/data/keys/NAME.txt`.
    pub fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(data(&format!("keys/{name}.txt"))).expect(name);
        let mut table = Self { keys: BTreeMap::new(), parameters: None, config: Map::new() };
        for line in text.lines() {
            if let Some((_, count)) = line.split_once("trainable parameters ") {
                table.parameters = Some(count.trim().parse().expect(line));
            } else if let Some(config) = line.strip_prefix("# config ") {
                table.config = serde_json::from_str(config).expect(line);
            } else if !line.starts_with('#') {
                let [key, shape, dtype] = line.split('\t').collect::<Vec<_>>().try_into().expect(line);
                let dtype = if dtype == "int64" { "I64" } else { "F32" };
                table.keys.insert(key.into(), (serde_json::from_str(shape).expect(line), dtype));
            }
        }
        table
    }

    /// The parameters of `config` under our names, with its `config.json`.
    fn of(config: &ModelConfig) -> Self {
        let keys = specs(config).into_iter().map(|s| (s.name, (s.shape, "F32"))).collect();
        let Value::Object(json) = config.to_json() else { panic!("a configuration is an object") };
        Self { keys, parameters: None, config: json }
    }

    fn without_config(&self) -> Self {
        Self { config: Map::new(), ..self.clone() }
    }

    pub fn with(&self, name: &str, value: Value) -> Self {
        let mut table = self.clone();
        table.config.insert(name.into(), value);
        table
    }

    /// A safetensors file of zeros, which take no room.
    pub fn write(&self, path: &Path) {
        let mut header = Map::new();
        let mut end = 0;
        for (name, (shape, dtype)) in &self.keys {
            let start = end;
            end += shape.iter().product::<usize>() * if *dtype == "I64" { 8 } else { 4 };
            header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
        }
        if !self.config.is_empty() {
            header.insert("__metadata__".into(), json!({ "config": Value::Object(self.config.clone()).to_string() }));
        }
        let header = Value::Object(header).to_string();
        let mut file = File::create(path).expect("a file");
        file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
        file.write_all(header.as_bytes()).expect("written");
        file.set_len((8 + header.len() + end) as u64).expect("room for a hole");
    }

    /// What the import makes of the file, by `look`.
    fn examine<T>(&self, look: impl Fn(&Import, KeyDifferences) -> T) -> Result<T, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        self.write(&path);
        let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
        let (import, differences) = Import::examine(&checkpoint).map_err(|e| {
            assert_eq!(e.exit_code(), 3, "{e}");
            e.to_string()
        })?;
        Ok(look(&import, differences))
    }

    pub fn read(&self) -> ModelConfig {
        let (config, differences) = self.examine(|i, d| (i.config.clone(), d)).expect("recognised");
        assert_eq!(differences, KeyDifferences::default());
        config
    }

    /// Refused as bad input with all `parts` in the message.
    fn refused(&self, parts: &[&str]) {
        let message = self.examine(|i, _| i.config.clone()).expect_err(&format!("{parts:?}"));
        for part in parts {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

/// Tables, the architecture of each and the published name of its sizes.
const TABLES: [(&str, &str, Option<&str>); 23] = [
    ("flow_unetpp_resnet34", "flow_unetpp", Some("resnet34")),
    ("smp_unetpp_resnet18", "smp_unetpp", Some("resnet18")),
    ("smp_unet_resnet34", "smp_unet", Some("resnet34")),
    ("unet2d_cifar10_32", "unet2d", None),
    ("unet2d_ddpm_256", "unet2d", None),
    ("unet2d_condition_sd15", "unet2d_condition", None),
    ("autoencoder_kl_sd", "autoencoder_kl", None),
    ("timm_convnextv2_atto", "convnextv2", Some("convnextv2_atto")),
    ("timm_convnextv2_nano", "convnextv2", Some("convnextv2_nano")),
    ("timm_convnextv2_tiny", "convnextv2", Some("convnextv2_tiny")),
    ("timm_convnextv2_base", "convnextv2", Some("convnextv2_base")),
    ("timm_resnet18", "resnet", Some("resnet18")),
    ("timm_resnet34", "resnet", Some("resnet34")),
    ("timm_resnet50", "resnet", Some("resnet50")),
    ("timm_efficientnet_b3", "efficientnet", Some("efficientnet_b3")),
    ("torchvision_efficientnet_b3", "efficientnet", Some("efficientnet_b3")),
    ("a4_unetpp_flow", "flow_unetpp", None),
    ("a5_autoencoder_kl", "autoencoder_kl", None),
    ("a5_unet2d", "unet2d", None),
    ("a5_unet2d_condition", "unet2d_condition", None),
    ("a6_convnextv2", "convnextv2", None),
    ("a7_efficientnet", "efficientnet", None),
    ("a7_resnet", "resnet", None),
];

#[test]
fn every_key_table_is_named_and_complete() {
    for (name, architecture, variant) in TABLES {
        let table = Table::open(name);
        let (config, differences, unused, notes) =
            table.examine(|i, d| (i.config.clone(), d, i.unused.clone(), i.notes.clone())).expect(name);
        assert_eq!(differences, KeyDifferences::default(), "{name}");
        assert_eq!((config.architecture().name(), config.network.variant()), (architecture, variant), "{name}");
        assert_eq!(Some(parameters(&config)), table.parameters, "{name}");
        assert!(unused.iter().all(|key| key.ends_with(".num_batches_tracked")), "{name}: {unused:?}");
        let counters = table.keys.keys().filter(|key| key.ends_with(".num_batches_tracked")).count();
        assert_eq!(unused.len(), counters, "{name}");
        // What convert writes says everything: nothing has to be guessed but what a VAE never said.
        let ours = Table::of(&config);
        assert_eq!(ours.read(), config, "{name}");
        let again = ours.examine(|i, _| i.notes.clone()).expect(name);
        let left: Vec<String> = notes.into_iter().filter(|n| n.contains("scaling_factor")).collect();
        assert_eq!(again, left, "{name}");
    }
}

#[test]
fn torchvision_and_timm_name_one_efficientnet() {
    let [timm, torchvision] = ["timm", "torchvision"].map(|from| Table::open(&format!("{from}_efficientnet_b3")));
    assert_ne!(timm.keys, torchvision.keys);
    assert_eq!(timm.read(), torchvision.read());
    let file = |ours: &str| torchvision.examine(|i, _| i.file_name(ours).map(str::to_owned)).unwrap().unwrap();
    for (ours, theirs) in [
        ("conv_stem.weight", "features.0.0.weight"),
        ("blocks.0.1.conv_dw.weight", "features.1.1.block.0.0.weight"),
        ("blocks.0.1.conv_pw.weight", "features.1.1.block.2.0.weight"),
        ("blocks.0.1.bn2.running_var", "features.1.1.block.2.1.running_var"),
        ("blocks.2.0.bn2.bias", "features.3.0.block.1.1.bias"),
        ("blocks.2.0.se.conv_expand.weight", "features.3.0.block.2.fc2.weight"),
        ("blocks.6.1.conv_pwl.weight", "features.7.1.block.3.0.weight"),
        ("bn2.weight", "features.8.1.weight"),
        ("classifier.bias", "classifier.1.bias"),
    ] {
        assert_eq!(file(ours), theirs);
    }
}

/// Older auto-encoders and U-Nets call an attention's projections query, key, value and proj_attn.
#[test]
fn older_names_of_attentions_are_understood() {
    for name in ["autoencoder_kl_sd", "unet2d_cifar10_32"] {
        let table = Table::open(name);
        let old = |key: &String| {
            let names =
                [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
            names.iter().fold(key.clone(), |key, (today, old)| key.replace(today, old))
        };
        let keys: BTreeMap<_, _> = table.keys.iter().map(|(key, rest)| (old(key), rest.clone())).collect();
        assert_ne!(keys, table.keys);
        let older = Table { keys, ..table.clone() };
        assert_eq!(older.read(), table.read());
        let mut both = older.clone();
        both.keys.extend(table.keys.clone());
        both.refused(&["are both", ".to_k.bias"]);
    }
}

/// Wrappers, features without a classifier, and keys that do not fit.
#[test]
fn trunks_without_heads_and_differences_are_told() {
    let table = Table::open("timm_resnet18");
    let mut trunk = table.clone();
    trunk.keys.retain(|key, _| !key.starts_with("fc."));
    let config = trunk.read();
    assert_eq!(parameters(&config), table.parameters.unwrap() - 512 * 1000 - 1000);
    assert_eq!(Table::of(&config).read(), config);

    let mut odd = table.clone();
    odd.keys = odd.keys.into_iter().map(|(key, rest)| (format!("module.{key}"), rest)).collect();
    odd.keys.remove("module.layer3.1.bn2.running_var");
    odd.keys.insert("module.layer3.1.conv2.bias".into(), (vec![256], "F32"));
    odd.keys.insert("module.layer2.0.conv1.weight".into(), (vec![128, 64, 5, 5], "F32"));
    let differences = odd.examine(|_, d| d).unwrap();
    assert_eq!(differences.missing, ["layer3.1.bn2.running_var"]);
    assert_eq!(differences.unexpected, ["module.layer3.1.conv2.bias"]);
    let misshaped = "module.layer2.0.conv1.weight is [128, 64, 5, 5], [128, 64, 3, 3] expected";
    assert_eq!(differences.misshaped, [misshaped]);
}

/// A size that the network cannot halve evenly is answered with the nearest that fit.
#[test]
fn sizes_are_multiples_of_the_stride() {
    let flow = Table::open("flow_unetpp_resnet34");
    assert_eq!(flow.with("image_size", json!(96)).read().image_size, 96);
    flow.with("image_size", json!(200)).refused(&["image_size is 200", "stride 32", "192 or 224 would fit"]);
    flow.with("img_size", json!(20)).refused(&["image_size is 20", "32 would fit"]);
    flow.with("image_size", json!(0)).refused(&["image_size is 0", "32 would fit"]);
    flow.with("image_size", json!([64, 96])).refused(&["image_size is [64,96]", "square"]);
    let unet = Table::open("unet2d_ddpm_256");
    assert_eq!(unet.with("sample_size", json!(64)).read().image_size, 64);
    unet.with("sample_size", json!(100)).refused(&["image_size is 100", "stride 32", "96 or 128"]);
    Table::open("autoencoder_kl_sd").with("sample_size", json!(250)).refused(&["stride 8", "248 or 256"]);
    // Features of any size.
    assert_eq!(Table::open("timm_resnet18").with("input_size", json!([3, 97, 97])).read().image_size, 97);
}

#[test]
fn groups_and_heads_divide_channels() {
    let tiny = Table::open("a5_unet2d");
    tiny.without_config().refused(&["norm_num_groups is 32", "24 channels", "down_blocks.0.resnets.0.norm1"]);
    tiny.with("norm_num_groups", json!(0)).refused(&["norm_num_groups is 0"]);
    tiny.with("norm_num_groups", json!(16)).refused(&["norm_num_groups is 16", "24 channels"]);
    tiny.with("attention_head_dim", json!(9)).refused(&["attention_head_dim is 9", "48 channels of level 1"]);
    let heads = |table: &Table, level: usize| match table.read().network {
        NetworkConfig::Unet2d(unet) => (unet.heads(level), unet.heads),
        _ => panic!("another network"),
    };
    assert_eq!(heads(&tiny, 1), (3, Heads::OfSize(16)));
    assert_eq!(heads(&tiny.with("attention_head_dim", Value::Null), 1), (1, Heads::One));
    let condition = Table::open("a5_unet2d_condition");
    assert_eq!(heads(&condition, 0), (2, Heads::Count(vec![2, 2])));
    assert_eq!(heads(&condition.with("attention_head_dim", json!([3, 6])), 1).0, 6);
    condition.with("attention_head_dim", json!([3])).refused(&["attention_head_dim has 1 numbers", "2 levels"]);
    condition.with("num_attention_heads", json!(5)).refused(&["attention_head_dim is [5,5]", "24 channels of level 0"]);
    Table::open("a5_autoencoder_kl").with("norm_num_groups", json!(3)).refused(&["is 3", "16 channels of encoder"]);
}

/// A configuration may not contradict the weights, nor ask for what is not computed here.
#[test]
fn configurations_that_do_not_fit_are_refused() {
    let unet = Table::open("a5_unet2d");
    for (name, value, parts) in [
        ("_class_name", json!("UNet2DConditionModel"), ["UNet2DConditionModel", "UNet2DModel"]),
        ("architecture", json!("dit"), ["architecture is dit", "unet2d"]),
        ("block_out_channels", json!([24, 64]), ["block_out_channels is [24, 64]", "[24, 48]"]),
        ("layers_per_block", json!(2), ["layers_per_block is 2", "1"]),
        ("down_block_types", json!(["DownBlock2D", "DownBlock2D"]), ["down_block_types", "AttnDownBlock2D"]),
        ("in_channels", json!(3), ["in_channels is 3", "1"]),
        ("out_channels", json!(2), ["out_channels is 2", "1"]),
        ("act_fn", json!("mish"), ["act_fn is \"mish\"", "\"silu\""]),
        ("resnet_time_scale_shift", json!("scale_shift"), ["scale_shift", "not computed"]),
        ("class_embed_type", json!("timestep"), ["class_embed_type", "nothing expected"]),
        ("freq_shift", json!(0.5), ["half_shift is 0.5", "0 or 1"]),
        ("downsample_padding", json!(2), ["downsample_padding is 2", "0 or 1"]),
    ] {
        unet.with(name, value).refused(&parts);
    }
    let smp = Table::open("smp_unetpp_resnet18");
    let saved = smp
        .with("encoder_name", json!("resnet18"))
        .with("decoder_channels", json!([256, 128, 64, 32, 16]))
        .with("classes", json!(1))
        .with("activation", Value::Null);
    assert_eq!(saved.read(), smp.read());
    saved.with("encoder_name", json!("resnet34")).refused(&["encoder_name is resnet34", "resnet18"]);
    saved.with("activation", json!("sigmoid")).refused(&["activation is \"sigmoid\""]);
    saved.with("decoder_attention_type", json!("scse")).refused(&["decoder_attention_type"]);
    saved.with("decoder_channels", json!([256])).refused(&["decoder_channels is [256]"]);
    Table::open("a6_convnextv2").with("depths", json!([1, 1, 3, 1])).refused(&["depths is [1, 1, 3, 1]"]);
    Table::open("timm_resnet18").with("num_classes", json!(10)).refused(&["num_classes is 10", "1000"]);
    Table::open("timm_resnet18").with("block", json!("Bottleneck")).refused(&["block is Bottleneck", "basic"]);
    // Shapes do not tell the strides of stages.
    let tiny = Table::open("a7_efficientnet");
    tiny.without_config().refused(&["strides are unknown", "4 stages"]);
    tiny.without_config().with("strides", json!([1, 2, 3, 2])).refused(&["[1, 2, 3, 2]", "1 or 2"]);
}

#[test]
fn latents_need_their_scaling_factor() {
    let factor = |table: &Table| match table.read().network {
        NetworkConfig::AutoencoderKl(vae) => vae.require_scaling_factor(),
        _ => panic!("another network"),
    };
    let tiny = Table::open("a5_autoencoder_kl");
    assert_eq!(factor(&tiny), Ok(0.18215));
    let unsaid = tiny.with("scaling_factor", Value::Null);
    assert!(factor(&unsaid).unwrap_err().contains("scaling_factor is missing"));
    let notes = unsaid.examine(|i, _| i.notes.clone()).unwrap();
    assert!(notes.iter().any(|n| n.contains("no scaling_factor")), "{notes:?}");
    for bad in [json!(0), json!(-1), json!(1e-60), json!("x")] {
        tiny.with("scaling_factor", bad).refused(&["scaling_factor is"]);
    }
    tiny.with("latents_mean", json!([0, 0, 0, 0])).refused(&["latents_mean"]);
}

#[test]
fn time_embeddings_of_diffusers_are_read() {
    let cifar = Table::open("unet2d_cifar10_32");
    let config = cifar.with("flip_sin_to_cos", json!(false)).with("freq_shift", json!(1)).read();
    assert_eq!((config.time.cos_first, config.time.half_shift, config.time.dim), (false, 1.0, 128));
    let plain = cifar.read();
    assert_eq!((plain.time.cos_first, plain.time.half_shift, plain.time.scale), (true, 0.0, 1.0));
    assert_eq!(plain.prediction, Prediction::Epsilon);
    let flow = Table::open("flow_unetpp_resnet34").read();
    assert_eq!((flow.time.half_shift, flow.time.scale, flow.prediction), (1.0, 1000.0, Prediction::Velocity));
}

/// What cannot be sampled says why before weights are read.
#[test]
fn networks_that_draw_no_images_say_why() {
    for (name, part) in [
        ("a7_resnet", "classifies images"),
        ("a5_autoencoder_kl", "latents"),
        ("smp_unet_resnet34", "masks"),
        ("a5_unet2d_condition", "attends to a context"),
    ] {
        let load = |i: &Import| Model::load(i.config.clone(), i, &cpu(), DType::F32).err().expect("refused");
        let (problem, error) = Table::open(name).examine(|i, _| (i.config.sampling_problem(), load(i))).unwrap();
        assert!(problem.as_deref().is_some_and(|p| p.contains(part)), "{name}: {problem:?}");
        assert!(error.to_string().contains(part), "{name}: {error}");
    }
}
