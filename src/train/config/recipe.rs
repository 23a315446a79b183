//! What is learned, and how: `[flow]`, `[conditions]`, `[optimizer]`, `[precision]`, `[regularisation]`, `[memory]`.

use serde::{Deserialize, Serialize};

use super::section::{positive, section, share, within};
use crate::models::config::{ModelConfig, Prediction};
use crate::models::diffusion::BetaSchedule;
use crate::models::sampling::{MAX_TIME_SHIFT, Solver, is_time_shift};
use crate::tensor::DType;

/// How the time of a training example is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeDensity {
    /// Uniform on (0, 1).
    Uniform,
    /// 1 / (1 + exp(-u)), u normal (Esser et al., arXiv 2403.03206).
    LogitNormal,
}

/// Update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam; weight decay is added to the gradient.
    Adam,
    /// AdamW; weight decay shrinks the weights by themselves (Loshchilov and Hutter, arXiv 1711.05101).
    AdamW,
}

/// Learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays.
    Constant,
    /// Half a cosine down to [`OptimizerSection::min_lr_ratio`].
    Cosine,
}

/// Type of activations and of the weights that they are multiplied by; master weights and optimizer are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16, with a dynamic loss scale.
    F16,
}

impl Precision {
    /// The tensors' type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

section! {
    /// The path from data to noise: x_t = (1 - t) data + t noise, velocity = noise - data; or, of a diffusion model, x_t = sqrt(a)
    /// data + sqrt(1 - a) noise with a share of data for each of its timesteps, which are drawn uniformly.
    FlowSection, "flow" {
        /// What is learned: `velocity`, or of a diffusion model `epsilon` (the noise), `v_prediction` or `sample` (the data). By
        /// default the velocity, or what the model that is gone on from predicts.
        prediction: Option<Prediction> = None,
        /// How the share of noise grows with the timesteps of a diffusion model: `linear`, `scaled_linear` or `squaredcos_cap_v2`
        /// (cosine). By default linear, or that of the model that is gone on from.
        beta_schedule: Option<BetaSchedule> = None,
        /// Density of the time t.
        time: TimeDensity = TimeDensity::Uniform,
        /// Mean of the normal number behind a logit-normal time; below 0 favours times near the data.
        logit_mean: f64 = 0.0,
        /// Deviation of that number.
        logit_std: f64 = 1.0,
        /// Probability that an example is learned without its class, for classifier-free guidance.
        label_dropout: f64 = 0.1,
        /// Shift of the time grid that the model is sampled on unless the user says otherwise; below 1 its steps are shorter
        /// near the data. By default 1, or that of the model that is gone on from.
        time_shift: Option<f64> = None,
        /// Solver that the model is sampled with unless the user says otherwise. By default Euler's, or that of the model that
        /// is gone on from.
        solver: Option<Solver> = None,
    }
}

impl FlowSection {
    fn check(&self) -> Result<(), String> {
        within("logit_mean", self.logit_mean, -10.0..=10.0)?;
        positive("logit_std", self.logit_std, 10.0)?;
        if self.time == TimeDensity::Uniform && (self.logit_mean, self.logit_std) != (0.0, 1.0) {
            return Err("logit_mean and logit_std need time = \"logit_normal\"".into());
        }
        if let Some(shift) = self.time_shift.filter(|&shift| !is_time_shift(shift)) {
            return Err(format!("time_shift is {shift}, a number above 0 and up to {MAX_TIME_SHIFT} expected"));
        }
        share("label_dropout", self.label_dropout)?;
        self.prediction.map_or(Ok(()), |prediction| self.fits(prediction))
    }

    /// Refuses keys that mean nothing to a model that learns `prediction`.
    fn fits(&self, prediction: Prediction) -> Result<(), String> {
        let velocity = prediction == Prediction::Velocity;
        let given = [
            ("beta_schedule", self.beta_schedule.is_some(), !velocity),
            ("time = \"logit_normal\"", self.time == TimeDensity::LogitNormal, velocity),
            ("time_shift", self.time_shift.is_some(), velocity),
            ("solver", self.solver.is_some(), velocity),
        ];
        match given.iter().find(|(_, given, fits)| *given && !fits) {
            Some((key, ..)) => {
                Err(format!("{key} is given, but means nothing to a model that predicts {}", prediction.name()))
            }
            None => Ok(()),
        }
    }

    /// Makes `model`, a `new` one or one to go on from, what is trained, and says how it is sampled. The reason is one line.
    pub fn apply(&self, model: &mut ModelConfig, new: bool) -> Result<(), String> {
        let prediction = self.prediction.unwrap_or(model.prediction);
        if !new && prediction != model.prediction {
            let (wanted, found) = (prediction.name(), model.prediction.name());
            return Err(format!("[flow] prediction is {wanted}, but the model to go on from predicts {found}"));
        }
        if model.out_channels != model.in_channels {
            let (found, expected) = (model.out_channels, model.in_channels);
            return Err(format!(
                "the model to go on from has {found} output channels, {expected} expected: a variance is not learned"
            ));
        }
        self.fits(prediction).map_err(|reason| format!("[flow] {reason}"))?;
        model.prediction = prediction;
        let (range, of_images, own) = (model.value_range, model.autoencoder.is_none(), &mut model.sampling);
        own.time_shift = self.time_shift.unwrap_or(own.time_shift);
        own.solver = self.solver.unwrap_or(own.solver);
        own.diffusion.beta_schedule = self.beta_schedule.unwrap_or(own.diffusion.beta_schedule);
        if new && prediction != Prediction::Velocity {
            // Asked at timesteps as they are; and what it sees in mere noise is no more than noise. Latents have no bounds.
            model.time.scale = 1.0;
            own.diffusion.clip_sample = of_images;
            own.diffusion.clip_sample_range = range.0.abs().max(range.1.abs());
        }
        Ok(())
    }
}

section! {
    /// Continuous parameters that the model learns to be asked for.
    ConditionsSection, "conditions" {
        /// Columns of the data's `params.csv`; none for a model without.
        parameters: Vec<String> = Vec::new(),
        /// Probability that an example with its class is learned without them; one without its class always is.
        dropout: f64 = 0.1,
    }
}

impl ConditionsSection {
    fn check(&self) -> Result<(), String> {
        within("the number of parameters", self.parameters.len(), 0..=256)?;
        for (i, name) in self.parameters.iter().enumerate() {
            if name.is_empty() || name.contains(|c: char| c == '=' || c == ',' || c.is_control()) {
                return Err(format!("parameters has {name:?}, names of columns expected, without = and commas"));
            }
            if self.parameters[..i].contains(name) {
                return Err(format!("parameters has {name:?} twice"));
            }
        }
        share("dropout", self.dropout)
    }
}

section! {
    /// How weights follow gradients.
    OptimizerSection, "optimizer" {
        /// Update rule.
        kind: OptimizerKind = OptimizerKind::AdamW,
        /// Highest learning rate.
        learning_rate: f64 = 1e-3,
        /// Decay of the means of gradient and squared gradient.
        betas: [f64; 2] = [0.9, 0.99],
        /// Added to the root of the mean squared gradient.
        eps: f64 = 1e-8,
        /// Weight decay; 0 is off.
        weight_decay: f64 = 0.01,
        /// Learning rate after the warm-up.
        schedule: Decay = Decay::Cosine,
        /// Steps over which the learning rate rises.
        warmup_steps: u64 = 200,
        /// Lowest learning rate of the cosine, in highest ones.
        min_lr_ratio: f64 = 0.02,
        /// Longest gradient; 0 is off.
        clip_norm: f64 = 1.0,
        /// Batches whose gradients make one step.
        accumulate: usize = 1,
        /// Decay of the moving average of the weights, which is what leaves the run; 0 is off.
        ema_decay: f64 = 0.9995,
    }
}

impl OptimizerSection {
    fn check(&self) -> Result<(), String> {
        positive("learning_rate", self.learning_rate, 10.0)?;
        share("betas[0]", self.betas[0])?;
        share("betas[1]", self.betas[1])?;
        positive("eps", self.eps, 1.0)?;
        within("weight_decay", self.weight_decay, 0.0..=10.0)?;
        within("warmup_steps", self.warmup_steps, 0..=1_000_000_000)?;
        within("min_lr_ratio", self.min_lr_ratio, 0.0..=1.0)?;
        within("clip_norm", self.clip_norm, 0.0..=1e6)?;
        within("accumulate", self.accumulate, 1..=65_536)?;
        share("ema_decay", self.ema_decay)
    }
}

section! {
    /// Types of numbers.
    PrecisionSection, "precision" {
        /// Type of activations and of the weights that they are multiplied by.
        dtype: Precision = Precision::F32,
        /// First loss scale of f16.
        loss_scale: f64 = 65_536.0,
    }
}

impl PrecisionSection {
    fn check(&self) -> Result<(), String> {
        within("loss_scale", self.loss_scale, 1.0..=16_777_216.0)?;
        match self.loss_scale.log2().fract() == 0.0 {
            true => Ok(()),
            false => Err(format!("loss_scale is {}, a power of 2 expected, which loses no digits", self.loss_scale)),
        }
    }
}

section! {
    /// Against learning by heart, beside weight decay.
    RegularisationSection, "regularisation" {
        /// Probability that a channel behind attention and feed-forward layers is dropped; 0 is off.
        dropout: f64 = 0.0,
    }
}

impl RegularisationSection {
    fn check(&self) -> Result<(), String> {
        share("dropout", self.dropout)
    }
}

section! {
    /// Time for memory.
    MemorySection, "memory" {
        /// Keeps the inputs of blocks only, and computes the rest again on the way back: same gradients.
        checkpoint_activations: bool = false,
        /// Halves the batch when memory runs out, and accumulates twice as many.
        halve_batch: bool = true,
    }
}

impl MemorySection {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
