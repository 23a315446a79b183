//! The launches of `kernels/conv.cu`, `kernels/conv_depthwise.cu` and `kernels/conv_backward.cu`.

use super::taps::{Axis, Phase};
use super::{Geometry, Operands, Residual};
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::{Error, Result};
use crate::ops::linear::{Workspace, WorkspaceSize};
use crate::ops::{SpecLayout, spec, to_i32, to_u32};
use crate::tensor::{DType, Tensor};

spec! {
    /// What the kernels of convolutions know of them, and for which of their outputs.
    ConvGeometry {
        m: i32, n: i32, k: i32, groups: i32, channels: i32, height: i32, width: i32, rows: i32, cols: i32, out_height: i32,
        out_width: i32, taps_y: i32, taps_x: i32, stride_y: i32, stride_x: i32, origin_y: i32, origin_x: i32, step_y: i32,
        step_x: i32, place_y: i32, place_x: i32, scale_y: i32, scale_x: i32, first_y: i32, first_x: i32, every_y: i32,
        every_x: i32, kernel_x: i32, kernel_taps: i32, row_len: i32, end0: i32, end1: i32, end2: i32, end3: i32, end4: i32, end5: i32,
        act: i32, residual: i32, bias_stride: i32, splits: i32, k_per_split: i32, whole: i32,
    }
}
pub(in crate::ops) const LAYOUT: SpecLayout = ConvGeometry::LAYOUT;

/// Outputs and channels that one block computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Outputs.
    pub rows: usize,
    /// Channels.
    pub cols: usize,
    /// Threads of a block in f16 and bf16.
    threads: u32,
}

/// The tiles of `conv.cu`: f16 and bf16 have them all, f32 and inputs of odd channels the first.
pub const TILES: [Tile; 3] = [
    Tile { rows: 64, cols: 64, threads: 128 },
    Tile { rows: 128, cols: 64, threads: 128 },
    Tile { rows: 128, cols: 128, threads: 256 },
];

impl Tile {
    fn blocks(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.cols)
    }

    /// Four k-tiles of 64 bytes a row of both operands.
    fn shared_bytes(&self) -> u32 {
        256 * (self.rows + self.cols) as u32
    }

    fn threads(&self, dtype: DType) -> u32 {
        if dtype == DType::F32 { 256 } else { self.threads }
    }
}

/// How a convolution runs on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What a block computes.
    pub tile: Tile,
    /// Chunks that k is summed in: the last bits depend on it, and on nothing else here.
    pub splits: usize,
    k_per_split: usize,
    /// Whether each chunk has blocks of its own.
    pub spread: bool,
}

impl Plan {
    /// k in `splits` chunks or a few less: chunks are multiples of 64.
    pub fn new(tile: Tile, k: usize, splits: usize, spread: bool) -> Self {
        let k_per_split = k.div_ceil(splits.max(1)).next_multiple_of(64);
        let splits = k.div_ceil(k_per_split);
        Self { tile, splits, k_per_split, spread: spread && splits > 1 }
    }

    /// What a convolution of `m` outputs and `n` channels needs.
    pub fn workspace(&self, m: usize, n: usize) -> WorkspaceSize {
        match self.spread {
            true => WorkspaceSize { sums: self.splits * m * n, counters: self.tile.blocks(m, n), lines: 0 },
            false => WorkspaceSize::default(),
        }
    }
}

/// The chunks follow one image's outputs and fill the GPU with them, so that its bits are the same in any batch; the tile follows
/// all outputs.
fn plan(cuda: &Cuda, dtype: DType, g: &Geometry, whole: bool) -> Plan {
    const MIN_K: usize = 256;
    const MAX_SPLITS: usize = 8;
    let (k, n, m) = (g.k(), g.n / g.spec.groups, g.images * g.pixels());
    let (multiprocessors, groups) = (cuda.multiprocessors(), g.spec.groups);
    let alone = TILES[0].blocks(g.pixels(), n);
    let free = if groups == 1 { (multiprocessors / alone.max(1)).clamp(1, MAX_SPLITS) } else { 1 };
    let splits = free.min((k / MIN_K).max(1));
    let tiles = if dtype == DType::F32 || !whole { &TILES[..1] } else { &TILES[..] };
    // The largest tile that gives every multiprocessor two blocks and leaves no half of itself empty.
    let fills = |t: &&Tile| t.cols <= n.next_multiple_of(64) && t.blocks(m, n) * groups >= 2 * multiprocessors;
    let tile = *tiles.iter().rev().find(fills).unwrap_or(&TILES[0]);
    Plan::new(tile, k, splits, tile.blocks(m, n) < multiprocessors)
}

/// Whether channels come in whole 16-byte blocks: of each input, and of a group.
fn is_whole(dtype: DType, inputs: impl IntoIterator<Item = usize>, of_group: usize) -> bool {
    let block = 16 / dtype.size();
    of_group.is_multiple_of(block) && inputs.into_iter().all(|channels| channels.is_multiple_of(block))
}

/// What [`launch`] needs, whether the inputs are whole blocks or not.
pub(super) fn workspace(cuda: &Cuda, dtype: DType, g: &Geometry) -> WorkspaceSize {
    if g.transposed {
        return WorkspaceSize::default();
    }
    let (m, n) = (g.images * g.pixels(), g.n / g.spec.groups);
    [false, true]
        .map(|whole| plan(cuda, dtype, g, whole).workspace(m, n))
        .into_iter()
        .fold(WorkspaceSize::default(), WorkspaceSize::max)
}

/// By a plan of the caller's, or the one that [`plan`] makes.
pub(super) fn launch(
    cuda: &Cuda,
    g: Geometry,
    by: Option<Plan>,
    o: &Operands,
    y: &mut Tensor,
    workspace: &mut Workspace,
) -> Result<()> {
    for phase in g.phases() {
        let spec = geometry(&g, o, &phase)?;
        if spec.m == 0 {
            continue;
        }
        let work = work(&g, o, y, &spec);
        match (g.depthwise, g.transposed) {
            (true, _) => depthwise(cuda, &g, o, y, spec, work)?,
            (false, true) => transposed(cuda, &g, o, y, spec, work)?,
            (false, false) => product(cuda, &g, by, o, y, workspace, spec, work)?,
        }
    }
    Ok(())
}

/// Addresses of the inputs, 0 for those that are not there.
fn inputs(x: &[&Tensor]) -> Result<Vec<u64>> {
    let mut addresses = x.iter().map(|x| x.address(0)).collect::<Result<Vec<_>>>()?;
    addresses.resize(super::MAX_INPUTS, 0);
    Ok(addresses)
}

/// Addresses of bias, residual and y.
fn outputs(o: &Operands, y: &Tensor) -> Result<[u64; 3]> {
    let residual = match o.residual {
        Residual::None => 0,
        Residual::Before(r) | Residual::After(r) => r.address(0)?,
    };
    Ok([o.bias.map_or(Ok(0), |b| b.tensor().address(0))?, residual, y.address(0)?])
}

#[allow(clippy::too_many_arguments)]
fn product(
    cuda: &Cuda,
    g: &Geometry,
    by: Option<Plan>,
    o: &Operands,
    y: &mut Tensor,
    workspace: &mut Workspace,
    spec: ConvGeometry,
    work: Work,
) -> Result<()> {
    let (dtype, groups, n, m) = (y.dtype(), g.spec.groups, g.n / g.spec.groups, g.images * g.pixels());
    let whole = is_whole(dtype, o.x.iter().map(|x| x.last_dim()), g.channels / groups);
    let plan = by.unwrap_or_else(|| plan(cuda, dtype, g, whole));
    let Tile { rows, cols, .. } = plan.tile;
    if plan.tile != TILES[0] && (dtype == DType::F32 || !whole) || plan.splits > 1 && groups > 1 {
        return Err(Error::Runtime(format!("convolution: {plan:?} does not fit {:?} in {dtype}", g.spec)));
    }
    let need = plan.workspace(m, n);
    if workspace.sums.len() < need.sums || workspace.counters.len() < need.counters {
        return Err(Error::Runtime("convolution: the workspace is too small".into()));
    }
    let spread = |t: &Tensor| if plan.spread { t.address(0) } else { Ok(0) };
    let mut pointers = inputs(o.x)?;
    pointers.push(o.weight.address(0)?);
    pointers.extend(outputs(o, y)?);
    pointers.extend([spread(&workspace.sums)?, spread(&workspace.counters)?]);
    let (splits, k_per_split) = (to_i32(plan.splits)?, to_i32(plan.k_per_split)?);
    let spec = ConvGeometry { splits, k_per_split, whole: whole.into(), ..spec };
    let z = if groups > 1 {
        groups
    } else if plan.spread {
        plan.splits
    } else {
        1
    };
    cuda.launch(&Launch {
        module: "conv",
        kernel: format!("conv_fwd_{dtype}_{rows}x{cols}"),
        grid: [to_u32(n.div_ceil(cols))?, to_u32(m.div_ceil(rows))?, to_u32(z)?],
        threads: plan.tile.threads(dtype),
        shared_bytes: plan.tile.shared_bytes(),
        pointers: &pointers,
        spec: bytemuck::bytes_of(&spec),
        work,
        ..Launch::default()
    })
}

/// The outputs of one phase of a transposed convolution of one input.
fn transposed(cuda: &Cuda, g: &Geometry, o: &Operands, y: &mut Tensor, spec: ConvGeometry, work: Work) -> Result<()> {
    let [x] = o.x else {
        return Err(Error::Runtime(format!(
            "transposed convolution: {} inputs found, one expected on a GPU",
            o.x.len()
        )));
    };
    let (dtype, groups) = (y.dtype(), g.spec.groups);
    let whole = is_whole(dtype, [x.last_dim()], g.channels / groups).into();
    let [bias, residual, y] = outputs(o, y)?;
    let rows = to_u32(usize::try_from(spec.m).expect("rows"))?;
    cuda.launch(&Launch {
        module: "conv_backward",
        kernel: format!("conv_dx_fwd_{dtype}"),
        grid: [to_u32((g.n / groups).div_ceil(64))?, rows.div_ceil(64), to_u32(groups)?],
        threads: 128,
        pointers: &[x.address(0)?, o.weight.address(g.first)?, bias, residual, y],
        spec: bytemuck::bytes_of(&ConvGeometry { whole, ..spec }),
        work,
        ..Launch::default()
    })
}

/// Of the gradient of a weight: planes, and outputs that each sums over.
pub(super) fn dw_splits(cuda: &Cuda, g: &Geometry) -> [usize; 2] {
    const MIN_ROWS: usize = 256;
    if g.depthwise {
        return [0; 2];
    }
    let (groups, m) = (g.spec.groups, g.images * g.pixels());
    let blocks = (g.n / groups).div_ceil(64) * g.k().div_ceil(64) * groups;
    let splits = (2 * cuda.multiprocessors() / blocks.max(1)).min(m / MIN_ROWS).max(1);
    let each = m.div_ceil(splits);
    [m.div_ceil(each), each]
}

/// The gradient of the weight: planes of f32 from `planes` on, to be added up, or of a depthwise one += `dw`.
pub(super) fn weight_gradient(cuda: &Cuda, g: &Geometry, o: &Operands, dy: &Tensor, dw: u64) -> Result<()> {
    let phase = &g.phases()[0];
    let (dtype, groups, [splits, each]) = (dy.dtype(), g.spec.groups, dw_splits(cuda, g));
    let whole = is_whole(dtype, o.x.iter().map(|x| x.last_dim()), g.channels / groups).into();
    let spec = geometry(g, o, phase)?;
    let spec = ConvGeometry { splits: to_i32(splits)?, k_per_split: to_i32(each)?, whole, ..spec };
    let mut pointers = inputs(o.x)?;
    pointers.extend([dy.address(0)?, dw]);
    let work = work(g, o, dy, &spec);
    let (k, n) = (g.k(), g.n / groups);
    let launch = match g.depthwise {
        true => Launch {
            module: "conv_depthwise",
            kernel: format!("conv_depthwise_dw_bwd_{dtype}"),
            grid: [to_u32(g.channels.div_ceil(32))?, to_u32(g.spec.taps())?, 1],
            threads: 256,
            ..Launch::default()
        },
        false => Launch {
            module: "conv_backward",
            kernel: format!("conv_dw_bwd_{dtype}"),
            grid: [to_u32(k.div_ceil(64))?, to_u32(n.div_ceil(64))?, to_u32(groups * splits)?],
            threads: 128,
            ..Launch::default()
        },
    };
    cuda.launch(&Launch { pointers: &pointers, spec: bytemuck::bytes_of(&spec), work, ..launch })
}

fn depthwise(cuda: &Cuda, g: &Geometry, o: &Operands, y: &mut Tensor, spec: ConvGeometry, work: Work) -> Result<()> {
    let mut pointers = inputs(o.x)?;
    // Channels from the first on of the one input of a gradient.
    pointers[0] = o.x[0].address(g.first)?;
    pointers.push(o.weight.address(g.first * g.spec.taps())?);
    pointers.extend(outputs(o, y)?);
    let lines = g.images * usize::try_from(spec.rows).expect("rows");
    cuda.launch(&Launch {
        module: "conv_depthwise",
        kernel: format!("conv_depthwise_fwd_{}", y.dtype()),
        grid: [to_u32(g.channels.div_ceil(64))?, spec.cols.cast_unsigned().div_ceil(8), to_u32(lines)?],
        threads: 64,
        shared_bytes: to_u32(64 * 4 * g.spec.taps())?,
        pointers: &pointers,
        spec: bytemuck::bytes_of(&spec),
        work,
        ..Launch::default()
    })
}

/// The taps of an axis as the kernels count them: the first, from one to the next, and the same of their offsets.
fn affine(axis: &Axis) -> Result<[i32; 4]> {
    let small = |v: isize| i32::try_from(v).map_err(|_| Error::Runtime(format!("size {v} is too large for a kernel")));
    let at = |i: usize| axis.taps.get(i).map_or((0, 0), |tap| (tap.index as isize, tap.offset));
    let ((first, origin), (second, next)) = (at(0), at(1));
    let (every, step) = if axis.taps.len() > 1 { (second - first, next - origin) } else { (0, 0) };
    Ok([small(first)?, small(every)?, small(origin)?, small(step)?])
}

/// The outputs of one phase.
fn geometry(g: &Geometry, o: &Operands, phase: &Phase) -> Result<ConvGeometry> {
    let [down, across] = phase;
    let along = |axis: usize| g.output[axis].saturating_sub(phase[axis].first).div_ceil(phase[axis].every);
    let ([rows, cols], groups) = ([along(0), along(1)], g.spec.groups);
    let [first_y, every_y, origin_y, step_y] = affine(down)?;
    let [first_x, every_x, origin_x, step_x] = affine(across)?;
    let mut ends = [0; super::MAX_INPUTS];
    let mut end = 0;
    for (i, at) in ends.iter_mut().enumerate() {
        end += o.x.get(i).map_or(0, |x| x.last_dim());
        *at = to_i32(end)?;
    }
    let [end0, end1, end2, end3, end4, end5] = ends;
    let (taps_y, taps_x, channels) = (down.taps.len(), across.taps.len(), g.channels / groups);
    let depthwise = g.depthwise;
    // Everything that a kernel multiplies into an index fits 32 bits.
    to_i32(g.images * g.size[0] * g.size[1])?;
    Ok(ConvGeometry {
        m: to_i32(g.images * rows * cols)?,
        n: if depthwise { 1 } else { to_i32(g.n / groups)? },
        k: to_i32(taps_y * taps_x * channels)?,
        groups: to_i32(groups)?,
        channels: to_i32(channels)?,
        height: to_i32(g.size[0])?,
        width: to_i32(g.size[1])?,
        rows: to_i32(rows)?,
        cols: to_i32(cols)?,
        out_height: to_i32(g.output[0])?,
        out_width: to_i32(g.output[1])?,
        taps_y: to_i32(taps_y)?,
        taps_x: to_i32(taps_x)?,
        stride_y: to_i32(down.stride)?,
        stride_x: to_i32(across.stride)?,
        origin_y,
        origin_x,
        step_y,
        step_x,
        place_y: to_i32(down.first)?,
        place_x: to_i32(across.first)?,
        scale_y: to_i32(down.every)?,
        scale_x: to_i32(across.every)?,
        first_y,
        first_x,
        every_y,
        every_x,
        kernel_x: to_i32(g.spec.kernel[1])?,
        kernel_taps: to_i32(g.spec.taps())?,
        row_len: to_i32(g.row_len)?,
        end0,
        end1,
        end2,
        end3,
        end4,
        end5,
        act: o.act.code(),
        residual: match o.residual {
            Residual::None => 0,
            Residual::Before(_) => 1,
            Residual::After(_) => 2,
        },
        bias_stride: to_i32(o.bias.map_or(0, |b| b.stride()))?,
        splits: 1,
        k_per_split: to_i32((taps_y * taps_x * channels).next_multiple_of(64))?,
        whole: 0,
    })
}

fn work(g: &Geometry, o: &Operands, y: &Tensor, spec: &ConvGeometry) -> Work {
    let residual = if matches!(o.residual, Residual::None) { 0 } else { y.bytes() };
    let bias = o.bias.map_or(0, |b| b.bytes(g.images, g.n));
    let bytes = o.x.iter().map(|x| x.bytes()).sum::<usize>() + o.weight.bytes() + y.bytes() + residual + bias;
    let flops = 2 * i64::from(spec.m) * i64::from(spec.n) * i64::from(spec.k) * i64::from(spec.groups);
    Work { flops: flops.cast_unsigned(), bytes: bytes as u64, weights: o.weight.bytes() as u64 }
}
