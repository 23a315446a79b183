//! Which times a solver evaluates the velocity at, and what it does with each velocity.
//!
//! x_t = (1 - t) data + t noise, so dx/dt = noise - data = v, and sampling integrates from t = 1 to t = 0. Every
//! solver here is explicit, so a run is a list of evaluations, each followed by one linear update of the state.

use crate::ops::solver::{FROM_BASE, LAST, SAVE_BASE, SAVE_PREV, SolverStep};

/// Explicit solver of an ordinary differential equation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub steps: Vec<SolverStep>,
}

impl Schedule {
    /// `steps` steps of `solver`; computed in f64. `None` if there would be no evaluation, or for more than
    /// [`MAX_STEPS`] steps.
    pub fn new(solver: Solver, steps: usize, convention: TimeConvention) -> Option<Self> {
        let intervals = match convention {
            TimeConvention::Train => steps,
            TimeConvention::Notebook => steps.saturating_sub(1),
        };
        if intervals == 0 || steps > MAX_STEPS {
            return None;
        }
        let n = intervals as f64;
        // The time fed to the model when the integration is at `at`, which runs from 0 (noise) to `intervals` (data).
        let time = |at: f64| match convention {
            TimeConvention::Train => (n - at) / n,
            TimeConvention::Notebook => at / n,
        };
        let h = 1.0 / n;
        let mut schedule = Self { times: Vec::new(), steps: Vec::new() };
        for i in 0..intervals {
            let at = i as f64;
            match solver {
                Solver::Euler => schedule.push(time(at), -h, 0.0, 0),
                Solver::Heun => {
                    schedule.push(time(at), -h, 0.0, SAVE_BASE | SAVE_PREV);
                    schedule.push(time(at + 1.0), -h / 2.0, -h / 2.0, FROM_BASE);
                }
                Solver::Midpoint => {
                    schedule.push(time(at), -h / 2.0, 0.0, SAVE_BASE);
                    schedule.push(time(at + 0.5), -h, 0.0, FROM_BASE);
                }
                Solver::Ab2 if i == 0 => schedule.push(time(at), -h, 0.0, SAVE_PREV),
                Solver::Ab2 => schedule.push(time(at), -1.5 * h, 0.5 * h, SAVE_PREV),
            }
        }
        if let Some(last) = schedule.steps.last_mut() {
            last.flags |= LAST;
        }
        Some(schedule)
    }

    /// Number of function evaluations (NFE).
    pub fn evaluations(&self) -> usize {
        self.times.len()
    }

    fn push(&mut self, time: f64, v_coef: f64, prev_coef: f64, flags: u32) {
        self.times.push(time);
        let step = SolverStep { v_coef: v_coef as f32, prev_coef: prev_coef as f32, flags, reserved: 0 };
        self.steps.push(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Integrates dx/dt = t x (x(1) = 1, so x(0) = e^(-1/2)) with the updates of a schedule.
    fn integrate(solver: Solver, steps: usize) -> f64 {
        let schedule = Schedule::new(solver, steps, TimeConvention::Train).unwrap();
        let (mut x, mut base, mut prev) = (1.0f64, 0.0, 0.0);
        for (t, s) in schedule.times.iter().zip(&schedule.steps) {
            let v = t * x;
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
        let exact = (-0.5f64).exp();
        for (solver, order) in [(Solver::Euler, 1), (Solver::Heun, 2), (Solver::Midpoint, 2), (Solver::Ab2, 2)] {
            let error = |n| (integrate(solver, n) - exact).abs();
            let rate = (error(20) / error(40)).log2();
            println!("{} converges with order {rate}", solver.name());
            approx::assert_abs_diff_eq!(rate, order as f64, epsilon = 0.25);
        }
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
        let last: Vec<bool> = train.steps.iter().map(|s| s.flags & LAST != 0).collect();
        assert!(last[49] && !last[..49].contains(&true));
    }
}
