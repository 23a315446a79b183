//! Convolutions of images [B, H, W, C] as implicit matrix products: y = after + act(conv(x) + bias + before).
//!
//! Weights are [N, kh, kw, C / groups] in every place, so that a row holds what an output reads in the order in which it lies in
//! memory; [`weight()`] makes them out of PyTorch's [N, C / groups, kh, kw], on a CPU in the layout of its products. Convolutions
//! of as many groups as channels (depthwise) have loops of their own. The input may be several tensors whose channels
//! follow each other: what a network concatenates is never copied.

pub mod backward;
mod cpu;
mod depthwise;
mod epilogue;
mod gpu;
mod patches;
mod spec;
mod taps;
mod weight;

use std::borrow::Cow;

use super::linear::{Activation, Workspace, WorkspaceSize};
use super::product::Kernel;
use super::{Columns, expect, round, with_real};
use crate::device::Device;
use crate::device::cpu::Cpu;
use crate::device::packed::PackedMatrix;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};
use cpu::{Part, Products};
use depthwise::Depthwise;
use epilogue::Epilogue;
use patches::{Patches, sources};
use taps::Phase;

pub(super) use gpu::LAYOUT;
pub use gpu::{Plan, TILES, Tile};
pub use spec::ConvSpec;
pub use weight::{channels_last, transposed_weight, weight};

/// Most tensors that one convolution reads.
pub const MAX_INPUTS: usize = 6;

/// What is added to a convolution.
#[derive(Clone, Copy)]
pub enum Residual<'a> {
    /// Nothing.
    None,
    /// Of y's shape, added in front of the activation (ResNet).
    Before(&'a Tensor),
    /// Of y's shape, added to what the activation gives.
    After(&'a Tensor),
}

/// What a convolution reads.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// Geometry.
    pub spec: ConvSpec,
    /// [B, H, W, C_i], up to [`MAX_INPUTS`]: their channels follow each other and are C in all. A transposed convolution on a
    /// GPU reads one.
    pub x: &'a [&'a Tensor],
    /// From [`weight()`], or [N, kh, kw, C / groups] (of a transposed convolution [C, kh, kw, N / groups]).
    pub weight: &'a Tensor,
    /// N numbers, for all images or for each.
    pub bias: Option<Columns<'a>>,
    /// After the bias.
    pub act: Activation,
    /// Before or after the activation.
    pub residual: Residual<'a>,
}

impl<'a> Operands<'a> {
    /// The convolution alone.
    pub fn new(spec: ConvSpec, x: &'a [&'a Tensor], weight: &'a Tensor) -> Self {
        Self { spec, x, weight, bias: None, act: Activation::None, residual: Residual::None }
    }
}

/// Sizes of a convolution, and which way it goes.
#[derive(Clone, Copy)]
struct Geometry {
    spec: ConvSpec,
    images: usize,
    /// Of x.
    size: [usize; 2],
    channels: usize,
    /// Of y.
    output: [usize; 2],
    n: usize,
    transposed: bool,
    /// Each channel by itself.
    depthwise: bool,
    /// Of a transposed convolution: the first of the columns of a tap of the weight that are used, and how many there are; of a
    /// depthwise one the first of the channels.
    first: usize,
    row_len: usize,
}

impl Geometry {
    fn new(
        spec: ConvSpec,
        [images, channels, n]: [usize; 3],
        size: [usize; 2],
        output: [usize; 2],
        transposed: bool,
    ) -> Self {
        let (depthwise, row_len) = (spec.is_depthwise(channels, n), n / spec.groups.max(1));
        Self { spec, images, size, channels, output, n, transposed, depthwise, first: 0, row_len }
    }

    fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn phases(&self) -> Vec<Phase> {
        if self.transposed { taps::transposed(&self.spec) } else { vec![taps::forward(&self.spec)] }
    }

    /// Most terms of a sum.
    fn k(&self) -> usize {
        let taps = |phase: &Phase| phase[0].taps.len() * phase[1].taps.len();
        self.phases().iter().map(taps).max().unwrap_or(0) * self.channels / self.spec.groups
    }
}

/// y [B, OH, OW, N] = after + act(conv(x) + bias + before). `workspace` holds at least [`workspace_size`].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or the driver's errors.
pub fn conv2d(device: &Device, operands: Operands, y: &mut Tensor, workspace: &mut Workspace) -> Result<()> {
    run(device, check(&operands, y, false)?, &operands, y, workspace)
}

/// The same on a GPU by a plan of the caller's, to compare plans; of anything but a depthwise convolution.
///
/// # Errors
/// As of [`conv2d`], and [`Error::Runtime`] on the CPU or for a plan that does not fit.
pub fn conv2d_by(
    device: &Device,
    plan: Plan,
    operands: Operands,
    y: &mut Tensor,
    workspace: &mut Workspace,
) -> Result<()> {
    let geometry = check(&operands, y, false)?;
    let Device::Cuda(cuda) = device else { return Err(crate::device::wrong_place()) };
    gpu::launch(cuda, geometry, Some(plan), &operands, y, workspace)
}

/// The transposed convolution (PyTorch's `ConvTranspose2d`): y [B, OH, OW, N] = after + act(convT(x) + bias + before), the
/// weight from [`transposed_weight`]. OH and OW are those of [`ConvSpec::transposed_output`] with any `extra`.
///
/// # Errors
/// As of [`conv2d`].
pub fn conv_transpose2d(device: &Device, operands: Operands, y: &mut Tensor, workspace: &mut Workspace) -> Result<()> {
    run(device, check(&operands, y, true)?, &operands, y, workspace)
}

/// What [`conv2d`] needs for x [images, .., channels] and y [images, output.., n] in `dtype`; `sizes` are [images, channels, n].
pub fn workspace_size(
    device: &Device,
    dtype: DType,
    spec: ConvSpec,
    sizes: [usize; 3],
    output: [usize; 2],
) -> WorkspaceSize {
    size_of(device, dtype, &Geometry::new(spec, sizes, [0; 2], output, false))
}

/// What [`conv_transpose2d`] needs, likewise.
pub fn transposed_workspace_size(
    device: &Device,
    dtype: DType,
    spec: ConvSpec,
    sizes: [usize; 3],
    output: [usize; 2],
) -> WorkspaceSize {
    size_of(device, dtype, &Geometry::new(spec, sizes, [0; 2], output, true))
}

fn size_of(device: &Device, dtype: DType, g: &Geometry) -> WorkspaceSize {
    if g.depthwise {
        return WorkspaceSize::default();
    }
    match device {
        Device::Cpu(cpu) => match dtype.packing(cpu) {
            Some(element) => {
                let rows = g.images * g.pixels();
                let lines = cpu::packed_workspace(&Kernel::new(cpu, element), rows, g.k(), cpu.threads());
                WorkspaceSize { lines, ..WorkspaceSize::default() }
            }
            None => {
                let sums = cpu::plain_workspace(g.k(), g.n / g.spec.groups, cpu.threads());
                WorkspaceSize { sums, ..WorkspaceSize::default() }
            }
        },
        Device::Cuda(cuda) => gpu::workspace(cuda, dtype, g),
    }
}

/// Refuses what does not fit together: a kernel would read or write past its end.
fn check(operands: &Operands, y: &Tensor, transposed: bool) -> Result<Geometry> {
    let Operands { spec, x, weight, bias, residual, .. } = *operands;
    let dtype = y.dtype();
    let ([first, ..], true) = (x, x.len() <= MAX_INPUTS) else {
        return Err(Error::Runtime(format!("convolution: {} inputs found, 1 to {MAX_INPUTS} expected", x.len())));
    };
    let (&[images, height, width, _], &[_, out_height, out_width, n]) = (first.shape(), y.shape()) else {
        let (x, y) = (first.shape(), y.shape());
        return Err(Error::Runtime(format!("convolution: x {x:?} and y {y:?} found, four dimensions expected")));
    };
    for x in x {
        expect("convolution x", x, dtype, &[images, height, width, x.last_dim()])?;
    }
    let channels: usize = x.iter().map(|x| x.last_dim()).sum();
    let (size, output) = ([height, width], [out_height, out_width]);
    let g = Geometry::new(spec, [images, channels, n], size, output, transposed);
    let expected = match transposed {
        false => spec.output(size)?,
        true => {
            // The stride leaves a choice of sizes.
            let least = spec.transposed_output(size, [0; 2])?;
            let extra = [0, 1].map(|axis| output[axis].saturating_sub(least[axis]));
            spec.transposed_output(size, extra)?
        }
    };
    expect("convolution y", y, dtype, &[images, expected[0], expected[1], n])?;
    let fits = n > 0 && channels > 0 && n.is_multiple_of(spec.groups) && channels.is_multiple_of(spec.groups);
    let [from, to] = if transposed { [channels, n] } else { [n, channels] };
    if !fits
        || weight.dtype() != dtype
        || weight.dim(0) != from
        || weight.len() != from * spec.taps() * to / spec.groups
    {
        return Err(Error::Runtime(format!(
            "convolution: a {} weight {:?} does not fit {channels} channels, {n} outputs and {spec:?}",
            weight.dtype(),
            weight.shape()
        )));
    }
    if let Some(bias) = bias {
        bias.check("convolution bias", dtype, None, images, n)?;
    }
    if let Residual::Before(r) | Residual::After(r) = residual {
        expect("convolution residual", r, dtype, y.shape())?;
    }
    Ok(g)
}

fn run(device: &Device, g: Geometry, operands: &Operands, y: &mut Tensor, workspace: &mut Workspace) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(cpu) => {
            with_real!(y.dtype(), T => on_cpu::<T>(cpu, g, operands, y, workspace))?;
            if y.dtype().rounds_on(cpu) {
                round(y)?;
            }
            Ok(())
        }
        Device::Cuda(cuda) => gpu::launch(cuda, g, None, operands, y, workspace),
    }
}

fn on_cpu<T: Real>(cpu: &Cpu, g: Geometry, o: &Operands, y: &mut Tensor, workspace: &mut Workspace) -> Result<()> {
    if g.depthwise {
        let epilogue = Epilogue::<T>::new([g.pixels(), g.n], o.bias, o.act, o.residual)?;
        let taps = g.spec.taps();
        let weight = &o.weight.host::<T>()?[g.first * taps..][..g.channels * taps];
        let weight = depthwise::by_taps(weight, g.channels);
        let sources = sources(&tensors(o.x)?, g.first..g.first + g.channels);
        let d = Depthwise { sources, weight, ..Depthwise::of(&g) };
        d.run(y.host_mut()?, |row, first, v, y| epilogue.finish(row, first, v, y));
        return Ok(());
    }
    match y.dtype().packing(cpu) {
        Some(element) => packed(&Kernel::new(cpu, element), g, o, y, workspace),
        None => {
            let epilogue = Epilogue::<T>::new([g.pixels(), g.n], o.bias, o.act, o.residual)?;
            let matrices = matrices(&g, o.weight.host::<T>()?);
            let weights = matrices.iter().map(|group| group.iter().map(|m| &**m).collect()).collect();
            let products = products(&g, &tensors::<T>(o.x)?, weights);
            let space = workspace.sums.host_mut::<T>()?;
            fits(cpu::plain(&products, y.host_mut()?, space, |row, first, v, y| epilogue.finish(row, first, v, y)))
        }
    }
}

fn packed(kernel: &Kernel, g: Geometry, o: &Operands, y: &mut Tensor, workspace: &mut Workspace) -> Result<()> {
    let epilogue = Epilogue::<f32>::new([g.pixels(), g.n], o.bias, o.act, o.residual)?;
    let element = kernel.element();
    let packed_now: Vec<Vec<PackedMatrix>>;
    let weights: Vec<Vec<&PackedMatrix>> = match o.weight.packed() {
        Some(packed) => vec![vec![packed]],
        // A weight that may change between convolutions is packed for each.
        None => {
            let n = g.n / g.spec.groups;
            let pack = |m: &Cow<[f32]>| PackedMatrix::pack(element, n, m.len() / n, m);
            packed_now = matrices(&g, o.weight.host()?).iter().map(|group| group.iter().map(pack).collect()).collect();
            packed_now.iter().map(|group| group.iter().collect()).collect()
        }
    };
    let ours = weights.iter().flatten().all(|w| w.element() == element);
    if !ours || weights.len() != g.spec.groups || weights[0].len() != g.phases().len() {
        return Err(Error::Runtime("convolution: the weight was packed for something else".into()));
    }
    let products = products(&g, &tensors(o.x)?, weights);
    let finish = |row: usize, first: usize, v: &mut [f32], y: &mut [f32]| epilogue.finish(row, first, v, y);
    fits(cpu::packed(kernel, &products, y.host_mut()?, &mut workspace.lines, finish))
}

fn fits(done: bool) -> Result<()> {
    if done { Ok(()) } else { Err(Error::Runtime("convolution: the workspace is too small".into())) }
}

/// Elements and channels of tensors on the host.
fn tensors<'a, T: Real>(x: &[&'a Tensor]) -> Result<Vec<(&'a [T], usize)>> {
    x.iter().map(|x| Ok((x.host()?, x.last_dim()))).collect()
}

/// The products that a convolution is made of; `weights` by group and phase.
fn products<'a, T: Real, W>(g: &Geometry, x: &[(&'a [T], usize)], weights: Vec<Vec<W>>) -> Products<'a, T, W> {
    let (phases, each) = (g.phases(), g.channels / g.spec.groups);
    let group = |(group, weights): (usize, Vec<W>)| {
        let sources = sources(x, group * each..(group + 1) * each);
        let parts = phases.iter().zip(weights);
        let part = |(phase, weight): (&Phase, W)| Part {
            patches: Patches::new(sources.clone(), g.size, g.output, phase.clone()),
            weight,
        };
        parts.map(part).collect()
    };
    let groups = weights.into_iter().enumerate().map(group).collect();
    Products { groups, rows: g.images * g.pixels(), pixels: g.pixels(), n: g.n }
}

/// The weights of the products, by group and phase: [N / groups, K].
fn matrices<'a, T: Real>(g: &Geometry, weight: &'a [T]) -> Vec<Vec<Cow<'a, [T]>>> {
    let per_group = weight.len() / g.spec.groups;
    let groups = weight.chunks_exact(per_group);
    if !g.transposed {
        return groups.map(|rows| vec![Cow::Borrowed(rows)]).collect();
    }
    let (n, taps, phases) = (g.n / g.spec.groups, g.spec.taps(), g.phases());
    let of_phase = |rows: &[T], phase: &Phase| -> Cow<'a, [T]> {
        let [down, across] = phase;
        let index = |y: usize, x: usize| down.taps[y].index * g.spec.kernel[1] + across.taps[x].index;
        let indices = (0..down.taps.len()).flat_map(|y| (0..across.taps.len()).map(move |x| (y, x)));
        let indices: Vec<usize> = indices.map(|(y, x)| index(y, x)).collect();
        let row_len = g.row_len;
        let column = |at: usize, tap: usize| rows.chunks_exact(taps * row_len).map(move |row| row[tap * row_len + at]);
        Cow::Owned((g.first..g.first + n).flat_map(|at| indices.iter().flat_map(move |&tap| column(at, tap))).collect())
    };
    groups.map(|rows| phases.iter().map(|phase| of_phase(rows, phase)).collect()).collect()
}
