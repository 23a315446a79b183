//! Between the two stages of a run in latents: the statistics of the first stage's latents, and the images as latents.

use std::path::Path;
use std::sync::Arc;

use crate::data::{DataSet, Loader};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::Checkpoint;
use crate::models::autoencoder_kl::latents::LatentSpace;
use crate::models::config::NetworkConfig;
use crate::models::export::{CONFIG, Parameters, write_model};
use crate::models::import::Import;
use crate::models::specs;
use crate::models::training::Stop;
use crate::nn::params::{ParamSpec, WeightSource};
use crate::tensor::DType;

/// Images that are encoded at a time.
const BATCH: usize = 16;

/// Whether the auto-encoder in `folder` is trained and its latents are measured.
///
/// # Errors
/// [`Error::Input`] if there is one that is damaged.
pub fn is_measured(folder: &Path) -> Result<bool> {
    if !folder.join(CONFIG).is_file() {
        return Ok(false);
    }
    let checkpoint = Checkpoint::open(folder)?;
    let network = Import::new(&checkpoint)?.config.network;
    Ok(matches!(network, NetworkConfig::AutoencoderKl(vae) if vae.scaling_factor.is_some()))
}

/// Measures the latents of `set` by the auto-encoder in `folder`, which gets their mean as its shift factor and one over their
/// standard deviation as its scaling factor.
///
/// # Errors
/// [`Error::Input`] for a damaged auto-encoder or image; [`Error::Runtime`] for latents that are all the same;
/// [`Error::Interrupted`]; [`Error::Output`].
pub fn measure(folder: &Path, set: &Arc<DataSet>, device: &Device, threads: usize, stop: Stop) -> Result<[f64; 2]> {
    let checkpoint = Checkpoint::open(folder)?;
    let import = Import::new(&checkpoint)?;
    let space = LatentSpace::new(&import.config, &import, device, DType::F32)?;
    let latents = encode(&space, set, threads, stop)?;
    let n = latents.len() as f64;
    let mean = latents.iter().map(|&z| f64::from(z)).sum::<f64>() / n;
    let deviation = (latents.iter().map(|&z| (f64::from(z) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let factor = 1.0 / deviation;
    if !(factor as f32).is_normal() {
        return Err(Error::Runtime(format!(
            "the latents of {} have a standard deviation of {deviation}: the auto-encoder has learned nothing",
            set.path().display()
        )));
    }
    let mut config = import.config.clone();
    if let NetworkConfig::AutoencoderKl(vae) = &mut config.network {
        (vae.scaling_factor, vae.shift_factor) = (Some(factor), mean);
    }
    let read = |spec: ParamSpec| import.read(&spec.name).map(|values| (spec, values));
    let parameters = Parameters::new(folder, specs(&config).into_iter().map(read).collect::<Result<_>>()?);
    write_model(folder, &config, parameters.tensors())?;
    Ok([mean, factor])
}

/// `set` with latents in the place of its images.
///
/// # Errors
/// [`Error::Input`] for a damaged image; [`Error::Interrupted`].
pub fn encoded(space: &LatentSpace, set: &Arc<DataSet>, threads: usize, stop: Stop) -> Result<Arc<DataSet>> {
    let latents = encode(space, set, threads, stop)?;
    Ok(Arc::new(set.with_images(space.latent(), latents)))
}

/// The latents of all images, as they are without the random parts of the transform.
fn encode(space: &LatentSpace, set: &Arc<DataSet>, threads: usize, stop: Stop) -> Result<Vec<f32>> {
    let mut latents = Vec::new();
    for batch in Loader::in_order(set.clone(), BATCH, threads)? {
        if stop() {
            return Err(Error::Interrupted("the auto-encoder is trained; --resume goes on with its latents".into()));
        }
        latents.extend(space.encode(&batch?.images)?);
    }
    Ok(latents)
}
