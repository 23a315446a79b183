//! The sampling loop: noise in, images out, everything between on the device.

use super::diffusion::DiffusionSteps;
use super::schedule::{Schedule, Steps};
use crate::device::Graph;
use crate::error::{Error, Result};
use crate::models::batch::Batch;
use crate::models::config::Prediction;
use crate::models::{Condition, Conditions, Inputs, Model};
use crate::ops::diffusion::{self, DiffusionInputs, DiffusionOptions, diffusion_step, noise_key};
use crate::ops::noise::normal;
use crate::ops::solver::{SolverOptions, SolverState, advance, solver_state, solver_step, step_table};
use crate::tensor::{DType, Tensor};

/// How a trajectory is guided and ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Classifier-free guidance scale (Ho and Salimans, arXiv 2207.12598); 1 is off.
    pub guidance: f32,
    /// Whether images are clamped to the model's value range at the end.
    pub clamp: bool,
}

/// Most evaluations that are recorded as one graph. A graph of one evaluation has about a hundred nodes; a longer run
/// records one and launches it once per evaluation, which costs the host a launch each but takes no more memory.
pub const MAX_GRAPH_EVALUATIONS: usize = 200;

/// Draws batches of images from one model along one schedule. Buffers are allocated once; on a GPU the whole loop is
/// one graph, recorded when the sampler is made, or of more than [`MAX_GRAPH_EVALUATIONS`] one graph per evaluation.
pub struct Sampler<'m> {
    // Before the buffers that it reads, so that it goes first.
    graph: Option<Graph>,
    /// How often the graph is launched in a run.
    launches: usize,
    model: &'m Model,
    batch: usize,
    times: Vec<f64>,
    guided: bool,
    state: State,
    activations: Batch,
    steps: Tensor,
    counter: Tensor,
    /// Whether images have continuous parameters.
    parameters: bool,
    /// The different conditions of the last run, the one without class and parameters first when guided, and what follows
    /// from them.
    wanted: Vec<Condition>,
    conditions: Conditions,
    /// Which of `wanted` each image of the model's batch has.
    rows: Tensor,
}

/// The images on their way, and what the updates of the schedule need beside the table.
enum State {
    Flow(SolverState, SolverOptions),
    Diffusion {
        /// f32 whatever the model's type (f64 with an f64 model).
        x: Tensor,
        /// What the noise of the steps follows from.
        key: Tensor,
        options: DiffusionOptions,
    },
}

impl State {
    fn x(&self) -> &Tensor {
        match self {
            Self::Flow(state, _) => &state.x,
            Self::Diffusion { x, .. } => x,
        }
    }

    fn x_mut(&mut self) -> &mut Tensor {
        match self {
            Self::Flow(state, _) => &mut state.x,
            Self::Diffusion { x, .. } => x,
        }
    }
}

impl<'m> Sampler<'m> {
    /// A sampler of `batch` images at a time.
    ///
    /// # Errors
    /// [`Error::Usage`] for guidance on an unconditional model or by a scale that is not finite, for a schedule of another
    /// kind of model, and for a batch that is empty or too large to count; [`Error::Input`] for a model that cannot be
    /// sampled; [`Error::OutOfMemory`].
    pub fn new(model: &'m Model, schedule: &Schedule, batch: usize, options: SamplerOptions) -> Result<Self> {
        Self::with_graphs_of(Some(MAX_GRAPH_EVALUATIONS), model, schedule, batch, options)
    }

    /// The same for images that are asked for by continuous parameters: one value for each of those of the model. Guidance
    /// then leads away from the images without class and parameters.
    ///
    /// # Errors
    /// As [`Self::new`]; [`Error::Usage`] for another number of values, or one that the model cannot take.
    pub fn with_parameters(
        model: &'m Model,
        schedule: &Schedule,
        batch: usize,
        options: SamplerOptions,
        parameters: &[f64],
    ) -> Result<Self> {
        Self::build(Some(MAX_GRAPH_EVALUATIONS), model, schedule, batch, options, Some(parameters))
    }

    /// The same, where a run of more than `limit` evaluations records one evaluation and not the whole loop, or without
    /// a limit records nothing and launches each kernel by itself. The images do not depend on it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_graphs_of(
        limit: Option<usize>,
        model: &'m Model,
        schedule: &Schedule,
        batch: usize,
        options: SamplerOptions,
    ) -> Result<Self> {
        Self::build(limit, model, schedule, batch, options, None)
    }

    fn build(
        limit: Option<usize>,
        model: &'m Model,
        schedule: &Schedule,
        batch: usize,
        options: SamplerOptions,
        parameters: Option<&[f64]>,
    ) -> Result<Self> {
        let config = &model.config;
        if let Some(problem) = config.sampling_problem() {
            return Err(Error::input(&model.origin, problem));
        }
        let kind = match &schedule.steps {
            Steps::Flow(_) => Prediction::Velocity,
            Steps::Diffusion(steps) => steps.prediction,
        };
        if kind != config.prediction {
            let (found, origin) = (config.prediction.name(), model.origin.display());
            let expected = kind.name();
            return Err(Error::usage(format!("{origin} predicts {found}, this schedule is for {expected}")));
        }
        let variance = |steps: &DiffusionSteps| steps.rows.iter().any(|row| row.flags & diffusion::LEARNED != 0);
        if matches!(&schedule.steps, Steps::Diffusion(s) if variance(s))
            && config.out_channels != 2 * config.in_channels
        {
            let origin = model.origin.display();
            return Err(Error::usage(format!(
                "{origin} has no output channels for a variance, which this schedule reads"
            )));
        }
        if !options.guidance.is_finite() {
            return Err(Error::usage(format!("guidance scale {}: a finite number expected", options.guidance)));
        }
        let guided = options.guidance != 1.0;
        if guided && config.classes.is_none() && parameters.is_none() {
            return Err(Error::usage(format!(
                "guidance scale {}: {} is unconditional, a class-conditional model expected (1 is off)",
                options.guidance,
                model.origin.display()
            )));
        }
        if batch == 0 {
            return Err(Error::usage("the batch is 0, at least 1 expected"));
        }
        let device = &model.device;
        // Guidance runs the conditional and the unconditional model as one batch of twice the size.
        let model_batch = batch
            .checked_mul(if guided { 2 } else { 1 })
            .ok_or_else(|| Error::usage(format!("a batch of {batch} images is too large")))?;
        let shape = [batch, config.in_channels, config.image_size, config.image_size];
        // As many as one batch can differ in; a run with fewer repeats one. What has no classes is the same in every run.
        let given = Condition { label: 0, parameters: parameters.is_some() };
        let alone = guided && config.classes.is_none();
        let wanted = match alone {
            true => vec![Condition { parameters: false, ..given }, given],
            false => vec![given; config.label_rows().min(if guided { batch + 1 } else { batch })],
        };
        let row_of = |image: usize| u32::from(alone && image < batch);
        let guidance = guided.then_some(options.guidance);
        let clamp = options.clamp.then_some(config.value_range);
        let (state, steps) = match &schedule.steps {
            Steps::Flow(steps) => {
                let state = solver_state(device, model.dtype, &shape)?;
                (State::Flow(state, SolverOptions { guidance, clamp }), step_table(device, steps)?)
            }
            Steps::Diffusion(DiffusionSteps { rows, clip, guided_channels, .. }) => {
                let x = Tensor::zeros(device, model.dtype.wide(), &shape)?;
                let key = Tensor::zeros(device, DType::U32, &[4])?;
                let guided_channels = guided_channels.unwrap_or(config.in_channels);
                let options = DiffusionOptions { guidance, guided_channels, clip: *clip, clamp };
                (State::Diffusion { x, key, options }, diffusion::step_table(device, rows)?)
            }
        };
        let mut sampler = Self {
            batch,
            guided,
            state,
            activations: model.batch(model_batch)?,
            steps,
            counter: Tensor::from_u32(device, &[1], &[0])?,
            conditions: model.conditions_of(&schedule.times, &wanted, parameters)?,
            wanted,
            parameters: parameters.is_some(),
            rows: Tensor::from_u32(device, &[model_batch], &(0..model_batch).map(row_of).collect::<Vec<_>>())?,
            times: schedule.times.clone(),
            graph: None,
            launches: 0,
            model,
        };
        if let Some(limit) = limit.filter(|_| device.has_graphs()) {
            // Recording must not load code, so every kernel runs once before it, on a state that is all zeros.
            sampler.trajectory(1)?;
            device.synchronize()?;
            let evaluations = sampler.times.len();
            let (recorded, launches) = if evaluations <= limit { (evaluations, 1) } else { (1, evaluations) };
            sampler.graph = device.capture(|| sampler.trajectory(recorded))?;
            sampler.launches = launches;
        }
        Ok(sampler)
    }

    /// Number of images of a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Elements of one image: channels, height and width multiplied.
    pub fn image_len(&self) -> usize {
        self.state.x().len() / self.batch
    }

    /// Sets the starting noise, and that of the steps, to that of images `first`, `first + 1`, ... of `seed`.
    ///
    /// # Errors
    /// The device's.
    pub fn draw_noise(&mut self, seed: u64, first: u64) -> Result<()> {
        self.draw_step_noise(seed, first)?;
        let (device, x) = (&self.model.device, self.state.x_mut());
        device.run(|| normal(device, seed, first, x))
    }

    /// Sets the noise that ancestral steps draw to that of images `first`, `first + 1`, ... of `seed`; other steps draw none.
    ///
    /// # Errors
    /// The device's.
    pub fn draw_step_noise(&mut self, seed: u64, first: u64) -> Result<()> {
        match &mut self.state {
            State::Flow(..) => Ok(()),
            State::Diffusion { key, .. } => key.write_u32(&self.model.device, &noise_key(seed, first)),
        }
    }

    /// Sets the starting noise [batch, C, H, W] to given numbers.
    ///
    /// # Errors
    /// [`Error::Runtime`] if there are not as many as a batch has.
    pub fn set_noise(&mut self, noise: &[f32]) -> Result<()> {
        self.state.x_mut().write_f32(&self.model.device, noise)
    }

    /// The state x [batch, C, H, W]: the noise before [`Self::run`], the images after it.
    ///
    /// # Errors
    /// The device's, among them those of kernels that ran.
    pub fn state(&self) -> Result<Vec<f32>> {
        self.state.x().to_f32(&self.model.device)
    }

    /// Follows the schedule from the noise that was set; `classes` holds one class per image for a conditional model
    /// and nothing else.
    ///
    /// # Errors
    /// Those of [`Self::prepare`] and [`Self::enqueue`]; those of kernels that ran.
    pub fn run(&mut self, classes: &[usize]) -> Result<()> {
        self.prepare(classes)?;
        self.enqueue()?;
        self.model.device.synchronize()
    }

    /// The part of [`Self::run`] that copies from the host: the classes and what follows from them and the times alone,
    /// and which step is the first.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is not one class per image or the model lacks it; the device's errors.
    pub fn prepare(&mut self, classes: &[usize]) -> Result<()> {
        self.set_labels(classes)?;
        self.counter.write_u32(&self.model.device, &[0])
    }

    /// The rest of [`Self::run`] after [`Self::prepare`]: a GPU is given all the work and not waited for; a CPU does it.
    ///
    /// # Errors
    /// The device's.
    pub fn enqueue(&mut self) -> Result<()> {
        let model = self.model;
        model.device.run(|| match &self.graph {
            Some(graph) => (0..self.launches).try_for_each(|_| graph.launch()),
            None => self.trajectory(self.times.len()),
        })
    }

    fn set_labels(&mut self, classes: &[usize]) -> Result<()> {
        let Some(known) = &self.model.config.classes else {
            return if classes.is_empty() {
                Ok(())
            } else {
                Err(Error::usage("classes were given, but this model is unconditional"))
            };
        };
        if classes.len() != self.batch {
            return Err(Error::usage(format!("{} classes given for {} images", classes.len(), self.batch)));
        }
        if let Some(class) = classes.iter().find(|&&c| c >= known.names.len()) {
            return Err(Error::usage(format!("class {class} is unknown, 0 to {} expected", known.names.len() - 1)));
        }
        // No class and no parameters: the first condition of a guided run, and that of the second half of its batch.
        let nothing = Condition { label: known.null as u32, parameters: false };
        let mut wanted: Vec<Condition> = self.guided.then_some(nothing).into_iter().collect();
        let mut rows: Vec<u32> = Vec::with_capacity(self.rows.len());
        for &class in classes {
            let condition = Condition { label: class as u32, parameters: self.parameters };
            let row = wanted.iter().position(|&other| other == condition).unwrap_or_else(|| {
                wanted.push(condition);
                wanted.len() - 1
            });
            rows.push(row as u32);
        }
        rows.resize(self.rows.len(), 0);
        wanted.resize(self.wanted.len(), wanted[0]);
        if wanted != self.wanted {
            // Left as they are if this fails, the old conditions would stand for a half-written table.
            self.wanted.fill(Condition { label: u32::MAX, parameters: false });
            self.model.fill_conditions(&self.times, &wanted, &mut self.conditions)?;
            self.wanted = wanted;
        }
        self.rows.write_u32(&self.model.device, &rows)
    }

    fn trajectory(&mut self, evaluations: usize) -> Result<()> {
        let device = &self.model.device;
        for _ in 0..evaluations {
            self.evaluate()?;
            let (output, table, counter) = (self.activations.output(), &self.steps, &self.counter);
            match &mut self.state {
                State::Flow(state, options) => solver_step(device, state, output, table, counter, *options)?,
                State::Diffusion { x, key, options } => {
                    diffusion_step(device, x, DiffusionInputs { output, table, counter, key }, *options)?;
                }
            }
            advance(device, &mut self.counter)?;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<()> {
        let inputs =
            Inputs { x: self.state.x(), conditions: &self.conditions, counter: &self.counter, rows: &self.rows };
        self.model.evaluate(inputs, &mut self.activations)
    }
}
