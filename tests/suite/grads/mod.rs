//! Backward of every operation: against central finite differences in f64, of f32 against f64, and on the GPU.

mod attention;
pub mod autoencoder;
mod check;
mod conv;
mod image_goldens;
mod image_ops;
mod layers;
mod norm_ops;
mod ops;
mod parts_ops;
pub mod torch;
