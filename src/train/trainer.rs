//! The loop: batches in, steps, validations, samples, checkpoints, until steps, time or patience are over.
//!
//! What a run has become after N steps follows from its settings, its data and N, bit for bit on one CPU: not from how often
//! it was stopped and went on, and not from the number of threads. Settings in minutes are the exception, because the
//! learning rate then follows the clock.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::data::{DataSet, Loader, LoaderState};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::autoencoder_kl::latents::LatentSpace;
use crate::models::config::{Architecture, ModelConfig};
use crate::models::export::{Parameters, write_model};
use crate::nn::training::Keeping;
use crate::tensor::DType;
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::config::{Decay, TrainConfig};
use crate::train::curve::write_curve;
use crate::train::folder::RunFolder;
use crate::train::learner::{Learner, LearnerOptions};
use crate::train::metrics::{Losses, Metrics, Record};
use crate::train::objective::Objective;
use crate::train::optimizer::{EmaRule, LossScale, StepInputs, step_values};
use crate::train::schedule::{Schedule, Shape};
use crate::train::watch::{reconstruction_grid, sample_grid, validation_loss};

/// What a run starts from.
pub struct Plan {
    /// Settings.
    pub config: TrainConfig,
    /// The model; its classes are those of the data, by name.
    pub model: ModelConfig,
    /// Images to train on, transformed.
    pub data: Arc<DataSet>,
    /// Images to validate on, transformed, their labels those of the training data.
    pub validation: Option<Arc<DataSet>>,
    /// Where to compute.
    pub device: Device,
    /// Of a model of latents: what makes images of them.
    pub latents: Option<LatentSpace>,
    /// Whether to end early: asked in front of every block of every pass.
    pub stop: fn() -> bool,
}

/// Sees each line of the metrics.
pub type Observe<'a> = &'a mut dyn FnMut(&Trainer, &Record);

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps were made, or the time is over.
    Done,
    /// So many validations in a row brought no better loss.
    Patience,
}

/// A run.
pub struct Trainer {
    plan: Plan,
    folder: RunFolder,
    metrics: Metrics,
    learner: Learner,
    loader: Loader,
    objective: Objective,
    rates: Schedule,
    average: EmaRule,
    state: State,
    /// Step of the last checkpoint.
    saved: u64,
    since: Instant,
}

/// What a checkpoint holds beside tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Steps made, those that were skipped not among them.
    step: u64,
    /// Images seen.
    images: u64,
    /// Seconds of training.
    seconds: f64,
    loader: LoaderState,
    /// Images at a time, and how often before a step.
    batch: usize,
    accumulate: usize,
    /// Of f16 only.
    scale: Option<LossScale>,
    /// Of validations.
    best: Option<f64>,
    without_better: u64,
    /// Steps of the last validation and of the last samples.
    validated: u64,
    sampled: u64,
    /// Since the last line of the log: sum of losses, steps, images and seconds.
    recent: Recent,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recent {
    loss: f64,
    steps: u64,
    images: u64,
    seconds: f64,
}

/// A step that was made.
#[derive(Clone, Copy, Debug)]
struct Made {
    norm: f64,
    finite: bool,
    rate: f64,
}

impl Trainer {
    /// A run in `folder`; with `resume` it goes on from the newest checkpoint there, of which warnings come back too, else
    /// it begins with the parameters that `read` gives by name.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::Input`] for settings, data, model and checkpoint that do not fit each other;
    /// [`Error::OutOfMemory`]; [`Error::Output`].
    pub fn new(
        plan: Plan,
        folder: RunFolder,
        resume: bool,
        read: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<(Self, Vec<String>)> {
        let config = &plan.config;
        let found = if resume { checkpoint::newest(folder.path())? } else { None };
        let dtype = config.precision.dtype.dtype();
        let options = LearnerOptions {
            optimizer: &config.optimizer,
            dtype,
            keeping: Keeping {
                recompute: config.memory.checkpoint_activations,
                dropout: config.regularisation.dropout,
                seed: config.run.seed,
            },
            stop: plan.stop,
        };
        let objective = Objective::of_run(config, &plan.model, &plan.data)?;
        let mut learner = Learner::new(&plan.model, &plan.device, options, read)?;
        let seed = config.run.seed;
        let mut loader = Loader::new(plan.data.clone(), config.data.batch_size, seed, config.data.threads)?;
        let (m, [c, h, w]) = (&plan.model, loader.image_shape());
        if [c, h, w] != [m.in_channels, m.image_size, m.image_size] {
            let (size, channels) = (m.image_size, m.in_channels);
            return Err(Error::usage(format!(
                "{}: found images of {c} x {h} x {w} after the transform, expected {channels} x {size} x {size} as the model \
                 takes; \"channels\" and the transform \"resize\" make them fit",
                plan.data.path().display()
            )));
        }
        let (mut warnings, mut state) = (Vec::new(), None);
        if let Some(found) = found {
            let problem = |reason: String| Error::input(&found.path, reason);
            let saved: State = serde_json::from_value(found.checkpoint.state.clone())
                .map_err(|e| problem(format!("state of the run: {e}")))?;
            learner.restore(&found.checkpoint.groups).map_err(|e| problem(e.to_string()))?;
            loader.set_batch(saved.batch).and_then(|()| loader.resume(saved.loader))?;
            warnings = found.warnings;
            state = Some(saved);
        }
        let state = state.unwrap_or_else(|| State {
            step: 0,
            images: 0,
            seconds: 0.0,
            loader: loader.state(),
            batch: config.data.batch_size,
            accumulate: config.optimizer.accumulate,
            scale: (dtype == DType::F16).then(|| LossScale::new(config.precision.loss_scale)),
            best: None,
            without_better: 0,
            validated: 0,
            sampled: 0,
            recent: Recent::default(),
        });
        let (metrics, _) = match resume {
            true => Metrics::resume(folder.metrics(), state.step)?,
            false => (Metrics::create(folder.metrics())?, 0),
        };
        let optimizer = &config.optimizer;
        let shape = match optimizer.schedule {
            Decay::Constant => Shape::Constant,
            Decay::Cosine => Shape::Cosine,
        };
        let rates = Schedule { warmup: optimizer.warmup_steps, shape, floor: optimizer.min_lr_ratio };
        let mut trainer = Self {
            folder,
            metrics,
            learner,
            loader,
            objective,
            rates,
            average: EmaRule::Capped { decay: optimizer.ema_decay },
            saved: state.step,
            state,
            since: Instant::now(),
            plan,
        };
        trainer.fit(None)?;
        Ok((trainer, warnings))
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.state.step
    }

    /// Images at a time, and how many times before a step.
    pub fn batch(&self) -> (usize, usize) {
        (self.state.batch, self.state.accumulate)
    }

    /// How much of the run is over, from 0 to 1.
    pub fn progress(&self) -> f64 {
        self.plan.config.run.progress(self.state.step, self.seconds())
    }

    /// Bytes that the blocks keep for their way back, and what they would keep without `checkpoint_activations`.
    pub fn activation_bytes(&self) -> [usize; 2] {
        self.learner.activation_bytes()
    }

    /// The best validation loss so far.
    pub fn best(&self) -> Option<f64> {
        self.state.best
    }

    /// Images seen.
    pub fn images(&self) -> u64 {
        self.state.images
    }

    /// Seconds of training, those before a resume included.
    pub fn seconds(&self) -> f64 {
        self.state.seconds + self.since.elapsed().as_secs_f64()
    }

    /// Trains to the end. `observe` sees what is written to the metrics.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once everything is saved; [`Error::Runtime`] for a loss that is not finite, with the
    /// checkpoints as they were; those of data, device and disk.
    pub fn run(&mut self, observe: Observe) -> Result<End> {
        let end = loop {
            match self.advance(observe) {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(error) => return Err(self.keep_work(error)?),
            }
        };
        if let Err(error) = self.finish(observe) {
            return Err(self.keep_work(error)?);
        }
        Ok(end)
    }

    /// Saves what an interruption would lose, and says where it is.
    fn keep_work(&mut self, error: Error) -> Result<Error> {
        let Error::Interrupted(_) = error else { return Ok(error) };
        let path = self.save()?;
        Ok(Error::Interrupted(format!(
            "step {} is saved in {}; --resume goes on from it",
            self.state.step,
            path.display()
        )))
    }

    /// What is due after the steps so far, then one more, unless the run is over.
    fn advance(&mut self, observe: Observe) -> Result<Option<End>> {
        let run = self.plan.config.run.clone();
        let step = self.state.step;
        let due = |every: u64, done: u64| every > 0 && done < step && step.is_multiple_of(every);
        if due(run.validate_every, self.state.validated) {
            self.validate(observe)?;
        }
        if due(run.sample_every, self.state.sampled) {
            self.sample()?;
        }
        if due(run.save_every, self.saved) {
            self.save()?;
        }
        if run.patience > 0 && self.state.without_better >= run.patience {
            return Ok(Some(End::Patience));
        }
        if self.progress() >= 1.0 {
            return Ok(Some(End::Done));
        }
        let made = self.step(observe)?;
        if made.finite && self.state.step.is_multiple_of(run.log_every) {
            self.log(&made, observe)?;
        }
        Ok(None)
    }

    fn finish(&mut self, observe: Observe) -> Result<()> {
        let (run, step) = (self.plan.config.run.clone(), self.state.step);
        let mut saved = self.saved == step;
        if run.validate_every > 0 && self.state.validated < step {
            self.validate(observe)?;
            saved = false;
        }
        if run.sample_every > 0 && self.state.sampled < step {
            self.sample()?;
            saved = false;
        }
        if !saved {
            self.save()?;
        }
        write_curve(self.folder.curve(), &Losses::read(self.folder.metrics())?)
    }

    /// One step, or the attempt at one that overflowed.
    fn step(&mut self, observe: Observe) -> Result<Made> {
        let start = self.loader.state();
        loop {
            let error = match self.attempt() {
                Ok(made) => return Ok(made),
                Err(error) => error,
            };
            // The images of this step come again, however it goes on.
            self.learner.clear()?;
            match error {
                Error::OutOfMemory { .. } if self.plan.config.memory.halve_batch => self.fit(Some(error))?,
                error => {
                    self.loader.resume(start)?;
                    return Err(error);
                }
            }
            self.loader.resume(start)?;
            let message = format!("out of memory: {} images at a time from here on", self.state.batch);
            self.note(message, observe)?;
        }
    }

    /// Makes memory for a batch; while there is too little, for half as many images, twice as often.
    fn fit(&mut self, mut error: Option<Error>) -> Result<()> {
        loop {
            match error {
                Some(error) if !self.plan.config.memory.halve_batch || self.state.batch % 2 == 1 => return Err(error),
                Some(_) => {
                    (self.state.batch, self.state.accumulate) = (self.state.batch / 2, 2 * self.state.accumulate)
                }
                None => {}
            }
            match self.learner.prepare(self.state.batch) {
                Err(e @ Error::OutOfMemory { .. }) => error = Some(e),
                other => {
                    other?;
                    return self.loader.set_batch(self.state.batch);
                }
            }
        }
    }

    fn attempt(&mut self) -> Result<Made> {
        let State { accumulate, batch, .. } = self.state;
        let mut loss = 0.0;
        for _ in 0..accumulate {
            let first = self.loader.state().position;
            let images = self.loader.next().ok_or_else(|| Error::Runtime("the data ended".into()))??;
            let examples = self.objective.given(images, first);
            let scale = self.loss_scale() / accumulate as f64;
            loss += self.learner.accumulate(examples.borrow(), scale, first as u32)? / accumulate as f64;
        }
        let step = self.state.step + 1;
        if !loss.is_finite() {
            return Err(Error::Runtime(format!(
                "the loss of step {step} is {loss}: training stopped, the last checkpoint is as it was; a lower \
                 learning_rate, a clip_norm or dtype \"f32\" may help"
            )));
        }
        let rate = self.rate();
        let inputs = StepInputs {
            lr: rate,
            loss_scale: self.loss_scale(),
            clip: Some(self.plan.config.optimizer.clip_norm).filter(|&norm| norm > 0.0),
            ema_decay: self.average.decay(step),
        };
        let report = self.learner.update(step_values(self.learner.rule(), step, inputs))?;
        self.judge(step, report.finite)?;
        if report.finite {
            let images = (batch * accumulate) as u64;
            self.state.step = step;
            self.state.images += images;
            let recent = &mut self.state.recent;
            (recent.loss, recent.steps, recent.images) = (recent.loss + loss, recent.steps + 1, recent.images + images);
        }
        Ok(Made { norm: report.norm, finite: report.finite, rate })
    }

    /// The learning rate of the next step.
    fn rate(&self) -> f64 {
        let (run, step) = (&self.plan.config.run, self.state.step);
        let factor = match (run.minutes, run.last_step()) {
            (None, Some(last)) => self.rates.factor(step, last),
            _ => self.rates.factor_of_progress(step, self.progress()),
        };
        self.plan.config.optimizer.learning_rate * factor
    }

    fn loss_scale(&self) -> f64 {
        self.state.scale.as_ref().map_or(1.0, LossScale::value)
    }

    /// Whether the run goes on after gradients that were finite or not.
    fn judge(&mut self, step: u64, finite: bool) -> Result<()> {
        let reason = match &mut self.state.scale {
            None if finite => return Ok(()),
            None => "is not finite",
            Some(scale) if !finite && scale.value() <= 1.0 => "overflows f16 at any loss scale",
            Some(scale) => {
                scale.update(finite);
                return Ok(());
            }
        };
        Err(Error::Runtime(format!(
            "the gradient of step {step} {reason}: training stopped, the last checkpoint is as it was"
        )))
    }

    fn log(&mut self, made: &Made, observe: Observe) -> Result<()> {
        let (recent, seconds) = (self.state.recent, self.seconds());
        let record = Record::Train {
            step: self.state.step,
            images: self.state.images,
            loss: recent.loss / recent.steps.max(1) as f64,
            learning_rate: made.rate,
            gradient_norm: made.norm,
            images_per_s: recent.images as f64 / (seconds - recent.seconds).max(1e-9),
            seconds,
            loss_scale: self.state.scale.as_ref().map(LossScale::value),
        };
        self.state.recent = Recent { seconds, ..Recent::default() };
        self.write(record, observe)
    }

    fn validate(&mut self, observe: Observe) -> Result<()> {
        let (run, threads) = (&self.plan.config.run, self.plan.config.data.threads);
        let (most, patience) = (run.validation_images, run.patience);
        if let Some(set) = self.plan.validation.clone().filter(|_| most > 0) {
            let objective = Objective::of_validation(&self.plan.config, &self.plan.model, &set)?;
            let (loss, images) = validation_loss(&mut self.learner, &set, most, threads, &objective)?;
            let best = self.state.best.is_none_or(|best| loss < best);
            self.state.without_better = if best { 0 } else { self.state.without_better + 1 };
            if best {
                self.state.best = Some(loss);
            }
            self.write(Record::Validation { step: self.state.step, images, loss, best }, observe)?;
            if best && patience > 0 {
                self.export()?;
            }
        }
        self.state.validated = self.state.step;
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        let path = self.folder.sample(self.state.step);
        let Plan { config, model, data, validation, latents, stop, .. } = &self.plan;
        match model.architecture() {
            Architecture::AutoencoderKl => {
                reconstruction_grid(&self.learner, &config.run, validation.as_ref().unwrap_or(data), &path)?
            }
            _ => sample_grid(&self.learner, &config.run, latents.as_ref(), *stop, &path)?,
        }
        self.state.sampled = self.state.step;
        Ok(())
    }

    fn note(&mut self, message: String, observe: Observe) -> Result<()> {
        self.write(Record::Event { step: self.state.step, message }, observe)
    }

    fn write(&mut self, record: Record, observe: Observe) -> Result<()> {
        self.metrics.append(&record)?;
        observe(self, &record);
        Ok(())
    }

    /// Saves a checkpoint, and the model where the last is the one to keep.
    fn save(&mut self) -> Result<std::path::PathBuf> {
        let state = State { seconds: self.seconds(), loader: self.loader.state(), ..self.state.clone() };
        let state = serde_json::to_value(state).map_err(|e| Error::Runtime(format!("state of the run: {e}")))?;
        let checkpoint = Checkpoint { state, groups: self.learner.groups()? };
        let path = checkpoint::save(self.folder.path(), self.state.step, &checkpoint, self.plan.config.run.keep)?;
        if self.plan.config.run.patience == 0 {
            self.export()?;
        }
        self.saved = self.state.step;
        Ok(path)
    }

    fn export(&self) -> Result<()> {
        let parameters = Parameters::new(self.folder.path(), self.learner.result()?);
        write_model(self.folder.path(), self.learner.config(), parameters.tensors())
    }
}
