//! Operations: shape checks, the CPU loops, and the launch of the CUDA kernel, one file per `.cu`.
//!
//! Every operation writes (`=`) its output; the ones that add to it say so. On the CPU, f16 and bf16 tensors are held
//! in f32, computed in f32, and rounded to their type after each operation. Image b of a batch gets the same bits
//! whatever the batch: products are computed image by image, and every reduction has one fixed order.

pub mod attention;
pub mod embed;
pub mod layernorm;
pub mod linear;
pub mod noise;
pub mod patch;
mod reduce;
mod simd;
pub mod solver;

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
        struct $name { $($field: $kind),* }

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
    all.extend(embed::LAYOUTS);
    all.extend(solver::LAYOUTS);
    all
}

/// Rows of numbers that differ per image (adaLN shift, scale, gate): image b uses elements
/// `offset .. offset + D` of row b of `tensor` [B, S].
#[derive(Clone, Copy)]
pub struct PerImage<'a> {
    /// [B, S], one row per image.
    pub tensor: &'a Tensor,
    /// First element of the row that is used.
    pub offset: usize,
}

impl PerImage<'_> {
    fn stride(&self) -> usize {
        self.tensor.last_dim()
    }

    /// Bytes of the `dim` elements that each image uses.
    fn bytes(&self, images: usize, dim: usize) -> usize {
        images * dim * self.tensor.dtype().size()
    }

    fn check(&self, dtype: DType, images: usize, dim: usize) -> Result<()> {
        if self.stride().checked_sub(self.offset).is_none_or(|rest| rest < dim) {
            return Err(shape_error("per-image rows", self.tensor.shape(), &[images, self.offset.saturating_add(dim)]));
        }
        expect("per-image rows", self.tensor, dtype, &[images, self.stride()])
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
    cuda.launch(&Launch { module, kernel, grid, threads: 256, shared_bytes: 0, pointers, spec, work: moves(bytes) })
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
