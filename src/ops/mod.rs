//! Operations: shape checks, the CPU loops, and the launch of the CUDA kernel, one file per `.cu`.
//!
//! Every operation writes (`=`) its output; the ones that add to it say so. On the CPU, f16 and bf16 tensors are held
//! in f32, computed in f32, and rounded to their type after each operation. Image b of a batch gets the same bits
//! whatever the batch: products are computed image by image, and every reduction has one fixed order.

pub mod activation;
pub mod attention;
pub mod backward;
pub mod batchnorm;
mod channels;
pub mod concat;
pub mod conv;
pub mod diffusion;
pub mod dropout;
pub mod embed;
pub mod excite;
pub mod fold;
pub mod geglu;
pub mod grn;
pub mod groupnorm;
pub mod latent;
pub mod layernorm;
pub mod layout;
pub mod linear;
pub mod loss;
pub mod noise;
pub mod optimizer;
pub mod parts;
pub mod patch;
pub mod pool;
pub mod product;
mod reduce;
pub(crate) mod simd;
pub mod solver;
pub mod upsample;

use crate::device::cpu::Cpu;
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Name, size and field offsets of a struct that a kernel takes by value, for comparison with the C side.
pub struct SpecLayout {
    /// Struct name, the same in Rust and C.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Field names and their offsets in bytes.
    pub fields: &'static [(&'static str, usize)],
}

/// Declares the `#[repr(C)]` struct that a kernel takes by value; every field has four bytes.
macro_rules! spec {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub(in crate::ops) struct $name { $(pub(in crate::ops) $field: $kind),* }

        impl $name {
            pub(super) const LAYOUT: crate::ops::SpecLayout = crate::ops::SpecLayout {
                name: stringify!($name),
                size: size_of::<$name>(),
                fields: &[$((stringify!($field), std::mem::offset_of!($name, $field))),*],
            };
        }
    };
}
pub(crate) use spec;

/// Layouts of all spec structs.
pub fn spec_layouts() -> Vec<SpecLayout> {
    let mut all = vec![linear::LAYOUT, attention::LAYOUT, layernorm::LAYOUT, patch::LAYOUT, noise::LAYOUT];
    all.push(attention::UNFUSED_LAYOUT);
    all.extend([activation::LAYOUT, geglu::LAYOUT, conv::LAYOUT, dropout::LAYOUT]);
    all.extend([fold::LAYOUT, loss::LAYOUT, parts::LAYOUT]);
    all.extend(optimizer::LAYOUTS);
    all.extend([groupnorm::LAYOUT, batchnorm::LAYOUT, grn::LAYOUT]);
    all.extend([pool::LAYOUT, upsample::LAYOUT, concat::LAYOUT, layout::LAYOUT, excite::LAYOUT]);
    all.extend(backward::layouts());
    all.extend(embed::LAYOUTS);
    all.extend(solver::LAYOUTS);
    all.extend(diffusion::LAYOUTS);
    all
}

/// N numbers for the columns of a row.
#[derive(Clone, Copy)]
pub enum Columns<'a> {
    /// `[N]`, the same for every image.
    Shared(&'a Tensor),
    /// [R, N]: image b uses row b, or the row that a [`Select`] names.
    PerImage(&'a Tensor),
}

impl<'a> Columns<'a> {
    fn tensor(&self) -> &'a Tensor {
        match self {
            Self::Shared(t) | Self::PerImage(t) => t,
        }
    }

    /// Elements from one row to the next, 0 where there is one row.
    fn stride(&self) -> usize {
        match self {
            Self::Shared(_) => 0,
            Self::PerImage(t) => t.last_dim(),
        }
    }

    /// Rows that there are.
    fn rows(&self) -> usize {
        match self {
            Self::Shared(_) => usize::MAX,
            Self::PerImage(t) => t.dim(0),
        }
    }

    /// Bytes that `images` images use.
    fn bytes(&self, images: usize, n: usize) -> usize {
        let rows = if self.stride() == 0 { 1 } else { images };
        rows * n * self.tensor().dtype().size()
    }

    fn check(&self, what: &str, dtype: DType, select: Option<Select>, images: usize, n: usize) -> Result<()> {
        match (self, select) {
            (Self::Shared(t), _) => expect(what, t, dtype, &[n]),
            (Self::PerImage(t), None) => expect(what, t, dtype, &[images, n]),
            (Self::PerImage(t), Some(_)) => expect(what, t, dtype, &[t.dim(0), n]),
        }
    }
}

/// Which row of a table of conditions each image takes: row e L + `rows`\[b\], where e is what `counter` holds and L the
/// number of `conditions` an evaluation. Counter and rows are on the device, so that captured work follows them.
#[derive(Clone, Copy)]
pub struct Select<'a> {
    /// The evaluation at hand, `[1]`.
    pub counter: &'a Tensor,
    /// `[B]`, each below `conditions`.
    pub rows: &'a Tensor,
    /// L.
    pub conditions: usize,
}

impl Select<'_> {
    fn check(&self, images: usize) -> Result<()> {
        expect("counter of evaluations", self.counter, DType::U32, &[1])?;
        expect("rows of conditions", self.rows, DType::U32, &[images])
    }
}

/// The rows of conditions of `images` images, on the CPU; each table has at least `rows`.
///
/// # Errors
/// [`Error::Runtime`] for an evaluation or a label past the end of a table.
fn condition_rows(select: Option<Select>, images: usize, rows: usize) -> Result<Vec<usize>> {
    let Some(select) = select else { return Ok((0..images).collect()) };
    let evaluation = select.counter.host_u32()?[0];
    let first = evaluation as usize * select.conditions;
    let picked: Vec<usize> = select.rows.host_u32()?.iter().map(|&row| first + row as usize).collect();
    match picked.iter().find(|&&row| row >= rows) {
        Some(row) => Err(Error::Runtime(format!("evaluation {evaluation}: row {row} of conditions, there are {rows}"))),
        None => Ok(picked),
    }
}

fn shape_error(what: &str, found: &[usize], expected: &[usize]) -> Error {
    Error::Runtime(format!("{what}: shape {found:?} found, {expected:?} expected"))
}

/// Refuses an operand of another type or shape: a kernel would read or write past its end.
fn expect(what: &str, tensor: &Tensor, dtype: DType, shape: &[usize]) -> Result<()> {
    if (tensor.dtype(), tensor.shape()) == (dtype, shape) {
        return Ok(());
    }
    let (found, found_shape) = (tensor.dtype(), tensor.shape());
    Err(Error::Runtime(format!("{what}: {found} {found_shape:?} found, {dtype} {shape:?} expected")))
}

/// Rounds a host tensor of f16 or bf16 values, computed in f32, to its type.
fn round(tensor: &mut Tensor) -> Result<()> {
    use rayon::prelude::*;
    let dtype = tensor.dtype();
    if matches!(dtype, DType::F16 | DType::BF16) {
        tensor.host_mut::<f32>()?.par_chunks_mut(4096).for_each(|chunk| {
            chunk.iter_mut().for_each(|v| *v = dtype.round(*v));
        });
    }
    Ok(())
}

/// The same, but only where this CPU rounds between operations: where it has instructions for the type, numbers are rounded
/// as they enter a product.
fn round_on(cpu: &Cpu, tensor: &mut Tensor) -> Result<()> {
    if tensor.dtype().rounds_on(cpu) { round(tensor) } else { Ok(()) }
}

/// Runs `$body` with `$t` standing for the float type that the CPU computes `$dtype` in.
macro_rules! with_real {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            crate::tensor::DType::F64 => {
                type $t = f64;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}
pub(crate) use with_real;

/// Launches a kernel of one thread per element, 256 threads a block; `bytes` as in [`moves`].
fn launch_elementwise(
    cuda: &Cuda,
    (module, kernel): (&'static str, String),
    elements: usize,
    pointers: &[u64],
    spec: &[u8],
    bytes: usize,
) -> Result<()> {
    // Kernels count elements in 32 bits.
    let grid = [to_u32(elements)?.div_ceil(256), 1, 1];
    let work = moves(bytes);
    cuda.launch(&Launch { module, kernel, grid, threads: 256, pointers, spec, work, ..Launch::default() })
}

/// The work of a kernel that multiplies no matrices: `bytes` of operands read and outputs written.
fn moves(bytes: usize) -> Work {
    Work { bytes: bytes as u64, ..Work::default() }
}

/// A size as a kernel takes it.
fn to_i32(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Runtime(format!("size {n} is too large for a kernel")))
}

fn to_u32(n: usize) -> Result<u32> {
    to_i32(n).map(|n| n as u32)
}
