//! The latents of an auto-encoder as a model learns and draws them: shifted and scaled to unit variance.

use std::path::Path;

use super::coder::Autoencoder;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::Checkpoint;
use crate::models::config::{ModelConfig, NetworkConfig};
use crate::models::import::Import;
use crate::nn::params::WeightSource;
use crate::tensor::{DType, Tensor};

/// The way from images to the latents that a model draws, and back.
pub struct LatentSpace {
    autoencoder: Autoencoder,
    device: Device,
    wide: DType,
    /// Channels, height and width of an image and of its latents.
    image: [usize; 3],
    latent: [usize; 3],
    shift: f32,
    scale: f32,
    sha256: String,
}

impl LatentSpace {
    /// That of the auto-encoder which `model` names, a folder in `home`; none for a model of images.
    ///
    /// # Errors
    /// [`Error::Input`] for an auto-encoder that is missing, damaged, without its scaling factor or of other latents.
    pub fn of(model: &ModelConfig, home: &Path, device: &Device, dtype: DType) -> Result<Option<Self>> {
        let Some(folder) = &model.autoencoder else { return Ok(None) };
        let path = home.join(folder);
        if !path.exists() {
            return Err(Error::input(
                path,
                "no such folder; expected the auto-encoder of the latents that the model draws",
            ));
        }
        let checkpoint = Checkpoint::open(&path)?;
        let import = Import::new(&checkpoint)?;
        let (config, refuse) = (&import.config, |reason: String| Error::input(&path, reason));
        let NetworkConfig::AutoencoderKl(vae) = &config.network else {
            let found = config.architecture().description();
            return Err(refuse(format!(
                "found a {found}, expected the auto-encoder of the latents that the model draws"
            )));
        };
        if vae.latent_channels != model.in_channels {
            let (found, expected) = (vae.latent_channels, model.in_channels);
            return Err(refuse(format!("found latents of {found} channels, expected {expected} as the model draws")));
        }
        let scale = vae.require_scaling_factor().map_err(refuse)?;
        let image_size = model.image_size * vae.stride();
        let space = Self::new(&ModelConfig { image_size, ..config.clone() }, &import, device, dtype)?;
        Ok(Some(Self { scale: scale as f32, shift: vae.shift_factor as f32, sha256: checkpoint.sha256(), ..space }))
    }

    /// The latents of the auto-encoder `config` as they are, of images of its size.
    ///
    /// # Errors
    /// The source's and the device's; [`Error::Runtime`] for another network.
    pub fn new(config: &ModelConfig, source: &dyn WeightSource, device: &Device, dtype: DType) -> Result<Self> {
        let NetworkConfig::AutoencoderKl(vae) = &config.network else {
            return Err(Error::Runtime(format!("{} has no latents", config.architecture().name())));
        };
        let (side, small) = (config.image_size, config.image_size / vae.stride());
        Ok(Self {
            autoencoder: Autoencoder::load(config, vae, source, device, dtype)?,
            device: device.clone(),
            wide: dtype.wide(),
            image: [config.out_channels, side, side],
            latent: [vae.latent_channels, small, small],
            shift: 0.0,
            scale: 1.0,
            sha256: String::new(),
        })
    }

    /// SHA-256 of the weights, where they are a file's.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Channels, height and width of an image.
    pub fn image(&self) -> [usize; 3] {
        self.image
    }

    /// Channels, height and width of an image's latents.
    pub fn latent(&self) -> [usize; 3] {
        self.latent
    }

    /// The means of the latents of images, [B, C, H, W], as a model learns them.
    ///
    /// # Errors
    /// The operations'.
    pub fn encode(&self, images: &[f32]) -> Result<Vec<f32>> {
        let x = self.tensor(images, self.image)?;
        let moments = self.device.run(|| self.autoencoder.encode(&x))?.to_f32(&self.device)?;
        let per_image: usize = self.latent.iter().product();
        let means = moments.chunks_exact(2 * per_image).flat_map(|both| &both[..per_image]);
        Ok(means.map(|&z| (z - self.shift) * self.scale).collect())
    }

    /// The images of latents [B, Z, h, w] that a model drew.
    ///
    /// # Errors
    /// The operations'.
    pub fn decode(&self, latents: &[f32]) -> Result<Vec<f32>> {
        let unscaled: Vec<f32> = latents.iter().map(|&z| z / self.scale + self.shift).collect();
        let z = self.tensor(&unscaled, self.latent)?;
        self.device.run(|| self.autoencoder.decode(&z))?.to_f32(&self.device)
    }

    fn tensor(&self, values: &[f32], [channels, height, width]: [usize; 3]) -> Result<Tensor> {
        let images = values.len() / (channels * height * width);
        Tensor::from_f32(&self.device, self.wide, &[images, channels, height, width], values)
    }
}
