//! Which times a solver evaluates the velocity at, and what it does with each velocity.
//!
//! x_t = (1 - t) data + t noise, so dx/dt = noise - data = v, and sampling integrates from t = 1 to t = 0. Every
//! solver here is explicit, so a run is a list of evaluations, each followed by one linear update of the state.

use super::diffusion::DiffusionSteps;
pub use crate::models::sampling::Solver;

use crate::models::sampling::is_time_shift;
use crate::ops::solver::{FROM_BASE, LAST, SAVE_BASE, SAVE_PREV, SolverStep};

/// Which times are fed to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeConvention {
    /// As in training: S steps from t = 1 (noise) to t = 0 (data).
    Train,
    /// As the published notebooks do: the points linspace(0, 1, S), so S - 1 steps, and t rising from 0 while x goes
    /// from noise to data.
    Notebook,
}

impl TimeConvention {
    /// Name in flags and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Notebook => "notebook",
        }
    }
}

/// Most steps of a schedule: far more than any model gains from, and a bound on what a run computes and keeps per step.
pub const MAX_STEPS: usize = 100_000;

/// The evaluations of one trajectory, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Time of each evaluation.
    pub times: Vec<f64>,
    /// The update after each.
    pub steps: Steps,
}

/// The updates of a trajectory.
#[derive(Clone, Debug, PartialEq)]
pub enum Steps {
    /// Of a velocity model.
    Flow(Vec<SolverStep>),
    /// Of a diffusion model.
    Diffusion(DiffusionSteps),
}

impl Schedule {
    /// `steps` equal steps of `solver`; computed in f64. `None` if there would be no evaluation, or for more than
    /// [`MAX_STEPS`] steps.
    pub fn new(solver: Solver, steps: usize, convention: TimeConvention) -> Option<Self> {
        Self::shifted(solver, steps, convention, 1.0)
    }

    /// The same where each t of the equal steps from 1 to 0 becomes s t / (1 + (s - 1) t), s = `shift` (Esser et al. 2024,
    /// arXiv 2403.03206, section 5.3.2; `shift` of diffusers' flow-matching schedulers): below 1 steps are shorter near the
    /// data, above 1 near the noise. `None` also for a shift that is none ([`is_time_shift`]), or another than 1 with the
    /// notebooks' times.
    pub fn shifted(solver: Solver, steps: usize, convention: TimeConvention, shift: f64) -> Option<Self> {
        let intervals = match convention {
            TimeConvention::Train => steps,
            TimeConvention::Notebook => steps.saturating_sub(1),
        };
        let equal = shift == 1.0;
        if intervals == 0 || steps > MAX_STEPS || !is_time_shift(shift) {
            return None;
        }
        if !equal && convention == TimeConvention::Notebook {
            return None;
        }
        let n = intervals as f64;
        // The time fed to the model when the integration is at `at`, which runs from 0 (noise) to `intervals` (data).
        let time = |at: f64| match convention {
            TimeConvention::Train if equal => (n - at) / n,
            TimeConvention::Train => shift * (n - at) / (n + (shift - 1.0) * (n - at)),
            TimeConvention::Notebook => at / n,
        };
        // Length of the step from there, and the time in the middle of it.
        let length = |at: f64| if equal { 1.0 / n } else { time(at) - time(at + 1.0) };
        let middle = |at: f64| if equal { time(at + 0.5) } else { 0.5 * (time(at) + time(at + 1.0)) };
        let mut schedule = Flow { times: Vec::new(), steps: Vec::new() };
        for i in 0..intervals {
            let at = i as f64;
            let h = length(at);
            match solver {
                Solver::Euler => schedule.push(time(at), -h, 0.0, 0),
                Solver::Heun => {
                    schedule.push(time(at), -h, 0.0, SAVE_BASE | SAVE_PREV);
                    schedule.push(time(at + 1.0), -h / 2.0, -h / 2.0, FROM_BASE);
                }
                Solver::Midpoint => {
                    schedule.push(time(at), -h / 2.0, 0.0, SAVE_BASE);
                    schedule.push(middle(at), -h, 0.0, FROM_BASE);
                }
                Solver::Ab2 if i == 0 => schedule.push(time(at), -h, 0.0, SAVE_PREV),
                Solver::Ab2 => {
                    // The line through this velocity and the one before, integrated over a step `ratio` times as long.
                    let ratio = h / length(at - 1.0);
                    schedule.push(time(at), -(1.0 + 0.5 * ratio) * h, 0.5 * ratio * h, SAVE_PREV);
                }
            }
        }
        let Flow { times, mut steps } = schedule;
        if let Some(last) = steps.last_mut() {
            last.flags |= LAST;
        }
        Some(Self { times, steps: Steps::Flow(steps) })
    }

    /// Number of function evaluations (NFE).
    pub fn evaluations(&self) -> usize {
        self.times.len()
    }
}

/// The evaluations of a velocity model as they are put together.
struct Flow {
    times: Vec<f64>,
    steps: Vec<SolverStep>,
}

impl Flow {
    fn push(&mut self, time: f64, v_coef: f64, prev_coef: f64, flags: u32) {
        self.times.push(time);
        let step = SolverStep { v_coef: v_coef as f32, prev_coef: prev_coef as f32, flags, reserved: 0 };
        self.steps.push(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(schedule: &Schedule) -> &[SolverStep] {
        match &schedule.steps {
            Steps::Flow(steps) => steps,
            Steps::Diffusion(_) => panic!("steps of a velocity model expected"),
        }
    }

    /// Integrates dx/dt = velocity(t, x) from x(1) = 1 with the updates of a schedule.
    fn integrate(solver: Solver, steps: usize, shift: f64, velocity: impl Fn(f64, f64) -> f64) -> f64 {
        let schedule = Schedule::shifted(solver, steps, TimeConvention::Train, shift).unwrap();
        let (mut x, mut base, mut prev) = (1.0f64, 0.0, 0.0);
        for (t, s) in schedule.times.iter().zip(flow(&schedule)) {
            let v = velocity(*t, x);
            let from = if s.flags & FROM_BASE != 0 { base } else { x };
            let new = from + s.v_coef as f64 * v + s.prev_coef as f64 * prev;
            if s.flags & SAVE_BASE != 0 {
                base = x;
            }
            if s.flags & SAVE_PREV != 0 {
                prev = v;
            }
            x = new;
        }
        x
    }

    #[test]
    fn solvers_converge_at_their_order() {
        // dx/dt = t x leads to x(0) = e^(-1/2).
        let exact = (-0.5f64).exp();
        for shift in [1.0, 0.5, 0.3] {
            for (solver, order) in [(Solver::Euler, 1), (Solver::Heun, 2), (Solver::Midpoint, 2), (Solver::Ab2, 2)] {
                let error = |n| (integrate(solver, n, shift, |t, x| t * x) - exact).abs();
                let rate = (error(40) / error(80)).log2();
                println!("{} with shift {shift} converges with order {rate}", solver.name());
                approx::assert_abs_diff_eq!(rate, order as f64, epsilon = 0.25);
            }
        }
    }

    /// What 50 Euler steps leave of the deviation of data N(0, sigma^2): x_t has the variance (1 - t)^2 sigma^2 + t^2, and
    /// the velocity is E[noise - data | x_t] = x (t - (1 - t) sigma^2) / variance, along which x scales with the deviation.
    #[test]
    fn short_steps_near_the_data_keep_its_fine_structure() {
        let sigma: f64 = 0.0222;
        let velocity = |t: f64, x: f64| {
            let variance = (1.0 - t).powi(2) * sigma.powi(2) + t * t;
            x * (t - (1.0 - t) * sigma.powi(2)) / variance
        };
        let kept = |solver, shift| integrate(solver, 50, shift, velocity) / sigma;
        approx::assert_abs_diff_eq!(kept(Solver::Euler, 1.0), 0.6818, epsilon = 5e-4);
        approx::assert_abs_diff_eq!(kept(Solver::Euler, 0.1), 0.9539, epsilon = 5e-4);
        for solver in [Solver::Heun, Solver::Midpoint, Solver::Ab2] {
            let (equal, shifted) = (kept(solver, 1.0), kept(solver, 0.1));
            println!("{}: {equal:.4} at equal steps, {shifted:.4} shifted", solver.name());
            assert!((shifted - 1.0).abs() < 0.01 && (shifted - 1.0).abs() < 0.1 * (equal - 1.0).abs());
        }
    }

    /// Two steps of different length integrate a line exactly; the first one is Euler's.
    #[test]
    fn adams_bashforth_knows_the_length_of_the_step_before() {
        for shift in [0.05, 0.3, 1.0, 4.0] {
            let second = shift * 9.0 / (10.0 + (shift - 1.0) * 9.0);
            let want = 1.0 - (1.0 - second) - 0.5 * second * second;
            approx::assert_abs_diff_eq!(integrate(Solver::Ab2, 10, shift, |t, _| t), want, epsilon = 1e-6);
        }
    }

    #[test]
    fn shifted_grids_are_those_of_the_formula() {
        let shifted = |solver, shift| Schedule::shifted(solver, 8, TimeConvention::Train, shift).unwrap();
        for solver in [Solver::Euler, Solver::Heun, Solver::Midpoint, Solver::Ab2] {
            assert_eq!(shifted(solver, 1.0), Schedule::new(solver, 8, TimeConvention::Train).unwrap());
        }
        let grid = shifted(Solver::Euler, 0.25);
        let mut ends = grid.times.clone();
        ends.push(0.0);
        for (i, (step, ends)) in flow(&grid).iter().zip(ends.windows(2)).enumerate() {
            let t = 1.0 - i as f64 / 8.0;
            approx::assert_abs_diff_eq!(ends[0], 0.25 * t / (1.0 - 0.75 * t), epsilon = 1e-15);
            approx::assert_abs_diff_eq!(f64::from(step.v_coef), ends[1] - ends[0], epsilon = 1e-7);
        }
        assert_eq!(grid.times[0], 1.0);
        for shift in [0.0, -1.0, 100.5, f64::NAN, f64::INFINITY] {
            assert_eq!(Schedule::shifted(Solver::Euler, 8, TimeConvention::Train, shift), None, "{shift}");
        }
        assert_eq!(Schedule::shifted(Solver::Euler, 8, TimeConvention::Notebook, 0.5), None);
        assert!(Schedule::shifted(Solver::Euler, 8, TimeConvention::Notebook, 1.0).is_some());
    }

    #[test]
    fn evaluations_and_times_are_the_documented_ones() {
        let train = Schedule::new(Solver::Euler, 50, TimeConvention::Train).unwrap();
        assert_eq!((train.evaluations(), train.times[0], train.times[49]), (50, 1.0, 0.02));
        let notebook = Schedule::new(Solver::Euler, 50, TimeConvention::Notebook).unwrap();
        assert_eq!((notebook.evaluations(), notebook.times[0], notebook.times[48]), (49, 0.0, 48.0 / 49.0));
        assert_eq!(Schedule::new(Solver::Heun, 10, TimeConvention::Train).unwrap().evaluations(), 20);
        assert_eq!(Schedule::new(Solver::Ab2, 10, TimeConvention::Train).unwrap().evaluations(), 10);
        assert_eq!(Schedule::new(Solver::Euler, 0, TimeConvention::Train), None);
        assert_eq!(Schedule::new(Solver::Euler, 1, TimeConvention::Notebook), None);
        assert_eq!(Schedule::new(Solver::Heun, MAX_STEPS, TimeConvention::Train).unwrap().evaluations(), 2 * MAX_STEPS);
        assert_eq!(Schedule::new(Solver::Euler, u32::MAX as usize, TimeConvention::Train), None);
        let last: Vec<bool> = flow(&train).iter().map(|s| s.flags & LAST != 0).collect();
        assert!(last[49] && !last[..49].contains(&true));
    }
}
