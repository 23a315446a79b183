//! The check before any timing: a GPU's velocity and final images against those of the CPU in f32.

use std::fmt;

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::models::Model;
use arclet::tensor::DType;
use serde::Serialize;

use super::super::model::Weights;

/// Largest error of f32 relative to the largest value.
const F32_BOUND: f64 = 1e-4;
/// Largest RMS error of f16 and bf16, in units of the error that rounding every operation's inputs and output gives.
const ROUNDING_BOUND: f64 = 2.0;
/// Seed of the noise that is compared on.
const SEED: u64 = 20;
/// The image that is compared, whose noise and class do not depend on the batch it is drawn in.
const IMAGE: u64 = 1 << 20;

/// Errors that were found, and their bounds: of f32 the largest difference over the largest value, of f16 and bf16 the
/// RMS difference over the RMS value. A bound for f16 and bf16 is twice the error that the CPU makes when it rounds
/// the inputs and the output of every operation to the type.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// Of the velocity at t = 1.
    pub velocity_error: f64,
    /// Its bound.
    pub velocity_bound: f64,
    /// Of the image at the end of the schedule, not clamped.
    pub image_error: f64,
    /// Its bound.
    pub image_bound: f64,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { velocity_error, velocity_bound, image_error, image_bound } = self;
        write!(
            f,
            "checked against the CPU in f32: velocity off by {velocity_error:.2e} of {velocity_bound:.2e} allowed, \
             final image by {image_error:.2e} of {image_bound:.2e}"
        )
    }
}

/// Velocity and final image of one noise.
struct Outcome {
    velocity: Vec<f32>,
    image: Vec<f32>,
}

/// What a model on a GPU has to come close to, for one schedule and guidance scale.
pub struct Reference {
    schedule: Schedule,
    guidance: f32,
    exact: Outcome,
    /// The same with every operation rounded to f16 or bf16; `None` for f32.
    rounded: Option<Outcome>,
}

impl Reference {
    /// Computes it on `cpu`, for a model of type `dtype`.
    ///
    /// # Errors
    /// Those of loading and sampling.
    pub fn new(cpu: &Device, weights: &Weights, dtype: DType, schedule: &Schedule, guidance: f32) -> Result<Self> {
        let outcome = |dtype| Outcome::of(&weights.load(cpu, dtype)?, schedule, guidance, 1);
        let rounded = if dtype == DType::F32 { None } else { Some(outcome(dtype)?) };
        Ok(Self { schedule: schedule.clone(), guidance, exact: outcome(DType::F32)?, rounded })
    }

    /// Compares `model` with it, which draws `batch` images; their last one is compared.
    ///
    /// # Errors
    /// [`Error::Runtime`] if it is wrong; [`Error::OutOfMemory`]; those of the device.
    pub fn check(&self, model: &Model, batch: usize) -> Result<Gate> {
        self.judge(&Outcome::of(model, &self.schedule, self.guidance, batch)?)
    }

    fn judge(&self, got: &Outcome) -> Result<Gate> {
        let compare = |part: fn(&Outcome) -> &[f32]| match &self.rounded {
            None => (largest_error(part(got), part(&self.exact)), F32_BOUND),
            Some(rounded) => {
                let bound = ROUNDING_BOUND * rms_error(part(rounded), part(&self.exact));
                (rms_error(part(got), part(&self.exact)), bound)
            }
        };
        let (velocity_error, velocity_bound) = compare(|o| &o.velocity);
        let (image_error, image_bound) = compare(|o| &o.image);
        let gate = Gate { velocity_error, velocity_bound, image_error, image_bound };
        // An error that is not a number is within no bound.
        if velocity_error <= velocity_bound && image_error <= image_bound {
            Ok(gate)
        } else {
            Err(Error::Runtime(format!("wrong results are not timed: {gate}")))
        }
    }
}

impl Outcome {
    /// Of image [`IMAGE`], drawn as the last of `batch`.
    fn of(model: &Model, schedule: &Schedule, guidance: f32, batch: usize) -> Result<Self> {
        let one = Schedule::new(Solver::Euler, 1, TimeConvention::Train)
            .ok_or_else(|| Error::Runtime("a schedule of one step holds none".into()))?;
        let (noise, moved) = draw(model, &one, guidance, batch)?;
        // One step of length one from t = 1.
        let velocity = noise.iter().zip(&moved).map(|(n, m)| n - m).collect();
        Ok(Self { velocity, image: draw(model, schedule, guidance, batch)?.1 })
    }
}

/// Noise and result of image [`IMAGE`].
fn draw(model: &Model, schedule: &Schedule, guidance: f32, batch: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut sampler = Sampler::new(model, schedule, batch, SamplerOptions { guidance, clamp: false })?;
    sampler.draw_noise(SEED, (IMAGE + 1).wrapping_sub(batch as u64))?;
    let last = (batch - 1) * sampler.image_len();
    let noise = sampler.state()?.split_off(last);
    let classes = if model.config.classes.is_some() { vec![0; batch] } else { Vec::new() };
    sampler.run(&classes)?;
    Ok((noise, sampler.state()?.split_off(last)))
}

/// max |got - want| / max |want|; not a number if `got` holds such.
fn largest_error(got: &[f32], want: &[f32]) -> f64 {
    let top = want.iter().fold(0f64, |m, &w| m.max(f64::from(w).abs()));
    // `f64::max` would drop what is not a number.
    let worst = |m: f64, d: f64| if d.is_nan() || d > m { d } else { m };
    got.iter().zip(want).map(|(&g, &w)| (f64::from(g) - f64::from(w)).abs()).fold(0.0, worst) / top
}

/// Root of the mean squared difference over that of the mean square of `want`.
fn rms_error(got: &[f32], want: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = squares(&mut got.iter().zip(want).map(|(&g, &w)| f64::from(g) - f64::from(w)));
    (difference / squares(&mut want.iter().map(|&w| f64::from(w)))).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(velocity: f32, image: f32) -> Outcome {
        Outcome { velocity: vec![velocity, 1.0], image: vec![image, 1.0] }
    }

    #[test]
    fn wrong_results_are_refused() {
        let reference = |rounded| Reference {
            schedule: Schedule::new(Solver::Euler, 1, TimeConvention::Train).unwrap(),
            guidance: 1.0,
            exact: outcome(0.5, 0.5),
            rounded,
        };
        let f32_only = reference(None);
        assert!(f32_only.judge(&outcome(0.50005, 0.49995)).is_ok());
        let half = reference(Some(outcome(0.501, 0.502)));
        assert!(half.judge(&outcome(0.4985, 0.497)).is_ok());
        for reference in [f32_only, half] {
            for (velocity, image) in [(0.505, 0.5), (0.5, 0.505), (f32::NAN, 0.5), (0.5, f32::INFINITY)] {
                let refused = reference.judge(&outcome(velocity, image)).unwrap_err();
                assert_eq!(refused.exit_code(), 1);
                assert!(refused.to_string().contains("not timed"), "{refused}");
            }
        }
    }
}
