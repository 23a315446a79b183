//! From flags and what a model predicts to the schedule that is followed.

use arclet::error::{Error, Result};
use arclet::flow::diffusion::DiffusionSolver;
use arclet::flow::schedule::{MAX_STEPS, Schedule, Solver, Steps, TimeConvention};
use arclet::models::config::{ModelConfig, Prediction};
use arclet::models::diffusion::Diffusion;
use clap::Args;
use serde_json::{Map, Value};

use super::options::{SolverChoice, SpacingChoice, TimeChoice, check_shift, parse_shift, shift_or};

/// How a trajectory is followed.
#[derive(Args, Debug, Clone)]
pub struct SolverArgs {
    /// Solver steps
    #[arg(long, value_name = "S", default_value_t = 50)]
    pub steps: u32,
    /// Solver [default: the model's own, else euler for a velocity model; ddim for a diffusion model]
    #[arg(long, value_enum)]
    solver: Option<SolverChoice>,
    /// Times that a velocity model is asked at
    #[arg(long, value_enum, default_value = "train")]
    time: TimeChoice,
    /// Shift of a velocity model's time grid, t' = S t / (1 + (S - 1) t): below 1 steps are shorter near the data, above 1 near
    /// the noise [default: the model's time_shift, else 1]
    #[arg(long, value_name = "S", value_parser = parse_shift, allow_negative_numbers = true)]
    shift: Option<f64>,
    /// Share of the noise that ddim draws anew at every step, from 0 to 1 [default: 0]
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    eta: Option<f64>,
    /// Timesteps that a diffusion model is asked at [default: the model's timestep_spacing, else leading]
    #[arg(long, value_enum)]
    spacing: Option<SpacingChoice>,
    /// Clip the image that a diffusion model sees in x, at every step, to the model's clip_sample_range, else 1
    #[arg(long)]
    clip_sample: bool,
    /// Guide the first N channels of a diffusion model's prediction only; DiT's own sampler guides 3 of 4 [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    guidance_channels: Option<u16>,
}

/// A schedule, and how the recipe describes it.
pub struct Plan {
    /// What is followed.
    pub schedule: Schedule,
    /// Name of the solver.
    pub solver: &'static str,
    /// Name of the time convention.
    pub time: &'static str,
    /// Shift of the time grid.
    pub shift: f64,
    /// Settings of a diffusion model's sampler.
    pub diffusion: Option<Map<String, Value>>,
    /// Whether steps draw noise of their own.
    pub draws_noise: bool,
}

impl SolverArgs {
    /// Refuses what is wrong for every model.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check(&self) -> Result<()> {
        let (steps, time) = (self.steps as usize, TimeConvention::from(self.time));
        let (least, said) = match time {
            TimeConvention::Train => (1, "1"),
            TimeConvention::Notebook => (2, "2 with --time notebook"),
        };
        if !(least..=MAX_STEPS).contains(&steps) {
            return Err(Error::usage(format!("--steps {steps}: at least {said} and at most {MAX_STEPS} expected")));
        }
        if let Some(eta) = self.eta.filter(|eta| !(0.0..=1.0).contains(eta)) {
            return Err(Error::usage(format!("--eta {eta}: a number from 0 to 1 expected")));
        }
        check_shift(self.shift, time)
    }

    /// The schedule for the model called `name`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a solver or flags that are not for this kind of model.
    pub fn plan(&self, config: &ModelConfig, name: &str) -> Result<Plan> {
        let predicts = config.prediction.name();
        let velocity = config.prediction == Prediction::Velocity;
        let own = if velocity { config.sampling.solver.into() } else { SolverChoice::Ddim };
        let solver = self.solver.unwrap_or(own);
        let flow = match solver {
            SolverChoice::Euler => Some(Solver::Euler),
            SolverChoice::Heun => Some(Solver::Heun),
            SolverChoice::Midpoint => Some(Solver::Midpoint),
            SolverChoice::Ab2 => Some(Solver::Ab2),
            SolverChoice::Ddim | SolverChoice::Ddpm => None,
        };
        if let Some(flag) = self.foreign(velocity, solver) {
            let expected =
                if velocity { "not for velocity models" } else { "not for this solver and diffusion models" };
            return Err(Error::usage(format!("{flag}: {expected}, and {name} predicts {predicts}")));
        }
        match flow {
            Some(flow) if velocity => self.flow(flow, config),
            None if !velocity => self.diffusion(solver, config),
            Some(flow) => {
                let flow = flow.name();
                Err(Error::usage(format!("--solver {flow}: {name} predicts {predicts}, ddim or ddpm expected")))
            }
            None => Err(Error::usage(format!(
                "--solver {}: {name} predicts {predicts}, euler, heun, midpoint or ab2 expected",
                if solver == SolverChoice::Ddpm { "ddpm" } else { "ddim" }
            ))),
        }
    }

    /// A flag that was given and means nothing here.
    fn foreign(&self, velocity: bool, solver: SolverChoice) -> Option<&'static str> {
        let given = [
            ("--eta", self.eta.is_some(), !velocity && solver != SolverChoice::Ddpm),
            ("--spacing", self.spacing.is_some(), !velocity),
            ("--clip-sample", self.clip_sample, !velocity),
            ("--guidance-channels", self.guidance_channels.is_some(), !velocity),
            ("--shift", self.shift.is_some(), velocity),
            ("--time notebook", self.time == TimeChoice::Notebook, velocity),
        ];
        given.iter().find(|(_, given, fits)| *given && !fits).map(|(flag, ..)| *flag)
    }

    fn flow(&self, solver: Solver, config: &ModelConfig) -> Result<Plan> {
        let (steps, time) = (self.steps as usize, TimeConvention::from(self.time));
        let shift = shift_or(self.shift, time, &config.sampling);
        let schedule = Schedule::shifted(solver, steps, time, shift)
            .ok_or_else(|| Error::Runtime(format!("no schedule of {steps} steps and shift {shift}")))?;
        let (solver, time) = (solver.name(), time.name());
        Ok(Plan { schedule, solver, time, shift, diffusion: None, draws_noise: false })
    }

    fn diffusion(&self, solver: SolverChoice, config: &ModelConfig) -> Result<Plan> {
        let mut settings: Diffusion = config.sampling.diffusion;
        settings.spacing = self.spacing.map_or(settings.spacing, Into::into);
        settings.clip_sample |= self.clip_sample;
        let eta = self.eta.unwrap_or(0.0);
        let ancestral = solver == SolverChoice::Ddpm;
        let solver = if ancestral { DiffusionSolver::Ddpm } else { DiffusionSolver::Ddim { eta } };
        let mut schedule =
            Schedule::diffusion(solver, self.steps as usize, config.prediction, &settings).map_err(Error::usage)?;
        let channels = usize::from(self.guidance_channels.unwrap_or(u16::MAX)).min(config.in_channels);
        if let Steps::Diffusion(steps) = &mut schedule.steps {
            steps.guided_channels = Some(channels);
        }
        let mut recipe = settings.to_json();
        recipe.insert("prediction".into(), config.prediction.name().into());
        recipe.insert("eta".into(), if ancestral { Value::Null } else { eta.into() });
        recipe.insert("guidance_channels".into(), channels.into());
        Ok(Plan {
            schedule,
            solver: solver.name(),
            time: "timesteps",
            shift: 1.0,
            diffusion: Some(recipe),
            draws_noise: solver.draws_noise(),
        })
    }
}
