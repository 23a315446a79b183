//! `[autoencoder]`: a first stage that learns latents, in which the model of `[model]` is trained then.

use super::section::{positive, section, share, within};
use super::{DataSection, ModelPlan, NewModel, OptimizerSection, RegularisationSection, RunSection, TrainConfig};
use crate::models::autoencoder_kl::{self, FOLDER, VaeConfig};
use crate::models::config::ModelConfig;

/// Steps of a run that says neither steps nor minutes.
const DEFAULT_STEPS: u64 = 5_000;

section! {
    /// A variational auto-encoder as of latent diffusion, without attention. What is not said here is as in the other tables.
    AutoencoderSection, "autoencoder" {
        /// Channels of a latent.
        latent_channels: usize = 4,
        /// Channels of each level, the finest first; each further one halves the sides.
        block_channels: Vec<usize> = vec![16, 32, 64],
        /// Residual blocks of each level of the encoder; the decoder has one more.
        layers_per_block: usize = 1,
        /// Groups of each group norm: a divisor of all channels.
        norm_groups: usize = 8,
        /// Weight of the latents' divergence from the standard normal, nats a number, beside the mean squared error.
        kl_weight: f64 = 1e-4,
        /// Highest learning rate.
        learning_rate: f64 = 2e-3,
        /// Images of a step.
        batch_size: usize = 16,
        /// Steps; 5,000 where the run has no minutes either.
        steps: Option<u64> = None,
        /// Part of the run's minutes; the rest is the model's.
        share: f64 = 0.5,
    }
}

impl AutoencoderSection {
    fn check(&self) -> Result<(), String> {
        within("latent_channels", self.latent_channels, 1..=64)?;
        within("the number of block_channels", self.block_channels.len(), 1..=8)?;
        for &channels in &self.block_channels {
            within("block_channels", channels, 1..=4096)?;
        }
        within("layers_per_block", self.layers_per_block, 1..=16)?;
        within("norm_groups", self.norm_groups, 1..=4096)?;
        within("kl_weight", self.kl_weight, 0.0..=1e3)?;
        positive("learning_rate", self.learning_rate, 10.0)?;
        within("batch_size", self.batch_size, 1..=65_536)?;
        if let Some(steps) = self.steps {
            within("steps", steps, 1..=1_000_000_000)?;
        }
        share("share", self.share)?;
        positive("share", self.share, 1.0)
    }

    /// The auto-encoder of the images that `new` describes.
    pub fn config(&self, new: &NewModel, value_range: (f32, f32)) -> ModelConfig {
        let vae = VaeConfig {
            channels: self.block_channels.clone(),
            layers_per_block: self.layers_per_block,
            latent_channels: self.latent_channels,
            mid_attention: false,
            quant_conv: false,
            post_quant_conv: false,
            norm_groups: self.norm_groups,
            scaling_factor: None,
            shift_factor: 0.0,
        };
        ModelConfig { value_range, ..autoencoder_kl::config(vae, new.image_size, new.channels) }
    }

    /// The network that `new` describes for latents of images of `value_range`.
    pub fn latent_config(&self, new: &NewModel, class_names: &[String], value_range: (f32, f32)) -> ModelConfig {
        let side = new.image_size >> (self.block_channels.len() - 1);
        let latent = NewModel { image_size: side, channels: self.latent_channels, ..new.clone() };
        ModelConfig { autoencoder: Some(FOLDER.into()), ..latent.config(class_names, value_range) }
    }

    /// Why the two models do not fit each other.
    pub(super) fn check_with(&self, model: &ModelPlan) -> Result<(), String> {
        let ModelPlan::New(new) = model else {
            return Err("init beside a table [autoencoder]: a new network expected, which learns its latents".into());
        };
        self.config(new, (-1.0, 1.0)).check().map_err(|reason| format!("[autoencoder] {reason}"))?;
        let latents = self.latent_config(new, &[], (-1.0, 1.0)).check();
        latents.map_err(|reason| format!("[model] in the latents of [autoencoder]: {reason}"))
    }

    /// Settings of the first stage of a run of `config`. Early stopping is the model's.
    pub(super) fn first_stage(&self, config: &TrainConfig) -> TrainConfig {
        let minutes = config.run.minutes.map(|minutes| minutes * self.share);
        let steps = self.steps.or(minutes.is_none().then_some(DEFAULT_STEPS));
        TrainConfig {
            data: DataSection { batch_size: self.batch_size, ..config.data.clone() },
            optimizer: OptimizerSection { learning_rate: self.learning_rate, ..config.optimizer.clone() },
            regularisation: RegularisationSection::default(),
            run: RunSection { minutes, steps, patience: 0, ..config.run.clone() },
            ..config.clone()
        }
    }
}
