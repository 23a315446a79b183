//! Adam and AdamW over all parameters of a model, the dynamic loss scale of f16, and moving averages of the weights.
//!
//! A step is [`Optimizer::prepare`] (host values to the device), [`Optimizer::step`] (may be captured and replayed; behind it
//! [`Ema::update`] and the casts) and [`Optimizer::finish`] (what came of it).

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::optimizer::{
    AdamRule, GradReport, REPORT, StepValues, VALUES, adam, cast, ema, grad_report, report_scratch_len,
};
use crate::tensor::{DType, Tensor};

/// Constants of Adam or AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub eps: f64,
    /// Weight decay of the parameters that decay.
    pub weight_decay: f64,
    /// AdamW: the decay shrinks the weights. Adam: it is added to the gradients.
    pub decoupled: bool,
}

impl AdamConfig {
    /// `torch.optim.Adam`'s: betas 0.9 and 0.999, eps 1e-8, no decay.
    pub const ADAM: Self = Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, decoupled: false };
    /// `torch.optim.AdamW`'s: the same, decoupled decay of 0.01.
    pub const ADAMW: Self = Self { weight_decay: 0.01, decoupled: true, ..Self::ADAM };

    /// Values of step `t` = 1, 2, .. for a learning rate, without clipping, loss scale and moving average.
    fn values(&self, t: u64, lr: f64) -> StepValues {
        let rest = |beta: f64| 1.0 - beta.powf(t as f64);
        StepValues {
            lr,
            step_size: lr / rest(self.beta1),
            root2: rest(self.beta2).sqrt(),
            grad_scale: 1.0,
            max_norm: f64::INFINITY,
            ema_weight: 0.0,
        }
    }
}

/// A parameter as the optimizer knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, unique in the model.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether weight decay applies to it.
    pub decays: bool,
}

/// What a step is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepInputs {
    /// Learning rate.
    pub lr: f64,
    /// What the loss was multiplied by before the backward pass; 1 where there is no loss scale.
    pub loss_scale: f64,
    /// Norm that the gradients are clipped to, if at all.
    pub clip: Option<f64>,
    /// Decay of the moving average ([`EmaRule::decay`]); 1 leaves it as it is.
    pub ema_decay: f64,
}

struct Slot {
    parameter: Parameter,
    /// Means of gradients and of their squares.
    moments: [Tensor; 2],
}

/// State of Adam or AdamW: two moments a parameter and the number of steps made.
pub struct Optimizer {
    config: AdamConfig,
    slots: Vec<Slot>,
    steps: u64,
    values: Tensor,
    report: Tensor,
    scratch: Tensor,
}

impl Optimizer {
    /// Zeroed moments for `parameters`, whose order [`Self::step`] keeps; `wide` is f32 (in tests f64).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Runtime`] for another type or two parameters of one name.
    pub fn new(device: &Device, wide: DType, config: AdamConfig, parameters: Vec<Parameter>) -> Result<Self> {
        if wide != wide.wide() {
            return Err(Error::Runtime(format!("optimizer: moments of {wide} asked for, f32 expected")));
        }
        let names: std::collections::BTreeSet<&str> = parameters.iter().map(|p| &*p.name).collect();
        if names.len() != parameters.len() {
            return Err(Error::Runtime("optimizer: two parameters have one name".into()));
        }
        let scratch = report_scratch_len(parameters.iter().map(|p| p.shape.iter().product()));
        let zeros = |shape: &[usize]| Tensor::zeros(device, wide, shape);
        let slot = |parameter: Parameter| {
            let moments = [zeros(&parameter.shape)?, zeros(&parameter.shape)?];
            Ok(Slot { parameter, moments })
        };
        let slots = parameters.into_iter().map(slot).collect::<Result<Vec<_>>>()?;
        let (values, report, scratch) = (zeros(&[VALUES])?, zeros(&[REPORT])?, zeros(&[scratch])?);
        Ok(Self { config, slots, steps: 0, values, report, scratch })
    }

    /// The parameters, in the order of [`Self::step`].
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.slots.iter().map(|slot| &slot.parameter)
    }

    /// Steps made so far; skipped ones do not count.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of steps made, of a checkpoint.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Puts the values of the next step on the device. Never inside captured work.
    ///
    /// # Errors
    /// The driver's, on a GPU.
    pub fn prepare(&mut self, device: &Device, inputs: StepInputs) -> Result<()> {
        let values = StepValues {
            grad_scale: 1.0 / inputs.loss_scale,
            max_norm: inputs.clip.unwrap_or(f64::INFINITY),
            ema_weight: 1.0 - inputs.ema_decay,
            ..self.config.values(self.steps + 1, inputs.lr)
        };
        values.write(device, &mut self.values)
    }

    /// Enqueues the step that was prepared: the norm of the gradients, and the update of the master weights where all
    /// gradients are finite. `weights` and `grads` are of the wide type, in the order of the parameters. May be captured.
    ///
    /// # Errors
    /// [`Error::Runtime`] if numbers, types or shapes do not fit.
    pub fn step(&mut self, device: &Device, weights: &mut [&mut Tensor], grads: &[&Tensor]) -> Result<()> {
        let n = self.slots.len();
        if (weights.len(), grads.len()) != (n, n) {
            let (w, g) = (weights.len(), grads.len());
            return Err(Error::Runtime(format!("optimizer: {w} weights and {g} gradients for {n} parameters")));
        }
        grad_report(device, grads, &self.values, &mut self.scratch, &mut self.report)?;
        let AdamConfig { beta1, beta2, eps, weight_decay, decoupled } = self.config;
        for ((slot, weight), grad) in self.slots.iter_mut().zip(weights).zip(grads) {
            let weight_decay = if slot.parameter.decays { weight_decay } else { 0.0 };
            let rule = AdamRule { beta1, beta2, eps, weight_decay, decoupled };
            adam(device, rule, &self.values, &self.report, weight, grad, slot.moments.each_mut())?;
        }
        Ok(())
    }

    /// Waits for the step and tells the norm of its gradients, and whether they were finite; only then it counts.
    ///
    /// # Errors
    /// The driver's, on a GPU.
    pub fn finish(&mut self, device: &Device) -> Result<GradReport> {
        let report = GradReport::read(device, &self.report)?;
        self.steps += u64::from(report.finite);
        Ok(report)
    }

    /// Moments of a parameter (means of gradients, of their squares); `None` if there is no such parameter.
    ///
    /// # Errors
    /// The driver's, on a GPU.
    pub fn state(&self, device: &Device, name: &str) -> Result<Option<[Vec<f32>; 2]>> {
        let Some(slot) = self.slots.iter().find(|slot| slot.parameter.name == name) else { return Ok(None) };
        let [mean, square] = &slot.moments;
        Ok(Some([mean.to_f32(device)?, square.to_f32(device)?]))
    }

    /// Sets the moments of a parameter.
    ///
    /// # Errors
    /// [`Error::Runtime`] if there is no such parameter or it has another number of elements.
    pub fn set_state(&mut self, device: &Device, name: &str, moments: [&[f32]; 2]) -> Result<()> {
        let slot = self.slots.iter_mut().find(|slot| slot.parameter.name == name);
        let slot = slot.ok_or_else(|| Error::Runtime(format!("optimizer: no parameter is named {name}")))?;
        slot.moments.iter_mut().zip(moments).try_for_each(|(to, from)| to.write_f32(device, from))
    }
}

/// The dynamic loss scale of training in f16, by the rules of `torch.amp.GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    scale: f64,
    good: u32,
}

impl LossScale {
    /// Good steps in a row after which the scale doubles.
    pub const GROWTH_INTERVAL: u32 = 2000;

    /// Starts at 65536.
    pub fn dynamic() -> Self {
        Self { scale: 65536.0, good: 0 }
    }

    /// Continues: the scale, and the good steps since it changed.
    pub fn restore(scale: f64, good: u32) -> Self {
        Self { scale, good }
    }

    /// What the loss is multiplied by.
    pub fn value(&self) -> f64 {
        self.scale
    }

    /// Good steps since the scale changed.
    pub fn good_steps(&self) -> u32 {
        self.good
    }

    /// Takes notice of a step: halves after one whose gradients were not finite, but not below 1, and doubles after
    /// [`Self::GROWTH_INTERVAL`] good ones in a row while f32 holds the result.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = Self { scale: (self.scale / 2.0).max(1.0), good: 0 };
            return;
        }
        self.good += 1;
        if self.good == Self::GROWTH_INTERVAL {
            let doubled = self.scale * 2.0;
            *self = Self { scale: if doubled > f64::from(f32::MAX) { self.scale } else { doubled }, good: 0 };
        }
    }
}

/// How the decay of a moving average follows from the number of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmaRule {
    /// min(decay, (1 + n) / (10 + n)) for step n = 1, 2, ..: an average that forgets its start.
    Capped {
        /// The decay in the long run.
        decay: f64,
    },
    /// The same decay at every step.
    Constant {
        /// The decay.
        decay: f64,
    },
    /// The rule of the package ema-pytorch: see [`EmaRule::decay`].
    EmaPytorch {
        /// The decay in the long run.
        beta: f64,
        /// Steps that copy the weights.
        update_after_step: u64,
        /// Every how many steps something happens.
        update_every: u64,
        /// Divides the steps that count.
        inv_gamma: f64,
        /// Exponent: the larger, the sooner the decay comes to `beta`.
        power: f64,
        /// Least decay.
        min_value: f64,
    },
}

impl EmaRule {
    /// ema-pytorch's defaults.
    pub const EMA_PYTORCH: Self = Self::EmaPytorch {
        beta: 0.9999,
        update_after_step: 100,
        update_every: 10,
        inv_gamma: 1.0,
        power: 2.0 / 3.0,
        min_value: 0.0,
    };

    /// The decay at step n = 1, 2, ..: 0 copies the weights, 1 leaves the average as it is.
    ///
    /// ema-pytorch: step 1 copies; then only steps with (n - 1) % update_every = 0 do something: they copy while
    /// n - 1 <= update_after_step, and from then on the decay is 1 - (1 + e / inv_gamma)^-power with
    /// e = n - update_after_step - 1, between `min_value` and `beta`.
    pub fn decay(&self, n: u64) -> f64 {
        match *self {
            Self::Capped { decay } => decay.min((1.0 + n as f64) / (10.0 + n as f64)),
            Self::Constant { decay } => decay,
            Self::EmaPytorch { beta, update_after_step, update_every, inv_gamma, power, min_value } => {
                let before = n.saturating_sub(1);
                if !before.is_multiple_of(update_every.max(1)) {
                    1.0
                } else if before <= update_after_step {
                    0.0
                } else {
                    let e = (before - update_after_step) as f64;
                    (1.0 - (1.0 + e / inv_gamma).powf(-power)).clamp(min_value, beta)
                }
            }
        }
    }
}

/// Moving averages of the master weights, in the wide type.
pub struct Ema {
    /// How the decay goes.
    pub rule: EmaRule,
    averages: Vec<(String, Tensor)>,
}

impl Ema {
    /// Averages that start as copies of the weights, by name in the order that [`Self::update`] keeps.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Runtime`] for weights that are not of the wide type.
    pub fn new<'a>(
        device: &Device,
        rule: EmaRule,
        weights: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    ) -> Result<Self> {
        let copy = |(name, weight): (&str, &Tensor)| {
            let mut average = Tensor::zeros(device, weight.dtype().wide(), weight.shape())?;
            cast(device, weight, &mut average)?;
            Ok((name.to_string(), average))
        };
        Ok(Self { rule, averages: weights.into_iter().map(copy).collect::<Result<_>>()? })
    }

    /// Enqueues the update behind [`Optimizer::step`], by the decay that was prepared with it; a skipped step leaves the
    /// averages too. May be captured.
    ///
    /// # Errors
    /// [`Error::Runtime`] if numbers, types or shapes do not fit.
    pub fn update(&mut self, device: &Device, optimizer: &Optimizer, weights: &[&Tensor]) -> Result<()> {
        if weights.len() != self.averages.len() {
            let (found, expected) = (weights.len(), self.averages.len());
            return Err(Error::Runtime(format!("moving averages: {found} weights found, {expected} expected")));
        }
        let mut pairs = self.averages.iter_mut().zip(weights);
        pairs.try_for_each(|((_, average), weight)| ema(device, &optimizer.values, &optimizer.report, weight, average))
    }

    /// The averages by name, in order.
    pub fn averages(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.averages.iter().map(|(name, average)| (&**name, average))
    }

    /// Numbers of an average; `None` if there is no such name.
    ///
    /// # Errors
    /// The driver's, on a GPU.
    pub fn state(&self, device: &Device, name: &str) -> Result<Option<Vec<f32>>> {
        self.averages().find(|(n, _)| *n == name).map(|(_, average)| average.to_f32(device)).transpose()
    }

    /// Sets an average.
    ///
    /// # Errors
    /// [`Error::Runtime`] if there is no such name or it has another number of elements.
    pub fn set_state(&mut self, device: &Device, name: &str, values: &[f32]) -> Result<()> {
        let found = self.averages.iter_mut().find(|(n, _)| n == name);
        let (_, average) = found.ok_or_else(|| Error::Runtime(format!("moving averages: none is named {name}")))?;
        average.write_f32(device, values)
    }
}
