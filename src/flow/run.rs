//! A run of many images, drawn in batches of one size. Image i depends on (seed, i) alone, so neither the batch nor the
//! shard that it is drawn in changes it.

use std::ops::ControlFlow;

use super::sampler::Sampler;
use crate::device::{Device, cpu};
use crate::error::{Error, Result};
use crate::models::activations;
use crate::models::config::ModelConfig;

/// Largest batch that is chosen for a GPU: beyond it the GPU is full and only memory grows.
const GPU_BATCH: usize = 64;

/// Where the starting noise of a run comes from.
#[derive(Clone, Copy, Debug)]
pub enum Noise<'a> {
    /// Standard normals of this seed.
    Seed(u64),
    /// Given numbers [images, C, H, W] of the images of this run, and the seed of the noise of ancestral steps.
    Rows(&'a [f32], u64),
}

/// The images of one run.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Starting noise.
    pub noise: Noise<'a>,
    /// Index of the first image, which decides its noise and its class.
    pub first: u64,
    /// Number of images.
    pub images: usize,
    /// Image i gets class i modulo the length; empty for an unconditional model.
    pub classes: &'a [usize],
}

impl Job<'_> {
    /// Class of image `index`, counted from the start of the whole run and not of a shard.
    pub fn class(&self, index: u64) -> Option<usize> {
        let length = self.classes.len() as u64;
        (length > 0).then(|| self.classes[(index % length) as usize])
    }
}

/// Draws all images of `job`, batch by batch; returns how many were drawn. `finished` takes the images [b, C, H, W] of
/// each batch, in order, and may break to end the run. The last batch is filled up with images that are thrown away.
///
/// # Errors
/// [`Error::Runtime`] if the given noise has another number of images; the sampler's; those of `finished`.
pub fn draw(
    sampler: &mut Sampler,
    job: &Job,
    finished: &mut dyn FnMut(&[f32]) -> Result<ControlFlow<()>>,
) -> Result<usize> {
    let (batch, image_len) = (sampler.batch(), sampler.image_len());
    if let Noise::Rows(rows, _) = job.noise
        && rows.len() != job.images * image_len
    {
        return Err(Error::Runtime(format!("{} noise values given for {} images", rows.len(), job.images)));
    }
    let mut done = 0;
    while done < job.images {
        let first = job.first + done as u64;
        let count = batch.min(job.images - done);
        match job.noise {
            Noise::Seed(seed) => sampler.draw_noise(seed, first)?,
            Noise::Rows(rows, seed) => {
                let mut noise = rows[done * image_len..][..count * image_len].to_vec();
                noise.resize(batch * image_len, 0.0);
                sampler.set_noise(&noise)?;
                sampler.draw_step_noise(seed, first)?;
            }
        }
        let classes: Vec<usize> = (first..first + batch as u64).filter_map(|i| job.class(i)).collect();
        sampler.run(&classes)?;
        done += count;
        if finished(&sampler.state()?[..count * image_len])?.is_break() {
            break;
        }
    }
    Ok(done)
}

/// A batch size for drawing `images` images: one image per thread on the CPU, as many as fill it on a GPU, no more than
/// half the free memory holds, and such that the last batch is about as full as the others.
pub fn auto_batch(device: &Device, config: &ModelConfig, images: usize, guided: bool) -> usize {
    let (wanted, free) = match device {
        Device::Cpu(cpu) => (cpu.threads(), cpu::available_memory()),
        Device::Cuda(cuda) => (GPU_BATCH, cuda.memory().ok().map(|(free, _)| free)),
    };
    let fits = free.map_or(wanted, |free| free / 2 / image_bytes(config, guided).max(1));
    let largest = wanted.min(fits).clamp(1, images.max(1));
    images.div_ceil(images.div_ceil(largest).max(1)).max(1)
}

/// Estimate of the activations that one image of a batch takes, in bytes, if all were f32.
fn image_bytes(config: &ModelConfig, guided: bool) -> usize {
    let passes = if guided { 2 } else { 1 };
    4 * (passes * activations(config) + 3 * config.image_size * config.image_size * config.in_channels)
}
