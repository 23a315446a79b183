//! Weights that follow gradients: master weights, their moments and average, the copy that the network computes with, and
//! the steps between them.

use std::collections::BTreeMap;

use crate::device::{Device, Graph};
use crate::error::{Error, Result};
use crate::models::config::ModelConfig;
use crate::models::training::work::{Given, Work};
use crate::models::training::{NamedMut, Params};
use crate::nn::params::ParamSpec;
use crate::nn::training::Keeping;
use crate::ops::optimizer::{
    AdamRule, GradReport, REPORT, StepValues, VALUES, adam, cast, ema, fill_zero, grad_report, report_scratch_len,
};
use crate::tensor::{DType, Tensor};
use crate::train::checkpoint::NamedTensor;
use crate::train::config::{OptimizerKind, OptimizerSection};
use crate::train::objective::HostGiven;

/// Groups of tensors of a checkpoint.
const GROUPS: [&str; 4] = ["weights", "average", "mean", "square"];

/// All numbers of a model in training, and the memory of one batch.
pub struct Learner {
    // Before the buffers that they read, so that they go first.
    graphs: Option<[Graph; 2]>,
    config: ModelConfig,
    device: Device,
    dtype: DType,
    rule: AdamRule,
    /// Master weights, in the wide type.
    weights: Params,
    /// The weights in the type of activations, where that is another.
    narrow: Option<Params>,
    /// Moving average of the weights.
    average: Option<Params>,
    grads: Params,
    /// Of gradients and of their squares.
    moments: [Params; 2],
    values: Tensor,
    report: Tensor,
    scratch: Tensor,
    step: Option<Work>,
    keeping: Keeping,
    stop: fn() -> bool,
}

/// What the learner is made of.
#[derive(Clone, Copy)]
pub struct LearnerOptions<'a> {
    /// Update rule, and whether weights are averaged.
    pub optimizer: &'a OptimizerSection,
    /// Type of activations.
    pub dtype: DType,
    /// What blocks keep and drop.
    pub keeping: Keeping,
    /// Whether a step should end before its time.
    pub stop: fn() -> bool,
}

impl Learner {
    /// A learner that begins with the parameters that `read` gives by name.
    ///
    /// # Errors
    /// Those of `read`; [`Error::OutOfMemory`]; [`Error::Usage`] for a kind of network that cannot be trained.
    pub fn new(
        config: &ModelConfig,
        device: &Device,
        options: LearnerOptions,
        read: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let LearnerOptions { optimizer, dtype, keeping, stop } = options;
        let wide = dtype.wide();
        let zeros = || Params::zeros(config, device, wide);
        let mut weights = zeros()?;
        weights.write(device, read)?;
        let narrow = if dtype == wide { None } else { Some(Params::zeros(config, device, dtype)?) };
        let mut average = if optimizer.ema_decay > 0.0 { Some(zeros()?) } else { None };
        if let Some(average) = &mut average {
            average.write(device, read)?;
        }
        let grads = zeros()?;
        let partials = report_scratch_len(learned(&grads).map(|grad| grad.len()));
        let mut learner = Self {
            graphs: None,
            rule: AdamRule {
                beta1: optimizer.betas[0],
                beta2: optimizer.betas[1],
                eps: optimizer.eps,
                weight_decay: optimizer.weight_decay,
                decoupled: optimizer.kind == OptimizerKind::AdamW,
            },
            weights,
            narrow,
            average,
            grads,
            moments: [zeros()?, zeros()?],
            values: Tensor::zeros(device, wide, &[VALUES])?,
            report: Tensor::zeros(device, wide, &[REPORT])?,
            scratch: Tensor::zeros(device, wide, &[partials])?,
            step: None,
            keeping,
            stop,
            config: config.clone(),
            device: device.clone(),
            dtype,
        };
        learner.narrow()?;
        learner.clear()?;
        Ok(learner)
    }

    /// How weights follow gradients.
    pub fn rule(&self) -> &AdamRule {
        &self.rule
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Images that the memory is made for, 0 before [`Self::prepare`].
    pub fn batch(&self) -> usize {
        self.step.as_ref().map_or(0, Work::batch)
    }

    /// Bytes that blocks keep for their way back, and what they would keep if none were run again.
    pub fn activation_bytes(&self) -> [usize; 2] {
        self.step.as_ref().map_or([0, 0], Work::activation_bytes)
    }

    /// Makes memory for `batch` images at a time. On a GPU the passes are recorded as graphs by the first step.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], after which there is none.
    pub fn prepare(&mut self, batch: usize) -> Result<()> {
        (self.graphs, self.step) = (None, None);
        let params = self.narrow.as_ref().unwrap_or(&self.weights);
        self.step = Some(Work::new(&self.config, params, &self.device, batch, self.keeping)?);
        Ok(())
    }

    /// Adds the gradients of these examples, times `scale`, and returns their loss. `pass` numbers this call among all of a
    /// run, and decides what dropout drops.
    ///
    /// # Errors
    /// The operations'; [`Error::Interrupted`], after which the gradients are of no use.
    pub fn accumulate<'a>(&mut self, examples: impl Into<Given<'a>>, scale: f64, pass: u32) -> Result<f64> {
        let device = self.device.clone();
        let step = self.step.as_mut().ok_or_else(unprepared)?;
        step.set_pass(true, pass)?;
        step.set(examples.into(), scale)?;
        match &self.graphs {
            Some([graph, _]) => graph.launch()?,
            None => device.run(|| self.pass())?,
        }
        self.step.as_ref().ok_or_else(unprepared)?.loss()
    }

    fn pass(&mut self) -> Result<()> {
        let step = self.step.as_mut().ok_or_else(unprepared)?;
        let params = self.narrow.as_ref().unwrap_or(&self.weights);
        step.forward(params, self.stop)?;
        step.backward(params, &mut self.grads, self.stop)
    }

    /// One step along the gradients, which are zeros afterwards. Not made where the report says that they were not
    /// finite.
    ///
    /// # Errors
    /// The operations'.
    pub fn update(&mut self, values: StepValues) -> Result<GradReport> {
        let device = self.device.clone();
        values.write(&device, &mut self.values)?;
        match &self.graphs {
            Some([_, graph]) => graph.launch()?,
            None => device.run(|| self.follow())?,
        }
        let report = GradReport::read(&device, &self.report)?;
        if self.graphs.is_none() && device.has_graphs() {
            // Recording must not load code: every kernel has run by now.
            let pass = device.capture(|| self.pass())?;
            let follow = device.capture(|| self.follow())?;
            self.graphs = pass.zip(follow).map(|(pass, follow)| [pass, follow]);
        }
        Ok(report)
    }

    fn follow(&mut self) -> Result<()> {
        let Self { device, values, report, scratch, weights, grads, average, moments: [mean, square], .. } = self;
        let all: Vec<&Tensor> = learned(grads).collect();
        grad_report(device, &all, values, scratch, report)?;
        let moments = learned_mut(mean).zip(learned_mut(square));
        for ((weight, grad), (mean, square)) in learned_mut(weights).zip(all).zip(moments) {
            adam(device, self.rule, values, report, weight, grad, [mean, square])?;
        }
        if let Some(average) = average {
            for (weight, average) in learned(weights).zip(learned_mut(average)) {
                ema(device, values, report, weight, average)?;
            }
        }
        self.narrow()?;
        self.clear()
    }

    /// Writes the weights as the network computes with them.
    fn narrow(&mut self) -> Result<()> {
        let Some(narrow) = &mut self.narrow else { return Ok(()) };
        let mut pairs = self.weights.tensors().into_iter().zip(narrow.tensors_mut());
        pairs.try_for_each(|(from, to)| cast(&self.device, from.tensor, to.tensor))
    }

    /// Forgets the gradients.
    ///
    /// # Errors
    /// The driver's.
    pub fn clear(&mut self) -> Result<()> {
        let device = self.device.clone();
        device.run(|| learned_mut(&mut self.grads).try_for_each(|grad| fill_zero(&device, grad)))
    }

    /// The losses of these examples, of which there are as many as [`Self::batch`], by the weights that leave the run: the
    /// average where there is one.
    ///
    /// # Errors
    /// The operations'; [`Error::Interrupted`].
    pub fn losses(&mut self, batches: &mut dyn FnMut() -> Option<Result<BatchOf>>) -> Result<Vec<f64>> {
        let device = self.device.clone();
        let mut narrow = None;
        if let (Some(average), true) = (&self.average, self.narrow.is_some()) {
            let mut params = Params::zeros(&self.config, &device, self.dtype)?;
            for (from, to) in average.tensors().into_iter().zip(params.tensors_mut()) {
                cast(&device, from.tensor, to.tensor)?;
            }
            narrow = Some(params);
        }
        let master = self.average.as_ref().unwrap_or(&self.weights);
        let params = narrow.as_ref().or(self.narrow.as_ref()).unwrap_or(master);
        let step = self.step.as_mut().ok_or_else(unprepared)?;
        let (mut losses, stop) = (Vec::new(), self.stop);
        step.set_pass(false, 0)?;
        while let Some(batch) = batches() {
            let batch = batch?;
            step.set(batch.examples.borrow(), 1.0)?;
            device.run(|| step.forward(params, stop))?;
            losses.extend(step.losses()?.into_iter().take(batch.images));
        }
        Ok(losses)
    }

    /// The parameters that leave the run, by name and shape: the average where there is one.
    ///
    /// # Errors
    /// The driver's.
    pub fn result(&self) -> Result<Vec<(ParamSpec, Vec<f32>)>> {
        self.average.as_ref().unwrap_or(&self.weights).read(&self.config, &self.device)
    }

    /// Everything that has to be saved, by group.
    ///
    /// # Errors
    /// The driver's.
    pub fn groups(&self) -> Result<BTreeMap<String, Vec<NamedTensor<'static>>>> {
        let [mean, square] = &self.moments;
        let all = [Some(&self.weights), self.average.as_ref(), Some(mean), Some(square)];
        let mut groups = BTreeMap::new();
        for (name, params) in GROUPS.iter().zip(all).filter_map(|(name, params)| Some((name, params?))) {
            let tensors = params.read(&self.config, &self.device)?.into_iter();
            let tensors = tensors.map(|(spec, values)| NamedTensor::new(spec.name, &spec.shape, values)).collect();
            groups.insert((*name).to_owned(), tensors);
        }
        Ok(groups)
    }

    /// Takes up what [`Self::groups`] gave.
    ///
    /// # Errors
    /// [`Error::Runtime`] for groups, names or sizes of another model.
    pub fn restore(&mut self, groups: &BTreeMap<String, Vec<NamedTensor>>) -> Result<()> {
        let device = self.device.clone();
        let [mean, square] = &mut self.moments;
        let all = [Some(&mut self.weights), self.average.as_mut(), Some(mean), Some(square)];
        for (name, params) in GROUPS.iter().zip(all).filter_map(|(name, params)| Some((name, params?))) {
            let tensors = groups.get(*name).ok_or_else(|| Error::Runtime(format!("no group {name}")))?;
            params.write(&device, &mut |parameter| {
                let found = tensors.iter().find(|tensor| tensor.name == parameter);
                let missing = || Error::Runtime(format!("group {name}: no parameter {parameter}"));
                Ok(found.ok_or_else(missing)?.values.to_vec())
            })?;
        }
        self.narrow()?;
        self.clear()
    }
}

/// A batch to be looked at, filled up to the size of the memory.
pub struct BatchOf {
    /// As many as the memory is made for.
    pub examples: HostGiven,
    /// How many of them count.
    pub images: usize,
}

fn learned(params: &Params) -> impl Iterator<Item = &Tensor> {
    params.tensors().into_iter().filter(|named| named.learned).map(|named| named.tensor)
}

fn learned_mut(params: &mut Params) -> impl Iterator<Item = &mut Tensor> {
    params.tensors_mut().into_iter().filter(|named| named.learned).map(|NamedMut { tensor, .. }| tensor)
}

fn unprepared() -> Error {
    Error::Runtime("no memory was made for a batch".into())
}
