//! The learning rate as a function of the step.

/// How the learning rate goes, as factors of its peak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Steps of linear warm-up; 0 for none.
    pub warmup: u64,
    /// What comes behind the warm-up.
    pub shape: Shape,
    /// Factor that the schedule never falls below behind the warm-up, in [0, 1].
    pub floor: f64,
}

/// The learning rate behind the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The peak.
    Constant,
    /// Half a period of a cosine from the peak to nothing, held at the floor.
    Cosine,
    /// A line from the peak to nothing, held at the floor.
    Linear,
}

impl Schedule {
    /// The peak at every step.
    pub const CONSTANT: Self = Self { warmup: 0, shape: Shape::Constant, floor: 0.0 };

    /// Factor of the peak at `step` (0, 1, ..) of `total`. Warm-up: step / warmup, so step 0 has a factor of 0; then,
    /// with p = (step - warmup) / (total - warmup) and no more than 1: 1, (1 + cos πp) / 2 or 1 - p, at least `floor`.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let left = total.saturating_sub(self.warmup).max(1);
        self.after_warmup((step - self.warmup) as f64 / left as f64)
    }

    /// The same for a run that ends by the clock: `progress` is the part of the time that is used, and warm-up rises as
    /// (step + 1) / warmup beside it, so that the first step moves the weights.
    pub fn factor_of_progress(&self, step: u64, progress: f64) -> f64 {
        let rise = if step + 1 < self.warmup { (step + 1) as f64 / self.warmup as f64 } else { 1.0 };
        rise * self.after_warmup(progress)
    }

    /// Factor at the part `progress` of the way behind the warm-up.
    fn after_warmup(&self, progress: f64) -> f64 {
        let p = progress.clamp(0.0, 1.0);
        let factor = match self.shape {
            Shape::Constant => 1.0,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * p).cos()),
            Shape::Linear => 1.0 - p,
        };
        factor.max(self.floor)
    }
}
