//! What is learned of images: the velocities of a flow or what a diffusion model says, or an auto-encoder's reconstruction. All that is random about image number
//! k of the loader's sequence follows from (seed, k), whatever the batch and however often the run was resumed.

use crate::data::{Batch, DataSet};
use crate::error::{Error, Result};
use crate::models::config::{ModelConfig, NetworkConfig};
use crate::models::training::vae::VaeExamples;
use crate::models::training::work::Given;
use crate::rng::normals;
use crate::train::config::{FlowSection, TrainConfig};
use crate::train::examples::{ExampleRule, HostExamples, Noising};
use crate::train::parameters::ParameterRows;

/// Stream of the noise that latents are drawn with; see [`crate::train::examples`].
const LATENTS: u32 = 0x5452_0014;

/// Seed of everything random about validation images, whatever the run's own seed.
const VALIDATION: u64 = 0x7661_6c69_6461_7465;

/// How a step's examples are made of a batch of images.
pub enum Objective {
    /// Images with noise and a time, and the velocity there.
    Flow {
        /// Noise, times and classes.
        rule: ExampleRule,
        /// Continuous parameters of the set's images.
        parameters: Option<ParameterRows>,
    },
    /// Images, and noise for their latents.
    Vae {
        /// Of the noise.
        seed: u64,
        /// Numbers of the latents of an image.
        latents: usize,
        /// Weight of the divergence in the loss.
        kl_weight: f64,
    },
}

/// Examples on the host.
pub enum HostGiven {
    /// Of a flow.
    Flow(HostExamples),
    /// Of an auto-encoder: see [`VaeExamples`].
    Vae {
        /// [B, C, H, W].
        images: Vec<f32>,
        /// [B, h, w, Z].
        noise: Vec<f32>,
        /// Weight of the divergence.
        kl_weight: f64,
    },
}

impl Objective {
    /// What a run of these settings trains `model` for on `set`.
    ///
    /// # Errors
    /// Those of [`ParameterRows::of`].
    pub fn of_run(config: &TrainConfig, model: &ModelConfig, set: &DataSet) -> Result<Self> {
        Self::new(config, model, set, config.run.seed, config.flow.clone(), config.conditions.dropout)
    }

    /// What it is validated by: times of uniform density, nothing left out, and the same noise in every validation of every run.
    ///
    /// # Errors
    /// As of [`Self::of_run`].
    pub fn of_validation(config: &TrainConfig, model: &ModelConfig, set: &DataSet) -> Result<Self> {
        let flow = FlowSection { label_dropout: 0.0, ..FlowSection::default() };
        Self::new(config, model, set, VALIDATION, flow, 0.0)
    }

    fn new(
        config: &TrainConfig,
        model: &ModelConfig,
        set: &DataSet,
        seed: u64,
        flow: FlowSection,
        dropout: f64,
    ) -> Result<Self> {
        let NetworkConfig::AutoencoderKl(vae) = &model.network else {
            let null = model.classes.as_ref().map(|c| c.null as u32);
            let parameters = ParameterRows::of(set, &model.parameters, dropout)?;
            let rule = ExampleRule { seed, flow, noising: Noising::of(model), null };
            return Ok(Self::Flow { rule, parameters });
        };
        let section = config.autoencoder.as_ref();
        let section = section.ok_or_else(|| Error::usage("an auto-encoder is trained by the table [autoencoder]"))?;
        let side = model.image_size / vae.stride();
        Ok(Self::Vae { seed, latents: side * side * vae.latent_channels, kl_weight: section.kl_weight })
    }

    /// The examples of the images of `batch`, the first of them number `first` of the sequence.
    pub fn given(&self, batch: Batch, first: u64) -> HostGiven {
        match self {
            Self::Flow { rule, parameters } => {
                let mut examples = rule.examples(&batch.images, &batch.labels, first);
                parameters.iter().for_each(|rows| rows.add(rule, &batch.indices, first, &mut examples));
                HostGiven::Flow(examples)
            }
            &Self::Vae { seed, latents, kl_weight } => {
                let mut noise = vec![0.0; batch.labels.len() * latents];
                let images = (first..).zip(noise.chunks_exact_mut(latents));
                images.for_each(|(image, noise)| normals(seed, image, LATENTS, noise));
                HostGiven::Vae { images: batch.images, noise, kl_weight }
            }
        }
    }

    /// Fills the examples of `given` up to `size` with ones that mean nothing.
    pub fn pad(&self, given: &mut HostGiven, size: usize) {
        match (self, given) {
            (Self::Flow { parameters, .. }, HostGiven::Flow(examples)) => {
                let per_image = examples.x.len() / examples.times.len().max(1);
                examples.x.resize(size * per_image, 0.0);
                examples.target.resize(size * per_image, 0.0);
                examples.times.resize(size, 0.5);
                examples.labels.resize(size, 0);
                parameters.iter().for_each(|rows| rows.pad(size, examples));
            }
            (Self::Vae { latents, .. }, HostGiven::Vae { images, noise, .. }) => {
                let per_image = images.len() * latents / noise.len().max(1);
                images.resize(size * per_image, 0.0);
                noise.resize(size * latents, 0.0);
            }
            _ => {}
        }
    }
}

impl HostGiven {
    /// As a step takes them.
    pub fn borrow(&self) -> Given<'_> {
        match self {
            Self::Flow(examples) => Given::Flow(examples.borrow()),
            Self::Vae { images, noise, kl_weight } => Given::Vae(VaeExamples { images, noise, kl_weight: *kl_weight }),
        }
    }
}
