//! `scheduler_config.json` of the diffusers library: the noise schedule that a diffusion model was trained with and what
//! its network predicts. Read strictly: what is not known here is refused, because a schedule that is nearly right draws
//! images that are nearly right.

use std::f64::consts::FRAC_PI_2;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::json::parse_strict;
use crate::io::known;

/// Most steps of a schedule.
const MAX_TIMESTEPS: usize = 100_000;
/// Largest beta of the cosine schedule (Nichol and Dhariwal, arXiv 2102.09672).
const MAX_BETA: f64 = 0.999;
/// Largest configuration file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Keys that `DDPMScheduler`, `DDIMScheduler` and `PNDMScheduler` write.
const KEYS: [&str; 20] = [
    "_class_name",
    "_diffusers_version",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "set_alpha_to_one",
    "skip_prk_steps",
    "steps_offset",
    "thresholding",
    "timestep_spacing",
    "trained_betas",
    "use_karras_sigmas",
    "variance_type",
];
/// Schedulers whose schedule this is.
const CLASSES: [&str; 3] = ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler"];

/// How the variance of the noise grows from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly (Ho et al., arXiv 2006.11239).
    Linear,
    /// Its square root evenly (Stable Diffusion).
    ScaledLinear,
    /// By a squared cosine of the time, capped (Nichol and Dhariwal).
    SquaredcosCapV2,
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// sqrt(a) noise - sqrt(1 - a) data (Salimans and Ho, arXiv 2202.00512).
    VPrediction,
    /// The data.
    Sample,
}

/// Which of the training steps are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// 0, k, 2 k, ... plus the offset.
    Leading,
    /// T - 1, T - 1 - k, ...
    Trailing,
    /// Evenly from 0 to T - 1.
    Linspace,
}

/// A noise schedule and what belongs to it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// T: steps of training.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Those between.
    pub beta_schedule: BetaSchedule,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Whether a predicted image is clamped to `clip_sample_range` at each step.
    pub clip_sample: bool,
    /// Largest magnitude of a clamped pixel.
    pub clip_sample_range: f64,
    /// Whether the last step goes to the image itself, and not to the least noise of training.
    pub set_alpha_to_one: bool,
    /// Added to the steps of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Which steps are sampled.
    pub timestep_spacing: TimestepSpacing,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            prediction_type: PredictionType::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            set_alpha_to_one: true,
            steps_offset: 0,
            timestep_spacing: TimestepSpacing::Leading,
        }
    }
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// [`Error::Input`]: a file that cannot be read, and what [`Self::parse`] refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |reason: String| Error::input(path, reason);
        let unreadable = |e: std::io::Error| fail(format!("cannot be read: {e}"));
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > MAX_BYTES {
            return Err(fail(format!("{bytes} bytes, at most {MAX_BYTES} expected")));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(unreadable)?).map_err(fail)
    }

    /// The schedule that the JSON object `text` describes.
    ///
    /// # Errors
    /// One line: an unknown key with the nearest known one, a value that does not fit, or a feature that no sampler here
    /// has.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let json = parse_strict(text).map_err(|e| format!("JSON: {e}"))?;
        let Value::Object(map) = json else { return Err("JSON: expected an object".into()) };
        if let Some(name) = map.keys().find(|name| !KEYS.contains(&name.as_str())) {
            return Err(known::unknown("key", name, KEYS.iter().copied()));
        }
        if let Some(class) = map.get("_class_name").filter(|class| class.as_str().is_none_or(|c| !CLASSES.contains(&c)))
        {
            return Err(format!("_class_name is {class}, one of {} expected", CLASSES.join(", ")));
        }
        for name in ["thresholding", "rescale_betas_zero_snr", "use_karras_sigmas", "trained_betas"] {
            if let Some(value) = map.get(name).filter(|value| !matches!(value, Value::Null | Value::Bool(false))) {
                return Err(format!("{name} is {value}, null or false expected: no sampler here does that"));
            }
        }
        for (name, value) in &map {
            // Alone first, so that a refusal names the key.
            let alone = Value::Object([(name.clone(), value.clone())].into_iter().collect());
            serde_json::from_value::<Self>(alone).map_err(|e| format!("key {name:?}: {e}"))?;
        }
        let config: Self = serde_json::from_value(Value::Object(map)).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let steps = self.num_train_timesteps;
        if !(1..=MAX_TIMESTEPS).contains(&steps) {
            return Err(format!("num_train_timesteps is {steps}, 1 to {MAX_TIMESTEPS} expected"));
        }
        let (start, end) = (self.beta_start, self.beta_end);
        if !(start > 0.0 && start <= end && end < 1.0) {
            return Err(format!("beta_start is {start} and beta_end {end}, 0 < beta_start <= beta_end < 1 expected"));
        }
        if self.steps_offset >= steps {
            return Err(format!("steps_offset is {}, less than the {steps} steps expected", self.steps_offset));
        }
        let range = self.clip_sample_range;
        if !(range > 0.0 && range.is_finite()) {
            return Err(format!("clip_sample_range is {range}, a positive number expected"));
        }
        Ok(())
    }

    /// Variance of the noise that each step of training adds, T of them.
    pub fn betas(&self) -> Vec<f64> {
        let steps = self.num_train_timesteps;
        let evenly = |from: f64, to: f64, i: usize| {
            if steps == 1 { from } else { from + (to - from) * i as f64 / (steps - 1) as f64 }
        };
        let (start, end) = (self.beta_start, self.beta_end);
        let left = |i: usize| ((i as f64 / steps as f64 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
        let beta = |i: usize| match self.beta_schedule {
            BetaSchedule::Linear => evenly(start, end, i),
            BetaSchedule::ScaledLinear => evenly(start.sqrt(), end.sqrt(), i).powi(2),
            BetaSchedule::SquaredcosCapV2 => (1.0 - left(i + 1) / left(i)).min(MAX_BETA),
        };
        (0..steps).map(beta).collect()
    }

    /// Share of the data in the variance after each step: the running product of 1 - beta.
    pub fn alphas_cumprod(&self) -> Vec<f64> {
        let products = self.betas().into_iter().scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        });
        products.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, parts: &[&str]) {
        let reason = SchedulerConfig::parse(text).expect_err(text);
        assert!(parts.iter().all(|part| reason.contains(part)), "{reason}: {parts:?}");
    }

    /// As Stable Diffusion 1 ships it.
    #[test]
    fn a_published_configuration_is_read() {
        let text = r#"{ "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
            "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
            "clip_sample": false }"#;
        let config = SchedulerConfig::parse(text).unwrap();
        let expected = SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            clip_sample: false,
            set_alpha_to_one: false,
            steps_offset: 1,
            ..SchedulerConfig::default()
        };
        assert_eq!(config, expected);
        assert_eq!(SchedulerConfig::parse("{}").unwrap(), SchedulerConfig::default());
        let types = r#"{"prediction_type": "v_prediction", "timestep_spacing": "trailing"}"#;
        let read = SchedulerConfig::parse(types).unwrap();
        assert_eq!(
            (read.prediction_type, read.timestep_spacing),
            (PredictionType::VPrediction, TimestepSpacing::Trailing)
        );
    }

    #[test]
    fn what_is_unknown_or_impossible_is_refused() {
        refused(r#"{"beta_shedule": "linear"}"#, &["unknown key", "beta_schedule"]);
        refused(r#"{"beta_schedule": "sigmoid"}"#, &["beta_schedule", "sigmoid", "squaredcos_cap_v2"]);
        refused(r#"{"prediction_type": "velocity"}"#, &["prediction_type", "v_prediction"]);
        refused(r#"{"_class_name": "EulerDiscreteScheduler"}"#, &["_class_name", "DDIMScheduler"]);
        refused(r#"{"thresholding": true}"#, &["thresholding is true"]);
        refused(r#"{"trained_betas": [0.1]}"#, &["trained_betas"]);
        refused(r#"{"num_train_timesteps": 0}"#, &["num_train_timesteps is 0"]);
        refused(r#"{"num_train_timesteps": "many"}"#, &["num_train_timesteps", "many"]);
        refused(r#"{"beta_start": 0.5, "beta_end": 0.1}"#, &["beta_start is 0.5"]);
        refused(r#"{"beta_end": 1.0}"#, &["beta_end 1"]);
        refused(r#"{"steps_offset": 1000}"#, &["steps_offset is 1000"]);
        refused(r#"{"clip_sample_range": 0}"#, &["clip_sample_range is 0"]);
        refused(r#"{"beta_end": 0.1, "beta_end": 0.2}"#, &["JSON", "beta_end"]);
        refused("[1]", &["object"]);
    }

    /// The products that are left of the data at the end of DDPM's and Stable Diffusion's schedules, and the closed form of
    /// the cosine schedule.
    #[test]
    fn schedules_are_the_published_ones() {
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
        let linear = SchedulerConfig::default();
        close(linear.betas()[500], 1e-4 + 0.0199 * 500.0 / 999.0);
        close(linear.alphas_cumprod()[999], 4.0358e-5);
        let sd = SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..linear.clone()
        };
        close(sd.alphas_cumprod()[999], 0.004_660_1);
        let cosine = SchedulerConfig { beta_schedule: BetaSchedule::SquaredcosCapV2, ..linear };
        let left = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
        close(cosine.alphas_cumprod()[499], left(0.5) / left(0.0));
        assert_eq!(cosine.betas()[999], MAX_BETA);
    }
}
