//! GELU of one half of the channels times the other half (GEGLU, Shazeer, arXiv 2002.05202). On the CPU.

use rayon::prelude::*;

use super::linear::gelu;
use super::simd::vectorized;
use super::{expect, round_on, with_real};
use crate::device::{Device, wrong_place};
use crate::error::Result;
use crate::tensor::Tensor;

/// y [.., N] = value * gelu(gate) of x [.., 2 N], N values and N gates behind them.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit, and on a GPU, which has no kernel for it.
pub fn geglu(device: &Device, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let n = y.last_dim();
    let (_, outer) = y.shape().split_last().unwrap_or((&0, &[]));
    expect("geglu x", x, y.dtype(), &[outer, &[2 * n]].concat())?;
    let Device::Cpu(cpu) = device else { return Err(wrong_place()) };
    if y.is_empty() {
        return Ok(());
    }
    with_real!(y.dtype(), T => {
        let rows = y.host_mut::<T>()?.par_chunks_mut(n).zip(x.host::<T>()?.par_chunks(2 * n));
        rows.with_min_len(8).for_each(|(y, x)| gate(y, x));
    });
    round_on(cpu, y)
}

vectorized! {
    /// One row.
    fn gate(y: &mut [T], x: &[T]) {
        let (value, gate) = x.split_at(y.len());
        y.iter_mut().zip(value.iter().zip(gate)).for_each(|(y, (&value, &gate))| *y = value * gelu(gate));
    }
}
