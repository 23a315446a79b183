//! Backward of convolutions and of transposed ones: each gradient of the input is a convolution of the other kind. What follows
//! the sums (activation, residual) has a backward of its own, [`crate::ops::activation`].
//!
//! dw and db are added to (`+=`) and are of the wide type; dx is written (`=`). Every sum has one order.

use gemm::Parallelism;
use rayon::prelude::*;

use super::patches::{Patches, Source, sources};
use super::taps::{self, Axis, Phase};
use super::{ConvSpec, Geometry, Operands, gpu, run, size_of, tensors};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::backward::product::matmul_add;
use crate::ops::backward::sums::{accumulate, add_columns, add_planes, wanted};
use crate::ops::linear::{Workspace, WorkspaceSize};
use crate::ops::product::cut;
use crate::ops::simd::vectorized;
use crate::ops::{expect, with_real};
use crate::tensor::{DType, Real, Tensor};

/// Where the gradients of a convolution go.
pub struct Gradients<'a> {
    /// Of each input, or of none: nobody asks for the gradient of a model's input.
    pub dx: &'a mut [&'a mut Tensor],
    /// [N, kh, kw, C / groups] (of a transposed convolution [C, kh, kw, N / groups]), wide.
    pub dw: &'a mut Tensor,
    /// `[N]`, wide.
    pub db: Option<&'a mut Tensor>,
    /// Wide, of [`scratch_len`] elements.
    pub scratch: &'a mut Tensor,
}

/// Elements of scratch for the backward of x [images, .., channels] to y [images, output.., n], `sizes` [images, channels, n].
pub fn scratch_len(device: &Device, spec: ConvSpec, sizes: [usize; 3], output: [usize; 2]) -> usize {
    planes(device, &Geometry::new(spec, sizes, [0; 2], output, false)).max(sizes[0] * sizes[2])
}

/// The same of a transposed convolution, x [images, size.., channels].
pub fn transposed_scratch_len(device: &Device, spec: ConvSpec, sizes: [usize; 3], size: [usize; 2]) -> usize {
    let [images, channels, n] = sizes;
    planes(device, &Geometry::new(spec, [images, n, channels], [0; 2], size, false)).max(images * n)
}

fn planes(device: &Device, g: &Geometry) -> usize {
    match device {
        Device::Cpu(_) => 0,
        Device::Cuda(cuda) => gpu::dw_splits(cuda, g)[0] * g.n * g.spec.taps() * g.channels / g.spec.groups,
    }
}

/// What [`conv2d_backward`] needs of a workspace for inputs of `channels` channels each and of `size`.
pub fn backward_workspace_size(
    device: &Device,
    dtype: DType,
    spec: ConvSpec,
    [images, n]: [usize; 2],
    channels: &[usize],
    size: [usize; 2],
) -> WorkspaceSize {
    let all = channels.iter().sum();
    let of_input =
        |&count: &usize| size_of(device, dtype, &input_geometry(spec, [images, n], [0, count, all], [0; 2], size));
    channels.iter().map(of_input).fold(WorkspaceSize::default(), WorkspaceSize::max)
}

/// The gradient of channels `first`.. of `all`, `count` of them, as a transposed convolution of dy.
fn input_geometry(
    spec: ConvSpec,
    [images, n]: [usize; 2],
    [first, count, all]: [usize; 3],
    from: [usize; 2],
    to: [usize; 2],
) -> Geometry {
    if spec.is_depthwise(all, n) {
        // A group for each of these channels.
        let g = Geometry::new(spec.groups(count), [images, count, count], from, to, true);
        return Geometry { first, depthwise: true, ..g };
    }
    let g = Geometry::new(spec, [images, n, count], from, to, true);
    Geometry { first, row_len: all / spec.groups.max(1), ..g }
}

/// Gradients of [`super::conv2d`]: dx_i, dw += and db += from dy [B, OH, OW, N], the gradient of the sums. `weight` is
/// [N, kh, kw, C / groups], not packed. With several inputs there is one group, or one for each channel.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn conv2d_backward(
    device: &Device,
    spec: ConvSpec,
    x: &[&Tensor],
    weight: &Tensor,
    dy: &Tensor,
    gradients: Gradients,
    workspace: &mut Workspace,
) -> Result<()> {
    let Gradients { dx, dw, db, scratch } = gradients;
    let operands = Operands::new(spec, x, weight);
    let g = super::check(&operands, dy, false)?;
    let (wide, dtype) = (dy.dtype().wide(), dy.dtype());
    if dw.dtype() != wide || dw.len() != weight.len() || weight.packed().is_some() {
        return Err(Error::Runtime(format!(
            "convolution backward: dw {:?} of {} does not fit",
            dw.shape(),
            dw.dtype()
        )));
    }
    if !dx.is_empty() {
        if dx.len() != x.len() || x.len() > 1 && spec.groups > 1 && !g.depthwise {
            let message = format!("convolution backward: {} gradients of {} inputs, {spec:?}", dx.len(), x.len());
            return Err(Error::Runtime(message));
        }
        let mut first = 0;
        for (dx, x) in dx.iter_mut().zip(x) {
            expect("convolution dx", dx, dtype, x.shape())?;
            let part = [first, x.last_dim(), g.channels];
            let geometry = input_geometry(spec, [g.images, g.n], part, g.output, g.size);
            run(device, geometry, &Operands::new(geometry.spec, &[dy], weight), dx, workspace)?;
            first += x.last_dim();
        }
    }
    if let Some(db) = db {
        add_columns(device, dy, db, scratch)?;
    }
    add_weight(device, &g, &operands, dy, dw, scratch)
}

/// Gradients of [`super::conv_transpose2d`] of one input: dx, dw += and db += from dy [B, OH, OW, N].
///
/// # Errors
/// As of [`conv2d_backward`].
pub fn conv_transpose2d_backward(
    device: &Device,
    spec: ConvSpec,
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    gradients: Gradients,
    workspace: &mut Workspace,
) -> Result<()> {
    let Gradients { dx, dw, db, scratch } = gradients;
    let g = super::check(&Operands::new(spec, &[x], weight), dy, true)?;
    if dw.dtype() != dy.dtype().wide() || dw.len() != weight.len() {
        return Err(Error::Runtime(format!(
            "convolution backward: dw {:?} of {} does not fit",
            dw.shape(),
            dw.dtype()
        )));
    }
    // What has made y of x makes x of y as a convolution: pixels that no tap of it reads were not written either.
    let back = Geometry::new(spec, [g.images, g.n, g.channels], g.output, g.size, false);
    let from = [dy];
    let operands = Operands::new(spec, &from, weight);
    if let [dx] = dx {
        expect("convolution dx", dx, x.dtype(), x.shape())?;
        run(device, back, &operands, dx, workspace)?;
    }
    if let Some(db) = db {
        add_columns(device, dy, db, scratch)?;
    }
    add_weight(device, &back, &operands, x, dw, scratch)
}

/// What [`conv_transpose2d_backward`] needs of a workspace, x [images, size.., channels]; `sizes` are [images, channels, n].
pub fn transposed_backward_workspace_size(
    device: &Device,
    dtype: DType,
    spec: ConvSpec,
    [images, channels, n]: [usize; 3],
    size: [usize; 2],
) -> WorkspaceSize {
    super::workspace_size(device, dtype, spec, [images, n, channels], size)
}

/// dw += the gradient of the weight of a convolution.
fn add_weight(
    device: &Device,
    g: &Geometry,
    o: &Operands,
    dy: &Tensor,
    dw: &mut Tensor,
    scratch: &mut Tensor,
) -> Result<()> {
    if dy.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(_) => with_real!(dy.dtype(), T => {
            let (x, dy, dw) = (tensors::<T>(o.x)?, dy.host::<T>()?, dw.host_mut::<T>()?);
            if g.depthwise { add_depthwise(g, &x, dy, dw) } else { add_products(g, &x, dy, dw) }
            Ok(())
        }),
        Device::Cuda(cuda) if g.depthwise => gpu::weight_gradient(cuda, g, o, dy, dw.address(0)?),
        Device::Cuda(cuda) => {
            let [planes, _] = gpu::dw_splits(cuda, g);
            wanted(scratch, planes * dw.len(), dy)?;
            gpu::weight_gradient(cuda, g, o, dy, scratch.address(0)?)?;
            add_planes(cuda, scratch.address(0)?, dw, planes)
        }
    }
}

/// Rows of dw that one task sums.
const ROWS: usize = 64;
/// Outputs of one product.
const OUTPUTS: usize = 256;

/// dw [N, K] += dy^T times the patches, a tap's channels and some rows of it a task.
fn add_products<T: Real>(g: &Geometry, x: &[(&[T], usize)], dy: &[T], dw: &mut [T]) {
    let (groups, each, n) = (g.spec.groups, g.channels / g.spec.groups, g.n / g.spec.groups);
    let whole = taps::forward(&g.spec);
    // Few channels: all taps together.
    let phases = if each < 16 { vec![whole.clone()] } else { single_taps(&whole) };
    let k = g.spec.taps() * each;
    let width = k / phases.len();
    for group in 0..groups {
        let sources: Vec<Source<T>> = sources(x, group * each..(group + 1) * each);
        let rows = (0..n).step_by(ROWS).map(|row| row..(row + ROWS).min(n));
        let blocks = cut(&mut dw[group * n * k..][..n * k], k, rows, width);
        blocks.into_par_iter().for_each(|mut block| {
            let phase = phases[block.columns.start / width].clone();
            let patches = Patches::new(sources.clone(), g.size, g.output, phase);
            let (count, outputs) = (block.rows.len(), g.images * g.pixels());
            let mut sums = vec![T::default(); count * width];
            let mut read = vec![T::default(); OUTPUTS.min(outputs) * width];
            for first in (0..outputs).step_by(OUTPUTS) {
                let depth = OUTPUTS.min(outputs - first);
                for (row, to) in read.chunks_exact_mut(width).take(depth).enumerate() {
                    patches.gather(first + row, to);
                }
                let dy = &dy[first * g.n + group * n + block.rows.start..];
                matmul_add(
                    [count, width, depth],
                    (&mut sums, width),
                    (dy, 1, g.n),
                    (&read, width, 1),
                    Parallelism::None,
                );
            }
            for (row, sums) in block.rows.clone().zip(sums.chunks_exact(width)) {
                accumulate(block.row(row), sums);
            }
        });
    }
}

/// A phase for each tap.
fn single_taps(phase: &Phase) -> Vec<Phase> {
    let one =
        |axis: &Axis| -> Vec<Axis> { axis.taps.iter().map(|&tap| Axis { taps: vec![tap], ..axis.clone() }).collect() };
    let (down, across) = (one(&phase[0]), one(&phase[1]));
    down.iter().flat_map(|y| across.iter().map(|x| [y.clone(), x.clone()])).collect()
}

/// dw [C, taps] += for each channel by itself; 16 channels a task.
fn add_depthwise<T: Real>(g: &Geometry, x: &[(&[T], usize)], dy: &[T], dw: &mut [T]) {
    let (taps, phase) = (g.spec.taps(), taps::forward(&g.spec));
    dw.par_chunks_mut(16 * taps).enumerate().for_each(|(chunk, dw)| {
        let mut channel = chunk * 16;
        let end = channel + dw.len() / taps;
        let mut sums = vec![T::default(); taps * (end - channel)];
        for source in sources(x, channel..end) {
            let (first, count) = (channel - chunk * 16, end - chunk * 16);
            sum_taps(g, &phase, &source, dy, channel, &mut sums[first..], count);
            channel += source.count;
        }
        let count = end - chunk * 16;
        dw.iter_mut().enumerate().for_each(|(i, dw)| *dw += sums[i % taps * count + i / taps]);
    });
}

vectorized! {
    /// sums [taps, stride] of the source's channels, those of dy from `channel` on.
    fn sum_taps(g: &Geometry, phase: &Phase, s: &Source<T>, dy: &[T], channel: usize, sums: &mut [T], stride: usize) {
        let inside = |at: isize, end: usize| usize::try_from(at).ok().filter(|&at| at < end);
        let [height, width] = g.size;
        for row in 0..g.images * g.pixels() {
            let (image, line, column) = (row / g.pixels(), row / g.output[1] % g.output[0], row % g.output[1]);
            let dy = &dy[row * g.n + channel..][..s.count];
            for (i, down) in phase[0].taps.iter().enumerate() {
                let Some(y) = inside((line * phase[0].stride) as isize + down.offset, height) else { continue };
                for (j, across) in phase[1].taps.iter().enumerate() {
                    let Some(x) = inside((column * phase[1].stride) as isize + across.offset, width) else { continue };
                    let x = &s.values[((image * height + y) * width + x) * s.channels + s.first..][..s.count];
                    let sums = &mut sums[(i * phase[1].taps.len() + j) * stride..][..s.count];
                    for ((sum, &x), &dy) in sums.iter_mut().zip(x).zip(dy) {
                        *sum = x.mul_add(dy, *sum);
                    }
                }
            }
        }
    }
}
