//! DDPM and DDIM: which timesteps a diffusion model is asked at, and what each step makes of its answer, as diffusers'
//! `DDPMScheduler` and `DDIMScheduler` do. Everything is computed here in f64; the device gets a table.
//!
//! x_t = sqrt(a_t) data + sqrt(1 - a_t) noise, a_t the product of 1 - beta up to t, and 1 behind the last step. Every step
//! has the form of [`Coefficients`], whatever is predicted.

use std::f64::consts::FRAC_PI_2;

use super::schedule::{Schedule, Steps};
use crate::models::config::Prediction;
use crate::models::diffusion::{BetaSchedule, Diffusion, Spacing, Variance};
use crate::ops::diffusion::{DiffusionStep, LAST, LEARNED};

/// How the noise is taken out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DiffusionSolver {
    /// Song et al. 2021 (arXiv 2010.02502); deterministic at eta 0, with the noise of DDPM at eta 1.
    Ddim {
        /// Share of the noise that is drawn anew, from 0 to 1.
        eta: f64,
    },
    /// Ancestral sampling (Ho et al. 2020, arXiv 2006.11239).
    Ddpm,
}

impl DiffusionSolver {
    /// Name in flags and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim { .. } => "ddim",
            Self::Ddpm => "ddpm",
        }
    }

    /// Whether steps draw noise of their own, so that a run with given starting noise needs a seed too.
    pub fn draws_noise(self) -> bool {
        self != Self::Ddim { eta: 0.0 }
    }
}

/// The steps of a diffusion model.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffusionSteps {
    /// One row per evaluation.
    pub rows: Vec<DiffusionStep>,
    /// What the model predicts.
    pub prediction: Prediction,
    /// Size that the image in x is clipped to at every step.
    pub clip: Option<f32>,
    /// How many channels are guided, from the first; all if not given.
    pub guided_channels: Option<usize>,
}

/// One step: x0 = x0_x x + x0_m m of what is predicted m, clipped; x <- k_0 x0 + k_x x + k_m m + sigma z.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Factor of x in the image that the model sees in x.
    pub x0_x: f64,
    /// Factor of the prediction in it.
    pub x0_m: f64,
    /// Factor of that image.
    pub k_0: f64,
    /// Factor of x.
    pub k_x: f64,
    /// Factor of the prediction.
    pub k_m: f64,
    /// Deviation of the noise; of a learned one its least.
    pub sigma: f64,
    /// Logarithm of the largest deviation over the least, where it is learned.
    pub log_ratio: f64,
}

/// a_t of each timestep: the share of data in the variance.
pub fn alphas(settings: &Diffusion) -> Vec<f64> {
    let (t, (start, end)) = (settings.train_steps, settings.beta_range);
    let last = (t.max(2) - 1) as f64;
    let between = |a: f64, b: f64, i: usize| a + (b - a) * i as f64 / last;
    let share = |i: usize| ((i as f64 / t as f64 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
    let beta = |i: usize| match settings.beta_schedule {
        BetaSchedule::Linear => between(start, end, i),
        BetaSchedule::ScaledLinear => between(start.sqrt(), end.sqrt(), i).powi(2),
        BetaSchedule::SquaredCosine => (1.0 - share(i + 1) / share(i)).min(0.999),
    };
    let product = |a: &mut f64, i: usize| {
        *a *= 1.0 - beta(i);
        Some(*a)
    };
    (0..t).scan(1.0, product).collect()
}

/// The timesteps of `steps` steps, falling.
///
/// # Errors
/// One line, for more steps than there are timesteps, or an offset that leads past them.
pub fn timesteps(settings: &Diffusion, steps: usize) -> Result<Vec<usize>, String> {
    let t = settings.train_steps;
    if !(1..=t).contains(&steps) {
        return Err(format!("--steps {steps}: 1 to {t} expected, the timesteps that the model was trained on"));
    }
    let at = |i: usize| match settings.spacing {
        Spacing::Leading => (steps - 1 - i) * (t / steps) + settings.steps_offset,
        // As numpy rounds: halves to even.
        Spacing::Trailing => (t as f64 - i as f64 * (t as f64 / steps as f64)).round_ties_even() as usize - 1,
        Spacing::Linspace if steps == 1 => 0,
        Spacing::Linspace => {
            ((steps - 1 - i) as f64 * ((t - 1) as f64 / (steps - 1) as f64)).round_ties_even() as usize
        }
    };
    let all: Vec<usize> = (0..steps).map(at).collect();
    match all[0] < t {
        true => Ok(all),
        false => Err(format!(
            "--steps {steps}: with steps_offset {} the first timestep is {}",
            settings.steps_offset, all[0]
        )),
    }
}

/// The steps in f64, and the timestep of each.
///
/// # Errors
/// Those of [`timesteps`].
pub fn coefficients(
    solver: DiffusionSolver,
    steps: usize,
    prediction: Prediction,
    settings: &Diffusion,
) -> Result<(Vec<usize>, Vec<Coefficients>), String> {
    let (times, alphas) = (timesteps(settings, steps)?, alphas(settings));
    let end = if settings.set_alpha_to_one { 1.0 } else { alphas[0] };
    let row = |(i, &t): (usize, &usize)| {
        let a = alphas[t];
        match solver {
            DiffusionSolver::Ddim { eta } => {
                // A fixed distance behind t, whatever the next timestep is.
                let before = t.checked_sub(settings.train_steps / steps).map_or(end, |t| alphas[t]);
                ddim(prediction, a, before, eta)
            }
            DiffusionSolver::Ddpm => {
                let before = times.get(i + 1).map_or(1.0, |&t| alphas[t]);
                ddpm(prediction, a, before, t > 0, settings.variance)
            }
        }
    };
    let rows = times.iter().enumerate().map(row).collect();
    Ok((times, rows))
}

/// Factors (of x, of the prediction) of the image and of the noise that the model sees in x.
fn seen(prediction: Prediction, a: f64) -> ([f64; 2], [f64; 2]) {
    let (data, noise) = (a.sqrt(), (1.0 - a).sqrt());
    match prediction {
        Prediction::V => ([data, -noise], [noise, data]),
        Prediction::Sample => ([0.0, 1.0], [1.0 / noise, -data / noise]),
        // Velocities have no diffusion steps: `Schedule::diffusion` refuses them.
        Prediction::Epsilon | Prediction::Velocity => ([1.0 / data, -noise / data], [0.0, 1.0]),
    }
}

fn ddim(prediction: Prediction, a: f64, before: f64, eta: f64) -> Coefficients {
    let ([x0_x, x0_m], [noise_x, noise_m]) = seen(prediction, a);
    let variance = (1.0 - before) / (1.0 - a) * (1.0 - a / before);
    let sigma = eta * variance.max(0.0).sqrt();
    let direction = (1.0 - before - sigma * sigma).max(0.0).sqrt();
    let (k_x, k_m) = (direction * noise_x, direction * noise_m);
    Coefficients { x0_x, x0_m, k_0: before.sqrt(), k_x, k_m, sigma, log_ratio: 0.0 }
}

fn ddpm(prediction: Prediction, a: f64, before: f64, draws: bool, variance: Variance) -> Coefficients {
    let ([x0_x, x0_m], _) = seen(prediction, a);
    let (alpha, beta) = (a / before, 1.0 - a / before);
    // Bounded below as in diffusers: the last step of a run that does not end at timestep 0 has none.
    let small = ((1.0 - before) / (1.0 - a) * beta).max(1e-20);
    let least = if variance == Variance::FixedLarge { beta } else { small };
    let log_ratio = if variance == Variance::LearnedRange { 0.5 * (beta / small).ln() } else { 0.0 };
    Coefficients {
        x0_x,
        x0_m,
        k_0: before.sqrt() * beta / (1.0 - a),
        k_x: alpha.sqrt() * (1.0 - before) / (1.0 - a),
        k_m: 0.0,
        sigma: if draws { least.sqrt() } else { 0.0 },
        log_ratio,
    }
}

impl Schedule {
    /// `steps` steps of `solver` for a diffusion model.
    ///
    /// # Errors
    /// One line, for what cannot be: those of [`timesteps`], a velocity model, an eta outside of 0 to 1.
    pub fn diffusion(
        solver: DiffusionSolver,
        steps: usize,
        prediction: Prediction,
        settings: &Diffusion,
    ) -> Result<Self, String> {
        if prediction == Prediction::Velocity {
            return Err(format!("{} samples diffusion models, this one predicts a velocity", solver.name()));
        }
        if let DiffusionSolver::Ddim { eta } = solver
            && !(0.0..=1.0).contains(&eta)
        {
            return Err(format!("eta {eta}: a number from 0 to 1 expected"));
        }
        let (times, rows) = coefficients(solver, steps, prediction, settings)?;
        let learned = solver == DiffusionSolver::Ddpm && settings.variance == Variance::LearnedRange;
        let mut rows: Vec<DiffusionStep> = rows.iter().map(|row| row.to_step(learned)).collect();
        if let Some(last) = rows.last_mut() {
            last.flags |= LAST;
        }
        let steps = DiffusionSteps { rows, prediction, clip: settings.clip(), guided_channels: None };
        Ok(Self { times: times.iter().map(|&t| t as f64).collect(), steps: Steps::Diffusion(steps) })
    }
}

impl Coefficients {
    fn to_step(self, learned: bool) -> DiffusionStep {
        DiffusionStep {
            x0_x: self.x0_x as f32,
            x0_m: self.x0_m as f32,
            k_0: self.k_0 as f32,
            k_x: self.k_x as f32,
            k_m: self.k_m as f32,
            sigma: self.sigma as f32,
            log_ratio: self.log_ratio as f32,
            flags: if learned { LEARNED } else { 0 },
        }
    }
}
