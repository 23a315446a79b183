//! Data sets to train on.

pub mod simulate;
