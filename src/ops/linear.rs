//! y = residual + gate * act(x w^T + bias): every matrix product of a transformer, with what follows it fused.

use gemm::Parallelism;
use rayon::prelude::*;

use super::reduce::dot;
use super::simd::vectorized;
use super::{PerImage, expect, round, shape_error, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

spec! {
    /// Geometry of `linear_fwd_*` and `linear_reduce_fwd_*`.
    LinearSpec {
        m: i32, n: i32, k: i32, act: i32, residual: i32, residual_rows: i32, rows_per_gate: i32, gate_stride: i32,
        splits: i32, k_per_split: i32,
    }
}
pub(super) const LAYOUT: super::SpecLayout = LinearSpec::LAYOUT;

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
    /// y += gate * v, the gate differing per image (adaLN-zero).
    Gated(PerImage<'a>),
}

impl Residual<'_> {
    /// Bytes that adding it to `y` reads.
    fn bytes(self, g: Geometry, y: &Tensor) -> usize {
        match self {
            Self::None => 0,
            Self::InPlace => y.bytes(),
            Self::Rows(rows) => rows.bytes(),
            Self::Gated(gate) => y.bytes() + gate.bytes(g.images, g.n),
        }
    }
}

/// `images` is the leading dimension of x, `rows` the product of the dimensions between it and the last.
#[derive(Clone, Copy)]
struct Geometry {
    images: usize,
    rows: usize,
    n: usize,
    k: usize,
}

/// Products of fewer rows per image take our own dot products: `gemm` branches on the shape.
const MIN_GEMM_ROWS: usize = 16;

/// What a linear layer reads.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// [B, .., K].
    pub x: &'a Tensor,
    /// [N, K].
    pub weight: &'a Tensor,
    /// `[N]`.
    pub bias: Option<&'a Tensor>,
    /// After the bias.
    pub act: Activation,
    /// After the activation.
    pub residual: Residual<'a>,
}

/// y [B, .., N] = residual + act(x weight^T + bias).
///
/// `workspace` holds at least [`workspace_len`] elements (f32 on a GPU, the compute type on the CPU); its content is
/// overwritten.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or the driver's errors.
pub fn linear(device: &Device, operands: Operands, y: &mut Tensor, workspace: &mut Tensor) -> Result<()> {
    let Operands { x, weight, bias, residual, .. } = operands;
    let (n, k, dtype) = (weight.dim(0), weight.last_dim(), y.dtype());
    let images = x.dim(0);
    expect("linear x", x, dtype, x.shape())?;
    expect("linear weight", weight, dtype, &[n, k])?;
    expect("linear workspace", workspace, workspace_dtype(dtype), workspace.shape())?;
    let geometry = Geometry { images, rows: x.len() / (images * k).max(1), n, k };
    if n * k == 0 || x.last_dim() != k || y.last_dim() != n || x.len() / k != y.len() / n || y.dim(0) != images {
        return Err(Error::Runtime(format!(
            "linear: x {:?}, weight {:?} and y {:?} do not fit",
            x.shape(),
            weight.shape(),
            y.shape()
        )));
    }
    if let Some(bias) = bias {
        expect("linear bias", bias, dtype, &[n])?;
    }
    match residual {
        Residual::Rows(rows) if !geometry.rows.is_multiple_of(rows.dim(0)) => {
            return Err(shape_error("linear residual rows", rows.shape(), &[geometry.rows, n]));
        }
        Residual::Rows(rows) => expect("linear residual rows", rows, dtype, &[rows.dim(0), n])?,
        Residual::Gated(gate) => gate.check(dtype, images, n)?,
        _ => {}
    }
    if workspace.len() < workspace_len(device, images, geometry.rows, n, k) {
        return Err(Error::Runtime("linear: the workspace is too small".into()));
    }
    match device {
        Device::Cpu(_) => {
            with_real!(y.dtype(), T => cpu::<T>(geometry, operands, y, workspace))?;
            round(y)
        }
        Device::Cuda(cuda) => launch(cuda, geometry, operands, y, workspace),
    }
}

/// Elements of workspace that [`linear`] needs for x [images, rows, k] and a weight [n, k].
pub fn workspace_len(device: &Device, images: usize, rows: usize, n: usize, k: usize) -> usize {
    match device {
        Device::Cpu(_) => images * rows * n,
        Device::Cuda(_) => match split_k(rows, n, k).0 {
            1 => 0,
            splits => splits * images * rows * n,
        },
    }
}

/// Element type of the workspace in a model of type `model`: f32 sums, f64 in an f64 model.
pub fn workspace_dtype(model: DType) -> DType {
    model.wide()
}

fn cpu<T: Real>(g: Geometry, operands: Operands, y: &mut Tensor, workspace: &mut Tensor) -> Result<()> {
    let Operands { x, weight, bias, act, residual } = operands;
    let (x, w) = (x.host::<T>()?, weight.host::<T>()?);
    let bias = bias.map(|b| b.host::<T>()).transpose()?;
    // A product that is added to y must not overwrite it first.
    let adds = matches!(residual, Residual::InPlace | Residual::Gated(_));
    let y = y.host_mut::<T>()?;
    if adds {
        let product = &mut workspace.host_mut::<T>()?[..y.len()];
        products(g, x, w, product);
        let gate = match residual {
            Residual::Gated(gate) => Some((gate.tensor.host::<T>()?, gate.stride(), gate.offset)),
            _ => None,
        };
        y.par_chunks_mut(g.n).zip(product.par_chunks_mut(g.n)).enumerate().with_min_len(8).for_each(|(row, (y, v))| {
            activate(act, bias, v);
            add(y, v, gate.map(|(gate, stride, offset)| &gate[row / g.rows * stride + offset..][..g.n]));
        });
    } else {
        products(g, x, w, y);
        let rows = match residual {
            Residual::Rows(rows) => Some((rows.host::<T>()?, rows.dim(0))),
            _ => None,
        };
        if bias.is_none() && act == Activation::None && rows.is_none() {
            return Ok(());
        }
        y.par_chunks_mut(g.n).enumerate().with_min_len(8).for_each(|(row, y)| {
            activate(act, bias, y);
            if let Some((rows, count)) = rows {
                add(y, &rows[row % count * g.n..][..g.n], None);
            }
        });
    }
    Ok(())
}

vectorized! {
    /// v = act(v + bias).
    fn activate(act: Activation, bias: Option<&[T]>, v: &mut [T]) {
        if let Some(bias) = bias {
            v.iter_mut().zip(bias).for_each(|(v, &b)| *v += b);
        }
        match act {
            Activation::None => {}
            Activation::Gelu => v.iter_mut().for_each(|v| *v = gelu(*v)),
            Activation::GeluTanh => v.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
            Activation::Silu => v.iter_mut().for_each(|v| *v = silu(*v)),
        }
    }
}

vectorized! {
    /// y += gate * v.
    fn add(y: &mut [T], v: &[T], gate: Option<&[T]>) {
        match gate {
            Some(gate) => {
                for ((y, &v), &gate) in y.iter_mut().zip(v).zip(gate) {
                    *y = gate.mul_add(v, *y);
                }
            }
            None => y.iter_mut().zip(v).for_each(|(y, &v)| *y += v),
        }
    }
}

vectorized! {
    /// y [N] = w [N, K] x [K].
    fn dots(y: &mut [T], w: &[T], x: &[T]) {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(x.len())) {
            *y = dot(x, w);
        }
    }
}

#[inline(always)]
fn gelu<T: Real>(x: T) -> T {
    let half = T::from_f64(0.5);
    half * x * (T::from_f64(1.0) + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

#[inline(always)]
fn gelu_tanh<T: Real>(x: T) -> T {
    let sqrt_2_over_pi = T::from_f64(0.797_884_560_802_865_4);
    let inner = sqrt_2_over_pi * (x + T::from_f64(0.044715) * x * x * x);
    T::from_f64(0.5) * x * (T::from_f64(1.0) + inner.tanh())
}

/// x / (1 + e^-x).
#[inline(always)]
pub(super) fn silu<T: Real>(x: T) -> T {
    x / (T::from_f64(1.0) + (-x).exp())
}

/// y [images, rows, N] = x [images, rows, K] w [N, K]^T, image by image.
fn products<T: Real>(g: Geometry, x: &[T], w: &[T], y: &mut [T]) {
    if g.rows < MIN_GEMM_ROWS {
        y.par_chunks_mut(g.n).zip(x.par_chunks(g.k)).for_each(|(y, x)| {
            y.par_chunks_mut(64).zip(w.par_chunks(64 * g.k)).for_each(|(y, w)| dots(y, w, x));
        });
        return;
    }
    let image = |(y, x): (&mut [T], &[T]), parallelism| {
        let (n, k) = (g.n as isize, g.k as isize);
        matmul_t(g.rows, g.n, g.k, (y, n), (x, k), (w, k), T::from_f64(1.0), parallelism);
    };
    let pairs = (y, x);
    if g.images >= rayon::current_num_threads() {
        pairs.0.par_chunks_mut(g.rows * g.n).zip(pairs.1.par_chunks(g.rows * g.k)).for_each(|p| {
            image(p, Parallelism::None);
        });
    } else {
        for p in pairs.0.chunks_mut(g.rows * g.n).zip(pairs.1.chunks(g.rows * g.k)) {
            image(p, Parallelism::Rayon(0));
        }
    }
}

/// y [m, n] = scale * a [m, k] b [n, k]^T on the CPU; each operand comes with its row stride.
///
/// # Panics
/// If a dimension is 0 or an operand too small.
#[allow(clippy::too_many_arguments)]
pub fn matmul_t<T: Real>(
    m: usize,
    n: usize,
    k: usize,
    y: (&mut [T], isize),
    a: (&[T], isize),
    b: (&[T], isize),
    scale: T,
    parallelism: Parallelism,
) {
    matmul(m, n, k, y, (a.0, a.1, 1), (b.0, 1, b.1), scale, parallelism);
}

/// y [m, n] = scale * a [m, k] b [k, n] on the CPU; operands come with their row and column strides.
///
/// # Panics
/// If a dimension is 0 or an operand too small.
#[allow(clippy::too_many_arguments)]
pub fn matmul<T: Real>(
    m: usize,
    n: usize,
    k: usize,
    y: (&mut [T], isize),
    a: (&[T], isize, isize),
    b: (&[T], isize, isize),
    scale: T,
    parallelism: Parallelism,
) {
    let last = |rows: usize, cols: usize, rs: isize, cs: isize| (rows - 1) * rs as usize + (cols - 1) * cs as usize;
    assert!(m > 0 && n > 0 && k > 0, "matrix products have at least one element");
    assert!(
        last(m, n, y.1, 1) < y.0.len() && last(m, k, a.1, a.2) < a.0.len() && last(k, n, b.1, b.2) < b.0.len(),
        "matrix operands are large enough"
    );
    // SAFETY: the strides are positive and the assertion above keeps the last element of each operand in its slice.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.0.as_mut_ptr(),
            1,
            y.1,
            false,
            a.0.as_ptr(),
            a.2,
            a.1,
            b.0.as_ptr(),
            b.2,
            b.1,
            T::default(),
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Number of K splits and K per split for one image's product: enough blocks for a large GPU, the same whatever the
/// batch, so that the order of every sum is too.
fn split_k(rows: usize, n: usize, k: usize) -> (usize, usize) {
    const BLOCKS: usize = 128;
    const MIN_K: usize = 256;
    let tiles = rows.div_ceil(TILE) * n.div_ceil(TILE);
    let wanted = (BLOCKS / tiles).clamp(1, (k / MIN_K).max(1));
    let k_per_split = k.div_ceil(wanted).next_multiple_of(32);
    (k.div_ceil(k_per_split), k_per_split)
}

/// Rows and columns of y that one block computes.
const TILE: usize = 64;
/// Dynamic shared memory of `linear_fwd_*` (`LINEAR_SMEM` in `linear.cu`).
const SHARED_BYTES: u32 = 32 << 10;

fn launch(cuda: &Cuda, g: Geometry, operands: Operands, y: &mut Tensor, workspace: &mut Tensor) -> Result<()> {
    let Operands { x, weight, bias, act, residual } = operands;
    let m = g.images * g.rows;
    let (splits, k_per_split) = split_k(g.rows, g.n, g.k);
    let dtype = y.dtype();
    let address = |t: &Tensor| t.address(0);
    let bias = bias.map(address).transpose()?.unwrap_or(0);
    let y_address = y.address(0)?;
    let (kind, rows_address, residual_rows, gate, gate_stride) = match residual {
        Residual::None => (0, 0, m, 0, 0),
        Residual::InPlace => (1, y_address, m, 0, 0),
        Residual::Rows(rows) => (1, rows.address(0)?, rows.dim(0), 0, 0),
        Residual::Gated(gate) => (2, y_address, m, gate.tensor.address(gate.offset)?, gate.stride()),
    };
    let spec = LinearSpec {
        m: to_i32(m)?,
        n: to_i32(g.n)?,
        k: to_i32(g.k)?,
        act: match act {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::GeluTanh => 2,
            Activation::Silu => 3,
        },
        residual: kind,
        residual_rows: to_i32(residual_rows)?,
        rows_per_gate: to_i32(g.rows)?,
        gate_stride: to_i32(gate_stride)?,
        splits: to_i32(splits)?,
        k_per_split: to_i32(k_per_split)?,
    };
    let after = residual.bytes(g, y) + operands.bias.map_or(0, Tensor::bytes) + y.bytes();
    let partial_bytes = splits * m * g.n * size_of::<f32>();
    let last = if splits > 1 { partial_bytes } else { after };
    let product = Work {
        flops: 2 * (m * g.n * g.k) as u64,
        bytes: (x.bytes() + weight.bytes() + last) as u64,
        weights: weight.bytes() as u64,
    };
    let partial = if splits > 1 { workspace.address(0)? } else { 0 };
    let threads = if dtype == DType::F32 { 256 } else { 128 };
    cuda.launch(&Launch {
        module: "linear",
        kernel: format!("linear_fwd_{dtype}"),
        grid: [to_u32(g.n.div_ceil(TILE))?, to_u32(m.div_ceil(TILE))?, to_u32(splits)?],
        threads,
        shared_bytes: SHARED_BYTES,
        pointers: &[address(x)?, address(weight)?, bias, rows_address, gate, y_address, partial],
        spec: bytemuck::bytes_of(&spec),
        work: product,
    })?;
    if splits > 1 {
        let kernel = format!("linear_reduce_fwd_{dtype}");
        let pointers = [partial, bias, rows_address, gate, y_address];
        // One thread sums and finishes 16 bytes of y.
        let threads = m * g.n.div_ceil(16 / dtype.size());
        let bytes = partial_bytes + after;
        super::launch_elementwise(cuda, ("linear", kernel), threads, &pointers, bytemuck::bytes_of(&spec), bytes)?;
    }
    Ok(())
}
