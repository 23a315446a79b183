//! What a step of the optimizer is made with: the values of Adam and AdamW, the dynamic loss scale of f16, and the decay of
//! the moving average of the weights. The arithmetic itself is in [`crate::ops::optimizer`].

use serde::{Deserialize, Serialize};

use crate::ops::optimizer::{AdamRule, StepValues};

/// What a step is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepInputs {
    /// Learning rate.
    pub lr: f64,
    /// What the loss was multiplied by before the backward pass; 1 where there is no loss scale.
    pub loss_scale: f64,
    /// Norm that the gradients are clipped to, if at all.
    pub clip: Option<f64>,
    /// Decay of the moving average ([`EmaRule::decay`]); 1 leaves it as it is.
    pub ema_decay: f64,
}

/// Values of step `t` = 1, 2, .. of a rule, as the device takes them.
pub fn step_values(rule: &AdamRule, t: u64, inputs: StepInputs) -> StepValues {
    let rest = |beta: f64| 1.0 - beta.powf(t as f64);
    StepValues {
        lr: inputs.lr,
        step_size: inputs.lr / rest(rule.beta1),
        root2: rest(rule.beta2).sqrt(),
        grad_scale: 1.0 / inputs.loss_scale,
        max_norm: inputs.clip.unwrap_or(f64::INFINITY),
        ema_weight: 1.0 - inputs.ema_decay,
    }
}

/// The dynamic loss scale of training in f16, by the rules of `torch.amp.GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    scale: f64,
    good: u32,
}

impl LossScale {
    /// Good steps in a row after which the scale doubles.
    pub const GROWTH_INTERVAL: u32 = 2000;

    /// Starts at `scale`; torch's is 65536.
    pub fn new(scale: f64) -> Self {
        Self { scale, good: 0 }
    }

    /// What the loss is multiplied by.
    pub fn value(&self) -> f64 {
        self.scale
    }

    /// Good steps since the scale changed.
    pub fn good_steps(&self) -> u32 {
        self.good
    }

    /// Takes notice of a step: halves after one whose gradients were not finite, but not below 1, and doubles after
    /// [`Self::GROWTH_INTERVAL`] good ones in a row while f32 holds the result.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = Self { scale: (self.scale / 2.0).max(1.0), good: 0 };
            return;
        }
        self.good += 1;
        if self.good == Self::GROWTH_INTERVAL {
            let doubled = self.scale * 2.0;
            *self = Self { scale: if doubled > f64::from(f32::MAX) { self.scale } else { doubled }, good: 0 };
        }
    }
}

/// How the decay of a moving average follows from the number of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmaRule {
    /// min(decay, (1 + n) / (10 + n)) for step n = 1, 2, ..: an average that forgets its start.
    Capped {
        /// The decay in the long run.
        decay: f64,
    },
    /// The same decay at every step.
    Constant {
        /// The decay.
        decay: f64,
    },
    /// The rule of the package ema-pytorch: see [`EmaRule::decay`].
    EmaPytorch {
        /// The decay in the long run.
        beta: f64,
        /// Steps that copy the weights.
        update_after_step: u64,
        /// Every how many steps something happens.
        update_every: u64,
        /// Divides the steps that count.
        inv_gamma: f64,
        /// Exponent: the larger, the sooner the decay comes to `beta`.
        power: f64,
        /// Least decay.
        min_value: f64,
    },
}

impl EmaRule {
    /// ema-pytorch's defaults.
    pub const EMA_PYTORCH: Self = Self::EmaPytorch {
        beta: 0.9999,
        update_after_step: 100,
        update_every: 10,
        inv_gamma: 1.0,
        power: 2.0 / 3.0,
        min_value: 0.0,
    };

    /// The decay at step n = 1, 2, ..: 0 copies the weights, 1 leaves the average as it is.
    ///
    /// ema-pytorch: step 1 copies; then only steps with (n - 1) % update_every = 0 do something: they copy while
    /// n - 1 <= update_after_step, and from then on the decay is 1 - (1 + e / inv_gamma)^-power with
    /// e = n - update_after_step - 1, between `min_value` and `beta`.
    pub fn decay(&self, n: u64) -> f64 {
        match *self {
            Self::Capped { decay } => decay.min((1.0 + n as f64) / (10.0 + n as f64)),
            Self::Constant { decay } => decay,
            Self::EmaPytorch { beta, update_after_step, update_every, inv_gamma, power, min_value } => {
                let before = n.saturating_sub(1);
                if !before.is_multiple_of(update_every.max(1)) {
                    1.0
                } else if before <= update_after_step {
                    0.0
                } else {
                    let e = (before - update_after_step) as f64;
                    (1.0 - (1.0 + e / inv_gamma).powf(-power)).clamp(min_value, beta)
                }
            }
        }
    }
}
