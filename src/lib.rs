//! arclet samples scientific images from flow-matching models: hand-written CUDA kernels where there is an
//! NVIDIA GPU, fused loops on the CPU everywhere else.

pub mod data;
pub mod device;
pub mod error;
pub mod flow;
pub mod io;
mod math;
pub mod models;
pub mod nn;
pub mod ops;
pub mod rng;
pub mod tensor;
pub mod train;
