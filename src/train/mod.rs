//! Training: what a run is made of, what turns gradients into weights, how it is kept on disk, and how it goes on.

pub mod checkpoint;
pub mod config;
pub mod curve;
pub mod examples;
pub mod folder;
pub mod latents;
pub mod learner;
pub mod metrics;
pub mod objective;
pub mod optimizer;
pub mod parameters;
pub mod schedule;
pub mod trainer;
mod watch;

pub use self::config::TrainConfig;
pub use self::folder::RunFolder;
