//! Inverted dropout (Srivastava et al. 2014). The mask is a function of its counter and is stored nowhere: the backward
//! pass makes it again, with the same bits on every device.

use rayon::prelude::*;

use super::{SpecLayout, expect, launch_elementwise, round, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::rng::philox4x32_10;
use crate::tensor::{DType, Real, Tensor};

spec! {
    /// Geometry and constants of `dropout_*`.
    DropoutSpec { seed_lo: u32, seed_hi: u32, layer: u32, stream: u32, drop: u32, scale: f32, elements: i32 }
}
pub(super) const LAYOUT: SpecLayout = DropoutSpec::LAYOUT;

/// Stream of the random numbers of masks: the last word of their counter, which other uses of a seed do not take.
pub const DROPOUT_STREAM: u32 = 0x6472_6f70;

/// Which numbers are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Part that is dropped, in [0, 1).
    pub rate: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Separates the masks of one step: every place of a model that drops has its own.
    pub layer: u32,
}

/// y "=" x / (1 - rate) where the mask keeps an element, else 0; x and y of one shape and type.
///
/// Element i is kept where word i % 4 of Philox with key `seed` and counter (`step`, layer, i / 4, [`DROPOUT_STREAM`]) is at
/// least rate 2^32. `step` `[1]` (U32) is on the device, so that captured work follows it; it has to differ from one forward
/// pass to the next, micro-batches included, and to be the same in forward and backward. The backward is the same function:
/// with dy for x, y is dx.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit or the rate is not in [0, 1).
pub fn dropout(device: &Device, dropout: Dropout, step: &Tensor, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let Dropout { rate, seed, layer } = dropout;
    if !(0.0..1.0).contains(&rate) {
        return Err(Error::Runtime(format!("dropout: a rate of {rate} found, one in [0, 1) expected")));
    }
    expect("step of the dropout", step, DType::U32, &[1])?;
    expect("output of the dropout", y, x.dtype(), x.shape())?;
    let spec = DropoutSpec {
        seed_lo: seed as u32,
        seed_hi: (seed >> 32) as u32,
        layer,
        stream: DROPOUT_STREAM,
        // Saturates at 2^32 - 1 for rates next to 1.
        drop: (rate * 4_294_967_296.0) as u32,
        scale: (1.0 / (1.0 - rate)) as f32,
        elements: to_i32(x.len())?,
    };
    match device {
        Device::Cpu(_) => {
            let now = step.host_u32()?[0];
            with_real!(x.dtype(), T => cpu(now, &spec, x.host::<T>()?, y.host_mut::<T>()?));
            round(y)
        }
        Device::Cuda(cuda) => {
            let pointers = [x.address(0)?, step.address(0)?, y.address(0)?];
            let (kernel, fours) = (format!("dropout_{}", x.dtype()), x.len().div_ceil(4));
            launch_elementwise(cuda, ("dropout", kernel), fours, &pointers, bytemuck::bytes_of(&spec), 2 * x.bytes())
        }
    }
}

fn cpu<T: Real>(now: u32, spec: &DropoutSpec, x: &[T], y: &mut [T]) {
    const TASK: usize = 4096;
    let scale = T::from_f64(f64::from(spec.scale));
    let tasks = y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).enumerate();
    tasks.for_each(|(task, (y, x))| {
        for (four, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
            let counter = [now, spec.layer, (task * (TASK / 4) + four) as u32, spec.stream];
            let words = philox4x32_10(counter, [spec.seed_lo, spec.seed_hi]);
            for ((y, &x), word) in y.iter_mut().zip(x).zip(words) {
                *y = if word < spec.drop { T::default() } else { scale * x };
            }
        }
    });
}
