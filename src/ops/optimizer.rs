//! temporary
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;
/// zero
pub fn fill_zero(device: &Device, t: &mut Tensor) -> Result<()> {
    let zeros = vec![0.0; t.len()];
    t.write_f32(device, &zeros)
}
