//! GELU of one half of the channels times the other half (GEGLU, Shazeer, arXiv 2002.05202), and its backward. Both write (`=`).

use rayon::prelude::*;

use super::activation::gelu_slope;
use super::linear::gelu;
use super::simd::vectorized;
use super::{SpecLayout, expect, launch_elementwise, round_on, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

spec! {
    /// Geometry of `geglu_fwd_*` and `geglu_bwd_*`.
    GegluSpec { rows: i32, dim: i32 }
}
pub(super) const LAYOUT: SpecLayout = GegluSpec::LAYOUT;

impl GegluSpec {
    fn new(y: &Tensor) -> Result<Self> {
        Ok(Self { rows: to_i32(y.len() / y.last_dim())?, dim: to_i32(y.last_dim())? })
    }
}

/// y [.., N] = value * gelu(gate) of x [.., 2 N], N values and N gates behind them.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn geglu(device: &Device, x: &Tensor, y: &mut Tensor) -> Result<()> {
    expect("geglu x", x, y.dtype(), &doubled(y))?;
    if y.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(cpu) => {
            let n = y.last_dim();
            with_real!(y.dtype(), T => {
                let rows = y.host_mut::<T>()?.par_chunks_mut(n).zip(x.host::<T>()?.par_chunks(2 * n));
                rows.with_min_len(8).for_each(|(y, x)| gate(y, x));
            });
            round_on(cpu, y)
        }
        Device::Cuda(cuda) => {
            let (kernel, pointers) = (format!("geglu_fwd_{}", y.dtype()), [x.address(0)?, y.address(0)?]);
            let (spec, bytes) = (GegluSpec::new(y)?, x.bytes() + y.bytes());
            launch_elementwise(cuda, ("activation", kernel), y.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// Backward of [`geglu`]: dx [.., 2 N] from dy [.., N].
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn geglu_backward(device: &Device, x: &Tensor, dy: &Tensor, dx: &mut Tensor) -> Result<()> {
    expect("geglu x", x, dy.dtype(), &doubled(dy))?;
    expect("geglu dx", dx, dy.dtype(), x.shape())?;
    if dy.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(cpu) => {
            let n = dy.last_dim();
            with_real!(dy.dtype(), T => {
                let given = x.host::<T>()?.par_chunks(2 * n).zip(dy.host::<T>()?.par_chunks(n));
                let rows = dx.host_mut::<T>()?.par_chunks_mut(2 * n).zip(given);
                rows.with_min_len(8).for_each(|(dx, (x, dy))| differentiate(dx, x, dy));
            });
            round_on(cpu, dx)
        }
        Device::Cuda(cuda) => {
            let kernel = format!("geglu_bwd_{}", dy.dtype());
            let pointers = [x.address(0)?, dy.address(0)?, dx.address(0)?];
            let (spec, bytes) = (GegluSpec::new(dy)?, x.bytes() + dy.bytes() + dx.bytes());
            launch_elementwise(cuda, ("activation", kernel), dy.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// The shape of what `y` comes of.
fn doubled(y: &Tensor) -> Vec<usize> {
    let mut shape = y.shape().to_vec();
    shape.iter_mut().last().into_iter().for_each(|n| *n *= 2);
    shape
}

vectorized! {
    /// One row.
    fn gate(y: &mut [T], x: &[T]) {
        let (value, gate) = x.split_at(y.len());
        y.iter_mut().zip(value.iter().zip(gate)).for_each(|(y, (&value, &gate))| *y = value * gelu(gate));
    }
}

vectorized! {
    /// One row of dx.
    fn differentiate(dx: &mut [T], x: &[T], dy: &[T]) {
        let n = dy.len();
        let (value, gate) = x.split_at(n);
        let (dvalue, dgate) = dx.split_at_mut(n);
        dvalue.iter_mut().zip(gate.iter().zip(dy)).for_each(|(d, (&gate, &dy))| *d = gelu(gate) * dy);
        let given = value.iter().zip(gate).zip(dy);
        dgate.iter_mut().zip(given).for_each(|(d, ((&value, &gate), &dy))| *d = value * gelu_slope(gate) * dy);
    }
}
