//! The memory of one batch of whatever is trained: a flow model's or an auto-encoder's.

use super::vae::{VaeExamples, VaeStep};
use super::{Examples, Params, Step, Stop, other_model};
use crate::device::Device;
use crate::error::Result;
use crate::models::config::ModelConfig;
use crate::nn::training::Keeping;

/// A step of either.
pub enum Work {
    /// Of a velocity model.
    Flow(Box<Step>),
    /// Of an auto-encoder.
    Vae(Box<VaeStep>),
}

/// What a step is given, on the host.
#[derive(Clone, Copy)]
pub enum Given<'a> {
    /// To a velocity model.
    Flow(Examples<'a>),
    /// To an auto-encoder.
    Vae(VaeExamples<'a>),
}

impl<'a> From<&Examples<'a>> for Given<'a> {
    fn from(examples: &Examples<'a>) -> Self {
        Self::Flow(*examples)
    }
}

impl Work {
    /// Buffers for `batch` images of a model with these parameters; an auto-encoder keeps everything and drops nothing.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn new(config: &ModelConfig, params: &Params, device: &Device, batch: usize, keeping: Keeping) -> Result<Self> {
        Ok(match params {
            Params::Vae(params) => Self::Vae(Box::new(VaeStep::new(config, params, device, batch)?)),
            _ => Self::Flow(Box::new(Step::new(config, params, device, batch, keeping)?)),
        })
    }

    /// B.
    pub fn batch(&self) -> usize {
        match self {
            Self::Flow(step) => step.batch(),
            Self::Vae(step) => step.batch(),
        }
    }

    /// Bytes that blocks keep for their way back, and what they would keep if none were run again.
    pub fn activation_bytes(&self) -> [usize; 2] {
        match self {
            Self::Flow(step) => step.activation_bytes(),
            Self::Vae(_) => [0, 0],
        }
    }

    /// Whether passes from here on drop anything, and the number of the pass, which decides what.
    ///
    /// # Errors
    /// The driver's.
    pub fn set_pass(&mut self, training: bool, pass: u32) -> Result<()> {
        match self {
            Self::Flow(step) => step.set_pass(training, pass),
            Self::Vae(_) => Ok(()),
        }
    }

    /// Uploads what the next forward pass reads. `scale` is on the loss in front of its gradient.
    ///
    /// # Errors
    /// [`crate::error::Error::Runtime`] for examples that do not fit.
    pub fn set(&mut self, given: Given, scale: f64) -> Result<()> {
        match (self, given) {
            (Self::Flow(step), Given::Flow(examples)) => step.set(&examples, scale),
            (Self::Vae(step), Given::Vae(examples)) => step.set(&examples, scale),
            _ => Err(other_model()),
        }
    }

    /// The loss of the images set, on the device. `stop` is asked on the way.
    ///
    /// # Errors
    /// The operations'; [`crate::error::Error::Interrupted`].
    pub fn forward(&mut self, params: &Params, stop: Stop) -> Result<()> {
        match (self, params) {
            (Self::Vae(step), Params::Vae(params)) => step.forward(params, stop),
            (Self::Flow(step), params) => step.forward(params, stop),
            _ => Err(other_model()),
        }
    }

    /// Adds the gradients of the loss of the last forward pass to `grads`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn backward(&mut self, params: &Params, grads: &mut Params, stop: Stop) -> Result<()> {
        match (self, params, grads) {
            (Self::Vae(step), Params::Vae(params), Params::Vae(grads)) => step.backward(params, grads, stop),
            (Self::Flow(step), params, grads) => step.backward(params, grads, stop),
            _ => Err(other_model()),
        }
    }

    /// The loss of the last forward pass, as soon as the device has it.
    ///
    /// # Errors
    /// The device's.
    pub fn loss(&self) -> Result<f64> {
        match self {
            Self::Flow(step) => step.loss(),
            Self::Vae(step) => step.loss(),
        }
    }

    /// The losses of the images.
    ///
    /// # Errors
    /// The device's.
    pub fn losses(&self) -> Result<Vec<f64>> {
        match self {
            Self::Flow(step) => step.losses(),
            Self::Vae(step) => step.losses(),
        }
    }
}
