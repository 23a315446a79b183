//! The part of a step that embeds continuous parameters: two layers, whose result is added to the embeddings of time and label of
//! the images that have parameters, and of no others.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::training::{VectorMlp, VectorSaved};
use crate::ops::activation::activate;
use crate::ops::linear::{Activation, Workspace};
use crate::tensor::{DType, Tensor};

/// Memory for one batch.
pub struct ParameterStep {
    saved: VectorSaved,
    /// Ones for images that have parameters, zeros for others, [B, D].
    given: Tensor,
    /// The sum with the embedding, or the gradient of it, [B, D].
    sum: Tensor,
    dy: Tensor,
}

impl ParameterStep {
    /// Buffers for `batch` images of `count` parameters in a model of `dim` channels.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &Device, dtype: DType, batch: usize, count: usize, dim: usize) -> Result<Self> {
        let zeros = || Tensor::zeros(device, dtype, &[batch, dim]);
        let saved = VectorSaved::new(device, dtype, batch, count, dim)?;
        Ok(Self { saved, given: zeros()?, sum: zeros()?, dy: zeros()? })
    }

    /// Uploads normalised parameters [B, P], and which images have them, `[B]`.
    ///
    /// # Errors
    /// [`Error::Runtime`] for another number of either.
    pub fn set(&mut self, device: &Device, normalised: &[f32], given: &[bool]) -> Result<()> {
        let (batch, dim) = (self.given.dim(0), self.given.last_dim());
        if given.len() != batch {
            return Err(Error::Runtime(format!("parameters of {} images found, {batch} expected", given.len())));
        }
        self.saved.x.write_f32(device, normalised)?;
        let rows: Vec<f32> =
            given.iter().flat_map(|&given| std::iter::repeat_n(f32::from(u8::from(given)), dim)).collect();
        self.given.write_f32(device, &rows)
    }

    /// sum += embedding, where there are parameters.
    ///
    /// # Errors
    /// The operations'.
    pub fn forward(
        &mut self,
        device: &Device,
        layers: &VectorMlp,
        sum: &mut Tensor,
        workspace: &mut Workspace,
    ) -> Result<()> {
        layers.forward(device, &mut self.saved, workspace)?;
        activate(device, &self.saved.y, Activation::None, Some(&self.given), Some(sum), &mut self.sum)?;
        std::mem::swap(sum, &mut self.sum);
        Ok(())
    }

    /// The gradients of both layers from that of the sum, [B, D]; `sums` of B D elements.
    ///
    /// # Errors
    /// The operations'.
    pub fn backward(
        &mut self,
        device: &Device,
        layers: &VectorMlp,
        dsum: &Tensor,
        grads: &mut VectorMlp,
        sums: &mut Tensor,
    ) -> Result<()> {
        activate(device, dsum, Activation::None, Some(&self.given), None, &mut self.dy)?;
        layers.backward(device, &mut self.saved, &self.dy, grads, sums)
    }
}
