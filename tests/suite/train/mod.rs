//! Training: steps against PyTorch, and what a run promises however it is stopped, cut up or short of memory.

mod diffusion;
mod examples;
mod runs;
mod steps;
mod switches;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arclet::data::{DataSet, SourceOptions};
use arclet::device::Device;
use arclet::error::Result;
use arclet::io::write_npy_f32;
use arclet::models::config::ModelConfig;
use arclet::models::training::initial;
use arclet::train::config::ModelPlan;
use arclet::train::folder::{DataRecord, RunRecord};
use arclet::train::metrics::Record;
use arclet::train::trainer::{End, Plan, Trainer};
use arclet::train::{RunFolder, TrainConfig};

use crate::common::cpu;

/// A network of four thousand parameters on images of 8 x 8 pixels: a step takes a millisecond or two.
pub const SMALL: &str = r#"
[model]
image_size = 8
patch_size = 4
hidden_size = 32
depth = 2
num_heads = 1
[data]
batch_size = 8
threads = 1
[optimizer]
learning_rate = 3e-3
warmup_steps = 5
ema_decay = 0.99
[run]
steps = 40
log_every = 5
validate_every = 20
save_every = 20
sample_every = 0
"#;

/// Images of two classes, a bright row and a bright column, in `folder`/train and `folder`/val.
pub fn images(folder: &Path) {
    for (split, n) in [("train", 20), ("val", 6)] {
        for (class, down) in [("rows", true), ("columns", false)] {
            let at = folder.join(split).join(class);
            std::fs::create_dir_all(&at).unwrap();
            for i in 0..n {
                let line = i % 8;
                let bright = |p: usize| if down { p / 8 == line } else { p % 8 == line };
                let pixels: Vec<f32> = (0..64).map(|p| if bright(p) { 0.9 } else { -0.8 + 0.01 * i as f32 }).collect();
                write_npy_f32(at.join(format!("{i}.npy")), &[8, 8], &pixels).unwrap();
            }
        }
    }
}

/// A desk with images on it, where runs go.
pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        images(&folder.path().join("data"));
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn set(&self, split: &str, classes: Option<&[&str]>) -> Arc<DataSet> {
        let classes = classes.map(|c| c.iter().map(|c| c.to_string()).collect());
        let options = SourceOptions { split: Some(split.into()), classes, ..SourceOptions::default() };
        Arc::new(DataSet::open(self.path("data"), &options).unwrap())
    }

    pub fn model(&self, config: &TrainConfig) -> ModelConfig {
        let ModelPlan::New(new) = &config.model else { unreachable!("the tests make new networks") };
        let mut model = new.config(self.set("train", None).classes(), (-1.0, 1.0));
        config.flow.apply(&mut model, true).unwrap();
        model
    }

    /// A trainer in `run` on `device`, new or going on.
    pub fn trainer(&self, run: &str, config: &TrainConfig, device: &Device, resume: bool) -> Result<Trainer> {
        self.stoppable(run, config, device, resume, || false)
    }

    pub fn stoppable(
        &self,
        run: &str,
        config: &TrainConfig,
        device: &Device,
        resume: bool,
        stop: fn() -> bool,
    ) -> Result<Trainer> {
        let (path, data, model) = (self.path(run), self.set("train", None), self.model(config));
        let folder = if resume {
            let (folder, _, _) = RunFolder::resume(&path)?;
            folder.write_config(config)?;
            folder
        } else {
            let record = RunRecord::new(config.run.seed, "f32", "cpu", "a test", DataRecord::of(&data)?);
            RunFolder::create(&path, config, &record)?
        };
        let validation = Some(self.set("val", None));
        let seed = config.run.seed;
        let plan = Plan {
            config: config.clone(),
            model: model.clone(),
            data,
            validation,
            device: device.clone(),
            latents: None,
            stop,
        };
        let mut read = |name: &str| Ok(initial(&model, name, seed).expect("a parameter"));
        Trainer::new(plan, folder, resume, &mut read).map(|(trainer, warnings)| {
            assert!(warnings.is_empty(), "{warnings:?}");
            trainer
        })
    }

    /// Trains to the end; returns why it ended and the metrics.
    pub fn run(&self, run: &str, config: &TrainConfig) -> (End, Vec<Record>) {
        self.run_on(run, config, &cpu(), false)
    }

    pub fn run_on(&self, run: &str, config: &TrainConfig, device: &Device, resume: bool) -> (End, Vec<Record>) {
        let mut trainer = self.trainer(run, config, device, resume).unwrap();
        let mut records = Vec::new();
        let end = trainer.run(&mut |_, record| records.push(record.clone())).unwrap();
        (end, records)
    }

    /// The bytes of the tensors of a checkpoint, by group.
    pub fn tensors(&self, run: &str, step: u64) -> Vec<(String, Vec<u8>)> {
        let folder = self.path(run).join(format!("checkpoints/step-{step:08}"));
        ["weights", "average", "mean", "square"]
            .map(|group| (group.to_string(), std::fs::read(folder.join(format!("{group}.safetensors"))).unwrap()))
            .into()
    }
}

/// Settings with lines of TOML before those of [`SMALL`]: `section.key = value`.
pub fn settings(changes: &[&str]) -> TrainConfig {
    let mut table: toml::Table = SMALL.parse().unwrap();
    for change in changes {
        let (path, value) = change.split_once('=').unwrap();
        let (section, key) = path.trim().split_once('.').unwrap();
        let value: toml::Table = format!("v = {value}").parse().unwrap();
        let section = table.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
        section.insert(key.to_string(), value["v"].clone());
    }
    TrainConfig::from_table(&table).unwrap()
}

/// The training losses of the metrics.
pub fn losses(records: &[Record]) -> Vec<f64> {
    let loss = |r: &Record| match r {
        Record::Train { loss, .. } => Some(*loss),
        _ => None,
    };
    records.iter().filter_map(loss).collect()
}
