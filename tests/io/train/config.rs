//! Settings of a run: every default, every refusal, and what is written is read back.

use std::path::Path;

use arclet::data::set::SOURCE_KEYS;
use arclet::models::config::Architecture;
use arclet::train::TrainConfig;
use arclet::train::config::{Decay, ModelPlan, Network, NewModel, OptimizerKind, Precision, TimeDensity};
use proptest::prelude::*;

use crate::assert_refused;

fn parse(text: &str) -> arclet::error::Result<TrainConfig> {
    TrainConfig::from_toml(Path::new("run.toml"), text)
}

#[test]
fn nothing_said_is_the_default_and_comes_back() {
    let config = parse("").unwrap();
    assert_eq!(config, TrainConfig::default());
    let text = config.to_toml().unwrap();
    assert_eq!(parse(&text).unwrap(), config, "{text}");
    for table in ["model", "data", "flow", "conditions", "optimizer", "precision", "regularisation", "memory", "run"] {
        assert!(text.contains(&format!("[{table}]\n")), "{table} is not in {text}");
    }
    assert!(text.contains("learning_rate = 0.001\n") && text.contains("architecture = \"dit\"\n"), "{text}");
}

#[test]
fn every_recipe_is_one() {
    let mut recipes = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let config = TrainConfig::read(&path).unwrap();
        assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config, "{}", path.display());
        recipes += 1;
    }
    assert!(recipes >= 3, "{recipes}");
}

#[test]
fn the_recipe_for_lenses_is_of_the_embedded_models_shape() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = TrainConfig::read(&root.join("configs/lens-dit-s.toml")).unwrap();
    let ModelPlan::New(model) = &config.model else { panic!("a new model expected") };
    let names = ["vort", "sphere", "no"].map(String::from);
    let mut ours = model.config(&names, config.data.value_range());
    config.flow.apply(&mut ours, true).unwrap();
    let mut ours = ours.to_json();
    let card = std::fs::read_to_string(root.join("weights/lens-dit-s/config.json")).unwrap();
    let card: serde_json::Value = serde_json::from_str(&card).unwrap();
    assert_eq!(ours["class_aliases"].take(), serde_json::json!({}));
    for (key, value) in ours.as_object().unwrap().iter().filter(|(key, _)| *key != "class_aliases") {
        let same = match (value, &card[key]) {
            (serde_json::Value::Number(a), serde_json::Value::Number(b)) => a.as_f64() == b.as_f64(),
            (serde_json::Value::Object(ours), card) => ours.iter().all(|(k, v)| match (v.as_f64(), card[k].as_f64()) {
                (Some(a), Some(b)) => a == b,
                _ => *v == card[k],
            }),
            (value, card) => value == card,
        };
        assert!(same, "{key}: {value}, the card says {}", card[key]);
    }
    assert_eq!(config.data.value_range(), (-1.0, 1.0));
    assert_eq!(config.optimizer.kind, OptimizerKind::AdamW);
}

/// Minutes are shared out, and what the first stage does not say is as the second's.
#[test]
fn a_run_in_latents_has_two_stages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = TrainConfig::read(&root.join("configs/lens-ldm.toml")).unwrap();
    assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config);
    config.run.minutes = Some(4.0);
    let section = config.autoencoder.clone().expect("a first stage");
    let (first, second) = config.stages();
    let first = first.expect("a first stage");
    assert_eq!((first.run.minutes, second.run.minutes), (Some(4.0 * section.share), Some(4.0 * (1.0 - section.share))));
    assert_eq!((first.data.batch_size, first.optimizer.learning_rate), (section.batch_size, section.learning_rate));
    assert_eq!((first.run.seed, first.optimizer.betas), (config.run.seed, config.optimizer.betas));
    let ModelPlan::New(model) = &config.model else { panic!("a new model expected") };
    let latents = section.latent_config(model, &[], (-1.0, 1.0));
    assert_eq!((latents.image_size, latents.in_channels), (16, section.latent_channels));
    assert_eq!(section.config(model, (-1.0, 1.0)).image_size, 64);

    config.run.minutes = None;
    config.run.steps = Some(7);
    let (first, second) = config.stages();
    assert_eq!((first.unwrap().run.steps, second.run.steps), (Some(5000), Some(7)), "steps are the model's");
    assert_eq!(parse("").unwrap().stages().0, None);
}

#[test]
fn tables_say_what_they_say() {
    let config = parse(
        "[model]\narchitecture = \"flow_vit\"\nimage_size = 32\nhidden_size = 64\nnum_heads = 2\ngelu = \"tanh\"\n\
         [data]\npath = \"lenses\"\nclasses = [\"no\", \"vort\"]\nchannels = [2, 0]\nvalidation_split = \"test\"\n\
         transform = { resize = 32, output_range = [0, 1] }\n\
         [flow]\ntime = \"logit_normal\"\nlogit_mean = -1\n\
         [conditions]\nparameters = [\"source_x_arcsec\"]\n\
         [optimizer]\nkind = \"adam\"\nlearning_rate = 1\nschedule = \"constant\"\n\
         [precision]\ndtype = \"bf16\"\n[run]\nminutes = 2\nseed = 7\n",
    )
    .unwrap();
    let ModelPlan::New(model) = &config.model else { panic!("a new model expected") };
    assert!(!model.class_conditional, "a flow_vit has no classes");
    let network = model.config(&["no".into()], (0.0, 1.0));
    let sizes = network.transformer();
    let found = (network.architecture(), sizes.mlp_hidden, sizes.gelu_tanh);
    assert_eq!(found, (Architecture::FlowVit, 256, true));
    assert_eq!(network.classes, None);
    assert_eq!(config.data.value_range(), (0.0, 1.0));
    let source = config.data.source();
    assert_eq!((source.split.as_deref(), source.channels), (None, Some(vec![2, 0])));
    let validation = config.data.validation_source(&["a".into()]);
    assert_eq!((validation.split.as_deref(), validation.classes), (Some("test"), Some(vec!["a".into()])));
    assert_eq!((config.flow.time, config.flow.logit_mean), (TimeDensity::LogitNormal, -1.0));
    assert_eq!((config.optimizer.learning_rate, config.optimizer.schedule), (1.0, Decay::Constant));
    assert_eq!((config.run.last_step(), config.run.minutes, config.run.seed), (None, Some(2.0), 7));

    let tuned = parse("[model]\ninit = \"lens-dit-s\"").unwrap();
    assert_eq!(tuned.model, ModelPlan::FineTune { init: "lens-dit-s".into() });
    assert_eq!(parse(&tuned.to_toml().unwrap()).unwrap(), tuned);
}

#[test]
fn the_data_table_has_every_key_of_a_source() {
    for key in SOURCE_KEYS {
        let error = parse(&format!("[data]\n{key} = {{}}")).unwrap_err().to_string();
        assert!(error.contains(&format!("key {key:?}: invalid type")), "{error}");
    }
}

#[test]
fn progress_is_that_of_what_ends_first() {
    let mut run = parse("").unwrap().run;
    assert_eq!((run.last_step(), run.progress(2500, 1e9)), (Some(10_000), 0.25));
    run.minutes = Some(2.0);
    assert_eq!((run.last_step(), run.progress(2500, 30.0)), (None, 0.25));
    run.steps = Some(5000);
    assert_eq!((run.progress(2500, 30.0), run.progress(0, 90.0), run.progress(9000, 0.0)), (0.5, 0.75, 1.0));
}

#[test]
fn what_does_not_fit_is_named() {
    for (text, parts) in [
        ("[optimizer]\nlearnig_rate = 1", &["[optimizer] unknown key \"learnig_rate\"", "\"learning_rate\"?"][..]),
        ("[optimiser]\nkind = \"adam\"", &["unknown table \"optimiser\", did you mean \"optimizer\"?"]),
        ("[optimizer]\nsteps = 1", &["[optimizer] unknown key \"steps\": it belongs into [run]"]),
        ("steps = 1", &["key \"steps\" belongs into [run]"]),
        ("depth = 1", &["key \"depth\" belongs into [model]"]),
        ("run = 5", &["run: found integer, the table [run] expected"]),
        ("[run]\nsteps = \"many\"", &["[run] key \"steps\"", "string \"many\""]),
        ("[run]\nsteps = -1", &["[run] key \"steps\"", "-1"]),
        ("[run]\nsteps = 0", &["[run] steps is 0, 1 to 1000000000 expected"]),
        ("[run]\nminutes = nan", &["[run] minutes is NaN, a number above 0"]),
        ("[run]\nminutes = 0", &["minutes is 0"]),
        ("[run]\nkeep = 0", &["keep is 0, 1 to 1000 expected"]),
        ("[run]\npatience = 3\nvalidate_every = 0", &["patience needs validations"]),
        ("[run\nsteps = 1", &["run.toml: TOML, line 1"]),
        ("[run]\nsteps = 1\nsteps = 2", &["TOML, line 3", "duplicate key"]),
        ("[model]\narchitecture = \"unet\"", &["[model] key \"architecture\"", "`unet`", "`dit`"]),
        ("[model]\nimage_size = 63", &["[model] image_size is 63, a multiple of the patch size 4 expected"]),
        ("[model]\nnum_heads = 5", &["[model] num_heads is 5, a divisor of the hidden size 192 expected"]),
        ("[model]\ndepth = 0", &["depth is 0"]),
        ("[model]\nmlp_ratio = inf", &["mlp_ratio is inf"]),
        ("[model]\nmlp_ratio = 1e-9", &["mlp_ratio is 0.000000001, which leaves no feed-forward channels"]),
        ("[model]\narchitecture = \"flow_vit\"\nclass_conditional = true", &["a flow_vit has no classes"]),
        ("[model]\ninit = \"a\"\ndepth = 3", &["[model] key \"depth\" beside \"init\""]),
        ("[model]\ninit = \"\"", &["[model] init is empty"]),
        ("[model]\ninit = 3", &["[model] key \"init\": found integer, expected a string"]),
        (
            "[autoencoder]\nlatent_chanels = 2",
            &["[autoencoder] unknown key \"latent_chanels\"", "\"latent_channels\"?"],
        ),
        ("[autoencoder]\nnorm_groups = 5", &["[autoencoder] norm_num_groups is 5, a divisor of the 16 channels of"]),
        ("[autoencoder]\nshare = 0", &["[autoencoder] share is 0, a number above 0"]),
        ("[autoencoder]\nblock_channels = []", &["[autoencoder] the number of block_channels is 0"]),
        ("[autoencoder]\n[model]\nimage_size = 36", &["[model] in the latents of [autoencoder]: image_size is 9"]),
        ("[autoencoder]\n[model]\ninit = \"a\"", &["init beside a table [autoencoder]"]),
        ("kl_weight = 1.0", &["key \"kl_weight\" belongs into [autoencoder]"]),
        ("[data]\nbatch_size = 0", &["[data] batch_size is 0"]),
        ("[data]\npath = \"\"", &["[data] path is empty"]),
        ("[data.transform]\nresise = 3", &["[data] transform: unknown key \"resise\", did you mean \"resize\"?"]),
        ("[data]\ntransform = 3", &["[data] key \"transform\""]),
        ("[flow]\ntime = \"cosine\"", &["[flow] key \"time\"", "`logit_normal`"]),
        ("[flow]\nlogit_std = 2.0", &["logit_mean and logit_std need time = \"logit_normal\""]),
        ("[flow]\nlabel_dropout = 1", &["label_dropout is 1, a number from 0 to below 1 expected"]),
        ("[conditions]\nparameters = [\"a\", \"a\"]", &["parameters has \"a\" twice"]),
        ("[conditions]\nparameters = [\"a=1\"]", &["parameters has \"a=1\""]),
        ("[optimizer]\nbetas = [0.9]", &["[optimizer] key \"betas\""]),
        ("[optimizer]\nbetas = [0.9, 1.0]", &["[optimizer] betas[1] is 1"]),
        ("[optimizer]\nlearning_rate = 0", &["learning_rate is 0, a number above 0 and up to 10 expected"]),
        ("[optimizer]\nweight_decay = nan", &["weight_decay is NaN"]),
        ("[precision]\nloss_scale = 1000", &["loss_scale is 1000, a power of 2 expected"]),
        ("[precision]\ndtype = \"f64\"", &["[precision] key \"dtype\"", "`f64`"]),
        ("[regularisation]\ndropout = -0.1", &["dropout is -0.1"]),
        ("[memory]\nhalve_batch = 1", &["[memory] key \"halve_batch\""]),
    ] {
        assert_refused(parse(text), parts);
        assert!(!parse(text).unwrap_err().to_string().contains('\n'), "one line for {text:?}");
    }
    let mut config = parse("").unwrap();
    config.run.seed = u64::MAX;
    assert!(config.check().unwrap_err().starts_with("[run] seed is 18446744073709551615, 0 to"), "TOML cannot hold it");
}

#[test]
fn files_are_read_with_care() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    assert_refused(TrainConfig::read(&path), &["run.toml", "cannot be opened"]);
    assert_refused(TrainConfig::read(folder.path()), &["found a folder"]);
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_refused(TrainConfig::read(&path), &["more than 1048576 bytes"]);
    std::fs::write(&path, b"# \xff").unwrap();
    assert_refused(TrainConfig::read(&path), &["not UTF-8"]);
    std::fs::write(&path, "[run]\nsteps = 5").unwrap();
    assert_eq!(TrainConfig::read(&path).unwrap().run.steps, Some(5));
}

prop_compose! {
    fn model()(heads in 1usize..5, head in 1usize..17, depth in 1usize..9, patch in 1usize..9, tokens in 1usize..17,
               mlp_ratio in 0.1f64..8.0, dit in any::<bool>(), label in any::<bool>()) -> NewModel {
        NewModel {
            architecture: if dit { Network::Dit } else { Network::FlowVit },
            image_size: patch * tokens, patch_size: patch, hidden_size: 8 * heads * head, num_heads: heads, depth,
            mlp_ratio, class_conditional: dit && label, ..NewModel::default()
        }
    }
}

proptest! {
    #[test]
    fn settings_come_back(
        new in model(), init in proptest::option::of("[^\\x00]{1,20}"), path in proptest::option::of(".{1,20}"),
        channels in proptest::option::of(proptest::collection::vec(0usize..9, 0..4)),
        last in proptest::option::of(any::<bool>()), range in proptest::option::of((-9f32..0.0, 0.1f32..9.0)),
        std in 0.001f64..10.0, names in proptest::collection::btree_set("[a-z \"\\\\é]{1,9}", 0..4),
        rate in 1e-12f64..10.0, betas in (0f64..1.0, 0f64..1.0), seed in 0..=i64::MAX as u64, power in 0i32..25,
        steps in proptest::option::of(1u64..=1_000_000_000), minutes in proptest::option::of(1e-6f64..1e6),
        f16 in any::<bool>(), switch in any::<bool>(),
    ) {
        let model = init.map_or(ModelPlan::New(new), |init| ModelPlan::FineTune { init });
        let mut config = TrainConfig { model, ..TrainConfig::default() };
        (config.data.path, config.data.channels, config.data.channels_last) = (path, channels, last);
        config.data.transform.output_range = range.map(|(low, high)| [low, high]);
        (config.flow.time, config.flow.logit_std) = (TimeDensity::LogitNormal, std);
        config.conditions.parameters = names.into_iter().collect();
        (config.optimizer.learning_rate, config.optimizer.betas) = (rate, [betas.0, betas.1]);
        (config.run.seed, config.run.steps, config.run.minutes) = (seed, steps, minutes);
        config.precision.dtype = if f16 { Precision::F16 } else { Precision::F32 };
        (config.precision.loss_scale, config.memory.checkpoint_activations) = (2f64.powi(power), switch);
        config.check().unwrap();
        let text = config.to_toml().unwrap();
        prop_assert_eq!(parse(&text).unwrap(), config, "{}", text);
    }

    #[test]
    fn no_text_is_a_panic(text in "(\\[(model|data|run|data.transform)\\]\n)?([a-z_]{1,9} ?= ?[-0-9a-z\\[\\]\"{}.]{0,9}\n){0,3}.{0,9}") {
        if let Err(error) = parse(&text) {
            prop_assert_eq!(error.exit_code(), 3);
        }
    }
}
