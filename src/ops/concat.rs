//! Channels of several tensors side by side in one, and one tensor's channels into several: copies, each the other's backward.

use rayon::prelude::*;

use super::{SpecLayout, expect, moves, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

spec! {
    /// Geometry of `copy_columns_fwd_*`.
    CopyColumnsSpec { rows: i32, width: i32, from_stride: i32, to_stride: i32 }
}
pub(super) const LAYOUT: SpecLayout = CopyColumnsSpec::LAYOUT;

/// y [.., C1 + C2 + ..] = the parts [.., C1], [.., C2], .. side by side. The backward is [`split`].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn concat(device: &Device, parts: &[&Tensor], y: &mut Tensor) -> Result<()> {
    check("concatenation", y, parts.iter().copied())?;
    let mut at = 0;
    for part in parts {
        copy_columns(device, (part, 0), (y, at), part.last_dim())?;
        at += part.last_dim();
    }
    Ok(())
}

/// The parts [.., C1], [.., C2], .. = x [.., C1 + C2 + ..]. The backward is [`concat()`].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn split(device: &Device, x: &Tensor, parts: &mut [&mut Tensor]) -> Result<()> {
    check("split", x, parts.iter().map(|part| &**part))?;
    let mut at = 0;
    for part in parts {
        let width = part.last_dim();
        copy_columns(device, (x, at), (part, 0), width)?;
        at += width;
    }
    Ok(())
}

/// Refuses parts that are not those of `whole`.
fn check<'a>(what: &str, whole: &Tensor, parts: impl Iterator<Item = &'a Tensor>) -> Result<()> {
    let (outer, mut channels) = (whole.shape().split_last().map_or(&[][..], |(_, outer)| outer), 0);
    for (i, part) in parts.enumerate() {
        let shape = [outer, &[part.last_dim()]].concat();
        expect(&format!("{what}: part {i}"), part, whole.dtype(), &shape)?;
        channels += part.last_dim();
    }
    if channels == whole.last_dim() {
        return Ok(());
    }
    Err(Error::Runtime(format!("{what}: parts of {channels} channels together, {} expected", whole.last_dim())))
}

/// Columns `to.1`.. of `to` = columns `from.1`.. of `from`, `width` of them.
fn copy_columns(device: &Device, from: (&Tensor, usize), to: (&mut Tensor, usize), width: usize) -> Result<()> {
    let ((from, from_at), (to, to_at)) = (from, to);
    let (from_stride, to_stride) = (from.last_dim(), to.last_dim());
    if from.is_empty() || width == 0 {
        return Ok(());
    }
    match device {
        Device::Cpu(_) => {
            with_real!(from.dtype(), T => {
                let rows = to.host_mut::<T>()?.par_chunks_mut(to_stride).zip(from.host::<T>()?.par_chunks(from_stride));
                rows.with_min_len((4096 / width).max(1)).for_each(|(to, from)| {
                    to[to_at..][..width].copy_from_slice(&from[from_at..][..width]);
                });
            });
            Ok(())
        }
        Device::Cuda(cuda) => launch(cuda, (from, from_at), (to, to_at), width),
    }
}

fn launch(cuda: &Cuda, from: (&Tensor, usize), to: (&mut Tensor, usize), width: usize) -> Result<()> {
    let (dtype, rows) = (from.0.dtype(), from.0.len() / from.0.last_dim());
    let (from_stride, to_stride) = (from.0.last_dim(), to.0.last_dim());
    let spec = CopyColumnsSpec {
        rows: to_i32(rows)?,
        width: to_i32(width)?,
        from_stride: to_i32(from_stride)?,
        to_stride: to_i32(to_stride)?,
    };
    let pointers = [from.0.address(from.1)?, to.0.address(to.1)?];
    let per_thread = 16 / dtype.size();
    let whole = [width, from_stride, to_stride].iter().all(|n| n.is_multiple_of(per_thread))
        && pointers.iter().all(|p| p.is_multiple_of(16));
    let threads = if whole { rows * width / per_thread } else { rows * width };
    cuda.launch(&Launch {
        module: "concat",
        kernel: format!("copy_columns_fwd_{dtype}"),
        grid: [to_u32(threads.div_ceil(256))?, 1, 1],
        threads: 256,
        pointers: &pointers,
        spec: bytemuck::bytes_of(&spec),
        work: moves(2 * rows * width * dtype.size()),
        ..Launch::default()
    })
}
