//! What is looked at on the way: the loss on images that are not trained on, and samples of the model as it stands.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::data::{DataSet, Loader};
use crate::error::{Error, Result};
use crate::flow::diffusion::DiffusionSolver;
use crate::flow::run::{Job, Noise, auto_batch, draw};
use crate::flow::sampler::{Sampler, SamplerOptions};
use crate::flow::schedule::{Schedule, TimeConvention};
use crate::io::{GridPng, write_grid_png};
use crate::models::Model;
use crate::models::config::{ModelConfig, Prediction};
use crate::models::export::Parameters;
use crate::models::parameters::Parameter;
use crate::models::sampling::Sampling;
use crate::tensor::DType;
use crate::train::config::{FlowSection, RunSection};
use crate::train::examples::{ExampleRule, Noising};
use crate::train::learner::{BatchOf, Learner};
use crate::train::parameters::ParameterRows;

/// Seed of the noise and the times that validation images always get, whatever the run's own seed.
const SEED: u64 = 0x7661_6c69_6461_7465;

/// Mean loss over up to `most` images of `set`, at times of uniform density, each with the noise and the time that it has
/// in every validation of every run; and how many images there were.
///
/// # Errors
/// As of [`Learner::losses`] and [`Loader`].
pub fn validation_loss(
    learner: &mut Learner,
    set: &Arc<DataSet>,
    most: usize,
    threads: usize,
    null: Option<u32>,
) -> Result<(f64, u64)> {
    let size = learner.batch();
    let flow = FlowSection { label_dropout: 0.0, ..FlowSection::default() };
    let rule = ExampleRule { seed: SEED, flow, noising: Noising::of(learner.config()), null };
    let parameters = ParameterRows::of(set, &learner.config().parameters, 0.0)?;
    let mut loader = Loader::in_order(set.clone(), size, threads)?;
    let mut seen = 0;
    let mut next = || {
        if seen >= most {
            return None;
        }
        let batch = match loader.next()? {
            Ok(batch) => batch,
            Err(e) => return Some(Err(e)),
        };
        let images = batch.labels.len().min(most - seen);
        let mut examples = rule.examples(&batch.images, &batch.labels, seen as u64);
        let per_image = examples.x.len() / batch.labels.len();
        // The memory holds whole batches: what is missing from the last one does not count.
        examples.x.resize(size * per_image, 0.0);
        examples.target.resize(size * per_image, 0.0);
        examples.times.resize(size, 0.5);
        examples.labels.resize(size, 0);
        if let Some(rows) = &parameters {
            rows.add(&rule, &batch.indices, seen as u64, &mut examples);
            rows.pad(size, &mut examples);
        }
        seen += images;
        Some(Ok(BatchOf { examples, images }))
    };
    let losses = learner.losses(&mut next)?;
    Ok((losses.iter().sum::<f64>() / losses.len().max(1) as f64, losses.len() as u64))
}

/// The `steps` steps that the model is sampled by unless the user says otherwise.
fn own_schedule(config: &ModelConfig, steps: usize) -> Result<Schedule> {
    let Sampling { time_shift, solver, diffusion } = config.sampling;
    match config.prediction {
        Prediction::Velocity => Schedule::shifted(solver, steps, TimeConvention::Train, time_shift)
            .ok_or_else(|| Error::Runtime(format!("no schedule of {steps} steps"))),
        prediction => Schedule::diffusion(DiffusionSolver::Ddim { eta: 0.0 }, steps, prediction, &diffusion)
            .map_err(|reason| Error::usage(format!("[run] sample_steps: {reason}"))),
    }
}

/// A grid of samples from noise that depends on the run's seed alone; continuous parameters have the means of the training
/// set.
///
/// # Errors
/// The sampler's; [`Error::Output`]; [`Error::Interrupted`].
pub fn sample_grid(learner: &Learner, run: &RunSection, stop: fn() -> bool, to: &Path) -> Result<()> {
    let (config, device) = (learner.config(), learner.device());
    let parameters = Parameters::new("the model in training", learner.result()?);
    let model = Model::load(config.clone(), &parameters, device, DType::best(device))?;
    let schedule = own_schedule(config, run.sample_steps)?;
    let batch = auto_batch(device, config, run.sample_images, false);
    let options = SamplerOptions { guidance: 1.0, clamp: true };
    let typical: Vec<f64> = config.parameters.iter().map(Parameter::typical).collect();
    let mut sampler = match typical.is_empty() {
        true => Sampler::new(&model, &schedule, batch, options)?,
        false => Sampler::with_parameters(&model, &schedule, batch, options, &typical)?,
    };
    let classes: Vec<usize> = (0..config.classes.as_ref().map_or(0, |c| c.names.len())).collect();
    let job = Job { noise: Noise::Seed(run.seed), first: 0, images: run.sample_images, classes: &classes };
    let mut images = Vec::new();
    draw(&mut sampler, &job, &mut |batch| {
        images.extend_from_slice(batch);
        Ok(if stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    if stop() {
        return Err(Error::Interrupted("samples were left unfinished".into()));
    }
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::output(folder, e))?;
    }
    let (channels, size, range) = (config.in_channels, config.image_size, config.value_range);
    let grid = GridPng {
        images: &images,
        n: run.sample_images,
        channels,
        height: size,
        width: size,
        range,
        columns: None,
        zoom: None,
    };
    write_grid_png(to, &grid).map(|_| ())
}
