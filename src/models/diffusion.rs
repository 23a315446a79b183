//! What a diffusion model was trained on and how its sampler is set: the settings of diffusers' schedulers, under their names.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::io::known::unknown;

/// How the share of noise grows with the timestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Betas at equal distances (Ho et al. 2020, arXiv 2006.11239).
    Linear,
    /// Their square roots at equal distances (latent diffusion, Rombach et al. 2022, arXiv 2112.10752).
    ScaledLinear,
    /// Squared cosine (Nichol and Dhariwal 2021, arXiv 2102.09672), betas up to 0.999; knows no ends.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// Which of the timesteps of training a sampler visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of T / S (rounded down), plus an offset.
    Leading,
    /// Back from T - 1 in steps of T / S.
    Trailing,
    /// From T - 1 to 0, both among them.
    Linspace,
}

/// How large the noise of an ancestral step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    /// That of the step before given the image and x.
    FixedSmall,
    /// Beta of the step.
    FixedLarge,
    /// Between the two, where the model says; needs the output channels for it.
    LearnedRange,
}

/// A named choice: the value of a field.
trait Choice: Copy + PartialEq + 'static {
    /// All, with their names.
    const ALL: &'static [(&'static str, Self)];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, choice)| *choice == self).map_or("", |(name, _)| name)
    }
}

impl Choice for BetaSchedule {
    const ALL: &'static [(&'static str, Self)] =
        &[("linear", Self::Linear), ("scaled_linear", Self::ScaledLinear), ("squaredcos_cap_v2", Self::SquaredCosine)];
}

impl Choice for Spacing {
    const ALL: &'static [(&'static str, Self)] =
        &[("leading", Self::Leading), ("trailing", Self::Trailing), ("linspace", Self::Linspace)];
}

impl Choice for Variance {
    const ALL: &'static [(&'static str, Self)] =
        &[("fixed_small", Self::FixedSmall), ("fixed_large", Self::FixedLarge), ("learned_range", Self::LearnedRange)];
}

/// Most timesteps of training.
pub const MAX_TRAIN_STEPS: usize = 100_000;

/// Settings of DDPM and DDIM. In `config.json` the object `diffusion`, each under the name that diffusers gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Diffusion {
    /// T: the model is asked at timesteps 0 .. T - 1 (`num_train_timesteps`).
    pub train_steps: usize,
    /// How the betas grow (`beta_schedule`).
    pub beta_schedule: BetaSchedule,
    /// The first and the last of them (`beta_start`, `beta_end`).
    pub beta_range: (f64, f64),
    /// Which timesteps are visited (`timestep_spacing`).
    pub spacing: Spacing,
    /// Added to those of leading spacing (`steps_offset`).
    pub steps_offset: usize,
    /// Whether the image that the model sees in x is clipped at every step (`clip_sample`).
    pub clip_sample: bool,
    /// To which size, either way (`clip_sample_range`).
    pub clip_sample_range: f32,
    /// Whether the last step of DDIM ends at no noise at all, and not at that of timestep 0 (`set_alpha_to_one`).
    pub set_alpha_to_one: bool,
    /// Noise of ancestral steps (`variance_type`).
    pub variance: Variance,
}

impl Default for Diffusion {
    fn default() -> Self {
        Self {
            train_steps: 1000,
            beta_schedule: BetaSchedule::Linear,
            beta_range: (1e-4, 0.02),
            spacing: Spacing::Leading,
            steps_offset: 0,
            clip_sample: false,
            clip_sample_range: 1.0,
            set_alpha_to_one: true,
            variance: Variance::FixedSmall,
        }
    }
}

/// The keys of `diffusion`.
pub(super) const KEYS: [&str; 10] = [
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "timestep_spacing",
    "steps_offset",
    "clip_sample",
    "clip_sample_range",
    "set_alpha_to_one",
    "variance_type",
];

impl Diffusion {
    /// Size that the image in x is clipped to, if it is.
    pub fn clip(&self) -> Option<f32> {
        self.clip_sample.then_some(self.clip_sample_range)
    }

    /// Takes over what `given` says; `learned` tells whether the model has channels for a variance.
    ///
    /// # Errors
    /// One line: the field, what was found, what was expected.
    pub(super) fn overlay(&mut self, given: &Map<String, Value>, learned: bool) -> Result<(), String> {
        if let Some(key) = given.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(unknown("key", key, KEYS));
        }
        let fields = Fields(given);
        let set = |to: &mut f64, name| -> Result<(), String> {
            fields.number(&[name]).map(|found| *to = found.map_or(*to, |(_, value)| value))
        };
        if let Some((_, steps)) = fields.integer(&["num_train_timesteps"])? {
            self.train_steps = steps;
        }
        choose(&fields, "beta_schedule", &mut self.beta_schedule)?;
        set(&mut self.beta_range.0, "beta_start")?;
        set(&mut self.beta_range.1, "beta_end")?;
        choose(&fields, "timestep_spacing", &mut self.spacing)?;
        if let Some((_, offset)) = fields.integer(&["steps_offset"])? {
            self.steps_offset = offset;
        }
        let mut range = f64::from(self.clip_sample_range);
        set(&mut range, "clip_sample_range")?;
        self.clip_sample_range = range as f32;
        for (to, name) in [(&mut self.clip_sample, "clip_sample"), (&mut self.set_alpha_to_one, "set_alpha_to_one")] {
            *to = fields.flag(name)?.map_or(*to, |(_, flag)| flag);
        }
        choose(&fields, "variance_type", &mut self.variance)?;
        self.check(learned)
    }

    fn check(&self, learned: bool) -> Result<(), String> {
        let (start, end) = self.beta_range;
        if !(1..=MAX_TRAIN_STEPS).contains(&self.train_steps) {
            return Err(format!("num_train_timesteps is {}, 1 to {MAX_TRAIN_STEPS} expected", self.train_steps));
        }
        if self.beta_schedule != BetaSchedule::SquaredCosine && !(0.0 < start && start <= end && end < 1.0) {
            return Err(format!("beta_start is {start}, beta_end {end}: 0 < beta_start <= beta_end < 1 expected"));
        }
        if self.steps_offset >= self.train_steps {
            return Err(format!("steps_offset is {}, less than num_train_timesteps expected", self.steps_offset));
        }
        if !(self.clip_sample_range > 0.0 && self.clip_sample_range.is_finite()) {
            return Err(format!("clip_sample_range is {}, a positive number expected", self.clip_sample_range));
        }
        if self.variance == Variance::LearnedRange && !learned {
            return Err("variance_type is learned_range, but the model has no output channels for a variance".into());
        }
        Ok(())
    }

    /// The settings as `config.json` holds them.
    pub fn to_json(&self) -> Map<String, Value> {
        let (start, end) = self.beta_range;
        let json = json!({
            "num_train_timesteps": self.train_steps,
            "beta_schedule": self.beta_schedule.name(),
            "beta_start": start,
            "beta_end": end,
            "timestep_spacing": self.spacing.name(),
            "steps_offset": self.steps_offset,
            "clip_sample": self.clip_sample,
            "clip_sample_range": self.clip_sample_range,
            "set_alpha_to_one": self.set_alpha_to_one,
            "variance_type": self.variance.name(),
        });
        match json {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

fn choose<T: Choice>(fields: &Fields, name: &'static str, to: &mut T) -> Result<(), String> {
    if let Some((name, text)) = fields.text(name)? {
        let found = T::ALL.iter().find(|(known, _)| *known == text);
        let (_, choice) = found.ok_or_else(|| {
            let known: Vec<&str> = T::ALL.iter().map(|(known, _)| *known).collect();
            format!("{name} is {text:?}, one of {} expected", known.join(", "))
        })?;
        *to = *choice;
    }
    Ok(())
}
