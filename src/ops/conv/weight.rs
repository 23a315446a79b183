//! Weights as the kernels read them.

use super::ConvSpec;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// A weight [N, C, kh, kw] as [N, kh, kw, C].
///
/// # Panics
/// If there are not as many values.
pub fn channels_last<T: Copy>(values: &[T], [n, c, kh, kw]: [usize; 4]) -> Vec<T> {
    assert_eq!(values.len(), n * c * kh * kw, "a number for each element");
    let taps = kh * kw;
    (0..values.len()).map(|i| values[(i / (taps * c) * c + i % c) * taps + i / c % taps]).collect()
}

/// The weight of a convolution by `spec` from PyTorch's [N, C / groups, kh, kw], rounded to `dtype`: on a CPU in the layout
/// of its products. Made once, when a model is loaded.
///
/// # Errors
/// [`Error::Runtime`] if shape, spec and values do not fit each other, and the device's.
pub fn weight(device: &Device, dtype: DType, spec: ConvSpec, shape: [usize; 4], values: &[f32]) -> Result<Tensor> {
    let rows = rows(spec, shape, values)?;
    let [n, c, kh, kw] = shape;
    match spec.groups {
        1 => Tensor::matrix(device, dtype, [n, c * kh * kw], &rows),
        _ => Tensor::from_f32(device, dtype, &[n, kh, kw, c], &rows),
    }
}

/// The weight of a transposed convolution from PyTorch's [C, N / groups, kh, kw].
///
/// # Errors
/// As of [`weight`].
pub fn transposed_weight(
    device: &Device,
    dtype: DType,
    spec: ConvSpec,
    shape: [usize; 4],
    values: &[f32],
) -> Result<Tensor> {
    let [c, n, kh, kw] = shape;
    Tensor::from_f32(device, dtype, &[c, kh, kw, n], &rows(spec, shape, values)?)
}

fn rows(spec: ConvSpec, shape: [usize; 4], values: &[f32]) -> Result<Vec<f32>> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if spec.kernel != shape[2..]
        || spec.groups == 0
        || !shape[0].is_multiple_of(spec.groups)
        || elements != Some(values.len())
    {
        let message = format!("convolution: {} values of a weight {shape:?} do not fit {spec:?}", values.len());
        return Err(Error::Runtime(message));
    }
    Ok(channels_last(values, shape))
}
