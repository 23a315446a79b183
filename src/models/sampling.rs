//! What a model's configuration says about sampling it, beyond what decides its shapes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::Prediction;
use super::diffusion::{Diffusion, Variance};
use super::fields::Fields;

/// Largest shift of a time grid.
pub const MAX_TIME_SHIFT: f64 = 100.0;

/// Explicit solver of an ordinary differential equation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// Forward Euler: one evaluation per step, first order.
    Euler,
    /// Heun's trapezoidal rule: two evaluations per step, second order.
    Heun,
    /// Explicit midpoint rule: two evaluations per step, second order.
    Midpoint,
    /// Adams-Bashforth of two steps, started by Euler: one evaluation per step, second order.
    Ab2,
}

impl Solver {
    /// Every solver.
    pub const ALL: [Self; 4] = [Self::Euler, Self::Heun, Self::Midpoint, Self::Ab2];

    /// Name in flags and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Heun => "heun",
            Self::Midpoint => "midpoint",
            Self::Ab2 => "ab2",
        }
    }
}

/// How a model is sampled unless the user says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Shift s of the time grid of a velocity model: t' = s t / (1 + (s - 1) t) for t at equal steps from 1 to 0. Below 1
    /// steps are shorter near the data, above 1 near the noise. In `config.json` as `time_shift`.
    pub time_shift: f64,
    /// Solver of a velocity model. In `config.json` as `solver`, where it is not Euler's.
    pub solver: Solver,
    /// Noise schedule and sampler of a diffusion model.
    pub diffusion: Diffusion,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { time_shift: 1.0, solver: Solver::Euler, diffusion: Diffusion::default() }
    }
}

/// Whether a time grid can be shifted by `shift`: a number above 0, at most [`MAX_TIME_SHIFT`].
pub fn is_time_shift(shift: f64) -> bool {
    shift > 0.0 && shift <= MAX_TIME_SHIFT
}

impl Sampling {
    /// Takes its keys from the configuration of a model; `learned` tells whether that has channels for a variance.
    ///
    /// # Errors
    /// One line: the field, what was found, what was expected.
    pub(super) fn overlay(&mut self, fields: &Fields, prediction: Prediction, learned: bool) -> Result<(), String> {
        if let Some((name, shift)) = fields.number(&["time_shift"])? {
            if !is_time_shift(shift) {
                return Err(format!("{name} is {shift}, a number above 0 and up to {MAX_TIME_SHIFT} expected"));
            }
            if prediction != Prediction::Velocity {
                return Err(format!("{name} is {shift}, but only the times of velocity models can be shifted"));
            }
            self.time_shift = shift;
        }
        if let Some((name, solver)) = fields.text("solver")? {
            let known = Solver::ALL.into_iter().find(|known| known.name() == solver);
            self.solver =
                known.ok_or_else(|| format!("{name} is {solver:?}, euler, heun, midpoint or ab2 expected"))?;
            if prediction != Prediction::Velocity {
                return Err(format!("{name} is {solver:?}, but that is a solver for velocity models"));
            }
        }
        if prediction != Prediction::Velocity && learned {
            self.diffusion.variance = Variance::LearnedRange;
        }
        let Some(given) = fields.0.get("diffusion") else { return Ok(()) };
        if prediction == Prediction::Velocity {
            return Err("diffusion is given, but the model predicts a velocity".into());
        }
        let given = given.as_object().ok_or("diffusion is no object")?;
        self.diffusion.overlay(given, learned).map_err(|reason| format!("diffusion: {reason}"))
    }

    /// Adds its keys to a configuration.
    pub(super) fn insert_into(&self, map: &mut Map<String, Value>, prediction: Prediction) {
        if prediction != Prediction::Velocity {
            map.insert("diffusion".into(), self.diffusion.to_json().into());
            return;
        }
        map.insert("time_shift".into(), self.time_shift.into());
        if self.solver != Solver::Euler {
            map.insert("solver".into(), self.solver.name().into());
        }
    }
}
