//! Training: what turns gradients into weights, and when.

pub mod optimizer;
pub mod schedule;
