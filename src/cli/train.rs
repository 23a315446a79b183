//! `arclet train`: trains a model from a file of settings, or goes on with a run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arclet::data::{DataSet, splits};
use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::models::autoencoder_kl::latents::LatentSpace;
use arclet::models::config::ModelConfig;
use arclet::models::parameters::Parameter;
use arclet::models::specs;
use arclet::models::training::initial;
use arclet::tensor::DType;
use arclet::train::config::{ModelPlan, Precision};
use arclet::train::folder::{DataRecord, InitRecord, RunRecord};
use arclet::train::latents::{encoded, is_measured, measure};
use arclet::train::metrics::Record;
use arclet::train::parameters;
use arclet::train::trainer::{End, Plan, Trainer};
use arclet::train::{RunFolder, TrainConfig};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::model::{Source, Weights};
use super::options::{ComputeArgs, DTypeChoice, ReportArgs};
use super::{device, interrupt, report};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet train --config configs/lens-dit-s.toml --data lenses --minutes 60 --out run
  arclet train --resume --out run --steps 20000";

/// Part of a folder that is validated on where nothing else is said.
const VALIDATION: &str = "val";

/// Trains a flow-matching or diffusion model, with a table [autoencoder] in the settings in the latents of an auto-encoder that is
/// trained first.
///
/// The run folder gets the model (which `sample --model` takes), checkpoints, metrics.jsonl, a picture of the losses,
/// samples on the way, and all that is needed to repeat the run. Ctrl-C saves and ends; --resume goes on exactly there.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// Settings [default: those of the embedded model's shape; with --resume those of the run]
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Images to train on: a folder of classes, or a file; goes before the settings'
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Ends the run after so many minutes; goes before the settings'
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Ends the run after so many steps; goes before the settings'
    #[arg(long, value_name = "S")]
    steps: Option<u64>,
    /// Seed of everything random; goes before the settings'
    #[arg(long, value_name = "S", conflicts_with = "resume")]
    seed: Option<u64>,
    /// Model to go on from, instead of a new one: a path or the name of a built-in model
    #[arg(long, value_name = "PATH|NAME", conflicts_with = "resume")]
    init: Option<String>,
    /// Folder of the run
    #[arg(long, value_name = "DIR", default_value = "run")]
    out: PathBuf,
    /// Go on with the run in --out from its newest checkpoint
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Trains.
///
/// # Errors
/// Every kind: see the README for the exit codes.
pub fn run(args: &TrainArgs) -> Result<()> {
    interrupt::listen()?;
    let quiet = args.report.quiet;
    if !args.resume {
        RunFolder::refuse_occupied(&args.out)?;
    }
    let before = if args.resume { Some(RunFolder::resume(&args.out)?) } else { None };
    let config = settings(args, before.as_ref().map(|(_, config, _)| config))?;
    let source = match &config.model {
        ModelPlan::FineTune { init } => Some(Source::open(Some(Path::new(init)))?),
        ModelPlan::New(_) => None,
    };
    let weights = source.as_ref().map(|source| source.sampled_weights(quiet)).transpose()?;
    weights.as_ref().map_or(Ok(()), refuse_models_of_latents)?;
    let init = weights.as_ref().map(Weights::config);
    // What a model has learned to be asked for stays as it is.
    let fixed = match (&before, init) {
        (Some((_, _, then)), _) => Some(("the run", then.parameters.clone())),
        (None, Some(init)) if !init.parameters.is_empty() => Some(("the model to go on from", init.parameters.clone())),
        _ => None,
    };
    let names = parameter_names(&config, fixed.as_ref())?;
    let (data, validation) = open_data(&config, init, &names)?;
    let range = config.data.value_range();
    let mut model = match (&config.model, &config.autoencoder, &weights) {
        (ModelPlan::New(new), None, _) => new.config(data.classes(), range),
        (ModelPlan::New(new), Some(autoencoder), _) => autoencoder.latent_config(new, data.classes(), range),
        (_, _, Some(weights)) => weights.config().clone(),
        _ => return Err(Error::Runtime("a model to go on from was not opened".into())),
    };
    model.parameters = match fixed {
        Some((_, parameters)) => parameters,
        None => parameters::fit(&data)?,
    };
    config.flow.apply(&mut model, source.is_none()).map_err(Error::usage)?;
    model.check().map_err(Error::usage)?;
    let device = device::open(&args.compute, quiet)?;
    if config.autoencoder.is_some() && matches!(device, Device::Cuda(_)) {
        return Err(Error::usage("the auto-encoder of [autoencoder] runs on the CPU alone: --device cpu expected"));
    }

    let mut record = record(&config, &device, &data, validation.as_deref(), source.as_ref())?;
    record.parameters.clone_from(&model.parameters);
    let folder = match before {
        None => RunFolder::create(&args.out, &config, &record)?,
        Some((folder, _, then)) => {
            if let Some(difference) = then.data.difference(&record.data) {
                report::note(quiet, format!("the data changed since the run began: {difference}"));
            }
            folder.write_config(&config)?;
            folder
        }
    };
    let (first, config) = config.stages();
    let (mut data, mut validation, mut latents) = (data, validation, None);
    if let Some(first) = first {
        let stage = Stage { run: &folder, data: &data, validation: validation.as_ref(), device: &device };
        stage.train(first, args.resume, quiet)?;
        let threads = config.data.threads;
        latents = LatentSpace::of(&model, folder.path(), &device, DType::F32)?;
        if let Some(space) = &latents {
            let encode = |set: &Arc<DataSet>| encoded(space, set, threads, interrupt::requested);
            (data, validation) = (encode(&data)?, validation.as_ref().map(encode).transpose()?);
        }
    }
    let seed = config.run.seed;
    // Parameters that a model to go on from gets anew begin as those of a new one.
    let learned = |weights: &Weights, name: &str| specs(weights.config()).iter().any(|spec| spec.name == name);
    let mut read = |name: &str| match &weights {
        Some(weights) if learned(weights, name) => weights.source().read(name),
        _ => initial(&model, name, seed).ok_or_else(|| no_parameter(name)),
    };
    let plan = Plan { config, model: model.clone(), data, validation, device, latents, stop: interrupt::requested };
    let (mut trainer, warnings) = Trainer::new(plan, folder, args.resume, &mut read)?;
    warnings.iter().for_each(|warning| report::note(quiet, warning));
    let end = train(&mut trainer, &model, quiet)?;
    if end == End::Patience {
        report::note(quiet, "ended early: the validation loss does not fall any more; the model is the best one");
    }
    let (steps, images, seconds) = (trainer.steps(), trainer.images(), trainer.seconds());
    if args.report.json {
        report::print_json(&json!({
            "out": args.out, "steps": steps, "images": images, "seconds": seconds, "validation_loss": trainer.best(),
            "ended": if end == End::Patience { "patience" } else { "done" },
        }))?;
    }
    let rate = images as f64 / seconds.max(1e-9);
    report::note(quiet, format!("{steps} steps, {rate:.1} images/s; the model is in {}", args.out.display()));
    Ok(())
}

/// Describes a run and carries it out.
fn train(trainer: &mut Trainer, model: &ModelConfig, quiet: bool) -> Result<End> {
    describe(trainer, model, quiet);
    let bar = progress_bar(quiet);
    let end = trainer.run(&mut |trainer, record| show(trainer, record, &bar, quiet));
    bar.finish_and_clear();
    end
}

/// The first stage of a run in latents.
struct Stage<'a> {
    run: &'a RunFolder,
    data: &'a Arc<DataSet>,
    validation: Option<&'a Arc<DataSet>>,
    device: &'a Device,
}

impl Stage<'_> {
    /// Trains the auto-encoder and measures its latents, unless that is done.
    fn train(&self, config: TrainConfig, resume: bool, quiet: bool) -> Result<()> {
        let folder = self.run.autoencoder()?;
        let path = folder.path().to_path_buf();
        if is_measured(&path)? {
            return Ok(());
        }
        let (ModelPlan::New(new), Some(section)) = (&config.model, &config.autoencoder) else {
            return Err(Error::Runtime("no auto-encoder to train".into()));
        };
        let (model, seed) = (section.config(new, config.data.value_range()), config.run.seed);
        let threads = config.data.threads;
        let mut read = |name: &str| initial(&model, name, seed).ok_or_else(|| no_parameter(name));
        let plan = Plan {
            config,
            model: model.clone(),
            data: self.data.clone(),
            validation: self.validation.cloned(),
            device: self.device.clone(),
            latents: None,
            stop: interrupt::requested,
        };
        let (mut trainer, warnings) = Trainer::new(plan, folder, resume, &mut read)?;
        warnings.iter().for_each(|warning| report::note(quiet, warning));
        train(&mut trainer, &model, quiet)?;
        let [shift, scale] = measure(&path, self.data, self.device, threads, interrupt::requested)?;
        let (steps, place) = (trainer.steps(), path.display());
        report::note(
            quiet,
            format!("{steps} steps; the auto-encoder is in {place}: scaling factor {scale:.4}, shift {shift:.4}"),
        );
        Ok(())
    }
}

fn no_parameter(name: &str) -> Error {
    Error::Runtime(format!("no parameter {name}"))
}

/// Settings of the file or of the run, with the flags before them.
fn settings(args: &TrainArgs, before: Option<&TrainConfig>) -> Result<TrainConfig> {
    let mut config = match (&args.config, before) {
        (Some(path), _) => TrainConfig::read(path)?,
        (None, Some(config)) => config.clone(),
        (None, None) => TrainConfig::default(),
    };
    config.data.path = args.data.clone().or(config.data.path);
    // A flag says what ends the run; of the settings, what the flags do not say.
    if args.minutes.is_some() || args.steps.is_some() {
        (config.run.minutes, config.run.steps) = (args.minutes, args.steps);
    }
    config.run.seed = args.seed.unwrap_or(config.run.seed);
    if let Some(init) = &args.init {
        config.model = ModelPlan::FineTune { init: init.clone() };
    }
    config.precision.dtype = match args.compute.dtype {
        DTypeChoice::Auto => config.precision.dtype,
        DTypeChoice::F32 => Precision::F32,
        DTypeChoice::F16 => Precision::F16,
        DTypeChoice::Bf16 => Precision::Bf16,
    };
    config.check().map_err(Error::usage)?;
    Ok(config)
}

/// Names of the continuous parameters. The settings may repeat those of a run or a model that goes on, but not change them.
fn parameter_names(config: &TrainConfig, fixed: Option<&(&str, Vec<Parameter>)>) -> Result<Vec<String>> {
    let asked = &config.conditions.parameters;
    let Some((owner, parameters)) = fixed else { return Ok(asked.clone()) };
    let names: Vec<String> = parameters.iter().map(|parameter| parameter.name.clone()).collect();
    if asked.is_empty() || *asked == names {
        return Ok(names);
    }
    let (asked, names) = (asked.join(", "), names.join(", "));
    Err(Error::usage(format!("[conditions] parameters are [{asked}], but {owner} takes [{names}]")))
}

/// Images to train and to validate on; of a model that has classes, its own, found by name.
fn open_data(
    config: &TrainConfig,
    init: Option<&ModelConfig>,
    parameters: &[String],
) -> Result<(Arc<DataSet>, Option<Arc<DataSet>>)> {
    let section = &config.data;
    let path = section.path.as_ref().ok_or_else(|| {
        Error::usage("no images to train on: expected --data PATH, or \"path\" in the table [data] of the settings")
    })?;
    let mut options = section.source();
    if let Some(classes) = init.and_then(|model| model.classes.as_ref()) {
        options.classes = options.classes.or_else(|| Some(classes.names.clone()));
    }
    let open = |path: &str, options| {
        DataSet::open(path, options)?.transformed(section.transform.clone())?.with_parameters(parameters)
    };
    let data = open(path, &options)?;
    let mut held_out = section.validation_source(data.classes());
    let elsewhere = section.validation_path.as_ref();
    if elsewhere.is_none() && held_out.split.is_none() {
        held_out.split = splits(path)?.into_iter().find(|split| split == VALIDATION);
    }
    let from = elsewhere.or_else(|| held_out.split.as_ref().map(|_| path));
    let validation = from.map(|from| open(from, &held_out)).transpose()?;
    Ok((Arc::new(data), validation.map(Arc::new)))
}

/// What is trained makes images.
fn refuse_models_of_latents(weights: &Weights) -> Result<()> {
    if weights.config().autoencoder.is_some() {
        let reason = "found a model of an auto-encoder's latents, expected one of images";
        return Err(Error::input(weights.source().origin(), reason));
    }
    Ok(())
}

fn record(
    config: &TrainConfig,
    device: &Device,
    data: &DataSet,
    validation: Option<&DataSet>,
    init: Option<&Source>,
) -> Result<RunRecord> {
    let (seed, dtype) = (config.run.seed, config.precision.dtype.dtype());
    let data = device.run(|| DataRecord::of(data))?;
    Ok(RunRecord {
        validation: validation.map(|set| device.run(|| DataRecord::of(set))).transpose()?,
        init: init.map(|source| InitRecord { name: source.name(), sha256: source.sha256() }),
        ..RunRecord::new(seed, dtype.name(), &device.name(), &device.description(), data)
    })
}

fn describe(trainer: &Trainer, model: &ModelConfig, quiet: bool) {
    let parameters: usize = specs(model).iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let (batch, times) = trainer.batch();
    let often = if times > 1 { format!(", {times} times a step") } else { String::new() };
    report::note(
        quiet,
        format!(
            "{}: {:.1} million parameters, {batch} images at a time{often}",
            model.architecture().name(),
            parameters as f64 / 1e6
        ),
    );
    let [kept, otherwise] = trainer.activation_bytes();
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    if kept < otherwise {
        report::note(
            quiet,
            format!(
                "checkpoint_activations: blocks keep {:.0} MB instead of {:.0} MB",
                megabytes(kept),
                megabytes(otherwise)
            ),
        );
    }
    if trainer.steps() > 0 {
        report::note(quiet, format!("goes on from step {}", trainer.steps()));
    }
}

fn progress_bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg}");
    ProgressBar::new(1000).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A line of the metrics: in the bar on a terminal, else as a line.
fn show(trainer: &Trainer, record: &Record, bar: &ProgressBar, quiet: bool) {
    let progress = trainer.progress();
    bar.set_position((1000.0 * progress) as u64);
    let line = match record {
        Record::Train { step, loss, learning_rate, gradient_norm, images_per_s, .. } => {
            let left = trainer.seconds() * (1.0 - progress) / progress.max(1e-9);
            let line = format!(
                "step {step}  loss {loss:.4}  lr {learning_rate:.2e}  |g| {gradient_norm:.3}  {images_per_s:.1} images/s  {} left",
                clock(left)
            );
            if !bar.is_hidden() {
                bar.set_message(line);
                return;
            }
            line
        }
        Record::Validation { step, loss, best, .. } => {
            format!("step {step}  validation loss {loss:.5}{}", if *best { "  (best)" } else { "" })
        }
        Record::Event { step, message } => format!("step {step}  {message}"),
    };
    bar.suspend(|| report::note(quiet, line));
}

/// Seconds as a person reads them.
fn clock(seconds: f64) -> String {
    let seconds = seconds.min(3.6e8) as u64;
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}
