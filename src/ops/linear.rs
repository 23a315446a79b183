//! y = residual + gate * act(norm(x) w^T + bias): every matrix product of a transformer, with what precedes and follows it
//! fused. A layer norm is folded into the product behind it: whoever writes x leaves the statistics of its rows, and the
//! product of the normalised x follows from the product of x itself (`kernels/linear.cuh` has the formulas).

mod cpu;
mod epilogue;
mod gpu;
mod norm;
mod packed;
mod plan;

pub use cpu::{matmul, matmul_t};
pub use plan::{HOPPER_TILES, Plan, TILES, Tile, candidates, plan, predicted};

use super::layernorm::Affine;
use super::product::Kernel;
use super::{Columns, Select, expect, round, shape_error, with_real};
use crate::device::Device;
use crate::device::packed::{Line, PackedRows};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, host_zeros};

pub(super) use epilogue::{gelu, gelu_tanh, relu, silu};
pub(super) use gpu::LAYOUT;

/// Columns that one entry of the row statistics covers.
pub const STATS_CHUNK: usize = 64;

/// Element-wise function after the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    None,
    /// x Phi(x) with the exact error function.
    Gelu,
    /// The tanh approximation of GELU (Hendrycks and Gimpel, arXiv 1606.08415).
    GeluTanh,
    /// x / (1 + e^-x).
    Silu,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// Its number in the kernels.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Gelu => 1,
            Self::GeluTanh => 2,
            Self::Silu => 3,
            Self::Relu => 4,
        }
    }
}

/// What is added to the product.
#[derive(Clone, Copy)]
pub enum Residual<'a> {
    /// Nothing: y = v.
    None,
    /// What y holds: y += v.
    InPlace,
    /// Row (row mod R) of `rows` [R, N]: positions, the same for every image.
    Rows(&'a Tensor),
    /// y += gate * v (adaLN-zero).
    Gated(Columns<'a>),
}

impl<'a> Residual<'a> {
    fn gate(self) -> Option<Columns<'a>> {
        match self {
            Self::Gated(gate) => Some(gate),
            _ => None,
        }
    }
}

/// A layer norm without affine map in front of the product, from the statistics that [`ForNorm`] left of x (or, where
/// the norm has a scale per image, of what x was scaled from).
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// [B, .., ceil(K / 64), 2].
    pub stats: &'a Tensor,
    /// The sum over k of each row of the weight, times the norm's scale where x holds it.
    pub sums: Columns<'a>,
    /// Added to the variance.
    pub eps: f64,
}

/// A layer norm in front of the product, computed while the rows of x are read: what a CPU does.
#[derive(Clone, Copy)]
pub struct RowNorm<'a> {
    /// What follows the normalisation.
    pub affine: Affine<'a>,
    /// Added to the variance.
    pub eps: f64,
}

/// What a linear layer reads.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// [B, .., K].
    pub x: &'a Tensor,
    /// [N, K].
    pub weight: &'a Tensor,
    /// Before the product, folded into it.
    pub norm: Option<Norm<'a>>,
    /// Before the product, on the CPU only.
    pub row_norm: Option<RowNorm<'a>>,
    /// N numbers.
    pub bias: Option<Columns<'a>>,
    /// After the bias.
    pub act: Activation,
    /// After the activation.
    pub residual: Residual<'a>,
    /// Which rows of the tables of numbers per condition the images take; `None`: image b takes row b.
    pub select: Option<Select<'a>>,
}

impl<'a> Operands<'a> {
    /// The product alone.
    pub fn new(x: &'a Tensor, weight: &'a Tensor) -> Self {
        let act = Activation::None;
        Self { x, weight, norm: None, row_norm: None, bias: None, act, residual: Residual::None, select: None }
    }
}

/// What a linear layer leaves for a layer norm of its output.
pub struct ForNorm<'a> {
    /// [B, .., ceil(N / 64), 2], in [`workspace_dtype`]: of each 64 columns of a row the sum, and the sum of the squared
    /// deviations from their own mean.
    pub stats: &'a mut Tensor,
    /// z = scale * y, of y's shape, for a norm with a scale per image.
    pub scaled: Option<(Columns<'a>, &'a mut Tensor)>,
}

/// Memory for intermediate results, shared by the layers of a model.
pub struct Workspace {
    /// f32 sums on a GPU, rows and products in the compute type on the CPU.
    pub(super) sums: Tensor,
    /// Of the blocks that have arrived at each tile; zeros between launches.
    pub(super) counters: Tensor,
    /// Rows as the products of the CPU read them.
    pub(super) lines: Vec<Line>,
}

/// Elements of a [`Workspace`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceSize {
    pub(super) sums: usize,
    pub(super) counters: usize,
    pub(super) lines: usize,
}

impl WorkspaceSize {
    /// Enough for either.
    pub fn max(self, other: Self) -> Self {
        Self {
            sums: self.sums.max(other.sums),
            counters: self.counters.max(other.counters),
            lines: self.lines.max(other.lines),
        }
    }
}

impl Workspace {
    /// Memory for layers of a model of type `model` that need `size`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &Device, model: DType, size: WorkspaceSize) -> Result<Self> {
        let sums = Tensor::zeros(device, workspace_dtype(model), &[size.sums])?;
        let counters = Tensor::zeros(device, DType::U32, &[size.counters])?;
        Ok(Self { sums, counters, lines: host_zeros(size.lines)? })
    }
}

/// Zeros [.., K] for what one [`linear`] writes, without a residual, another reads, without a norm, and nothing else touches:
/// on a CPU in the layout of its products, unless results of the type are rounded.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn between(device: &Device, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let packing = match device {
        Device::Cpu(cpu) if !dtype.rounds_on(cpu) => dtype.packing(cpu).map(|element| Kernel::new(cpu, element)),
        _ => None,
    };
    let (Some(kernel), [rows @ .., columns]) = (packing, shape) else { return Tensor::zeros(device, dtype, shape) };
    let rows = rows.iter().product();
    let lines = host_zeros(rows * kernel.lines(*columns))?;
    Tensor::from_rows(dtype, shape, PackedRows::new(lines, kernel.element(), [rows, *columns], kernel.tile_rows(rows)))
}

/// `images` is the leading dimension of x, `rows` the product of the dimensions between it and the last.
#[derive(Clone, Copy)]
struct Geometry {
    images: usize,
    rows: usize,
    n: usize,
    k: usize,
}

/// y [B, .., N] = residual + act(norm(x) weight^T + bias), and what `next` asks for of it.
///
/// `workspace` holds at least [`workspace_size`].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or the driver's errors.
pub fn linear(
    device: &Device,
    operands: Operands,
    y: &mut Tensor,
    next: Option<ForNorm>,
    workspace: &mut Workspace,
) -> Result<()> {
    let geometry = check(&operands, y, next.as_ref())?;
    match device {
        Device::Cpu(cpu) => {
            match y.dtype().packing(cpu) {
                Some(element) => packed::linear(cpu, element, geometry, &operands, y, workspace)?,
                None => with_real!(y.dtype(), T => cpu::linear::<T>(cpu, geometry, &operands, y, workspace))?,
            }
            if y.dtype().rounds_on(cpu) {
                round(y)?;
            }
            let Some(next) = next else { return Ok(()) };
            with_real!(y.dtype(), T => norm::for_norm::<T>(geometry, y, operands.select, next))
        }
        Device::Cuda(cuda) => {
            let plan = plan(cuda, y.dtype(), geometry.images, geometry.rows, geometry.n, geometry.k);
            gpu::launch(cuda, geometry, plan, operands, y, next, workspace)
        }
    }
}

/// The same on a GPU by a plan of the caller's, to compare plans.
///
/// # Errors
/// As [`linear`]'s, and [`Error::Runtime`] on the CPU.
pub fn linear_by(
    device: &Device,
    plan: Plan,
    operands: Operands,
    y: &mut Tensor,
    next: Option<ForNorm>,
    workspace: &mut Workspace,
) -> Result<()> {
    let geometry = check(&operands, y, next.as_ref())?;
    let Device::Cuda(cuda) = device else { return Err(crate::device::wrong_place()) };
    gpu::launch(cuda, geometry, plan, operands, y, next, workspace)
}

/// Refuses what does not fit together: a kernel would read or write past its end.
fn check(operands: &Operands, y: &Tensor, next: Option<&ForNorm>) -> Result<Geometry> {
    let Operands { x, weight, norm, row_norm, bias, residual, select, .. } = *operands;
    let (n, k, dtype, images) = (weight.dim(0), weight.last_dim(), y.dtype(), x.dim(0));
    expect("linear x", x, dtype, x.shape())?;
    expect("linear weight", weight, dtype, &[n, k])?;
    if n * k == 0 || x.last_dim() != k || y.last_dim() != n || x.len() / k != y.len() / n || y.dim(0) != images {
        return Err(Error::Runtime(format!(
            "linear: x {:?}, weight {:?} and y {:?} do not fit",
            x.shape(),
            weight.shape(),
            y.shape()
        )));
    }
    let g = Geometry { images, rows: x.len() / (images * k).max(1), n, k };
    let stats_shape = |of: &Tensor| {
        let mut shape = of.shape().to_vec();
        shape.pop();
        shape.extend([of.last_dim().div_ceil(STATS_CHUNK), 2]);
        shape
    };
    if let Some(select) = select {
        select.check(images)?;
    }
    if let Some(RowNorm { affine, .. }) = row_norm {
        affine.check(dtype, images, k)?;
        if norm.is_some() {
            return Err(Error::Runtime("linear: one norm in front of the product expected".into()));
        }
    }
    if let Some(norm) = norm {
        expect("linear stats of x", norm.stats, workspace_dtype(dtype), &stats_shape(x))?;
        norm.sums.check("linear sums of the weight", dtype, select, images, n)?;
    }
    if let Some(bias) = bias {
        bias.check("linear bias", dtype, select, images, n)?;
    }
    match residual {
        Residual::Rows(rows) if !g.rows.is_multiple_of(rows.dim(0)) => {
            return Err(shape_error("linear residual rows", rows.shape(), &[g.rows, n]));
        }
        Residual::Rows(rows) => expect("linear residual rows", rows, dtype, &[rows.dim(0), n])?,
        Residual::Gated(gate) => gate.check("linear gate", dtype, select, images, n)?,
        _ => {}
    }
    if let Some(next) = next {
        expect("linear stats of y", next.stats, workspace_dtype(dtype), &stats_shape(y))?;
        if let Some((scale, z)) = &next.scaled {
            expect("linear z", z, dtype, y.shape())?;
            scale.check("linear scale", dtype, select, images, n)?;
        }
    }
    Ok(g)
}

/// What [`linear`] needs for x [images, rows, k] and a weight [n, k] in `dtype`.
pub fn workspace_size(device: &Device, dtype: DType, images: usize, rows: usize, n: usize, k: usize) -> WorkspaceSize {
    match device {
        Device::Cpu(cpu) => match dtype.packing(cpu) {
            Some(element) => WorkspaceSize { lines: images * rows * element.lines(k), ..WorkspaceSize::default() },
            None => WorkspaceSize { sums: images * rows * (n + k), ..WorkspaceSize::default() },
        },
        Device::Cuda(cuda) => plan(cuda, dtype, images, rows, n, k).workspace(images * rows, n),
    }
}

/// Element type of intermediate sums and of row statistics in a model of type `model`: f32, f64 in an f64 model.
pub fn workspace_dtype(model: DType) -> DType {
    model.wide()
}

fn too_small() -> Error {
    Error::Runtime("linear: the workspace is too small".into())
}
