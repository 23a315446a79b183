//! Sampling: the path from noise to data, the solvers that follow it, guidance, and the loop.

pub mod diffusion;
pub mod run;
pub mod sampler;
pub mod schedule;
