//! Forward passes of a batch. On a CPU the threads share out the images of a small network, so that what belongs to an image
//! stays in the caches of one core; a large one streams its weights, which all images better use at the same time.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::{Acts, Inputs, Model, parameters};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::no_tap;
use crate::ops::with_real;
use crate::tensor::{DType, Real, Tensor};

/// Bytes of weights that each image may read anew: less than its activations take beside them.
const SMALL_WEIGHTS: usize = 16 << 20;

/// The activations of a batch of images, all together or of one image a thread.
pub struct Batch(Kind);

enum Kind {
    Together(Box<Acts>),
    Apart {
        /// One for each thread.
        places: Vec<Place>,
        /// [B, C, H, W].
        output: Tensor,
    },
}

/// What the forward pass of one image takes.
struct Place {
    acts: Acts,
    /// [1, C, H, W].
    x: Tensor,
    /// `[1]`.
    rows: Tensor,
}

impl Batch {
    /// [B, C, H, W], what the model says about its input.
    pub fn output(&self) -> &Tensor {
        match &self.0 {
            Kind::Together(acts) => &acts.output,
            Kind::Apart { output, .. } => output,
        }
    }
}

impl Model {
    /// Buffers for [`Self::evaluate`] on `images` images.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn batch(&self, images: usize) -> Result<Batch> {
        let threads = match &self.device {
            Device::Cpu(cpu) => cpu.threads(),
            Device::Cuda(_) => usize::MAX,
        };
        let small = parameters(&self.config) * self.dtype.size() <= SMALL_WEIGHTS;
        if images == 1 || images < threads || !small {
            return Ok(Batch(Kind::Together(Box::new(self.acts(images)?))));
        }
        let (c, device) = (&self.config, &self.device);
        let place = |_| {
            let acts = self.acts(1)?;
            let x = Tensor::zeros(device, self.dtype.wide(), &[1, c.in_channels, c.image_size, c.image_size])?;
            Ok(Place { acts, x, rows: Tensor::zeros(device, DType::U32, &[1])? })
        };
        let places = (0..threads.min(images)).map(place).collect::<Result<_>>()?;
        let output = Tensor::zeros(device, self.dtype, &[images, c.out_channels, c.image_size, c.image_size])?;
        Ok(Batch(Kind::Apart { places, output }))
    }

    /// `batch.output()` = model(x, t, labels). Allocates nothing and never synchronises.
    ///
    /// # Errors
    /// The operations'.
    pub fn evaluate(&self, inputs: Inputs, batch: &mut Batch) -> Result<()> {
        match &mut batch.0 {
            Kind::Together(acts) => self.forward(inputs, acts, &mut no_tap),
            Kind::Apart { places, output } => {
                with_real!(self.dtype, T => self.evaluate_apart::<T>(inputs, places, output))
            }
        }
    }

    fn evaluate_apart<T: Real>(&self, inputs: Inputs, places: &mut [Place], output: &mut Tensor) -> Result<()> {
        let (images, x_images) = (output.dim(0), inputs.x.dim(0));
        let (x, rows) = (inputs.x.host::<T>()?, inputs.rows.host_u32()?);
        let per_x = x.len() / x_images.max(1);
        if rows.len() != images || per_x != places.first().map_or(0, |place| place.x.len()) {
            return Err(Error::Runtime("images of another batch".into()));
        }
        let output = output.host_mut::<T>()?;
        let queue = Mutex::new(output.chunks_mut(output.len() / images).enumerate());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        places.par_iter_mut().try_for_each(|Place { acts, x: own, rows: row }| {
            while let Some((image, output)) = next() {
                own.host_mut::<T>()?.copy_from_slice(&x[image % x_images * per_x..][..per_x]);
                row.host_u32_mut()?[0] = rows[image];
                self.forward(Inputs { x: own, rows: row, ..inputs }, acts, &mut no_tap)?;
                output.copy_from_slice(acts.output.host::<T>()?);
            }
            Ok(())
        })
    }
}
