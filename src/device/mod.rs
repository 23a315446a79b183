//! Devices and the kernels they run.

pub mod images;
