//! Layers made of operations: weights on a device and a forward pass. Activations belong to the caller.

pub mod block;
pub mod classifier;
pub mod conv;
pub mod linear;
pub mod norm;
pub mod params;
pub mod scratch;
pub mod time;
pub mod tools;
pub mod training;

use crate::tensor::Tensor;

/// Sees named activations on their way through a model (tests, debugging); never inside captured work.
pub type Tap<'a> = &'a mut dyn FnMut(&str, &Tensor);

/// A tap that looks at nothing.
pub fn no_tap(_: &str, _: &Tensor) {}
