//! What a model's configuration says about sampling it, beyond what decides its shapes.

use serde_json::{Map, Value};

use super::config::Prediction;
use super::fields::Fields;

/// Largest shift of a time grid.
pub const MAX_TIME_SHIFT: f64 = 100.0;

/// How a model is sampled unless the user says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Shift s of the time grid of a velocity model: t' = s t / (1 + (s - 1) t) for t at equal steps from 1 to 0. Below 1
    /// steps are shorter near the data, above 1 near the noise. In `config.json` as `time_shift`.
    pub time_shift: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { time_shift: 1.0 }
    }
}

/// Whether a time grid can be shifted by `shift`: a number above 0, at most [`MAX_TIME_SHIFT`].
pub fn is_time_shift(shift: f64) -> bool {
    shift > 0.0 && shift <= MAX_TIME_SHIFT
}

impl Sampling {
    /// Takes its keys from a configuration.
    ///
    /// # Errors
    /// One line: the field, what was found, what was expected.
    pub(super) fn overlay(&mut self, fields: &Fields, prediction: Prediction) -> Result<(), String> {
        if let Some((name, shift)) = fields.number(&["time_shift"])? {
            if !is_time_shift(shift) {
                return Err(format!("{name} is {shift}, a number above 0 and up to {MAX_TIME_SHIFT} expected"));
            }
            if prediction != Prediction::Velocity {
                return Err(format!("{name} is {shift}, but only the times of velocity models can be shifted"));
            }
            self.time_shift = shift;
        }
        Ok(())
    }

    /// Adds its keys to a configuration.
    pub(super) fn insert_into(&self, map: &mut Map<String, Value>, prediction: Prediction) {
        if prediction == Prediction::Velocity {
            map.insert("time_shift".into(), self.time_shift.into());
        }
    }
}
