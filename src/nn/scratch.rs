//! Buffers of a forward pass by type and shape: made when a pass first wants them, used again by every later one.

use crate::device::Device;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Buffers that nobody uses at the moment. A pass takes and gives back the same ones in the same order each time, so that
/// only the first allocates.
pub struct Scratch {
    device: Device,
    free: Vec<Tensor>,
}

impl Scratch {
    /// None yet.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), free: Vec::new() }
    }

    /// A buffer of `shape`, whatever is in it.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn take(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        match self.free.iter().rposition(|t| t.dtype() == dtype && t.shape() == shape) {
            Some(at) => Ok(self.free.swap_remove(at)),
            None => Tensor::zeros(&self.device, dtype, shape),
        }
    }

    /// Takes `buffer` back.
    pub fn put(&mut self, buffer: Tensor) {
        self.free.push(buffer);
    }
}
