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
use crate::models::autoencoder_kl::latents::LatentSpace;
use crate::models::config::{ModelConfig, Prediction};
use crate::models::export::Parameters;
use crate::models::parameters::Parameter;
use crate::models::sampling::Sampling;
use crate::models::training::Stop;
use crate::tensor::DType;
use crate::train::config::RunSection;
use crate::train::learner::{BatchOf, Learner};
use crate::train::objective::Objective;

/// Mean loss over up to `most` images of `set`, each an example as `objective` has it; and how many images there were.
///
/// # Errors
/// As of [`Learner::losses`] and [`Loader`].
pub fn validation_loss(
    learner: &mut Learner,
    set: &Arc<DataSet>,
    most: usize,
    threads: usize,
    objective: &Objective,
) -> Result<(f64, u64)> {
    let size = learner.batch();
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
        let mut examples = objective.given(batch, seen as u64);
        // The memory holds whole batches: what is missing from the last one does not count.
        objective.pad(&mut examples, size);
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
/// set. Latents are shown as the images that `latents` makes of them.
///
/// # Errors
/// The sampler's; [`Error::Output`]; [`Error::Interrupted`].
pub fn sample_grid(
    learner: &Learner,
    run: &RunSection,
    latents: Option<&LatentSpace>,
    stop: Stop,
    to: &Path,
) -> Result<()> {
    let (config, device) = (learner.config(), learner.device());
    let parameters = Parameters::new("the model in training", learner.result()?);
    let model = Model::load(config.clone(), &parameters, device, DType::best(device))?;
    let schedule = own_schedule(config, run.sample_steps)?;
    let batch = auto_batch(device, config, run.sample_images, false);
    let options = SamplerOptions { guidance: 1.0, clamp: latents.is_none() };
    let typical: Vec<f64> = config.parameters.iter().map(Parameter::typical).collect();
    let mut sampler = match typical.is_empty() {
        true => Sampler::new(&model, &schedule, batch, options)?,
        false => Sampler::with_parameters(&model, &schedule, batch, options, &typical)?,
    };
    let classes: Vec<usize> = (0..config.classes.as_ref().map_or(0, |c| c.names.len())).collect();
    let job = Job { noise: Noise::Seed(run.seed), first: 0, images: run.sample_images, classes: &classes };
    let mut images = Vec::new();
    draw(&mut sampler, &job, &mut |batch| {
        match latents {
            None => images.extend_from_slice(batch),
            Some(latents) => images.extend(latents.decode(batch)?),
        }
        Ok(if stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    if stop() {
        return Err(Error::Interrupted("samples were left unfinished".into()));
    }
    let shape = latents.map_or([config.in_channels, config.image_size, config.image_size], LatentSpace::image);
    write_grid(&images, shape, config.value_range, None, to)
}

/// The first images of `set` above what the auto-encoder in training makes of them.
///
/// # Errors
/// [`Error::Input`] for a damaged image; the operations'; [`Error::Output`].
pub fn reconstruction_grid(learner: &Learner, run: &RunSection, set: &DataSet, to: &Path) -> Result<()> {
    let config = learner.config();
    let parameters = Parameters::new("the auto-encoder in training", learner.result()?);
    let space = LatentSpace::new(config, &parameters, learner.device(), DType::F32)?;
    let (mut images, mut rebuilt) = (Vec::new(), Vec::new());
    let count = run.sample_images.min(set.len());
    for index in 0..count {
        let image = set.take(index, None)?.pixels;
        rebuilt.extend(space.decode(&space.encode(&image)?)?);
        images.extend(image);
    }
    images.extend(rebuilt);
    write_grid(&images, space.image(), config.value_range, Some(count), to)
}

fn write_grid(
    images: &[f32],
    [channels, height, width]: [usize; 3],
    range: (f32, f32),
    columns: Option<usize>,
    to: &Path,
) -> Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::output(folder, e))?;
    }
    let n = images.len() / (channels * height * width);
    let grid = GridPng { images, n, channels, height, width, range, columns, zoom: None };
    write_grid_png(to, &grid).map(|_| ())
}
