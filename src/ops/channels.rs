//! Images as [B, .., C], channels last: their sizes, and sums over their pixels in one order.

use rayon::prelude::*;

use super::backward::sums::accumulate;
use crate::error::{Error, Result};
use crate::tensor::{Real, Tensor};

/// Sizes of images [B, .., C].
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub images: usize,
    /// Of an image.
    pub pixels: usize,
    pub channels: usize,
}

impl Sizes {
    /// # Errors
    /// [`Error::Runtime`] for fewer than three dimensions or none of something.
    pub fn of(what: &str, x: &Tensor) -> Result<Self> {
        if x.shape().len() < 3 || x.is_empty() {
            return Err(Error::Runtime(format!("{what}: images [B, .., C] expected, {:?} found", x.shape())));
        }
        let (images, channels) = (x.dim(0), x.last_dim());
        Ok(Self { images, pixels: x.len() / (images * channels), channels })
    }

    /// All images as one.
    pub fn joined(self) -> Self {
        Self { images: 1, pixels: self.images * self.pixels, ..self }
    }

    /// Rows of a chunk of a kernel's sums over pixels: at least 128, and at most `most` chunks.
    pub fn chunk(self, most: usize) -> usize {
        self.pixels.div_ceil(most).max(128)
    }

    /// How many chunks.
    pub fn chunks(self, most: usize) -> usize {
        self.pixels.div_ceil(self.chunk(most))
    }

    /// Sums over the pixels of each image, [B, width]: `add` adds what a row of the image (counted over all images) gives.
    /// Pixels of a chunk one after the other, then chunk by chunk.
    pub fn sums<T: Real>(self, width: usize, add: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
        const CHUNK: usize = 64;
        let chunks = self.pixels.div_ceil(CHUNK);
        let mut partial = vec![T::default(); self.images * chunks * width];
        partial.par_chunks_mut(width).enumerate().for_each(|(i, sums)| {
            let first = i % chunks * CHUNK;
            for pixel in first..self.pixels.min(first + CHUNK) {
                add(i / chunks * self.pixels + pixel, sums);
            }
        });
        let mut all = vec![T::default(); self.images * width];
        all.par_chunks_mut(width).zip(partial.par_chunks(chunks * width)).for_each(|(sums, partial)| {
            partial.chunks_exact(width).for_each(|partial| accumulate(sums, partial));
        });
        all
    }

    /// Rows that a task takes, so that it is worth one.
    pub fn rows_per_task(self) -> usize {
        (4096 / self.channels).max(1)
    }
}
