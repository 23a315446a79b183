//! arclet samples scientific images from flow-matching models: hand-written CUDA kernels where there is an
//! NVIDIA GPU, fused loops on the CPU everywhere else.

pub mod error;
pub mod rng;
pub mod tensor;
