//! Time plus label, image by image, as training has them, and the gradient of the table of labels.

use rayon::prelude::*;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::{SpecLayout, expect, launch_elementwise, round, spec, to_i32, with_real};
use crate::tensor::{DType, Tensor};

spec! {
    /// Geometry of `label_add_fwd_*` and `label_table_bwd_*`.
    LabelAddSpec { batch: i32, classes: i32, dim: i32 }
}
pub(in crate::ops) const LAYOUT: SpecLayout = LabelAddSpec::LAYOUT;

/// y [B, D] = time [B, D] + row `labels`\[b\] of the table [R, D]; `labels` `[B]`, each below R, which the caller checked.
/// What adaLN layers take is [`crate::ops::activation::activate`] of it with SiLU.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or on the CPU a label is too large.
pub fn label_add(device: &Device, time: &Tensor, table: &Tensor, labels: &Tensor, y: &mut Tensor) -> Result<()> {
    let (batch, dim, dtype, classes) = (y.dim(0), y.last_dim(), y.dtype(), table.dim(0));
    expect("label sum", y, dtype, &[batch, dim])?;
    expect("time embedding", time, dtype, &[batch, dim])?;
    expect("label table", table, dtype, &[classes, dim])?;
    expect("labels", labels, DType::U32, &[batch])?;
    match device {
        Device::Cpu(_) => {
            let labels = checked(labels, classes)?;
            with_real!(dtype, T => {
                let (time, table) = (time.host::<T>()?, table.host::<T>()?);
                let rows = y.host_mut::<T>()?.chunks_mut(dim).zip(time.chunks(dim)).zip(labels);
                for ((y, time), &label) in rows {
                    let label = &table[label as usize * dim..][..dim];
                    for ((y, &t), &l) in y.iter_mut().zip(time).zip(label) {
                        *y = t + l;
                    }
                }
            });
            round(y)
        }
        Device::Cuda(cuda) => {
            let spec = LabelAddSpec { batch: to_i32(batch)?, classes: to_i32(classes)?, dim: to_i32(dim)? };
            let pointers = [time.address(0)?, table.address(0)?, labels.address(0)?, y.address(0)?];
            let (kernel, bytes) = (format!("label_add_fwd_{dtype}"), 3 * y.bytes() + labels.bytes());
            launch_elementwise(cuda, ("embed", kernel), y.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// Row r of dtable [R, D] (wide type) += the rows of dy [B, D] of images with label r, in their order. The gradient of the
/// time embedding is dy itself.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or on the CPU a label is too large.
pub fn label_add_backward(device: &Device, labels: &Tensor, dy: &Tensor, dtable: &mut Tensor) -> Result<()> {
    let (batch, dim, dtype, classes) = (dy.dim(0), dy.last_dim(), dy.dtype(), dtable.dim(0));
    expect("label sum dy", dy, dtype, &[batch, dim])?;
    expect("label table gradient", dtable, dtype.wide(), &[classes, dim])?;
    expect("labels", labels, DType::U32, &[batch])?;
    match device {
        Device::Cpu(_) => {
            let labels = checked(labels, classes)?;
            with_real!(dtype, T => {
                let dy = dy.host::<T>()?;
                dtable.host_mut::<T>()?.par_chunks_mut(dim).enumerate().for_each(|(row, to)| {
                    for (dy, _) in dy.chunks_exact(dim).zip(labels).filter(|(_, label)| **label as usize == row) {
                        to.iter_mut().zip(dy).for_each(|(to, &dy)| *to += dy);
                    }
                });
            });
            Ok(())
        }
        Device::Cuda(cuda) => {
            let spec = LabelAddSpec { batch: to_i32(batch)?, classes: to_i32(classes)?, dim: to_i32(dim)? };
            let pointers = [labels.address(0)?, dy.address(0)?, dtable.address(0)?];
            let kernel = format!("label_table_bwd_{dtype}");
            let bytes = dy.bytes() + labels.bytes() + 2 * dtable.bytes();
            launch_elementwise(cuda, ("embed", kernel), dtable.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// The labels, each below `classes`.
fn checked(labels: &Tensor, classes: usize) -> Result<&[u32]> {
    let labels = labels.host_u32()?;
    match labels.iter().find(|label| **label as usize >= classes) {
        Some(label) => Err(Error::Runtime(format!("label {label} found, below {classes} expected"))),
        None => Ok(labels),
    }
}
