//! `[run]`: how long, from which seed, and what is written on the way.

use super::section::{positive, section, within};

/// Most steps of a run, and most steps between two events.
const MAX_STEPS: u64 = 1_000_000_000;

/// Steps of a run that says neither steps nor minutes.
const DEFAULT_STEPS: u64 = 10_000;

section! {
    /// Length and bookkeeping. Every N steps means after N, 2 N, ... of them, and 0 is never.
    RunSection, "run" {
        /// Steps; 10,000 where minutes are not given either.
        steps: Option<u64> = None,
        /// Minutes; what is reached first ends the run.
        minutes: Option<f64> = None,
        /// Seed of weights, order, augmentation, noise, times and dropout.
        seed: u64 = 0,
        /// Steps between two lines of the log.
        log_every: u64 = 10,
        /// Steps between two validations.
        validate_every: u64 = 200,
        /// Most images of a validation; 0 is no validation.
        validation_images: usize = 1024,
        /// Validations without a new best one that end the run; 0 is off.
        patience: u64 = 0,
        /// Steps between two checkpoints; the end of the run is one in any case.
        save_every: u64 = 200,
        /// Checkpoints kept.
        keep: usize = 2,
        /// Steps between two grids of samples, all from the same noise.
        sample_every: u64 = 1000,
        /// Images of a grid.
        sample_images: usize = 9,
        /// Solver steps of a grid.
        sample_steps: usize = 20,
    }
}

impl RunSection {
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(steps) = self.steps {
            within("steps", steps, 1..=MAX_STEPS)?;
        }
        if let Some(minutes) = self.minutes {
            positive("minutes", minutes, 1e6)?;
        }
        // TOML has signed integers only.
        within("seed", self.seed, 0..=i64::MAX as u64)?;
        within("log_every", self.log_every, 1..=MAX_STEPS)?;
        for (key, every) in [
            ("validate_every", self.validate_every),
            ("patience", self.patience),
            ("save_every", self.save_every),
            ("sample_every", self.sample_every),
        ] {
            within(key, every, 0..=MAX_STEPS)?;
        }
        within("validation_images", self.validation_images, 0..=1 << 26)?;
        within("keep", self.keep, 1..=1000)?;
        within("sample_images", self.sample_images, 1..=1024)?;
        within("sample_steps", self.sample_steps, 1..=10_000)?;
        if self.patience > 0 && (self.validate_every == 0 || self.validation_images == 0) {
            return Err("patience needs validations, but validate_every or validation_images is 0".into());
        }
        Ok(())
    }

    /// Last step of the run, where steps end it.
    pub fn last_step(&self) -> Option<u64> {
        self.steps.or(self.minutes.is_none().then_some(DEFAULT_STEPS))
    }

    /// How much of the run is over after `steps` and `seconds`, from 0 to 1: by what ends it first.
    pub fn progress(&self, steps: u64, seconds: f64) -> f64 {
        let by_steps = self.last_step().map_or(0.0, |last| steps as f64 / last as f64);
        let by_time = self.minutes.map_or(0.0, |minutes| seconds / (60.0 * minutes));
        by_steps.max(by_time).clamp(0.0, 1.0)
    }
}
