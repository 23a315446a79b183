//! What a training run reads and leaves: settings, checkpoints, metrics, its folder.

mod checkpoint;
mod config;
mod damage;
mod folder;
mod kill;
mod metrics;
